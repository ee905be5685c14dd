"""The config of an Octo model: frozen dataclasses, and presets."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pipeline.added_fields import LATER
from pipeline.config_checks import Problem, check, check_positive
from pipeline.loading.batch import LeafSpec
from pipeline.parts.part import Part
from train.octo.geometry_config import VGGTTokenizerConfig, check_cameras, replaced_cameras
from train.octo.protocols import HeadConfig, TokenizerConfig

Pooling = Literal["mean", "map"]
"""Pooling of the readout tokens: their `mean`, or attention by a learned probe."""

STEM_GROUPS = 32
"""Number of groups in the stem's GroupNorms."""

MAP_HEADS = 8
"""Number of attention heads in the pooling `map`."""


def _check_max_action(max_action: float) -> Iterator[Problem]:
    # "not >" is true of NaN as well.
    if not max_action > 0:
        yield Problem("max_action", "more than 0", max_action, "5 clips at five deviations.")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The pre-LN transformer that processes all tokens."""

    num_layers: int
    """Number of encoder blocks."""
    mlp_dim: int
    """Hidden size of each block's MLP."""
    num_heads: int
    """Number of attention heads; it must divide `OctoConfig.embedding_dim`."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(self, "num_layers", "mlp_dim", "num_heads")


@dataclasses.dataclass(frozen=True)
class ImageTokenizerConfig:
    """One camera: its keys in the batch, its image size, and its convolutional stem."""

    name: str
    """Name of the camera: its token group is `obs_<name>`."""
    observation_key: str
    """Key of the image under `observation`, and of the goal image under `task`."""
    image_size: int
    """Height and width of the square image in pixels, as the model sees it."""
    stem_features: tuple[int, ...] = (32, 96, 192, 384)
    """Channels of the stem's convolutions; each of them halves the image."""
    stem_dim: int = 512
    """Channels of the stem's output, which has one token per pixel."""

    def __post_init__(self) -> None:
        """Raises an error if the stem cannot divide the image or the channels."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(self, "image_size", "stem_dim")
        if self.image_size % self.stride:
            below = self.image_size - self.image_size % self.stride
            yield Problem(
                "image_size",
                f"a multiple of {self.stride}, the stride of {len(self.stem_features)} "
                "stem_features",
                f"{self.image_size} for {self.name!r}",
                f"Use {below or self.stride} or {(below or self.stride) + self.stride}: images "
                "are resized to it.",
            )
        # GroupNorm divides the channels by its groups.
        odd = [count for count in self.stem_features if count < 1 or count % STEM_GROUPS]
        if odd or not self.stem_features:
            yield Problem(
                "stem_features",
                f"multiples of {STEM_GROUPS}, the groups of their GroupNorm",
                f"{odd or 'none'} for {self.name!r}",
                f"Use numbers such as {STEM_GROUPS} and {2 * STEM_GROUPS}.",
            )

    @property
    def stride(self) -> int:
        """Returns the width of a token in pixels of the image."""
        return 2 ** len(self.stem_features)

    @property
    def tokens_per_step(self) -> int:
        """Returns the number of tokens per image."""
        return (self.image_size // self.stride) ** 2

    @property
    def inputs(self) -> dict[str, LeafSpec]:
        """Returns the type of an image in the model, by its key."""
        return {self.observation_key: LeafSpec("uint8", (self.image_size, self.image_size, 3))}

    def make_tokenizer(self, dtype: str) -> Any:
        """Returns an `ImageTokenizer`."""
        return _tokenizers().ImageTokenizer(self, dtype)


@dataclasses.dataclass(frozen=True)
class BinsConfig:
    """Discretization of values into a fixed set of bins."""

    num_bins: int = 256
    """Number of bins."""
    spacing: Literal["uniform", "normal"] = "uniform"
    """`uniform`: bins of equal width between `low` and `high`; `normal`: bins of equal probability
    under a standard normal distribution."""
    low: float = 0.0
    """Lowest value of uniform bins; lower values fall into the first bin."""
    high: float = 1.0
    """Highest value of uniform bins; higher values fall into the last bin."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(self, "num_bins")
        if self.spacing == "uniform" and self.low >= self.high:
            yield Problem(
                "low", f"less than high, which is {self.high}", self.low, "Lower it, or raise high."
            )


