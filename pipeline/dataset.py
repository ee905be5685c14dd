"""A dataset directory opened for random reads: any record of any column, checked."""

import bisect
import dataclasses
import functools
import itertools
import logging
import math
import threading
from collections.abc import Collection
from typing import Any

import numpy as np
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  (an extension)
)
from etils import epath

from pipeline import statistics as stats
from pipeline.errors import DataError, RecordError
from pipeline.files import is_remote
from pipeline.manifest import EDIT, STATISTICS_NAME, Manifest, Shard, TaskChange, load_manifest
from pipeline.record import RecordLayout, Values
from pipeline.schema import EPISODES, Feature, Schema

_log = logging.getLogger(__name__)
_READER_BUFFER_BYTES = 32768
"""Measured: a 4 MiB buffer makes a random read of 64 KB eight times slower."""
_COPY_AGAIN = "It is corrupt or may not be read: copy it again, or convert the dataset again."


class ColumnReader:
    """Reads single records of one column; safe to share between threads."""

    def __init__(self, dataset: str, layout: RecordLayout, shards: tuple[Shard, ...]):
        self._dataset = dataset
        self._layout = layout
        self._shards = shards
        self._starts = [0, *itertools.accumulate(shard.records for shard in shards)]
        self._readers: list[Any] = [None] * len(shards)
        self._lock = threading.Lock()

    @functools.cached_property
    def features(self) -> dict[str, Feature]:
        """By key."""
        return {feature.key: feature for feature in self._layout.column.features}

    def __len__(self) -> int:
        """Records of the column."""
        return self._starts[-1]

    def read(self, index: int) -> Values:
        """The decoded values of record `index`, by feature key, as `RecordLayout.decode`.

        Raises:
          RecordError: Where the record is not what the manifest says.
          DataError: Where its shard is not.
        """
        shard, local = self._place(index)
        try:
            (record,) = self._reader(shard).read(local, local + 1)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).split(" (")[0].split(";")[0]  # hashes and offsets help nobody
            raise self.corrupt_record(
                index, expected="a readable record", found=reason, remedy=_COPY_AGAIN
            ) from error
        try:
            return self._layout.decode(record, (shard, local), self._shards[shard].file)
        except DataError as error:
            raise self.corrupt_record(
                index, expected=error.expected, found=error.found, remedy=error.remedy
            ) from error

    def raw(self, index: int) -> tuple[Any, int]:
        """The open ArrayRecord file of a record and its place there, for reads without a check."""
        shard, local = self._place(index)
        return self._reader(shard), local

    def describe(self, index: int) -> str:
        """Where record `index` lies, for errors: path of the shard and place in it."""
        shard, local = self._place(index)
        return f"{epath.Path(self._dataset) / self._shards[shard].file}, record {local}"

    def corrupt_record(
        self, index: int, *, expected: str, found: str, remedy: str, feature: str = ""
    ) -> RecordError:
        """The error of a record that cannot be used, which names it so that it can be excluded."""
        shard, local = self._place(index)
        return RecordError(
            where=self.describe(index) + (f", {feature}" if feature else ""),
            expected=expected,
            found=found,
            remedy=remedy,
            dataset=self._dataset,
            record=f"{self._shards[shard].file}:{local}",
        )

    def find(self, name: str) -> int | None:
        """The index of the record that is called FILE:RECORD; None where there is none."""
        file, _, local = name.rpartition(":")
        for start, shard in zip(self._starts, self._shards, strict=False):
            if shard.file == file and local.isdecimal() and int(local) < shard.records:
                return start + int(local)
        return None

    def _place(self, index: int) -> tuple[int, int]:
        """Number of a record's shard, and its place in it."""
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def close(self) -> None:
        """Closes every open shard; a later read opens it again."""
        with self._lock:
            for reader in filter(None, self._readers):
                reader.close()
            self._readers = [None] * len(self._shards)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: they are opened again in the other process."""
        return self.__dict__ | {"_readers": [None] * len(self._shards), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of this process."""
        self.__dict__.update(state | {"_lock": threading.Lock()})

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if self._readers[shard] is None:
                self._readers[shard] = self._open(self._shards[shard])
            return self._readers[shard]

    def _open(self, shard: Shard) -> Any:
        """A reader, of a file that holds what the manifest says.

        A truncated or empty ArrayRecord file opens without an error, as one of no records.
        """
        path = epath.Path(self._dataset) / shard.file
        reader = array_record_module.ArrayRecordReader(
            str(path), file_reader_buffer_size=_READER_BUFFER_BYTES
        )
        found = reader.num_records() if reader.ok() else 0
        if not reader.ok() or found != shard.records:
            raise DataError(
                where=str(path),
                expected=f"{shard.records} records in {shard.num_bytes} bytes",
                found=describe_unreadable(path, found),
                remedy=_COPY_AGAIN,
            )
        return reader


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset directory: its manifest, statistics and a reader a column."""

    path: str
    """The directory, as the user named it."""
    manifest: Manifest
    """The content of `dataset.json`."""
    statistics: dict[str, stats.FeatureStatistics]
    """By feature key."""

    @functools.cached_property
    def columns(self) -> dict[str, ColumnReader]:
        """A reader for every column; nothing is opened before the first read."""
        return {
            column.name: ColumnReader(
                self.path, RecordLayout(column), self.manifest.shards[column.name]
            )
            for column in self.manifest.schema.columns
        }

    @functools.cached_property
    def episode_starts(self) -> np.ndarray:
        """int64 (episodes + 1): the first step of each episode, then the number of steps."""
        return np.cumsum([0, *self.manifest.episode_lengths], dtype=np.int64)

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.episode_starts[-1])

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.manifest.episode_lengths)

    def task_index(self, episode: int, step: int) -> int:
        """The row of `manifest.tasks` of a step inside an episode."""
        index = self.manifest.episode_tasks[episode]
        for change in self.task_changes.get(episode, ()):
            if change.step <= step:
                index = change.task
        return index

    @functools.cached_property
    def task_changes(self) -> dict[int, tuple[TaskChange, ...]]:
        """The later instructions, by episode, of those whose instruction changes."""
        changes: dict[int, tuple[TaskChange, ...]] = {}
        for change in self.manifest.task_changes:
            changes[change.episode] = (*changes.get(change.episode, ()), change)
        return changes

    def locate(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(episode, step inside it), int64 (b), of steps (b) of the whole dataset."""
        episode = np.searchsorted(self.episode_starts, steps, side="right") - 1
        return episode, steps - self.episode_starts[episode]


