"""Summarizes a dataset, or one of its episodes, as the values that `--json` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Shard
from pipeline.data.schema import ACTION, EPISODES, SOURCE_ID, Column, Feature
from pipeline.errors import UserError
from pipeline.inspection.feature_names import dim_names
from pipeline.sharing.cached_dataset import directory_of
from pipeline.sharing.pulled_note import read_note

_MOMENTS = ("mean", "std", "min", "p01", "p99", "max")
_KEPT_DTYPES = ("bool", "int32", "uint8")
"""Dtypes whose values are shown unchanged; others are converted to float."""
_DEPTH_STEPS = 8
"""Number of depth images that are read of each camera, evenly spread."""


def summarize(dataset: Dataset) -> dict[str, Any]:
    """Summarizes an opened dataset; the only records that it reads are a few of depth images.

    All but `statistics` counts the excluded episodes as well.

    Returns:
      Everything about the dataset that fits on a page: plain values, but for `conventions` and the
      `origin` of a computed feature, which are the manifest's. `statistics` has, by feature key, a
      mapping for each dimension, and `depth` the range of the readings. `hub` has the address that
      the dataset was pulled from, and the features of each column that was `left` there; it is None
      for one that was not pulled.

    Raises:
      DataError: A depth image is corrupt, or the note of a pull.
    """
    manifest = dataset.manifest
    lengths = manifest.episode_lengths
    return {
        "path": dataset.path,
        "name": manifest.name,
        "format_version": manifest.format_version,
        "schema_hash": manifest.schema_hash,
        "provenance": manifest.provenance,
        "conventions": manifest.conventions,
        "lengths": {
            "episodes": len(lengths),
            "min": min(lengths),
            "median": float(np.median(lengths)),
            "max": max(lengths),
            "total": dataset.num_steps,
        },
        "excluded_episodes": manifest.excluded_episodes,
        "kept_steps": dataset.num_kept_steps,
        "failed_episodes": manifest.failed_episodes,
        "columns": [_column(dataset, column) for column in manifest.schema.columns],
        "features": [_feature(dataset, *pair) for pair in manifest.schema.features()],
        "tasks": _tasks(dataset),
        "statistics": {
            key: _dim_rows(dataset, key, {name: getattr(moments, name) for name in _MOMENTS})
            for key, moments in dataset.statistics.items()
        },
        "depth": _depth_ranges(dataset, range(dataset.num_steps)),
        "hub": _pulled(dataset),
    }


def summarize_episode(dataset: Dataset, episode: int) -> dict[str, Any]:
    """Summarizes an episode, counted from 0; reads its trajectories and a few depth images.

    Returns:
      Everything about the episode that fits on a page. `first_step` counts over the whole dataset,
      `records` over a file, both ends inclusive. `texts` are those of the source, and `values` has
      a mapping for each dimension, both by feature key.

    Raises:
      DataError: A record is corrupt.
      UserError: There is no such episode.
    """
    if not 0 <= episode < dataset.num_episodes:
        raise UserError(
            where="--episode",
            expected=f"a whole number from 0 to {dataset.num_episodes - 1}",
            found=str(episode),
            remedy=f"{dataset.path} has {dataset.num_episodes} episodes, counted from 0.",
        )
    manifest = dataset.manifest
    steps, start = manifest.episode_lengths[episode], int(dataset.episode_starts[episode])
    values = dataset.columns[EPISODES].read(episode)
    texts = {key: value.decode() for key, value in values.items() if isinstance(value, bytes)}
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    return {
        "path": dataset.path,
        "name": manifest.name,
        "episode": episode,
        "episodes": dataset.num_episodes,
        "is_excluded": episode in manifest.excluded_episodes,
        # Taken out of the texts, since it has a line of its own.
        "source_id": texts.pop(SOURCE_ID, None),
        "steps": steps,
        "duration_s": steps / manifest.conventions.control_frequency_hz,
        "first_step": start,
        "tasks": episode_tasks(dataset, episode),
        "records": [
            {"column": column.name, "file": file, "first": first, "last": last}
            for column in manifest.schema.columns
            for file, first, last in locate_records(
                manifest.shards[column.name],
                *((episode, 1) if column.per == "episode" else (start, steps)),
            )
        ],
        "texts": texts,
        "values": {key: _dim_rows(dataset, key, _ranges(array)) for key, array in arrays.items()},
        "depth": _depth_ranges(dataset, range(start, start + steps)),
    }


def episode_tasks(dataset: Dataset, episode: int) -> list[dict[str, Any]]:
    """Returns an episode's instructions with the step that each begins at; at least one."""
    begins = [(0, dataset.manifest.episode_tasks[episode])]
    begins += [(change.step, change.task) for change in dataset.task_changes.get(episode, ())]
    texts = dataset.manifest.tasks
    return [{"step": step, "index": task, "text": texts[task]} for step, task in begins]


def plotted_features(dataset: Dataset) -> list[Feature]:
    """Returns the action and the observations that have statistics, in the schema's order."""
    return [
        feature
        for column, feature in dataset.manifest.schema.features()
        if column.name == EPISODES
        and feature.key in dataset.statistics
        and (feature.key == ACTION or feature.key.startswith("observation/"))
    ]


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


def spread(total: int, count: int) -> list[int]:
    """Returns up to `count` indices below `total`, evenly spread, including first and last."""
    # `unique`, because rounding may give one index twice.
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int)).tolist()


