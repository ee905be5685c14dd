"""Fuses geometry patches with their camera's tokens: added, gated, or aligned with."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.octo.geometry_config import VGGTTokenizerConfig
from train.octo.token_groups import TokenGroup
from train.octo.tokenizer_inputs import Inputs, read_steps
from train.octo.vggt_tokens import read_layers, resize_grid, standardize

Grid = tuple[int, int]
"""Number of rows and columns."""

_SMALLEST_NORM = 1e-6
"""Lower bound for the norm of a vector whose direction is compared."""


class PatchFusion(nn.Module):
    """Adds geometry to a camera's tokens at the same positions; for `features` and `gated`.

    Both initially leave the camera's tokens unchanged: `features` starts with a zero projection,
    `gated` with a zero gate. Steps without geometry stay unchanged.
    """

    is_gated: bool
    grid: Grid
    """Rows and columns of the patches."""
    camera_grid: Grid
    """Rows and columns of the camera's tokens."""
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, camera: TokenGroup, patches: TokenGroup) -> TokenGroup:
        """Returns the camera's group with the fused tokens.

        Args:
          camera: Embedded tokens of the camera, `(b w m d)`.
          patches: Geometry patches, `(b w n e)`; a step has all of them or none.
        """
        dim = camera.tokens.shape[-1]
        zeros = nn.initializers.zeros
        # Zero for `features`: training step 0 is the model without tokens.
        start = nn.initializers.lecun_normal() if self.is_gated else zeros
        projection = nn.Dense(dim, dtype=self.dtype, kernel_init=start, name="projection")
        # Projected before it is resized: both are linear, and 384 features are less than 2048.
        added = resize_grid(projection(patches.tokens), self.grid, self.camera_grid)
        if self.is_gated:
            # A gate of zero also leaves the model as it was; the projection then needs a start of
            # its own.
            gate = nn.Dense(dim, dtype=self.dtype, kernel_init=zeros, name="gate")
            both = jnp.concatenate([camera.tokens, added], axis=-1)
            added = jnp.tanh(gate(both)) * added
        # (b, w, 1, 1): all patches of a step are real or none is.
        present = patches.mask[:, :, :1, None]
        # `where` and not a product: padding may hold any value.
        tokens = camera.tokens + jnp.where(present, added, 0).astype(camera.tokens.dtype)
        return dataclasses.replace(camera, tokens=tokens)


class Alignment(nn.Module):
    """The loss that aligns a camera's tokens with the geometry at the same positions.

    Source: Li et al. 2025, "Spatial Forcing": a perceptron maps the tokens to the size of the
      targets, and only directions are compared. The targets are normalised without parameters:
      learned ones could make all targets alike.
    """

    config: VGGTTokenizerConfig
    camera_grid: Grid
    """Rows and columns of the camera's tokens."""

    @nn.compact
    def __call__(self, camera: TokenGroup, observation: Inputs) -> Float[Array, ""]:
        """Returns 1 minus the cosine, from 0 to 2: its mean over the tokens that have geometry.

        Args:
          camera: The transformer's output for the camera, `(b w m d)`.
          observation: The batch's observation, with the geometry tokens.

        Raises:
          UserError: The tokens are missing or do not match the config.
        """
        layers, real = read_layers(read_steps(observation, self.config), self.config)
        # Without parameters: learned ones could make all targets alike.
        patches = jnp.concatenate([standardize(layer) for layer in layers], axis=-1)
        # Positions belong to patches only.
        patches = patches[:, :, self.config.num_special :]
        wanted = resize_grid(patches, self.config.patch_grid, self.camera_grid)
        # Only the last steps have tokens if the window of the column is shorter.
        first = camera.tokens.shape[1] - wanted.shape[1]
        tokens = nn.LayerNorm()(camera.tokens[:, first:])
        hidden = nn.gelu(nn.Dense(tokens.shape[-1])(tokens))
        found = nn.Dense(wanted.shape[-1])(hidden)
        # (b, w, n): the step has geometry and the camera's token is real.
        counts = (real[:, :, None] & camera.mask[:, first:]).astype(jnp.float32)
        # The targets get no gradient: they are constants of the encoder.
        distances = 1.0 - _cosine(found, jax.lax.stop_gradient(wanted))
        return jnp.sum(distances * counts) / jnp.maximum(jnp.sum(counts), 1.0)


def _cosine(x: Float[Array, "*b d"], y: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Returns the cosine of the angle between two vectors; 0 where one is zero."""
    norms = [jnp.sum(jnp.square(one), axis=-1) for one in (x, y)]
    # The floor keeps the gradient of the root finite at zero vectors.
    product = jnp.sqrt(jnp.maximum(norms[0] * norms[1], _SMALLEST_NORM**2))
    return jnp.sum(x * y, axis=-1) / product
