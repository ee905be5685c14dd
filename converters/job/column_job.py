"""The job that adds a column: it resumes where it stopped when it was killed, shard by shard."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from converters.job.columns import (
    PART_SUFFIX,
    clear_up,
    remove_temporaries,
    replace_manifest,
    with_column,
)
from converters.job.file_ownership import NOTE_SUFFIX, plan_digest
from pipeline.data.dataset_writer import ShardWriter
from pipeline.data.manifest import (
    FILE_NAME,
    WORK,
    Manifest,
    Shard,
    check_consistency,
    load_manifest,
)
from pipeline.data.record import RecordLayout
from pipeline.data.schema import EPISODES, Blob, Column
from pipeline.data.token_provenance import TokenOrigin
from pipeline.errors import DataError, UserError
from pipeline.files import (
    UNPARSABLE,
    dump_json,
    from_json_text,
    to_json_values,
    write_text_atomically,
    writing,
)

_START_OVER = "Start over with --overwrite."
# Rounded up from the measured 69 bytes; the estimate must not be too low.
_RECORD_OVERHEAD_BYTES = 100
_SHARD_OVERHEAD_BYTES = 128 << 10
"""Overhead of an ArrayRecord file; measured: 69 bytes per record and at most 2 x 64 KiB."""
_MB = 1e6

Record = Mapping[str, np.ndarray | Blob]
"""Values of one step, by feature key."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A shard that is done."""

    plan: str
    """Digest of the plan that it belongs to."""
    shard: Shard


