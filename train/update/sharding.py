"""Shards a state: every device holds an array whole, or a part of it along the axis `fsdp`."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pipeline.loading.device import FSDP_AXIS

SMALLEST_SHARDED_BYTES = 1 << 20
"""Smaller arrays are replicated: gathering them would take more time than the memory is worth."""


def shard_structs(structs: Any, mesh: Mesh, smallest_bytes: int = SMALLEST_SHARDED_BYTES) -> Any:
    """Adds a sharding to each `jax.ShapeDtypeStruct` of a tree.

    An array is sharded along its longest axis whose length is a multiple of the `fsdp` devices.

    Args:
      structs: A tree of shapes.
      mesh: The device mesh, with the axis `fsdp`.
      smallest_bytes: Smaller arrays are replicated.
    """
    parts = mesh.shape[FSDP_AXIS]

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec()
        if parts > 1 and leaf.size * leaf.dtype.itemsize >= smallest_bytes:
            # Only axes that all devices divide: uneven parts would need padding.
            axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
            if axes:
                # The longest axis, so that a part is still a large piece.
                axis = max(axes, key=lambda axis: leaf.shape[axis])
                spec = PartitionSpec(*([None] * axis), FSDP_AXIS)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, structs)
