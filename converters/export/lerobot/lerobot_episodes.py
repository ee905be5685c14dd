"""The episodes of a dataset in the files of a LeRobot dataset, one after another."""

import functools
import pathlib
import types
from collections.abc import Iterator
from typing import Any, assert_never

import numpy as np
import pyarrow as pa

from converters.export.episode_values import EpisodeValues, read_values
from converters.export.lerobot.episode_rows import EpisodeRow, EpisodeRows
from converters.export.lerobot.export_statistics import DatasetStatistics, sampled_steps
from converters.export.lerobot.exported_images import EpisodeImages
from converters.export.lerobot.lerobot_columns import (
    BOOKKEEPING,
    ExportedFeature,
    ExportedSchema,
    by_column,
    text_name,
)
from converters.export.lerobot.parquet_files import ParquetFiles, hub_metadata, numbered
from converters.export.lerobot.video_writer import Codec, VideoWriter, video_info
from pipeline.data.dataset import Dataset
from pipeline.data.schema import EPISODES

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
"""Templates of the paths of the files."""
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class EpisodeWriter:
    """Writes the data files, the videos and `meta/episodes`; a context manager.

    Args:
      dataset: What is exported.
      schema: What is exported of it.
      codec: Codec of the videos.
      directory: The LeRobot directory.
    """

    def __init__(
        self, dataset: Dataset, schema: ExportedSchema, codec: Codec, directory: pathlib.Path
    ) -> None:
        self._dataset = dataset
        self._schema = schema
        self._directory = directory
        rate = dataset.manifest.conventions.control_frequency_hz
        self.fps = int(rate) if float(rate).is_integer() else float(rate)
        """Steps per second: LeRobot has whole numbers, but reads 12.5 as well."""
        self.tasks = _tasks(dataset)
        """The instructions by number, each once."""
        self.num_episodes = self.num_steps = 0
        """Episodes and steps that were written, which is what the next ones are numbered from."""
        self.statistics = DatasetStatistics(schema.features)
        """Statistics of all episodes that were written."""
        self.declarations = dict(_declarations(schema, codec, self.fps))
        """The columns as `meta/info.json` declares them."""
        self._data = ParquetFiles(directory, DATA)
        self._rows = EpisodeRows(directory)
        self._videos = {
            one.name: self._video(one, codec) for one in schema.features if one.storage == "video"
        }

    def write(self, index: int) -> int:
        """Writes an episode; returns the bytes that it takes.

        Args:
          index: Its number in the dataset; in the export it is the number of the ones before.

        Raises:
          DataError: A record or image is corrupt.
          SchemaError: An image has another size than declared.
        """
        row, arrays = self._row(index), dict[str, pa.Array]()
        num_bytes = 0
        values = self._values(index)
        for one in self._schema.features:
            # Taken out, so that images do not stay in memory beside their encoded column.
            value = values.pop(one.feature.key)
            where = f"{self._dataset.path}, episode {index}, {one.feature.key}"
            match one.storage:
                case "values":
                    numbers = np.asarray(value).astype(one.dtype, copy=False)
                    arrays[one.name] = _array(numbers)
                    row.summarize(one.name, self.statistics.add_values(one.name, numbers))
                case "video":
                    num_bytes += self._write_video(EpisodeImages(one, value, where), row)
                case "image" | "depth":
                    arrays[one.name] = self._stored(EpisodeImages(one, value, where), row)
                case _:
                    assert_never(one.storage)
        for name, numbers in self._bookkeeping(index).items():
            arrays[name] = pa.array(numbers)
            row.summarize(name, self.statistics.add_values(name, numbers))
        table = pa.table(arrays).replace_schema_metadata(self._metadata)
        row.put("data", numbered(self._data.make_room(table.nbytes)))
        self._data.write(table)
        self._rows.add(row)
        self.num_episodes += 1
        self.num_steps += row.length
        return num_bytes + table.nbytes

    def __enter__(self) -> "EpisodeWriter":
        """Returns itself; the files are opened when there is something to write."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Ends all files; after an error they are left unfinished."""
        try:
            if error is None:
                for one in (self._data, self._rows, *self._videos.values()):
                    one.close()
        finally:
            for one in (self._data, self._rows):
                one.abandon()

    # --- values

    def _values(self, index: int) -> EpisodeValues:
        """Values of an episode by feature key."""
        values: EpisodeValues = {}
        for column, features in by_column(self._schema.features):
            values |= read_values(self._dataset, column, features, index)
        return values

    def _bookkeeping(self, index: int) -> dict[str, np.ndarray]:
        """The columns that number the rows of an episode, (t) each."""
        num_steps = self._dataset.manifest.episode_lengths[index]
        frames = np.arange(num_steps)
        columns = {
            "timestamp": frames / self.fps,
            "frame_index": frames,
            "episode_index": np.full(num_steps, self.num_episodes),
            "index": frames + self.num_steps,
            "task_index": np.array(self._task_indices(index)),
        }
        return {name: columns[name].astype(dtype) for name, dtype in BOOKKEEPING.items()}

    def _task_indices(self, index: int) -> list[int]:
        """Number of the instruction of each step of an episode."""
        texts = self._dataset.manifest.tasks
        steps = range(self._dataset.manifest.episode_lengths[index])
        return [self._numbers[texts[self._dataset.task_index(index, t)]] for t in steps]

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {text: number for number, text in enumerate(self.tasks)}

    @functools.cached_property
    def _metadata(self) -> dict[str, str]:
        """What the schema of the data files carries."""
        stored = {k: v for k, v in self.declarations.items() if v["dtype"] != "video"}
        return hub_metadata(stored)

    def _row(self, index: int) -> EpisodeRow:
        """The first columns of an episode's row."""
        length = self._dataset.manifest.episode_lengths[index]
        numbers = dict.fromkeys(self._task_indices(index))
        record = self._dataset.columns[EPISODES].read(index) if self._schema.texts else {}
        texts = {text_name(text): bytes(record[text.key]) for text in self._schema.texts}
        return EpisodeRow(
            {
                "episode_index": self.num_episodes,
                "tasks": [self.tasks[number] for number in numbers],
                "length": length,
                "dataset_from_index": self.num_steps,
                "dataset_to_index": self.num_steps + length,
                **{name: text.decode() for name, text in texts.items()},
            }
        )

    # --- images

    def _stored(self, images: EpisodeImages, row: EpisodeRow) -> pa.Array:
        """The images of an episode as a column; their statistics go to the row."""
        stored = [{"bytes": image, "path": None} for image in images.stored()]
        sampled = map(images.pixels, sampled_steps(row.length))
        row.summarize(images.of.name, self.statistics.add_images(images.of, sampled))
        return pa.array(stored, _IMAGE)

    def _video(self, one: ExportedFeature, codec: Codec) -> VideoWriter:
        def path_of(number: int) -> pathlib.Path:
            return self._directory / VIDEOS.format(video_key=one.name, **numbered(number))

        return VideoWriter(path_of, codec, one.feature.shape, self.fps)

    def _write_video(self, images: EpisodeImages, row: EpisodeRow) -> int:
        """Writes the frames of an episode; their place and statistics go to the row.

        Returns:
          The bytes that the encoder gave meanwhile.
        """
        name, sampled = images.of.name, {*sampled_steps(row.length)}
        video = self._videos[name]
        file, start = video.begin_episode()
        times = {"from_timestamp": start, "to_timestamp": start + row.length / self.fps}
        row.put(f"videos/{name}", {**numbered(file), **times})
        num_bytes = 0

        def frames() -> Iterator[np.ndarray]:
            nonlocal num_bytes
            # Each is decoded once, for the video and the statistics.
            for t in range(row.length):
                frame = images.pixels(t)
                num_bytes += video.write(frame)
                if t in sampled:
                    yield frame

        row.summarize(name, self.statistics.add_images(images.of, frames()))
        return num_bytes


