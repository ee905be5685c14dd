"""A pre-LN transformer over groups of tokens."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from train.octo.attention import attention_mask, rule_mask
from train.octo.octo_config import TransformerConfig
from train.octo.token_groups import Groups, TokenGroup, assemble, spans, split


class MlpBlock(nn.Module):
    """Two dense layers with a tanh-approximate GELU between them."""

    mlp_dim: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Returns tokens of the same shape."""
        kernel_init = nn.initializers.xavier_uniform()
        # Nearly zero, as in the original ViT.
        bias_init = nn.initializers.normal(stddev=1e-6)
        dense = functools.partial(
            nn.Dense, kernel_init=kernel_init, bias_init=bias_init, dtype=self.dtype
        )
        # The tanh approximation, as in the released model.
        hidden = nn.gelu(dense(self.mlp_dim)(x), approximate=True)
        return dense(x.shape[-1])(hidden)


class EncoderBlock(nn.Module):
    """Attention, then an MLP; each reads normalised tokens, and its output is added to them."""

    config: TransformerConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    attention: str = "full"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 t t"]
    ) -> Float[Array, "b t d"]:
        """Returns tokens of the same shape and dtype."""
        attention = nn.MultiHeadDotProductAttention(
            num_heads=self.config.num_heads,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            attention_fn=self._attention(),
            # The name of the released parameters.
            name="MultiHeadDotProductAttention_0",
        )
        x = x + attention(self._normalized(x), mask=mask)
        return x + MlpBlock(self.config.mlp_dim, self.dtype)(self._normalized(x))

    def _attention(self) -> Callable[..., jax.Array]:
        if self.attention == "by_head":
            return _attend_by_head
        # Decided while tracing: tracing cuDNN's attention fails where there is none.
        if self.attention == "fused" and jax.default_backend() == "gpu":
            return attend_fused
        rounds = jnp.dtype(self.dtype) == jnp.bfloat16
        # linen's own softmax would run in bfloat16.
        return _attend if rounds else nn.dot_product_attention

    def _normalized(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        # Mean and variance in float32: bfloat16 has 8 significant bits.
        return nn.LayerNorm()(x.astype(jnp.float32)).astype(self.dtype)


def _attend(
    query: Float[Array, "b t n d"],
    key: Float[Array, "b s n d"],
    value: Float[Array, "b s n d"],
    *,
    mask: Bool[Array, "b 1 t s"],
    **_: object,
) -> Float[Array, "b t n d"]:
    """Computes attention like linen, but with the softmax in float32 for any token dtype.

    Linen's remaining arguments concern dropout, which is not used. For float32 tokens it calls
    linen's own function, whose rounding matches the released models.
    """
    # Scaled before the product, as in linen, so that rounding is the same.
    scaled = query / math.sqrt(query.shape[-1])
    # Sums of products in float32, also for bfloat16 tokens.
    logits = jnp.einsum("btnd,bsnd->bnts", scaled, key, preferred_element_type=jnp.float32)
    # The least float and not -inf: a row that is masked everywhere stays finite.
    weights = nn.softmax(jnp.where(mask, logits, jnp.finfo(jnp.float32).min))
    # Weights in the dtype of the tokens, so the second product is in bfloat16.
    return jnp.einsum("bnts,bsnd->btnd", weights.astype(value.dtype), value)


def _attend_by_head(
    query: Float[Array, "b t n d"],
    key: Float[Array, "b s n d"],
    value: Float[Array, "b s n d"],
    *,
    mask: Bool[Array, "b 1 t s"],
    **_: object,
) -> Float[Array, "b t n d"]:
    """Computes `_attend` one head after the other, storing no attention map for the backward pass.

    It has to be a loop: outside a loop XLA would merge the recomputation with the first
    computation, and store the map after all.
    """

    @jax.checkpoint
    def attend(head: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        # One head: (b, t, d) becomes (b, t, 1, d).
        q, k, v = (part[:, :, None] for part in head)
        return _attend(q, k, v, mask=mask)[:, :, 0]

    # Heads first, because `map` loops over axis 0.
    heads = tuple(jnp.moveaxis(part, 2, 0) for part in (query, key, value))
    return jnp.moveaxis(jax.lax.map(attend, heads), 0, 2)


def attend_fused(
    query: Float[Array, "b t n d"],
    key: Float[Array, "b t n d"],
    value: Float[Array, "b t n d"],
    *,
    mask: Bool[Array, "b 1 t t"],
    implementation: Literal["cudnn", "xla"] = "cudnn",
    **_: object,
) -> Float[Array, "b t n d"]:
    """Computes `_attend` in one kernel, which writes no attention map to memory.

    Args:
      query: Queries; bfloat16 for cuDNN.
      key: Keys of the same shape and dtype.
      value: Values of the same shape and dtype.
      mask: True where a query may attend to a key.
      implementation: That of `jax.nn.dot_product_attention`; `xla` runs on any device.
    """
    num_tokens = query.shape[1]
    # cuDNN's backward pass with a mask needs an even number of tokens; no query reads the last one.
    odd = num_tokens % 2
    padded = (jnp.pad(part, ((0, 0), (0, odd), (0, 0), (0, 0))) for part in (query, key, value))
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, odd), (0, odd)))
    attended = jax.nn.dot_product_attention(*padded, mask=mask, implementation=implementation)
    return attended[:, :num_tokens]


