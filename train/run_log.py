"""Logs a run: the metrics of training steps, read while the next one computes, and validations."""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.loading import device
from train import distributed
from train.metrics.metrics_log import Meter, MetricsLog
from train.metrics.step_metrics import StepMetrics
from train.metrics.validation_files import append_validation, drop_validation, read_validation
from train.metrics.wandb_log import Tracking
from train.run_setup import Setup
from train.update.train_step import LanguageTable

_log = logging.getLogger("train.run")


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A training step whose metrics are read later."""

    step: int
    metrics: Mapping[str, Any]
    wait_s: float
    fingerprint: str


class RunLog:
    """The log of a run; a context manager. In a run of several processes, the first one writes.

    Args:
      setup: The set-up run.
      directory: The run directory.
      first_step: Training steps taken before; rows of later ones are dropped, to be written again.
      watch: Called with the row of each training step, in every process.
    """

    def __init__(
        self,
        setup: Setup,
        directory: pathlib.Path,
        first_step: int,
        watch: Callable[[StepMetrics], None],
    ) -> None:
        self._setup = setup
        self._directory = directory
        self._first_step = first_step
        self._watch = watch
        self._files: MetricsLog | None = None
        self._pending: _Pending | None = None
        self._wait_s = 0.0
        self._ended_s: float | None = None
        self.start_clock()

    def __enter__(self) -> "RunLog":
        """Opens the files, and shows a progress bar.

        Raises:
          UserError: In every process, if a file cannot be read or written.
        """
        self._files = distributed.together(self._open)
        return self

    def __exit__(self, *error: Any) -> None:
        """Closes the files and the bar."""
        if self._files is not None:
            self._files.__exit__(*error)

    def _open(self) -> MetricsLog | None:
        if not distributed.is_writer():
            return None
        config = self._setup.config
        drop_validation(self._directory, after=self._first_step)
        tracking = Tracking(config, self._directory) if config.wandb.project else None
        meter = Meter(config.batch_size, self._setup.loader.memory.batch_bytes)
        log = MetricsLog(self._directory, config.num_steps, meter, self._first_step, tracking)
        return log.__enter__()

    def start_clock(self) -> None:
        """Starts the time of the next training step here, such as of the first, or after a save."""
        self._last_s = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the block, which waits for a batch; it counts if the devices are idle."""
        asked_s = time.perf_counter()
        yield
        self._wait_s = time.perf_counter() - asked_s
        if self._pending is None:
            return
        if _is_ready(self._pending.metrics["loss"]):
            # It ended during the wait; when is not known, and all of the wait counts as idle.
            self._ended_s = asked_s
        else:
            self._wait_s = 0.0  # the devices were still computing the previous step

    def add(self, step: int, metrics: Mapping[str, Any], fingerprint: str) -> None:
        """Takes the metrics of a training step that was just started, and writes those before it.

        Args:
          step: Training steps taken, including this one.
          metrics: The metrics that the training step returned, on the devices.
          fingerprint: The fingerprint of its batch.

        Raises:
          UserError: A row cannot be written, or `watch` raises it.
        """
        try:
            # Waits for the training step before only: the devices already have this one to do.
            self.flush()
        finally:
            # Not read here: `float` would wait for the training step that was just started.
            self._pending = _Pending(step, metrics, self._wait_s, fingerprint)

    def flush(self) -> None:
        """Waits for the last training step, and writes its row; raises what `add` raises."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        values = {name: float(value) for name, value in pending.metrics.items()}
        ended_s = self._ended_s or time.perf_counter()
        step_s, self._last_s, self._ended_s = ended_s - self._last_s, ended_s, None
        row = StepMetrics(
            step=pending.step,
            applied=int(values.pop("applied")),
            step_s=step_s,
            data_wait_s=pending.wait_s,
            memory_gb=round(device.peak_bytes() / 1e9, 3),
            batch_fingerprint=pending.fingerprint,
            **values,
        )
        try:
            if self._files is not None:
                self._files.write(row)
        finally:
            self._watch(row)

    def validate(self, params: Any, table: LanguageTable, step: int) -> None:
        """Validates the model on the held-out episodes, and writes what was found.

        Args:
          params: The parameters of the model.
          table: The language table that `make_language_table` returns.
          step: Training steps taken.

        Raises:
          UserError: A record is corrupt, in every process; or a file cannot be written.
        """
        if self._setup.validator is None:
            return
        found = self._setup.validator.run(params, table, step)
        if self._files is None:
            return
        self._files.write_validation(found)
        append_validation(self._directory, found)
        dims = ", ".join(f"{name} {error:.3f}" for name, error in found.by_dim.items())
        _log.info(
            "step %d: validation loss %.3f, action error %.3f (%s) on %d samples",
            step,
            found.loss,
            found.action_error,
            dims,
            found.num_samples,
        )

    def stop_bar(self) -> None:
        """Shows the progress bar for the last time; validations can still be written."""
        if self._files is not None:
            self._files.stop_bar()

    def lacks_validation(self, step: int) -> bool:
        """Returns whether no validation was written at a training step, in every process alike."""
        is_lacking = distributed.together(
            lambda: (
                self._files is not None
                and all(one.step != step for one in read_validation(self._directory))
            )
        )
        # Only the first process knows, and validation is a collective.
        return bool(distributed.agree(flag=is_lacking))


def _is_ready(array: Any) -> bool:
    """Returns whether an array is computed; jax's type stubs lack the method."""
    return array.is_ready()
