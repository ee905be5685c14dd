"""Episodes of a LeRobot dataset as arrays, texts and encoded images."""

import contextlib
import io
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
from etils import epath
from PIL import Image

from converters.lerobot.column_values import (
    check_schema,
    image_values,
    tensor_values,
    text_values,
)
from converters.lerobot.episode_places import EpisodePlace
from converters.lerobot.lerobot_dataset import LeRobotDataset
from converters.lerobot.lerobot_features import (
    EPISODE_INDEX,
    FRAME_INDEX,
    SUBTASK,
    SUBTASK_INDEX,
    TASK,
    TASK_INDEX,
    TIMESTAMP,
    LeRobotFeature,
)
from converters.lerobot.parquet_rows import RowReader, open_rows
from converters.lerobot.video_frames import TOLERANCE_S, VideoFrames
from converters.sources.image_encoding import encode_jpeg, encode_png
from converters.sources.source import Episode
from pipeline.data.images import unreadable_image
from pipeline.data.schema import Blob
from pipeline.errors import DataError, SchemaError

_PNG = b"\x89PNG"
"""The first bytes of every PNG."""
_INDICES = {TASK: TASK_INDEX, SUBTASK: SUBTASK_INDEX}
"""Columns of the numbers of texts, by source key."""


class EpisodeReader:
    """Reads episodes in order, each file from the first one's part of it on.

    Args:
      dataset: The dataset.
      wanted: Source keys that are read; None: all but those of kind `other`.
    """

    def __init__(self, dataset: LeRobotDataset, wanted: Collection[str] | None) -> None:
        self._dataset = dataset
        keys = dataset.keys
        self._wanted = [
            key for key in keys if (keys[key].kind != "other" if wanted is None else key in wanted)
        ]
        self._texts = [key for key in self._wanted if key in dataset.texts]
        others = {*_INDICES, *self._texts}
        features = [dataset.features[key] for key in self._wanted if key not in others]
        self._in_columns = [feature for feature in features if feature.is_column]
        self._in_videos = [feature for feature in features if not feature.is_column]
        self.num_bytes = 0
        """Bytes that were read for the last episode: its part of each file."""
        self._files = contextlib.ExitStack()
        self._rows: RowReader | None = None
        self._videos: dict[str, VideoFrames] = {}
        self._sizes: dict[epath.Path, int] = {}

    def read(self, place: EpisodePlace, where: str) -> Episode:
        """The values of an episode by source key.

        Args:
          place: Where it lies.
          where: File and episode, for errors.

        Raises:
          DataError: A file of it is missing, corrupt or too short, or its rows are not its own.
          SchemaError: A value has another type or shape than declared.
        """
        self.num_bytes = 0
        if not place.length:
            raise DataError(
                where=where,
                expected="at least one step",
                found="none",
                remedy="Take the episode out of the dataset.",
            )
        table = self._table(place, where)
        times = _step_times(table, place, self._dataset.info.fps, where)
        values: Episode = {}
        for feature in self._in_columns:
            column = table.column(feature.name)
            match feature.storage:
                case "image":
                    images = image_values(column, feature, where)
                    if feature.key.dtype == "uint16":
                        images = [_as_png(image, f"{where}, {feature.name}") for image in images]
                    values[feature.key.key] = images
                case "string":
                    values[feature.key.key] = text_values(column, feature, where)
                case _:
                    values[feature.key.key] = tensor_values(column, feature, where)
        for key in self._wanted:
            if key in _INDICES:
                texts = self._dataset.tasks if key == TASK else self._dataset.subtasks or {}
                values[key] = _texts(table.column(_INDICES[key]), texts, f"{where}, {key}")
        for key in self._texts:
            values[key] = [place.texts[key].encode()]
        for feature in self._in_videos:
            values[feature.key.key] = self._images(place, feature, times)
        return {key: values[key] for key in self._wanted}

    def close(self) -> None:
        """Closes all files."""
        for video in self._videos.values():
            video.close()
        self._files.close()

    def _table(self, place: EpisodePlace, where: str) -> pa.Table:
        path = self._dataset.at_hand(place.data)
        if self._rows is None or self._rows.path != path:
            self._files.close()
            self._rows = None
            columns = [TIMESTAMP, FRAME_INDEX, EPISODE_INDEX]
            columns += [_INDICES[key] for key in self._wanted if key in _INDICES]
            columns += [feature.name for feature in self._in_columns]
            rows = open_rows(path, list(dict.fromkeys(columns)), self._check)
            self._rows = self._files.enter_context(rows)
        self._count(path, place.length, self._rows.num_rows)
        return self._rows.take(place.first_row, place.first_row + place.length, where)

    def _count(self, path: epath.Path, num_steps: int, num_steps_of_file: int) -> None:
        if path not in self._sizes:  # a request, in an object store
            self._sizes[path] = int(path.stat().length)
        # Files are compressed, so a step has the mean size.
        self.num_bytes += self._sizes[path] * num_steps // max(num_steps_of_file, num_steps, 1)

    def _check(self, schema: pa.Schema, where: str) -> None:
        check_schema(schema, self._dataset.features, where)

    def _images(
        self, place: EpisodePlace, feature: LeRobotFeature, times: np.ndarray
    ) -> list[Blob]:
        """The frames of an episode, each encoded before the next one is decoded."""
        file, start = place.videos[feature.name]
        path = self._dataset.at_hand(file)
        video = self._videos.get(feature.name)
        if video is None or video.path != path:
            if video is not None:
                video.close()
                del self._videos[feature.name]
            video = VideoFrames(path, feature, self._dataset.info.fps)
            self._videos[feature.name] = video
        self._count(path, place.length, video.num_frames)
        frames = video.take(start + times, place.index)
        if feature.depth is not None:
            millimetres = feature.depth.millimetres
            return [encode_png(millimetres[video.codes(frame)][:, :, None]) for frame in frames]
        quality = self._dataset.image_quality
        return [encode_jpeg(video.pixels(frame), quality) for frame in frames]


