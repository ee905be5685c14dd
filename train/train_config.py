"""The configuration of a run: its data, its model and its training."""

import dataclasses
import fnmatch
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pipeline.added_fields import LATER
from pipeline.config_checks import Problem, check, check_positive
from pipeline.files import from_json_text
from pipeline.loading.data_config import DataConfig
from pipeline.parts.part import Part
from train.octo.octo_config import OctoConfig
from train.octo.protocols import WeightSource

FinetuningMode = Literal["full", "head_only", "head_mlp_only"]
"""`full`: trains everything except what `optimizer.frozen` matches; `head_only`: trains only the
action head; `head_mlp_only`: in a head with attention pooling, trains only the layers after the
attention."""

_NO_TEXT = re.compile(r"[\ud800-\udfff]")
"""What Python reads for bytes of a file name that are not UTF-8."""
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
    """AdamW with a warm-up and a decay of the learning rate."""

    learning_rate: float = 3e-4
    """Peak learning rate, reached after the warm-up."""
    schedule: Literal["cosine", "rsqrt", "constant"] = "cosine"
    """Decay after the warm-up. `cosine`: down to 0 at decay_steps; `rsqrt`: with the inverse square
    root of (steps since the warm-up + rsqrt_timescale); `constant`: none."""
    warmup_steps: int = 2000
    """Training steps over which the rate grows linearly from 0."""
    decay_steps: int | None = None
    """Training step at which the cosine reaches 0; None: num_steps. Only for `cosine`."""
    rsqrt_timescale: int = 10000
    """Training steps; the rate halves after three times as many. Only for `rsqrt`."""
    weight_decay: float = 0.01
    """Weight decay of kernels; biases, norms and embeddings have none."""
    clip_norm: float | None = 1.0
    """Upper bound of the global norm of the batch's gradient; None: no clipping."""
    frozen: tuple[str, ...] = ("*hf_model*",)
    """Globs over parameter paths that are not trained; they take no optimizer memory."""
    accumulation_steps: int = 1
    """Number of micro-batches per batch (gradient accumulation): more need less memory, for the
    same result."""
    ema_decay: float | None = None
    """Decay of the exponential moving average of the parameters, such as 0.999, with Adam's bias
    correction; policies then use the average. None: no average."""
    max_skipped: int = 3
    """How many updates in a row may be skipped because the loss or gradient is not finite; one more
    ends the run."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                usual = "3e-4" if name == "learning_rate" else "1.0"
                yield Problem(name, "a finite number above 0", value, f"{usual} is usual.")
        for name, least in (
            ("accumulation_steps", 1),
            ("rsqrt_timescale", 1),
            ("warmup_steps", 0),
            ("max_skipped", 0),
            ("weight_decay", 0),
        ):
            value = getattr(self, name)
            if not least <= value < math.inf:
                remedy = f"The smallest value is {least}."
                yield Problem(name, f"at least {least}, and finite", value, remedy)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            yield Problem(
                "ema_decay",
                "more than 0 and less than 1",
                self.ema_decay,
                "0.999 is usual; None: no average.",
            )
        if self.decay_steps is not None and self.schedule != "cosine":
            yield Problem(
                "decay_steps",
                f"None for the schedule {self.schedule!r}, which does not end",
                self.decay_steps,
                "Leave it out, or use the schedule 'cosine'.",
            )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of the training images; a range of one value turns an operation off."""

    enabled: bool = True
    """Whether images are augmented."""
    cropped: tuple[str, ...] | None = None
    """Cameras whose images are cropped. None: image_primary; or no camera if the model reads
    precomputed tokens, which were computed from the whole image. The view of a wrist camera moves
    by itself."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Smallest and largest fraction of the image's area."""
    crop_ratio: tuple[float, float] = (0.9, 1.1)
    """Smallest and largest width over height."""
    brightness: float = 0.1
    """Largest shift of all colours, whose range is [0, 1]."""
    contrast: tuple[float, float] = (0.9, 1.1)
    """Smallest and largest contrast factor."""
    saturation: tuple[float, float] = (0.9, 1.1)
    """Smallest and largest saturation factor."""
    hue: float = 0.05
    """Largest rotation of the hue, as a fraction of the full circle."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        for name in ("crop_scale", "crop_ratio", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                yield Problem(
                    name,
                    "a smallest and a largest value"
                    + (", at most 1" if name == "crop_scale" else ""),
                    f"{low} {high}",
                    "Both are above 0; two equal ones of 1 turn the operation off.",
                )
        if not (0 <= self.brightness <= 1 and 0 <= self.hue <= 1):
            yield Problem(
                "brightness, hue",
                "0 to 1",
                f"{self.brightness}, {self.hue}",
                "0 turns the operation off.",
            )


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Validation on the episodes that data.validation_fraction holds out."""

    interval: int = 5000
    """Training steps between validations; the last step is validated too."""
    num_batches: int = 8
    """Number of held-out batches, the same at every validation."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        yield from check_positive(self, "interval", "num_batches")


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Logs metrics to Weights & Biases (extra `wandb`). A resumed run continues its W&B run."""

    project: str | None = None
    """Project name; None: nothing is sent."""
    entity: str | None = None
    """Team or user; None: your account's default."""
    group: str | None = None
    """Group that the run belongs to."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes into the run directory; `wandb sync` sends it later."""

    def __post_init__(self) -> None:
        """Raises an error if a field has a value of another type."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields nothing: any project and mode fit together."""
        yield from ()


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a whole run."""

    data: DataConfig
    """Data to train on."""
    model: OctoConfig
    """Model to train."""
    save_dir: str
    """Run directory."""
    name: str | None = None
    """Name of the run in reports and Weights & Biases; None: the last part of save_dir."""
    batch_size: int = 256
    """Samples per training step, over all devices."""
    augment: AugmentConfig = AugmentConfig()
    """Image augmentation."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer settings."""
    finetuning_mode: FinetuningMode = "full"
    """What is trained: everything that is not frozen, the head, or the head's last layers."""
    fsdp_devices: int = 1
    """Number of devices that the parameters and the optimizer state are sharded across; it must
    divide the device count. 1: every device holds a copy. The batch is always sharded across all
    devices."""
    pretrained_path: str | None = None
    """Checkpoint to start from: Octo's or that of another run, each in a directory or at
    hf://owner/name. None: random weights."""
    pretrained_step: int | None = None
    """Training step of that checkpoint; None: the last one. Required for Octo's on the hub."""
    pretrained: (
        Annotated[
            WeightSource,
            Part("train.checkpoints.initial_weights", "train.octo.released.octo_checkpoint"),
        ]
        | None
    ) = dataclasses.field(default=None, metadata=LATER)
    """Source of the weights to start from in place of pretrained_path, such as one of your own."""
    pretrained_differs: tuple[str, ...] = ()
    """Globs over parameter paths that may be missing, unused or of another shape; any other
    difference between model and checkpoint is an error."""
    pretrained_resized: tuple[str, ...] = ()
    """Globs over position embeddings that are resized to the model's shape: fewer steps, or another
    grid of tokens."""
    num_steps: int = 50000
    """Training steps of the whole run, including those before a resume."""
    save_interval: int = 5000
    """Training steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = 3
    """How many of the latest checkpoints to keep; older ones are deleted."""
    keep_every: int | None = None
    """Training steps between checkpoints that are kept forever; None: none are."""
    validation: ValidationConfig = ValidationConfig()
    """Validation settings."""
    wandb: WandbConfig = WandbConfig()
    """Logging to Weights & Biases."""
    compilation_cache: str | None = "~/.cache/octograin"
    """Cache of compiled programs, which later runs of the same shapes reuse; None: no cache."""
    seed: int = 0
    """Seed of the initial parameters, the augmentation and the diffusion noise."""

    @property
    def title(self) -> str:
        """Returns the run's name."""
        return self.name or pathlib.PurePath(self.save_dir).name

    @property
    def weights_source(self) -> str | None:
        """Returns where the weights to start from are; None: nowhere, as they are random."""
        return self.pretrained_path if self.pretrained is None else type(self.pretrained).__name__

    @property
    def frozen(self) -> tuple[str, ...]:
        """Returns globs over the paths of parameters that are not trained."""
        return (*self.optimizer.frozen, *_FROZEN_BY_MODE[self.finetuning_mode])

    @property
    def cropped(self) -> tuple[str, ...]:
        """Returns the cameras whose images are cropped at random."""
        if not self.augment.enabled:
            return ()
        if self.augment.cropped is not None:
            return self.augment.cropped
        # A crop would not move the tokens, which were computed from the whole image.
        wanted = () if self.model.vggt is not None else ("image_primary",)
        return tuple(name for name in wanted if name in self.data.observations)

    def is_saved_after(self, step: int) -> bool:
        """Returns whether a checkpoint is due once this many training steps are taken."""
        # The last step is saved even where the interval does not divide it.
        return step == self.num_steps or step % self.save_interval == 0

    def is_validated_after(self, step: int) -> bool:
        """Returns whether a validation is due then, besides the one at the end of the run."""
        due = step < self.num_steps and step % self.validation.interval == 0
        return due and self.data.validation_fraction > 0

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range, or data and model do not fit together."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        counts = ("batch_size", "num_steps", "save_interval", "keep_checkpoints", "fsdp_devices")
        # None is no number to check.
        yield from check_positive(self, *counts, *(["keep_every"] * (self.keep_every is not None)))
        # Of all that fit an int64, as runs may have begun with any of them.
        if not -(2**63) <= self.seed < 2**63:
            remedy = "Give any integer in this range."
            yield Problem("seed", "-2**63 to 2**63 - 1", self.seed, remedy)
        # A checkpoint that is never saved cannot be kept.
        if self.keep_every is not None and self.keep_every % self.save_interval:
            yield Problem(
                "keep_every",
                f"a multiple of save_interval, which is {self.save_interval}",
                self.keep_every,
                "Otherwise no checkpoint would be kept.",
            )
        if self.batch_size % self.optimizer.accumulation_steps:
            yield Problem(
                "batch_size",
                "a multiple of optimizer.accumulation_steps, which is "
                f"{self.optimizer.accumulation_steps}",
                self.batch_size,
                "Change one of the two.",
            )
        if self.pretrained is not None and self.pretrained_path is not None:
            yield Problem(
                "pretrained",
                f"None where pretrained_path is {self.pretrained_path}",
                self.weights_source,
                "Keep one of the two.",
            )
        yield from self._check_paths()
        yield from self._check_schedule()
        yield from self._check_mode()
        if self.data.window_size > self.model.max_horizon:
            yield Problem(
                "data.window_size",
                f"at most {self.model.max_horizon}, the model.max_horizon",
                self.data.window_size,
                "Shorten the window; a model from scratch may have a larger max_horizon.",
            )
        if self.data.action_horizon != self.model.head.action_horizon:
            yield Problem(
                "data.action_horizon",
                f"{self.model.head.action_horizon}, the model.head.action_horizon",
                self.data.action_horizon,
                "Give both the same number.",
            )
        yield from self._check_language()
        yield from self._check_inputs()
        yield from self._check_crops()

    def _check_paths(self) -> Iterator[Problem]:
        paths = {
            "name": self.name,
            "save_dir": self.save_dir,
            "pretrained_path": self.pretrained_path,
            "compilation_cache": self.compilation_cache,
            "data.vocabulary": self.data.vocabulary,
        }
        paths |= {f"data.datasets.{i}.path": part.path for i, part in enumerate(self.data.datasets)}
        for field, path in paths.items():
            if isinstance(path, str) and _NO_TEXT.search(path):
                remedy = "Rename it, or name another."
                yield Problem(field, "a name in UTF-8, which config.json can hold", path, remedy)

    def _check_mode(self) -> Iterator[Problem]:
        pooling = getattr(self.model.head, "pooling", None)
        if self.finetuning_mode == "head_mlp_only" and pooling != "map":
            yield Problem(
                "finetuning_mode",
                f"full or head_only, as model.head.pooling is {pooling!r}",
                "head_mlp_only, which keeps an attention pooling",
                "Use head_only.",
            )

    def _check_schedule(self) -> Iterator[Problem]:
        if self.optimizer.schedule != "cosine":
            return
        decay_steps = self.optimizer.decay_steps or self.num_steps
        if self.num_steps > decay_steps:
            yield Problem(
                "num_steps",
                f"at most {decay_steps}, the optimizer.decay_steps",
                self.num_steps,
                "After that step the learning rate is 0: raise decay_steps, or leave it out.",
            )
        if self.optimizer.decay_steps and self.optimizer.warmup_steps >= decay_steps:
            yield Problem(
                "optimizer.warmup_steps",
                f"less than optimizer.decay_steps, which is {decay_steps}",
                self.optimizer.warmup_steps,
                "There the learning rate is 0 again: shorten the warmup.",
            )

    def _check_language(self) -> Iterator[Problem]:
        language = self.model.language
        encoder = "octo_transformer/task_tokenizers_language/hf_model/encoder"
        # Any path below the encoder stands for all of it here.
        frozen = [glob for glob in self.frozen if fnmatch.fnmatchcase(encoder, glob)]
        if language is not None and language.finetune and frozen:
            yield Problem(
                "model.language.finetune",
                f"False, as {', '.join(frozen)} (optimizer.frozen or finetuning_mode) freezes the "
                "encoder",
                "True",
                "Set it to False, or freeze less.",
            )
        # Without a gradient AdamW still applies weight decay.
        if language is not None and not language.finetune and not frozen:
            yield Problem(
                "optimizer.frozen",
                "a glob such as *hf_model*, as model.language.finetune is False",
                ", ".join(self.optimizer.frozen) or "none",
                "Add it: weight decay alone would shrink the encoder.",
            )
        if language is None:
            if self.data.conditioning != "image_conditioned":
                yield Problem(
                    "data.conditioning",
                    "image_conditioned, as model.language is None",
                    self.data.conditioning,
                    "Use goal images, or give the model a language encoder.",
                )
        elif self.data.max_text_length != language.max_length:
            yield Problem(
                "data.max_text_length",
                f"{language.max_length}, the model.language.max_length",
                self.data.max_text_length,
                "Give both the same number.",
            )

    def _check_inputs(self) -> Iterator[Problem]:
        inputs = set(self.model.observation_keys)
        missing = sorted(inputs - set(self.data.observations))
        # Transforms may add observations: then they are looked for in the batch.
        if missing and not self.data.transforms:
            yield Problem(
                "data.observations",
                f"{', '.join(missing)}, which the model reads",
                f"only {', '.join(self.data.observations)}",
                "Add it there, or remove its tokenizer from the model.",
            )

    def _check_crops(self) -> Iterator[Problem]:
        unknown = sorted(set(self.cropped) - set(self.data.observations))
        if unknown:
            yield Problem(
                "augment.cropped",
                f"some of data.observations: {', '.join(self.data.observations)}",
                ", ".join(unknown),
                "Remove it there, or read it.",
            )
        if self.cropped and self.model.vggt is not None:
            yield Problem(
                "augment.cropped",
                f"no camera, as the model reads precomputed {', '.join(self.model.token_keys)}",
                ", ".join(self.cropped),
                "Tokens of the whole image would not follow the crop: leave augment.cropped empty, "
                "or read no tokens.",
            )


def parse_config(
    text: str | bytes, *, where: str, remedy: str, directory: pathlib.Path | None = None
) -> TrainConfig:
    """Parses the config of a run, written as JSON by this or an earlier release.

    Args:
      text: The JSON text.
      where: Name of the file, for the error message.
      remedy: What to do, for the error message.
      directory: The run that the text is of; nothing in it is executed. Users' parts may be
        imported from elsewhere; None: they are not imported.

    Raises:
      DataError: The text is not such a config, or a class that it records is not found.
    """
    text = _updated(text)
    return from_json_text(TrainConfig, text, where=where, remedy=remedy, directory=directory)


def _updated(text: str | bytes) -> str | bytes:
    """Adds the fields that earlier releases did not write, with the values they used.

    Earlier releases normalised only `proprio`, and had no field `data.normalized`.
    """
    try:
        values = json.loads(text)
        data = values["data"]
        if "normalized" in data:
            return text
        data["normalized"] = [name for name in data["observations"] if name == "proprio"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return text  # not a config of any release: the parser reports what is wrong with it
    return json.dumps(values)
