"""Encodes images as tokens, for datasets and for rollouts."""

import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int32, UInt8

from pipeline.errors import UserError
from pipeline.vggt.aggregator import Aggregator
from pipeline.vggt.aggregator_weights import VggtWeights, check_weights
from pipeline.vggt.encoder_spec import EncoderSpec

Images = np.ndarray | Sequence[np.ndarray]
Params = dict[str, Any]
Views = tuple[UInt8[Array, "b _ _ 3"], ...]


class VggtEncoder:
    """Encodes the images of one step as tokens.

    Args:
      spec: The identity of the tokens.
      weights: Weights from `load_weights` or `load_for`, with at least the layers of `spec`.
      sharding: Sharding of the batch, from `pipeline.loading.device.batch_sharding`; the weights
        are then on the same devices. None: the default device.

    Raises:
      UserError: The weights are not those of the spec.
    """

    def __init__(
        self, spec: EncoderSpec, weights: VggtWeights, sharding: NamedSharding | None = None
    ) -> None:
        # The tokens of a dataset and of a rollout must come from the same weights.
        check_weights(spec, weights)
        self.spec = spec
        # Weights may be loaded for more layers than this spec runs.
        self.params = _first_layers(weights, spec.layers[-1] + 1)
        self._sharding = sharding
        self._encode = _program(spec, sharding)

    def encode(self, images: Images) -> dict[int, jax.Array]:
        """Tokens of each layer, `float32[b, v, n, 2 * dim]`, on the devices.

        Args:
          images: uint8 `(b, v, y, x, 3)` in the order of `spec.cameras`, of any height and width;
            or one array `(b, y, x, 3)` a camera where their sizes differ.

        Raises:
          UserError: They are no such images, or the devices do not divide `b`.
        """
        views = self._on_devices(images)
        # Part of the identity of tokens: a GPU's default is coarser than float32.
        with jax.default_matmul_precision(self.spec.precision):
            return self._encode(self.params, views)

    def compiled(self, images: Images) -> jax.stages.Compiled:
        """The program that encodes images of these shapes: its text, its memory, its cost."""
        with jax.default_matmul_precision(self.spec.precision):
            return self._encode.lower(self.params, self._on_devices(images)).compile()

    def _on_devices(self, images: Images) -> Views:
        # (b, v, y, x, 3) becomes v arrays of (b, y, x, 3), which may differ in size.
        views = tuple(images) if isinstance(images, Sequence) else tuple(np.moveaxis(images, 1, 0))
        self._check(views)
        return jax.device_put(views, self._sharding)

    def _check(self, views: Sequence[np.ndarray]) -> None:
        cameras = self.spec.cameras
        batches = {view.shape[0] for view in views}
        parts = self._sharding.num_devices if self._sharding else 1
        right = all(
            view.dtype == np.uint8 and view.ndim == 4 and view.shape[-1] == 3 for view in views
        )
        if not right or len(views) != len(cameras) or len(batches) > 1 or min(batches) % parts:
            raise UserError(
                where=f"the images of {', '.join(cameras)}",
                expected=f"uint8[b, y, x, 3] of {len(cameras)} cameras, b a multiple of {parts}",
                found=", ".join(f"{view.dtype}{list(view.shape)}" for view in views),
                remedy="Give every camera's images in this order; fill the last batch up.",
            )


@functools.lru_cache(maxsize=8)
def _program(spec: EncoderSpec, sharding: NamedSharding | None) -> Any:
    """The jitted `_tokens`; encoders of one spec share it, so that each shape compiles once."""
    return jax.jit(functools.partial(_tokens, spec), out_shardings=sharding)


