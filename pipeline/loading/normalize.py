"""Normalises arrays by checked statistics of their dataset, and undoes it."""

from collections.abc import Collection, Mapping, Sequence
from typing import assert_never

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.schema import ACTION
from pipeline.data.statistics import (
    FeatureStatistics,
    constant_dims,
    merge,
    narrow_dims,
    unusable_dims,
)
from pipeline.errors import DataError
from pipeline.loading.batch import BatchSpec, LeafSpec
from pipeline.loading.data_config import DataConfig, Normalization
from pipeline.loading.transforms.normalize_transforms import Normalizer

# Octo's and openpi's values, so that their normalised values are reproduced.
_EPSILON = 1e-8
_QUANTILE_EPSILON = 1e-6


def make_normalizer(
    statistics: Sequence[FeatureStatistics],
    masks: Sequence[np.ndarray],
    kind: Normalization,
) -> Normalizer:
    """Makes a normalizer of each dataset's statistics and the dimensions to normalise."""
    match kind:
        case "normal":
            offset = [s.mean for s in statistics]
            # float32, or the sum would be float64 and normalised values differ in the last
            # digit.
            scale = [s.std + np.float32(_EPSILON) for s in statistics]
        case "bounds" | "quantile":
            # In float32 the epsilon would vanish beside the bound of a constant dimension.
            epsilon = _EPSILON if kind == "bounds" else _QUANTILE_EPSILON
            low = [s.p01.astype(np.float64) for s in statistics]
            scale = [(s.p99 - p01 + epsilon) / 2 for s, p01 in zip(statistics, low, strict=True)]
            # The middle between the percentiles becomes 0.
            offset = [p01 + half for p01, half in zip(low, scale, strict=True)]
        case _:
            assert_never(kind)
    return Normalizer(np.stack(offset), np.stack(scale), np.stack(masks), kind == "bounds")


def normalized_arrays(config: DataConfig, spec: BatchSpec, vectors: Collection[str]) -> BatchSpec:
    """Returns the types of the arrays that are normalised: the action, then the observations.

    Args:
      config: Config of the loader.
      spec: Types of a batch after the config's transforms.
      vectors: Names of the stored observations that have statistics. What a transform adds has
        some if it is a float32 vector per step.
    """
    found = {ACTION: spec[ACTION]}
    stored = [f"observation/{name}" for name in config.observations]
    # In the config's order; then what the transforms add.
    for key in (*stored, *(key for key in spec if key not in stored)):
        name = key.removeprefix("observation/")
        is_vector = name in vectors or (key not in stored and key == f"observation/{name}")
        leaf = spec.get(key)
        if leaf is not None and is_vector and _is_vector(leaf) and config.normalizes(name):
            found[key] = leaf
    return found


def _is_vector(leaf: LeafSpec) -> bool:
    """Whether an array is a float32 vector per step, (b w d)."""
    return leaf.dtype == "float32" and bool(leaf.dims)


def normalized_dims(leaf: LeafSpec) -> np.ndarray:
    """Returns True where a dimension of the last axis is normalised; bool (d)."""
    return np.array([name not in leaf.raw for name in leaf.dims])


