"""The tensors of a VGGT checkpoint: their places in the parameters, and where they come from.

They are read one at a time, from a file, the hub or a random generator: together they take 3.6 GB.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import safetensors

from pipeline.errors import DataError, UserError
from pipeline.files import dump_json, from_json_text, to_json_values
from pipeline.hub.hub_address import SCHEME, without_revision
from pipeline.hub.hub_files import fetch
from pipeline.vggt.encoder_spec import PATCH_SIZE, VggtConfig, tiny, vggt_1b

FILE = "model.safetensors"
"""The name of a file of weights in a directory or on the hub."""

RANDOM = "random:"
"""Before a preset's name: untrained weights of its sizes."""

PRESETS: dict[str, Callable[[], VggtConfig]] = {"tiny": tiny, "vggt_1b": vggt_1b}

PREFIX = "aggregator."
"""Prefix of the keys that are read; the rest belong to the heads."""

_MODEL, _LICENCE = "vggt_config", "licence"
"""Entries in the header of a file that this project wrote: its sizes, as JSON, and its licence."""

_LICENCES = {
    f"{SCHEME}facebook/VGGT-1B": "CC-BY-NC-4.0",
    f"{SCHEME}facebook/VGGT-1B-Commercial": "vggt-aup-license",
}
_DTYPES = ("F32", "BF16", "F16")
_STACKS = {
    "patch_embed/blocks/block/": "patch_embed.blocks",
    "blocks/frame/": "frame_blocks",
    "blocks/global/": "global_blocks",
}
_MOST_NAMED = 8
"""Mismatches that an error lists."""

_log = logging.getLogger(__name__)

Change = Literal["none", "transpose", "patches"]
"""What a tensor undergoes: nothing; `(out, in)` to `(in, out)`; a convolution's `(out, 3, 14, 14)`
to the rows of a dense layer, in the order of `to_patches`."""

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Place:
    """One tensor's place in the parameters."""

    path: str
    """Path of the leaf, its names joined by `/`."""
    index: int | None
    """Index of the block in a leaf that stacks all blocks; None: the whole leaf."""
    change: Change
    """Change of the tensor on the way there."""
    shape: Shape
    """Shape of the tensor in the checkpoint."""


def places(leaves: Mapping[str, Shape]) -> dict[str, Place]:
    """Returns the place of every tensor that an aggregator has, by its key.

        blocks/frame/attn/qkv/kernel (24, 1024, 3072) -> aggregator.frame_blocks.0.attn.qkv.weight,
                                                         ..., 23: (3072, 1024), transposed
        patch_embed/norm/scale (1024,)                -> aggregator.patch_embed.norm.weight

    Args:
      leaves: Shapes of the parameters by path.
    """
    found = {}
    for path, shape in leaves.items():
        stack = next((stack for stack in _STACKS if path.startswith(stack)), "")
        *modules, name = path.removeprefix(stack).split("/")
        # torch calls a norm's scale "weight" as well.
        key = ".".join([*modules, "weight" if name in ("kernel", "scale") else name])
        if not stack:
            found[PREFIX + key] = _place(path, None, shape)
            continue
        # The checkpoint has one tensor per block; the parameters stack them.
        for index in range(shape[0]):
            found[f"{PREFIX}{_STACKS[stack]}.{index}.{key}"] = _place(path, index, shape[1:])
    return found


