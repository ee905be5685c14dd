"""The job that adds a column: it resumes where it stopped when it was killed, shard by shard."""

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from converters.job.column_parts import Part, claimed_part, starting
from converters.job.columns import (
    DONE_SUFFIX,
    ENCODERS_SUFFIX,
    check_free,
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
_FLAGS = {
    "weights_digest": "--weights",
    "licence": "--licence",
    "cameras": "--cameras",
    "layers": "--layers",
    "views": "--views",
    "image_size": "--size",
    "keep": "--keep",
    "store": "--store",
    "compute_dtype": "--compute_dtype",
    "precision": "--precision",
    "digest": "the dataset's checksum",
}
"""What a user knows a field of a plan by."""

Record = Mapping[str, np.ndarray | Blob]
"""Values of one step, by feature key."""


@dataclasses.dataclass(frozen=True)
class _Done:
    """A shard that is done."""

    plan: str
    """Digest of the plan that it belongs to."""
    shard: Shard


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What is known of a column's features once a sample has been measured."""

    plan: str
    """Digest of the plan that it belongs to."""
    encoders: dict[str, TokenOrigin]
    """The origin of each feature, with its errors."""


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

    @functools.cached_property
    def num_steps(self) -> tuple[int, ...]:
        """Steps of each shard."""
        return tuple(map(len, self.steps))

    def is_published(self) -> bool:
        """Whether the dataset has the column, written by this very plan."""
        shards = self.manifest.shards.get(self.column.name, ())
        return any(shard.file == self.file(n) for n, shard in enumerate(shards))

    def check_plan(self, *, overwrite: bool, remedy: str = "") -> None:
        """Checks that no unfinished job of another plan is in the way.

        Args:
          overwrite: Whether it gives way.
          remedy: What to do where it does not, if it is something else than usual.

        Raises:
          UserError: Where there is one, and it does not.
        """
        name, noted = self.column.name, self._noted()
        if noted is not None and noted != self.plan and not overwrite:
            raise UserError(
                where=f"{self.directory}, column {name}",
                expected="no unfinished one, or one of these settings",
                found=f"one with {plan_difference(noted, self.plan)}",
                remedy=remedy
                or f"Finish that one (see {self._note}), start over with --overwrite, or take "
                "another --name.",
            )

    def begin(self, *, overwrite: bool, numbers: Iterable[int] | None = None) -> None:
        """Notes the plan in a dataset that is claimed: from now on this job is the one to resume.

        Args:
          overwrite: Whether the unfinished job of another plan gives way.
          numbers: Shards of this part of the job, if others may be at work; None: all of them.

        Raises:
          UserError: Where there is one, and it does not.
        """
        self.check_plan(overwrite=overwrite)
        with writing(self.directory):
            # Only for another plan: the same one resumes from the files that are there.
            if not self.is_begun():
                # A part that begins holds its lock, whose file has to stay.
                clear_up(self.directory, self.column.name, locks=numbers is None)
                # Noted before the first shard is written, so that every file has an owner after a
                # kill.
                write_text_atomically(self._note, self.plan)
            # What a killed writer of these shards left; the claim says that none is at work.
            numbers = range(len(self.steps)) if numbers is None else numbers
            own = {path.name for n in numbers for path in (self._file(n), self._done_path(n))}
            for folder in (self.directory / self.column.name, self.directory / WORK):
                remove_temporaries(folder, own.__contains__)

    @contextlib.contextmanager
    def begun_part(self, part: Part, *, overwrite: bool) -> Iterator[list[int]]:
        """Begins a part in a dataset that is `joined`, and holds it; others may be at work.

        Args:
          part: Which of the shards.
          overwrite: Whether a computed column of the name gives way at the end, or the unfinished
            job of another plan now.

        Yields:
          Numbers of the part's shards.

        Raises:
          UserError: Where the name is taken, the disk has no room, another plan is in the way, or
            another part that may not run beside this one is at work.
        """
        name, keys = self.column.name, [feature.key for feature in self.column.features]
        numbers = part.shards(self.num_steps)
        with contextlib.ExitStack() as claim:
            # Parts start one after the other: only the first one finds no plan.
            with starting(self.directory):
                check_free(self.manifest, name, keys, str(self.directory), overwrite=overwrite)
                self.check_plan(overwrite=overwrite)
                is_resumed = self.is_begun()
                self.check_room(self.pending(numbers) if is_resumed else numbers)
                # What another plan has left is deleted, so no part of it may be at work.
                held = claimed_part(self.directory, name, part, alone=not is_resumed)
                claim.enter_context(held)
                self.begin(overwrite=overwrite, numbers=numbers)
            yield numbers

    @property
    def _note(self) -> epath.Path:
        return self.directory / WORK / f"{self.column.name}{NOTE_SUFFIX}"

    def _noted(self) -> str | None:
        return self._note.read_text() if self._note.exists() else None

    def is_begun(self) -> bool:
        """Whether this very plan was noted, by a job that did not come to its end."""
        return self._noted() == self.plan

    def pending(self, numbers: Iterable[int] | None = None) -> list[int]:
        """Numbers of the shards that are not done, among some or all."""
        # By what lies on the disk, not by a list in memory.
        numbers = range(len(self.steps)) if numbers is None else numbers
        return [number for number in numbers if self._done(number) is None]

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
        done = _Done(self.digest, writer.finished())
        path = self._done_path(number)
        with writing(path):
            # Last: this file marks the shard as done.
            write_text_atomically(path, dump_json(to_json_values(done)))

    def measured(self) -> dict[str, TokenOrigin] | None:
        """What `note_measured` noted for this plan; None if nothing."""
        noted = _noted_measured(self.directory, self.column.name)
        return noted.encoders if noted is not None and noted.plan == self.digest else None

    def note_measured(self, encoders: Mapping[str, TokenOrigin]) -> None:
        """Notes the origins of the features with their errors, for a later run or another part."""
        path = _measured_path(self.directory, self.column.name)
        with writing(path):
            # Parts that measure at the same time note equal values.
            text = dump_json(to_json_values(_Measured(self.digest, dict(encoders))))
            write_text_atomically(path, text)

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
        found = [self._done(number) for number in range(len(self.steps))]
        # Each is there by now; the filter is for the type checker.
        shards = tuple(done.shard for done in found if done is not None)
        added = with_column(now, self.column, shards, licence, encoders)
        check_consistency(added, str(self.directory / FILE_NAME))
        with writing(self.directory):
            # From here on training reads the new column.
            replace_manifest(self.directory, now, added)
            # Only then the old column's files go.
            clear_up(self.directory, self.column.name)
        return added

    def _done(self, number: int) -> _Done | None:
        """A shard that this plan has written, and that lies there; None: it has to be written."""
        path = self._done_path(number)
        if not path.exists():
            return None
        done = from_json_text(_Done, path.read_text(), where=str(path), remedy=_START_OVER)
        file = self.directory / done.shard.file
        is_there = file.exists() and file.stat().length == done.shard.num_bytes
        # One of another plan, or whose file is gone, is written again.
        return done if done.plan == self.digest and is_there else None

    def _done_path(self, number: int) -> epath.Path:
        return self.directory / WORK / f"{self.column.name}.{number:05d}{DONE_SUFFIX}"

    def _file(self, number: int) -> epath.Path:
        return self.directory / self.file(number)


def noted_encoders(directory: epath.Path, name: str) -> dict[str, TokenOrigin] | None:
    """What the unfinished job of a column measured; None if it has not come that far."""
    noted = _noted_measured(directory, name)
    return None if noted is None else noted.encoders


def _noted_measured(directory: epath.Path, name: str) -> _Measured | None:
    path = _measured_path(directory, name)
    if not path.exists():
        return None
    return from_json_text(_Measured, path.read_text(), where=str(path), remedy=_START_OVER)


def _measured_path(directory: epath.Path, name: str) -> epath.Path:
    return directory / WORK / f"{name}{ENCODERS_SUFFIX}"


def plan_difference(noted: str, plan: str) -> str:
    """The flags of a noted plan that differ in another one, with both values."""
    try:
        theirs = _by_flag(json.loads(noted))
    except (*UNPARSABLE, AttributeError):
        # Valid JSON that is no object has no `items`.
        return "a plan that is corrupt"
    ours = _by_flag(json.loads(plan))
    flags = [flag for flag in {**theirs, **ours} if theirs.get(flag) != ours.get(flag)]
    # Types of features follow from settings.
    flags = [flag for flag in flags if not flag.startswith("column.")] or flags
    return "; ".join(
        f"{flag} {theirs.get(flag, 'none')}, not {ours.get(flag, 'none')}" for flag in flags
    )


def _by_flag(values: Any) -> dict[str, str]:
    """Values of a plan by the flag that decides them; several features have one flag."""
    found: dict[str, dict[str, None]] = {}
    for key, value in _flat(values).items():
        leaf = key.rpartition(".")[2]
        # What else is known of the weights follows from their checksum, and `kept` from `keep`.
        if ".encoder.model." in key or leaf in ("camera", "kept"):
            continue
        between = "x" if leaf == "image_size" else ","
        is_flag = leaf in _FLAGS and isinstance(value, list)
        text = between.join(map(str, value)) if is_flag else str(value)
        found.setdefault(_FLAGS.get(leaf, key), {})[text] = None
    return {flag: ", ".join(texts) for flag, texts in found.items()}


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path; a list is a leaf."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
