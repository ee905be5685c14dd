"""The values of an episode of a dataset by feature, as its records hold them."""

from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.record import Values
from pipeline.data.schema import Blob, Column, Feature

EpisodeValues = dict[str, np.ndarray | list[Blob]]
"""Values by source or feature key: tensors (t, *shape), or t encoded images or texts."""


def read_values(
    dataset: Dataset, column: Column, features: Sequence[Feature], index: int
) -> EpisodeValues:
    """Tensors (t, *shape), images or texts of the features of one column, by feature key."""
    reader = dataset.columns[column.name]
    if column.per == "episode":
        record = reader.read(index)
        found = {feature.key: record[feature.key] for feature in features}
        return {k: v if isinstance(v, np.ndarray) else [v] for k, v in found.items()}
    first = int(dataset.episode_starts[index])
    num_steps = dataset.manifest.episode_lengths[index]
    records = (reader.read(first + t) for t in range(num_steps))
    return _stacked(records, features, num_steps)


def _stacked(
    records: Iterable[Values], features: Sequence[Feature], num_steps: int
) -> EpisodeValues:
    """The records of the steps of one episode, by feature key.

    Half-precision values become float32 here, as TFRecord holds them, so that they lie in memory
    once.
    """
    tensors: dict[str, np.ndarray] = {}
    blobs: dict[str, list[Blob]] = {f.key: [] for f in features if f.kind != "tensor"}
    for feature in features:
        if feature.kind == "tensor":
            is_half = feature.dtype in ("float16", "bfloat16")
            # As TFRecord holds every float.
            dtype = np.dtype(np.float32) if is_half else feature.numpy_dtype
            tensors[feature.key] = np.empty((num_steps, *feature.shape), dtype)
    for t, record in enumerate(records):
        for feature in features:
            value = record[feature.key]
            if isinstance(value, np.ndarray):
                tensors[feature.key][t] = value
            else:
                blobs[feature.key].append(value)
    return {**tensors, **blobs}
