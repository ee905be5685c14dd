"""Pools the readout tokens of a step to the one embedding that a head reads."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.octo.octo_config import MAP_HEADS
from train.octo.transformer import MlpBlock


class MapHead(nn.Module):
    """Attention pooling: a learned probe attends to the tokens, then an MLP is added.

    Source: Lee et al. 2019, "Set Transformer", in the form of Zhai et al. 2022, "Scaling Vision
      Transformers". Octo applies 10 % dropout to the MLP in training; here there is no dropout.
    """

    @nn.compact
    def __call__(self, tokens: Float[Array, "b w n d"]) -> Float[Array, "b w d"]:
        """Returns one embedding per step; all tokens count."""
        b, w, n, d = tokens.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, d))
        attention = nn.MultiHeadDotProductAttention(
            num_heads=MAP_HEADS,
            kernel_init=nn.initializers.xavier_uniform(),
            name="MultiHeadDotProductAttention_0",
        )
        # Steps are folded into the batch: each pools its own tokens.
        flat = tokens.reshape(b * w, n, d)
        # One query, so one token comes out: (b * w, 1, d).
        pooled = attention(jnp.broadcast_to(probe, (b * w, 1, d)), flat)
        pooled = pooled + MlpBlock(4 * d)(nn.LayerNorm()(pooled))
        return pooled.reshape(b, w, d)