@dataclasses.dataclass(frozen=True)
class ColumnJob:
    """A column on its way into a dataset."""

    directory: epath.Path
    """Directory of the dataset, on a disk."""
    manifest: Manifest
    """Manifest of the dataset, as the job found it."""
    column: Column
    """What is added."""
    settings: Mapping[str, Any]
    """What else decides its bytes; JSON values."""
    reads: frozenset[str]
    """Columns that it is made from."""

    @functools.cached_property
    def plan(self) -> str:
        """What decides the bytes of the column, as JSON."""
        column = to_json_values(self.column)
        # Without conventions and encoders: they change no image, and editing them keeps the job.
        source = {"digest": self.manifest.data_digest({EPISODES, *self.reads})}
        return dump_json({"column": column, "source": source, "settings": self.settings})

    @functools.cached_property
    def digest(self) -> str:
        """8 hex digits of the plan, which are in the name of every file that the job writes."""
        return plan_digest(self.plan)

    def file(self, number: int) -> str:
        """A shard's, relative to the dataset directory."""
        count = len(self.manifest.shards[EPISODES])
        # The digest in the name keeps a new column apart from the published one with other
        # settings.
        return f"{self.column.name}/{number:05d}-of-{count:05d}-{self.digest}.arrayrecord"

    @functools.cached_property
    def steps(self) -> tuple[range, ...]:
        """Steps of the dataset in each shard."""
        # Episode records of each shard, in order; the new column has the same shards.
        ends, ranges, first = np.cumsum([0, *self.manifest.episode_lengths]).tolist(), [], 0
        for shard in self.manifest.shards[EPISODES]:
            ranges.append(range(ends[first], ends[first + shard.records]))
            first += shard.records
        return tuple(ranges)

    def is_published(self) -> bool:
        """Whether the dataset has the column, written by this very plan."""
        shards = self.manifest.shards.get(self.column.name, ())
        return any(shard.file == self.file(n) for n, shard in enumerate(shards))

    def begin(self, *, overwrite: bool) -> None:
        """Notes the plan in a dataset that is claimed: from now on this job is the one to resume.

        Args:
          overwrite: Whether the unfinished job of another plan gives way.

        Raises:
          UserError: Where there is one, and it does not.
        """
        name, noted = self.column.name, self._noted()
        if noted is not None and noted != self.plan and not overwrite:
            raise UserError(
                where=f"{self.directory}, column {name}",
                expected="no unfinished one, or one of these settings",
                found=f"one with {_difference(noted, self.plan)}",
                remedy=f"Finish that one (see {self._note}), start over with --overwrite, or take "
                "another --name.",
            )
        with writing(self.directory):
            # Only for another plan: the same one resumes from the files that are there.
            if noted != self.plan:
                clear_up(self.directory, name)
            # Noted before the first shard is written, so that every file has an owner after a kill.
            write_text_atomically(self._note, self.plan)
            # A killed writer's file; the lock says that none is at work.
            remove_temporaries(self.directory / name, self.digest)

    @property
    def _note(self) -> epath.Path:
        return self.directory / WORK / f"{self.column.name}{NOTE_SUFFIX}"

    def _noted(self) -> str | None:
        return self._note.read_text() if self._note.exists() else None

    def is_begun(self) -> bool:
        """Whether this very plan was noted, by a job that did not come to its end."""
        return self._noted() == self.plan

    def pending(self) -> list[int]:
        """Numbers of the shards that are not done."""
        # By what lies on the disk, not by a list in memory.
        return [number for number in range(len(self.steps)) if self._part(number) is None]

    def check_room(self, pending: Iterable[int]) -> None:
        """Raises `UserError` where the disk has no room for the shards that are to be written."""
        needed = sum(self.shard_bytes(number) for number in pending)
        free = shutil.disk_usage(self.directory).free
        # Checked before hours of computing, not when the disk is full.
        if needed > free:
            raise UserError(
                where=str(self.directory / self.column.name),
                expected=f"{needed / _MB:,.1f} MB free on the disk, for what is to be written",
                found=f"{free / _MB:,.1f} MB",
                remedy="Free space, or store less: see --store, --keep and --report.",
            )

    def shard_bytes(self, number: int) -> int:
        """About the size of a shard's file."""
        record = sum(feature.nbytes for feature in self.column.features) + _RECORD_OVERHEAD_BYTES
        return len(self.steps[number]) * record + _SHARD_OVERHEAD_BYTES

    def write(self, number: int, records: Iterable[Record]) -> None:
        """Writes a shard, one record per step.

        Raises:
          DataError: Where the disk is full or may not be written; nothing is left of the shard.
        """
        layout = RecordLayout(self.column)
        with ShardWriter(self.directory, self.file(number)) as writer:
            for record in records:
                writer.write(layout.encode((number, writer.count), 1, record))
        # Only after the block the shard has its final name.
        part = _Part(self.digest, writer.finished())
        path = self._part_path(number)
        with writing(path):
            # Last: the part marks the shard as done.
            write_text_atomically(path, dump_json(to_json_values(part)))

    def finish(self, licence: str, encoders: Mapping[str, TokenOrigin]) -> Manifest:
        """Puts the column into `dataset.json`, in the place of one of its name, and clears up.

        What else is in `dataset.json` is kept as it is now: it may have been edited meanwhile.

        Raises:
          DataError: Where the columns that it was made from are others now.
        """
        # Read again: `octograin edit` may have changed it during the hours of the job.
        now, read = load_manifest(self.directory), {EPISODES, *self.reads}
        if now.data_digest(read) != self.manifest.data_digest(read):
            raise DataError(
                where=str(self.directory),
                expected="the images that the tokens were computed from",
                found="others",
                remedy="The dataset was replaced meanwhile: run the same command again.",
            )
        parts = [self._part(number) for number in range(len(self.steps))]
        # Each is there by now; the filter is for the type checker.
        shards = tuple(part.shard for part in parts if part is not None)
        added = with_column(now, self.column, shards, licence, encoders)
        check_consistency(added, str(self.directory / FILE_NAME))
        with writing(self.directory):
            # From here on training reads the new column.
            replace_manifest(self.directory, now, added)
            # Only then the old column's files go.
            clear_up(self.directory, self.column.name)
        return added

    def _part(self, number: int) -> _Part | None:
        """A shard that this plan has written, and that lies there; None: it has to be written."""
        path = self._part_path(number)
        if not path.exists():
            return None
        part = from_json_text(_Part, path.read_text(), where=str(path), remedy=_START_OVER)
        file = self.directory / part.shard.file
        is_there = file.exists() and file.stat().length == part.shard.num_bytes
        # A part of another plan, or whose file is gone, is written again.
        return part if part.plan == self.digest and is_there else None

    def _part_path(self, number: int) -> epath.Path:
        return self.directory / WORK / f"{self.column.name}.{number:05d}{PART_SUFFIX}"


def _difference(noted: str, plan: str) -> str:
    """The settings of a plan that was noted that are others in this one, with both values."""
    try:
        theirs = _flat(json.loads(noted))
    except (*UNPARSABLE, AttributeError):
        # Valid JSON that is no object has no `items`.
        return "a plan that is corrupt"
    ours = _flat(json.loads(plan))
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return "; ".join(f"{key} {theirs.get(key)}, not {ours.get(key)}" for key in keys)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path; a list is a leaf."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
