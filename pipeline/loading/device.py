"""Moves batches to the devices: shardings, transfer one batch ahead."""

import math
import resource
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pipeline.data.schema import nest
from pipeline.errors import UserError
from pipeline.loading.batch import BatchSpec
from pipeline.loading.loader import LoadedBatch
from pipeline.loading.samples.sampling import HostShard

DATA_AXIS = "data"
FSDP_AXIS = "fsdp"


def make_mesh(fsdp_devices: int = 1) -> Mesh:
    """Makes a mesh of all devices with the axes `data` and `fsdp`, in the order of processes.

    Args:
      fsdp_devices: Devices along `fsdp`; the parameters are sharded across these.

    Raises:
      UserError: It does not divide the number of devices.
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
    # Explicit axes, the default, would require a sharding at every reshape in the model.
    return jax.make_mesh(shape, (DATA_AXIS, FSDP_AXIS), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh, batch_size: int, num_parts: int = 1) -> NamedSharding:
    """Returns the sharding of every leaf of a batch: its first axis across all devices.

    Args:
      mesh: A mesh from `make_mesh`.
      batch_size: Number of samples in a global batch.
      num_parts: Number of micro-batches (gradient accumulation).

    Raises:
      UserError: The micro-batches cannot be split evenly across the devices.
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
    # Both axes: a device that holds a part of the parameters still computes its own samples.
    return NamedSharding(mesh, PartitionSpec((DATA_AXIS, FSDP_AXIS)))


def host_shard(sharding: NamedSharding, batch_size: int) -> HostShard:
    """Returns the rows of every global batch that this process's devices hold.

    Raises:
      UserError: The rows are not the contiguous range that the loader makes.
    """
    shard = HostShard(jax.process_index(), jax.process_count())
    # None: a device that holds nothing of the array.
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    # The loader makes contiguous rows, so the mesh has to agree with it.
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
    """Returns the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_size(struct: jax.ShapeDtypeStruct) -> int:
    """Returns the number of an array's elements on one device."""
    if struct.sharding is None:
        return struct.size
    return math.prod(struct.sharding.shard_shape(struct.shape))


def peak_bytes() -> int:
    """Returns the peak memory so far: of the first device or, on a CPU, of the process."""
    # A CPU has no memory statistics and returns None.
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def shape_structs(spec: BatchSpec, sharding: NamedSharding) -> dict[str, Any]:
    """Describes a batch by nested `jax.ShapeDtypeStruct`s, to compile a training step with."""
    return nest(
        {
            key: jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype), sharding=sharding)
            for key, leaf in spec.items()
        }
    )


def to_devices(batch: LoadedBatch, sharding: NamedSharding) -> dict[str, Any]:
    """Starts transferring a batch; returns global jax arrays, made of every process's rows."""
    return arrays_to_devices(batch.arrays, sharding)


def arrays_to_devices(arrays: dict[str, Any], sharding: NamedSharding) -> dict[str, Any]:
    """Starts the transfer of a batch's arrays and returns the global jax arrays."""
    # `device_put` returns at once; the copy runs while the previous step computes.
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)
    # Every process gives only its own rows; no host holds the whole batch.
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), arrays)


def one_ahead(
    batches: Iterator[LoadedBatch], sharding: NamedSharding
) -> Iterator[tuple[dict[str, Any], LoadedBatch]]:
    """Yields (arrays on the devices, batch); the transfer of the next batch has already started.

    If making a batch fails, the batch before it is yielded first, then the error is raised.
    """
    # The batch whose transfer has started, and the error that ended the batches.
    ahead = failure = None
    while failure is None:
        # Releases the batch before: at most two are on the devices.
        current, batch = ahead, None
        try:
            batch = next(batches, None)
        except UserError as error:
            batch, failure = None, error
        # Started before the caller's step is dispatched, so transfer and computation overlap.
        ahead = None if batch is None else (to_devices(batch, sharding), batch)
        if current is not None:
            yield current
        if batch is None and failure is None:
            return
    # Only after the last good batch was yielded, so the run can be saved behind it.
    raise failure
