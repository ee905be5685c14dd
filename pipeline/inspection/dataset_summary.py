"""Summarizes a dataset from its manifest and statistics, without reading a record."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

import numpy as np

from pipeline.data.conventions import Conventions
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest
from pipeline.data.schema import Column, Feature
from pipeline.data.statistics import FeatureStatistics
from pipeline.data.token_provenance import TokenOrigin
from pipeline.inspection.depth_ranges import DepthRange, depth_ranges
from pipeline.inspection.feature_names import dim_names

MOMENTS = ("mean", "std", "min", "p01", "p99", "max")
"""Numeric fields of `DimSummary`."""


@dataclasses.dataclass(frozen=True)
class ColumnSummary:
    """One column on disk."""

    name: str
    per: str
    """`step` or `episode`: what a record stands for."""
    records: int
    shards: int
    num_bytes: int
    """Total size of its files."""
    bytes_per_step: float
    """Total size of its files divided by the steps of the dataset."""
    licence: str
    """Licence of the column; empty if the manifest lists none."""


@dataclasses.dataclass(frozen=True)
class FeatureSummary:
    """One feature as the schema declares it."""

    key: str
    column: str
    kind: str
    """`tensor`, `image` or `text`."""
    dtype: str
    """Dtype at rest."""
    batch_dtype: str | None
    """Dtype in the batch; None for a text, which never enters one."""
    shape: tuple[int, ...]
    """Shape of one step."""
    dims: tuple[str, ...]
    """Names of the last axis; empty if not given."""
    bytes_per_step: int | None
    """Size of one step at rest; None for images and texts, whose size varies."""
    origin: TokenOrigin | None
    """How it was computed; None for a feature of the source."""


@dataclasses.dataclass(frozen=True)
class TaskSummary:
    """One instruction."""

    index: int
    """`task_index` of its steps."""
    text: str
    episodes: int
    """Number of episodes with the instruction in at least one step."""
    steps: int
    removed_steps: int
    """Number of steps without motion that the conversion removed."""


@dataclasses.dataclass(frozen=True)
class LengthSummary:
    """Steps of the episodes."""

    episodes: int
    min: int
    median: float
    max: int
    total: int


@dataclasses.dataclass(frozen=True)
class DimSummary:
    """Statistics of one dimension over every step."""

    dim: str
    """Name of the dimension, or its index such as `[3]`; empty for a scalar."""
    mean: float
    std: float
    min: float
    p01: float
    p99: float
    max: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Everything about a dataset that fits on a page."""

    path: str
    name: str
    format_version: int
    schema_hash: str
    provenance: Mapping[str, str]
    conventions: Conventions
    lengths: LengthSummary
    columns: tuple[ColumnSummary, ...]
    features: tuple[FeatureSummary, ...]
    tasks: tuple[TaskSummary, ...]
    statistics: Mapping[str, tuple[DimSummary, ...]]
    """Statistics by feature key."""
    depth: Mapping[str, DepthRange]
    """Ranges of a few depth images, by feature key."""


def summarize(dataset: Dataset) -> Summary:
    """Summarizes an opened dataset; the only records that it reads are a few of depth images.

    Raises:
      DataError: A depth image is corrupt.
    """
    manifest = dataset.manifest
    features = {feature.key: feature for _, feature in manifest.schema.features()}
    return Summary(
        path=dataset.path,
        name=manifest.name,
        format_version=manifest.format_version,
        schema_hash=manifest.schema_hash,
        provenance=manifest.provenance,
        conventions=manifest.conventions,
        lengths=_lengths(manifest.episode_lengths),
        columns=tuple(_column(column, manifest) for column in manifest.schema.columns),
        features=tuple(_feature(manifest, *pair) for pair in manifest.schema.features()),
        tasks=_tasks(dataset),
        statistics={key: _dims(features[key], s) for key, s in dataset.statistics.items()},
        depth=depth_ranges(dataset, range(dataset.num_steps)),
    )


def _lengths(lengths: tuple[int, ...]) -> LengthSummary:
    median = float(np.median(lengths))
    return LengthSummary(len(lengths), min(lengths), median, max(lengths), sum(lengths))


def _column(column: Column, manifest: Manifest) -> ColumnSummary:
    shards = manifest.shards[column.name]
    num_bytes = sum(shard.num_bytes for shard in shards)
    return ColumnSummary(
        name=column.name,
        per=column.per,
        records=sum(shard.records for shard in shards),
        shards=len(shards),
        num_bytes=num_bytes,
        bytes_per_step=num_bytes / sum(manifest.episode_lengths),
        licence=manifest.licences.get(column.name, ""),
    )


def _feature(manifest: Manifest, column: Column, feature: Feature) -> FeatureSummary:
    return FeatureSummary(
        key=feature.key,
        column=column.name,
        kind=feature.kind,
        dtype=feature.dtype,
        batch_dtype=feature.batch_dtype,
        shape=feature.shape,
        dims=feature.dims,
        bytes_per_step=feature.nbytes if feature.kind in ("tensor", "quantized") else None,
        origin=manifest.encoders.get(feature.key),
    )


def _tasks(dataset: Dataset) -> tuple[TaskSummary, ...]:
    """Counts episodes and steps by task; a step counts for the instruction it has."""
    manifest = dataset.manifest
    begins = [(episode, 0, task) for episode, task in enumerate(manifest.episode_tasks)]
    begins += [(change.episode, change.step, change.task) for change in manifest.task_changes]
    # In the order of the dataset's steps: each stretch ends where the next begins.
    begins.sort()
    firsts = [int(dataset.episode_starts[episode]) + step for episode, step, _ in begins]
    steps = Counter[int]()
    for (_, _, task), held in zip(begins, np.diff([*firsts, dataset.num_steps]), strict=True):
        steps[task] += int(held)
    # A set: an episode that returns to an instruction counts once.
    episodes = Counter(task for _, task in {(episode, task) for episode, _, task in begins})
    rows = enumerate(zip(manifest.tasks, manifest.removed_steps, strict=True))
    return tuple(
        TaskSummary(i, text, episodes[i], steps[i], removed) for i, (text, removed) in rows
    )


def _dims(feature: Feature, statistics: FeatureStatistics) -> tuple[DimSummary, ...]:
    numbers = (np.ravel(getattr(statistics, name)).tolist() for name in MOMENTS)
    return tuple(DimSummary(*row) for row in zip(dim_names(feature), *numbers, strict=True))
