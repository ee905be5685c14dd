"""A file of VGGT-1B's size: what loading it takes. Needs 3.7 GB of disk and 4.4 GB of memory.

OCTOGRAIN_FULL_SIZE=1 python -m pytest tests/pipeline/vggt/test_full_size.py -s
"""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from pipeline.vggt.aggregator_weights import leaf_shapes
from pipeline.vggt.encoder_spec import vggt_1b
from pipeline.vggt.weight_sources import places, random_tensors

_ROOT = pathlib.Path(__file__).parents[3]
_HEAD = ("camera_head.weight", (1000, 1000))

_LOAD = """
import resource, sys, time
from pipeline.vggt.aggregator_weights import load_weights
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, started = peak(), time.perf_counter()
weights = load_weights(sys.argv[1], licence="none", layers=(int(sys.argv[2]),))
print(weights.digest, before, peak(), time.perf_counter() - started)
"""


def write(path: pathlib.Path) -> None:
    """Random tensors of a whole aggregator and a head's, one in memory at a time."""
    shapes = {key: place.shape for key, place in places(leaf_shapes(vggt_1b(), 24)).items()}
    shapes |= dict([_HEAD])
    header, start = {}, 0
    for key, shape in shapes.items():
        end = start + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in random_tensors(shapes):
            tensor.tofile(file)


def load(path: pathlib.Path, layer: int) -> tuple[str, int, int, float]:
    """(digest, peak memory before and after in bytes, seconds) in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path), str(layer)],
        cwd=_ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    digest, before, after, seconds = result.stdout.split()
    return digest, int(before), int(after), float(seconds)


@pytest.mark.skipif(not os.environ.get("OCTOGRAIN_FULL_SIZE"), reason="OCTOGRAIN_FULL_SIZE unset")
def test_loading_takes_little_more_than_the_weights(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.safetensors"
    try:
        write(path)
        size = path.stat().st_size
        digest, before, whole, seconds = load(path, 23)
        of_some, _, some, _ = load(path, 11)
    finally:
        path.unlink(missing_ok=True)
    print(f"{size=} {before=} {whole=} {some=} {seconds=:.1f} {digest=}")  # noqa: T201
    assert size > 4 * 909_112_320
    assert whole < 1.2 * size
    assert some < 0.9 * size
    assert of_some == digest
