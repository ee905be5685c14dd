"""The training loop: batch, training step, then logs, checkpoints and validation when due."""

import dataclasses
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from pipeline.errors import UserError
from pipeline.loading import device
from pipeline.loading.loader import LoadedBatch
from train import distributed
from train.batch_preview import save_views
from train.checkpoints.checkpoint_store import Checkpoints, Constants
from train.end_of_run import reported
from train.metrics.metrics_log import MetricsLog
from train.metrics.step_metrics import StepMetrics
from train.metrics.validation_files import ValidationMetrics, append_validation, read_validation
from train.preemption import StopRequests
from train.run_plan import Setup
from train.run_resources import exclusion_named
from train.update.skipped_updates import keep_batch
from train.update.train_state import TrainState, averaged_params
from train.update.train_step import LanguageTable, Metrics, TrainStep

_log = logging.getLogger("train.run")
T = TypeVar("T")
_Ahead = tuple[dict[str, Any], LoadedBatch]
"""The arrays of a batch on the devices, and the batch on the host."""


class Stopped(Exception):  # noqa: N818  (no error: the run was asked to)
    """Raised when a run was asked to stop; its state is saved."""

    def __init__(self, by: signal.Signals | None, *, is_complete: bool) -> None:
        super().__init__()
        self.by = by
        """The signal that was received; None: another process received it."""
        self.way_on = "continue with --resume"
        """What the user can do next."""
        if is_complete:
            self.way_on = "it is the last one; `octograin report` writes the report"


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A training step whose metrics are read later, while the next step computes."""

    step: int
    metrics: Metrics
    step_s: float
    wait_s: float
    fingerprint: str


class Loop:
    """Trains from a given state to the last training step.

    Args:
      setup: The set-up run.
      train_step: The compiled training step.
      table: The language table that `make_language_table` returns.
      checkpoints: Writes the states.
      log: Writes the metrics; None in processes that do not write.
      directory: The run directory.
      stop_requests: Records the signals that ask the run to stop.
    """

    def __init__(  # noqa: PLR0913  (the parts of a run, passed once)
        self,
        setup: Setup,
        train_step: TrainStep,
        table: LanguageTable,
        checkpoints: Checkpoints,
        log: MetricsLog | None,
        directory: pathlib.Path,
        stop_requests: StopRequests,
    ) -> None:
        self._setup = setup
        self._config = setup.config
        self._step = train_step
        self._table = table
        self._checkpoints = checkpoints
        self._log = log
        self._directory = directory
        self._stop_requests = stop_requests
        # Computed once: they are the same in every checkpoint of the run.
        self._constants = Constants(
            setup.config,
            setup.loader.describe_datasets(),
            setup.inputs.vocabulary.serialized_model_proto(),
        )
        # Training step of the last checkpoint, so that no step is saved twice.
        self._saved: int | None = None
        # Skipped updates in a row.
        self._skipped = 0
        self._failure: UserError | None = None
        """This process's error, kept until it is sent to every process."""

    def run(self, state: TrainState, *, is_saved: bool) -> TrainState:
        """Trains, saves and validates according to the config; returns the last state.

        Args:
          state: The state to start from; its arrays are donated.
          is_saved: Whether the last checkpoint already holds this state.

        Raises:
          UserError: In every process, if in any process a batch cannot be made, too many updates in
            a row
            were skipped, or a file cannot be written. The state is saved if possible, with the
            metrics of all
            its training steps.
          Stopped: Any process was asked to stop; the state is saved.
        """
        # Waits for the state, once; inside the loop the number is counted on the host.
        first = int(state.step)
        self._saved = first if is_saved else None
        # A run that was stopped between a save and its validation.
        self._validate_if_missed(first, state)
        pending: _Pending | None = None
        with self._batches(first) as batches:
            before = time.perf_counter()
            for step in range(first + 1, self._config.num_steps + 1):
                asked = time.perf_counter()
                # A failure here must not leave the others waiting in the collective training step.
                ahead = self._alone(lambda: next(batches))
                wait_s = time.perf_counter() - asked
                # Time spent here costs nothing while the devices have something to do.
                if pending is not None and not _is_ready(pending.metrics["loss"]):
                    wait_s = 0.0  # the devices were still computing the previous step
                # Before the step: it is a collective, which all processes enter or none.
                self._agree_to_continue(pending, state)
                arrays, batch = cast(_Ahead, ahead)
                # The first step of the run, not of the process: a resumed run shows nothing again.
                if step == 1:
                    self._show(batch)
                # Returns as soon as the step is dispatched; its metrics are read one step later.
                state, metrics = self._step(state, arrays, self._table)
                ahead = arrays = None  # frees its device memory for the next batch
                # Waits for the previous step only: the devices already have the next one to do.
                self._flush(pending)
                now = time.perf_counter()
                # Not read here: `float(metric)` would wait for the step that was just started.
                pending = _Pending(step, metrics, now - before, wait_s, batch.fingerprint)
                before = now
                if self._is_due(step):
                    # Saves and validations wait for the step anyway, so its row is written first.
                    self._flush(pending)
                    pending = None
                    self._after(step, state)
                    # Saving and validating do not count as the time of a step.
                    before = time.perf_counter()
        # An error of the last step's flush is still to be raised, in all processes.
        self._agree_to_continue(None, state)
        return state

    def _batches(self, position: int) -> "_Batches":
        batches = self._setup.loader.batches(position)
        return _Batches(batches, device.one_ahead(batches, self._setup.sharding))

    def _alone(self, work: Callable[[], T]) -> T | None:
        """Returns what `work` returns; None if it fails: `_agree_to_continue` raises its error."""
        try:
            with exclusion_named(self._config):
                # Adds to the error the flag that excludes a corrupt record.
                return work()
        except UserError as error:
            # The first error is the cause; later ones often follow from it.
            self._failure = self._failure or error
            return None

    def _agree_to_continue(self, pending: _Pending | None, state: TrainState) -> None:
        """Returns if no process failed or was asked to stop; otherwise saves, and raises in all."""
        asked = self._stop_requests.first_signal
        try:
            if not distributed.agree(flag=asked is not None, error=self._failure):
                return
        except UserError as error:
            # The last row is in the log before the checkpoint that a resume starts from.
            self._flush(pending)
            # The state is whole after every step, so the run can resume from it.
            self._save(state)
            raise self._resumable(error, int(state.step)) from error
        self._flush(pending)
        self._save(state)
        # Stopped exactly at the end, the run is complete except for its report.
        raise Stopped(asked, is_complete=int(state.step) == self._config.num_steps)

    def _show(self, batch: LoadedBatch) -> None:
        """Draws the images that the model sees of the first batch."""
        if self._log is not None:
            self._alone(lambda: save_views(self._config, batch.arrays, self._directory))

    def _is_due(self, step: int) -> bool:
        return self._is_saved_at(step) or self._is_validated_at(step)

    def _is_saved_at(self, step: int) -> bool:
        # The last step is saved even where the interval does not divide it.
        return step == self._config.num_steps or step % self._config.save_interval == 0

    def _is_validated_at(self, step: int) -> bool:
        last = step == self._config.num_steps
        due = last or step % self._config.validation.interval == 0
        return due and self._setup.validator is not None

    def _after(self, step: int, state: TrainState) -> None:
        if self._is_saved_at(step):
            self._save(state)
        if self._is_validated_at(step):
            self._validate(step, state)

    def _save(self, state: TrainState) -> None:
        step = int(state.step)
        # A stop right after a regular save must not write the same step again.
        if self._saved != step:
            self._checkpoints.save(state, self._setup.loader.state(step), self._constants)
            self._saved = step

    def _validate_if_missed(self, step: int, state: TrainState) -> None:
        """Runs the validation that was due when the run ended early."""
        # Nothing to validate at 0: the initial weights were not trained here.
        if step == 0 or not self._is_validated_at(step):
            return

        def is_missing() -> bool:
            seen = {one.step for one in read_validation(self._directory)}
            return distributed.is_writer() and step not in seen

        # The writer alone can say so; validation is a collective, so all have to know.
        if distributed.agree(flag=distributed.together(is_missing)):
            self._validate(step, state)

    def _validate(self, step: int, state: TrainState) -> None:
        validator = self._setup.validator
        if validator is None:
            return
        # Validation uses the average of the parameters, as a policy does.
        params = averaged_params(state.params, state.ema, self._config.frozen)
        # The weights are saved already, so an error here must not look like a failed run.
        if step == self._config.num_steps:
            with reported("its last validation", self._directory):
                self._write_validation(validator.run(params, self._table, step))
            return
        try:
            found = validator.run(params, self._table, step)
        except UserError as error:
            # Saved first: an error in validation must not cost the steps since the last save.
            self._save(state)
            raise self._resumable(error, step) from error
        # One process writes; its error is raised in all before the next step.
        self._alone(lambda: self._write_validation(found))

    def _write_validation(self, found: ValidationMetrics) -> None:
        if self._log is not None:
            self._log.write_validation(found)
            append_validation(self._directory, found)
            _log.info("%s", _describe(found))

    def _resumable(self, error: UserError, step: int) -> UserError:
        """Adds to an error the training step that the run can resume from."""
        way_on = "continue with --resume" if step < self._config.num_steps else "it is the last one"
        remedy = f"The run is saved at step {step}: {way_on}. {error.remedy}"
        where, expected, found = error.where, error.expected, error.found
        return UserError(where=where, expected=expected, found=found, remedy=remedy)

    def _flush(self, pending: _Pending | None) -> None:
        """Waits for a step's metrics and writes them; fails after too many skipped updates."""
        if pending is None:
            return
        # Waits for the step to finish.
        values = {name: float(value) for name, value in pending.metrics.items()}
        applied = int(values.pop("applied"))
        row = StepMetrics(
            step=pending.step,
            applied=applied,
            step_s=pending.step_s,
            data_wait_s=pending.wait_s,
            memory_gb=round(device.peak_bytes() / 1e9, 3),
            batch_fingerprint=pending.fingerprint,
            **values,
        )
        if self._log is not None:
            log = self._log
            self._alone(lambda: log.write(row))
        # Only updates in a row count: a rare overflow is no reason to end a run.
        if applied:
            self._skipped = 0
            return
        self._skipped += 1
        step = pending.step
        place = self._alone(lambda: keep_batch(self._setup.loader, step, self._directory)) or ""
        found = f"loss {values['loss']}, grad_norm {values['grad_norm']}"
        _log.warning("step %d: %s; its update is skipped%s", step, found, place)
        if self._skipped > self._config.optimizer.max_skipped:
            # Raised by `_agree_to_continue`, in all processes at the same step.
            self._failure = self._failure or UserError(
                where=f"step {step}, batch {pending.fingerprint}",
                expected="a finite loss and gradient after "
                f"{self._skipped - 1} skipped updates in a row",
                found=found + place,
                remedy="Look at the batch; or start a new run with a lower "
                "optimizer.learning_rate.",
            )


class _Batches:
    """Prefetches batches to the devices; a context manager that ends the loader's threads."""

    def __init__(self, batches: Any, on_devices: Iterator[_Ahead]) -> None:
        self._batches = batches
        self._on_devices = on_devices

    def __enter__(self) -> Iterator[_Ahead]:
        return self._on_devices

    def __exit__(self, *error: object) -> None:
        self._batches.close()


def _is_ready(array: Any) -> bool:
    """Returns whether an array is computed; jax's type stubs lack the method."""
    return array.is_ready()


def _describe(found: ValidationMetrics) -> str:
    dims = ", ".join(f"{name} {error:.3f}" for name, error in found.by_dim.items())
    return (
        f"step {found.step}: validation loss {found.loss:.3f}, action error "
        f"{found.action_error:.3f} ({dims}) on {found.num_samples} samples"
    )