@dataclasses.dataclass(frozen=True)
class LowdimTokenizerConfig:
    """A vector per step, such as proprioception; each of its elements becomes one token."""

    name: str
    """Name of the input: its token group is `obs_<name>`."""
    observation_key: str
    """Key of the vector under `observation`."""
    num_dims: int
    """Length of the vector, which is the number of tokens per step."""
    bins: BinsConfig | None = None
    """Bins whose one-hot code becomes the token; None: the token is the value itself."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(self, "num_dims")

    @property
    def tokens_per_step(self) -> int:
        """Returns the number of tokens per step, one for each element."""
        return self.num_dims

    @property
    def inputs(self) -> dict[str, LeafSpec]:
        """Returns the type of the vector, by its key."""
        return {self.observation_key: LeafSpec("float32", (self.num_dims,))}

    def make_tokenizer(self, dtype: str) -> Any:
        """Returns a `LowdimTokenizer`, which computes in float32 whatever the dtype is."""
        return _tokenizers().LowdimTokenizer(self)


def _tokenizers() -> Any:
    """Returns the tokenizers' module, imported late: it imports this one, and JAX besides."""
    from train.octo import tokenizers  # noqa: PLC0415

    return tokenizers


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5 v1.0 encoder; the defaults are t5-base."""

    vocab_size: int = 32128
    """Number of rows of the embedding table; a token id beyond it gives NaN."""
    d_model: int = 768
    """Size of each embedding."""
    d_kv: int = 64
    """Size of one attention head; num_heads times d_kv may differ from d_model."""
    d_ff: int = 3072
    """Hidden size of the feed-forward layers."""
    num_layers: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Number of attention heads."""
    num_buckets: int = 32
    """Number of buckets of relative positions, half of them for each direction."""
    max_distance: int = 128
    """Distance in tokens beyond which all positions share a bucket."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range, or the buckets do not fit the distance."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(self, *(field.name for field in dataclasses.fields(self)))
        # Half of the buckets for each direction, and half of those exact.
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 4:
            yield Problem(
                "num_buckets",
                f"a multiple of 4, and less than four times max_distance {self.max_distance}",
                self.num_buckets,
                "T5's own are 32 and 128.",
            )


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """The instruction: its length and its encoder."""

    t5: T5Config = T5Config()
    """The encoder of the instruction."""
    max_length: int = 16
    """Number of token ids per instruction, padding included."""
    finetune: bool = False
    """Trains the encoder, which then runs in every training step. Otherwise its output is computed
    once for each text."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(self, "max_length")


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The action head that denoises a chunk of actions."""

    action_horizon: int = 4
    """Number of actions per chunk."""
    action_dim: int = 7
    """Size of an action."""
    diffusion_steps: int = 20
    """Number of diffusion steps, in training and in sampling."""
    time_dim: int = 32
    """Size of the encoded diffusion step; must be even."""
    hidden_dim: int = 256
    """Width of the score network."""
    num_blocks: int = 3
    """Number of residual blocks in the score network."""
    max_action: float = 5.0
    """Bound of the normalised actions, which are clipped to [-max_action, max_action]."""
    n_diffusion_samples: int = 1
    """Number of noise draws per chunk in the loss."""
    pooling: Pooling = "mean"
    """Pooling of a step's readout tokens to one embedding."""
    unused_dims: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)
    """Places of dimensions that are not learned, which stay noise in sampling, as in training. They
    are set for sampling from the data's transforms: leave it empty."""
    prediction: Literal["noise", "action"] = dataclasses.field(default="noise", metadata=LATER)
    """What the score network predicts: the noise, as in the released weights, or the actions, which
    a short training from scratch learns sooner; diffusers calls these `epsilon` and `sample`."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(
            self, "action_horizon", "action_dim", "diffusion_steps", "time_dim"
        )
        yield from check_positive(self, "hidden_dim", "num_blocks", "n_diffusion_samples")
        yield from _check_max_action(self.max_action)
        if self.time_dim % 2:
            yield Problem(
                "time_dim",
                "an even number",
                self.time_dim,
                "Half of them are cosines and half are sines: add one.",
            )

    @property
    def flat_dim(self) -> int:
        """Returns the number of values in a chunk."""
        return self.action_horizon * self.action_dim

    def make_head(self) -> Any:
        """Returns a `DiffusionHead`."""
        return _diffusion().DiffusionHead(self)

    def draw_training_noise(self, key: Any, shape: tuple[int, int]) -> Any:
        """Draws the diffusion steps and the noise of one loss: a `TrainingNoise`."""
        return _diffusion().draw_training_noise(self, key, shape)

    def draw_sampling_noise(self, key: Any, shape: tuple[int, int]) -> Any:
        """Draws the first noise and that of every denoising step: a `SamplingNoise`."""
        return _diffusion().draw_sampling_noise(self, key, shape)


def with_unused_dims(model: "OctoConfig", action: LeafSpec) -> "OctoConfig":
    """Returns the config for sampling, whose head knows the dimensions that it did not learn.

    Args:
      model: Config of the model. A head without the field `unused_dims` stays as it is.
      action: Type of the actions of a batch.
    """
    unused = tuple(place for place, name in enumerate(action.dims) if name in action.unused)
    if not unused or not hasattr(model.head, "unused_dims"):
        return model
    head: Any = model.head
    return dataclasses.replace(model, head=dataclasses.replace(head, unused_dims=unused))


def _diffusion() -> Any:
    """Returns the head's module, imported late: it imports this one, and a config needs no JAX."""
    from train.octo.heads import diffusion  # noqa: PLC0415

    return diffusion


