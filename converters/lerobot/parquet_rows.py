"""Parquet files: their rows in order, without a whole file or row group in memory."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from pipeline.errors import DataError
from pipeline.files import is_remote

_BATCH_ROWS = 64
"""Rows that are decoded at a time: of an image dataset some MB."""


def read_columns(path: epath.Path, columns: Sequence[str]) -> pa.Table:
    """Reads some columns of a file.

    Raises:
      DataError: The file is missing or corrupt, or has no such column.
    """
    with open_rows(path, columns) as rows:
        return rows.take(0, rows.num_rows, str(path))


def schema_of(path: epath.Path) -> pa.Schema:
    """The schema of a file, from its footer.

    Raises:
      DataError: The file is missing or corrupt.
    """
    with open_rows(path, []) as rows:
        return rows.schema


class RowReader:
    """Some columns of a file, read forward.

    Args:
      file: The open file.
      path: Its path, for errors.
      columns: Columns that are read.

    Raises:
      DataError: It has no such column.
    """

    def __init__(self, file: pq.ParquetFile, path: epath.Path, columns: Sequence[str]) -> None:
        self.path = path
        self.schema: pa.Schema = file.schema_arrow
        self.num_rows: int = file.metadata.num_rows
        self._file = file
        self._columns = list(columns)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next = self.num_rows  # the first row that the batches have not given yet
        self._rest: pa.Table | None = None  # rows before it that were not taken
        missing = [name for name in columns if name not in self.schema.names]
        if missing:
            raise DataError(
                where=str(path),
                expected=f"the columns {', '.join(columns)}",
                found=f"no {', '.join(missing)}",
                remedy="Fetch the file again, or take the feature out of meta/info.json.",
            )

    def take(self, start: int, stop: int, where: str) -> pa.Table:
        """The rows from `start` to before `stop`, fastest behind those that were taken before.

        Args:
          start: First row.
          stop: The row behind the last one.
          where: What lies there, for errors.

        Raises:
          DataError: The file ends before, or is corrupt there.
        """
        if stop > self.num_rows:
            raise DataError(
                where=where,
                expected=f"rows {start} to {stop - 1}",
                found=f"{self.num_rows} rows in the file",
                remedy="The file is not the one that meta/ describes: fetch both again.",
            )
        # Dropped where the reading fails: the next rows may lie in a row group that is whole.
        rest, self._rest = self._rest, None
        with named_as_corrupt(self.path):
            return self._take(start, stop, rest)

    def _take(self, start: int, stop: int, rest: pa.Table | None) -> pa.Table:
        if rest is None or start < self._next - rest.num_rows:
            rest = self._rewind(start)
        parts = [rest]
        while self._next < stop:
            batch = next(self._batches, None)
            if batch is None:  # its footer promises more
                raise pa.ArrowInvalid(f"its rows end before row {self._next}")
            batch = pa.Table.from_batches([batch]).select(self._columns)
            self._next += batch.num_rows
            parts.append(batch)
            # Rows before the first wanted one are dropped as they come.
            if self._next <= start:
                parts = parts[-1:]
        table = pa.concat_tables(parts)
        first = self._next - table.num_rows
        self._rest = table.slice(stop - first)
        return table.slice(start - first, stop - start)

    def _rewind(self, start: int) -> pa.Table:
        """Starts again at the row group of a row."""
        first, group = 0, 0
        metadata = self._file.metadata
        while group < metadata.num_row_groups - 1:
            size = metadata.row_group(group).num_rows
            if first + size > start:
                break
            first, group = first + size, group + 1
        self._next = first
        self._batches = self._batches_from(group)
        empty = [pa.array([], self.schema.field(name).type) for name in self._columns]
        return pa.Table.from_arrays(empty, names=self._columns)

    def _batches_from(self, group: int) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a row group and of those behind it."""
        # One by one, so that no batch has rows of two, of which one may be corrupt.
        for number in range(group, self._file.metadata.num_row_groups):
            yield from self._file.iter_batches(
                batch_size=_BATCH_ROWS,
                row_groups=[number],
                columns=self._columns,
                use_threads=False,
            )


@contextlib.contextmanager
def open_rows(
    path: epath.Path,
    columns: Sequence[str],
    check: Callable[[pa.Schema, str], None] = lambda schema, where: None,
) -> Iterator[RowReader]:
    """Opens some columns of a file, as `RowReader`.

    Args:
      path: The file.
      columns: Columns that are read.
      check: Called with the schema of the file and its path, before columns are looked for.

    Raises:
      DataError: The file is missing or corrupt, or has no such column.
    """
    with contextlib.ExitStack() as stack:
        with named_as_corrupt(path):
            file = stack.enter_context(path.open("rb")) if is_remote(path) else os.fspath(path)
            parquet = stack.enter_context(pq.ParquetFile(file))
        check(parquet.schema_arrow, str(path))
        yield RowReader(parquet, path, columns)


@contextlib.contextmanager
def named_as_corrupt(path: epath.Path) -> Iterator[None]:
    """Turns an error of pyarrow inside the block into one that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        raise DataError(
            where=str(path),
            expected="a Parquet file that can be read",
            found="no such file" if is_missing else " ".join(str(error).split()),
            remedy="The file is missing, corrupt or its download incomplete: fetch it again.",
        ) from error
