"""One column by several processes, on one host or several: each computes a part of its shards.

Every part holds the lock of the dataset together with the other parts, so that other jobs are
refused until the last one has ended. `.conversion/` also has a lock for each part
(`NAME.part-2-of-3.lock`), which says where it runs, and one that a part holds while it starts.
The system frees locks when a process ends, however that happens. Their files stay until the column
is finished.
"""

import contextlib
import dataclasses
import functools
import heapq
import os
import pathlib
import re
import socket
from collections.abc import Collection, Iterator, Sequence

from etils import epath

from pipeline.data.manifest import WORK
from pipeline.errors import UserError
from pipeline.files import locked

START_LOCK = "start.lock"
"""Name of the file in `WORK` that a part locks while it starts."""
_LARGEST_COUNT = 100_000


@dataclasses.dataclass(frozen=True, order=True)
class Part:
    """One of several parts of a column's shards."""

    number: int
    """From 1 to `count`."""
    count: int
    """Parts that make up the column."""

    def __post_init__(self) -> None:
        """Checks that there is such a part."""
        if not 1 <= self.number <= self.count <= _LARGEST_COUNT:
            raise ValueError(f"a part must be from 1/N to N/N, not {self}")

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Inverts `str`.

        Raises:
          ValueError: The text is not of that form, or there is no such part.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None:
            raise ValueError(f"a part must be two numbers such as 2/3, not {text}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        """Formats the part, such as `2/3`."""
        return f"{self.number}/{self.count}"

    def shards(self, num_steps: Sequence[int]) -> list[int]:
        """The numbers of its shards, ascending; none where there are fewer shards than parts."""
        found = shares(tuple(num_steps), self.count)
        return found[self.number - 1] if self.number <= len(found) else []


@functools.lru_cache(maxsize=4)
def shares(num_steps: tuple[int, ...], count: int) -> list[list[int]]:
    """Distributes shards so that each part has about as many steps.

    (6, 2, 2, 2), 2 parts   [[0], [1, 2, 3]]

    Args:
      num_steps: Steps of each shard.
      count: Number of parts.

    Returns:
      The shards of each part, ascending; without parts at the end that have none.
    """
    found: list[list[int]] = [[] for _ in range(min(count, len(num_steps)))]
    # The largest shard that is left goes to the part with the fewest steps. At worst the largest
    # part has 4/3 of the steps that the best distribution would give it (Graham 1969).
    least = [(0, 0, part) for part in range(len(found))]
    for shard in sorted(range(len(num_steps)), key=lambda shard: -num_steps[shard]):
        steps, held, part = least[0]
        found[part].append(shard)
        heapq.heapreplace(least, (steps + num_steps[shard], held + 1, part))
    return [sorted(shards) for shards in found]


@dataclasses.dataclass(frozen=True)
class _Claim:
    """The lock file of a part that runs or has run."""

    path: pathlib.Path
    column: str
    part: Part

    def is_held(self) -> bool:
        """Whether the part is at work."""
        refused = _in_use(self.path, "a part", "a free lock")
        try:
            with locked(self.path, refused):
                return False
        except UserError as error:
            if error is not refused:
                raise
            return True

    def __str__(self) -> str:
        """Describes it, such as `part 2/3 of column t (node7, process 4242)`."""
        where = self.path.read_text().strip() if self.path.exists() else ""
        return f"part {self.part} of column {self.column}" + (f" ({where})" if where else "")


@contextlib.contextmanager
def starting(directory: epath.Path) -> Iterator[None]:
    """Waits until no other part is starting, and keeps the others waiting."""
    # Seconds at most, so it waits where every other lock refuses.
    with locked(pathlib.Path(directory) / WORK / START_LOCK, None):
        yield


def at_work(directory: epath.Path, column: str, parts: Collection[Part]) -> set[Part]:
    """Those of the parts of a column that are at work; the caller is `starting`."""
    claims = [c for c in _claims(directory) if c.column == column and c.part in parts]
    return {claim.part for claim in claims if claim.is_held()}


def describe_at_work(directory: epath.Path) -> str:
    """The parts at work in a dataset, for errors; empty if there are none."""
    if not (directory / WORK / START_LOCK).exists():
        return ""
    with starting(directory):
        return ", ".join(str(claim) for claim in _claims(directory) if claim.is_held())


def last_count(directory: epath.Path, column: str) -> int | None:
    """The number of parts that a column was last distributed to; None if to none."""
    return max((c.part.count for c in _claims(directory) if c.column == column), default=None)


@contextlib.contextmanager
def claimed_part(directory: epath.Path, column: str, part: Part, *, alone: bool) -> Iterator[None]:
    """Holds a part of a column; the caller is `starting`.

    Args:
      directory: The dataset, whose lock is held together with other parts.
      column: Name of the column.
      part: The part.
      alone: Whether the other parts of the same distribution are refused too.

    Raises:
      UserError: Where this part is at work already, or one that would do the same shards or writes
        another column.
    """
    own = _Claim(pathlib.Path(directory) / WORK / _name(column, part), column, part)
    for other in _claims(directory):
        is_sibling = other.column == column and other.part.count == part.count
        if other == own or (is_sibling and not alone):
            continue
        if other.is_held():
            expected = f"no parts at work but those of {part.count} of column {column}"
            expected = "no part at work, as this one starts over" if is_sibling else expected
            raise _in_use(directory, str(other), expected)
        if other.column == column:
            # Dead, and of another distribution: what it has done is known by its shards.
            other.path.unlink()
    expected = "a part that is not at work yet"
    with locked(own.path, _in_use(directory, str(own), expected)) as descriptor:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{socket.gethostname()}, process {os.getpid()}\n".encode())
        yield


def claim_files(directory: epath.Path, column: str | None = None) -> list[epath.Path]:
    """The lock files of the parts of a column, or of all columns."""
    claims = _claims(directory)
    return [epath.Path(claim.path) for claim in claims if column in (None, claim.column)]


def _claims(directory: epath.Path) -> list[_Claim]:
    """The lock files of parts in a dataset, of any column."""
    work, found = pathlib.Path(directory) / WORK, []
    # Names alone, as there may be a file for each of thousands of shards beside them.
    for name in sorted(os.listdir(work)) if work.exists() else ():
        match = re.fullmatch(r"(.+)\.part-(\d{1,6})-of-(\d{1,6})\.lock", name)
        if match and 1 <= int(match[2]) <= int(match[3]) <= _LARGEST_COUNT:
            found.append(_Claim(work / name, match[1], Part(int(match[2]), int(match[3]))))
    return found


def _name(column: str, part: Part) -> str:
    return f"{column}.part-{part.number}-of-{part.count}.lock"


def _in_use(where: os.PathLike[str], found: str, expected: str) -> UserError:
    return UserError(
        where=str(where),
        expected=expected,
        found=f"at work: {found}",
        remedy="Wait for its end, or stop it.",
    )
