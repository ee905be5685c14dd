"""Reads weights one tensor at a time, from a file, the hub or a random generator."""

import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import safetensors

from pipeline.errors import DataError, UserError
from pipeline.hub import SCHEME, fetch, without_revision
from pipeline.vggt.checkpoint_keys import PREFIX, Place, Shape
from pipeline.vggt.encoder_spec import VggtConfig, tiny, vggt_1b

FILE = "model.safetensors"
"""The name of a file of weights in a directory or on the hub."""

RANDOM = "random:"
"""Before a preset's name: untrained weights of its sizes."""

PRESETS: dict[str, Callable[[], VggtConfig]] = {"tiny": tiny, "vggt_1b": vggt_1b}

_LICENCES = {
    f"{SCHEME}facebook/VGGT-1B": "CC-BY-NC-4.0",
    f"{SCHEME}facebook/VGGT-1B-Commercial": "vggt-aup-license",
}
_RANDOM_LICENCE = "none: random numbers"
_DTYPES = ("F32", "BF16", "F16")
_MOST_NAMED = 8
"""Faults of a file, in an error."""

_log = logging.getLogger(__name__)

Tensors = Iterator[tuple[str, np.ndarray]]


def config_of(source: str, config: VggtConfig | None) -> VggtConfig:
    """The sizes of a source's weights; those of a file are VGGT-1B's unless they are given.

    Raises:
      UserError: Random weights of no known preset, or of another one than is asked for.
    """
    if not source.startswith(RANDOM):
        # A file does not say its sizes; those of VGGT-1B are the likely ones.
        return config or vggt_1b()
    name = source.removeprefix(RANDOM)
    if name not in PRESETS or config not in (None, PRESETS[name]()):
        raise UserError(
            where=source,
            expected=" or ".join(RANDOM + preset for preset in PRESETS)
            + (f", with {config}" if name in PRESETS else ""),
            found=name,
            remedy=f"Name a preset, or a file such as {SCHEME}facebook/VGGT-1B/{FILE}.",
        )
    return PRESETS[name]()


def licence_of(source: str, licence: str | None) -> str:
    """The licence of a source's weights: as given, else as it is known.

    Raises:
      UserError: It is neither.
      DataError: It is neither, and there is no such file.
    """
    if licence is not None:
        return licence
    if source.startswith(RANDOM):
        return _RANDOM_LICENCE
    # A revision or the file's name do not change the licence.
    known = _LICENCES.get(without_revision(source).removesuffix(f"/{FILE}").rstrip("/"))
    # A wrong path is reported as one, before the licence is asked for.
    if known is None and not source.startswith(SCHEME):
        _local_path(source)
    if known is None:
        raise UserError(
            where=source,
            expected="the licence of the weights, which binds the tokens as well",
            found="none",
            remedy="Name it (--licence); that of facebook/VGGT-1B is CC-BY-NC-4.0.",
        )
    return known


def check_found(source: str) -> None:
    """Finds a local file of weights, before anything is allocated for it.

    Raises:
      DataError: There is no such file.
    """
    # The hub's file is fetched when it is read, so that the hub is asked once.
    if not source.startswith((RANDOM, SCHEME)):
        _local_path(source)


def read_tensors(source: str, expected: Mapping[str, Place]) -> Tensors:
    """Yields (key, array) of every tensor of the aggregator; no other is read.

    Args:
      source: A file, a directory that has `model.safetensors`, `hf://owner/name`, with or without
        the file's name, or `random:` and a preset.
      expected: From `places`.

    Raises:
      DataError: The file is missing or corrupt.
      UserError: Its tensors are not the expected ones; it names what is missing, unknown or of
        another shape or dtype.
    """
    if source.startswith(RANDOM):
        _log.warning("%s: UNTRAINED weights, the tokens mean nothing", source)
        yield from random_tensors({key: place.shape for key, place in expected.items()})
        return
    path = _local_path(source)
    try:
        # By `pread`: of a file that is mapped into memory, every page read would stay there.
        with safetensors.safe_open(path, framework="numpy", backend="pread") as file:
            # In the order of the file, so that it is read from front to back.
            keys = [key for key in file.offset_keys() if key.startswith(PREFIX)]
            slices = {key: file.get_slice(key) for key in keys}
            # All keys and shapes are checked before the first value is read.
            _check(
                source,
                expected,
                {k: (tuple(s.get_shape()), s.get_dtype()) for k, s in slices.items()},
            )
            # One tensor at a time: the weights take 3.6 GB.
            for key in keys:
                yield key, file.get_tensor(key)
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(
            where=str(path),
            expected="a file of safetensors that is whole",
            found=" ".join(str(error).split()),
            remedy="Copy or fetch it again.",
        ) from error


def _local_path(source: str) -> pathlib.Path:
    if source.startswith(SCHEME):
        return fetch(source if source.endswith(".safetensors") else f"{source.rstrip('/')}/{FILE}")
    path = pathlib.Path(source)
    return fetch(str(path / FILE)) if path.is_dir() else fetch(source)


def _check(
    source: str, expected: Mapping[str, Place], found: Mapping[str, tuple[Shape, str]]
) -> None:
    missing = [f"{key} is missing" for key in expected if key not in found]
    unknown = [f"{key} has no place" for key in found if key not in expected]
    differing = [
        f"{key} is {dtype}{list(shape)}, not {'/'.join(_DTYPES)}{list(expected[key].shape)}"
        for key, (shape, dtype) in found.items()
        if key in expected and (shape != expected[key].shape or dtype not in _DTYPES)
    ]
    faults = [*missing, *unknown, *differing]
    if faults:
        raise UserError(
            where=source,
            expected=f"the {len(expected)} tensors {PREFIX}* of the model",
            found=f"{len(found)} of them, {len(faults)} not as expected: {_listed(faults)}",
            remedy="Name the weights of this model, or the model of these weights.",
        )


def _listed(faults: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(faults) - _MOST_NAMED
    return "; ".join(faults[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def random_tensors(shapes: Mapping[str, Shape], seed: int = 0) -> Tensors:
    """Yields (key, float32 array) of random numbers at which no layer vanishes or explodes."""
    rng = np.random.default_rng(seed)
    for key, shape in shapes.items():
        # float32 from the start: float64 would take twice the memory of the largest tensor.
        normal = rng.standard_normal(shape, np.float32)
        if "norm" in key or key.endswith(".gamma"):
            # Scales around 1 and layer scales around 0.5 keep the signal's size.
            centre = np.float32(key.endswith(".weight")) + np.float32(0.5) * key.endswith(".gamma")
            yield key, np.float32(centre) + np.float32(0.1) * normal
        elif key.endswith(".weight"):
            # Divided by the root of the inputs, as any usual start of a dense layer.
            yield key, normal / np.float32(math.sqrt(math.prod(shape[1:])))
        else:
            yield key, np.float32(0.1 if key.endswith(".bias") else 1.0) * normal
