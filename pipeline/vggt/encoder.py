"""Encodes images as tokens, for datasets and for rollouts."""

import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, UInt8

from pipeline.errors import UserError
from pipeline.vggt.aggregator import Aggregator
from pipeline.vggt.aggregator_weights import VggtWeights, check_weights
from pipeline.vggt.bicubic_resize import resize_bicubic
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
