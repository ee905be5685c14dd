"""What the benchmarks share: figures as JSON, processes of their own, seconds and ratios."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def print_figures(figures: object) -> None:
    """Prints one JSON value on a line of its own, at once."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def in_a_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """Returns the JSON value that a command prints last.

    Raises:
      RuntimeError: The command fails; with the last line of its errors.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module by this Python."""
    return [sys.executable, "-m", name, *arguments]


def timed(work: Callable[..., T], *arguments: Any) -> tuple[T, float, float]:
    """Returns (result, CPU seconds of all threads, wall seconds) of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work(*arguments)
    return result, time.process_time() - cpu, time.perf_counter() - wall


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median, least and most of the ratios of two measurements that took turns."""
    found = [one / other for one, other in zip(numerators, denominators, strict=True)]
    spread = {"ratio": statistics.median(found), "ratio_min": min(found), "ratio_max": max(found)}
    return {name: round(value, 2) for name, value in spread.items()}
