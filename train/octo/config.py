"""What an Octo model is made of: frozen dataclasses, and the presets that are in use."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from pipeline.checks import check, check_positive
from train.octo.vggt_config import VGGTTokenizerConfig, check_cameras, replaced_cameras

Pooling = Literal["mean", "map"]
"""`mean` of the tokens, or attention by a learned probe."""

STEM_GROUPS = 32
"""Groups of the stem's GroupNorms."""

MAP_HEADS = 8
"""Attention heads of the pooling `map`."""


def _check_max_action(max_action: float) -> Iterator[str]:
    if max_action <= 0:
        yield f"max_action must be more than 0, not {max_action}"


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The pre-LN transformer that every token passes through."""

    num_layers: int
    """Number of encoder blocks."""
    mlp_dim: int
    """Hidden size of each block's MLP."""
    num_heads: int
    """Attention heads; divides `OctoConfig.embedding_dim`."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(self, "num_layers", "mlp_dim", "num_heads")


@dataclasses.dataclass(frozen=True)
class ImageTokenizerConfig:
    """One camera: its place in the batch, its size, and its convolutional stem."""

    name: str
    """Names the token group `obs_<name>` and its parameters."""
    observation_key: str
    """Key of the image under `observation`, and of the goal image under `task`."""
    image_size: int
    """Height and width of the square image in pixels, as the model sees it."""
    stem_features: tuple[int, ...] = (32, 96, 192, 384)
    """Channels of the stem's convolutions; each of them halves the image."""
    stem_dim: int = 512
    """Channels of the stem's output, one token a pixel."""

    def __post_init__(self) -> None:
        """Checks that the image and the channels can be divided as the stem divides them."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(self, "image_size", "stem_dim")
        if self.image_size % self.stride:
            yield (
                f"image_size {self.image_size} of {self.name!r} is no multiple of {self.stride}, "
                f"the stride of {len(self.stem_features)} stem_features"
            )
        odd = [count for count in self.stem_features if count < 1 or count % STEM_GROUPS]
        if odd or not self.stem_features:
            yield (
                f"stem_features {odd} of {self.name!r} are no multiples of the "
                f"{STEM_GROUPS} groups of their GroupNorm"
            )

    @property
    def stride(self) -> int:
        """Pixels of the image along one side of a token."""
        return 2 ** len(self.stem_features)

    @property
    def num_tokens(self) -> int:
        """Tokens an image."""
        return (self.image_size // self.stride) ** 2


@dataclasses.dataclass(frozen=True)
class BinsConfig:
    """Numbers as one of a fixed set of bins."""

    num_bins: int = 256
    """Bins."""
    spacing: Literal["uniform", "normal"] = "uniform"
    """`uniform`: of one width between `low` and `high`; `normal`: each with the same share of a
    standard normal distribution."""
    low: float = 0.0
    """Lowest value of uniform bins; lower ones fall into the first bin."""
    high: float = 1.0
    """Highest value of uniform bins; higher ones fall into the last."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(self, "num_bins")
        if self.spacing == "uniform" and self.low >= self.high:
            yield f"low {self.low} must be less than high {self.high}"