def _place(path: str, index: int | None, shape: Shape) -> Place:
    # Vectors and tokens are the same in both.
    if not path.endswith("/kernel"):
        return Place(path, index, "none", shape)
    rows, columns = shape
    # Only the first layer is a convolution; the others named proj are dense.
    if index is None and path.endswith("proj/kernel"):
        square = PATCH_SIZE, PATCH_SIZE
        return Place(path, index, "patches", (columns, rows // PATCH_SIZE**2, *square))
    # torch keeps (out, in).
    return Place(path, index, "transpose", (columns, rows))


def header(config: VggtConfig, licence: str, provenance: Mapping[str, str]) -> dict[str, str]:
    """The header of a file of weights: what `config_of` and `licence_of` read, and provenance."""
    stated = {_MODEL: dump_json(to_json_values(config)), _LICENCE: licence}
    return {**provenance, **stated}


def _stated(source: str) -> dict[str, str]:
    """The header of a file on a disk; empty for one of another program, and for other sources."""
    if source.startswith((RANDOM, SCHEME)):
        # A file on the hub would have to be downloaded first.
        return {}
    try:
        path = find_file(source)
    except DataError:
        # A missing file is reported where its tensors are read.
        return {}
    with _opened(path) as file:
        return file.metadata() or {}


def config_of(source: str, config: VggtConfig | None = None) -> VggtConfig:
    """The sizes of a source's weights: as its header states them, as given, or those of VGGT-1B.

    Raises:
      UserError: Random weights of no known preset; or weights of other sizes than are asked for.
      DataError: The file or its header is corrupt.
    """
    if not source.startswith(RANDOM):
        stated = _stated(source).get(_MODEL)
        if stated is None:
            # A released file does not state its sizes; those of VGGT-1B are the likely ones.
            return config or vggt_1b()
        remedy = "Copy the file again, or write it again."
        found = from_json_text(VggtConfig, stated, where=f"{source}, {_MODEL}", remedy=remedy)
        if config not in (None, found):
            raise UserError(
                where=source,
                expected=f"weights of {config}",
                found=f"those of {found}",
                remedy="Name the weights of this model.",
            )
        return found
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


def licence_of(source: str, licence: str | None = None) -> str:
    """The licence of a source's weights: as given, as it is known, or as its header states it.

    Raises:
      UserError: It is neither.
    """
    # A revision or the file's name do not change the licence.
    known = _LICENCES.get(without_revision(source).removesuffix(f"/{FILE}").rstrip("/"))
    found = licence or ("none: random numbers" if source.startswith(RANDOM) else known)
    found = found or _stated(source).get(_LICENCE)
    if found is None:
        raise UserError(
            where=source,
            expected="the licence of the weights, which binds the tokens as well",
            found="none",
            remedy="Name it (--licence); that of facebook/VGGT-1B is CC-BY-NC-4.0.",
        )
    return found


def find_file(source: str) -> pathlib.Path:
    """Returns the local path of a file of weights; one on the hub is fetched.

    Raises:
      DataError: There is no such file, or it cannot be fetched.
    """
    if source.startswith(SCHEME):
        is_folder = not source.endswith(".safetensors")
    else:
        is_folder = pathlib.Path(source).is_dir()
    return fetch(f"{source.rstrip('/')}/{FILE}" if is_folder else source)


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
    with _opened(find_file(source)) as file:
        # In the order of the file, so that it is read from front to back.
        keys = [key for key in file.offset_keys() if key.startswith(PREFIX)]
        slices = {key: file.get_slice(key) for key in keys}
        found = {k: (tuple(s.get_shape()), s.get_dtype()) for k, s in slices.items()}
        # All keys and shapes are checked before the first value is read.
        _check(source, expected, found)
        for key in keys:
            yield key, file.get_tensor(key)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """A file of safetensors, to read inside the block.

    Raises:
      DataError: The file is corrupt.
    """
    try:
        # By `pread`: of a file that is mapped into memory, every page read would stay there.
        with safetensors.safe_open(path, framework="numpy", backend="pread") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(
            where=str(path),
            expected="a file of safetensors that is whole",
            found=" ".join(str(error).split()),
            remedy="Copy or fetch it again.",
        ) from error


def _check(
    source: str, expected: Mapping[str, Place], found: Mapping[str, tuple[Shape, str]]
) -> None:
    faults = [f"{key} is missing" for key in expected if key not in found]
    faults += [f"{key} has no place" for key in found if key not in expected]
    faults += [
        f"{key} is {dtype}{list(shape)}, not {'/'.join(_DTYPES)}{list(expected[key].shape)}"
        for key, (shape, dtype) in found.items()
        if key in expected and (shape != expected[key].shape or dtype not in _DTYPES)
    ]
    if faults:
        more = len(faults) - _MOST_NAMED
        listed = "; ".join(faults[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(
            where=source,
            expected=f"the {len(expected)} tensors {PREFIX}* of the model",
            found=f"{len(found)} of them, {len(faults)} not as expected: {listed}",
            remedy="Name the weights of this model, or the model of these weights.",
        )


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
