"""From host arrays to the devices: shardings, one batch ahead, and resizing inside the step."""

import math
import resource
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt8

from pipeline.batch import BatchSpec, nest
from pipeline.errors import UserError
from pipeline.loader import LoadedBatch
from pipeline.sampling import HostShard

DATA_AXIS = "data"
FSDP_AXIS = "fsdp"


def make_mesh(fsdp_devices: int = 1) -> Mesh:
    """A mesh of all devices along the axes `data` and `fsdp`, in the order of their processes.

    Args:
      fsdp_devices: Devices along `fsdp`: over these the parameters are cut into parts.

    Raises:
      UserError: Where it does not divide the devices.
    """
    num_devices = jax.device_count()
    if num_devices % fsdp_devices:
        divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
        raise UserError(
            where="config.fsdp_devices",
            expected=f"a divisor of {num_devices}, the number of devices",
            found=str(fsdp_devices),
            remedy=f"Take one of {', '.join(map(str, divisors))}.",
        )
    shape = (num_devices // fsdp_devices, fsdp_devices)
    # Explicit axes, the default, would ask for a sharding at every reshape in the model.
    return jax.make_mesh(shape, (DATA_AXIS, FSDP_AXIS), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh, batch_size: int, num_parts: int = 1) -> NamedSharding:
    """The sharding of every leaf of a batch: its first axis over all devices.

    Args:
      mesh: As `make_mesh` returned it.
      batch_size: Samples.
      num_parts: That the batch is processed in, one after the other.

    Raises:
      UserError: Where the devices do not divide each part.
    """
    wanted = mesh.size * num_parts
    if batch_size % wanted:
        parts = f" times {num_parts}, optimizer.accumulation_steps" if num_parts > 1 else ""
        raise UserError(
            where="config.batch_size",
            expected=f"a multiple of {wanted}: {mesh.size}, the number of devices{parts}",
            found=str(batch_size),
            remedy=f"Take {batch_size - batch_size % wanted or wanted}.",
        )
    return NamedSharding(mesh, PartitionSpec((DATA_AXIS, FSDP_AXIS)))


def host_shard(sharding: NamedSharding, batch_size: int) -> HostShard:
    """The rows of every global batch that this process's devices hold.

    Raises:
      UserError: Where they do not lie together, as the loader makes them.
    """
    shard = HostShard(jax.process_index(), jax.process_count())
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = {row for part in parts if part is not None for row in range(batch_size)[part[0]]}
    if rows != set(shard.rows(batch_size)):
        raise UserError(
            where=f"process {shard.index} of {shard.count}",
            expected=f"devices that hold the rows {shard.rows(batch_size)} of a batch",
            found=f"rows {sorted(rows)}",
            remedy="Give the mesh the devices in the order of their processes.",
        )
    return shard


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def local_size(struct: jax.ShapeDtypeStruct) -> int:
    """Numbers of an array that one device holds."""
    if struct.sharding is None:
        return struct.size
    return math.prod(struct.sharding.shard_shape(struct.shape))


def peak_bytes() -> int:
    """The most memory in use so far: of the first device or, on a CPU, of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def shape_structs(spec: BatchSpec, sharding: NamedSharding) -> dict[str, Any]:
    """The batch as `jax.ShapeDtypeStruct`s, nested: what a step is compiled for."""
    return nest(
        {
            key: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.dtype), sharding=sharding)
            for key, leaf in spec.items()
        }
    )


def to_devices(batch: LoadedBatch, sharding: NamedSharding) -> dict[str, Any]:
    """The global batch as jax arrays, of which each process gives its rows; transfers begin."""
    return arrays_to_devices(batch.arrays, sharding)


def arrays_to_devices(arrays: dict[str, Any], sharding: NamedSharding) -> dict[str, Any]:
    """As `to_devices`, of a batch's arrays alone."""
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), arrays)


def one_ahead(
    batches: Iterator[LoadedBatch], sharding: NamedSharding
) -> Iterator[tuple[dict[str, Any], LoadedBatch]]:
    """Yields (arrays on the devices, batch), with the next batch's transfer already begun.

    Where a batch cannot be made, the one before it is yielded before the error is raised.
    """
    ahead = failure = None
    while failure is None:
        current, batch = ahead, None
        try:
            batch = next(batches, None)
        except UserError as error:
            batch, failure = None, error
        ahead = None if batch is None else (to_devices(batch, sharding), batch)
        if current is not None:
            yield current
        if batch is None and failure is None:
            return
    raise failure


def resize_images(
    images: UInt8[Array, "*batch y x 3"], height: int, width: int
) -> UInt8[Array, "*batch {height} {width} 3"]:
    """Images of another size, rounded back to uint8; runs inside the jitted step.

    Source: `tf.image.resize` with lanczos3 and antialiasing, then round and clip, as in Octo.
    """
    if images.shape[-3:-1] == (height, width):
        return images
    shape = (*images.shape[:-3], height, width, 3)
    resized = jax.image.resize(images.astype(jnp.float32), shape, "lanczos3", antialias=True)
    return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
