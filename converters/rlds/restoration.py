"""The way back from a dataset: an episode by its source keys, and the features to declare."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from converters.rlds.source import STEPS
from pipeline.batch import nest
from pipeline.dataset import Dataset
from pipeline.images import image_format
from pipeline.manifest import Manifest
from pipeline.record import Values
from pipeline.schema import Blob, Column, Feature, Schema

SourceValues = dict[str, np.ndarray | list[Blob]]
"""By source key: tensors (t, *shape), or t encoded images or texts."""
Formats = dict[str, set[str]]
"""By source key of an image: the formats that its bytes have."""


def declared_features(
    manifest: Manifest, formats: Mapping[str, set[str]]
) -> tfds.features.FeaturesDict:
    """The features of `features.json`, under the keys and of the dtypes that the source had.

    Args:
      manifest: Names them.
      formats: By source key of an image, `jpeg` or `png`; with both, none is declared.
    """
    leaves: dict[str, Any] = {manifest.task_source: tfds.features.Text()}
    for _, feature in _each_source(manifest.schema):
        leaves[feature.source] = _declared(feature, formats.get(feature.source, set()))
    steps = {key.removeprefix(STEPS): leaf for key, leaf in leaves.items() if key.startswith(STEPS)}
    others = {key: leaf for key, leaf in leaves.items() if not key.startswith(STEPS)}
    tree = nest(others) | {"steps": tfds.features.Dataset(nest(steps))}
    return tfds.features.FeaturesDict(tree)


def _each_source(schema: Schema) -> list[tuple[Column, Feature]]:
    """(column, feature) for every key of the source; the features of one key hold the same.

    Computed features have none: the source did not have them.
    """
    taken: dict[str, tuple[Column, Feature]] = {}
    for column, feature in schema.features():
        if feature.source:
            taken.setdefault(feature.source, (column, feature))
    return list(taken.values())


def _declared(feature: Feature, formats: set[str]) -> Any:
    match feature.kind:
        case "text":
            return tfds.features.Text()
        case "image":
            (encoding,) = formats if len(formats) == 1 else (None,)
            return tfds.features.Image(shape=feature.shape, encoding_format=encoding)
        case _:
            dtype = np.dtype(feature.source_dtype or feature.dtype)
            return tfds.features.Tensor(shape=feature.shape, dtype=dtype)


def read_episode(dataset: Dataset, index: int, formats: Formats) -> SourceValues:
    """The values of an episode by source key; those outside `steps/` once.

    Args:
      dataset: Holds them.
      index: Of the episode.
      formats: Takes the formats of the images.

    Raises:
      DataError: Where a record is damaged, or an image neither JPEG nor PNG.
    """
    num_steps = dataset.manifest.episode_lengths[index]
    values: SourceValues = {dataset.manifest.task_source: _tasks(dataset, index, num_steps)}
    for column, pairs in itertools.groupby(_each_source(dataset.manifest.schema), lambda p: p[0]):
        reader = dataset.columns[column.name]
        features = [feature for _, feature in pairs]
        if column.per == "episode":
            record = reader.read(index)
            for feature in features:
                value = record[feature.key]
                values[feature.source] = value if isinstance(value, np.ndarray) else [value]
            continue
        first = int(dataset.episode_starts[index])
        records = (reader.read(first + t) for t in range(num_steps))
        values |= _stacked(records, features, num_steps)
    _note_formats(values, dataset, formats)
    return {key: value if key.startswith(STEPS) else value[:1] for key, value in values.items()}


def _tasks(dataset: Dataset, index: int, num_steps: int) -> list[Blob]:
    """The instruction of each step."""
    tasks = dataset.manifest.tasks
    return [tasks[dataset.task_index(index, t)].encode() for t in range(num_steps)]


def _stacked(
    records: Iterable[Values], features: Sequence[Feature], num_steps: int
) -> SourceValues:
    """The records of the steps of one episode, by source key.

    Half-precision values become float32 here, as TFRecord holds them, so that they lie in memory
    once.
    """
    tensors: dict[str, np.ndarray] = {}
    blobs: dict[str, list[Blob]] = {f.source: [] for f in features if f.kind != "tensor"}
    for feature in features:
        if feature.kind == "tensor":
            is_half = feature.dtype in ("float16", "bfloat16")
            dtype = np.dtype(np.float32) if is_half else feature.numpy_dtype
            tensors[feature.source] = np.empty((num_steps, *feature.shape), dtype)
    for t, record in enumerate(records):
        for feature in features:
            value = record[feature.key]
            if isinstance(value, np.ndarray):
                tensors[feature.source][t] = value
            else:
                blobs[feature.source].append(value)
    return {**tensors, **blobs}


def _note_formats(values: SourceValues, dataset: Dataset, formats: Formats) -> None:
    for _, feature in _each_source(dataset.manifest.schema):
        if feature.kind == "image":
            found = {image_format(blob) for blob in values[feature.source]}
            formats.setdefault(feature.source, set()).update(found)
