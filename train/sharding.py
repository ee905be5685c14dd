"""How a state lies on the devices: every array whole on each, or in parts over the axis `fsdp`."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pipeline.device import FSDP_AXIS

SMALLEST_SHARDED_BYTES = 1 << 20
"""Smaller arrays are kept whole: to gather them would take longer than it saves memory."""


def shard_structs(structs: Any, mesh: Mesh, smallest_bytes: int = SMALLEST_SHARDED_BYTES) -> Any:
    """The same `jax.ShapeDtypeStruct`s with the sharding that each array gets.

    The longest axis that the devices along `fsdp` divide is cut into that many parts.

    Args:
      structs: A tree of shapes.
      mesh: With the axis `fsdp`.
      smallest_bytes: Arrays of fewer are kept whole.
    """
    parts = mesh.shape[FSDP_AXIS]

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec()
        if parts > 1 and leaf.size * leaf.dtype.itemsize >= smallest_bytes:
            axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
            if axes:
                axis = max(axes, key=lambda axis: leaf.shape[axis])
                spec = PartitionSpec(*([None] * axis), FSDP_AXIS)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, structs)
