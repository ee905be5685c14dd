"""What a loader needs to know, as frozen data."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import tyro

from pipeline.checks import check
from pipeline.schema import ACTION, Column

Normalization = Literal["normal", "bounds", "quantile"]
Conditioning = Literal["language_conditioned", "image_conditioned", "multimodal"]
Split = Literal["train", "validation", "all"]


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One dataset of the mixture, or a part of it."""

    path: str
    """Dataset directory, the one that holds dataset.json."""
    weight: float | None = None
    """Share of the samples, relative to the other weights; None for all of them: as many as each
    has selected steps."""
    tasks: tuple[str, ...] = ()
    """Globs over instructions; only steps with one of them are sampled. Empty: all."""
    episodes: tuple[int, int] | None = None
    """First episode that is sampled and the one after the last, counted from 0; None: all."""
    missing: tuple[str, ...] = ()
    """Observations that this dataset lacks: its samples have zeros, and False in the pad mask."""
    excluded: tuple[str, ...] = ()
    """Corrupt records that are not read, each FILE:RECORD as an error names it. Samples that would
    read one are replaced by others; the rest stay where they are."""
    commands: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Shell commands that make the directory; shown where it is missing."""

    def __post_init__(self) -> None:
        """Checks the range of episodes."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        if self.episodes is not None and not 0 <= self.episodes[0] < self.episodes[1]:
            yield (f"episodes must be the first and the one after the last, not {self.episodes}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """From dataset directories to batches."""

    datasets: tuple[DatasetConfig, ...]
    """The mixture."""
    vocabulary: str
    """SentencePiece model of T5: a path, or hf://owner/name/file."""
    observations: tuple[str, ...] = ("image_primary", "image_wrist", "proprio")
    """Features below observation/ that a batch holds; columns not named are not read."""
    balance: bool = False
    """Multiply the weights by each dataset's selected steps: weights of 1 make every step equally
    likely. Without weights that is so anyway."""
    split: Split = "train"
    """Episodes that are sampled: those held out for validation, all others, or all."""
    validation_fraction: float = 0.0
    """Share of the episodes that is held out. Which ones depends on their actions alone: an
    episode stays on its side when others are added or moved."""
    window_size: int = 2
    """Steps of history, the current one included."""
    current_only: tuple[str, ...] = ()
    """Observations that are read for the current step alone: their window has one step."""
    action_horizon: int = 4
    """Actions of a chunk."""
    octo_action_mask: bool = False
    """Count actions as real up to the step after the episode's end or the goal, as the original
    Octo does, instead of only recorded ones before the goal."""
    conditioning: Conditioning = "language_conditioned"
    """What tells the policy its task: the instruction; the images of a later step of the episode;
    or, for each sample, one of the two."""
    keep_image_prob: float = 0.5
    """Probability that a sample keeps its goal images and loses its instruction; of `multimodal`
    alone. A sample without an instruction always keeps them."""
    normalization: Normalization = "normal"
    """`normal`: zero mean, unit deviation; `bounds`: 1st to 99th percentile onto [-1, 1], clipped
    there; `quantile`: the same, not clipped."""
    normalized: tuple[str, ...] | None = None
    """Observations that are normalised; None: every float32 vector of the trajectories. Others
    enter the batch as stored."""
    statistics: Literal["dataset", "mixture"] = "dataset"
    """Normalise each sample by its own dataset's statistics, or all by those of the mixture,
    merged by weight."""
    max_text_length: int = 16
    """Tokens of an instruction, the end token included."""
    seed: int = 42
    """Of the order of the samples, of goals and of what conditions a sample."""
    num_threads: int = 2
    """Threads that make batches, one each at a time; 0: the training thread does."""
    prefetch_batches: int = 4
    """Batches made ahead, those under way included: what bounds the loader's memory."""
    ram_budget_gb: float | None = None
    """Most memory that the loader may take, in 10^9 bytes; a run that needs more does not start.
    None: no bound."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the features that are read: the action, then the observations."""
        return (ACTION, *(f"observation/{name}" for name in self.observations))

    def keys_of(self, part: DatasetConfig) -> tuple[str, ...]:
        """Of the features that are read of one of the datasets."""
        lacked = {f"observation/{name}" for name in part.missing}
        return tuple(key for key in self.keys if key not in lacked)

    @property
    def has_goals(self) -> bool:
        """Whether a batch holds goal images."""
        return self.conditioning != "language_conditioned"

    def normalizes(self, name: str) -> bool:
        """Whether an observation is normalised, if it is a float32 vector of the trajectories."""
        return self.normalized is None or name in self.normalized

    def window_of(self, name: str) -> int:
        """Steps of an observation's window."""
        return 1 if name in self.current_only else self.window_size

    def longest_window(self, column: Column) -> int:
        """Steps of the longest window of a column's features; 0 where none of them is read."""
        keys = {feature.key for feature in column.features}
        names = [name for name in self.observations if f"observation/{name}" in keys]
        return max(map(self.window_of, names), default=0)

    def __post_init__(self) -> None:
        """Checks ranges, and that weights are given for all datasets or none."""
        check(self)

    def problems(self) -> Iterator[str]:
        """Yields all that is wrong with the fields."""
        if not 0 <= self.seed < 2**63:
            yield f"seed must be between 0 and 2**63 - 1, not {self.seed}"
        for name in ("window_size", "action_horizon", "max_text_length"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, not {getattr(self, name)}"
        if not 0 <= self.num_threads <= self.prefetch_batches:
            yield (
                f"num_threads must be between 0 and prefetch_batches ({self.prefetch_batches}), "
                f"not {self.num_threads}"
            )
        if not 0 <= self.keep_image_prob <= 1:
            yield f"keep_image_prob must be in [0, 1], not {self.keep_image_prob}"
        if self.ram_budget_gb is not None and not 0 < self.ram_budget_gb < math.inf:
            yield f"ram_budget_gb must be above 0 and finite, not {self.ram_budget_gb}"
        yield from self._check_split()
        yield from self._check_mixture()
        yield from self._check_names()

    def _check_split(self) -> Iterator[str]:
        if not 0 <= self.validation_fraction < 1:
            yield (f"validation_fraction must be in [0, 1), not {self.validation_fraction}")
        if self.split == "validation" and self.validation_fraction == 0:
            yield "split is validation, but validation_fraction is 0: nothing is in it"

    def _check_mixture(self) -> Iterator[str]:
        weights = [dataset.weight for dataset in self.datasets]
        if not self.datasets:
            yield "datasets is empty: name at least one dataset directory"
        if None in weights and any(weight is not None for weight in weights):
            yield f"weights must be given for every dataset or for none, not {weights}"
        if any(weight is not None and not 0 < weight < math.inf for weight in weights):
            yield f"weights must be positive and finite, not {weights}"

    def _check_names(self) -> Iterator[str]:
        """Whatever is said of an observation is said of one that is read."""
        said = {"current_only": self.current_only, "normalized": self.normalized or ()} | {
            f"datasets.{number}.missing": dataset.missing
            for number, dataset in enumerate(self.datasets)
        }
        for field, names in said.items():
            unknown = sorted(set(names) - set(self.observations))
            if unknown:
                yield (
                    f"{field} names {', '.join(unknown)}, but observations are "
                    f"{', '.join(self.observations)}"
                )
        for name in self.observations if self.datasets else ():
            if all(name in dataset.missing for dataset in self.datasets):
                yield f"{name} is missing in every dataset: leave it out"
