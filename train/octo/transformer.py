"""A pre-LN transformer over groups of tokens."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from train.octo.attention import attention_mask, rule_mask
from train.octo.config import TransformerConfig
from train.octo.tokens import Groups, TokenGroup, assemble, spans, split


class MlpBlock(nn.Module):
    """Two dense layers with a tanh-approximate GELU between them."""

    mlp_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Returns tokens of the same shape."""
        kernel_init = nn.initializers.xavier_uniform()
        bias_init = nn.initializers.normal(stddev=1e-6)
        hidden = nn.Dense(self.mlp_dim, kernel_init=kernel_init, bias_init=bias_init)(x)
        hidden = nn.gelu(hidden, approximate=True)
        return nn.Dense(x.shape[-1], kernel_init=kernel_init, bias_init=bias_init)(hidden)


class EncoderBlock(nn.Module):
    """Attention, then an MLP, each on normalised tokens and added to its input."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 t t"]
    ) -> Float[Array, "b t d"]:
        """Returns tokens of the same shape."""
        attention = nn.MultiHeadDotProductAttention(
            num_heads=self.config.num_heads,
            kernel_init=nn.initializers.xavier_uniform(),
            name="MultiHeadDotProductAttention_0",
        )
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        return x + MlpBlock(self.config.mlp_dim)(nn.LayerNorm()(x))


class Transformer(nn.Module):
    """The stack of blocks, normalised at its end; positions are the embedder's affair."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 t t"]
    ) -> Float[Array, "b t d"]:
        """Returns tokens of the same shape."""
        for i in range(self.config.num_layers):
            x = EncoderBlock(self.config, name=f"encoderblock_{i}")(x, mask)
        return nn.LayerNorm(name="encoder_norm")(x)


class BlockTransformer(nn.Module):
    """Lays the groups out as one sequence, runs it, and cuts it into the groups again."""

    config: TransformerConfig
    legacy_attention: bool = False

    @nn.compact
    def __call__(self, prefix: Groups, timestep: Groups) -> dict[str, TokenGroup]:
        """Returns every group by its name, with new tokens and its old mask.

        Args:
          prefix: Groups `(b n d)`, before the window.
          timestep: Groups `(b w n d)`.
        """
        tokens, real = assemble(prefix, timestep)
        window = next(iter(timestep.values())).tokens.shape[1]
        rules = rule_mask(spans(prefix), spans(timestep), window, legacy=self.legacy_attention)
        mask = attention_mask(rules, real)
        return split(Transformer(self.config)(tokens, mask), prefix, timestep)
