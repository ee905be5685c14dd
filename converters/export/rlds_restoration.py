"""The way back from a dataset: an episode by its source keys, and the features to declare."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from converters.export.episode_values import EpisodeValues, read_values
from converters.sources.source import STEPS
from pipeline.data.dataset import Dataset
from pipeline.data.images import MM_PER_M, image_format, read_millimetres
from pipeline.data.manifest import Manifest
from pipeline.data.schema import Blob, Column, Feature, Schema, SourcePart, nest
from pipeline.errors import UserError

Formats = dict[str, set[str]]
"""Formats of the encoded bytes, by source key of an image."""


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A key of the source, and the place of its values in a dataset."""

    column: Column
    feature: Feature
    part: SourcePart
    start: int
    """The first of its numbers in a feature that is joined."""

    def of(self, values: np.ndarray) -> np.ndarray:
        """The key's values, (t, *shape), in those of the feature."""
        if not self.feature.parts or self.feature.kind == "depth":
            return values
        # Its own numbers of the joined vector.
        own = values[:, self.start : self.start + self.part.size]
        own = own.reshape(len(values), *self.part.shape)
        # Integers and bools were joined as float32, exactly.
        return own if np.dtype(self.part.dtype).kind == "f" else own.astype(self.part.dtype)


def declared_features(
    manifest: Manifest, formats: Mapping[str, set[str]]
) -> tfds.features.FeaturesDict:
    """The features of `features.json`, under the keys and of the dtypes that the source had.

    Args:
      manifest: Names them.
      formats: By source key of an image, `jpeg` or `png`; with both, none is declared.
    """
    leaves = _leaves(manifest, formats)
    steps = {key.removeprefix(STEPS): leaf for key, leaf in leaves.items() if key.startswith(STEPS)}
    others = {key: leaf for key, leaf in leaves.items() if not key.startswith(STEPS)}
    tree = nest(others) | {"steps": tfds.features.Dataset(nest(steps))}
    return tfds.features.FeaturesDict(tree)


def check_keys(manifest: Manifest) -> None:
    """Refuses a dataset whose source keys RLDS cannot hold together.

    Raises:
      UserError: A key has values and other keys below it, as `state` beside `state/joint`.
    """
    keys = _leaves(manifest, {})
    clashes = [
        f"{parent} beside {key}"
        for key in keys
        for parent in itertools.accumulate(key.split("/")[:-1], "{}/{}".format)
        if parent in keys
    ]
    if clashes:
        raise UserError(
            where=manifest.name,
            expected="source keys with values or with other keys below them, not both, as in RLDS",
            found=", ".join(clashes),
            remedy="Export it as LeRobot, which holds both: --to lerobot.",
        )


def _leaves(manifest: Manifest, formats: Mapping[str, set[str]]) -> dict[str, Any]:
    """What is declared of each key."""
    leaves: dict[str, Any] = {}
    if manifest.task_source:
        leaves[manifest.task_source] = tfds.features.Text()
    for piece in _pieces(manifest.schema):
        key = piece.part.source
        leaves[key] = _declared(piece, formats.get(key, set()))
    for key, num_views in _sequences(manifest.schema).items():
        views = [f"{key}[{view}]" for view in range(num_views)]
        shape = leaves[views[0]].shape
        encodings = set().union(*(formats.get(view, set()) for view in views))
        # The views become one sequence again, in the place of their keys.
        leaves = {name: leaf for name, leaf in leaves.items() if name not in views}
        leaves[key] = tfds.features.Sequence(_image(shape, encodings), length=num_views)
    return leaves


def _pieces(schema: Schema) -> list[_Piece]:
    """One for every key of the source; the features of one key hold the same.

    Computed features have none: the source did not have them.
    """
    taken: dict[str, _Piece] = {}
    for column, feature in schema.features():
        start = 0
        for part in feature.origins:
            # Several features may come from one key; the first has all its values.
            taken.setdefault(part.source, _Piece(column, feature, part, start))
            start += part.size
    return list(taken.values())


def _sequences(schema: Schema) -> dict[str, int]:
    """The number of images in each sequence of images that the dataset holds whole, by its key."""
    views: dict[str, dict[int, tuple[int, ...]]] = {}
    for piece in _pieces(schema):
        match = re.fullmatch(r"(.*)\[(\d+)\]", piece.part.source)
        if match and piece.feature.kind == "image":
            views.setdefault(match[1], {})[int(match[2])] = piece.part.shape
    return {
        key: len(shapes)
        for key, shapes in views.items()
        # Whole only if no view was left out and all have one size.
        if set(shapes) == set(range(len(shapes))) and len(set(shapes.values())) == 1
    }


