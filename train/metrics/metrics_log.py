"""Writes a run's metrics file and TensorBoard events, and shows throughput in a progress bar."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import socket
import time
import types
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]  (generated)
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from pipeline.checksums import to_json_line
from pipeline.errors import UserError
from pipeline.files import write_text_atomically, writing
from train.metrics.step_metrics import METRICS_NAME, OPTIONAL, StepMetrics, read_lines
from train.metrics.validation_files import ValidationMetrics
from train.metrics.wandb_log import Tracking

# Steps: enough for a 99th percentile, few enough to follow a change.
_WINDOW = 200
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Meter:
    """Throughput over a run's last 200 training steps.

    Args:
      samples_per_step: Number of samples in a global batch.
      bytes_per_step: Size of this process's part of a global batch.
    """

    def __init__(self, samples_per_step: int, bytes_per_step: int) -> None:
        self._samples = samples_per_step
        self._bytes = bytes_per_step
        self._steps: collections.deque[tuple[float, float]] = collections.deque(maxlen=_WINDOW)

    def add(self, step_s: float, wait_s: float) -> None:
        """Records one training step: its duration, and the part spent waiting for the batch."""
        self._steps.append((step_s, wait_s))

    @property
    def samples_per_s(self) -> float:
        """Samples per second over all processes."""
        return self._samples * self._steps_per_s

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second of this process's batches."""
        return self._bytes * self._steps_per_s

    @property
    def wait_share(self) -> float:
        """Fraction of the time spent waiting for batches."""
        steps, waits = np.sum(self._steps, axis=0)
        return float(waits / steps)

    @property
    def wait_p99_s(self) -> float:
        """99th percentile of the waiting time of a training step, in seconds."""
        return float(np.quantile([wait for _, wait in self._steps], 0.99))

    def line(self) -> str:
        """Returns a log line such as `812 samples/s, wait 1.2% (p99 4 ms), 640 MB/s`."""
        return (
            f"{self.samples_per_s:.0f} samples/s, wait {self.wait_share:.1%} "
            f"(p99 {self.wait_p99_s * 1e3:.0f} ms), {_rate(self.bytes_per_s)}"
        )

    @property
    def _steps_per_s(self) -> float:
        return len(self._steps) / sum(step for step, _ in self._steps)


def _rate(bytes_per_s: float) -> str:
    """Formats a rate with at most three digits, such as `12.6 MB/s`."""
    # Powers of 1,000; a rate below one byte has a logarithm too.
    power = min(int(np.log10(max(bytes_per_s, 1)) // 3), len(_UNITS) - 1)
    value = bytes_per_s / 1e3**power
    return f"{value:.{1 if value < 100 else 0}f} {_UNITS[power]}/s"


_FLUSH_S = 30.0
"""Seconds between two flushes; each flush waits for the disk."""


class Events:
    """Writes TensorBoard's event file without a thread: a full disk is an error, not a hang.

    `tensorboardX.SummaryWriter` writes from a thread. If that thread dies of an error, its queue of
    ten fills up, and the next write blocks forever.

    Args:
      directory: Gets the file; created if missing.
      first_step: The first training step to be written; TensorBoard hides what an earlier file has
        from here on.

    Raises:
      OSError: Here and in each method, if the file cannot be written.
    """

    def __init__(self, directory: pathlib.Path, first_step: int) -> None:
        directory.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(str(directory / name))
        self._flushed_s = time.monotonic()
        self._write(Event(step=first_step, file_version="brain.Event:2"))
        # START: points of an earlier process from this step on are dropped.
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the scalars of a training step, by name."""
        for name, value in values.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        # Each flush waits for the disk, so it is not done at every step.
        if time.monotonic() - self._flushed_s >= _FLUSH_S:
            self._flushed_s = time.monotonic()
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        # TensorBoard's "wall" axis.
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


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

    def stop_bar(self) -> None:
        """Shows the progress bar for the last time; the files stay open."""
        self._progress.stop()

    def write(self, metrics: StepMetrics) -> None:
        """Appends the metrics of a training step.

        Raises:
          UserError: A file cannot be written.
        """
        values = dataclasses.asdict(metrics)
        numbers = {name: values[name] for name in _NUMBERS}
        for name in OPTIONAL:
            # Without a value the field is absent, as in files of earlier releases.
            if values[name] is None:
                del values[name]
            else:
                numbers[name] = values[name]
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
