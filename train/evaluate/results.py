"""Stores the results of an evaluation in a file that is updated after every trial."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence

from pipeline.added_fields import LATER
from pipeline.checksums import read_json, write_json
from pipeline.errors import UserError
from pipeline.files import (
    dump_json,
    from_json_text,
    locked,
    to_json_values,
    writing,
)
from pipeline.terminal import escaped
from train.checkpoints.checkpoint_checksums import digest_arrays, digest_json
from train.checkpoints.checkpoint_store import Checkpoint
from train.evaluate.delayed_execution import DelayStrategy
from train.evaluate.libero.scene.perturbations import NONE, Perturbations
from train.evaluate.libero.suites import Trial

Z_95 = 1.959963984540054
"""Number of standard deviations that hold 95 % of a normal distribution."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """A count of successes in independent trials."""

    num_successes: int
    """Number of trials that reached the goal."""
    num_trials: int
    """Number of all trials."""

    @property
    def value(self) -> float:
        """Returns the fraction of successes; NaN without trials."""
        return self.num_successes / self.num_trials if self.num_trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Returns Wilson's 95 % interval for the rate; (0, 1) without trials.

        48 of 50     0.8654 to 0.9890
        50 of 50     0.9287 to 1

        Source: Wilson 1927; unlike the normal interval, it holds near 0 and 1 and for few trials.
        """
        n, z = self.num_trials, Z_95
        if n == 0:
            return 0.0, 1.0
        # Shrinks the rate towards one half, by z * z / n.
        center = (self.num_successes + z * z / 2) / (n + z * z)
        half = z / (n + z * z) * math.sqrt(n * self.value * (1 - self.value) + z * z / 4)
        # Rounding may leave [0, 1] by a last digit.
        return max(center - half, 0.0), min(center + half, 1.0)


