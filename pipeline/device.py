"""From host arrays to the devices: shardings, one batch ahead, and resizing inside the step."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt8

from pipeline.batch import BatchSpec, nest
from pipeline.errors import UserError
from pipeline.loader import LoadedBatch

DATA_AXIS = "data"


def data_mesh() -> Mesh:
    """A mesh of all devices along one axis, `data`."""
    # Explicit axes, the default, would ask for a sharding at every reshape in the model.
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """The sharding of every leaf of a batch: its first axis over `data`.

    Raises:
      UserError: Where the devices do not divide the batch.
    """
    num_devices = mesh.shape[DATA_AXIS]
    if batch_size % num_devices:
        raise UserError(
            where="config.batch_size",
            expected=f"a multiple of {num_devices}, the number of devices",
            found=str(batch_size),
            remedy=f"Take {batch_size - batch_size % num_devices or num_devices}.",
        )
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def shape_structs(spec: BatchSpec, sharding: NamedSharding) -> dict[str, Any]:
    """The batch as `jax.ShapeDtypeStruct`s, nested: what a step is compiled for."""
    return nest(
        {
            key: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.dtype), sharding=sharding)
            for key, leaf in spec.items()
        }
    )


def one_ahead(
    batches: Iterator[LoadedBatch], sharding: NamedSharding
) -> Iterator[tuple[dict[str, Any], LoadedBatch]]:
    """Yields (arrays on the devices, batch), with the next batch's transfer already begun."""

    def put(batch: LoadedBatch) -> tuple[dict[str, Any], LoadedBatch]:
        return jax.device_put(batch.arrays, sharding), batch

    ahead = None
    for batch in batches:
        current, ahead = ahead, put(batch)
        if current is not None:
            yield current
    if ahead is not None:
        yield ahead


def resize_images(
    images: UInt8[Array, "*batch y x 3"], size: int
) -> UInt8[Array, "*batch {size} {size} 3"]:
    """Square images of `size` pixels, rounded back to uint8; runs inside the jitted step.

    Source: `tf.image.resize` with lanczos3 and antialiasing, then round and clip, as in Octo.
    """
    if images.shape[-3:-1] == (size, size):
        return images
    shape = (*images.shape[:-3], size, size, 3)
    resized = jax.image.resize(images.astype(jnp.float32), shape, "lanczos3", antialias=True)
    return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
