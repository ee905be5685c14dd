"""Configs of the loader: the datasets of a mixture, and everything that shapes a batch."""

import dataclasses
import math
import os
from collections.abc import Collection, Iterator
from typing import Annotated, Literal

import tyro

from pipeline.added_fields import LATER
from pipeline.config_checks import Problem, check, check_positive
from pipeline.data.schema import ACTION, Column
from pipeline.loading.published_mixtures import (
    lacked_observations,
    published_mixture,
    usual_cameras,
)
from pipeline.loading.samples.dataset_config import DatasetConfig
from pipeline.loading.transforms.gripper_rules import GripperRule, check_one_each
from pipeline.loading.transforms.transform import Transform
from pipeline.parts.part import Part

Normalization = Literal["normal", "bounds", "quantile"]
Conditioning = Literal["language_conditioned", "image_conditioned", "multimodal"]
Split = Literal["train", "validation", "all"]
Convention = Literal["control_frequency_hz", "rotation"]
MAX_THREADS = 1024
"""More reads at the same time than any store answers at once."""
MAX_BATCHES = 1024
"""More batches made ahead than hide any pause of a store; the batches of real runs fill a host's
memory long before."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Config of the loader: datasets, observations and everything that shapes a batch."""

    datasets: tuple[DatasetConfig, ...]
    """The datasets of the mixture."""
    vocabulary: str
    """SentencePiece model of T5: a path, or hf://owner/name/file. Empty: none, and batches hold no
    token ids, for a model of one's own; Octo needs one."""
    observations: tuple[str, ...] = ("image_primary", "image_wrist", "proprio")
    """Features below observation/ that a batch holds; other columns are not read."""
    balance: bool = False
    """Multiply the weights by each dataset's selected steps, so that weights of 1 make every step
    equally likely. Without weights this has no effect."""
    split: Split = "train"
    """Episodes to sample: `validation`: those held out; `train`: the others; `all`: all."""
    validation_fraction: float = 0.0
    """Fraction of the episodes to hold out. The split depends only on an episode's actions, so an
    episode stays in its split when others are added or moved."""
    window_size: int = 2
    """Steps of history, the current one included."""
    current_only: tuple[str, ...] = ()
    """Observations that are read for the current step only: their window has one step, as with
    `windows` and 1."""
    action_horizon: int = 4
    """Number of actions in a chunk."""
    octo_action_mask: bool = False
    """Count actions as real up to the step after the episode's end or the goal, like the original
    Octo, instead of only recorded ones before the goal."""
    conditioning: Conditioning = "language_conditioned"
    """What specifies the task: the instruction; goal images from a later step of the episode; or,
    for each sample, one of the two."""
    keep_image_prob: float = 0.5
    """Probability that a sample keeps its goal images and loses its instruction; only for
    `multimodal`. A sample without an instruction always keeps them."""
    normalization: Normalization = "normal"
    """`normal`: zero mean, unit deviation; `bounds`: maps the 1st to 99th percentile to [-1, 1] and
    clips; `quantile`: the same without clipping."""
    normalized: tuple[str, ...] | None = None
    """Observations to normalise; None: every float32 vector of the trajectories, and those that
    transforms add. Others enter the batch unchanged."""
    statistics: Literal["dataset", "mixture"] = "dataset"
    """Normalise each sample by its own dataset's statistics, or all by those of the mixture,
    merged by weight."""
    max_text_length: int = 16
    """Maximum number of tokens of an instruction, including the end token."""
    seed: int = 42
    """Seed of the sample order, of goals and of the choice between text and goal images."""
    num_threads: int = 2
    """Threads that each read one sample at a time; 0: batches are made in the training thread. A
    slow store needs more: the dry run measures how many."""
    prefetch_batches: int = 4
    """Batches to prefetch, including those being made; this bounds the loader's memory."""
    ram_budget_gb: float | None = None
    """Maximum memory of the loader, in 10^9 bytes; a run that needs more does not start.
    None: no limit."""
    windows: tuple[tuple[str, int], ...] = dataclasses.field(default=(), metadata=LATER)
    """Observations with a shorter window, each with its number of steps, such as
    `(("image_wrist", 1), ("force", 3))`; by flags `image_wrist 1 force 3`. Each window ends at the
    current step; all others have `window_size` steps."""
    transforms: tuple[
        Annotated[
            Transform,
            Part(
                "pipeline.loading.transforms.action_transforms",
                "pipeline.loading.transforms.input_transforms",
                "pipeline.loading.transforms.rotation_transforms",
            ),
        ],
        ...,
    ] = dataclasses.field(default=(), metadata=LATER)
    """Transforms between reading and normalising, in order; a policy inverts those of actions."""
    gripper_rules: tyro.conf.Suppress[
        tuple[Annotated[GripperRule, Part("pipeline.loading.transforms.gripper_rules")], ...]
    ] = dataclasses.field(default=(), metadata=LATER)
    """How predicted openings become commands at rollout, by the name of a gripper. Without a rule,
    a binary one opens above 0.5, and a continuous one has any opening."""
    may_differ: tuple[Convention, ...] = dataclasses.field(default=(), metadata=LATER)
    """Conventions that may differ between the datasets. The model then learns the actions of each
    as they are stored: nothing is resampled or converted."""

    @classmethod
    def from_mixture(
        cls,
        name: str,
        folder: str | os.PathLike[str],
        vocabulary: str,
        *,
        observations: tuple[str, ...] | None = None,
        leave_out: Collection[str] = (),
    ) -> "DataConfig":
        """Returns the config of a published mixture, whose datasets were converted into one folder.

        Weights count for each step, as in Octo and OpenVLA, so `balance` is set. The datasets are
        looked for when they are opened. Change other fields with `dataclasses.replace`.

        Args:
          name: Such as `octo/oxe_magic_soup` or `openvla/oxe_magic_soup_plus`.
          folder: The directory that holds a dataset directory for each, by its name.
          vocabulary: SentencePiece model of T5, as in the field.
          observations: Features below `observation/` that a batch holds; None: `image_primary` and
            `image_wrist`, or those of them that a dataset has.
          leave_out: Names of datasets of the mixture that are not sampled.

        Raises:
          UserError: There is no such mixture, or it has no dataset that is left out.
        """
        weights = published_mixture(name, leave_out)
        lacked = {dataset: lacked_observations(dataset) for dataset in weights}
        if observations is None:
            nobody = set.intersection(*lacked.values()) if lacked else set()
            observations = tuple(camera for camera in usual_cameras() if camera not in nobody)
        directory = os.fspath(folder).rstrip("/")
        datasets = tuple(
            DatasetConfig(
                f"{directory}/{dataset}",
                weight,
                missing=tuple(o for o in observations if o in lacked[dataset]),
                commands=(f"octograin convert SRC/{dataset} {directory}/{dataset}",),
            )
            for dataset, weight in weights.items()
        )
        return cls(
            datasets,
            vocabulary,
            observations,
            balance=True,
            may_differ=("control_frequency_hz", "rotation"),
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the features that are read: the action, then the observations."""
        return (ACTION, *(f"observation/{name}" for name in self.observations))

    def keys_of(self, part: DatasetConfig) -> tuple[str, ...]:
        """Returns the keys of the features that are read from one of the datasets."""
        lacked = {f"observation/{name}" for name in part.missing}
        return tuple(key for key in self.keys if key not in lacked)

    @property
    def has_goals(self) -> bool:
        """Whether a batch holds goal images."""
        return self.conditioning != "language_conditioned"

    def normalizes(self, name: str) -> bool:
        """Whether an observation is normalised, provided it is a float32 vector of trajectories."""
        return self.normalized is None or name in self.normalized

    def window_of(self, name: str) -> int:
        """Returns the number of steps in an observation's window, 1 to `window_size`."""
        own = dict(self.windows) | dict.fromkeys(self.current_only, 1)
        return own.get(name, self.window_size)

    def longest_window(self, column: Column) -> int:
        """Returns the longest window of a column's features, in steps; 0 if none is read."""
        keys = {feature.key for feature in column.features}
        names = [name for name in self.observations if f"observation/{name}" in keys]
        return max(map(self.window_of, names), default=0)

    def __post_init__(self) -> None:
        """Checks ranges, and that weights are given for all datasets or none."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        if not 0 <= self.seed < 2**63:
            yield Problem("seed", "0 to 2**63 - 1", self.seed, "Give any integer in this range.")
        yield from check_positive(self, "window_size", "action_horizon", "max_text_length")
        if not 0 <= self.num_threads <= MAX_THREADS:
            yield Problem(
                "num_threads",
                f"0 to {MAX_THREADS}",
                self.num_threads,
                "Each reads one sample at a time: the dry run measures how many a store needs.",
            )
        if self.prefetch_batches < min(self.num_threads, 1):
            yield Problem(
                "prefetch_batches",
                "at least 1, because num_threads is not 0",
                self.prefetch_batches,
                "The threads read the samples of these batches: prefetch some, or set "
                "num_threads=0.",
            )
        if self.prefetch_batches > MAX_BATCHES:
            yield Problem(
                "prefetch_batches",
                f"at most {MAX_BATCHES}",
                self.prefetch_batches,
                "Each is held in memory: the dry run measures how many a store needs.",
            )
        if not 0 <= self.keep_image_prob <= 1:
            yield Problem(
                "keep_image_prob",
                "0 to 1",
                self.keep_image_prob,
                "It is a probability: 0 keeps the instruction wherever there is one.",
            )
        if self.ram_budget_gb is not None and not 0 < self.ram_budget_gb < math.inf:
            yield Problem(
                "ram_budget_gb",
                "a finite number above 0",
                self.ram_budget_gb,
                "Give it in 10^9 bytes, or None for no limit.",
            )
        yield from self._check_split()
        yield from self._check_mixture()
        yield from self._check_names()
        yield from self._check_windows()
        yield from check_one_each(self.gripper_rules)

    def _check_split(self) -> Iterator[Problem]:
        if not 0 <= self.validation_fraction < 1:
            yield Problem(
                "validation_fraction",
                "0 or more and less than 1",
                self.validation_fraction,
                "0.1 holds out about a tenth of the episodes.",
            )
        if self.split == "validation" and self.validation_fraction == 0:
            yield Problem(
                "validation_fraction",
                "more than 0 for the split validation",
                0,
                "Nothing is held out: give a fraction such as 0.1, or use split='all'.",
            )

    def _check_mixture(self) -> Iterator[Problem]:
        weights = [dataset.weight for dataset in self.datasets]
        if not self.datasets:
            yield Problem(
                "datasets", "at least one", "none", "Add DatasetConfig('path/to/a/dataset')."
            )
        if None in weights and any(weight is not None for weight in weights):
            yield Problem(
                "datasets",
                "a weight for every dataset or for none",
                weights,
                "Give each a weight, or leave all out for shares by the number of steps.",
            )
        if any(weight is not None and not 0 < weight < math.inf for weight in weights):
            yield Problem(
                "datasets",
                "weights that are finite and above 0",
                weights,
                "Leave out a dataset that is not to be sampled.",
            )

    def _check_names(self) -> Iterator[Problem]:
        """Checks that other fields only name observations that are read."""
        named = {
            "current_only": self.current_only,
            "windows": tuple(name for name, _ in self.windows),
            "normalized": self.normalized or (),
        } | {
            f"datasets.{number}.missing": dataset.missing
            for number, dataset in enumerate(self.datasets)
        }
        for field, names in named.items():
            # Transforms may add observations.
            is_open = field == "normalized" and bool(self.transforms)
            unknown = [] if is_open else sorted(set(names) - set(self.observations))
            if unknown:
                yield Problem(
                    field,
                    f"some of the observations {', '.join(self.observations)}",
                    ", ".join(unknown),
                    "Add it to observations, or remove it here.",
                )
        for name in self.observations if self.datasets else ():
            if all(name in dataset.missing for dataset in self.datasets):
                yield Problem(
                    "observations",
                    "observations that a dataset has",
                    f"{name}, which is missing in every dataset",
                    "Leave it out.",
                )

    def _check_windows(self) -> Iterator[Problem]:
        for name, steps in self.windows:
            if not 1 <= steps <= self.window_size:
                yield Problem(
                    "windows",
                    f"1 to {self.window_size} steps, the window_size, of {name}",
                    steps,
                    "Take a longer window_size, or fewer steps.",
                )
        names = [*(name for name, _ in self.windows), *self.current_only]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield Problem(
                "windows",
                "one window per observation, in windows or in current_only",
                f"{', '.join(twice)} more than once",
                "Keep one of them.",
            )