def read_images(dataset: Dataset, key: str, steps: Sequence[int]) -> np.ndarray:
    """Reads images as stored, at steps counted over the whole dataset.

    Returns:
      uint8 (n h w 3), or depth in m, float32 (n h w 1).

    Raises:
      DataError: A record or image is corrupt.
    """
    column, feature = dataset.manifest.schema.find(key, dataset.path)
    images = np.empty((len(steps), *feature.shape), feature.batch_dtype)
    for step, image in zip(steps, images, strict=True):
        dataset.columns[column.name].read_into(step, {key: image})
    return images


def _pulled(dataset: Dataset) -> dict[str, Any] | None:
    """Returns where a dataset was pulled from, and the columns that were left there."""
    note = read_note(directory_of(dataset.path))
    if note is None:
        return None
    there, here = note.columns.items(), dataset.manifest.shards
    return {
        "address": note.address,
        "left": {name: list(keys) for name, keys in there if name not in here},
    }


def _column(dataset: Dataset, column: Column) -> dict[str, Any]:
    shards = dataset.manifest.shards[column.name]
    num_bytes = sum(shard.num_bytes for shard in shards)
    return {
        "name": column.name,
        "per": column.per,
        "records": sum(shard.records for shard in shards),
        "shards": len(shards),
        "num_bytes": num_bytes,
        "bytes_per_step": num_bytes / dataset.num_steps,
        "licence": dataset.manifest.licences.get(column.name, ""),
    }


def _feature(dataset: Dataset, column: Column, feature: Feature) -> dict[str, Any]:
    return {
        "key": feature.key,
        "column": column.name,
        "kind": feature.kind,
        "dtype": feature.dtype,
        "batch_dtype": feature.batch_dtype,
        "shape": feature.shape,
        "dims": feature.dims,
        # The size of images and texts varies.
        "bytes_per_step": feature.nbytes if feature.kind in ("tensor", "quantized") else None,
        "origin": dataset.manifest.encoders.get(feature.key),
    }


def _tasks(dataset: Dataset) -> list[dict[str, Any]]:
    """Counts episodes and steps by task; a step counts for the instruction it has."""
    manifest, starts = dataset.manifest, dataset.episode_starts
    num_tasks, num_episodes = len(manifest.tasks), len(manifest.episode_tasks)
    task, episode = np.array(manifest.episode_tasks), np.arange(num_episodes)
    begins = starts[:-1]
    if manifest.task_changes:
        changes = [(c.episode, c.step, c.task) for c in manifest.task_changes]
        changed, step, changed_to = np.array(changes).T
        begins = np.concatenate([begins, starts[changed] + step])
        # In the order of the dataset's steps: each stretch ends where the next begins.
        order = np.argsort(begins)
        begins = begins[order]
        task = np.concatenate([task, changed_to])[order]
        episode = np.concatenate([episode, changed])[order]
    steps = np.zeros(num_tasks, np.int64)
    np.add.at(steps, task, np.diff(begins, append=dataset.num_steps))
    # An episode that returns to an instruction counts once. Sorted, since `np.unique` hashes, which
    # takes 4 s for a million pairs.
    pairs = np.sort(task * num_episodes + episode)
    distinct = pairs[np.diff(pairs, prepend=-1) > 0]
    episodes = np.bincount(distinct // num_episodes, minlength=num_tasks)
    columns = (manifest.tasks, episodes.tolist(), steps.tolist(), manifest.removed_steps)
    names = ("index", "text", "episodes", "steps", "removed_steps")
    rows = enumerate(zip(*columns, strict=True))
    return [dict(zip(names, (i, *row), strict=True)) for i, row in rows]


def _dim_rows(
    dataset: Dataset, key: str, numbers: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Returns a mapping for each dimension: its name under `dim`, then one value of each array."""
    columns = (np.ravel(values).tolist() for values in numbers.values())
    rows = zip(dim_names(dataset.feature(key)), *columns, strict=True)
    return [dict(zip(("dim", *numbers), row, strict=True)) for row in rows]


def _ranges(values: np.ndarray) -> dict[str, np.ndarray]:
    flat = values.reshape(len(values), -1)
    if flat.dtype.name not in _KEPT_DTYPES:
        # float32 as float64, or JSON would show the rounding of the last digits.
        flat = flat.astype(np.float64)
    return {"first": flat[0], "last": flat[-1], "min": flat.min(0), "max": flat.max(0)}


def _depth_ranges(dataset: Dataset, steps: range) -> dict[str, dict[str, Any]]:
    """Returns the range of every depth feature, by key, over a few of the dataset's steps."""
    read = [steps[place] for place in spread(len(steps), _DEPTH_STEPS)]
    ranges = {}
    for _, feature in dataset.manifest.schema.features():
        if feature.kind == "depth":
            images = read_images(dataset, feature.key, read)
            readings = images[images > 0]
            # Rounded to the millimetre, as float32 metres have more digits than were stored.
            ends = (readings.min(), readings.max()) if readings.size else (0.0, 0.0)
            ranges[feature.key] = {
                "steps": len(read),
                "min_m": round(float(ends[0]), 3),
                "max_m": round(float(ends[1]), 3),
                "readings": readings.size / images.size,
            }
    return ranges
