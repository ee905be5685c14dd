"""The encoder of T5 v1.0 (relu, no gate), with the module names of the released Octo weights.

The small modules that only contain others (`block`, `layer`, `0`, `1`) exist for their names:
`encoder/block/3/layer/0/SelfAttention/q/kernel`.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning".
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from train.octo.octo_config import T5Config

Tokens = Float[Array, "b n d"]
Real = Bool[Array, "b n"]
PositionBias = Float[Array, "1 heads n n"]


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "q k"]:
    """Returns the bucket of each pair of positions: queries in rows, keys in columns.

    The lower half of the buckets is for keys at or before the query, the upper half for keys after
    it. In each half, the first half of the buckets is exact; the rest grows logarithmically up to
    `max_distance`.

    Args:
      length: Number of positions, the same for queries and keys.
      num_buckets: Total number of buckets; a multiple of 4.
      max_distance: Distance of the last bucket.

    Source: section 2.1. It is computed in float32 as there, since a distance on a bucket's edge
      depends on rounding.
    """
    # (q, k): positive where the key comes after the query.
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half, exact = num_buckets // 2, num_buckets // 4
    distance = np.abs(offset)
    # float32 as in the original, since a distance on a bucket's edge depends on rounding.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    growth = np.log(ratio + np.finfo(np.float32).eps) / np.log(max_distance / exact)
    # Everything beyond `max_distance` shares the last bucket.
    far = np.minimum(exact + (growth * (half - exact)).astype(np.int32), half - 1)
    # Keys after the query have the upper half of the buckets.
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)


class RMSNorm(nn.Module):
    """Divides by the root mean square, without subtracting a mean or adding a bias."""

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Returns `x` scaled to a mean square of one, times `weight`."""
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        # No mean is subtracted: T5 scales only.
        scale = jnp.reciprocal(jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6))
        return weight[None, None, :] * (x * scale)


class T5SelfAttention(nn.Module):
    """Self-attention without biases and without scaling by the root of the head size."""

    config: T5Config
    has_relative_bias: bool

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        real: Real,
        bias: PositionBias | None,
    ) -> tuple[Tokens, PositionBias]:
        """Returns new tokens and the position bias, which the first block computes for all blocks.

        Args:
          x: Tokens of the sequence.
          real: True where a key may be attended to.
          bias: The first block's bias; None in the first block.
        """
        heads, size = self.config.num_heads, self.config.d_kv
        # Queries are initialised with small values because the logits are not scaled.
        q_init = nn.initializers.normal((self.config.d_model * size) ** -0.5)
        inits = {
            "q": q_init,
            "k": nn.initializers.lecun_normal(),
            "v": nn.initializers.lecun_normal(),
        }
        # (b, n, heads, size)
        q, k, v = (
            nn.Dense(heads * size, use_bias=False, kernel_init=init, name=name)(x).reshape(
                *x.shape[:2], heads, size
            )
            for name, init in inits.items()
        )
        # Only the first block has the table; the others get its result.
        if self.has_relative_bias:
            bias = self._relative_bias(x.shape[1])
        assert bias is not None, "only the first block may be called without a bias"
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) + bias
        # The least float: a text of padding alone stays finite.
        lowest = jnp.finfo(logits.dtype).min
        # (b, 1, 1, k): padding is no key, for every query and head.
        weights = nn.softmax(jnp.where(real[:, None, None, :], logits, lowest))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], heads * size)
        return nn.Dense(self.config.d_model, use_bias=False, name="o")(mixed), bias

    def _relative_bias(self, length: int) -> PositionBias:
        config = self.config
        embed = nn.Embed(config.num_buckets, config.num_heads, name="relative_attention_bias")
        buckets = relative_buckets(length, config.num_buckets, config.max_distance)
        # (q, k, heads) becomes (1, heads, q, k).
        return embed(jnp.asarray(buckets)).transpose(2, 0, 1)[None]


class DenseReluDense(nn.Module):
    """The feed-forward layer."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Returns tokens of the same shape."""
        hidden = nn.relu(nn.Dense(self.config.d_ff, use_bias=False, name="wi")(x))
        return nn.Dense(self.config.d_model, use_bias=False, name="wo")(hidden)


class AttentionLayer(nn.Module):
    """The layer `layer/0`: normalise, attend, add."""

    config: T5Config
    is_first: bool

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        real: Real,
        bias: PositionBias | None,
    ) -> tuple[Tokens, PositionBias]:
        """Returns new tokens and the position bias."""
        attention = T5SelfAttention(self.config, self.is_first, name="SelfAttention")
        change, bias = attention(RMSNorm(name="layer_norm")(x), real, bias)
        return x + change, bias


class FeedForwardLayer(nn.Module):
    """The layer `layer/1`: normalise, feed forward, add."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Returns tokens of the same shape."""
        feed_forward = DenseReluDense(self.config, name="DenseReluDense")
        return x + feed_forward(RMSNorm(name="layer_norm")(x))


class BlockLayers(nn.Module):
    """The two layers of a block, under the name `layer`."""

    config: T5Config
    is_first: bool

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        real: Real,
        bias: PositionBias | None,
    ) -> tuple[Tokens, PositionBias]:
        """Returns new tokens and the position bias."""
        x, bias = AttentionLayer(self.config, self.is_first, name="0")(x, real, bias)
        return FeedForwardLayer(self.config, name="1")(x), bias


class Block(nn.Module):
    """One block, under the name `0`, `1`, ..."""

    config: T5Config
    is_first: bool

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        real: Real,
        bias: PositionBias | None,
    ) -> tuple[Tokens, PositionBias]:
        """Returns new tokens and the position bias."""
        return BlockLayers(self.config, self.is_first, name="layer")(x, real, bias)


class Blocks(nn.Module):
    """All blocks in order, under the name `block`."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Tokens, real: Real) -> Tokens:
        """Returns tokens of the same shape."""
        bias = None
        # Shared by all blocks, as in T5 v1.0.
        for i in range(self.config.num_layers):
            x, bias = Block(self.config, is_first=i == 0, name=str(i))(x, real, bias)
        return x


class Stack(nn.Module):
    """The blocks and the final norm, under the name `encoder`."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Tokens, real: Real) -> Tokens:
        """Returns tokens of the same shape."""
        x = Blocks(self.config, name="block")(x, real)
        return RMSNorm(name="final_layer_norm")(x)


class T5Encoder(nn.Module):
    """Encodes token ids to embeddings, without dropout."""

    config: T5Config

    @nn.compact
    def __call__(self, input_ids: Int[Array, "b n"], attention_mask: Int[Array, "b n"]) -> Tokens:
        """Returns the last hidden states.

        Args:
          input_ids: Token ids below `vocab_size`; others give NaN.
          attention_mask: 1 for a token, 0 for padding. No token attends to padding, but padding has
            embeddings in the output too.
        """
        embed = nn.Embed(
            self.config.vocab_size,
            self.config.d_model,
            # The standard deviation of T5's own initialisation.
            embedding_init=nn.initializers.normal(stddev=1.0),
            name="shared",
        )
        return Stack(self.config, name="encoder")(embed(input_ids), attention_mask > 0)
