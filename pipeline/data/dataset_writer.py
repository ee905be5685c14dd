"""Writes a dataset directory so that an unfinished one never opens.

A shard is written under a temporary name, closed, opened again to count its records, then renamed;
for an object store it is written to a local file and uploaded whole. The manifest is written last:
a directory without one is no dataset.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
import types
from collections.abc import Iterator

import xxhash
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  (an extension)
)
from etils import epath

from pipeline.data import statistics as stats
from pipeline.data.manifest import FILE_NAME, STATISTICS_NAME, Manifest, Shard
from pipeline.errors import DataError
from pipeline.files import is_remote, json_checksum, sync, temporary_path, write_text_atomically

WRITER_OPTIONS = "group_size:1,uncompressed"
"""Images and tokens do not compress; uncompressed records read at 3-4 GB/s (0.3 for zstd)."""

# Bytes per copy of an upload.
_BUFFER_BYTES = 1 << 20


class ShardWriter:
    """Writes one ArrayRecord file of a column; a context manager.

    Leaving the block normally renames the file to its final name; an exception removes it.

    Raises:
      DataError: The disk is full, or a file or folder may not be written; raised by any method.
    """

    def __init__(self, directory: epath.PathLike, file: str) -> None:
        self._file = file
        self._path = epath.Path(directory) / file
        self._cleanup = contextlib.ExitStack()
        # XXH3 of 77 MB takes 4 ms, where SHA-256 takes 43: it finds corruption, not attackers.
        self._digest = xxhash.xxh3_128()
        self.count = 0
        """Number of records written, which is the index of the next one."""
        self._shard: Shard | None = None

    def __enter__(self) -> "ShardWriter":
        """Opens the temporary file."""
        with self._explained():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = self._temporary_path()
            # group_size 1: ArrayRecord reads whole groups, and a window reads single records.
            self._writer = array_record_module.ArrayRecordWriter(
                str(self._temporary), WRITER_OPTIONS
            )
        return self

    def write(self, record: bytes) -> None:
        """Appends one record."""
        try:
            self._writer.write(record)
        except RuntimeError as error:
            raise self._failed(str(error)) from error
        # While the record is at hand: reading the file again would cost as much as hashing.
        self._digest.update(record)
        self.count += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Closes, checks and renames the file, or removes it after an exception."""
        # Runs last, also after an error: removes the temporary file or folder.
        with self._cleanup:
            if error is not None:
                with contextlib.suppress(RuntimeError):  # the first error is the one to report
                    self._writer.close()
                return
            with self._explained():
                self._writer.close()
                # Opened again, because a truncated ArrayRecord file opens without an error, as 0
                # records.
                self._check()
                # Before the rename: after a crash the name must not point to data that was never
                # written.
                sync(self._temporary)
                num_bytes = self._temporary.stat().st_size
                self._publish()
            digest = self._digest.hexdigest()
            self._shard = Shard(self._file, self.count, num_bytes, digest)

    def finished(self) -> Shard:
        """Returns the description of the file, once the block has been left normally."""
        if self._shard is None:
            raise RuntimeError(f"{self._path} is not finished")
        return self._shard

    def _temporary_path(self) -> pathlib.Path:
        if is_remote(self._path):
            folder = self._cleanup.enter_context(tempfile.TemporaryDirectory())
            return pathlib.Path(folder) / self._path.name
        temporary = temporary_path(pathlib.Path(self._path))
        # After the rename there is nothing left to unlink, hence `missing_ok`.
        self._cleanup.callback(temporary.unlink, missing_ok=True)
        return temporary

    def _publish(self) -> None:
        if is_remote(self._path):  # an object appears when its upload is complete
            with self._temporary.open("rb") as source, self._path.open("wb") as target:
                shutil.copyfileobj(source, target, _BUFFER_BYTES)
        else:
            # Atomic on one disk, so the temporary file is in the same folder.
            self._temporary.replace(self._path)
            # The rename itself is an entry of the folder, and needs its own fsync.
            sync(self._temporary.parent)

    def _check(self) -> None:
        reader = array_record_module.ArrayRecordReader(str(self._temporary))
        found = reader.num_records() if reader.ok() else 0
        is_whole = reader.ok() and found == self.count
        reader.close()
        if not is_whole:
            raise self._failed(f"{found} of {self.count} records after writing")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns errors of the system or ArrayRecord inside the block into ones with the file."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise self._failed(str(error)) from error

    def _failed(self, found: str) -> DataError:
        return DataError(
            where=str(self._path),
            expected="to write the file",
            found=found,
            remedy="Free space on the device or allow writing, and run the same command again.",
        )


def write_manifest(
    directory: epath.Path,
    manifest: Manifest,
    statistics: dict[str, stats.FeatureStatistics],
) -> Manifest:
    """Makes the written shards a dataset: statistics first, then `dataset.json`, with checksums.

    Returns:
      The manifest with the checksum of the statistics.
    """
    text = stats.dumps(statistics)
    write_text_atomically(directory / STATISTICS_NAME, text)
    # Of the written text, not of `statistics`: it has to be what a reader computes.
    sealed = dataclasses.replace(manifest, statistics_checksum=json_checksum(json.loads(text)))
    # Last: a directory without this file is no dataset.
    write_text_atomically(directory / FILE_NAME, sealed.dumps())
    return sealed
