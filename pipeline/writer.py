"""Writing a dataset directory so that nothing half-written opens.

A shard is written under a temporary name, closed, opened again and counted, then renamed. The
manifest comes last: a directory without one is no dataset.
"""

import hashlib
import os
import pathlib
import types

from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  (an extension)
)

from pipeline import statistics as stats
from pipeline.errors import DataError
from pipeline.files import write_text_atomically
from pipeline.manifest import FILE_NAME, STATISTICS_NAME, Manifest, Shard

WRITER_OPTIONS = "group_size:1,uncompressed"
"""Images and tokens do not compress; uncompressed records read at 3-4 GB/s (0.3 for zstd)."""

_CHUNK_BYTES = 1 << 20


class ShardWriter:
    """Writes one ArrayRecord file of a column; a context manager.

    Leaving the block normally puts the file in its place; leaving it by an exception leaves
    nothing.
    """

    def __init__(self, directory: pathlib.Path, file: str) -> None:
        self._directory = directory
        self._file = file
        self._path = directory / file
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        self.count = 0
        """Records written; the place of the next one."""
        self._shard: Shard | None = None

    def __enter__(self) -> "ShardWriter":
        """Opens the temporary file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = array_record_module.ArrayRecordWriter(str(self._temporary), WRITER_OPTIONS)
        return self

    def write(self, record: bytes) -> None:
        """Appends one record."""
        self._writer.write(record)
        self.count += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Closes, checks and renames the file, or removes it after an exception."""
        try:
            self._writer.close()
            if error is None:
                self._check()
                digest, num_bytes = _sync_and_digest(self._temporary)
                self._temporary.replace(self._path)
                self._shard = Shard(self._file, self.count, num_bytes, digest)
        finally:
            self._temporary.unlink(missing_ok=True)

    def finished(self) -> Shard:
        """Describes the file, once the block has been left normally."""
        if self._shard is None:
            raise RuntimeError(f"{self._path} is not finished")
        return self._shard

    def _check(self) -> None:
        reader = array_record_module.ArrayRecordReader(str(self._temporary))
        found = reader.num_records() if reader.ok() else 0
        reader.close()
        if found != self.count:
            raise DataError(
                where=str(self._path),
                expected=f"{self.count} records after writing",
                found=f"{found} (disk full?)",
                remedy="Free space on the device and run the same command again.",
            )


def write_manifest(
    directory: pathlib.Path,
    manifest: Manifest,
    statistics: dict[str, stats.FeatureStatistics],
) -> None:
    """Makes the written shards a dataset: statistics first, `dataset.json` last."""
    write_text_atomically(directory / STATISTICS_NAME, stats.dumps(statistics))
    write_text_atomically(directory / FILE_NAME, manifest.dumps())


def _sync_and_digest(path: pathlib.Path) -> tuple[str, int]:
    """(SHA-256, size in bytes) of a file that is on the disk when this returns."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
        os.fsync(file.fileno())
    return digest.hexdigest(), size
