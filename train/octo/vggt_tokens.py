"""Prepares geometry tokens for the model: normalised, selected, reduced."""

import math
from typing import assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from train.octo.attention import Kind
from train.octo.geometry_config import VGGTTokenizerConfig
from train.octo.token_groups import TokenGroup
from train.octo.tokenizer_inputs import Inputs, observation_mask

_LEARNER_DIM = 64
"""Hidden size of the token learner's perceptron."""
_EPSILON = 1e-6
"""Epsilon added to variances, as in linen's LayerNorm."""

Layers = list[Float[Array, "b w n d"]]


def read_layers(read: Inputs, config: VGGTTokenizerConfig) -> tuple[Layers, Bool[Array, "b w"]]:
    """Returns each layer's tokens, float32, and which steps have them; other steps are zero.

    Args:
      read: What `read_steps` returns: each layer's tokens, a float `(b w n d)`, and the masks. A
        step has tokens if it is not padding and no layer is missing.
      config: The config of the tokens.
    """
    real = read["timestep_pad_mask"]
    # A step counts only if every layer has its tokens.
    for key in config.keys:
        # One column of the mask: all tokens of a step are real or none is.
        real = real & observation_mask(read, key, 1)[..., 0]
    # Normalised in float32, whatever they were stored in.
    layers = [read[key].astype(jnp.float32) for key in config.keys]
    # Zeros and not what lies there: a reused block may hold anything, and NaN would pass masks.
    return [jnp.where(real[:, :, None, None], layer, 0.0) for layer in layers], real


class TokenLearner(nn.Module):
    """Reduces tokens to a few, each a weighted mean of all.

    Source: Ryoo et al. 2021, "TokenLearner": a perceptron computes each token's weights, as in
      version 1.1, and a softmax over the tokens makes the result a mean.
    """

    num_tokens: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b w n d"]) -> Float[Array, "b w m d"]:
        """Returns `num_tokens` tokens per step; the weights are float32."""
        hidden = nn.gelu(nn.Dense(_LEARNER_DIM, dtype=self.dtype)(tokens))
        # float32 before the softmax.
        logits = nn.Dense(self.num_tokens, dtype=self.dtype)(hidden).astype(jnp.float32)
        # Over the tokens, so each result is a mean of all of them.
        weights = nn.softmax(logits, axis=-2).astype(tokens.dtype)
        return jnp.einsum("bwnm,bwnd->bwmd", weights, tokens)


class VGGTTokenizer(nn.Module):
    """Normalises the geometry tokens of each layer, then selects and reduces them.

    The layers of the encoder differ in scale by a factor of 20; the layer norms remove that.
    """

    config: VGGTTokenizerConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, observation: Inputs, task: Inputs) -> TokenGroup:
        """Returns tokens `(b w m d)`: those of the column, except what `fusion` does not read.

        Steps without tokens are masked.

        Args:
          observation: The observation of a batch, with the geometry tokens; see `read_layers`.
          task: The task of a batch; not used.
        """
        del task
        layers, real = read_layers(observation, self.config)
        # A norm for each layer: layers of the encoder differ in scale by a factor of 20.
        tokens = jnp.concatenate([nn.LayerNorm()(layer) for layer in layers], axis=-1)
        tokens = self._reduce(self._choose(tokens))
        mask = jnp.broadcast_to(real[:, :, None], tokens.shape[:-1])
        return TokenGroup(tokens, mask, Kind.OBSERVATION)

    def _choose(self, tokens: Float[Array, "b w n d"]) -> Float[Array, "b w m d"]:
        """Selects all tokens, the special ones or the patches."""
        num_special, fusion = self.config.num_special, self.config.fusion
        match fusion:
            case "tokens" | "only":
                return tokens
            case "registers":
                return tokens[:, :, :num_special]
            case "features" | "gated" | "align":
                return tokens[:, :, num_special:]
            case _:
                assert_never(fusion)

    def _reduce(self, tokens: Float[Array, "b w n d"]) -> Float[Array, "b w m e"]:
        size, reduction = self.config.reduced_to or 0, self.config.reduction
        match reduction:
            case "none":
                return tokens
            case "project":
                return nn.gelu(nn.Dense(size, dtype=self.dtype, name="project")(tokens))
            case "token_learner":
                return TokenLearner(size, self.dtype, name="token_learner")(tokens)
            case "pool":
                # Special tokens have no place in the grid.
                special, patches = jnp.split(tokens, [self.config.num_special], axis=2)
                side = math.isqrt(size)
                pooled = resize_grid(patches, self.config.patch_grid, (side, side))
                return jnp.concatenate([special, pooled], axis=2)
            case _:
                assert_never(reduction)


def resize_grid(
    tokens: Float[Array, "b w n d"], grid: tuple[int, int], wanted: tuple[int, int]
) -> Float[Array, "b w m d"]:
    """Resizes a grid of tokens linearly, with antialiasing where it shrinks.

    Args:
      tokens: Tokens in row-major order.
      grid: Rows and columns of `tokens`.
      wanted: Rows and columns of the result, which covers the same image.
    """
    if grid == wanted:
        return tokens
    b, w, _, d = tokens.shape
    # (b, w, rows, columns, d)
    laid = tokens.reshape(b, w, *grid, d)
    resized = jax.image.resize(laid, (b, w, *wanted, d), "linear", antialias=True)
    return resized.reshape(b, w, -1, d)


def standardize(tokens: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Normalises each token to mean 0 and variance 1: a layer norm without parameters."""
    mean = jnp.mean(tokens, axis=-1, keepdims=True)
    variance = jnp.var(tokens, axis=-1, keepdims=True)
    return (tokens - mean) * jax.lax.rsqrt(variance + _EPSILON)
