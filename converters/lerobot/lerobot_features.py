"""The features that `meta/info.json` declares, and the source keys that they become.

| LeRobot                     | source key                        | kind                           |
| --------------------------- | --------------------------------- | ------------------------------ |
| `action`                    | `steps/action`                    | tensor                         |
| `observation.state`         | `steps/observation/state`         | tensor, `names` as its `dims`  |
| `observation.images.top`    | `steps/observation/images/top`    | image uint8 (h, w, c)          |
| a depth video, or depth images in mm | the same                 | image uint16 (h, w, 1), in mm  |
| a string                    | the same                          | text                           |
| the text of `task_index`    | `steps/task`                      | text                           |
| the text of `subtask_index` | `steps/subtask`                   | text                           |
| `episode_metadata/...` in `meta/episodes` | the same            | text of the episode            |
| `language_persistent`, ...  | the same                          | other: annotations, not stored |
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from converters.lerobot.lerobot_info import LeRobotInfo
from converters.sources.source import STEPS, SourceKey
from pipeline.errors import DataError

_NUM_CODES = 4096
_MM = 1000.0
_LARGEST = np.iinfo(np.uint16).max


@dataclasses.dataclass(frozen=True)
class DepthCode:
    """What the 12-bit codes of a depth video mean.

    Source: lerobot 0.6's depth videos. depth = exp(x (ln(max + shift) - ln(min + shift)) + ln(min +
    shift)) - shift in metres, for x = code / 4095; without `use_log` it is linear. Deliberate
    difference: code 0 is 0, no reading. There LeRobot gives `depth_min`, which it clips missing
    readings to.
    """

    min_m: float
    """Depth of code 0, to which LeRobot clips."""
    max_m: float
    """Depth of the last code."""
    shift_m: float
    """Added before the logarithm."""
    is_log: bool
    """Whether the steps between codes grow with the depth."""

    @functools.cached_property
    def millimetres(self) -> np.ndarray:
        """Depth in whole millimetres by code, uint16 (4096); 0 is no reading."""
        x = np.arange(_NUM_CODES) / (_NUM_CODES - 1)
        if self.is_log:
            low, high = np.log(self.min_m + self.shift_m), np.log(self.max_m + self.shift_m)
            depth = np.exp(x * (high - low) + low) - self.shift_m
        else:
            depth = self.min_m + x * (self.max_m - self.min_m)
        rounded = np.clip(np.rint(depth * _MM), 0, _LARGEST).astype(np.uint16)
        rounded[0] = 0
        return rounded


def depth_code(info: Mapping[str, Any]) -> DepthCode | None:
    """The code that a camera's declaration describes; None where it describes none."""
    names = ("video.depth_min", "video.depth_max", "video.shift")
    values = [info.get(name) for name in names]
    if not all(isinstance(value, int | float) for value in values):
        return None
    low, high, shift = (float(value) for value in values if value is not None)
    is_log = bool(info.get("video.use_log"))
    if not low < high or (is_log and low + shift <= 0):
        return None
    return DepthCode(low, high, shift, is_log)


TASK = f"{STEPS}task"
"""Key of the text of each step's task."""
SUBTASK = f"{STEPS}subtask"
"""Key of the text of each step's subtask."""
TASK_INDEX, SUBTASK_INDEX = "task_index", "subtask_index"
TIMESTAMP, FRAME_INDEX, EPISODE_INDEX = "timestamp", "frame_index", "episode_index"
BOOKKEEPING = (TIMESTAMP, FRAME_INDEX, EPISODE_INDEX, "index", TASK_INDEX)
"""Columns that every set has; they place a row, and say nothing of the robot."""
EPISODE_TEXTS = "episode_metadata/"
"""Prefix of columns of `meta/episodes` that are texts of an episode; LeRobot itself has none."""
_CHANNELS = ("channel", "channels", "c", "rgb")
_MOST_CHANNELS = 4
_IMAGE_AXES = 3


@dataclasses.dataclass(frozen=True)
class LeRobotFeature:
    """A declared feature."""

    name: str
    """Its name in the files, such as `observation.state`."""
    storage: str
    """`video`, `image`, `string`, or a dtype of numpy; other words for what is not read."""
    key: SourceKey
    """What it becomes."""
    depth: DepthCode | None = None
    """What the codes of a depth camera mean; None for every other feature."""

    @property
    def is_column(self) -> bool:
        """Whether its values lie in the data files."""
        return self.storage != "video"


def declared_features(info: LeRobotInfo) -> dict[str, LeRobotFeature]:
    """The features by source key, in alphabetical order.

    Raises:
      DataError: A declaration without a usable dtype and shape, or two names of one key.
    """
    found: dict[str, LeRobotFeature] = {}
    for name, declared in info.features.items():
        feature = _feature(name, declared, f"{info.path}, features, {name}")
        other = found.get(feature.key.key)
        if other is not None or feature.key.key in (TASK, SUBTASK):
            raise DataError(
                where=f"{info.path}, features",
                expected=f"one feature as {feature.key.key}",
                found=f"{other.name if other else 'the text of its index'} and {name}",
                remedy="Rename one of them in meta/info.json and in the data files.",
            )
        found[feature.key.key] = feature
    return dict(sorted(found.items()))


