"""Runs the cases one after the other within a time, each in a process of its own."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.accelerator.measured_cases import Case

Row = dict[str, Any]
Command = Callable[[Case], Sequence[str]]


def run_cases(
    cases: Sequence[Case], command: Command, seconds: float, logs: pathlib.Path
) -> Iterator[Row]:
    """Yields the figures of all cases as they become known.

    A case that is expected to take longer than what is left is skipped. One that is still running
    at the end is stopped: what it has yielded stays.

    Args:
      cases: The cases, the most important first.
      command: Returns the command that prints the figures of a case, one JSON object per line.
      seconds: The time for all of them.
      logs: Folder for what the processes write beside their figures.
    """
    ends = time.monotonic() + seconds
    for case in cases:
        left = max(0.0, ends - time.monotonic())
        if left < case.seconds:
            reason = f"skipped: {left:.0f} s left, about {case.seconds:.0f} s needed"
            yield {"measurement": case.name, "failed": reason}
            continue
        started = time.monotonic()
        log = logs / f"{case.name.replace(':', '_')}.log"
        yield from _run(case, command(case), left, log)
        yield {"measurement": "case", "case": case.name, "s": round(time.monotonic() - started, 1)}


def _run(case: Case, command: Sequence[str], seconds: float, log: pathlib.Path) -> Iterator[Row]:
    stopped = threading.Event()
    with log.open("w") as errors:
        # A session of its own, so that stopping it stops what it has started.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )

        def stop() -> None:
            stopped.set()
            _kill(process)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            for line in process.stdout or ():
                row = _parsed(line)
                if row is not None:
                    yield row
            # It has printed everything, and ends by itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
        finally:
            timer.cancel()
            # At once where whoever reads the rows has stopped reading.
            _kill(process)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    if stopped.is_set():
        yield {"measurement": case.name, "failed": f"stopped after {seconds:.0f} s"}
    elif process.returncode:
        last = log.read_text().strip().rpartition("\n")[2] or f"exit code {process.returncode}"
        yield {"measurement": case.name, "failed": last}


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _parsed(line: str) -> Row | None:
    """Returns the figures of a line; None for what libraries print."""
    if not line.startswith("{"):
        return None
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
