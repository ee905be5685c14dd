"""DINOv2 with registers: encodes the patches of an image as tokens.

Source: Oquab et al. 2023, "DINOv2"; Darcet et al. 2023, "Vision Transformers Need Registers".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pipeline.vggt.aggregator_config import NUM_REGISTERS, PATCH_SIZE, VggtConfig
from pipeline.vggt.blocks import DINO_EPSILON, Block, LayerNorm

Images = Float[Array, "b y x 3"]


def to_patches(images: Images) -> Float[Array, "b n p"]:
    """The pixels of each patch in a row; patches row by row, pixels by row, column and channel."""
    b, y, x, channels = images.shape
    rows, columns = y // PATCH_SIZE, x // PATCH_SIZE
    # (b, rows, 14, columns, 14, 3)
    cut = images.reshape(b, rows, PATCH_SIZE, columns, PATCH_SIZE, channels)
    # Swapped to (b, rows, columns, 14, 14, 3): a patch's pixels lie together.
    return cut.swapaxes(2, 3).reshape(b, rows * columns, PATCH_SIZE**2 * channels)


def resize_grid(positions: Float[Array, "1 m c"], rows: int, columns: int) -> Float[Array, "1 n c"]:
    """Positions of a square grid, brought to another one by antialiased bicubic interpolation."""
    side = round(positions.shape[1] ** 0.5)
    if (rows, columns) == (side, side):
        return positions
    grid = positions.reshape(side, side, -1)
    shape = (rows, columns, grid.shape[-1])
    # HIGHEST: the default precision of some devices is bfloat16, and the tokens would differ.
    resized = jax.image.resize(
        grid, shape, "cubic", antialias=True, precision=jax.lax.Precision.HIGHEST
    )
    return resized.reshape(1, rows * columns, -1)


class PatchEmbed(nn.Module):
    """A linear map of each patch: the convolution whose stride is its size."""

    dim: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "b n c"]:
        """Returns one token per patch, float32."""
        tokens = nn.Dense(self.dim, dtype=self.dtype, name="proj")(to_patches(images))
        return tokens.astype(jnp.float32)


class DinoBackbone(nn.Module):
    """The vision transformer; its own class and register tokens are dropped at its end."""

    config: VggtConfig
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "b n c"]:
        """Returns one normalised token per patch, float32."""
        tokens = PatchEmbed(self.config.dim, self.dtype, name="patch_embed")(images)
        rows, columns = (side // PATCH_SIZE for side in images.shape[1:3])
        x = self._with_special(tokens, rows, columns)
        # The same loop over stacked blocks as in the aggregator.
        blocks = nn.scan(
            _Step,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=self.config.dino_layers,
        )
        x, _ = blocks(self.config, self.dtype, name="blocks")(x, None)
        # The class token and the registers end here.
        return LayerNorm(epsilon=DINO_EPSILON, name="norm")(x)[:, 1 + NUM_REGISTERS :]

    def _with_special(self, tokens: jax.Array, rows: int, columns: int) -> jax.Array:
        """Class token, registers, patches; all but the registers with their positions."""
        dim, grid = self.config.dim, self.config.position_grid
        normal = nn.initializers.normal(0.02)
        # Masked pretraining's token is in every checkpoint; nothing reads it.
        self.param("mask_token", normal, (1, dim))
        cls = self.param("cls_token", normal, (1, 1, dim))
        registers = self.param("register_tokens", normal, (1, NUM_REGISTERS, dim))
        positions = self.param("pos_embed", normal, (1, 1 + grid**2, dim))
        # Registers have no place in the image, so they get no position.
        special = jnp.concatenate([cls + positions[:, :1], registers], axis=1)
        # Position 0 is the class token's.
        placed = tokens + resize_grid(positions[:, 1:], rows, columns)
        return jnp.concatenate([jnp.repeat(special, len(tokens), axis=0), placed], axis=1)


class _Step(nn.Module):
    """A block as the body of a loop."""

    config: VggtConfig
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        block = Block(
            self.config.dino_heads, DINO_EPSILON, normalize=False, dtype=self.dtype, name="block"
        )
        return block(x), None
