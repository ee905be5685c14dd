"""The images of a dataset's steps, batch after batch, read while the devices work."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from pipeline.data.column_reader import ColumnReader
from pipeline.data.dataset import Dataset

T = TypeVar("T")

_MAX_THREADS = 8


@dataclasses.dataclass(frozen=True)
class FrameReader:
    """Decodes the images of steps."""

    dataset: Dataset
    """Holds them."""
    cameras: tuple[str, ...]
    """Observations, in order."""
    batch_size: int
    """Steps of a batch."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns that are read."""
        return frozenset(reader for reader, _ in self._places)

    def describe(self, step: int) -> str:
        """A step, for errors."""
        episode, local = self.dataset.locate(np.array([step]))
        return f"{self.dataset.path}, episode {int(episode[0])}, step {int(local[0])}"

    def batches(
        self, steps: Sequence[int], use: Callable[[tuple[np.ndarray, ...]], T]
    ) -> Iterator[tuple[Sequence[int], T]]:
        """Yields (steps, result) of each batch; two are under way at any time.

        Args:
          steps: Steps of the dataset.
          use: Starts the work on a batch and does not wait for it: images, uint8 (b, y, x, 3) of
            each camera; the last batch is filled up with its last step.
        """
        size = self.batch_size
        parts = [steps[first : first + size] for first in range(0, len(steps), size)]
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        # The result of the batch before, still being computed.
        before: tuple[Sequence[int], T] | None = None
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            images = self._read(parts[0], pool) if parts else []
            for number, part in enumerate(parts):
                frames = tuple(self._collect(camera) for camera in images)
                # Begun before the devices get this batch, so reading and computing overlap.
                images = self._read(parts[number + 1], pool) if number + 1 < len(parts) else []
                started = (part, use(frames))
                # Yielded one batch late: fetching it waits for the devices.
                if before is not None:
                    yield before
                before = started
        if before is not None:
            yield before

    @property
    def _places(self) -> list[tuple[str, str]]:
        """(column, key) of each camera."""
        schema, where = self.dataset.manifest.schema, self.dataset.path
        keys = [f"observation/{name}" for name in self.cameras]
        return [(schema.find(key, where)[0].name, key) for key in keys]

    def _read(self, steps: Sequence[int], pool: concurrent.futures.Executor) -> list[Any]:
        """Begins to read a batch: of each camera, its array and what fills it."""
        begun = []
        for column, key in self._places:
            reader = self.dataset.columns[column]
            # Filled by the threads, row by row.
            frames = np.empty((self.batch_size, *reader.features[key].shape), np.uint8)
            futures = [
                pool.submit(_decode, reader, step, key, frames[n]) for n, step in enumerate(steps)
            ]
            begun.append((frames, futures))
        return begun

    @staticmethod
    def _collect(begun: tuple[np.ndarray, list[Any]]) -> np.ndarray:
        frames, futures = begun
        for future in futures:
            future.result()
        # The last image fills the batch up, whose size is compiled.
        frames[len(futures) :] = frames[len(futures) - 1]
        return frames


def _decode(reader: ColumnReader, step: int, key: str, out: np.ndarray) -> None:
    reader.read_into(step, {key: out})