@dataclasses.dataclass(frozen=True)
class LowdimTokenizerConfig:
    """A vector of a step, such as proprioception, as one token a number."""

    name: str
    """Names the token group `obs_<name>` and its parameters."""
    observation_key: str
    """Key of the vector under `observation`."""
    num_dims: int
    """Numbers a step: tokens a step."""
    bins: BinsConfig | None = None
    """Makes a token the one-hot code of its bin; None: a token is the number itself."""

    def __post_init__(self) -> None:
        """Checks the range."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(self, "num_dims")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5 v1.0 encoder; the defaults are t5-base."""

    vocab_size: int = 32128
    """Rows of the embedding table; a token id beyond it gives NaN."""
    d_model: int = 768
    """Size of an embedding."""
    d_kv: int = 64
    """Size of one attention head; heads times d_kv need not be d_model."""
    d_ff: int = 3072
    """Hidden size of the feed-forward layers."""
    num_layers: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads."""
    num_buckets: int = 32
    """Buckets of the relative position, half of them for either direction."""
    max_distance: int = 128
    """Distance in tokens from which on all positions share a bucket."""

    def __post_init__(self) -> None:
        """Checks the ranges, and that the buckets can be laid out."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(self, *(field.name for field in dataclasses.fields(self)))
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 4:
            yield (
                f"num_buckets {self.num_buckets} must be a multiple of 4 "
                f"and max_distance {self.max_distance} more than a quarter of it"
            )


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """The instruction: its length and its encoder."""

    t5: T5Config = T5Config()
    """The frozen encoder."""
    max_length: int = 16
    """Token ids an instruction, padding included."""
    finetune: bool = False
    """Trains the encoder; it then runs in every step. Else its output is computed once a text."""

    def __post_init__(self) -> None:
        """Checks the range."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(self, "max_length")


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The head that denoises a chunk of actions."""

    action_horizon: int = 4
    """Actions a chunk."""
    action_dim: int = 7
    """Numbers an action."""
    diffusion_steps: int = 20
    """Steps of the noise schedule, in training and in sampling."""
    time_dim: int = 32
    """Size of the encoded diffusion step; even."""
    hidden_dim: int = 256
    """Width of the score network."""
    num_blocks: int = 3
    """Residual blocks of the score network."""
    max_action: float = 5.0
    """Bound of the normalised actions: they are clipped to plus and minus this."""
    n_diffusion_samples: int = 1
    """Noise draws a chunk in the loss."""
    pooling: Pooling = "mean"
    """From the readout tokens of a step to one embedding."""

    def __post_init__(self) -> None:
        """Checks the ranges, and that the encoded step splits into cosines and sines."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(
            self, "action_horizon", "action_dim", "diffusion_steps", "time_dim"
        )
        yield from check_positive(self, "hidden_dim", "num_blocks", "n_diffusion_samples")
        yield from _check_max_action(self.max_action)
        if self.time_dim % 2:
            yield f"time_dim {self.time_dim} must be even: cosines, then sines"

    @property
    def flat_dim(self) -> int:
        """Numbers a chunk."""
        return self.action_horizon * self.action_dim


@dataclasses.dataclass(frozen=True)
class RegressionConfig:
    """The head that predicts a chunk of actions at once."""

    error: Literal["l1", "mse"] = "l1"
    """Absolute or squared."""
    action_horizon: int = 4
    """Actions a chunk."""
    action_dim: int = 7
    """Numbers an action."""
    pooling: Pooling = "map"
    """From the readout tokens of a step to one embedding."""
    max_action: float = 5.0
    """Bound of the predicted actions: the prediction is `max_action * tanh(x / max_action)`."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(self, "action_horizon", "action_dim")
        yield from _check_max_action(self.max_action)

    @property
    def flat_dim(self) -> int:
        """Numbers a chunk."""
        return self.action_horizon * self.action_dim


HeadConfig = DiffusionConfig | RegressionConfig
"""The action heads."""