def _tokens(spec: EncoderSpec, params: Params, views: Views) -> dict[int, Float[Array, "b v n d"]]:
    height, width = spec.image_size
    module = Aggregator(
        spec.model, spec.layers, kept=spec.kept, dtype=jnp.dtype(spec.compute_dtype)
    )
    resized = [resize_bicubic(view, height, width) for view in views]
    # (b, v, y, x, 3) in [0, 1]
    images = jnp.stack(resized, axis=1).astype(jnp.float32) / 255
    b, v = images.shape[:2]
    # Each view becomes a step of its own, and sees no other.
    if spec.views == "single":
        images = images.reshape(b * v, 1, *images.shape[2:])
    tokens = module.apply({"params": params}, images)
    return {
        # Back to (b, v, n, d).
        layer: of_layer.reshape(b, v, *of_layer.shape[2:])
        for layer, of_layer in cast(dict[int, jax.Array], tokens).items()
    }


def _first_layers(weights: VggtWeights, num_layers: int) -> Params:
    """The parameters without the pairs of blocks that do not run; a copy where there are such."""
    if weights.num_layers == num_layers:
        return weights.params
    # The stacked axis of the blocks.
    first = jax.tree.map(lambda leaf: leaf[:num_layers], weights.params["blocks"])
    return weights.params | {"blocks": first}


# --- the resize, bitwise identical to Pillow's BICUBIC on any device
#
# In whole numbers: sums of floats depend on their order, and so on the device and the batch, and a
# value halfway between two would be rounded to either side.
#
# Source: Keys 1981, "Cubic convolution interpolation for digital image processing", a = -0.5,
# widened where an image shrinks and cut off at its borders; fixed-point numbers as in Pillow.

# Pillow's precision for 8 bits: a sum of taps fits into int32.
_FRACTION_BITS = 22


def bicubic_weights(length: int, new_length: int) -> Float[np.ndarray, "old new"]:
    """Returns what each old pixel gives to each new one along an axis; columns sum to 1."""
    scale = length / new_length
    centres = (np.arange(new_length) + 0.5) * scale
    # Widened where the image shrinks: each new pixel then averages all it covers.
    distance = np.abs(np.arange(length)[:, None] + 0.5 - centres) / max(scale, 1.0)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    # At a border the kernel is cut off, so the rest is scaled up.
    return weights / weights.sum(axis=0)


@functools.cache
def _taps(
    length: int, new_length: int
) -> tuple[Int32[np.ndarray, "taps new"], Int32[np.ndarray, "taps new"]]:
    """The old pixels that a new one is made of, and their weights in 2^-22."""
    # Pillow rounds the weights to whole numbers too.
    weights = np.rint(bicubic_weights(length, new_length) * 2**_FRACTION_BITS).astype(np.int32)
    # The first old pixel with a weight, for each new one.
    first = (weights != 0).argmax(axis=0)
    last = length - 1 - (weights[::-1] != 0).argmax(axis=0)
    # Past a pixel's last tap the last row is read, whose weight there is 0, or counted once.
    steps = np.arange((last - first).max() + 1)[:, None]
    places = first + steps
    inside = np.minimum(places, length - 1)
    chosen = np.where(places <= last, np.take_along_axis(weights, inside, axis=0), 0)
    return inside.astype(np.int32), chosen.astype(np.int32)


def resize_bicubic(
    images: UInt8[Array, "b y x 3"], height: int, width: int
) -> UInt8[Array, "b {height} {width} 3"]:
    """Columns are fitted first, then rows, each rounded and clipped to 0 to 255."""
    # In Pillow's order: the result of the first direction is rounded before the second.
    return _fit(_fit(images, width, axis=2), height, axis=1)


def _fit(images: jax.Array, new_length: int, axis: int) -> jax.Array:
    if images.shape[axis] == new_length:
        return images
    shape = [1, 1, 1, 1]
    shape[axis] = new_length
    # Half of the unit: adding it before the shift rounds to nearest.
    total = jnp.full((), 2 ** (_FRACTION_BITS - 1), jnp.int32)
    # A loop over the few taps: no array of all products is made.
    for place, weight in zip(*_taps(images.shape[axis], new_length), strict=True):
        pixels = jnp.take(images, place, axis=axis).astype(jnp.int32)
        total = total + pixels * weight.reshape(shape)
    # The shift divides by 2 ** 22 and rounds down, also below 0.
    return jnp.clip(total >> _FRACTION_BITS, 0, 255).astype(jnp.uint8)