def on_disk(path: str) -> epath.Path:
    """A directory whose single records can be read.

    Raises:
      DataError: Where it is in an object store, which ArrayRecord does not read.
    """
    if is_remote(path):
        raise DataError(
            where=path,
            expected="a directory on a disk, where single records are read in microseconds",
            found="an object store",
            remedy="Copy the directory to a disk, or mount the bucket.",
        )
    return epath.Path(path)


def open_dataset(path: str, keys: Collection[str] | None = None) -> Dataset:
    """Opens a dataset directory.

    Args:
      path: The directory that holds `dataset.json`.
      keys: Features that will be read; the shards of other columns are not looked at and may be
        missing. None: all features.

    Raises:
      DataError: Where there is none, or a shard's size is not what `dataset.json` says.
      SchemaError: Where it declares types that the dtype law refuses, or lacks a key.
    """
    directory = on_disk(path)
    manifest = load_manifest(directory)
    if keys is None:
        columns = set(manifest.shards)
    else:
        columns = {EPISODES, *(manifest.schema.find(key, path)[0].name for key in keys)}
    for column in columns:
        for shard in manifest.shards[column]:
            _check_size(directory / shard.file, shard, column)
    return Dataset(str(path), manifest, load_statistics(directory, manifest))


def load_statistics(
    directory: epath.Path, manifest: Manifest
) -> dict[str, stats.FeatureStatistics]:
    """The statistics of a dataset directory, of all features that have some.

    Raises:
      DataError: Where they are missing, of another checksum than the manifest says, or of other
        features or lengths than it declares.
    """
    path = directory / STATISTICS_NAME
    warn_without_checksums(str(directory), manifest.statistics_checksum)
    found = stats.load(path, manifest.statistics_checksum)
    sizes = statistics_sizes(manifest.schema)
    problems = [f"{key}: no such feature" for key in found.keys() - sizes.keys()]
    problems += [f"{key}: none" for key in sizes.keys() - found.keys()]
    problems += [
        f"{key}: lists of {len(found[key].mean)}, not {size}"
        for key, size in sizes.items()
        if key in found and len(found[key].mean) != size
    ]
    if problems:
        raise DataError(
            where=str(path),
            expected=f"statistics of each float32 feature of the column {EPISODES}, and no others",
            found="; ".join(sorted(problems)),
            remedy="It is of another dataset: copy this dataset's own, or convert it again.",
        )
    return found


def statistics_sizes(schema: Schema) -> dict[str, int]:
    """By key, numbers of each feature that has statistics: of floats in the trajectories."""
    return {
        feature.key: math.prod(feature.shape)
        for column, feature in schema.features()
        if column.name == EPISODES and feature.dtype == "float32"
    }


@functools.cache
def warn_without_checksums(path: str, checksum: str) -> None:
    """Logs, once for each directory, that corruption of its JSON files may go unnoticed."""
    if not checksum:
        _log.warning(
            "%s: dataset.json and statistics.json have no checksums, as it was written before "
            "there were any; add them: %s %s",
            path,
            EDIT,
            path,
        )


def describe_unreadable(path: epath.Path, num_records: int) -> str:
    """Why a shard is refused in which ArrayRecord found that many records.

    ArrayRecord itself finds none in a file that is missing or may not be read.
    """
    if not path.exists():
        return "no such file"
    try:
        path.open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return f"{num_records} records"


def _check_size(path: epath.Path, shard: Shard, column: str) -> None:
    found = f"{path.stat().length} bytes" if path.exists() else "no such file"
    if found != f"{shard.num_bytes} bytes":
        raise DataError(
            where=f"{path}, column {column}",
            expected=f"{shard.num_bytes} bytes",
            found=found,
            remedy="It is incomplete, or another file: copy or convert the dataset again.",
        )
