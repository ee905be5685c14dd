"""A block of the transformer: attention, then an MLP, each scaled and added to its input.

Attention may rotate queries and keys by their positions in two dimensions: a half of each head by
the row, one by the column.

Source: Su et al. 2021, "RoFormer"; Heo et al. 2024, "Rotary Position Embedding for Vision
Transformer".
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pipeline.vggt.encoder_spec import MLP_RATIO, NUM_SPECIAL

DINO_EPSILON = 1e-6
"""Epsilon of the backbone's LayerNorms."""

EPSILON = 1e-5
"""Epsilon of all other LayerNorms."""

# VGGT's base; RoFormer has 10,000 for texts.
_BASE = 100.0


def view_positions(rows: int, columns: int) -> Int[np.ndarray, "n 2"]:
    """Returns (row, column) of each token of a view.

    Patches count from 1; the camera and the registers are at (0, 0), where nothing turns. All views
    have the same positions.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    patches = np.stack([row + 1, column + 1], axis=-1)
    # Row and column 0 mean an angle of 0.
    return np.concatenate([np.zeros((NUM_SPECIAL, 2), patches.dtype), patches])


def view_angles(rows: int, columns: int, head_dim: int) -> Float[np.ndarray, "n 2 d"]:
    """Returns the angle in rad by which each pair of numbers of a head turns, float32.

    Args:
      rows: Number of rows of patches.
      columns: Number of columns of patches.
      head_dim: Numbers of a head, a multiple of 4; `d` is a quarter of it.

    Returns:
      Angles by token, by row or column, and by pair: `position * 100 ** (-i / d)`.
    """
    # A half of the head per axis, and pairs of numbers: a quarter.
    quarter = head_dim // 4
    frequencies = _BASE ** (-np.arange(quarter) / quarter)
    angles = view_positions(rows, columns)[:, :, None] * frequencies
    # Computed in float64 and rounded once.
    return angles.astype(np.float32)


def turn(
    heads: Float[Array, "b n h f"], angles: Float[np.ndarray, "n 2 d"]
) -> Float[Array, "b n h f"]:
    """Queries or keys, turned by the angles of their tokens.

    Of each half of a head, `2 * d` numbers, number `i` is paired with number `i + d`.
    """
    # (1, n, 1, 2, d): the same for every sample and head.
    cos = jnp.cos(angles)[None, :, None]
    sin = jnp.sin(angles)[None, :, None]
    # (b, n, h, axis, number of the pair, d)
    halves = heads.reshape(*heads.shape[:-1], 2, 2, angles.shape[-1])
    first, second = halves[..., 0, :], halves[..., 1, :]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return turned.reshape(heads.shape)


def attend(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]
) -> Float[Array, "b n h d"]:
    """Softmax attention of each head; logits and sums are float32 for any input dtype.

    The sums divide what comes out, which is smaller than what the second product takes in. At 4 x
    261 tokens of 16 heads this takes 13 CPU ms, `jax.nn.dot_product_attention` 28 (two cores of an
    AMD EPYC).
    """
    # (b, h, n, d)
    q, k, v = (heads.swapaxes(1, 2) for heads in (q, k, v))
    # In the dtype of q: a float64 scalar of NumPy would promote it.
    scaled = q * np.asarray(1 / math.sqrt(q.shape[-1]), q.dtype)
    logits = jnp.einsum("bhnd,bhmd->bhnm", scaled, k, preferred_element_type=jnp.float32)
    # Minus the maximum, so that no exponential overflows.
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    attended = jnp.einsum(
        "bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    # Divided last: (b, h, n, d) is smaller than (b, h, n, m).
    attended = attended / weights.sum(axis=-1, keepdims=True)
    return attended.astype(v.dtype).swapaxes(1, 2)


class LayerNorm(nn.LayerNorm):
    """Normalises in float32, and computes the variance after subtracting the mean.

    E[x^2] - E[x]^2, linen's default, loses the small variances of tokens far from 0.
    """

    dtype: jax.typing.DTypeLike | None = jnp.float32
    use_fast_variance: bool = False


class Attention(nn.Module):
    """Every token attends to every token."""

    num_heads: int
    normalize: bool
    """Whether queries and keys are normalised per head before the rotation."""
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], angles: Float[np.ndarray, "n 2 d"] | None
    ) -> Float[Array, "b n c"]:
        """Returns tokens of the same shape.

        Args:
          x: Tokens.
          angles: That queries and keys are turned by, from `view_angles`; None: no rotation.
        """
        b, n, c = x.shape
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        # (b, n, 3, heads, size), the order of the checkpoint's one matrix.
        qkv = dense(3 * c, name="qkv")(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        if self.normalize:
            # Norms and rotations in float32; the products in the compute dtype.
            q = LayerNorm(epsilon=EPSILON, name="q_norm")(q.astype(jnp.float32))
            k = LayerNorm(epsilon=EPSILON, name="k_norm")(k.astype(jnp.float32))
        if angles is not None:
            # After the norm, as in VGGT.
            q, k = turn(q, angles), turn(k, angles)
        attended = attend(q.astype(self.dtype), k.astype(self.dtype), v)
        return dense(c, name="proj")(attended.reshape(b, n, c))


class Mlp(nn.Module):
    """Two dense layers with an exact GELU between them."""

    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Returns tokens of the same shape."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        hidden = dense(MLP_RATIO * x.shape[-1], name="fc1")(x)
        # The exact GELU: the released weights were trained with it.
        hidden = nn.gelu(hidden.astype(jnp.float32), approximate=False).astype(self.dtype)
        return dense(x.shape[-1], name="fc2")(hidden)


class LayerScale(nn.Module):
    """One learned factor per channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Returns float32 tokens of the same shape."""
        return (
            # The sum along the blocks stays float32.
            x.astype(jnp.float32)
            * self.param("gamma", nn.initializers.ones, x.shape[-1:])[None, None]
        )


class Block(nn.Module):
    """Attention and MLP on normalised tokens; the sum they are added to stays float32."""

    num_heads: int
    epsilon: float
    normalize: bool
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], angles: Float[np.ndarray, "n 2 d"] | None = None
    ) -> Float[Array, "b n c"]:
        """Returns float32 tokens of the same shape; `angles` as in `Attention`."""
        norm = functools.partial(LayerNorm, epsilon=self.epsilon)
        attention = Attention(self.num_heads, self.normalize, self.dtype, name="attn")
        x = x + LayerScale(name="ls1")(attention(norm(name="norm1")(x), angles))
        return x + LayerScale(name="ls2")(Mlp(self.dtype, name="mlp")(norm(name="norm2")(x)))
