"""Writes a run's metrics file and TensorBoard events, and shows a progress bar."""

import contextlib
import dataclasses
import pathlib
import types

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.checksums import to_json_line
from pipeline.errors import UserError
from pipeline.files import write_text_atomically, writing
from train.metrics.step_metrics import METRICS_NAME, StepMetrics, read_lines
from train.metrics.tensorboard_events import Events
from train.metrics.throughput import Meter
from train.metrics.validation_files import ValidationMetrics
from train.metrics.wandb_log import Tracking

_WIDTH_WITH_A_BAR = 122
"""Width of a terminal in columns; a narrower one shows the metrics without a bar."""


_NUMBERS = tuple(f.name for f in dataclasses.fields(StepMetrics) if f.type in (int, float))[1:]
"""The numeric fields that every training step has, except `step`."""


class MetricsLog:
    """Writes the metrics of every training step; a context manager.

    Args:
      run_directory: Gets `metrics.jsonl` and `tensorboard/`.
      num_steps: Length of the progress bar.
      tracking: Also gets the metrics; None: no tracking.
      meter: Measures the throughput that the progress bar shows.
      first_step: Training steps taken before; lines of later steps, left by a killed run, are
        dropped.
    """

    def __init__(
        self,
        run_directory: pathlib.Path,
        num_steps: int,
        meter: Meter,
        first_step: int = 0,
        tracking: Tracking | None = None,
    ) -> None:
        path = run_directory / METRICS_NAME
        # Later lines are of steps that the resumed run repeats.
        kept = [line for line, values in read_lines(path) if values["step"] <= first_step]
        self._path = path
        with writing(path):
            write_text_atomically(path, "".join(kept))
            # Line by line, so that a kill loses at most the last one.
            self._file = path.open("a", buffering=1)
            # TensorBoard drops its own points from this step on.
            self._events = Events(run_directory / "tensorboard", first_step + 1)
        # In a notebook, rich would need ipywidgets for a bar; one line at the end needs nothing.
        console = Console(stderr=True, force_jupyter=False)
        self._progress = Progress(
            *([BarColumn()] if console.width >= _WIDTH_WITH_A_BAR else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(
            "training", total=num_steps, completed=first_step, status=""
        )
        self._meter = meter
        self._tracking = tracking

    def __enter__(self) -> "MetricsLog":
        """Opens the progress bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Closes the files and the bar.

        Raises:
          UserError: The remaining lines cannot be written, and no other error is being raised.
        """
        # Before the files, whose errors are printed below the bar.
        self._progress.stop()
        try:
            # Each is closed, even if closing another fails.
            with writing(self._path), contextlib.closing(self._events), self._file:
                pass
        except UserError:
            # An error that ended the run is the one to report.
            if error is None:
                raise
        if self._tracking is not None:
            self._tracking.close()

    def write(self, metrics: StepMetrics) -> None:
        """Appends the metrics of a training step.

        Raises:
          UserError: A file cannot be written.
        """
        values = dataclasses.asdict(metrics)
        numbers = {name: values[name] for name in _NUMBERS}
        # Without alignment the field is absent, as in files of earlier releases.
        if metrics.align_loss is None:
            del values["align_loss"]
        else:
            numbers["align_loss"] = metrics.align_loss
        with writing(self._path):
            self._file.write(to_json_line(values))
        self._scalars(metrics.step, numbers, "train")
        self._meter.add(metrics.step_s, metrics.data_wait_s)
        status = f"loss {metrics.loss:.3f}, {self._meter.line()}"
        self._progress.update(self._task, completed=metrics.step, status=status)

    def write_validation(self, metrics: ValidationMetrics) -> None:
        """Appends the metrics of a validation.

        Raises:
          UserError: A file cannot be written.
        """
        values = {"loss": metrics.loss, "action_error": metrics.action_error}
        values |= {f"action_error/{dim}": error for dim, error in metrics.by_dim.items()}
        self._scalars(metrics.step, values, "validation")

    def _scalars(self, step: int, values: dict[str, float], group: str) -> None:
        named = {f"{group}/{name}": value for name, value in values.items()}
        with writing(self._path.with_name("tensorboard")):
            self._events.add(step, named)
        if self._tracking is not None:
            self._tracking.write(step, named)
