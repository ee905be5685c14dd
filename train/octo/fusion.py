"""How patches of geometry meet the tokens of their camera: added, gated, or aligned with."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.octo.geometry import read_layers, resize_grid, standardize
from train.octo.tokenizers import Inputs
from train.octo.tokens import TokenGroup
from train.octo.vggt_config import VGGTTokenizerConfig

Grid = tuple[int, int]
"""Rows and columns."""

_SMALLEST_NORM = 1e-6
"""Of a vector whose direction is compared."""


class PatchFusion(nn.Module):
    """A camera's tokens with the geometry at their places, `features` or `gated`.

    Both start as the camera's tokens alone: of `features` the projection is zero at first, of
    `gated` the gate. Where a step has no geometry nothing is added.
    """

    is_gated: bool
    grid: Grid
    """Of the patches."""
    camera_grid: Grid
    """Of the camera's tokens."""
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, camera: TokenGroup, patches: TokenGroup) -> TokenGroup:
        """Returns the camera's group with other tokens.

        Args:
          camera: Embedded tokens, `(b w m d)`.
          patches: `(b w n e)`; all of a step are masked or none.
        """
        dim = camera.tokens.shape[-1]
        zeros = nn.initializers.zeros
        start = nn.initializers.lecun_normal() if self.is_gated else zeros
        projection = nn.Dense(dim, dtype=self.dtype, kernel_init=start, name="projection")
        added = resize_grid(projection(patches.tokens), self.grid, self.camera_grid)
        if self.is_gated:
            gate = nn.Dense(dim, dtype=self.dtype, kernel_init=zeros, name="gate")
            both = jnp.concatenate([camera.tokens, added], axis=-1)
            added = jnp.tanh(gate(both)) * added
        present = patches.mask[:, :, :1, None]
        tokens = camera.tokens + jnp.where(present, added, 0).astype(camera.tokens.dtype)
        return dataclasses.replace(camera, tokens=tokens)


class Alignment(nn.Module):
    """How far a camera's tokens are from telling the geometry at their places.

    Source: Li et al. 2025, "Spatial Forcing": a perceptron maps the tokens to the size of the
    targets, whose direction is what counts. The targets are normalised without parameters: learnt
    ones could make all of them alike.
    """

    config: VGGTTokenizerConfig
    camera_grid: Grid
    """Of the camera's tokens."""

    @nn.compact
    def __call__(self, camera: TokenGroup, observation: Inputs) -> Float[Array, ""]:
        """Returns one less the cosine, from 0 to 2: a mean over the tokens that have geometry.

        Args:
          camera: The transformer's output, `(b w m d)`.
          observation: As in `read_layers`.

        Raises:
          UserError: As `read_layers`.
        """
        layers, real = read_layers(observation, self.config)
        patches = jnp.concatenate([standardize(layer) for layer in layers], axis=-1)
        patches = patches[:, :, self.config.num_special :]
        wanted = resize_grid(patches, self.config.patch_grid, self.camera_grid)
        first = camera.tokens.shape[1] - wanted.shape[1]
        tokens = nn.LayerNorm()(camera.tokens[:, first:])
        hidden = nn.gelu(nn.Dense(tokens.shape[-1])(tokens))
        found = nn.Dense(wanted.shape[-1])(hidden)
        counts = (real[:, :, None] & camera.mask[:, first:]).astype(jnp.float32)
        distances = 1.0 - _cosine(found, jax.lax.stop_gradient(wanted))
        return jnp.sum(distances * counts) / jnp.maximum(jnp.sum(counts), 1.0)


def _cosine(x: Float[Array, "*b d"], y: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Of the angle between two vectors; 0 where one is zero."""
    norms = [jnp.sum(jnp.square(one), axis=-1) for one in (x, y)]
    product = jnp.sqrt(jnp.maximum(norms[0] * norms[1], _SMALLEST_NORM**2))
    return jnp.sum(x * y, axis=-1) / product
