"""Reads records of one column: any record of any of its shards, checked and decoded."""

import bisect
import errno
import functools
import itertools
import os
import resource
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  (an extension)
)
from etils import epath

from pipeline.data.images import decode_depth, decode_image, resize_image
from pipeline.data.manifest import Shard
from pipeline.data.record import RecordLayout, Values
from pipeline.data.schema import Feature
from pipeline.errors import DataError, RecordError, UserError

_READER_BUFFER_BYTES = 32768
"""Measured: a 4 MiB buffer makes a random read of 64 KB eight times slower."""
_COPY_AGAIN = "It is corrupt or may not be read: copy it again, or convert the dataset again."
_TOO_MANY_FILES = os.strerror(errno.EMFILE)
_ALLOW_MORE_FILES = (
    "Every shard that is read stays open: allow the process more open files, such as with "
    "`ulimit -n 65536`, and start it again."
)


class ColumnReader:
    """Reads single records of one column; safe to share between threads.

    Args:
      dataset: The dataset, as the user named it.
      directory: Where it lies.
      layout: Layout of the column's records.
      shards: The column's shards.
      lengths: Steps of each record of an episode column; None: they are not checked.
    """

    def __init__(
        self,
        dataset: str,
        directory: epath.PathLike,
        layout: RecordLayout,
        shards: tuple[Shard, ...],
        lengths: Sequence[int] | None = None,
    ):
        self._dataset = dataset
        self._directory = epath.Path(directory)
        self._layout = layout
        self._shards = shards
        self._lengths = lengths
        self._starts = [0, *itertools.accumulate(shard.records for shard in shards)]
        self._readers: list[Any] = [None] * len(shards)
        # Opening is lazy and may happen in several reading threads at once. Each shard has its own
        # lock: opening one in a slow store must not stop reads of the others.
        self._locks = [threading.Lock() for _ in shards]
        # By thread: when the read that it is in began, and its record.
        self._under_way: dict[int, tuple[float, int]] = {}

    @functools.cached_property
    def features(self) -> dict[str, Feature]:
        """The column's features, by key."""
        return {feature.key: feature for feature in self._layout.column.features}

    def __len__(self) -> int:
        """Number of records in the column."""
        return self._starts[-1]

    def read(self, index: int) -> Values:
        """Reads record `index`; returns its values by feature key, like `RecordLayout.decode`.

        Raises:
          RecordError: The record does not match the manifest.
          DataError: The record's shard does not match the manifest.
        """
        shard, local = self._place(index)
        thread = threading.get_ident()
        self._under_way[thread] = (time.monotonic(), index)
        try:
            (record,) = self._reader(shard).read(local, local + 1)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).split(" (")[0].split(";")[0]  # without hashes and offsets
            raise self.corrupt_record(
                index, expected="a readable record", found=reason, remedy=_COPY_AGAIN
            ) from error
        finally:
            del self._under_way[thread]
        num_steps = None if self._lengths is None else self._lengths[index]
        try:
            return self._layout.decode(record, (shard, local), self._shards[shard].file, num_steps)
        except DataError as error:
            raise self.corrupt_record(
                index, expected=error.expected, found=error.found, remedy=error.remedy
            ) from error

    def read_into(self, index: int, out: dict[str, np.ndarray]) -> None:
        """Reads one record and decodes the wanted features into the arrays of `out`.

        An image of another size is resized to the height and width of its array.
        """
        record = self.read(index)
        for key, array in out.items():
            feature = self.features[key]
            is_resized = feature.shape != array.shape
            # A scratch array only for another size: usually the decoder writes into the batch
            # itself.
            stored = np.empty(feature.shape, array.dtype) if is_resized else array
            self._decode_into(index, feature, record[key], stored)
            if is_resized:
                resize_image(stored, array)

    def raw(self, index: int) -> tuple[Any, int]:
        """Returns the ArrayRecord file of a record and its index there, for unchecked reads."""
        shard, local = self._place(index)
        return self._reader(shard), local

    def describe(self, index: int) -> str:
        """Formats the place of record `index` for errors: its shard's path and its index there."""
        shard, local = self._place(index)
        return f"{self._directory / self._shards[shard].file}, record {local}"

    def corrupt_record(
        self, index: int, *, expected: str, found: str, remedy: str, feature: str = ""
    ) -> RecordError:
        """Makes the error for an unusable record, with the name by which a user can exclude it."""
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
        """Returns the index of the record called FILE:RECORD; None if there is no such record."""
        file, _, local = name.rpartition(":")
        # `starts` has one more element, the total.
        for start, shard in zip(self._starts, self._shards, strict=False):
            # Python makes no number of a text of thousands of digits.
            is_number = local.isdecimal() and len(local) <= len(str(shard.records))
            if shard.file == file and is_number and int(local) < shard.records:
                return start + int(local)
        return None

    def longest_read(self) -> tuple[float, str] | None:
        """Returns when the oldest read that has not finished began, and the place of its record.

        The time is that of `time.monotonic`. None: no thread reads.
        """
        # One operation: other threads begin and finish reads meanwhile.
        started, index = min(list(self._under_way.values()), default=(0.0, None))
        return None if index is None else (started, self.describe(index))

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the number of a record's shard, and its index in that shard."""
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def close(self) -> None:
        """Closes all open shards; a later read opens its shard again."""
        for shard, lock in enumerate(self._locks):
            with lock:
                if self._readers[shard] is not None:
                    self._readers[shard].close()
                    self._readers[shard] = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out open files, which are opened again in the other process."""
        # Locks and open files cannot be pickled, nor can what other threads change meanwhile.
        own = {"_readers": [None] * len(self._shards), "_locks": None, "_under_way": {}}
        return self.__dict__ | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the state with new locks of this process."""
        locks = [threading.Lock() for _ in state["_shards"]]
        self.__dict__.update(state | {"_locks": locks})

    def _decode_into(
        self, index: int, feature: Feature, value: np.ndarray | bytes, out: np.ndarray
    ) -> None:
        """Decodes the value of one feature into an array of the feature's shape."""
        if isinstance(value, np.ndarray):
            # A copy, because `value` is a view of the record's bytes.
            out[...] = value
            return
        try:
            if feature.kind == "quantized":
                feature.code.decode(value, out, feature.key)
            elif feature.kind == "depth":
                decode_depth(value, out, feature.key)
            else:
                decode_image(value, out, feature.key)
        except UserError as error:
            raise self.corrupt_record(
                index,
                expected=error.expected,
                found=error.found,
                remedy=error.remedy,
                feature=feature.key,
            ) from error

    def _reader(self, shard: int) -> Any:
        with self._locks[shard]:
            if self._readers[shard] is None:
                self._readers[shard] = self._open(self._shards[shard])
            return self._readers[shard]

    def _open(self, shard: Shard) -> Any:
        """Opens a shard, and checks its number of records against the manifest.

        ArrayRecord opens a truncated or empty file without an error, as a file of 0 records.
        """
        path = self._directory / shard.file
        _make_room()
        reader = array_record_module.ArrayRecordReader(
            str(path), file_reader_buffer_size=_READER_BUFFER_BYTES
        )
        # A reader that is not ok has no count to ask for.
        found = reader.num_records() if reader.ok() else 0
        if not reader.ok() or found != shard.records:
            reason = describe_unreadable(path, found)
            raise DataError(
                where=str(path),
                expected=f"{shard.records} records in {shard.num_bytes} bytes",
                found=reason,
                remedy=_ALLOW_MORE_FILES if reason == _TOO_MANY_FILES else _COPY_AGAIN,
            )
        return reader


def _make_room() -> None:
    """Doubles the limit of open files if half of it is used and the system allows more.

    The usual limit of 1,024 is less than the shards of many datasets.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        # A new descriptor is the lowest number that is free.
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
    except OSError:  # none is free
        lowest = soft
    if soft < hard and lowest >= soft // 2:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2 * soft, hard), hard))


def describe_unreadable(path: epath.Path, num_records: int) -> str:
    """Says why a shard is rejected, given the number of records that ArrayRecord found in it.

    ArrayRecord finds 0 records in a file that is missing or may not be read.
    """
    if not path.exists():
        return "no such file"
    # etils' `exists` is True for a file without read permission; only opening it shows that.
    try:
        path.open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return f"{num_records} records"