@dataclasses.dataclass(frozen=True)
class Paired:
    """The outcomes of two policies on the same trials."""

    both: int = 0
    """Number of trials at which both succeeded."""
    only_first: int = 0
    """Number of trials at which only the first succeeded."""
    only_second: int = 0
    """Number of trials at which only the second succeeded."""
    neither: int = 0
    """Number of trials at which neither succeeded."""

    @classmethod
    def of(cls, outcomes: list[tuple[bool, bool]]) -> "Paired":
        """Counts pairs of outcomes of the first and the second policy."""
        return cls(
            both=outcomes.count((True, True)),
            only_first=outcomes.count((True, False)),
            only_second=outcomes.count((False, True)),
            neither=outcomes.count((False, False)),
        )

    @property
    def num_trials(self) -> int:
        """Returns the number of pairs."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p_value(self) -> float:
        """Returns the p-value of McNemar's exact two-sided test; 1 if the policies never differ.

        If the policies are equally good, a trial at which only one succeeds is equally likely to be
        either's: this is the probability of a split at least as uneven as the observed one.

        Source: McNemar 1947; the exact form is the sign test on the trials that differ.
        """
        differing = self.only_first + self.only_second
        tail = sum(
            math.comb(differing, k) for k in range(min(self.only_first, self.only_second) + 1)
        )
        # Two-sided; with equal counts twice the tail would be above 1.
        return min(1.0, 2 * tail / 2**differing)


RESULTS_NAME = "results.json"
_LOCK_NAME = ".lock"
_REMEDY = "Choose another folder with --out, or delete it."


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that determine the outcome of a trial; all results in a file share them."""

    checkpoint: str
    """Checksum of the checkpoint's weights, config and dataset descriptions."""
    step: int
    """Training step of the checkpoint."""
    dataset: str
    """Path in the run of the dataset whose statistics and conventions were used."""
    suite: str
    """Suite of the tasks."""
    seed: int
    """Seed of the policy's noise and of the simulator."""
    execute_horizon: int
    """Number of actions executed per chunk."""
    ensemble: float | None
    """Decay of a temporal ensemble; None: no ensemble."""
    simulator: str
    """Versions of the simulator's packages, and its renderer."""
    delay: int = dataclasses.field(default=0, metadata=LATER)
    """Steps that a prediction takes."""
    execution: DelayStrategy | None = dataclasses.field(default=None, metadata=LATER)
    """What the robot does in these steps; None without a delay."""
    perturbations: Perturbations = dataclasses.field(default=NONE, metadata=LATER)
    """Perturbations of every trial's scene."""

    def __post_init__(self) -> None:
        if self.delay and self.execution is None:
            # Results of earlier versions do not name it, as there was no other.
            object.__setattr__(self, "execution", "real_time_chunking")

    @property
    def conditions(self) -> str:
        """Returns the suite and what is perturbed, such as `libero_spatial, camera 10`."""
        perturbed = self.perturbations.sizes
        return f"{self.suite}, {self.perturbations}" if perturbed else self.suite


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """The result of one trial."""

    suite: str
    """Suite, such as `libero_spatial`."""
    task: int
    """Index of the task in the suite, from 0."""
    instruction: str
    """Instruction that the policy was given."""
    init: int
    """Index of the initial state, which is the number of the trial."""
    success: bool
    """Whether the goal was reached within the suite's limit; also False after an error."""
    steps: int
    """Number of executed actions, without the settling ones."""
    seconds: float
    """Wall time in seconds, with other trials running beside it."""
    seed: int
    """Seed of the policy's noise and of the simulator."""
    error: str | None = None
    """The error in both attempts, if any; such a trial is repeated by the same command."""
    video: str | None = None
    """Name of the video file beside the results; None if none was kept."""
    is_demonstrated: bool | None = None
    """Whether a training demonstration started from this initial state, so that the trial is not
    held out; None if a dataset does not record it."""
    num_workers: int | None = dataclasses.field(default=None, metadata=LATER)
    """Number of simulators, which sets the size of a batch, and so the last bits of actions; None
    in results of earlier versions."""

    @property
    def place(self) -> tuple[int, int]:
        """Returns (task, initial state)."""
        return self.task, self.init


@dataclasses.dataclass(frozen=True)
class Inference:
    """The policy's latency, in the last session that used it."""

    num_calls: int
    """Number of predicted batches."""
    batch_size: int
    """Environments per batch: half of the simulators."""
    mean_ms: float
    """Mean time per batch in milliseconds, tokens included."""
    p50_ms: float
    """Median time in milliseconds."""
    p95_ms: float
    """95th percentile of the time in milliseconds."""
    device: str
    """Device that computed it."""


@dataclasses.dataclass(frozen=True)
class Results:
    """The content of `results.json`."""

    run: str
    """Path of the run, as given."""
    settings: Settings
    """Settings of all trials."""
    inference: Inference | None
    """Latency of the policy; None until the first session has ended."""
    trials: tuple[TrialResult, ...]
    """Results of the trials, by task and initial state."""

    @property
    def tasks(self) -> dict[int, str]:
        """Returns the instruction of each task."""
        return {trial.task: trial.instruction for trial in self.trials}

    @property
    def errors(self) -> tuple[TrialResult, ...]:
        """Returns the trials that ended with an error."""
        return tuple(trial for trial in self.trials if trial.error is not None)

    @property
    def num_demonstrated(self) -> int:
        """Returns the number of trials that start from a demonstrated initial state."""
        return sum(trial.is_demonstrated is True for trial in self.trials)

    def of_task(self, task: int | None) -> tuple[TrialResult, ...]:
        """Returns the trials of a task; None: all trials."""
        return tuple(trial for trial in self.trials if task in (None, trial.task))

    def rate(self, task: int | None = None) -> Rate:
        """Returns the success rate of a task (None: of all); an error counts as a failure."""
        trials = self.of_task(task)
        return Rate(sum(trial.success for trial in trials), len(trials))

    def mean_steps(self, task: int | None = None) -> float | None:
        """Returns the mean number of steps of the successes; None if there are none."""
        steps = [trial.steps for trial in self.of_task(task) if trial.success]
        return sum(steps) / len(steps) if steps else None

    def adding(self, result: TrialResult) -> "Results":
        """Returns the results with another trial, which replaces one of the same place."""
        # A repeated trial replaces the one that ended with an error.
        kept = [trial for trial in self.trials if trial.place != result.place]
        # In the order of trials: their ends depend on the simulators.
        trials = sorted([*kept, result], key=lambda trial: trial.place)
        return dataclasses.replace(self, trials=tuple(trials))


