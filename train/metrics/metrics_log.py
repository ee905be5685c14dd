"""Writes a run's metrics file and TensorBoard events, and shows a progress bar."""

import contextlib
import dataclasses
import json
import math
import pathlib
import types
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.checksums import from_json, to_json_line
from pipeline.errors import DataError, UserError
from pipeline.files import UNPARSABLE, write_text_atomically, writing
from train.metrics.tensorboard_events import Events
from train.metrics.throughput import Meter
from train.metrics.validation import ValidationMetrics
from train.metrics.wandb_log import Tracking

METRICS_NAME = "metrics.jsonl"
_WIDTH_WITH_A_BAR = 122
"""Width of a terminal in columns; a narrower one shows the metrics without a bar."""


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """One line of `metrics.jsonl`."""

    step: int
    """Training steps taken, including this one."""
    loss: float
    """Loss of the batch."""
    grad_norm: float
    """Global norm of the gradient of the trained parameters, before clipping."""
    update_norm: float
    """Global norm of the trained parameters' update."""
    param_norm: float
    """Global norm of the trained parameters before the update."""
    learning_rate: float
    """Learning rate of the training step."""
    applied: int
    """1, or 0 if the update was skipped because the loss or gradient is not finite."""
    step_s: float
    """Seconds since the previous training step, including waiting."""
    data_wait_s: float
    """Upper bound of the seconds that the devices were idle while waiting for the batch."""
    memory_gb: float
    """Peak memory so far, in 10^9 bytes: of the first device, or of the process on a CPU."""
    batch_fingerprint: str
    """XXH3 of every byte of the batch."""
    align_loss: float | None = None
    """Unweighted alignment loss of the geometry tokens; None: the model does not align."""


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
        kept = [line for line, values in _lines(path) if values["step"] <= first_step]
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


def read_metrics(run_directory: pathlib.Path) -> list[StepMetrics]:
    """Reads the lines of a run's `metrics.jsonl`; empty if there is no such file.

    A last line that a kill truncated is left out: that step is repeated.

    Raises:
      DataError: A line is corrupt, or has other fields.
    """
    path = run_directory / METRICS_NAME
    return [_to_metrics(values, path) for _, values in _lines(path)]


def _to_metrics(values: dict[str, Any], path: pathlib.Path) -> StepMetrics:
    expected = {field.name for field in dataclasses.fields(StepMetrics)}
    # `align_loss` may be absent; every other field is required.
    if values.keys() | {"align_loss"} == expected:
        # NaN is written as null.
        known: dict[str, Any] = {k: math.nan if v is None else v for k, v in values.items()}
        known["align_loss"] = values.get("align_loss")
        return StepMetrics(**known)
    raise DataError(
        where=f"{path}, step {values['step']}",
        expected=f"the fields {', '.join(sorted(expected))}",
        found=f"without {', '.join(sorted(expected - values.keys())) or 'none'}, "
        f"with {', '.join(sorted(values.keys() - expected)) or 'no'} others",
        remedy="Read it with the release that wrote it.",
    )


def _lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns each complete line's end and its fields; empty if the file does not exist."""
    # Without a final line break the last line may be cut short.
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    if not _is_cut_short(last):
        # Only its line break is missing.
        lines.append(last)
    found = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    return [(f"{line.decode()}\n", values) for line, values in zip(lines, found, strict=True)]


def _is_cut_short(line: bytes) -> bool:
    """Returns whether the bytes after the last line break are not a whole JSON value."""
    try:
        # `raw_decode` accepts text after the value, which the parser below reports.
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except UNPARSABLE:
        return True
    return False


def _parse(line: bytes, where: str) -> dict[str, Any]:
    remedy = "Delete that line, or start a new run in another save_dir."
    values = from_json(line, where=where, remedy=remedy)
    if not isinstance(values.get("step"), int):
        expected, found = "a JSON object with a step", repr(line[:40].decode(errors="replace"))
        raise DataError(where=where, expected=expected, found=found, remedy=remedy)
    return values
