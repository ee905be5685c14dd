"""VGGT's aggregator: encodes the views of one step as geometry tokens.

    images     (b, v, y, x, 3)     -> backbone -> patches (b*v, n - 5, c)
    + camera and 4 registers       -> (b*v, n, c)
    24 times:  each view by itself    (b*v, n, c)     frame block
               all views of a step    (b, v*n, c)     global block
               both outputs side by side (b, v, n, 2c): the tokens of that layer

The backbone is DINOv2 with registers.

Source: Wang et al. 2025, "VGGT: Visual Geometry Grounded Transformer"; Oquab et al. 2023, "DINOv2";
Darcet et al. 2023, "Vision Transformers Need Registers".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pipeline.vggt.blocks import DINO_EPSILON, EPSILON, Block, LayerNorm, view_angles
from pipeline.vggt.encoder_spec import NUM_REGISTERS, NUM_SPECIAL, PATCH_SIZE, Kept, VggtConfig

Images = Float[Array, "b y x 3"]

# Mean and deviation of ImageNet, by channel.
_MEAN = np.array([[[[0.485, 0.456, 0.406]]]], np.float32)
_STD = np.array([[[[0.229, 0.224, 0.225]]]], np.float32)

_KEPT: dict[Kept, slice] = {
    "all": slice(None),
    "patches": slice(NUM_SPECIAL, None),
    "special": slice(NUM_SPECIAL),
}


# --- the backbone


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
    """DINOv2 with registers; its own class and register tokens are dropped at its end."""

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
            _DinoStep,
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


class _DinoStep(nn.Module):
    """A block as the body of a loop."""

    config: VggtConfig
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        block = Block(
            self.config.dino_heads, DINO_EPSILON, normalize=False, dtype=self.dtype, name="block"
        )
        return block(x), None


# --- the aggregator


class Aggregator(nn.Module):
    """The backbone, then pairs of blocks up to the last layer that is asked for."""

    config: VggtConfig
    layers: tuple[int, ...]
    """Layers that are kept, like `EncoderSpec.layers`."""
    kept: Kept = "all"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b v y x 3"]) -> dict[int, Float[Array, "b v n d"]]:
        """Returns the tokens of each layer, float32, `d` twice the size of a token inside.

        Args:
          images: Views of one step, from 0 to 1; the first is the reference of the others.
        """
        b, v, y, x, _ = images.shape
        # A view is an image of its own until the first global block.
        flat = (images.reshape(b * v, y, x, 3) - _MEAN) / _STD
        tokens = self._with_special(self._embed(flat), v)
        # The grid decides the angles; the sizes are multiples of a patch.
        outputs = self._run(tokens, (b, v), (y // PATCH_SIZE, x // PATCH_SIZE))
        return dict(zip(self.layers, outputs, strict=True))

    def _embed(self, images: jax.Array) -> jax.Array:
        if self.config.embedder == "conv":
            return PatchEmbed(self.config.dim, self.dtype, name="patch_embed")(images)
        return DinoBackbone(self.config, self.dtype, name="patch_embed")(images)

    def _with_special(self, patches: jax.Array, v: int) -> jax.Array:
        """Camera, registers, patches; the first view has special tokens of its own."""
        normal, dim = nn.initializers.normal(1e-6), self.config.dim
        camera = self.param("camera_token", normal, (1, 2, 1, dim))
        # (1, 2, 1, c): the first view is the reference, all others share the second token.
        registers = self.param("register_token", normal, (1, 2, NUM_REGISTERS, dim))
        special = jnp.concatenate([camera, registers], axis=2)[0]
        # (v, 5, c): index 0 for the first view, 1 for the others.
        of_views = special[np.minimum(np.arange(v), 1)]
        repeated = jnp.tile(of_views, (len(patches) // v, 1, 1))
        return jnp.concatenate([repeated, patches], axis=1)

    def _run(self, tokens: jax.Array, views: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
        """The kept tokens of each layer of `layers`, `(layers, b, v, n, 2c)`.

        Every pair writes to the place of the next layer that is asked for, whose own output comes
        last: so the loop keeps no more than was asked for.
        """
        _, n, c = tokens.shape
        # Counts what the slice keeps of n tokens.
        num_kept = len(range(n)[_KEPT[self.kept]])
        # float32 whatever the blocks compute in: it is what is stored.
        kept = jnp.zeros((len(self.layers), *views, num_kept, 2 * c), jnp.float32)
        # The place that each pair writes to: its own layer's, or that of the next one wanted.
        places = np.searchsorted(self.layers, np.arange(self.layers[-1] + 1)).astype(np.int32)
        # A loop over stacked blocks compiles in 0.7 s, and costs 3 % of the time.
        pairs = nn.scan(
            _Pair,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
        )(self.config, views, grid, self.kept, self.dtype, name="blocks")
        (_, kept), _ = pairs((tokens, kept), jnp.asarray(places))
        return kept


class _Pair(nn.Module):
    """A block within views and a block across them, as a loop's body."""

    config: VggtConfig
    views: tuple[int, int]
    grid: tuple[int, int]
    kept: Kept
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, jax.Array], place: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Any]:
        x, kept = carry
        b, v = self.views
        n, c = x.shape[1:]
        # Computed by numpy while tracing: constants of the program.
        angles = view_angles(*self.grid, self.config.dim // self.config.num_heads)
        within = self._block("frame")(x, angles)
        # The tokens of all views of a step in one sequence.
        joint = within.reshape(b, v * n, c)
        # Every view has the same angles.
        across = self._block("global")(joint, np.tile(angles, (v, 1, 1)))
        parts = (part.reshape(b, v, n, c)[:, :, _KEPT[self.kept]] for part in (within, across))
        # Overwritten until the wanted layer itself writes, which comes last.
        kept = kept.at[place].set(jnp.concatenate(list(parts), axis=-1))
        return (across.reshape(x.shape), kept), None

    def _block(self, name: str) -> Block:
        return Block(self.config.num_heads, EPSILON, normalize=True, dtype=self.dtype, name=name)