class ResultsFile:
    """The results file in a folder, written after every change.

    Args:
      folder: The folder of the results.
      run: Path of the run, as given.
      settings: Settings of the trials.
    """

    def __init__(self, folder: pathlib.Path, run: str, settings: Settings) -> None:
        self.folder = folder
        # JSON cannot hold a name that is not UTF-8.
        self.results = Results(escaped(run), settings, None, ())

    def open(self) -> None:
        """Reads the existing results, if any.

        Raises:
          UserError: The results have other settings; all differences are listed.
          DataError: The results are corrupt.
        """
        path = self.folder / RESULTS_NAME
        if path.exists():
            before = read_results(self.folder)
            _check_same(before, self.results, path)
            # The path of the run may have changed; everything else is compared.
            self.results = dataclasses.replace(before, run=self.results.run)

    def pending(self, trials: Sequence[Trial]) -> list[Trial]:
        """Returns the trials that have no result, or ended with an error."""
        # Errors are tried again by the same command.
        done = {trial.place for trial in self.results.trials if trial.error is None}
        return [trial for trial in trials if (trial.task.index, trial.init) not in done]

    def add(self, result: TrialResult) -> None:
        """Adds the result of a trial."""
        self.write(self.results.adding(result))

    def write(self, results: Results) -> None:
        """Replaces the results in the file.

        Raises:
          UserError: The file cannot be written.
        """
        self.results = results
        path = self.folder / RESULTS_NAME
        with writing(path):
            # After every trial, so a kill loses at most the running ones.
            write_json(path, to_json_values(results))


def read_results(folder: pathlib.Path) -> Results:
    """Reads the results in a folder.

    Raises:
      DataError: The results are missing or corrupt.
    """
    path = folder / RESULTS_NAME
    values = read_json(path, remedy=_REMEDY)
    return from_json_text(Results, dump_json(values), where=str(path), remedy=_REMEDY)


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[None]:
    """Claims a folder for this process while the block lasts, and creates it if needed.

    Raises:
      UserError: It cannot be created, or another evaluation is using it.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    refused = UserError(
        where=str(folder),
        expected="no other evaluation running in it",
        found="one",
        remedy="Wait for it or stop it, or choose another folder with --out.",
    )
    with locked(folder / _LOCK_NAME, refused):
        yield


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Returns a checksum, 32 hex digits, of everything that a policy reads from a checkpoint."""
    return digest_json(
        {
            "params": digest_arrays(checkpoint.params),
            "config": to_json_values(checkpoint.config),
            "datasets": checkpoint.datasets,
            # Bytes as text, for JSON.
            "vocabulary": checkpoint.vocabulary.hex(),
        }
    )


def _check_same(before: Results, now: Results, path: pathlib.Path) -> None:
    # Not as JSON, in which later fields may be absent.
    then, wanted = vars(before.settings), vars(now.settings)
    differing = [name for name in then if then[name] != wanted[name]]
    if differing:
        raise UserError(
            where=str(path),
            expected=f"results of {now.run}, " + _listed(wanted, differing),
            found=f"those of {before.run}, " + _listed(then, differing),
            remedy="Use the earlier settings, or choose another folder with --out.",
        )


def _listed(values: dict[str, object], names: list[str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names)
