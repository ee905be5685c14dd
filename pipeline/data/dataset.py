"""Opens a dataset directory for random reads of any record of any column, with checks."""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from pipeline.arguments import check_path, named_arguments
from pipeline.data import statistics as stats
from pipeline.data.column_reader import ColumnReader
from pipeline.data.manifest import EDIT, Manifest, Shard, TaskChange, load_manifest
from pipeline.data.record import RecordLayout
from pipeline.data.schema import ACTION, EPISODES, Column, Feature, Schema, nest
from pipeline.errors import DataError, SchemaError, UserError, shown
from pipeline.files import is_remote
from pipeline.hub.hub_address import DATASETS, SCHEME, is_dataset_address
from pipeline.sharing.cached_dataset import directory_of, fetch_dataset, pin_address
from pipeline.sharing.pulled_note import not_pulled
from pipeline.terminal import count, ranges

_log = logging.getLogger(__name__)
_SHOWN_FEATURES, _SHOWN_TASKS = 9, 4
"""Lines of a description."""
_CHECKS_AT_ONCE = 32
"""Shards whose sizes are asked for at the same time."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset directory: its manifest, its statistics, and its episodes as numpy arrays.

        dataset = open_dataset("data/libero_mini")
        dataset.step(3, 10)["observation"]["image_primary"]    # uint8 (y x 3)
        dataset.episode(3, keys=["action"])["action"]          # float32 (t a)
        dataset.statistics["action"].mean                      # float32 (a)

    `print(dataset)` lists its features and instructions.
    """

    path: str
    """The directory, as the user named it; the address of one on the hub, with its commit."""
    manifest: Manifest
    """The content of `dataset.json`."""
    statistics: dict[str, stats.FeatureStatistics]
    """Statistics by feature key."""
    keys: tuple[str, ...] | None = None
    """Features that the dataset was opened for; None: all."""

    def __str__(self) -> str:
        """Size, features and instructions of the dataset, in at most 15 lines."""
        return describe(self)

    def __repr__(self) -> str:
        """The directory and its size, in one line."""
        return f"Dataset({self.path!r}, {self.num_episodes} episodes, {self.num_steps} steps)"

    @property
    def directory(self) -> epath.Path:
        """Where the dataset lies on this machine."""
        return directory_of(self.path)

    def feature(self, key: str) -> Feature:
        """Returns a feature's shape, dtype and, as `dims`, the names of its dimensions.

        Args:
          key: Its key, such as `action` or `observation/proprio`.

        Raises:
          SchemaError: There is no such feature.
        """
        return self._find(key)[1]

    def _find(self, key: str) -> tuple[Column, Feature]:
        return find_feature(self.manifest, key, self.path, self.directory)

    def _check_fetched(self, columns: Collection[str]) -> None:
        """Checks that columns of a dataset on the hub are those that it was opened for."""
        if self.keys is None or not is_dataset_address(self.path):
            return
        fetched = {EPISODES, *(self._find(key)[0].name for key in self.keys)}
        if not {*columns} <= fetched:
            raise UserError(
                where=self.path,
                expected=f"features of the columns that were fetched, {', '.join(sorted(fetched))}",
                found=f"some of {', '.join(sorted({*columns} - fetched))}",
                remedy="Open the dataset with them among its keys.",
            )

    def episode(self, episode: int, keys: Collection[str] | None = None) -> dict[str, Any]:
        """Returns an episode as nested dictionaries of numpy arrays, whose first axis is the step.

        `observation/proprio` is found at `["observation"]["proprio"]`. Images are decoded, uint8
        (t y x 3), depth is float32 metres (t y x 1), tokens are float16 or float32 (t n d), and all
        other values are as stored, in the dataset's units. `["instruction"]` is the list of the
        instruction of each step; other texts of the source are strings.

        Args:
          episode: Its number, from 0.
          keys: Features to read, such as `["action", "observation/proprio"]`; None: all, or those
            that the dataset was opened for.

        Raises:
          UserError: There is no such episode.
          SchemaError: There is no such feature.
          RecordError: A record or image is corrupt.
        """
        self._check("episode", episode, self.num_episodes, "episodes")
        return self._read(episode, range(self.manifest.episode_lengths[episode]), keys)

    def step(self, episode: int, step: int, keys: Collection[str] | None = None) -> dict[str, Any]:
        """Returns one step of an episode, like `episode` but without the axis of steps.

        Args:
          episode: Its number, from 0.
          step: The step inside it, from 0.
          keys: Features to read; None: all, or those that the dataset was opened for.

        Raises:
          UserError: There is no such episode or step.
          SchemaError: There is no such feature.
          RecordError: A record or image is corrupt.
        """
        self._check("episode", episode, self.num_episodes, "episodes")
        length = self.manifest.episode_lengths[episode]
        self._check(f"step of episode {episode}", step, length, "steps")
        return _first(self._read(episode, range(step, step + 1), keys))

    def _read(self, episode: int, steps: range, keys: Collection[str] | None) -> dict[str, Any]:
        """Reads steps of an episode; every array has a first axis of steps."""
        if isinstance(keys, str):
            raise UserError(
                where=f"{self.path}, keys",
                expected="a list of feature keys",
                found=repr(keys),
                remedy=f"Put it in a list: keys=[{keys!r}].",
            )
        # Without keys, what the dataset was opened for.
        wanted = self.keys if keys is None else tuple(keys)
        if wanted is None:
            wanted = tuple(feature.key for _, feature in self.manifest.schema.features())
        # All keys are looked up before anything is read.
        found = [self._find(key) for key in wanted]
        self._check_fetched({column.name for column, _ in found})
        record = self.columns[EPISODES].read(episode)
        values: dict[str, Any] = {}
        for column in self.manifest.schema.columns:
            features = [feature for of, feature in found if of.name == column.name]
            if column.name == EPISODES:
                values |= {f.key: _part(record[f.key], f, steps) for f in features}
            elif features:
                values |= self._read_column(column.name, features, episode, steps)
        tasks = [self.manifest.tasks[self.task_index(episode, step)] for step in steps]
        return nest({key: values[key] for key in wanted} | {"instruction": tasks})

    def _read_column(
        self, name: str, features: Sequence[Feature], episode: int, steps: range
    ) -> dict[str, np.ndarray]:
        """Reads steps of a column that has one record per step."""
        values = {f.key: np.empty((len(steps), *f.shape), f.batch_dtype) for f in features}
        first = int(self.episode_starts[episode])
        for row, step in enumerate(steps):
            # Rows of the arrays: images are decoded straight into them.
            out = {key: array[row] for key, array in values.items()}
            self.columns[name].read_into(first + step, out)
        return values

    def _check(self, what: str, number: int, count: int, of: str) -> None:
        if not isinstance(number, int | np.integer) or not 0 <= number < count:
            raise UserError(
                where=f"{self.path}, {what}",
                expected=f"0 to {count - 1}",
                found=shown(number),
                remedy=f"There are {count} {of}, counted from 0.",
            )

    @functools.cached_property
    def columns(self) -> dict[str, ColumnReader]:
        """Readers by column name; a reader opens its files at the first read."""
        return {
            column.name: ColumnReader(
                self.path,
                self.directory,
                RecordLayout(column),
                self.manifest.shards[column.name],
                self.manifest.episode_lengths if column.per == "episode" else None,
            )
            for column in self.manifest.schema.columns
        }

    @functools.cached_property
    def episode_starts(self) -> np.ndarray:
        """First step of each episode, then the number of steps; int64 (episodes + 1)."""
        starts = np.zeros(self.num_episodes + 1, np.int64)
        # int64, because a large dataset has more steps than int32 holds.
        np.cumsum(np.fromiter(self.manifest.episode_lengths, np.int64), out=starts[1:])
        return starts

    @functools.cached_property
    def episode_tasks(self) -> np.ndarray:
        """Index into `manifest.tasks` of each episode's first step; int64 (episodes)."""
        return np.fromiter(self.manifest.episode_tasks, np.int64)

    @property
    def num_steps(self) -> int:
        """Number of steps of all episodes, excluded ones included."""
        return int(self.episode_starts[-1])

    @property
    def num_episodes(self) -> int:
        """Number of episodes, excluded ones included."""
        return len(self.manifest.episode_lengths)

    @functools.cached_property
    def kept_episodes(self) -> np.ndarray:
        """Episodes that `octograin edit` did not exclude, ascending; int64 (n), n at least 1."""
        numbers = np.arange(self.num_episodes)
        return np.delete(numbers, list(self.manifest.excluded_episodes))

    @property
    def num_kept_steps(self) -> int:
        """Number of steps of those episodes; the statistics are over them."""
        return int(np.diff(self.episode_starts)[self.kept_episodes].sum())

    def task_index(self, episode: int, step: int) -> int:
        """Returns the index into `manifest.tasks` for a step inside an episode."""
        # The task of the first step, unless a change comes before the step.
        index = self.manifest.episode_tasks[episode]
        for change in self.task_changes.get(episode, ()):
            if change.step <= step:
                index = change.task
        return index

    @functools.cached_property
    def task_changes(self) -> dict[int, tuple[TaskChange, ...]]:
        """Changes of instruction within an episode, by episode; others have no entry."""
        changes: dict[int, tuple[TaskChange, ...]] = {}
        for change in self.manifest.task_changes:
            changes[change.episode] = (*changes.get(change.episode, ()), change)
        return changes

    def locate(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps steps (b) of the dataset to (episode, step inside it), int64 (b) each."""
        # "right": a step that starts an episode belongs to that episode.
        episode = np.searchsorted(self.episode_starts, steps, side="right") - 1
        return episode, steps - self.episode_starts[episode]


def on_disk(path: str) -> epath.Path:
    """Returns the path of a directory, after checking that its single records can be read.

    Raises:
      DataError: The directory is on the hub, or in an object store, which ArrayRecord does not
        read.
    """
    if is_dataset_address(path):
        raise DataError(
            where=path,
            expected="a directory on a disk",
            found="a dataset on the hub, which is changed on a disk and pushed again",
            remedy=f"Pull it: octograin pull {path} DIR",
        )
    if path.startswith(SCHEME):
        raise DataError(
            where=path,
            expected=f"a directory, or a dataset on the hub, {DATASETS}owner/name",
            found="the address of a policy",
            remedy=f"Write {path.replace(SCHEME, DATASETS, 1)} if it is a dataset.",
        )
    if is_remote(path):
        raise DataError(
            where=path,
            expected="a directory on a disk, where single records are read in microseconds",
            found="an object store",
            remedy="Copy the directory to a disk, or mount the bucket.",
        )
    return epath.Path(path)


def locate(path: str, names: Collection[str] | None = None) -> tuple[str, epath.Path]:
    """Returns a dataset's name and directory; of one on the hub after fetching what it lacks.

    Args:
      path: A directory, or `hf://datasets/owner/name[@revision]`, whose name gets the commit.
      names: Columns or features that will be read, which are fetched; None: all.

    Raises:
      DataError: The directory is in an object store, or a column cannot be fetched.
      UserError: The hub has no such column or feature.
    """
    if not is_dataset_address(path):
        return path, on_disk(path)
    address = pin_address(path)
    return address, epath.Path(fetch_dataset(address, names))


@named_arguments()
def open_dataset(path: str | os.PathLike[str], keys: Collection[str] | None = None) -> Dataset:
    """Opens a dataset directory.

    Args:
      path: The directory that holds `dataset.json`, or `hf://datasets/owner/name[@revision]`.
      keys: Features that will be read; the shards of other columns are not checked and may be
        missing. Of a dataset on the hub, only their columns are fetched. None: all features.

    Raises:
      DataError: There is no dataset, or a shard's size differs from `dataset.json`.
      SchemaError: The dataset declares types that the dtype law forbids, or lacks a key.
      UserError: The path is no path, or there is no such argument.
    """
    check_path(path, "open_dataset, path")
    path, directory = locate(os.fspath(path), keys)
    manifest = load_manifest(directory)
    if keys is None:
        columns = set(manifest.shards)
    else:
        found = (find_feature(manifest, key, path, directory)[0] for key in keys)
        columns = {EPISODES, *(column.name for column in found)}
    check_sizes(directory, {column: manifest.shards[column] for column in sorted(columns)})
    statistics = stats.StatisticsByKey(load_statistics(directory, manifest))
    return Dataset(path, manifest, statistics, None if keys is None else tuple(keys))


def check_sizes(directory: epath.Path, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Checks the size of every shard of some columns, many at a time.

    The size alone shows a truncated file; checksums of 300 GB would take five minutes.

    Args:
      directory: The dataset's directory.
      shards: The shards of each column.

    Raises:
      DataError: A shard is missing or has another size; the first one.
    """
    checked = [(shard, column) for column, of_column in shards.items() for shard in of_column]

    def check(one: tuple[Shard, str]) -> None:
        _check_size(directory / one[0].file, *one)

    # At once: a thousand shards in a store that takes 20 ms for each would take 20 s.
    with ThreadPoolExecutor(_CHECKS_AT_ONCE, thread_name_prefix="shard-sizes") as threads:
        # In order, so that the first shard that differs is the one reported.
        for _ in threads.map(check, checked):
            pass


def find_feature(
    manifest: Manifest, key: str, path: str, directory: epath.Path
) -> tuple[Column, Feature]:
    """Returns a feature of a dataset, and its column.

    Args:
      manifest: The dataset's manifest.
      key: The feature's key.
      path: The dataset, as the user named it.
      directory: Where it lies.

    Raises:
      SchemaError: There is no such feature.
      DataError: There is one on the hub, whose column was not pulled.
    """
    try:
        return manifest.schema.find(key, path)
    except SchemaError as error:
        raise (not_pulled(directory, key, path) or error) from error


def describe(dataset: Dataset) -> str:
    """Returns what a dataset holds, in at most 15 lines.

    Args:
      dataset: The opened directory.
    """
    manifest = dataset.manifest
    rate = f"{manifest.conventions.control_frequency_hz:g} Hz"
    episodes, steps = count(dataset.num_episodes, "episode"), count(dataset.num_steps, "step")
    sizes = f"{episodes}, {steps} at {rate}"
    sizes += excluded_note(manifest)
    features = [feature for _, feature in manifest.schema.features() if feature.kind != "text"]
    # `sort` is stable: the action and observations first, each group in the order of the schema.
    features.sort(key=lambda feature: not feature.key.startswith((ACTION, "observation/")))
    width = max(len(feature.key) for feature in features)
    lines = [f"  {f.key:{width}}  {f.batch_dtype}[{','.join(map(str, f.shape))}]" for f in features]
    # Those alone that may be shown: there may be a hundred thousand.
    tasks = [f"  {text!r}" for text in manifest.tasks[:_SHOWN_TASKS]]
    return "\n".join(
        [
            f"{manifest.name}: {sizes} ({dataset.path})",
            *_shortened(lines, _SHOWN_FEATURES, len(lines)),
            f"{count(len(manifest.tasks), 'instruction')}:",
            *_shortened(tasks, _SHOWN_TASKS, len(manifest.tasks)),
        ]
    )


def excluded_note(manifest: Manifest) -> str:
    """Returns which episodes are excluded, such as `; excluded: 3,7-9`; empty if none is."""
    excluded = manifest.excluded_episodes
    return f"; excluded: {ranges(excluded)}" if excluded else ""


def _shortened(lines: list[str], most: int, count: int) -> list[str]:
    """The first of `count` lines, and how many more there are where not all are shown."""
    if count <= most:
        return lines
    return [*lines[: most - 1], f"  and {count - most + 1:,} more"]


def _part(value: np.ndarray | bytes, feature: Feature, steps: range) -> np.ndarray | str:
    """Steps of a trajectory as a new array, or a text of the episode."""
    # Only texts are bytes here: a trajectory has no images.
    if isinstance(value, bytes):
        return value.decode()
    # A copy: a view would keep the whole record in memory.
    return np.array(value[steps.start : steps.stop], feature.batch_dtype)


def _first(values: dict[str, Any]) -> dict[str, Any]:
    """The first step of nested arrays and lists; texts of the episode as they are."""
    first: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            first[key] = _first(value)
        else:
            first[key] = value if isinstance(value, str) else value[0]
    return first


def load_statistics(
    directory: epath.Path, manifest: Manifest
) -> dict[str, stats.FeatureStatistics]:
    """Loads the statistics of a dataset directory, by feature key; without excluded episodes.

    Raises:
      DataError: The file is missing, does not match the checksum in the manifest, or has other
        features or lengths than the manifest declares.
    """
    path = directory / manifest.statistics_name
    warn_without_checksums(str(directory), manifest.statistics_checksum)
    found = stats.load(path, manifest.statistics_checksum)
    sizes = statistics_sizes(manifest.schema)
    problems = [f"{key}: no such feature" for key in found.keys() - sizes.keys()]
    problems += [f"{key}: none" for key in sizes.keys() - found.keys()]
    problems += [
        f"{key}: lists of {len(found[key].mean)}, not {size}"
        for key, size in sizes.items()
        if key in found and len(found[key].mean) != size
    ]
    if problems:
        raise DataError(
            where=str(path),
            expected=f"statistics of each float32 feature of the column {EPISODES}, and no others",
            found="; ".join(sorted(problems)),
            remedy="It is of another dataset: copy this dataset's own, or convert it again.",
        )
    return found


def statistics_sizes(schema: Schema) -> dict[str, int]:
    """Sizes of the features with statistics (float32 in the trajectories), by key."""
    return {
        feature.key: math.prod(feature.shape)
        for column, feature in schema.features()
        if column.name == EPISODES and feature.dtype == "float32"
    }


@functools.cache
def warn_without_checksums(path: str, checksum: str) -> None:
    """Warns once per directory without checksums: its JSON files may be corrupt unnoticed."""
    if not checksum:
        _log.warning(
            "%s: dataset.json and statistics.json have no checksums, as it was written before "
            "there were any; add them: %s %s",
            path,
            EDIT,
            path,
        )


def _check_size(path: epath.Path, shard: Shard, column: str) -> None:
    remedy = "It is incomplete, or another file: copy or convert the dataset again."
    try:
        # One request of the store; `epath` makes two, and looks up the name of the file's owner.
        found = f"{os.stat(path).st_size} bytes"
    except FileNotFoundError:
        found = "no such file"
    except PermissionError as error:
        found = str(error.strerror)
        remedy = "Allow reading it and the folders above it."
    except OSError as error:
        found = error.strerror or str(error)
    if found != f"{shard.num_bytes} bytes":
        raise DataError(
            where=f"{path}, column {column}",
            expected=f"{shard.num_bytes} bytes",
            found=found,
            remedy=remedy,
        )