def used_statistics(
    config: DataConfig,
    datasets: Sequence[Dataset],
    shares: Sequence[float],
    key: str,
    leaf: LeafSpec,
    computed: Sequence[Mapping[str, FeatureStatistics]],
) -> list[FeatureStatistics]:
    """Returns statistics for each dataset: its own, or the merged ones if it lacks the feature.

    With `statistics` set to `mixture`, every dataset gets the merged ones.

    Args:
      config: Config of the loader.
      datasets: The datasets of the mixture.
      shares: Share of the samples that come from each.
      key: Path of the array that is normalised.
      leaf: Its type.
      computed: Statistics of each dataset of what the transforms change, by key.

    Raises:
      DataError: Statistics are missing, belong to other data, or cannot normalise anything; all
        such problems are listed together, by dataset and dimension.
    """
    name = key.removeprefix("observation/")
    is_transformed = any(key in of_dataset for of_dataset in computed)
    own = {}
    for number, (dataset, of_dataset) in enumerate(zip(datasets, computed, strict=True)):
        is_stored = key in {feature.key for _, feature in dataset.manifest.schema.features()}
        if name in config.datasets[number].missing:
            continue
        if key in of_dataset:
            own[number] = of_dataset[key]
        # Else a transform adds it to the others, and this one lacks what it is made of.
        elif is_stored or not is_transformed:
            own[number] = _find(dataset, key)
    mask = normalized_dims(leaf)
    problems = [
        f"{_origin(datasets[number], key, computed[number])}, {key}[{dim}]: {text}"
        for number, statistics in own.items()
        for dim, text in unusable_dims(statistics, mask).items()
    ]
    if problems:
        raise DataError(
            where="statistics that samples are normalised by",
            expected="finite ones, with std at least 0 and p01 at most p99",
            found="; ".join(problems),
            remedy="Correct the transforms."
            if is_transformed
            else "Convert the dataset again: its values or this file are corrupt.",
        )
    # Weighted as the samples are, not by the size of the datasets.
    merged = merge(list(own.values()), [shares[number] for number in own])
    if config.statistics == "mixture":
        own = {}
    return [own.get(number, merged) for number in range(len(datasets))]


def _origin(dataset: Dataset, key: str, computed: Mapping[str, FeatureStatistics]) -> str:
    """Returns where the statistics of an array of a dataset come from."""
    return (
        f"{dataset.path} after data.transforms"
        if key in computed
        else f"{dataset.path}/{dataset.manifest.statistics_name}"
    )


def check_varying(
    datasets: Sequence[Dataset],
    key: str,
    used: Sequence[FeatureStatistics],
    masks: Sequence[np.ndarray],
    computed: Sequence[Mapping[str, FeatureStatistics]],
    kind: Normalization,
) -> None:
    """Checks that every normalised dimension varies, and where percentiles scale it, between them.

    Args:
      datasets: The datasets of the mixture.
      key: Key of the feature.
      used: The statistics that each dataset's samples are normalised by.
      masks: bool (d) of each dataset: False where a dimension is not normalised.
      computed: Statistics of each dataset of what the transforms change, by key.
      kind: How the feature is normalised.

    Raises:
      DataError: Some dimensions never vary, or too rarely; all of them are listed.
    """
    pairs = zip(datasets, computed, strict=True)
    origins = [_origin(dataset, key, own) for dataset, own in pairs]
    problems = [
        f"{origin}, {key}[{dim}]: 0"
        for origin, statistics, mask in zip(origins, used, masks, strict=True)
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
    problems = [
        f"{origin}, {key}[{dim}]: p01 {one.p01[dim]:g}, p99 {one.p99[dim]:g}, std {one.std[dim]:g}"
        for origin, one, mask in zip(origins, used, masks, strict=True)
        for dim in narrow_dims(one, mask)
    ]
    if problems and kind != "normal":
        raise DataError(
            where="statistics that samples are normalised by",
            expected=f"p01 below p99 in every dimension, which normalization={kind!r} maps to -1 "
            "and 1",
            found="; ".join(problems),
            remedy='Set normalization="normal": the few values beyond them would become huge or be '
            "clipped.",
        )


def _find(dataset: Dataset, key: str) -> FeatureStatistics:
    """The statistics of a feature in a dataset."""
    column, feature = dataset.manifest.schema.find(key, dataset.path)
    found = dataset.statistics.get(key)
    # A scalar has statistics of one dimension, as in a batch.
    if found is None or found.mean.shape != column.in_batch(feature).shape:
        raise DataError(
            where=f"{dataset.path}/{dataset.manifest.statistics_name}, {key}",
            expected=f"statistics of {feature.dtype}{list(feature.shape)}",
            found="none" if found is None else f"those of {len(found.mean)} dimensions",
            remedy="They are of another dataset: put its own file there, or convert it again.",
        )
    # Statistics of another dataset with the same features have another number of steps.
    if found.count != dataset.num_kept_steps:
        raise DataError(
            where=f"{dataset.path}/{dataset.manifest.statistics_name}, {key}",
            expected=f"statistics of {dataset.num_kept_steps} steps, as the dataset has",
            found=f"those of {found.count}",
            remedy="They are of another dataset: put its own file there, or convert it again.",
        )
    return found
