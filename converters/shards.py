"""One shard: the unit of work of every runner, which may be repeated at any time.

What it writes is a function of its source shard alone, so any number of workers in any order, and a
run after a kill, write the same bytes.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping

import numpy as np
from etils import epath

from converters.ownership import PART_SUFFIX
from converters.rlds.example import read_episodes
from converters.rlds.source import RldsSource
from converters.standardize import SourceMapping, Standardized, standardize
from converters.workers import Report
from pipeline.errors import UserError
from pipeline.files import (
    dump_json,
    from_json_text,
    to_json_values,
    write_text_atomically,
    writing,
)
from pipeline.manifest import FORMAT_VERSION, WORK, Shard, TaskChange
from pipeline.record import RecordLayout
from pipeline.schema import Blob, Schema
from pipeline.writer import ShardWriter

_FAILURE_SUFFIX = ".failure.json"
_START_OVER = "Start over with --overwrite."


@dataclasses.dataclass(frozen=True)
class Failure:
    """The fields of a `UserError`."""

    where: str
    expected: str
    found: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Part:
    """What was written from one source shard; the file that holds it marks the shard as done."""

    plan: str
    """Digest of the plan that it belongs to."""
    source: tuple[int, int]
    """Bytes and records of the source's file. Where they are others now, it is converted again."""
    shards: Mapping[str, Shard]
    """By column."""
    episode_lengths: tuple[int, ...]
    """Steps of each episode that has any left."""
    tasks: tuple[str, ...]
    """Instructions in the order in which they first occur."""
    episode_tasks: tuple[int, ...]
    """Index into `tasks` of each episode's first step."""
    task_changes: tuple[TaskChange, ...]
    """Counting episodes and tasks of this part."""
    removed_steps: tuple[int, ...]
    """Steps that the no-op filter left out, by task."""


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to convert any shard of a source."""

    source: RldsSource
    mapping: SourceMapping
    schema: Schema
    destination: epath.Path

    @functools.cached_property
    def plan(self) -> str:
        """What decides the bytes of the dataset, as JSON."""
        source = self.source
        return dump_json(
            {
                "format_version": FORMAT_VERSION,
                "source": [source.name, source.version, source.split],
                "shards": [[s.path.name, s.start, s.stop] for s in source.shards],
                "schema_hash": self.schema.hash(),
                "mapping": to_json_values(self.mapping),
            }
        )

    @functools.cached_property
    def plan_digest(self) -> str:
        """16 hex digits of the plan."""
        return hashlib.sha256(self.plan.encode()).hexdigest()[:16]

    def convert(self, number: int, report: Report) -> None:
        """Writes one shard of every column from the source's shard of that number.

        Raises:
          UserError: Where the source is not what it declares, or the file cannot be written.
        """
        file = f"{number:05d}-of-{len(self.source.shards):05d}.arrayrecord"
        wanted = {
            part.source for _, feature in self.schema.features() for part in feature.origins
        } | ({self.mapping.task_key} - {""})
        notes = _Notes()
        with contextlib.ExitStack() as stack:
            writers = [
                _ColumnWriter(
                    number,
                    RecordLayout(column),
                    stack.enter_context(ShardWriter(self.destination, f"{column.name}/{file}")),
                )
                for column in self.schema.columns
            ]
            shard = self.source.shards[number]
            for where, num_bytes, episode in read_episodes(self.source, shard, wanted):
                standardized = standardize(episode, self.schema, self.mapping, where)
                notes.add(standardized)
                if standardized.num_steps:
                    for writer in writers:
                        writer.write(standardized)
                report(num_bytes)
                del episode, standardized  # before the next one is read
        written = {writer.layout.column.name: writer.file.finished() for writer in writers}
        part = notes.part(self.plan_digest, self._source(number), written)
        path = self._path(number, PART_SUFFIX)
        with writing(path):
            write_text_atomically(path, dump_json(to_json_values(part)))

    def is_done(self, number: int) -> bool:
        """Whether the shard has been written by this plan, from the file that lies there now."""
        if not self._path(number, PART_SUFFIX).exists():
            return False
        part = self.part(number)
        return (
            part.plan == self.plan_digest
            and part.source == self._source(number)
            and all(self._is_there(shard) for shard in part.shards.values())
        )

    def _is_there(self, shard: Shard) -> bool:
        path = self.destination / shard.file
        return path.exists() and path.stat().length == shard.num_bytes

    def _source(self, number: int) -> tuple[int, int]:
        """Bytes, -1 where the file is missing, and declared records of a shard of the source."""
        shard = self.source.shards[number]
        num_bytes = shard.path.stat().length if shard.path.exists() else -1
        return int(num_bytes), shard.num_records

    def part(self, number: int) -> Part:
        """What was written from a shard that is done.

        Raises:
          DataError: Where the file that says so is not what `convert` writes.
        """
        path = self._path(number, PART_SUFFIX)
        return from_json_text(Part, path.read_text(), where=str(path), remedy=_START_OVER)

    def forget_failure(self, number: int) -> None:
        """Removes the note of an earlier run."""
        self._path(number, _FAILURE_SUFFIX).unlink(missing_ok=True)

    def fail(self, number: int, error: UserError) -> None:
        """Notes why a shard could not be converted, for a runner far away."""
        failure = Failure(error.where, error.expected, error.found, error.remedy)
        text = dump_json(to_json_values(failure))
        write_text_atomically(self._path(number, _FAILURE_SUFFIX), text)

    def failure(self, number: int) -> UserError:
        """Why a shard is not done."""
        path = self._path(number, _FAILURE_SUFFIX)
        if not path.exists():
            return UserError(
                where=str(self.source.shards[number].path),
                expected="its shard to be converted",
                found="neither a result nor a reason",
                remedy="See the runner's own log, and run the same command again.",
            )
        failure = from_json_text(Failure, path.read_text(), where=str(path), remedy=_START_OVER)
        return UserError(**dataclasses.asdict(failure))

    def _path(self, number: int, suffix: str) -> epath.Path:
        return self.destination / WORK / f"{number:05d}{suffix}"


@dataclasses.dataclass(frozen=True)
class _ColumnWriter:
    """Appends episodes to one column's shard."""

    number: int
    layout: RecordLayout
    file: ShardWriter

    def write(self, episode: Standardized) -> None:
        """Appends one record, or one for each step."""
        values = {f.key: episode.values[f.key] for f in self.layout.column.features}
        if self.layout.column.per == "episode":
            self._append(episode.num_steps, {k: _whole(v) for k, v in values.items()})
            return
        for t in range(episode.num_steps):
            self._append(1, {k: _at(v, t) for k, v in values.items()})

    def _append(self, num_steps: int, values: Mapping[str, np.ndarray | Blob]) -> None:
        place = (self.number, self.file.count)
        self.file.write(self.layout.encode(place, num_steps, values))


