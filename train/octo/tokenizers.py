"""Turns the inputs of a batch into tokens: cameras, vectors, instruction (VGGT: `vggt_tokens.py`).

A tokenizer's output has its own embedding size; `model.py` projects it to the transformer's size
and adds position embeddings, the same way for all groups.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from train.octo.attention import Kind
from train.octo.octo_config import (
    STEM_GROUPS,
    BinsConfig,
    ImageTokenizerConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
)
from train.octo.t5 import T5Encoder
from train.octo.token_groups import TokenGroup
from train.octo.tokenizer_inputs import Inputs, check_array, observation_mask, require

# Keeps the outermost bins finite; Octo's value.
_BIN_EPSILON = 1e-6


class StdConv(nn.Module):
    """A 3x3 convolution of stride 2 whose kernel is standardised before use.

    Source: Qiao et al. 2019, "Weight Standardization"; as in Octo, epsilon is added to the standard
      deviation, not to the variance.
    """

    features: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y2 x2 f"]:
        """Returns the image at half its size; the kernel is standardised in float32."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        mean = jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
        std = jnp.std(kernel, axis=(0, 1, 2), keepdims=True)
        # Octo adds epsilon to the deviation; the usual formula adds it to the variance.
        standardized = (kernel - mean) / (std + 1e-5)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            # Standardised in float32 above: in bfloat16 the mean would lose the digits it
            # subtracts.
            standardized.astype(self.dtype),
            window_strides=(2, 2),
            # Fixed padding: "SAME" would pad only one side of an even image.
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(self.dtype)[None, None, None, :]


class SmallStem16(nn.Module):
    """A few convolutions that turn an image of 6 channels (camera, goal) into a grid of tokens.

    Source: Xiao et al. 2021, "Early Convolutions Help Transformers See Better".
    """

    config: ImageTokenizerConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: UInt8[Array, "b y x c"]) -> Float[Array, "b y2 x2 d"]:
        """Returns the tokens on their grid; the image's range 0 to 255 becomes -1 to 1."""
        x = image.astype(jnp.float32) / 127.5 - 1.0
        for features in self.config.stem_features:
            x = StdConv(features, self.dtype)(x)
            # Norms in float32, also for bfloat16.
            x = nn.GroupNorm(num_groups=STEM_GROUPS)(x.astype(jnp.float32)).astype(self.dtype)
            x = nn.relu(x)
        # A 1x1 convolution projects each place of the grid; its name is the released one.
        embedding = nn.Conv(
            self.config.stem_dim, (1, 1), padding="VALID", dtype=self.dtype, name="embedding"
        )
        return embedding(x)


class ImageTokenizer(nn.Module):
    """Tokenizes a camera's image, stacked with the goal image of the task."""

    config: ImageTokenizerConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, observation: Inputs, task: Inputs) -> TokenGroup:
        """Returns tokens `(b w n stem_dim)`, in row-major order of the image.

        Args:
          observation: The observation of a batch, with the image, uint8 `(b w H W 3)`.
          task: The task of a batch. It may have a goal image, uint8 `(b H W 3)`, under the same
            key. Without one the goal is black (-1 once normalised, not 0), as in pretraining. The
            goal enters no mask.

        Raises:
          UserError: The goal image does not match the configured size and dtype.
        """
        key, size = self.config.observation_key, self.config.image_size
        image = observation[key]
        b, w = image.shape[:2]
        goal = task.get(key)
        if goal is None:
            # Octo's convention for a task without goal images: black.
            goal = jnp.zeros_like(image[:, 0])
        check_array(goal, "b", (size, size, 3), ["uint8"], f"task/{key}")
        # The same goal beside each step of the window.
        goal = jnp.broadcast_to(goal[:, None], image.shape)
        # Steps are folded into the batch, as the stem knows no time: (b * w, y, x, 6).
        stacked = jnp.concatenate([image, goal], axis=-1).reshape(b * w, size, size, 6)
        # (b, w, n, stem_dim)
        num_tokens = self.config.tokens_per_step
        tokens = SmallStem16(self.config, self.dtype)(stacked).reshape(b, w, num_tokens, -1)
        mask = observation_mask(observation, key, num_tokens)
        return TokenGroup(tokens, mask, Kind.OBSERVATION)