def key_of(name: str) -> str:
    """The source key of a feature.

    observation.images.top    steps/observation/images/top
    """
    return STEPS + name.replace(".", "/")


def _feature(name: str, declared: Mapping[str, Any], where: str) -> LeRobotFeature:
    dtype, shape = declared.get("dtype"), declared.get("shape")
    is_shape = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    if not isinstance(dtype, str) or not is_shape:
        raise DataError(
            where=where,
            expected="a dtype, and a shape of whole numbers above 0",
            found=f"{dtype!r} and {shape!r}",
            remedy="Fetch meta/info.json again, or correct it.",
        )
    assert shape is not None
    key = key_of(name)
    if dtype in ("video", "image"):
        return _camera(name, dtype, tuple(shape), declared)
    if dtype == "string" and math.prod(shape) == 1:
        return LeRobotFeature(name, dtype, SourceKey(key, "text", (), "utf8"))
    if dtype not in np.sctypeDict or np.dtype(dtype).kind not in "biuf":
        words = f"{dtype}{shape} of LeRobot"
        return LeRobotFeature(name, dtype, SourceKey(key, "other", (), words))
    # LeRobot stores and yields a feature of shape [1] as a scalar.
    size = () if shape == [1] else tuple(shape)
    dims = _names(declared.get("names"))
    fitting = dims if size and len(dims) == size[-1] else ()
    return LeRobotFeature(name, dtype, SourceKey(key, "tensor", size, dtype, dims=fitting))


def _names(names: object) -> tuple[str, ...]:
    """The texts of `names`: a list, or a table of lists such as {"motors": [...]}."""
    return tuple(_texts(names))


def _texts(names: object) -> Iterator[str]:
    if isinstance(names, str):
        yield names
    # A table's keys are names of groups, or of the dimensions with their places.
    elif isinstance(names, dict):
        is_places = all(isinstance(value, int) for value in names.values())
        for part in names if is_places else names.values():
            yield from _texts(part)
    elif isinstance(names, list):
        for part in names:
            yield from _texts(part)


def _camera(
    name: str, storage: str, shape: tuple[int, ...], declared: Mapping[str, Any]
) -> LeRobotFeature:
    size = _image_size(shape, declared.get("names"))
    info = camera_info(declared)
    if len(size) != _IMAGE_AXES:
        words = f"{storage}{list(shape)}, which is no image"
        return LeRobotFeature(name, storage, SourceKey(key_of(name), "other", (), words))
    if not (info.get("is_depth_map") or info.get("video.is_depth_map")):
        return LeRobotFeature(name, storage, SourceKey(key_of(name), "image", size, "uint8"))
    code = depth_code(info) if storage == "video" else None
    if code is None and not _is_in_mm(storage, info):
        needed = "depth_min, depth_max and shift" if storage == "video" else 'depth_unit "mm"'
        words = f"depth as {storage}{list(shape)} without {needed}"
        key = SourceKey(key_of(name), "other", (), words, has_images=True)
        return LeRobotFeature(name, storage, key)
    key = SourceKey(key_of(name), "image", (*size[:2], 1), "uint16")
    return LeRobotFeature(name, storage, key, code)


def _is_in_mm(storage: str, info: Mapping[str, Any]) -> bool:
    """Whether depth is images of whole millimetres."""
    return storage == "image" and info.get("depth_unit") == "mm"


def _image_size(shape: tuple[int, ...], names: object) -> tuple[int, ...]:
    """(h, w, c) of a shape in the order that `names` says, or that its numbers show."""
    axes = _names(names)
    is_first = len(axes) == len(shape) and axes[:1] != () and axes[0] in _CHANNELS
    if not is_first and len(shape) == _IMAGE_AXES and axes[-1:] not in [(c,) for c in _CHANNELS]:
        is_first = shape[0] <= _MOST_CHANNELS < shape[-1]
    return (*shape[1:], shape[0]) if is_first else shape


def camera_info(declared: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a camera's declaration says of its video; empty where it says nothing."""
    info = declared.get("info") or declared.get("video_info")
    return info if isinstance(info, dict) else {}


def codec_words(declared: Mapping[str, Any]) -> str:
    """The codec of a camera's video as provenance: `av1, yuv420p, crf 30`."""
    info = camera_info(declared)
    words = [str(info.get("video.codec") or "codec not declared")]
    words += [str(info[name]) for name in ("video.pix_fmt",) if info.get(name)]
    words += [f"{name[6:]} {info[name]}" for name in ("video.crf", "video.g") if info.get(name)]
    return ", ".join(words)