@dataclasses.dataclass(frozen=True)
class OctoConfig:
    """A whole Octo model."""

    embedding_dim: int
    """Size of every token in the transformer."""
    max_horizon: int
    """Longest window in steps: the rows of the position embeddings."""
    transformer: TransformerConfig
    """The transformer."""
    images: tuple[ImageTokenizerConfig, ...]
    """The cameras, in the order of their tokens."""
    language: LanguageConfig | None
    """The instruction; None: the model reads none."""
    head: HeadConfig
    """The action head."""
    lowdims: tuple[LowdimTokenizerConfig, ...] = ()
    """Vectors, after the cameras' tokens."""
    num_readouts: int = 1
    """Readout tokens a step."""
    vggt: VGGTTokenizerConfig | None = None
    """Geometry tokens, after all others; None: the model has no such input."""
    more_vggt: tuple[VGGTTokenizerConfig, ...] = ()
    """Geometry tokens of other cameras, or the same ones used in a second way; each with a `name`
    of its own."""
    repeat_task_tokens: bool = True
    """Repeats the instruction's tokens in every step of the window."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the stems and the transformer. Parameters, means and variances of norms, softmax, the
    language encoder and the head are float32 in any case."""
    remat: bool = False
    """Computes each transformer block again in the backward pass instead of keeping its
    activations: half the memory of a step. It costs about a quarter more FLOPs and, as measured on
    a CPU, no time."""
    attention: Literal["full", "by_head"] = "full"
    """`full`: all heads at once, as the released models do; `by_head`: one after the other, its
    attention map computed again in the backward pass: two thirds of the memory of a step."""
    legacy_attention: bool = False
    """Attends as the models of December 2023 do, which give the first token of a group the rules of
    the group before it."""

    def __post_init__(self) -> None:
        """Checks heads, names and keys across the parts."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        yield from check_positive(self, "embedding_dim", "max_horizon", "num_readouts")
        heads = self.transformer.num_heads
        if self.embedding_dim % heads:
            yield (
                f"embedding_dim {self.embedding_dim} is no multiple of "
                f"transformer.num_heads {heads}"
            )
        if self.head.pooling == "map" and self.embedding_dim % MAP_HEADS:
            yield (
                f"embedding_dim {self.embedding_dim} is no multiple of the {MAP_HEADS} heads "
                "of the head's pooling 'map'"
            )
        if not self.observations:
            yield "no images, lowdims or vggt: the model would see nothing"
        if self.more_vggt and self.vggt is None:
            yield "more_vggt is set, but vggt is None: the first tokens belong there"
        yield from check_cameras(self.geometry, [image.name for image in self.images])
        inputs = (*self.images, *self.lowdims)
        names = [part.name for part in (*inputs, *self.geometry)]
        keys = [*(part.observation_key for part in inputs), *self.token_keys]
        for field, values in (("name", names), ("observation_key", keys)):
            if len(set(values)) < len(values):
                yield f"two observation tokenizers share one {field}: {values}"

    @property
    def geometry(self) -> tuple[VGGTTokenizerConfig, ...]:
        """All geometry tokens, those of an alignment included."""
        return (*((self.vggt,) if self.vggt else ()), *self.more_vggt)

    @property
    def aligned(self) -> tuple[VGGTTokenizerConfig, ...]:
        """The geometry tokens that training aligns with."""
        return tuple(vggt for vggt in self.geometry if not vggt.is_input)

    @property
    def cameras(self) -> tuple[ImageTokenizerConfig, ...]:
        """The images that are read: those in whose place no geometry tokens stand."""
        replaced = replaced_cameras(self.geometry)
        return tuple(image for image in self.images if image.name not in replaced)

    @property
    def observations(
        self,
    ) -> tuple[ImageTokenizerConfig | LowdimTokenizerConfig | VGGTTokenizerConfig, ...]:
        """All that the model sees to act, in the order of its tokens."""
        geometry = (vggt for vggt in self.geometry if vggt.is_input)
        return (*self.cameras, *self.lowdims, *geometry)

    @property
    def image_sizes(self) -> dict[str, int]:
        """Height and width to which the model resizes each camera, by its observation key."""
        return {image.observation_key: image.image_size for image in self.cameras}

    @property
    def token_keys(self) -> tuple[str, ...]:
        """Under `observation`, of all geometry tokens; those used twice are named once."""
        return tuple(dict.fromkeys(key for vggt in self.geometry for key in vggt.keys))

    @property
    def input_token_keys(self) -> tuple[str, ...]:
        """As `token_keys`, of the geometry tokens that the model reads to act."""
        read = (key for vggt in self.geometry if vggt.is_input for key in vggt.keys)
        return tuple(dict.fromkeys(read))

    @property
    def input_keys(self) -> tuple[str, ...]:
        """Under `observation`, of all that the model reads to act, in the order of its tokens."""
        inputs = (part.observation_key for part in (*self.cameras, *self.lowdims))
        return (*inputs, *self.input_token_keys)

    @property
    def observation_keys(self) -> tuple[str, ...]:
        """Of all that training reads under `observation`."""
        inputs = (part.observation_key for part in (*self.cameras, *self.lowdims))
        return (*inputs, *self.token_keys)


def octo_small(
    *,
    head: HeadConfig = DiffusionConfig(),
    vggt: VGGTTokenizerConfig | None = None,
) -> OctoConfig:
    """Returns octo-small-1.5 (27.0 M parameters and 109.6 M of t5-base).

    With the default head and no geometry tokens, every array of the released checkpoint has its
    place.

    Args:
      head: The action head; another horizon or action size means a new head.
      vggt: Geometry tokens beside the two cameras.
    """
    return OctoConfig(
        embedding_dim=384,
        max_horizon=10,
        transformer=TransformerConfig(num_layers=12, mlp_dim=1536, num_heads=6),
        images=(
            ImageTokenizerConfig("primary", "image_primary", image_size=256),
            ImageTokenizerConfig("wrist", "image_wrist", image_size=128),
        ),
        language=LanguageConfig(),
        head=head,
        vggt=vggt,
    )


def octo_base(
    *,
    head: HeadConfig = DiffusionConfig(),
    vggt: VGGTTokenizerConfig | None = None,
) -> OctoConfig:
    """Returns octo-base-1.5: octo-small with a ViT-B as its transformer.

    Args:
      head: As in `octo_small`.
      vggt: As in `octo_small`.
    """
    return dataclasses.replace(
        octo_small(head=head, vggt=vggt),
        embedding_dim=768,
        transformer=TransformerConfig(num_layers=12, mlp_dim=3072, num_heads=12),
    )


def demo(
    *,
    head: HeadConfig = DiffusionConfig(hidden_dim=64),
    vggt: VGGTTokenizerConfig | None = None,
) -> OctoConfig:
    """Returns the same model, small enough for a laptop's CPU; it reads t5-base's token ids.

    Args:
      head: The action head.
      vggt: Geometry tokens beside the two cameras.
    """
    stem = (32, 32, 64, 64)
    return OctoConfig(
        embedding_dim=64,
        max_horizon=5,
        transformer=TransformerConfig(num_layers=2, mlp_dim=128, num_heads=2),
        images=(
            ImageTokenizerConfig("primary", "image_primary", 64, stem_features=stem, stem_dim=64),
            ImageTokenizerConfig("wrist", "image_wrist", 64, stem_features=stem, stem_dim=64),
        ),
        language=LanguageConfig(
            t5=T5Config(d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)
        ),
        head=head,
        vggt=vggt,
    )
