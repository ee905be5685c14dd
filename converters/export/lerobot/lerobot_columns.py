"""The features of a dataset under the names and in the types that a LeRobot dataset has."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from converters.lerobot.lerobot_features import EPISODE_TEXTS
from converters.mapping.mapped_features import IMAGES
from pipeline.data.manifest import Manifest
from pipeline.data.schema import Column, Feature

Storage = Literal["video", "image"]
"""How a camera is stored: frames of a video, or encoded images in the data files."""

BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Columns that number the rows of every LeRobot dataset, with their dtypes."""
_RESERVED = {*BOOKKEEPING, "task", "subtask", "language_persistent", "language_events"}
_USUAL = {"observation/proprio": "observation.state"}
"""Names that policies of LeRobot look for."""
_OBSERVATION = "observation/"
_IMAGES = "observation.images."
_FOLDER = "observation/images/"
_TOKEN_AXES = 2
_HALVES = ("float16", "bfloat16")
_IMAGE_AXES = ["height", "width", "channels"]


@dataclasses.dataclass(frozen=True)
class ExportedFeature:
    """A feature of each step, and what it becomes."""

    column: Column
    """The column that holds it."""
    feature: Feature
    name: str
    """Its name in LeRobot, such as `observation.images.primary`."""
    storage: Literal["video", "image", "depth", "values"]
    """`depth` is stored as 16-bit PNG in the data files, `values` as numbers."""

    @property
    def is_camera(self) -> bool:
        """Whether it is an RGB camera."""
        return self.storage in ("video", "image")

    @property
    def dtype(self) -> np.dtype:
        """Dtype of its numbers: that at rest, but for halves, which become float32."""
        return np.dtype("float32" if self.feature.dtype in _HALVES else self.feature.dtype)

    @property
    def declaration(self) -> dict[str, Any]:
        """Its entry in `features` of `meta/info.json`, without what a video has besides."""
        shape = list(self.feature.shape) or [1]
        if self.is_camera:
            return {"dtype": self.storage, "shape": shape, "names": _IMAGE_AXES}
        if self.storage == "depth":
            info = {"is_depth_map": True, "depth_unit": "mm"}
            return {"dtype": "image", "shape": shape, "names": _IMAGE_AXES, "info": info}
        names = list(self.feature.dims) or None
        return {"dtype": self.dtype.name, "shape": shape, "names": names}


@dataclasses.dataclass(frozen=True)
class ExportedSchema:
    """What an export writes of a dataset."""

    features: tuple[ExportedFeature, ...]
    """The features of each step, in the order of the dataset."""
    texts: tuple[Feature, ...]
    """Texts of the whole episode."""
    left_out: tuple[str, ...]
    """Keys of the features that are not exported: tokens."""


def exported_schema(manifest: Manifest, storage: Storage) -> ExportedSchema:
    """Decides what becomes of each feature.

    Args:
      manifest: Manifest of the dataset.
      storage: How its cameras are stored.
    """
    features: list[ExportedFeature] = []
    texts, left_out = [], []
    taken = set(_RESERVED)
    for column, feature in manifest.schema.features():
        if _is_token(column, feature):
            left_out.append(feature.key)
        elif feature.kind == "text":
            texts.append(feature)
        else:
            is_camera = column.is_camera(feature)
            kind = "depth" if feature.kind == "depth" else storage if is_camera else "values"
            name = next(name for name in _names(feature) if name not in taken)
            taken.add(name)
            features.append(ExportedFeature(column, feature, name, kind))
    return ExportedSchema(tuple(features), tuple(texts), tuple(left_out))


def _is_token(column: Column, feature: Feature) -> bool:
    """Whether a feature is tokens (n, d) of an image, computed here or at the source.

    LeRobot would take them for the state of the robot, and read them as lists of numbers.
    """
    # A computed feature has no source. A matrix beside the images is data, such as a point cloud.
    is_matrix = feature.kind == "tensor" and len(feature.shape) == _TOKEN_AXES
    return not feature.origins or (column.per == "step" and column.name != IMAGES and is_matrix)


def text_name(feature: Feature) -> str:
    """The name of a text's column in `meta/episodes`."""
    return EPISODE_TEXTS + feature.key


def _names(feature: Feature) -> Iterator[str]:
    """Names that a feature may have, the best first."""
    key = feature.key
    if key in _USUAL:
        yield _USUAL[key]
    plain = key.replace("/", ".")
    is_image = feature.is_camera or feature.kind == "depth"
    if is_image and key.startswith(_OBSERVATION):
        # A camera of LeRobot's, `observation/images/top`, has its name again.
        if key.startswith(_FOLDER):
            yield _IMAGES + key.removeprefix(_FOLDER).replace("/", ".")
        leaf = key.removeprefix(_OBSERVATION).replace("/", ".")
        # `image_primary` is the camera `primary`.
        yield _IMAGES + leaf.removeprefix("image_")
        yield _IMAGES + leaf
    yield plain
    # Such as `timestamp`, which LeRobot has itself.
    yield f"source.{plain}"
    for number in itertools.count(2):
        yield f"source_{number}.{plain}"


def by_column(features: Sequence[ExportedFeature]) -> list[tuple[Column, list[Feature]]]:
    """The features of each column, whose records are read once for all of them."""
    columns = {one.column.name: one.column for one in features}
    return [
        (column, [one.feature for one in features if one.column.name == name])
        for name, column in columns.items()
    ]