@dataclasses.dataclass
class _Notes:
    """What the manifest will say of the episodes of one shard."""

    lengths: list[int] = dataclasses.field(default_factory=list)
    tasks: dict[str, int] = dataclasses.field(default_factory=dict)
    episode_tasks: list[int] = dataclasses.field(default_factory=list)
    changes: list[TaskChange] = dataclasses.field(default_factory=list)
    removed: dict[int, int] = dataclasses.field(default_factory=dict)

    def add(self, episode: Standardized) -> None:
        for text in episode.removed:
            task = self._index(text)
            self.removed[task] = self.removed.get(task, 0) + 1
        if not episode.num_steps:
            return
        indices = [self._index(text) for text in episode.tasks]
        for step, (before, task) in enumerate(itertools.pairwise(indices), 1):
            if task != before:
                self.changes.append(TaskChange(len(self.lengths), step, task))
        self.lengths.append(episode.num_steps)
        self.episode_tasks.append(indices[0])

    def part(self, plan: str, source: tuple[int, int], shards: Mapping[str, Shard]) -> Part:
        return Part(
            plan=plan,
            source=source,
            shards=shards,
            episode_lengths=tuple(self.lengths),
            tasks=tuple(self.tasks),
            episode_tasks=tuple(self.episode_tasks),
            task_changes=tuple(self.changes),
            removed_steps=tuple(self.removed.get(i, 0) for i in range(len(self.tasks))),
        )

    def _index(self, text: str) -> int:
        return self.tasks.setdefault(text, len(self.tasks))


def _whole(value: np.ndarray | list[Blob]) -> np.ndarray | Blob:
    return value if isinstance(value, np.ndarray) else b"".join(value)


def _at(value: np.ndarray | list[Blob], t: int) -> np.ndarray | Blob:
    return value[t, ...] if isinstance(value, np.ndarray) else value[t]