def _declared(piece: _Piece, formats: set[str]) -> Any:
    match piece.feature.kind:
        case "text":
            return tfds.features.Text()
        case "image":
            return _image(piece.part.shape, formats)
        case "depth" if not piece.feature.parts:
            shape = piece.part.shape
            return tfds.features.Image(shape=shape, dtype=np.uint16, encoding_format="png")
        case _:
            return tfds.features.Tensor(shape=piece.part.shape, dtype=np.dtype(piece.part.dtype))


def _image(shape: tuple[int, ...], formats: set[str]) -> Any:
    # tensorflow-datasets declares one format, or none where images differ.
    (encoding,) = formats if len(formats) == 1 else (None,)
    return tfds.features.Image(shape=shape, encoding_format=encoding)


def read_episode(dataset: Dataset, index: int, formats: Formats) -> EpisodeValues:
    """The values of an episode as a record has them, by source key; those outside `steps/` once.

    Args:
      dataset: Holds them.
      index: Index of the episode.
      formats: Takes the formats of the images.

    Raises:
      DataError: Where a record is corrupt, or an image neither JPEG nor PNG.
    """
    manifest = dataset.manifest
    num_steps = manifest.episode_lengths[index]
    values: EpisodeValues = {}
    # A column's records are read once for all of its pieces.
    for column, group in itertools.groupby(_pieces(manifest.schema), lambda piece: piece.column):
        pieces = list(group)
        features = list(dict.fromkeys(piece.feature for piece in pieces))
        read = read_values(dataset, column, features, index)
        for piece in pieces:
            value = read[piece.feature.key]
            if piece.feature.kind == "depth" and piece.feature.parts:
                value = _depth(value, piece)
            values[piece.part.source] = piece.of(value) if isinstance(value, np.ndarray) else value
    if manifest.task_source:
        # In place of a feature of that key, which has no correction of an instruction.
        values[manifest.task_source] = _tasks(dataset, index, num_steps)
    # Before views are joined: formats are looked up by view.
    _note_formats(values, dataset, formats)
    # A value of the whole episode was repeated for each step.
    values = {key: value if key.startswith(STEPS) else value[:1] for key, value in values.items()}
    for key, num_views in _sequences(manifest.schema).items():
        values |= _as_sequence(key, [values.pop(f"{key}[{view}]") for view in range(num_views)])
    return values


def _depth(images: np.ndarray | list[Blob], piece: _Piece) -> np.ndarray:
    """Depth that the source had as numbers, (t, *shape) in its unit and dtype."""
    feature, part = piece.feature, piece.part
    planes = [read_millimetres(bytes(image), feature.shape, part.source) for image in images]
    millimetres = np.stack(planes).reshape(-1, *part.shape)
    # Integers are in mm, so division by one changes none.
    scale = MM_PER_M if feature.source_unit == "m" else 1
    return (millimetres / scale).astype(part.dtype)


def _as_sequence(key: str, views: Sequence[Any]) -> EpisodeValues:
    """The entries of a record for a sequence of images, from the images of each view."""
    # Step by step: view 0, view 1, ... of step 0, then of step 1.
    flat = [image for of_step in zip(*views, strict=True) for image in of_step]
    if not key.startswith(STEPS):
        return {key: flat}
    lengths = np.full(len(views[0]), len(views), np.int64)
    # tensorflow-datasets stores a sequence inside `steps` flat, with the length of each.
    return {f"{key}/ragged_flat_values": flat, f"{key}/ragged_row_lengths_0": lengths}


def _tasks(dataset: Dataset, index: int, num_steps: int) -> list[Blob]:
    """The instruction of each step."""
    tasks = dataset.manifest.tasks
    return [tasks[dataset.task_index(index, t)].encode() for t in range(num_steps)]


def _note_formats(values: EpisodeValues, dataset: Dataset, formats: Formats) -> None:
    for piece in _pieces(dataset.manifest.schema):
        if piece.feature.kind == "image":
            key = piece.part.source
            found = {image_format(blob) for blob in values[key]}
            formats.setdefault(key, set()).update(found)
