"""Maps paths of the parameters to keys of a checkpoint's tensors, without reading values."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from pipeline.vggt.encoder_spec import PATCH_SIZE

PREFIX = "aggregator."
"""Prefix of the keys that are read; the rest belong to the heads."""

Change = Literal["none", "transpose", "patches"]
"""What a tensor undergoes: nothing; `(out, in)` to `(in, out)`; a convolution's `(out, 3, 14, 14)`
to the rows of a dense layer, in the order of `to_patches`."""

Shape = tuple[int, ...]

_STACKS = {
    "patch_embed/blocks/block/": "patch_embed.blocks",
    "blocks/frame/": "frame_blocks",
    "blocks/global/": "global_blocks",
}
_CONVOLUTION = "proj/kernel"


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
        stack = next((stack for stack in _STACKS if path.startswith(stack)), None)
        if stack is None:
            found[PREFIX + _key(path)] = _place(path, None, shape)
            continue
        rest = _key(path.removeprefix(stack))
        # The checkpoint has one tensor per block; the parameters stack them.
        for index in range(shape[0]):
            key = f"{PREFIX}{_STACKS[stack]}.{index}.{rest}"
            found[key] = _place(path, index, shape[1:])
    return found


def _key(path: str) -> str:
    *modules, name = path.split("/")
    # torch calls a norm's scale "weight" as well.
    return ".".join([*modules, "weight" if name in ("kernel", "scale") else name])


def _place(path: str, index: int | None, shape: Shape) -> Place:
    # Vectors and tokens are the same in both.
    if not path.endswith("/kernel"):
        return Place(path, index, "none", shape)
    rows, columns = shape
    # Only the first layer is a convolution; the others named proj are dense.
    if index is None and path.endswith(_CONVOLUTION):
        square = PATCH_SIZE, PATCH_SIZE
        return Place(path, index, "patches", (columns, rows // PATCH_SIZE**2, *square))
    # torch keeps (out, in).
    return Place(path, index, "transpose", (columns, rows))
