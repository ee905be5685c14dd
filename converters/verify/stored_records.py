"""A dataset directory read again from its first byte to its last, checked against its manifest."""

import numpy as np
import xxhash
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  (an extension)
)
from etils import epath

from converters.job.file_ownership import NOTE_SUFFIX
from converters.verify.findings import Findings
from pipeline.data.column_reader import describe_unreadable
from pipeline.data.depth import read_millimetres
from pipeline.data.images import decode_image
from pipeline.data.manifest import FILE_NAME, WORK, Manifest, Shard
from pipeline.data.record import RecordLayout, Values
from pipeline.data.schema import Column, Feature, to_rest
from pipeline.errors import DataError, UserError

_SHARD_SUFFIX = ".arrayrecord"
_READER_BUFFER_BYTES = 32768


class ColumnWalk:
    """Reads the records of one column in their order; what is wrong with them goes to findings."""

    def __init__(
        self, directory: epath.Path, column: Column, shards: tuple[Shard, ...], findings: Findings
    ) -> None:
        self._directory = directory
        self._layout = RecordLayout(column)
        self._shards = shards
        # The place behind each shard's last record.
        self._stops = np.cumsum([shard.records for shard in shards]).tolist()
        self._findings = findings
        self._number = -1
        self._walk: _ShardWalk | None = None
        self.num_bytes = 0
        """Bytes of the records read so far."""

    def read(self, index: int) -> tuple[str, Values | None]:
        """(place for findings, decoded record `index` or None where it is not readable).

        Every record has to be read, in order: the digests of the shards are taken on the way.
        """
        # Shards without records are passed over.
        while self._walk is None or index >= self._stops[self._number]:
            self._next_shard()
        # The record's place in its shard.
        local = index - self._stops[self._number] + self._shards[self._number].records
        record = self._walk.read(local)
        self.num_bytes += len(record or b"")
        where = f"{self._walk.path}, record {local}"
        if record is None:
            return where, None
        try:
            return where, self._layout.decode(record, (self._number, local), where)
        except DataError as error:
            self._findings.add_error(error)
            return where, None

    def finish(self) -> None:
        """Checks the last shard that was read, and those after it, which have no records."""
        while self._number + 1 < len(self._shards):
            self._next_shard()
        if self._walk is not None:
            self._walk.finish()

    def _next_shard(self) -> None:
        if self._walk is not None:
            self._walk.finish()
        self._number += 1
        self._walk = _ShardWalk(self._directory, self._shards[self._number], self._findings)


class _ShardWalk:
    """The raw records of one file, and their digest."""

    def __init__(self, directory: epath.Path, shard: Shard, findings: Findings) -> None:
        self.path = directory / shard.file
        self._shard = shard
        self._findings = findings
        self._digest = xxhash.xxh3_128()
        self._num_read = 0
        self._reader = array_record_module.ArrayRecordReader(
            str(self.path), file_reader_buffer_size=_READER_BUFFER_BYTES
        )
        found = self._reader.num_records() if self._reader.ok() else 0
        # A truncated file opens without an error, with 0 records.
        self._opened = self._reader.ok() and found == shard.records
        # A missing one is a finding of `check_files`.
        if not self._opened and self.path.exists():
            unreadable = describe_unreadable(self.path, found)
            findings.add(str(self.path), f"{shard.records} records", unreadable)

    def read(self, local: int) -> bytes | None:
        """The bytes of a record; None where it or the whole file is not readable."""
        if not self._opened:
            return None
        try:
            (record,) = self._reader.read(local, local + 1)
        except (RuntimeError, ValueError, IndexError) as error:
            found = " ".join(str(error).split())
            self._findings.add(f"{self.path}, record {local}", "a readable record", found)
            return None
        self._digest.update(record)
        self._num_read += 1
        return record

    def finish(self) -> None:
        """Compares the digest, where every record could be read, and closes the file."""
        if not self._opened:  # closing such a file would raise what was already reported
            return
        self._reader.close()
        found = self._digest.hexdigest()
        # With a record missing the checksum differs in any case.
        if self._num_read == self._shard.records and found != self._shard.digest:
            self._findings.add(
                str(self.path), f"records with the checksum {self._shard.digest}", found
            )


