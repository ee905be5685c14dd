"""Summarizes one episode: its records, its instructions and the ranges of its values."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest, Shard
from pipeline.data.schema import EPISODES, SOURCE_ID, Feature
from pipeline.errors import UserError
from pipeline.inspection.depth_ranges import DepthRange, depth_ranges
from pipeline.inspection.feature_names import dim_names

RANGES = ("first", "last", "min", "max")
"""Fields of `DimRange` that hold values."""
_KEPT_DTYPES = ("bool", "int32", "uint8")
"""Dtypes whose values are shown unchanged; others are converted to float."""


@dataclasses.dataclass(frozen=True)
class EpisodeTask:
    """An instruction inside an episode."""

    step: int
    """First step with the instruction."""
    index: int
    """Its `task_index`."""
    text: str


@dataclasses.dataclass(frozen=True)
class RecordRange:
    """Consecutive records of an episode in one shard."""

    column: str
    file: str
    """Path relative to the dataset directory."""
    first: int
    """Index of the first record in the file."""
    last: int
    """Index of the last record in the file, inclusive."""


@dataclasses.dataclass(frozen=True)
class DimRange:
    """Values of one dimension over an episode; integer or bool if the feature is."""

    dim: str
    """Name of the dimension, or its index such as `[3]`; empty for a scalar."""
    first: float | int | bool
    last: float | int | bool
    min: float | int | bool
    max: float | int | bool


@dataclasses.dataclass(frozen=True)
class EpisodeSummary:
    """Everything about one episode that fits on a page."""

    path: str
    """The dataset directory."""
    name: str
    """Name of the dataset."""
    episode: int
    """Index of the episode, from 0."""
    episodes: int
    """Number of episodes in the dataset."""
    source_id: str | None
    """Name of the episode in the source; None if the source has none."""
    steps: int
    duration_s: float
    """Number of steps divided by the control frequency."""
    first_step: int
    """First step of the episode, counted over the whole dataset."""
    tasks: tuple[EpisodeTask, ...]
    records: tuple[RecordRange, ...]
    texts: Mapping[str, str]
    """Other texts of the source, by feature key."""
    values: Mapping[str, tuple[DimRange, ...]]
    """Ranges of the trajectories in the episode column, by feature key."""
    depth: Mapping[str, DepthRange]
    """Ranges of a few of its depth images, by feature key."""


def summarize_episode(dataset: Dataset, episode: int) -> EpisodeSummary:
    """Summarizes one episode; reads its record in the episode column, and a few depth images.

    Args:
      dataset: The opened directory.
      episode: Index from 0 to `num_episodes` - 1.

    Raises:
      DataError: The record is corrupt.
      UserError: There is no such episode.
    """
    _check_episode(dataset, episode)
    manifest = dataset.manifest
    features = {feature.key: feature for _, feature in manifest.schema.features()}
    values = dataset.columns[EPISODES].read(episode)
    texts = {key: value.decode() for key, value in values.items() if isinstance(value, bytes)}
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    steps = manifest.episode_lengths[episode]
    first_step = int(dataset.episode_starts[episode])
    return EpisodeSummary(
        path=dataset.path,
        name=manifest.name,
        episode=episode,
        episodes=dataset.num_episodes,
        # Taken out of the texts, since it has a line of its own.
        source_id=texts.pop(SOURCE_ID, None),
        steps=steps,
        duration_s=steps / manifest.conventions.control_frequency_hz,
        first_step=first_step,
        tasks=episode_tasks(manifest, episode),
        records=_records(dataset, episode),
        texts=texts,
        values={key: _ranges(features[key], value) for key, value in arrays.items()},
        depth=depth_ranges(dataset, range(first_step, first_step + steps)),
    )


def episode_tasks(manifest: Manifest, episode: int) -> tuple[EpisodeTask, ...]:
    """Returns the instructions of an episode in the order of its steps, at least one."""
    begins = [(0, manifest.episode_tasks[episode])]
    begins += [(c.step, c.task) for c in manifest.task_changes if c.episode == episode]
    return tuple(EpisodeTask(step, index, manifest.tasks[index]) for step, index in begins)


def locate_records(shards: Sequence[Shard], first: int, count: int) -> list[tuple[str, int, int]]:
    """Returns (file, first record, last record) of each shard that holds some of the records.

        shards of 4, 5 and 5 records, first = 3, count = 7
        [(shard 0, 3, 3), (shard 1, 0, 4), (shard 2, 0, 0)]

    Args:
      shards: Shards of a column, in order.
      first: First record, counted over the whole column.
      count: Number of records, at least 1.
    """
    places, start = [], 0
    for shard in shards:
        # The part of the wanted records that lies in this shard.
        low, high = max(first - start, 0), min(first + count - start, shard.records)
        if low < high:
            places.append((shard.file, low, high - 1))
        start += shard.records
    return places


def _check_episode(dataset: Dataset, episode: int) -> None:
    if not 0 <= episode < dataset.num_episodes:
        raise UserError(
            where="--episode",
            expected=f"a whole number from 0 to {dataset.num_episodes - 1}",
            found=str(episode),
            remedy=f"{dataset.path} has {dataset.num_episodes} episodes, counted from 0.",
        )


def _records(dataset: Dataset, episode: int) -> tuple[RecordRange, ...]:
    manifest = dataset.manifest
    places = {
        "episode": (episode, 1),
        "step": (int(dataset.episode_starts[episode]), manifest.episode_lengths[episode]),
    }
    return tuple(
        RecordRange(column.name, *place)
        for column in manifest.schema.columns
        for place in locate_records(manifest.shards[column.name], *places[column.per])
    )


def _ranges(feature: Feature, values: np.ndarray) -> tuple[DimRange, ...]:
    flat = values.reshape(len(values), -1)
    if flat.dtype.name not in _KEPT_DTYPES:
        # float32 as float64, or JSON would show the rounding of the last digits.
        flat = flat.astype(np.float64)
    columns = (part.tolist() for part in (flat[0], flat[-1], flat.min(0), flat.max(0)))
    return tuple(DimRange(*row) for row in zip(dim_names(feature), *columns, strict=True))