def _tasks(dataset: Dataset) -> tuple[str, ...]:
    """The instructions of the episodes that are exported, each once, in the dataset's order."""
    manifest, kept = dataset.manifest, {*dataset.kept_episodes.tolist()}
    used = {manifest.episode_tasks[index] for index in kept}
    used |= {change.task for change in manifest.task_changes if change.episode in kept}
    return tuple(dict.fromkeys(manifest.tasks[task] for task in sorted(used)))


def _declarations(
    schema: ExportedSchema, codec: Codec, fps: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each column, and its entry in `features` of `meta/info.json`."""
    for one in schema.features:
        info = {}
        if one.storage == "video":
            info = {"info": video_info(codec, one.feature.shape, fps)}
        yield one.name, {**one.declaration, **info}
    for name, dtype in BOOKKEEPING.items():
        yield name, {"dtype": dtype, "shape": [1], "names": None}


def _array(numbers: np.ndarray) -> pa.Array:
    """Numbers (t, *shape) as a column: a scalar, or a vector of one, is a plain number.

    A vector has a fixed length; what has more axes is nested lists, as `datasets` stores it.
    """
    array = pa.array(np.ascontiguousarray(numbers).reshape(-1))
    shape = numbers.shape[1:]
    if shape in ((), (1,)):
        return array
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(array, shape[0])
    for length in reversed(shape):
        offsets = np.arange(0, len(array) + 1, length, dtype=np.int32)
        array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array