class LowdimTokenizer(nn.Module):
    """Turns each element of a vector into one token."""

    config: LowdimTokenizerConfig

    @nn.compact
    def __call__(self, observation: Inputs, task: Inputs) -> TokenGroup:
        """Returns tokens `(b w n 1)` or, with bins, `(b w n num_bins)`.

        A vector that `pad_mask_dict` marks as missing is masked, like every other input. The
        original never masks it: there the model reads the placeholder values.

        Args:
          observation: The observation of a batch, with the vector, a float `(b w n)`, and
            optionally `pad_mask_dict`.
          task: The task of a batch; not used.
        """
        del task
        key = self.config.observation_key
        values = observation[key].astype(jnp.float32)
        mask = observation_mask(observation, key, self.config.num_dims)
        if self.config.bins is None:
            # One token per number; the projection to the embedding size follows in `model.py`.
            return TokenGroup(values[..., None], mask, Kind.OBSERVATION)
        bins = jax.nn.one_hot(to_bins(values, self.config.bins), self.config.bins.num_bins)
        return TokenGroup(bins, mask, Kind.OBSERVATION)


def bin_edges(config: BinsConfig) -> Float[Array, " edges"]:
    """Returns the edges of the bins; there is one more edge than bins.

    Source: Octo's `BinTokenizer`; normal bins end at a probability of 1e-6 in each tail.
    """
    if config.spacing == "uniform":
        return jnp.linspace(config.low, config.high, config.num_bins + 1, dtype=jnp.float32)
    shares = jnp.linspace(_BIN_EPSILON, 1 - _BIN_EPSILON, config.num_bins + 1, dtype=jnp.float32)
    return jax.scipy.stats.norm.ppf(shares)


def to_bins(values: Float[Array, "*b"], config: BinsConfig) -> Int[Array, "*b"]:
    """Returns the bin of each value, int32, starting at 0.

    Values beyond uniform bins fall into the nearest bin; values beyond normal bins fall into the
    first, as in Octo.
    """
    edges = bin_edges(config)
    if config.spacing == "uniform":
        # Moved inside by epsilon: a value on the highest edge would fall into no bin.
        values = jnp.clip(values, config.low + _BIN_EPSILON, config.high - _BIN_EPSILON)
    # "right": a value on an edge falls into the bin above it.
    bins = jnp.searchsorted(edges, values, side="right") - 1
    inside = (bins >= 0) & (bins < config.num_bins)
    # Only normal bins get here with values outside.
    return jnp.where(inside, bins, 0).astype(jnp.int32)


def from_bins(bins: Int[Array, "*b"], config: BinsConfig) -> Float[Array, "*b"]:
    """Returns the center of each bin; the inverse of `to_bins` up to a bin's width."""
    edges = bin_edges(config)
    return ((edges[1:] + edges[:-1]) / 2)[bins]


class LanguageTokenizer(nn.Module):
    """Tokenizes the instruction with T5."""

    config: LanguageConfig

    def setup(self) -> None:
        """Names the encoder as in the released weights."""
        self.hf_model = T5Encoder(self.config.t5)

    def encode(self, instruction: Inputs) -> Float[Array, "b n d"]:
        """Returns T5's embeddings of token ids; a frozen T5 gets no gradient.

        Args:
          instruction: Token ids `input_ids` and `attention_mask`, int32 `(b n)` each.
        """
        states = self.hf_model(instruction["input_ids"], instruction["attention_mask"])
        # The parameters are frozen for the optimizer too; this saves the backward pass.
        return states if self.config.finetune else jax.lax.stop_gradient(states)

    def __call__(self, task: Inputs) -> TokenGroup:
        """Returns tokens `(b n d_model)`; padding counts as real, as in the pretrained model.

        Args:
          task: The task of a batch, with `language_instruction` (see `encode`) or else
            `language_embedding`: the output of `encode`. `pad_mask_dict` may mark which samples
            have an instruction, bool `(b)`; without it all do.

        Raises:
          UserError: Both are missing, or the length differs from the config.
        """
        # The run's table has encoded every text once; T5 then is not part of the step.
        if "language_embedding" in task:
            tokens = task["language_embedding"]
        else:
            key, reader = "language_instruction", "language tokenizer"
            tokens = self.encode(require(task, key, part="task", reader=reader))
        shape = (self.config.max_length, self.config.t5.d_model)
        where = "encoded task/language_instruction"
        check_array(tokens, "b", shape, ["float32"], where)
        present = task.get("pad_mask_dict", {}).get("language_instruction")
        if present is None:
            present = jnp.ones(tokens.shape[:1], dtype=bool)
        # Octo never masked padding of the text: all `max_length` tokens are read.
        mask = jnp.broadcast_to(present[:, None], tokens.shape[:2])
        return TokenGroup(tokens, mask, Kind.TASK)
