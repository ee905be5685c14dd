"""What a person sees of a run: a metrics file, TensorBoard events and a progress bar."""

import dataclasses
import json
import pathlib
import types
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from pipeline.errors import DataError
from pipeline.files import write_text_atomically
from pipeline.meter import Meter

METRICS_NAME = "metrics.jsonl"
_WIDTH_WITH_A_BAR = 122
"""Columns of a terminal; a narrower one shows the numbers alone."""


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """One line of `metrics.jsonl`."""

    step: int
    """Steps taken, this one included."""
    loss: float
    """Of the batch."""
    grad_norm: float
    """Global norm of the gradient before clipping."""
    learning_rate: float
    """That was applied."""
    step_s: float
    """Seconds from the step before to this one, waiting included."""
    data_wait_s: float
    """Seconds of these that were spent waiting for the batch."""
    batch_fingerprint: str
    """XXH3 over every byte of the batch."""


class MetricsLog:
    """Writes every step's metrics; a context manager.

    Args:
      run_directory: Gets `metrics.jsonl` and `tensorboard/`.
      num_steps: Length of the progress bar.
      meter: Tells the pace beside it.
      first_step: Steps taken before; lines of later ones, of a killed run, are dropped.
    """

    def __init__(
        self, run_directory: pathlib.Path, num_steps: int, meter: Meter, first_step: int = 0
    ) -> None:
        path = run_directory / METRICS_NAME
        kept = [line for line in _lines(path) if _parse(line, path)["step"] <= first_step]
        write_text_atomically(path, "".join(kept))
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(run_directory / "tensorboard"), purge_step=first_step + 1)
        console = Console(stderr=True)
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

    def __enter__(self) -> "MetricsLog":
        """Shows the progress bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Closes the files and the bar."""
        self._progress.stop()
        self._file.close()
        self._events.close()

    def write(self, metrics: StepMetrics) -> None:
        """Appends one step."""
        self._file.write(_line(metrics))
        for name in ("loss", "grad_norm", "learning_rate", "step_s", "data_wait_s"):
            self._events.add_scalar(name, getattr(metrics, name), metrics.step)
        self._meter.add(metrics.step_s, metrics.data_wait_s)
        status = f"loss {metrics.loss:.3f}, {self._meter.line()}"
        self._progress.update(self._task, completed=metrics.step, status=status)


def read_metrics(run_directory: pathlib.Path) -> list[StepMetrics]:
    """The lines of a run's `metrics.jsonl`; none where it has no such file.

    A last line that a kill cut short is left out: its step is taken again.
    """
    path = run_directory / METRICS_NAME
    return [StepMetrics(**_parse(line, path)) for line in _lines(path)]


def _lines(path: pathlib.Path) -> list[str]:
    """The complete lines of a file, which may not exist."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def _parse(line: str, path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise _damaged(line, path) from error
    if not isinstance(values, dict) or "step" not in values:
        raise _damaged(line, path)
    return values


def _damaged(line: str, path: pathlib.Path) -> DataError:
    return DataError(
        where=str(path),
        expected="a JSON object with a step on every line",
        found=repr(line[:40]),
        remedy="Delete that line, or start a new run in another save_dir.",
    )


def _line(metrics: StepMetrics) -> str:
    return json.dumps(dataclasses.asdict(metrics)) + "\n"
