"""One shard: the unit of work of every runner, which may be repeated at any time.

What it writes is a function of its source shard alone, so any number of workers in any order, and a
run after a kill, write the same bytes.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from converters.job.bad_episodes import BadEpisode, Checks
from converters.job.file_ownership import PART_SUFFIX
from converters.job.workers import Report
from converters.mapping.standardize import SourceMapping, Standardized, standardize
from converters.sources.image_encoding import QUALITY_NOTE
from converters.sources.reading import check_boundaries
from converters.sources.source import Source, SourceEpisode
from pipeline.added_fields import LATER
from pipeline.data.dataset_writer import ShardWriter
from pipeline.data.images import check_pixels
from pipeline.data.manifest import FORMAT_VERSION, WORK, Shard, TaskChange
from pipeline.data.record import RecordLayout
from pipeline.data.schema import Blob, Schema
from pipeline.errors import DataError, SchemaError, UserError
from pipeline.files import (
    dump_json,
    from_json_text,
    is_remote,
    json_checksum,
    to_json_values,
    write_text_atomically,
    writing,
)

_FAILURE_SUFFIX = ".failure.json"
_START_OVER = "Start over with --overwrite."
# One bad episode is the episode's fault; a hundred without a good one may be the mapping's.
_MANY_BAD = 100
"""Bad episodes at the beginning of a shard, none of them good, that are worth a warning."""
_log = logging.getLogger(__name__)


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
    """Shards by column."""
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
    bad: tuple[BadEpisode, ...] = ()
    """Episodes that cannot be used; they are not in the shards."""
    modified: int = 0
    """Time of the source's file where it has such episodes: they may be fixed in place."""
    num_images: int = 0
    """Images that were decoded."""
    image_seconds: float = 0.0
    """CPU seconds that decoding them took."""
    digest: str = dataclasses.field(default="", metadata=LATER)
    """Digest of the names and sizes of the source's files, where there are several, and of
    `SourceShard.digest`. Where it is another now, the shard is converted again; empty in notes of
    earlier releases too."""


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to convert any shard of a source."""

    source: Source
    mapping: SourceMapping
    schema: Schema
    destination: epath.Path
    checks: Checks = dataclasses.field(default_factory=Checks)
    computation: SourceMapping | None = None
    """What the source was computed by, of which `mapping` is the plain rest; None: it was not."""

    @functools.cached_property
    def plan(self) -> str:
        """What decides the bytes of the dataset, as JSON."""
        source = self.source
        values = {
            "format_version": FORMAT_VERSION,
            "source": [source.name, source.version, source.split],
            # Only the name: the source may be moved between a kill and the next run.
            "shards": [[s.name, s.start, s.stop] for s in source.shards],
            "schema_hash": self.schema.hash(),
            "mapping": _deciding(self.mapping),
        }
        # Absent by default, so that plans of jobs before these options keep their digest.
        if self.checks.check_images:
            values["check_images"] = True
        if QUALITY_NOTE in source.notes:
            values[QUALITY_NOTE] = source.notes[QUALITY_NOTE]
        if self.computation is not None:
            values["computation"] = _deciding(self.computation)
            values["step_ranges"] = source.notes.get("step_ranges", "")
        return dump_json(values)

    @functools.cached_property
    def plan_digest(self) -> str:
        """16 hex digits of the plan."""
        return hashlib.sha256(self.plan.encode()).hexdigest()[:16]

    def convert(self, number: int, report: Report) -> None:
        """Writes one shard of every column from the source's shard of that number.

        Episodes that cannot be used are left out and noted.

        Raises:
          UserError: Where the file cannot be read to its end, or all of its first episodes are bad
            and the job stops at such; or where the shard cannot be written.
        """
        file = f"{number:05d}-of-{len(self.source.shards):05d}.arrayrecord"
        notes = _Notes()
        # All columns are written in one pass, so each record of the source is read and parsed once.
        with contextlib.ExitStack() as stack:
            writers = [
                _ColumnWriter(
                    number,
                    RecordLayout(column),
                    stack.enter_context(ShardWriter(self.destination, f"{column.name}/{file}")),
                )
                for column in self.schema.columns
            ]
            num_left = self.source.shards[number].num_episodes
            for episode in self.source.episodes(self.source.shards[number], self._wanted):
                num_left -= 1
                standardized = self._standardized(episode, notes)
                # The no-op filter may leave an episode without steps; no record is written for it.
                if standardized is not None and standardized.num_steps:
                    for writer in writers:
                        writer.write(standardized)
                report(episode.num_bytes)
                self._warn_of_many(number, notes)
                del episode, standardized  # before the next one is read
            for _ in range(num_left):  # those that the mapping leaves out
                report(0)
        # After the block: leaving it has renamed the files, and only then they are described.
        written = {writer.layout.column.name: writer.file.finished() for writer in writers}
        source, digest = self._source(number)
        part = notes.part(self.plan_digest, source, written)
        modified = self._modified(number) if part.bad else 0
        part = dataclasses.replace(part, digest=digest, modified=modified)
        # Written last: this file marks the shard as done, and a kill before it repeats the shard.
        path = self._path(number, PART_SUFFIX)
        with writing(path):
            write_text_atomically(path, dump_json(to_json_values(part)))

    def _standardized(self, episode: SourceEpisode, notes: "_Notes") -> Standardized | None:
        """An episode in its types at rest, noted; None for one that cannot be used."""
        where = episode.where
        try:
            # The error stands in for one episode; the rest of the shard is still read.
            if isinstance(episode.values, UserError):
                raise episode.values
            check_boundaries(episode.values, where)
            standardized = standardize(episode.values, self.schema, self.mapping, where)
            if self.checks.check_images:
                notes.count_images(*_decode(standardized, self.schema, where))
        except (DataError, SchemaError) as error:
            # Only what the source or the mapping got wrong; any other error is a bug and ends the
            # job.
            notes.bad.append(BadEpisode.of(episode.number, error))
            return None
        # After the last check, so a bad episode leaves no task or length behind.
        notes.add(standardized)
        return standardized

    @functools.cached_property
    def _wanted(self) -> frozenset[str]:
        """Keys of the source that are read."""
        features = (feature for _, feature in self.schema.features())
        taken = {part.source for feature in features for part in feature.origins}
        # Parsing only these keys leaves unused cameras and tokens untouched.
        return frozenset(taken | ({self.mapping.task_key} - {""}))

    def _warn_of_many(self, number: int, notes: "_Notes") -> None:
        """Warns early where the mapping or the source may be wrong, and not an episode."""
        stops = self.checks.bad_episodes == "stop"
        if stops and not notes.num_good and len(notes.bad) == _MANY_BAD:
            shard = self.source.shards[number]
            _log.warning(
                "none of the first %d episodes of %s can be used, such as episode %d: %s. All are "
                "listed at the end; Ctrl-C ends the job now",
                _MANY_BAD,
                shard.name,
                notes.bad[0].episode,
                notes.bad[0].skipped(shard, self.source).reason,
            )

    def is_done(self, number: int) -> bool:
        """Whether the shard has been written by this plan, from the file that lies there now.

        One with bad episodes has not where its source was changed since, be it at the same size.
        """
        if not self._path(number, PART_SUFFIX).exists():
            return False
        part = self.part(number)
        # The cheap comparisons come first; sizes of shards cost a request each in an object store.
        if part.plan != self.plan_digest:
            return False
        source, digest = self._source(number)
        return (
            part.source == source
            and part.digest in ("", digest)
            # Time of change matters only here: a copied source has new times, and good shards stay
            # valid.
            and (not part.bad or part.modified == self._modified(number))
            and all(self._is_there(shard) for shard in part.shards.values())
        )

    def _is_there(self, shard: Shard) -> bool:
        path = self.destination / shard.file
        # Size only: reading every shard for its checksum would take as long as converting.
        return path.exists() and path.stat().length == shard.num_bytes

    def _source(self, number: int) -> tuple[tuple[int, int], str]:
        """What a part notes of its shard of the source: `Part.source` and `Part.digest`.

        The bytes are -1 where a file is missing.
        """
        shard = self.source.shards[number]
        sizes = [int(path.stat().length) if path.exists() else -1 for path in shard.paths]
        num_bytes = -1 if -1 in sizes else sum(sizes)
        # Relative, since the source may be moved between a kill and the next run.
        names = [os.path.relpath(path, self.source.directory) for path in shard.paths]
        # The name of a shard, which is in the plan, tells a single file.
        is_known_by_name = len(names) < 2 and not shard.digest
        digest = "" if is_known_by_name else json_checksum([names, sizes, shard.digest])
        return (num_bytes, shard.num_records), digest

    def _modified(self, number: int) -> int:
        """The time of the last change of a shard of the source; 0 if missing.

        In ns since the epoch on a disk, in s in an object store.
        """
        return max(map(_modified, self.source.shards[number].paths), default=0)

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
        # As a file, because the exception itself cannot cross from a Beam worker's machine.
        failure = Failure(error.where, error.expected, error.found, error.remedy)
        text = dump_json(to_json_values(failure))
        write_text_atomically(self._path(number, _FAILURE_SUFFIX), text)

    def failure(self, number: int) -> UserError:
        """Why a shard is not done."""
        path = self._path(number, _FAILURE_SUFFIX)
        if not path.exists():
            return UserError(
                where=self.source.shards[number].where,
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
            # One record per step: a random window reads only its own images.
            self._append(1, {k: _at(v, t) for k, v in values.items()})

    def _append(self, num_steps: int, values: Mapping[str, np.ndarray | Blob]) -> None:
        # The place is counted within the shard, so no other shard has to be finished.
        place = (self.number, self.file.count)
        self.file.write(self.layout.encode(place, num_steps, values))


@dataclasses.dataclass
class _Notes:
    """What the manifest will say of the episodes of one shard."""

    lengths: list[int] = dataclasses.field(default_factory=list)
    # Instruction to its index in this part, in the order of first occurrence.
    tasks: dict[str, int] = dataclasses.field(default_factory=dict)
    episode_tasks: list[int] = dataclasses.field(default_factory=list)
    changes: list[TaskChange] = dataclasses.field(default_factory=list)
    removed: dict[int, int] = dataclasses.field(default_factory=dict)
    bad: list[BadEpisode] = dataclasses.field(default_factory=list)
    num_good: int = 0
    num_images: int = 0
    image_seconds: float = 0.0

    def count_images(self, num_images: int, seconds: float) -> None:
        self.num_images += num_images
        self.image_seconds += seconds

    def add(self, episode: Standardized) -> None:
        self.num_good += 1
        for text in episode.removed:
            # Counted before the return below: an episode of no-ops alone still names its task.
            task = self._index(text)
            self.removed[task] = self.removed.get(task, 0) + 1
        if not episode.num_steps:
            return
        indices = [self._index(text) for text in episode.tasks]
        for step, (before, task) in enumerate(itertools.pairwise(indices), 1):
            # Only changes are kept; nearly all episodes have one instruction.
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
            bad=tuple(self.bad),
            num_images=self.num_images,
            image_seconds=round(self.image_seconds, 3),
        )

    def _index(self, text: str) -> int:
        return self.tasks.setdefault(text, len(self.tasks))


def _deciding(mapping: SourceMapping) -> Any:
    """The fields of a mapping that decide what a dataset holds, as JSON values."""
    without = dataclasses.replace(mapping, names=(), formats=(), about="", references=())
    return to_json_values(without)


def _decode(episode: Standardized, schema: Schema, where: str) -> tuple[int, float]:
    """(images of an episode, seconds of CPU that decoding them took).

    Raises:
      DataError: One that is not readable to its end.
    """
    # CPU time, which does not grow when workers share cores.
    started = time.process_time()
    num_images = 0
    for _, feature in schema.features():
        if feature.kind not in ("image", "depth"):
            continue
        for t, encoded in enumerate(episode.values[feature.key]):
            # Blobs, since only images get here.
            assert not isinstance(encoded, np.ndarray)
            check_pixels(encoded, f"{where}, {feature.source}, step {t}")
            num_images += 1
    return num_images, time.process_time() - started


def _modified(path: epath.Path) -> int:
    if not path.exists():
        return 0
    # etils has whole seconds, within which a fix of the same size could hide.
    return path.stat().mtime if is_remote(path) else os.stat(path).st_mtime_ns


def _whole(value: np.ndarray | list[Blob]) -> np.ndarray | Blob:
    return value if isinstance(value, np.ndarray) else b"".join(value)


def _at(value: np.ndarray | list[Blob], t: int) -> np.ndarray | Blob:
    # `...` keeps a 0-d array, where `value[t]` of one axis would be a scalar.
    return value[t, ...] if isinstance(value, np.ndarray) else value[t]
