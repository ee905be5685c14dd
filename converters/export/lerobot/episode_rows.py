"""The rows of `meta/episodes`: where each episode lies, its instructions and its statistics."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from converters.export.lerobot.export_statistics import Summary
from converters.export.lerobot.parquet_files import ParquetFiles, numbered

_TEMPLATE = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_HELD = 100
"""Rows that are written together."""


@dataclasses.dataclass
class EpisodeRow:
    """The row of one episode, as it is made."""

    values: dict[str, Any]
    """By column."""

    @property
    def length(self) -> int:
        """Steps of the episode."""
        return self.values["length"]

    def put(self, prefix: str, fields: Mapping[str, Any]) -> None:
        """Adds columns below a prefix, such as `data/chunk_index`."""
        self.values |= {f"{prefix}/{name}": value for name, value in fields.items()}

    def summarize(self, feature: str, summary: Summary) -> None:
        """Adds the statistics of a feature."""
        self.put(f"stats/{feature}", summary)


class EpisodeRows:
    """Writes the rows in groups.

    Args:
      directory: The LeRobot directory.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._files = ParquetFiles(directory, _TEMPLATE)
        self._held: list[EpisodeRow] = []

    def add(self, row: EpisodeRow) -> None:
        """Adds the row of the next episode."""
        self._held.append(row)
        if len(self._held) >= _HELD:
            self._flush()

    def close(self) -> None:
        """Writes what is held, and ends the file."""
        self._flush()
        self._files.close()

    def abandon(self) -> None:
        """Leaves the file unfinished, after an error."""
        self._files.abandon()

    def _flush(self) -> None:
        if not self._held:
            return
        num_bytes = pa.Table.from_pylist([row.values for row in self._held]).nbytes
        # Each row names the file that it lies in.
        place = numbered(self._files.make_room(num_bytes))
        for row in self._held:
            row.put("meta/episodes", place)
        self._files.write(pa.Table.from_pylist([row.values for row in self._held]))
        self._held = []
