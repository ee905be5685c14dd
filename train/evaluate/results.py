"""The results of an evaluation: a file that is whole after every trial, and can be gone on with."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from pipeline.errors import DataError, UserError
from pipeline.files import (
    dump_json,
    from_json_text,
    locked,
    to_json_values,
    write_text_atomically,
    writing,
)
from pipeline.libero.suites import Trial
from train.checkpoints import Checkpoint
from train.digests import digest_arrays, digest_json
from train.evaluate.statistics import Rate

RESULTS_NAME = "results.json"
_LOCK_NAME = ".lock"
_REMEDY = "Name another folder with --out, or delete it."


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the outcome of a trial; all results of a file share it."""

    checkpoint: str
    """Digest of its weights, its run's config and what it knows of its datasets."""
    step: int
    """Of the checkpoint."""
    dataset: str
    """Whose statistics and conventions were used, as the run names it."""
    suite: str
    """Of the tasks."""
    seed: int
    """Of the policy's noise and the simulator's draws."""
    execute_horizon: int
    """Actions that were executed of every chunk."""
    ensemble: float | None
    """Decay of a temporal ensemble; None: there was none."""
    simulator: str
    """Versions of its packages, and what renders."""


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """One trial."""

    suite: str
    """Such as `libero_spatial`."""
    task: int
    """Its place in the suite, from 0."""
    instruction: str
    """Instruction that the policy was given."""
    init: int
    """The initial state: the number of the trial."""
    success: bool
    """Whether the goal was reached within the suite's limit; False after an error, too."""
    steps: int
    """Actions that were executed, without those of settling."""
    seconds: float
    """Wall time, with whatever other trials ran beside it."""
    seed: int
    """As of the settings."""
    error: str | None = None
    """What kept the trial from its end, twice; such a trial is run again by the same command."""
    video: str | None = None
    """File beside the results; None where none was kept."""
    is_demonstrated: bool | None = None
    """Whether a demonstration of the training data began in this state, so that the trial is not
    held out; None where a dataset does not say."""

    @property
    def place(self) -> tuple[int, int]:
        """(task, initial state)."""
        return self.task, self.init


@dataclasses.dataclass(frozen=True)
class Inference:
    """How long the policy took to answer, in the last session that asked it."""

    num_calls: int
    """Batches that were predicted."""
    batch_size: int
    """Environments of a batch: the simulators."""
    mean_ms: float
    """Of a batch, tokens included."""
    p50_ms: float
    """Median."""
    p95_ms: float
    """95th percentile."""
    device: str
    """That computed."""


@dataclasses.dataclass(frozen=True)
class Results:
    """What `results.json` holds."""

    run: str
    """The run, as it was named."""
    settings: Settings
    """Of all trials."""
    inference: Inference | None
    """None before the first session has ended."""
    trials: tuple[TrialResult, ...]
    """By task and initial state."""

    @property
    def tasks(self) -> dict[int, str]:
        """Instruction by task."""
        return {trial.task: trial.instruction for trial in self.trials}

    @property
    def errors(self) -> tuple[TrialResult, ...]:
        """Trials that were kept from their end."""
        return tuple(trial for trial in self.trials if trial.error is not None)

    @property
    def num_demonstrated(self) -> int:
        """Trials that begin as a demonstration of the training data did."""
        return sum(trial.is_demonstrated is True for trial in self.trials)

    def of_task(self, task: int | None) -> tuple[TrialResult, ...]:
        """The trials of a task; None: all."""
        return tuple(trial for trial in self.trials if task in (None, trial.task))

    def rate(self, task: int | None = None) -> Rate:
        """Of a task; None: of all trials. An error counts as a failure."""
        trials = self.of_task(task)
        return Rate(sum(trial.success for trial in trials), len(trials))

    def mean_steps(self, task: int | None = None) -> float | None:
        """Of the successes; None where there is none."""
        steps = [trial.steps for trial in self.of_task(task) if trial.success]
        return sum(steps) / len(steps) if steps else None

    def adding(self, result: TrialResult) -> "Results":
        """With another trial, in the place of one of the same task and initial state."""
        kept = [trial for trial in self.trials if trial.place != result.place]
        trials = sorted([*kept, result], key=lambda trial: trial.place)
        return dataclasses.replace(self, trials=tuple(trials))


class ResultsFile:
    """The results in a folder, on the disk after every change.

    Args:
      folder: Where they are, or will be.
      run: As it is named.
      settings: Of the trials.
    """

    def __init__(self, folder: pathlib.Path, run: str, settings: Settings) -> None:
        self.folder = folder
        self.results = Results(run, settings, None, ())

    def open(self) -> None:
        """Reads what is there, if anything.

        Raises:
          UserError: Results of other settings; it names all that differ.
          DataError: They are corrupt.
        """
        path = self.folder / RESULTS_NAME
        if path.exists():
            before = read_results(self.folder)
            _check_same(before, self.results, path)
            self.results = dataclasses.replace(before, run=self.results.run)

    def pending(self, trials: Sequence[Trial]) -> list[Trial]:
        """Trials that are not there, or were kept from their end."""
        done = {trial.place for trial in self.results.trials if trial.error is None}
        return [trial for trial in trials if (trial.task.index, trial.init) not in done]

    def add(self, result: TrialResult) -> None:
        """Adds a trial."""
        self.write(self.results.adding(result))

    def write(self, results: Results) -> None:
        """Puts other results in the place of these.

        Raises:
          UserError: They cannot be written.
        """
        self.results = results
        path = self.folder / RESULTS_NAME
        with writing(path):
            write_text_atomically(path, dump_json(to_json_values(results)))


def read_results(folder: pathlib.Path) -> Results:
    """The results in a folder.

    Raises:
      DataError: They are missing or corrupt.
    """
    path = folder / RESULTS_NAME
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise DataError(
            where=str(path), expected="results", found=str(error), remedy=_REMEDY
        ) from error
    return from_json_text(Results, text, where=str(path), remedy=_REMEDY)


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[None]:
    """A folder, made where it is missing, for this process alone while the block lasts.

    Raises:
      UserError: It cannot be made, or another evaluation is at work in it.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    refused = UserError(
        where=str(folder),
        expected="no other evaluation at work in it",
        found="one",
        remedy="Wait for it or stop it, or name another folder with --out.",
    )
    with locked(folder / _LOCK_NAME, refused):
        yield


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """32 hex digits over all that a policy takes from a checkpoint."""
    return digest_json(
        {
            "params": digest_arrays(checkpoint.params),
            "config": to_json_values(checkpoint.config),
            "datasets": checkpoint.datasets,
            "vocabulary": checkpoint.vocabulary.hex(),
        }
    )


def _check_same(before: Results, now: Results, path: pathlib.Path) -> None:
    then, wanted = to_json_values(before.settings), to_json_values(now.settings)
    differing = [name for name in then if then[name] != wanted[name]]
    if differing:
        raise UserError(
            where=str(path),
            expected=f"results of {now.run}, " + _listed(wanted, differing),
            found=f"those of {before.run}, " + _listed(then, differing),
            remedy="Continue with the settings of before, or name another folder with --out.",
        )


def _listed(values: dict[str, object], names: list[str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names)
