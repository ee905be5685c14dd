"""Streams the weights of an aggregator to the device, tensor by tensor, and writes them."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from flax import traverse_util
from jax.sharding import NamedSharding
from safetensors.numpy import save_file

from pipeline.errors import DataError, UserError
from pipeline.files import sync, temporary_path, writing
from pipeline.hub.hub_address import SCHEME
from pipeline.vggt.aggregator import Aggregator
from pipeline.vggt.encoder_spec import (
    PATCH_SIZE,
    ComputeDtype,
    EncoderSpec,
    VggtConfig,
    check_layers,
)
from pipeline.vggt.weight_sources import (
    RANDOM,
    Change,
    Place,
    Shape,
    config_of,
    find_file,
    header,
    licence_of,
    places,
    read_tensors,
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VggtWeights:
    """An aggregator on the device."""

    source: str
    """Source of the weights, as it was requested."""
    config: VggtConfig
    """Its sizes."""
    params: dict[str, Any]
    """Its parameters, nested; of the pairs of blocks, those that `num_layers` counts."""
    num_layers: int
    """Pairs of blocks that are there."""
    digest: str
    """XXH3-128 over the bytes of all the aggregator's tensors, those that were left out included:
    it identifies the weights, whatever file or layers they were loaded from or for."""
    licence: str
    """Licence of the weights."""
    compute_dtype: ComputeDtype
    """Dtype of the matrices."""


def load_weights(
    source: str,
    *,
    config: VggtConfig | None = None,
    layers: Sequence[int] | None = None,
    dtype: ComputeDtype = "float32",
    licence: str | None = None,
    sharding: NamedSharding | None = None,
) -> VggtWeights:
    """An aggregator on the device; beside it, no more than one tensor is in memory at a time.

    Args:
      source: A file of safetensors, a directory that has `model.safetensors`, `hf://owner/name`
        with or without the file's name, or untrained `random:tiny`.
      config: Sizes of the model; None: VGGT-1B, or those of the random preset.
      layers: Indices of the wanted layers; blocks after the last one are left out. None: all.
      dtype: Dtype of the matrices; vectors and tokens stay float32.
      licence: Licence of the weights; optional for the hub's and for random weights.
      sharding: Sharding of the parameters, such as `replicated`; None: the default device.

    Raises:
      UserError: Tensors are missing, unknown or of another shape, all of them named; the licence is
        not known.
      DataError: The file is missing or corrupt, or has numbers that are not finite.
    """
    config = config_of(source, config)
    # A wrong path shows before the licence is asked for, and before anything is allocated.
    if not source.startswith((RANDOM, SCHEME)):
        find_file(source)
    # Before any download: without a known licence nothing may be stored.
    licence = licence_of(source, licence)
    layers = tuple(layers) if layers is not None else (config.num_layers - 1,)
    check_layers(layers, config)
    num_layers = layers[-1] + 1
    # The whole model, because the checksum covers the tensors of all blocks.
    expected = places(leaf_shapes(config, config.num_layers))
    # Only the blocks that run have memory, and only matrices have the compute dtype.
    leaves = {
        path: jnp.zeros(shape, dtype if path.endswith("/kernel") else jnp.float32, device=sharding)
        for path, shape in leaf_shapes(config, num_layers).items()
    }
    digests = {}
    for key, tensor in read_tensors(source, expected):
        digests[key] = _digest(tensor)
        place = expected[key]
        # A block that does not run: hashed above, but not put on the device.
        if place.index is None or place.index < leaves[place.path].shape[0]:
            _check_finite(source, key, tensor)
            leaves[place.path] = _put(leaves[place.path], tensor, place, sharding)
            # Tensors would pile up in memory where the device is slower than the disk.
            leaves[place.path].block_until_ready()
    # Sorted by key, so that the order in the file makes no difference.
    lines = "".join(f"{key} {digest}\n" for key, digest in sorted(digests.items()))
    digest = xxhash.xxh3_128_hexdigest(lines.encode())
    _log.info("%s: %d tensors, checksum %s, %s", source, len(digests), digest, licence)
    params = traverse_util.unflatten_dict(leaves, sep="/")
    return VggtWeights(source, config, params, num_layers, digest, licence, dtype)


def save_weights(
    path: pathlib.Path,
    params: Mapping[str, Any],
    config: VggtConfig,
    *,
    licence: str,
    provenance: Mapping[str, str],
) -> None:
    """Writes an aggregator as a file that `load_weights` reads without further arguments.

    Tensors have the names and shapes of VGGT's checkpoint. The file is complete or absent.

    Args:
      path: The file of safetensors.
      params: Parameters with all pairs of blocks, nested, as in `VggtWeights`.
      config: Sizes of the model.
      licence: Licence of the weights.
      provenance: How they arose; entries of the header, beside sizes and licence.

    Raises:
      UserError: The file cannot be written.
    """
    flat: Any = traverse_util.flatten_dict(dict(params), sep="/")
    leaves = {name: np.asarray(leaf) for name, leaf in flat.items()}
    tensors = {
        key: _restore(
            leaves[place.path] if place.index is None else leaves[place.path][place.index],
            place.change,
        )
        for key, place in places({name: leaf.shape for name, leaf in leaves.items()}).items()
    }
    with writing(path):
        temporary = temporary_path(path)
        save_file(tensors, temporary, header(config, licence, provenance))
        sync(temporary)
        temporary.replace(path)


def load_for(
    spec: EncoderSpec, *, source: str | None = None, sharding: NamedSharding | None = None
) -> VggtWeights:
    """The weights that an encoder's spec names.

    Args:
      spec: The spec that was stored with the tokens.
      source: Where the weights are now; None: where they were then.
      sharding: Sharding of the parameters; None: the default device.

    Raises:
      UserError: The source cannot be used, or its weights are not those of the spec.
      DataError: The file is missing or corrupt, or has values that are not finite.
    """
    weights = load_weights(
        source or spec.weights,
        config=spec.model,
        layers=spec.layers,
        dtype=spec.compute_dtype,
        licence=spec.licence,
        sharding=sharding,
    )
    check_weights(spec, weights)
    return weights


def check_weights(spec: EncoderSpec, weights: VggtWeights) -> None:
    """Checks that an encoder's weights are those of its spec.

    Raises:
      UserError: They are others, of another model or dtype, or lack a layer.
    """
    wanted = {
        "digest": (spec.weights_digest, weights.digest),
        "model": (spec.model, weights.config),
        "compute_dtype": (spec.compute_dtype, weights.compute_dtype),
    }
    faults = {name: both for name, both in wanted.items() if both[0] != both[1]}
    # More blocks than needed are fine; fewer are not.
    if weights.num_layers <= spec.layers[-1]:
        faults["layers"] = (f"up to {spec.layers[-1]}", f"up to {weights.num_layers - 1}")
    if faults:
        raise UserError(
            where=f"the weights {weights.source}",
            expected=", ".join(f"{name} {ours}" for name, (ours, _) in faults.items()),
            found=", ".join(f"{name} {theirs}" for name, (_, theirs) in faults.items()),
            remedy=f"Load the weights that the tokens were made with: {spec.weights}.",
        )


@functools.cache
def leaf_shapes(config: VggtConfig, num_layers: int) -> dict[str, Shape]:
    """Shapes of the parameters by path, with that many pairs of blocks."""
    module = Aggregator(config, (num_layers - 1,))
    # The smallest image, of one patch: no parameter's shape depends on its size.
    images = jax.ShapeDtypeStruct((1, 1, PATCH_SIZE, PATCH_SIZE, 3), jnp.float32)
    # `eval_shape` allocates nothing for 909 M parameters.
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    flat: Any = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _digest(tensor: np.ndarray) -> str:
    # The head separates tensors of equal bytes but other shapes.
    digest = xxhash.xxh3_128(f"{tensor.dtype}{list(tensor.shape)}".encode())
    digest.update(tensor.tobytes())
    return digest.hexdigest()


def _check_finite(source: str, key: str, tensor: np.ndarray) -> None:
    if not np.isfinite(tensor).all():
        raise DataError(
            where=f"{source}: {key}",
            expected="finite numbers",
            found=f"{tensor.size - int(np.isfinite(tensor).sum())} that are not",
            remedy="Copy or fetch the file again.",
        )


def _put(
    leaf: jax.Array, tensor: np.ndarray, place: Place, sharding: NamedSharding | None
) -> jax.Array:
    on_device = jax.device_put(tensor, sharding)
    # A leaf that is no stack is replaced as a whole.
    if place.index is None:
        return _change(on_device, place.change).astype(leaf.dtype)
    return _put_block(leaf, on_device, place.index, place.change)


# Donated, so that no second copy of a stack of all blocks is made.
@functools.partial(jax.jit, static_argnames="change", donate_argnames="leaf")
def _put_block(
    leaf: jax.Array, tensor: jax.Array, index: int | jax.Array, change: Change
) -> jax.Array:
    """The leaf with one block's tensor, in the memory of the one that came in."""
    return leaf.at[index].set(_change(tensor, change).astype(leaf.dtype))


def _change(tensor: jax.Array, change: Change) -> jax.Array:
    match change:
        case "none":
            return tensor
        case "transpose":
            return tensor.T
        case "patches":
            # (out, 3, 14, 14) to (14 * 14 * 3, out), in the order of `to_patches`.
            return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])


def _restore(leaf: np.ndarray, change: Change) -> np.ndarray:
    """Inverts `_change`; contiguous, because a file takes the bytes as they lie."""
    match change:
        case "none":
            tensor = leaf
        case "transpose":
            tensor = leaf.T
        case "patches":
            # (14 * 14 * 3, out) to (out, 3, 14, 14)
            tensor = leaf.reshape(PATCH_SIZE, PATCH_SIZE, -1, leaf.shape[1]).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(tensor)
