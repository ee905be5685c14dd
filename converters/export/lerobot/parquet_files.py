"""Tables of a LeRobot dataset, in Parquet files of limited size that are numbered by folders."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FILES_PER_CHUNK = 1000
"""Files of a folder."""
DATA_MB = 100
"""Size of a file in MiB from which on the next rows begin another."""


def numbered(number: int) -> dict[str, int]:
    """Returns the fields of a path template of a file, by its number from 0."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return {"chunk_index": chunk, "file_index": file}


class ParquetFiles:
    """A table whose rows lie in several files.

    Args:
      directory: The LeRobot directory.
      template: Path of a file below it, with `chunk_index` and `file_index`.
    """

    def __init__(self, directory: pathlib.Path, template: str) -> None:
        self._directory = directory
        self._template = template
        self._path = directory
        self._writer: pq.ParquetWriter | None = None
        self.number = 0
        """Number of the file that the next rows go to, once there is room for them."""

    def make_room(self, num_bytes: int) -> int:
        """Returns the number of the file that the next rows go to, of about so many bytes."""
        if self._writer and self._path.stat().st_size + num_bytes > DATA_MB * 2**20:
            self.close()
            self.number += 1
        return self.number

    def write(self, table: pa.Table) -> None:
        """Adds rows, as a row group."""
        if self._writer is None:
            self._path = self._directory / self._template.format(**numbered(self.number))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Dictionaries save nothing: numbers hardly repeat, and images never do.
            self._writer = pq.ParquetWriter(self._path, table.schema, use_dictionary=False)
        self._writer.write_table(table)

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def abandon(self) -> None:
        """Leaves the file unfinished, after an error."""
        if self._writer is not None:
            # Its finalizer would write the rest, and print that the disk is full.
            self._writer.is_open = False
            self._writer = None


def write_tasks(path: pathlib.Path, texts: Sequence[str]) -> None:
    """Writes the instructions by number, as LeRobot's pandas reads them: the texts are its index.

    Args:
      path: The file.
      texts: The instructions.
    """
    numbers = pa.array(range(len(texts)), pa.int64())
    table = pa.table({"task_index": numbers, "task": pa.array(texts, pa.string())})
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype}
        for name, kind, dtype in (
            ("task_index", "int64", "int64"),
            ("task", "unicode", "object"),
        )
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**column, "metadata": None} for column in columns],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def hub_metadata(declarations: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the metadata by which the hub's viewer and `datasets` know images from bytes.

    Args:
      declarations: The columns, as `meta/info.json` declares them, in their order.
    """
    features = {name: _hub_feature(declared) for name, declared in declarations.items()}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def _hub_feature(declared: Mapping[str, Any]) -> dict[str, Any]:
    shape = declared["shape"]
    if declared["dtype"] == "image":
        return {"_type": "Image"}
    value = {"dtype": declared["dtype"], "_type": "Value"}
    if shape == [1]:
        return value
    if len(shape) == 1:
        return {"feature": value, "length": shape[0], "_type": "List"}
    return {"shape": shape, "dtype": declared["dtype"], "_type": f"Array{len(shape)}D"}
