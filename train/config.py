"""The configuration of a run: what is read, what is trained, and how."""

import dataclasses
import fnmatch
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Literal

from pipeline.checks import check
from pipeline.config import DataConfig
from pipeline.files import from_json_text
from train.octo.config import OctoConfig

FinetuningMode = Literal["full", "head_only", "head_mlp_only"]
"""`full`: everything but what `optimizer.frozen` names is trained; `head_only`: only the action
head; `head_mlp_only`: of a head with attention pooling, only what follows the attention."""

_FROZEN_BY_MODE: Mapping[FinetuningMode, tuple[str, ...]] = {
    "full": (),
    "head_only": ("octo_transformer/*",),
    "head_mlp_only": (
        "octo_transformer/*",
        "heads_*/map_head/probe",
        "heads_*/map_head/MultiHeadDotProductAttention_0/*",
    ),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up and a decay."""

    learning_rate: float = 3e-4
    """At the peak, after the warm-up."""
    schedule: Literal["cosine", "rsqrt", "constant"] = "cosine"
    """After the warm-up. `cosine`: down to 0 at decay_steps; `rsqrt`: by the inverse square root of
    (steps since + rsqrt_timescale); `constant`: stays."""
    warmup_steps: int = 2000
    """Steps of linear growth from 0."""
    decay_steps: int | None = None
    """Step at which the cosine reaches 0; None: num_steps. Of `cosine` alone."""
    rsqrt_timescale: int = 10000
    """Steps; the rate halves in three times as many. Of `rsqrt` alone."""
    weight_decay: float = 0.01
    """Of kernels only; not of biases, norms and embeddings."""
    clip_norm: float | None = 1.0
    """Bound of the gradient's global norm, of the whole batch; None: no bound."""
    frozen: tuple[str, ...] = ("*hf_model*",)
    """Globs over parameter paths; those are never changed and take no optimizer memory."""
    accumulation_steps: int = 1
    """Parts that a batch is computed in, one after the other, before the one update: less memory
    for the same result."""
    ema_decay: float | None = None
    """Of the exponential moving average of the parameters, such as 0.999, which policies then use;
    None: there is none."""
    max_skipped: int = 3
    """Updates in a row that may be skipped for a loss or gradient that is not finite; the next one
    ends the run."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                yield f"optimizer.{name} must be above 0 and finite, not {value}"
        for name, least in (
            ("accumulation_steps", 1),
            ("rsqrt_timescale", 1),
            ("warmup_steps", 0),
            ("max_skipped", 0),
            ("weight_decay", 0),
        ):
            if getattr(self, name) < least:
                yield (f"optimizer.{name} must be at least {least}, not {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            yield f"optimizer.ema_decay must be in (0, 1), not {self.ema_decay}"
        if self.decay_steps is not None and self.schedule != "cosine":
            yield (
                f"optimizer.decay_steps is {self.decay_steps}, but the schedule {self.schedule!r} "
                "does not end: leave it out, or take 'cosine'"
            )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the camera images in training; a range of one value changes nothing."""

    enabled: bool = True
    """Whether they are changed at all."""
    cropped: tuple[str, ...] | None = None
    """Cameras that are cropped. None: image_primary or, where the model reads precomputed tokens,
    which show the whole picture, none. A wrist camera's view moves by itself."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Least and largest share of the image's area."""
    crop_ratio: tuple[float, float] = (0.9, 1.1)
    """Least and largest width over height."""
    brightness: float = 0.1
    """Largest shift of all colours, whose range is 1."""
    contrast: tuple[float, float] = (0.9, 1.1)
    """Least and largest factor."""
    saturation: tuple[float, float] = (0.9, 1.1)
    """Least and largest factor."""
    hue: float = 0.05
    """Largest turn of the hue, of a full circle of 1."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        for name in ("crop_scale", "crop_ratio", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                yield f"{name} must be a least and a largest value, not {low} {high}"
        if not (0 <= self.brightness <= 1 and 0 <= self.hue <= 1):
            yield f"brightness {self.brightness} and hue {self.hue} must be in [0, 1]"


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Measuring on the episodes that data.validation_fraction holds out."""

    interval: int = 5000
    """Steps between validations; the last step is validated too."""
    num_batches: int = 8
    """Batches of held-out samples, the same every time."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        for name in ("interval", "num_batches"):
            if getattr(self, name) < 1:
                yield f"validation.{name} must be at least 1, not {getattr(self, name)}"


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Logs metrics to Weights & Biases (extra `wandb`). A resumed run continues its W&B run."""

    project: str | None = None
    """Project; None: nothing is sent."""
    entity: str | None = None
    """Team or user; None: the account's own."""
    group: str | None = None
    """Group of runs."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes into the run directory; `wandb sync` sends it later."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole run."""

    data: DataConfig
    """What is read."""
    model: OctoConfig
    """What is trained."""
    save_dir: str
    """The run's directory."""
    name: str | None = None
    """Of the run, in reports and Weights & Biases; None: the last part of save_dir."""
    batch_size: int = 256
    """Samples a step, over all devices."""
    augment: AugmentConfig = AugmentConfig()
    """How the images are changed."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    finetuning_mode: FinetuningMode = "full"
    """What is trained: all that is not frozen, the head, or the head's last layers."""
    fsdp_devices: int = 1
    """Devices that the parameters and the optimizer's state are cut over; must divide the number of
    devices. 1: each device holds all of them. The batch is always cut over all devices."""
    pretrained_path: str | None = None
    """Checkpoint to start from: Octo's in a directory or at hf://owner/name, or the directory of
    another run; None: random weights."""
    pretrained_step: int | None = None
    """Its training step; None: the last one in the directory. On the hub it must be named."""
    pretrained_differs: tuple[str, ...] = ()
    """Globs over parameter paths that may be new, unused or of another shape; any other
    difference between model and checkpoint is an error."""
    pretrained_resized: tuple[str, ...] = ()
    """Globs over position embeddings that are fitted to the model's shape: fewer steps, or another
    grid of tokens."""
    num_steps: int = 50000
    """Steps of the whole run, those before a resume included."""
    save_interval: int = 5000
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = 3
    """Last checkpoints that are kept; older ones are deleted."""
    keep_every: int | None = None
    """Steps between checkpoints that are kept for good; None: none are."""
    validation: ValidationConfig = ValidationConfig()
    """How it is measured."""
    wandb: WandbConfig = WandbConfig()
    """Where metrics go besides the run's directory."""
    compilation_cache: str | None = "~/.cache/octograin"
    """Directory of compiled programs, which a later run of the same shapes takes; None: none."""
    seed: int = 0
    """Of fresh parameters, of augmentation and of the diffusion noise."""

    @property
    def title(self) -> str:
        """The run's name."""
        return self.name or pathlib.PurePath(self.save_dir).name

    @property
    def frozen(self) -> tuple[str, ...]:
        """Globs over the paths of parameters that are not trained."""
        return (*self.optimizer.frozen, *_FROZEN_BY_MODE[self.finetuning_mode])

    @property
    def cropped(self) -> tuple[str, ...]:
        """Cameras that are cropped at random."""
        if not self.augment.enabled:
            return ()
        if self.augment.cropped is not None:
            return self.augment.cropped
        wanted = () if self.model.vggt is not None else ("image_primary",)
        return tuple(name for name in wanted if name in self.data.observations)

    def __post_init__(self) -> None:
        """Checks counts, and that data and model speak of the same window, chunk and inputs."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        counts = ("batch_size", "num_steps", "save_interval", "keep_checkpoints", "fsdp_devices")
        for name in (*counts, *(["keep_every"] if self.keep_every is not None else [])):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, not {getattr(self, name)}"
        if self.keep_every is not None and self.keep_every % self.save_interval:
            yield (
                f"keep_every {self.keep_every} is no multiple of save_interval "
                f"{self.save_interval}: no checkpoint would be kept"
            )
        if self.batch_size % self.optimizer.accumulation_steps:
            yield (
                f"batch_size {self.batch_size} is no multiple of optimizer.accumulation_steps "
                f"{self.optimizer.accumulation_steps}"
            )
        yield from self._check_schedule()
        yield from self._check_mode()
        if self.data.window_size > self.model.max_horizon:
            yield (
                f"data.window_size {self.data.window_size} is beyond model.max_horizon "
                f"{self.model.max_horizon}"
            )
        if self.data.action_horizon != self.model.head.action_horizon:
            yield (
                f"data.action_horizon {self.data.action_horizon} is not model.head.action_horizon "
                f"{self.model.head.action_horizon}"
            )
        yield from self._check_language()
        yield from self._check_inputs()
        yield from self._check_crops()

    def _check_mode(self) -> Iterator[str]:
        if self.finetuning_mode == "head_mlp_only" and self.model.head.pooling != "map":
            yield (
                "finetuning_mode is head_mlp_only, but the head has no attention pooling "
                f"(model.head.pooling is {self.model.head.pooling!r}): head_only is the same for it"
            )

    def _check_schedule(self) -> Iterator[str]:
        if self.optimizer.schedule != "cosine":
            return
        decay_steps = self.optimizer.decay_steps or self.num_steps
        if self.num_steps > decay_steps:
            yield (
                f"num_steps {self.num_steps} is beyond optimizer.decay_steps {decay_steps}: "
                "from there on the learning rate is 0"
            )
        if self.optimizer.decay_steps and self.optimizer.warmup_steps >= decay_steps:
            yield (
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be less than "
                f"optimizer.decay_steps {decay_steps}, where the learning rate has decayed to 0"
            )

    def _check_language(self) -> Iterator[str]:
        language = self.model.language
        encoder = "octo_transformer/task_tokenizers_language/hf_model/encoder"
        frozen = [glob for glob in self.frozen if fnmatch.fnmatchcase(encoder, glob)]
        if language is not None and language.finetune and frozen:
            yield (
                f"model.language.finetune is True, but {', '.join(frozen)} (optimizer.frozen or "
                "finetuning_mode) freezes the encoder"
            )
        if language is not None and not language.finetune and not frozen:
            yield (
                "model.language.finetune is False, but optimizer.frozen does not name the encoder, "
                "such as by *hf_model*: weight decay alone would shrink it"
            )
        if language is None:
            if self.data.conditioning != "image_conditioned":
                yield (
                    "model.language is None, so data.conditioning must be image_conditioned, not "
                    f"{self.data.conditioning}"
                )
        elif self.data.max_text_length != language.max_length:
            yield (
                f"data.max_text_length {self.data.max_text_length} is not "
                f"model.language.max_length {language.max_length}"
            )

    def _check_inputs(self) -> Iterator[str]:
        inputs = set(self.model.observation_keys)
        missing = sorted(inputs - set(self.data.observations))
        if missing:
            yield (
                f"the model reads {', '.join(missing)}, data.observations has only "
                f"{', '.join(self.data.observations)}"
            )
        cut = sorted((inputs - set(self.model.token_keys)) & set(self.data.current_only))
        if cut and self.data.window_size > 1:
            yield (
                f"data.current_only names {', '.join(cut)}, but the model reads them in every "
                f"step of the window of {self.data.window_size}"
            )

    def _check_crops(self) -> Iterator[str]:
        unknown = sorted(set(self.cropped) - set(self.data.observations))
        if unknown:
            yield (
                f"augment.cropped names {', '.join(unknown)}, data.observations has only "
                f"{', '.join(self.data.observations)}"
            )
        if self.cropped and self.model.vggt is not None:
            yield (
                f"augment.cropped names {', '.join(self.cropped)}, but the model reads precomputed "
                f"{', '.join(self.model.token_keys)}: they were made of the whole picture and "
                "would not follow the crop. Leave augment.cropped empty, or read no tokens"
            )


def parse_config(text: str | bytes, *, where: str, remedy: str) -> TrainConfig:
    """Returns the config of a run of this or an earlier release, from JSON.

    Args:
      text: As it was written.
      where: The file, for the error.
      remedy: For the error.

    Raises:
      DataError: It is no such config.
    """
    return from_json_text(TrainConfig, _updated(text), where=where, remedy=remedy)


def _updated(text: str | bytes) -> str | bytes:
    """The text with the fields that earlier releases did not write, as those releases acted.

    They normalised `proprio` alone, and there was no field `data.normalized`.
    """
    try:
        values = json.loads(text)
        data = values["data"]
        if "normalized" in data:
            return text
        data["normalized"] = [name for name in data["observations"] if name == "proprio"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return text  # no config of any release: the reader says what is wrong with it
    return json.dumps(values)
