"""Writes TensorBoard's event file without a thread: a full disk is an error, not a hang.

`tensorboardX.SummaryWriter` writes from a thread. If that thread dies of an error, its queue of ten
fills up, and the next write blocks forever.
"""

import os
import pathlib
import socket
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]  (generated)
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

_FLUSH_S = 30.0
"""Seconds between two flushes; each flush waits for the disk."""


class Events:
    """Writes scalars by training step.

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
