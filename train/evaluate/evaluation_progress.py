"""Shows the progress of an evaluation: a bar in a terminal, a line every half minute in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pipeline.terminal import escaped
from train.report.html_page import duration

_LOG_INTERVAL_S = 30.0


def status(done: int, total: int, successes: int, num_now: int, seconds: float) -> str:
    """Returns e.g. `120/500 trials, 96 successes, 41 min 2 s left`.

    Args:
      done: Number of trials that have a result.
      total: Number of trials in total.
      successes: Number of successful trials.
      num_now: Number of trials that ended in this session.
      seconds: Seconds since the session started.
    """
    text = f"{done}/{total} trials, {successes} successes"
    if not num_now:
        return text
    # From trials of this session alone: earlier ones took no time now.
    return f"{text}, {duration((total - done) * seconds / num_now)} left"


@contextlib.contextmanager
def shown(name: str, total: int, done: int, successes: int) -> Iterator[Callable[[bool], None]]:
    """Shows the progress on stderr.

    Args:
      name: Name of what is evaluated.
      total: Number of trials in total.
      done: Number of trials that already have a result.
      successes: Number of successful trials among them.

    Yields:
      A function to call after each trial, with whether it succeeded.
    """
    console = Console(stderr=True)
    started = logged = time.perf_counter()
    num_now = num_new_successes = 0
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        first = status(done, total, successes, 0, 0.0)
        row = bar.add_task(escaped(name), total=total, completed=done, status=first)

        def on_trial(is_success: bool) -> None:  # noqa: FBT001  (its one argument)
            nonlocal logged, num_now, num_new_successes
            num_now, num_new_successes = num_now + 1, num_new_successes + is_success
            now = time.perf_counter()
            text = status(
                done + num_now, total, successes + num_new_successes, num_now, now - started
            )
            bar.update(row, advance=1, status=text)
            if not console.is_terminal and now - logged > _LOG_INTERVAL_S:
                logged = now
                sys.stderr.write(f"{escaped(name)}: {text}\n")

        yield on_trial