class ValueCheck:
    """Checks decoded records against the declared types, to the last pixel."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        # One buffer per size: millions of images are decoded.
        self._pixels: dict[tuple[int, ...], np.ndarray] = {}

    def check(self, values: Values, column: Column, num_steps: int, where: str) -> None:
        """Takes one record.

        Args:
          values: Values that `RecordLayout.decode` returned.
          column: That it is from.
          num_steps: Steps that the manifest gives its episode.
          where: File and record.
        """
        for feature in column.features:
            value = values[feature.key]
            place = f"{where}, {feature.key}"
            try:
                if isinstance(value, np.ndarray):
                    self._check_tensor(value, column, feature, num_steps, place)
                elif feature.kind == "depth":
                    read_millimetres(value, feature.shape, place)
                elif feature.kind == "image":
                    decode_image(value, self._buffer(feature.shape), place)
                elif feature.kind == "quantized":
                    feature.code.check(value, feature.shape, place)
                else:
                    bytes(value).decode()
            except UnicodeDecodeError:
                self._findings.add(place, "a text in UTF-8", repr(bytes(value[:40])))
            except UserError as error:
                self._findings.add_error(error)

    def _check_tensor(
        self, value: np.ndarray, column: Column, feature: Feature, num_steps: int, place: str
    ) -> None:
        is_episode = column.per == "episode"
        if is_episode and len(value) != num_steps:
            expected = f"{num_steps} steps, as {FILE_NAME} says"
            self._findings.add(place, expected, f"{len(value)}")
        steps = value if is_episode else value[np.newaxis]
        # Values at rest must pass the law that let them in.
        to_rest(steps, feature, place)
        if is_episode and feature.dtype == "float32":
            flat = steps.reshape(len(steps), -1)
            wrong = np.flatnonzero(~np.isfinite(flat).all(axis=1))
            if wrong.size:
                step = int(wrong[0])
                found = f"{flat[step].tolist()}, and {wrong.size - 1} more such steps"
                self._findings.add(f"{place}, step {step}", "finite values", found)

    def _buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        if shape not in self._pixels:
            self._pixels[shape] = np.empty(shape, np.uint8)
        return self._pixels[shape]


def check_files(directory: epath.Path, manifest: Manifest, findings: Findings) -> None:
    """Compares the files of a dataset directory and their sizes with those of its manifest.

    Those of a column that is being added are not in the manifest yet, and no finding.
    """
    listed = {
        directory / shard.file: shard for shards in manifest.shards.values() for shard in shards
    }
    for path, shard in listed.items():
        found = f"{path.stat().length} bytes" if path.exists() else "no such file"
        if found != f"{shard.num_bytes} bytes":
            findings.add(str(path), f"{shard.num_bytes} bytes", found)
    work = directory / WORK
    folders = [directory]
    folders += [
        path
        for path in directory.iterdir()
        # A column that is being added is not in the manifest yet.
        if path.is_dir() and not (work / f"{path.name}{NOTE_SUFFIX}").exists()
    ]
    for path in sorted(path for folder in folders for path in _children(folder, findings)):
        if _SHARD_SUFFIX in path.name and path not in listed:
            findings.add(str(path), f"only the files that {FILE_NAME} lists", "one more")


def _children(folder: epath.Path, findings: Findings) -> list[epath.Path]:
    """What lies in a folder; one that may not be read is a finding."""
    try:
        return list(folder.iterdir())
    except OSError as error:
        findings.add(str(folder), "a folder that can be read", error.strerror or str(error))
        return []


def check_tasks(directory: epath.Path, manifest: Manifest, findings: Findings) -> None:
    """Checks that every task is one of an episode; `load_manifest` has checked the rest."""
    changed = {change.task for change in manifest.task_changes}
    unused = sorted(set(range(len(manifest.tasks))) - {*manifest.episode_tasks} - changed)
    if unused:
        found = "; ".join(repr(manifest.tasks[task]) for task in unused)
        where = f"{directory / FILE_NAME}, tasks"
        findings.add(where, "tasks that an episode has", f"others: {found}")
