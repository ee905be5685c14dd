"""Checks the statistics that samples are normalised by before they are used."""

from collections.abc import Sequence

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.schema import ACTION
from pipeline.data.statistics import FeatureStatistics, constant_dims, unusable_dims
from pipeline.errors import DataError


def own_statistics(datasets: Sequence[Dataset], key: str) -> list[FeatureStatistics]:
    """Returns each dataset's statistics of one feature.

    Args:
      datasets: The datasets that have the feature.
      key: Key of the feature. The action's gripper may have any statistics, as it is not
        normalised.

    Raises:
      DataError: Statistics are missing, belong to other data, or cannot normalise anything; all
        such problems are listed together, by dataset and dimension.
    """
    found = [_find(dataset, key) for dataset in datasets]
    problems = []
    for dataset, statistics in zip(datasets, found, strict=True):
        dims = len(statistics.mean)
        conventions = dataset.manifest.conventions
        mask = conventions.normalized_dims(dims) if key == ACTION else np.ones(dims, bool)
        bad = unusable_dims(statistics, mask)
        problems += [f"{dataset.path}/statistics.json, {key}[{dim}]: {bad[dim]}" for dim in bad]
    if problems:
        raise DataError(
            where="statistics that samples are normalised by",
            expected="finite ones, with std at least 0 and p01 at most p99",
            found="; ".join(problems),
            remedy="Convert the dataset again: its values or this file are corrupt.",
        )
    return found


def check_varying(
    datasets: Sequence[Dataset],
    key: str,
    used: Sequence[FeatureStatistics],
    masks: Sequence[np.ndarray],
) -> None:
    """Checks that every normalised dimension varies.

    Args:
      datasets: The datasets of the mixture.
      key: Key of the feature.
      used: The statistics that each dataset's samples are normalised by.
      masks: bool (d) of each dataset: False where a dimension is not normalised.

    Raises:
      DataError: Some dimensions never vary; all of them are listed.
    """
    problems = [
        f"{dataset.path}/statistics.json, {key}[{dim}]: 0"
        for dataset, statistics, mask in zip(datasets, used, masks, strict=True)
        for dim in constant_dims(statistics, mask)
    ]
    if problems:
        raise DataError(
            where="statistics that samples are normalised by",
            expected="a std above 0 in every dimension",
            found="; ".join(problems),
            remedy="A dimension that never varies carries no information, and a policy's slightest "
            "deviation from it would become huge. "
            + (
                "Write the source without it, and convert again."
                if key == ACTION
                else "Do not normalise the observation: list only the others in data.normalized; "
                "or remove it from data.observations."
            ),
        )


def _find(dataset: Dataset, key: str) -> FeatureStatistics:
    """The statistics of a feature in a dataset."""
    column, feature = dataset.manifest.schema.find(key, dataset.path)
    found = dataset.statistics.get(key)
    if found is None or found.mean.shape != column.in_batch(feature).shape:
        raise DataError(
            where=f"{dataset.path}/statistics.json, {key}",
            expected=f"statistics of {feature.dtype}{list(feature.shape)}",
            found="none" if found is None else f"those of {len(found.mean)} dimensions",
            remedy="They are of another dataset: put its own file there, or convert it again.",
        )
    if found.count != dataset.num_steps:
        raise DataError(
            where=f"{dataset.path}/statistics.json, {key}",
            expected=f"statistics of {dataset.num_steps} steps, as the dataset has",
            found=f"those of {found.count}",
            remedy="They are of another dataset: put its own file there, or convert it again.",
        )
    return found