class Transformer(nn.Module):
    """The stack of blocks with a final norm; position embeddings are added before it."""

    config: TransformerConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False
    attention: str = "full"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 t t"]
    ) -> Float[Array, "b t d"]:
        """Returns tokens of the same shape, float32."""
        x = x.astype(self.dtype)
        names = [f"encoderblock_{i}" for i in range(self.config.num_layers)]
        # `init` needs the named modules to make the parameters.
        if self.remat and not self.is_initializing():
            x = self._scan(names, x, mask)
        else:
            for name in names:
                x = EncoderBlock(self.config, self.dtype, self.attention, name=name)(x, mask)
        # float32 for the head, whatever the dtype of the blocks.
        return nn.LayerNorm(name="encoder_norm")(x.astype(jnp.float32))

    def _scan(self, names: list[str], x: jax.Array, mask: jax.Array) -> jax.Array:
        """Runs the blocks as a loop that stores only each block's input for the backward pass.

        The loop saves memory: in unrolled blocks XLA would merge the recomputation with the first
        computation. The loop body is also compiled only once.
        """
        # The parameters keep the released names; they are stacked inside the step (85 MB).
        params = [self.variables["params"][name] for name in names]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        # Without a parent it makes no parameters of its own here.
        block = EncoderBlock(self.config, self.dtype, self.attention, parent=None)

        @jax.checkpoint
        def step(x: jax.Array, params: Any) -> tuple[jax.Array, None]:
            # `mask` is closed over: it is the same for all blocks.
            return cast(jax.Array, block.apply({"params": params}, x, mask)), None

        return jax.lax.scan(step, x, stacked)[0]


class BlockTransformer(nn.Module):
    """Joins the groups to one sequence, runs the transformer, and splits it into groups again."""

    config: TransformerConfig
    legacy_attention: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False
    attention: str = "full"

    @nn.compact
    def __call__(self, prefix: Groups, timestep: Groups) -> dict[str, TokenGroup]:
        """Returns every group by name, with new tokens and its original mask.

        Args:
          prefix: Groups before the window, `(b n d)`.
          timestep: Groups of every step, `(b w n d)`.
        """
        tokens, real = assemble(prefix, timestep)
        # All groups of the timestep have the same window.
        window = next(iter(timestep.values())).tokens.shape[1]
        rules = rule_mask(spans(prefix), spans(timestep), window, legacy=self.legacy_attention)
        # (b, 1, t, t): one mask for all heads.
        mask = attention_mask(rules, real)
        transformer = Transformer(self.config, self.dtype, self.remat, self.attention)
        return split(transformer(tokens, mask), prefix, timestep)
