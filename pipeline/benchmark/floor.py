"""The floor of the benchmark: only reads and decodes what a series of samples needs."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.depth import decode_depth
from pipeline.data.images import decode_image, decode_jpeg, image_format
from pipeline.data.schema import EPISODES, Column
from pipeline.loading.samples.sampling import Samples
from pipeline.loading.window_reader import WindowReader


@dataclasses.dataclass(frozen=True)
class Image:
    """An encoded image inside a record, counted from the record's end."""

    start: int
    """Position of the first byte; negative."""
    end: int | None
    """Position after the last byte; None: the record's end."""
    shape: tuple[int, ...]
    """(h, w, 3)."""


@dataclasses.dataclass(frozen=True)
class Read:
    """One record that samples need, and the images to decode from it."""

    reader: Any
    """An open ArrayRecord file."""
    index: int
    """Index of the record in the file."""
    images: tuple[Image, ...]
    """The images to decode."""


class Floor:
    """The least work that makes the loader's samples.

    Args:
      window_reader: The loader's `WindowReader`, whose records are read.
    """

    def __init__(self, window_reader: WindowReader) -> None:
        self._window_reader = window_reader
        self._buffers: dict[tuple[int, ...], np.ndarray] = {}

    def plan(self, samples: Samples) -> list[Read]:
        """Lists all reads of a batch; a record that a window repeats is read once."""
        windows = self._window_reader.locate(samples)
        reads: list[Read] = []
        for sample, place in enumerate(windows.dataset.tolist()):
            dataset = self._window_reader.datasets[place]
            first = int(windows.first[sample])
            # A dict drops the padding, which repeats the first step.
            steps = dict.fromkeys(first + t for t in windows.history[sample].tolist())
            for column in dataset.manifest.schema.columns:
                if column.name == EPISODES:
                    reads += self._plan(dataset, column, [int(windows.episode[sample])])
                elif column.name in self._window_reader.columns[place]:
                    window = self._window_reader.config.longest_window(column)
                    reads += self._plan(dataset, column, list(steps)[-window:])
        return reads

    def run(self, reads: Sequence[Read], *, decode: bool = True) -> None:
        """Executes the reads of a plan."""
        for read in reads:
            (record,) = read.reader.read(read.index, read.index + 1)
            for image in read.images if decode else ():
                self._decode(record[image.start : image.end], image.shape)

    def _decode(self, encoded: bytes, shape: tuple[int, ...]) -> None:
        # One buffer per size: the floor allocates nothing.
        is_depth = shape[-1] == 1
        dtype = np.float32 if is_depth else np.uint8
        buffer = self._buffers.setdefault(shape, np.empty(shape, dtype))
        if is_depth:
            decode_depth(encoded, buffer, "floor")
        elif image_format(encoded) == "jpeg":
            decode_jpeg(encoded, buffer)
        else:
            decode_image(encoded, buffer, "floor")

    def _plan(self, dataset: Dataset, column: Column, indices: Sequence[int]) -> Iterator[Read]:
        reader = dataset.columns[column.name]
        for index in indices:
            images = tuple(self._images(column, reader.read(index)))
            yield Read(*reader.raw(index), images)

    def _images(self, column: Column, values: dict[str, Any]) -> Iterator[Image]:
        """Locates the wanted images among the blobs at the end of a record."""
        blobs = [feature for feature in column.features if feature.kind != "tensor"]
        # Counted from the end, because the blobs are last in a record.
        start = -sum(len(values[feature.key]) for feature in blobs)
        for feature in blobs:
            end = start + len(values[feature.key])
            if feature.kind in ("image", "depth") and feature in self._window_reader.features:
                # -0 would be the beginning; None is the end.
                yield Image(start, end or None, feature.shape)
            start = end
