"""How far a job is: a bar in a terminal, a line every half minute in a log."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pipeline.terminal import escaped

_LOG_INTERVAL_S = 30.0
_UPDATE_INTERVAL_S = 0.1
_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Unit:
    """What a job counts."""

    plural: str
    """Such as `episodes`."""
    short: str
    """Such as `ep`, before `/s`."""


EPISODES = Unit("episodes", "ep")
FRAMES = Unit("frames", "frames")


@dataclasses.dataclass
class Status:
    """Counts of a job under way, and what they say about its speed."""

    total: int
    """Episodes to do, or what else is counted."""
    done: int = 0
    """Those that are done, now or by an earlier run."""
    num_episodes: int = 0
    """Done now."""
    num_bytes: int = 0
    """Bytes of the source that are read now, or bytes written."""
    unit: Unit = EPISODES
    """What is counted."""

    def add(self, num_episodes: int, num_bytes: int) -> None:
        """Counts episodes; those without bytes were done by an earlier run."""
        self.done += num_episodes
        # Only work of this run counts for the speed.
        if num_bytes:
            self.num_episodes += num_episodes
            self.num_bytes += num_bytes

    def text(self, seconds: float) -> str:
        """Such as `120/432 episodes, 31.2 ep/s, 98.1 MB/s, 0:10 left`."""
        counts = f"{self.done}/{self.total} {self.unit.plural}"
        if not self.num_episodes or seconds <= 0:
            return counts
        rate = self.num_episodes / seconds
        left = clock((self.total - self.done) / rate)
        megabytes = self.num_bytes / seconds / _MB
        return f"{counts}, {rate:.1f} {self.unit.short}/s, {megabytes:.1f} MB/s, {left} left"


def clock(seconds: float) -> str:
    """Such as 1:05 or 2:00:00."""
    left = round(seconds)
    hours, minutes = divmod(left // 60, 60)
    return f"{hours}:{minutes:02d}:{left % 60:02d}" if hours else f"{minutes}:{left % 60:02d}"


@contextlib.contextmanager
def shown(
    name: str,
    total: int,
    unit: Unit = EPISODES,
    *,
    beside: Callable[[int], str] = lambda num_episodes: "",
) -> Iterator[Callable[[int, int], None]]:
    """Shows the progress of a job on stderr.

    Args:
      name: Name of what is counted.
      total: Episodes, or what `unit` says.
      unit: What is counted.
      beside: Returns what stands behind the counts of this job, such as those of others; called
        with the episodes done since the last call.

    Yields:
      What to call with the episodes and bytes done since the last call. In a log, short jobs stay
      silent: an error stays their only line.
    """
    console = Console(stderr=True)
    status = Status(total, unit=unit)
    started = time.perf_counter()
    # The first call is always shown: it counts what earlier runs have done.
    logged, updated = started, started - _UPDATE_INTERVAL_S
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[status]}"),
        console=console,
        # In a log, lines instead of a bar.
        disable=not console.is_terminal,
    ) as bar:
        row = bar.add_task(escaped(name), total=total, status=status.text(0.0))

        def on_progress(num_episodes: int, num_bytes: int) -> None:
            nonlocal logged, updated
            status.add(num_episodes, num_bytes)
            more, now = beside(num_episodes), time.perf_counter()
            # Texts for each of a million episodes would take 10 s.
            if now - updated < _UPDATE_INTERVAL_S and status.done < status.total:
                return
            updated = now
            text = status.text(now - started) + more
            bar.update(row, completed=status.done, status=text)
            # The bar redraws itself; a log gets a line every half minute.
            if not console.is_terminal and now - logged > _LOG_INTERVAL_S:
                logged = now
                sys.stderr.write(f"{escaped(name)}: {text}\n")

        yield on_progress