def _as_png(image: Blob, where: str) -> Blob:
    """A depth image as PNG; LeRobot records TIFF."""
    if image[:4] == _PNG:
        return image
    with unreadable_image(image, where):
        pixels = np.asarray(Image.open(io.BytesIO(image), formats=("TIFF",)))
    if pixels.dtype != np.uint16:
        raise SchemaError(
            where=where,
            expected="depth images of 16 bits, as the unit mm says",
            found=f"{pixels.dtype}",
            remedy="Correct depth_unit in meta/info.json, or ignore the key in the mapping.",
        )
    return encode_png(pixels[:, :, None])


def _step_times(table: pa.Table, place: EpisodePlace, fps: float, where: str) -> np.ndarray:
    """The times of an episode's steps in s, float64 (t), once its rows are known to be its own.

    They are on the grid of the frame rate, which may begin at any time: more exact than the stored
    timestamps, whose gaps in float32 are greater than the tolerance from 2,048 s on.
    """
    for name, expected in (
        (EPISODE_INDEX, np.full(place.length, place.index)),
        (FRAME_INDEX, np.arange(place.length)),
    ):
        found = table.column(name).to_numpy()
        wrong = np.flatnonzero(found != expected)
        if wrong.size:
            raise DataError(
                where=f"{where}, step {wrong[0]}",
                expected=f"{name} {expected[wrong[0]]} in row {place.first_row + wrong[0]}",
                found=f"{found[wrong[0]]}",
                remedy="The data file is not the one that meta/ describes: fetch both again.",
            )
    stored = table.column(TIMESTAMP).to_numpy()
    times = stored.astype(np.float64)
    grid = times[:1] + np.arange(place.length) / fps
    off = np.flatnonzero(~(np.abs(times - grid) <= TOLERANCE_S + np.spacing(np.abs(stored))))
    if off.size:
        raise DataError(
            where=f"{where}, step {off[0]}",
            expected=f"the timestamp {grid[off[0]]:.4f} s, on the grid of {fps:g} fps",
            found=f"{times[off[0]]:.4f} s, and {off.size - 1} more such steps",
            remedy="Correct fps in meta/info.json, or resample the episode to it.",
        )
    return grid


def _texts(column: pa.ChunkedArray, texts: Mapping[int, str], where: str) -> list[Blob]:
    """The text of each number; a negative one means that there is none."""
    numbers = column.to_pylist()
    for step, number in enumerate(numbers):
        if number not in texts and not (number is not None and number < 0):
            raise DataError(
                where=f"{where}, step {step}",
                expected=f"the number of one of {len(texts)} texts in meta/",
                found=f"{number}",
                remedy="The data file is not the one that meta/ describes: fetch both again.",
            )
    encoded = {number: texts.get(number, "").encode() for number in set(numbers)}
    return [encoded[number] for number in numbers]