@dataclasses.dataclass(frozen=True)
class RegressionConfig:
    """The action head that predicts a chunk of actions at once."""

    error: Literal["l1", "mse"] = "l1"
    """Loss: absolute or squared error."""
    action_horizon: int = 4
    """Number of actions per chunk."""
    action_dim: int = 7
    """Size of an action."""
    pooling: Pooling = "map"
    """Pooling of a step's readout tokens to one embedding."""
    max_action: float = 5.0
    """Bound of the predicted actions: a prediction is `max_action * tanh(x / max_action)`."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(self, "action_horizon", "action_dim")
        yield from _check_max_action(self.max_action)

    @property
    def flat_dim(self) -> int:
        """Returns the number of values in a chunk."""
        return self.action_horizon * self.action_dim

    def make_head(self) -> Any:
        """Returns a `RegressionHead`."""
        from train.octo.heads.regression import RegressionHead  # noqa: PLC0415  (it imports this)

        return RegressionHead(self)

    def draw_training_noise(self, key: Any, shape: tuple[int, int]) -> None:
        """Draws nothing: the head has no random numbers."""

    def draw_sampling_noise(self, key: Any, shape: tuple[int, int]) -> None:
        """Draws nothing: the head has no random numbers."""


@dataclasses.dataclass(frozen=True)
class OctoConfig:
    """A whole Octo model."""

    embedding_dim: int
    """Size of every token in the transformer."""
    max_horizon: int
    """Longest window in steps; it is the number of rows of the position embeddings."""
    transformer: TransformerConfig
    """Size and depth of the transformer."""
    images: tuple[ImageTokenizerConfig, ...]
    """Cameras, in the order of their tokens."""
    language: LanguageConfig | None
    """Instruction and its encoder; None: the model reads no instruction."""
    head: Annotated[HeadConfig, Part(plain=(DiffusionConfig, RegressionConfig))]
    """Action head, of the library or your own."""
    lowdims: tuple[LowdimTokenizerConfig, ...] = ()
    """Vector inputs, whose tokens follow the cameras' tokens."""
    tokenizers: tuple[Annotated[TokenizerConfig, Part(__name__)], ...] = dataclasses.field(
        default=(), metadata=LATER
    )
    """Further inputs, such as a tokenizer of your own; their tokens follow those of the vectors."""
    num_readouts: int = 1
    """Number of readout tokens per step."""
    vggt: VGGTTokenizerConfig | None = None
    """Geometry tokens, after all other tokens; None: the model has no such input."""
    more_vggt: tuple[VGGTTokenizerConfig, ...] = ()
    """Further geometry tokens, of other cameras or of the same one in another way; each needs a
    unique `name`."""
    repeat_task_tokens: bool = True
    """Repeats the instruction's tokens in every step of the window."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the stems and the transformer. Parameters, norm statistics, softmax, the language
    encoder and the head are always float32."""
    remat: bool = False
    """Recomputes each transformer block in the backward pass instead of storing its activations:
    half the memory of a training step. It costs about a quarter more FLOPs and, measured on a CPU,
    no time."""
    attention: Literal["full", "by_head", "fused"] = "full"
    """`full`: all heads at once, as in the released models; `by_head`: one head after the other,
    with the attention map recomputed in the backward pass: two thirds of the memory of a training
    step; `fused`: cuDNN's flash attention on an NVIDIA GPU, which stores no attention map, and
    `full` elsewhere. It needs compute_dtype bfloat16."""
    legacy_attention: bool = False
    """Reproduces the bug in the models of December 2023, in which the first token of each group
    follows the attention rules of the group before it."""

    def __post_init__(self) -> None:
        """Raises an error if heads, names or keys of the parts do not fit together."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields a message for each problem with the fields."""
        yield from check_positive(self, "embedding_dim", "max_horizon", "num_readouts")
        heads = self.transformer.num_heads
        if self.embedding_dim % heads:
            yield Problem(
                "embedding_dim",
                f"a multiple of transformer.num_heads, which is {heads}",
                self.embedding_dim,
                "Change one of the two.",
            )
        if self.attention == "fused" and self.compute_dtype != "bfloat16":
            yield Problem(
                "attention",
                "full or by_head with compute_dtype float32",
                self.attention,
                "cuDNN has no such attention in float32: set compute_dtype to bfloat16.",
            )
        # The pooling's attention has heads of its own. A head of one's own may pool in other ways.
        if getattr(self.head, "pooling", None) == "map" and self.embedding_dim % MAP_HEADS:
            yield Problem(
                "embedding_dim",
                f"a multiple of {MAP_HEADS}, the heads of head.pooling 'map'",
                self.embedding_dim,
                "Change it, or use head.pooling 'mean'.",
            )
        if not self.observations:
            yield Problem(
                "images",
                "an input among images, lowdims, tokenizers and vggt",
                "none",
                "The model would see nothing: add one.",
            )
        if self.more_vggt and self.vggt is None:
            yield Problem(
                "more_vggt",
                "none where vggt is None",
                f"{len(self.more_vggt)}",
                "Put the first geometry tokens into vggt.",
            )
        yield from check_cameras(self.geometry, [image.name for image in self.images])
        yield from self._check_tokenizers()
        inputs = (*self.images, *self.lowdims)
        names = [part.name for part in (*inputs, *self.tokenizers, *self.geometry)]
        keys = [*(part.observation_key for part in inputs), *self.token_keys]
        for field, values in (("name", names), ("observation_key", keys)):
            if len(set(values)) < len(values):
                yield Problem(
                    "images, lowdims, tokenizers, vggt",
                    f"one {field} for each",
                    f"{values}",
                    f"Give each another {field}.",
                )

    def _check_tokenizers(self) -> Iterator[Problem]:
        """Checks what ours check in their own configs, and what is read in two ways."""
        for number, part in enumerate(self.tokenizers):
            if part.tokens_per_step < 1:
                yield Problem(
                    f"tokenizers.{number}.tokens_per_step",
                    "at least 1",
                    f"{part.tokens_per_step} for {part.name!r}",
                    "Count the tokens that the tokenizer makes of one step.",
                )
        types: dict[str, LeafSpec] = {}
        for part in (*self.observations, *self.aligned) if self.tokenizers else ():
            for key, leaf in part.inputs.items():
                if types.setdefault(key, leaf) != leaf:
                    yield Problem(
                        "tokenizers",
                        f"{types[key]} for {key}, as another input of the model reads it",
                        f"{leaf} for {part.name!r}",
                        "Declare one type for both: a tokenizer may resize an image itself.",
                    )

    @property
    def geometry(self) -> tuple[VGGTTokenizerConfig, ...]:
        """Returns all geometry tokens, including those used for alignment."""
        return (*((self.vggt,) if self.vggt else ()), *self.more_vggt)

    @property
    def aligned(self) -> tuple[VGGTTokenizerConfig, ...]:
        """Returns the geometry tokens that training aligns with."""
        return tuple(vggt for vggt in self.geometry if not vggt.is_input)

    @property
    def cameras(self) -> tuple[ImageTokenizerConfig, ...]:
        """Returns the cameras whose images are read: those not replaced by geometry tokens."""
        replaced = replaced_cameras(self.geometry)
        return tuple(image for image in self.images if image.name not in replaced)

    @property
    def grouped(self) -> tuple[TokenizerConfig, ...]:
        """Returns the inputs, less the geometry, each of which has a token group of its own."""
        return (*self.cameras, *self.lowdims, *self.tokenizers)

    @property
    def observations(self) -> tuple[TokenizerConfig, ...]:
        """Returns the inputs that the model reads to act, in the order of their tokens."""
        return (*self.grouped, *(vggt for vggt in self.geometry if vggt.is_input))

    @property
    def inputs(self) -> dict[str, LeafSpec]:
        """Returns the type of one step of each array that the model reads to act, in token order.

        They are listed by their key under `observation`.
        """
        return {key: leaf for part in self.observations for key, leaf in part.inputs.items()}

    @property
    def image_shapes(self) -> dict[str, tuple[int, int]]:
        """Returns height and width that each camera is resized to, by observation key."""
        images = {key: leaf.shape for key, leaf in self.inputs.items() if leaf.is_image}
        return {key: (height, width) for key, (height, width, _) in images.items()}

    @property
    def image_sizes(self) -> dict[str, int]:
        """Returns the side of the square that a camera is resized to, by observation key."""
        return {key: high for key, (high, wide) in self.image_shapes.items() if high == wide}

    @property
    def token_keys(self) -> tuple[str, ...]:
        """Returns the keys under `observation` of all geometry tokens, without duplicates."""
        # Two inputs may read one key in two ways.
        return tuple(dict.fromkeys(key for vggt in self.geometry for key in vggt.keys))

    @property
    def input_token_keys(self) -> tuple[str, ...]:
        """Returns the keys under `observation` of the geometry tokens needed to act."""
        read = (key for vggt in self.geometry if vggt.is_input for key in vggt.keys)
        return tuple(dict.fromkeys(read))

    @property
    def input_keys(self) -> tuple[str, ...]:
        """Returns the keys under `observation` that the model reads to act, in token order."""
        return tuple(self.inputs)

    @property
    def observation_keys(self) -> tuple[str, ...]:
        """Returns all keys under `observation` that training reads."""
        return tuple(dict.fromkeys((*self.inputs, *self.token_keys)))


def octo_small(
    *,
    head: HeadConfig = DiffusionConfig(),
    vggt: VGGTTokenizerConfig | None = None,
) -> OctoConfig:
    """Returns octo-small-1.5 (27.0 M parameters and 109.6 M of t5-base).

    With the default head and no geometry tokens, its parameters match the released checkpoint
    exactly.

    Args:
      head: The action head; another horizon or action size requires a new head.
      vggt: Geometry tokens in addition to the two cameras.
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
      head: The action head; another horizon or action size requires a new head.
      vggt: Geometry tokens in addition to the two cameras.
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
    """Returns the same model at a size for a laptop's CPU; it reads t5-base's token ids.

    Args:
      head: The action head.
      vggt: Geometry tokens in addition to the two cameras.
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
