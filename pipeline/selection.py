"""Which steps of a dataset a run samples: splits, filters, and records that are left out."""

import dataclasses
import fnmatch
import functools
from collections.abc import Iterator

import numpy as np
import xxhash

from pipeline.config import DataConfig, DatasetConfig
from pipeline.dataset import Dataset
from pipeline.errors import DataError, UserError
from pipeline.schema import ACTION, EPISODES

_HASH_RANGE = 2**64


@dataclasses.dataclass(frozen=True)
class Selection:
    """The selected steps of one dataset, numbered from 0."""

    starts: np.ndarray
    """int64 (runs): first step of each stretch of selected steps, ascending."""
    counts: np.ndarray
    """int64 (runs + 1): selected steps before each stretch, then their number."""
    unreadable: np.ndarray
    """int64, ascending: steps that have an excluded record."""
    window_size: int
    """Steps that a sample reads, its own included."""
    episode_starts: np.ndarray
    """int64 (episodes + 1): first step of each episode of the dataset, then the number of all."""

    @property
    def num_steps(self) -> int:
        """Selected steps."""
        return int(self.counts[-1])

    def steps(self, numbers: np.ndarray) -> np.ndarray:
        """The steps of the dataset that samples read for selected steps; int64 (b).

        A step whose window has an excluded record gives way to the next selected one that has
        none, after the last to the first.

        Args:
          numbers: int (b), each at least 0 and less than `num_steps`.
        """
        steps = self._at(numbers)
        bad = np.isin(steps, self._without)
        while bad.any():
            numbers = np.where(bad, (numbers + 1) % self.num_steps, numbers)
            steps = self._at(numbers)
            bad = np.isin(steps, self._without)
        return steps

    def goals(self, first: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """The steps whose images are read for goals; int64 (b).

        One with an excluded record gives way to the step before it.

        Args:
          first: int (b), steps that samples stand at; `steps` gave them.
          goal: int (b), steps of the same episodes, none before `first`.
        """
        bad = np.isin(goal, self.unreadable) & (goal > first)
        while bad.any():
            goal = np.where(bad, goal - 1, goal)
            bad = np.isin(goal, self.unreadable) & (goal > first)
        return goal

    @functools.cached_property
    def _without(self) -> np.ndarray:
        """int64: selected steps that no sample may stand at."""
        windows = self.unreadable[:, None] + np.arange(self.window_size)
        episodes = (
            np.searchsorted(self.episode_starts, steps, side="right")
            for steps in (windows, self.unreadable[:, None])
        )
        same_episode = np.equal(*episodes)
        return np.unique(windows[same_episode])

    def check(self, where: str) -> None:
        """Raises `DataError` where nothing would be left to read."""
        numbers = np.arange(self.num_steps) if len(self.unreadable) else np.zeros(1, np.int64)
        if np.isin(self._at(numbers), self._without).all():
            raise DataError(
                where=where,
                expected="a selected step whose window has no excluded record",
                found=f"none among {self.num_steps}",
                remedy="Leave the dataset out, or convert it again from an undamaged source.",
            )

    def digest(self) -> str:
        """16 hex digits over the selected steps; excluded records do not change it."""
        return xxhash.xxh3_64_hexdigest(self.starts.tobytes() + self.counts.tobytes())

    def _at(self, numbers: np.ndarray) -> np.ndarray:
        run = np.searchsorted(self.counts, numbers, side="right") - 1
        return self.starts[run] + numbers - self.counts[run]


def select(dataset: Dataset, part: DatasetConfig, config: DataConfig) -> Selection:
    """The steps of a dataset that a run samples.

    Raises:
      UserError: Where a filter names what the dataset does not have, or nothing is left.
    """
    episodes = _in_range(dataset, part) & _in_split(dataset, config)
    wanted = _wanted_tasks(dataset, part)
    runs = np.array(list(_runs(dataset, episodes, wanted)), np.int64).reshape(-1, 2)
    if not len(runs):
        raise UserError(
            where=dataset.path,
            expected="steps to sample",
            found=f"none with {_describe(part, config)}",
            remedy="Loosen one of these filters.",
        )
    selection = Selection(
        starts=runs[:, 0],
        counts=np.cumsum([0, *(runs[:, 1] - runs[:, 0])]),
        unreadable=np.unique([s for name in part.excluded for s in _steps_of(dataset, name)]),
        window_size=config.window_size,
        episode_starts=dataset.episode_starts,
    )
    selection.check(dataset.path)
    return selection


def _in_range(dataset: Dataset, part: DatasetConfig) -> np.ndarray:
    """Bool (episodes)."""
    first, end = part.episodes or (0, dataset.num_episodes)
    if end > dataset.num_episodes:
        raise UserError(
            where=f"{dataset.path}, episodes {first} {end}",
            expected=f"at most {dataset.num_episodes}, the number of its episodes",
            found=str(end),
            remedy="Name the first episode and the one after the last.",
        )
    numbers = np.arange(dataset.num_episodes)
    return (first <= numbers) & (numbers < end)


def _in_split(dataset: Dataset, config: DataConfig) -> np.ndarray:
    """Bool (episodes)."""
    if config.split == "all" or config.validation_fraction == 0:
        return np.ones(dataset.num_episodes, bool)
    places = episode_places(dataset)
    held_out = places < config.validation_fraction
    chosen = held_out if config.split == "validation" else ~held_out
    if not chosen.any():
        bound = places.min() if config.split == "validation" else places.max()
        raise UserError(
            where=f"{dataset.path}, split {config.split}",
            expected="at least one episode",
            found=f"none of {len(places)} with validation_fraction {config.validation_fraction}",
            remedy=f"Take a validation_fraction {'above' if chosen is held_out else 'of at most'} "
            f"{bound:.4f}.",
        )
    return chosen


def episode_places(dataset: Dataset) -> np.ndarray:
    """float64 (episodes): a number in [0, 1) that depends on the actions of an episode alone.

    Episodes below a fraction are held out; so adding, removing or moving others changes no side,
    and two copies of one episode are on the same side.
    """
    reader = dataset.columns[EPISODES]
    return np.array(
        [
            xxhash.xxh3_64_intdigest(np.asarray(reader.read(i)[ACTION]).tobytes()) / _HASH_RANGE
            for i in range(dataset.num_episodes)
        ]
    )


def _wanted_tasks(dataset: Dataset, part: DatasetConfig) -> np.ndarray:
    """Bool (tasks)."""
    tasks = dataset.manifest.tasks
    if not part.tasks:
        return np.ones(len(tasks), bool)
    for glob in part.tasks:
        if not fnmatch.filter(tasks, glob):
            raise UserError(
                where=f"{dataset.path}, tasks",
                expected="a glob over its instructions: " + "; ".join(tasks),
                found=repr(glob),
                remedy="Mend the glob, such as '*bowl*'.",
            )
    return np.array([any(fnmatch.fnmatchcase(task, g) for g in part.tasks) for task in tasks])


def _runs(dataset: Dataset, episodes: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields first and end of each stretch of wanted steps; one that goes on is not joined."""
    for episode in np.flatnonzero(episodes).tolist():
        start, end = dataset.episode_starts[episode : episode + 2].tolist()
        task = dataset.manifest.episode_tasks[episode]
        for change in dataset.task_changes.get(episode, ()):
            border = int(dataset.episode_starts[episode]) + change.step
            if wanted[task]:
                yield start, border
            start, task = border, change.task
        if wanted[task]:
            yield start, end


def _steps_of(dataset: Dataset, name: str) -> range:
    """The steps that a record holds values of."""
    for column in dataset.manifest.schema.columns:
        index = dataset.columns[column.name].find(name)
        if index is None:
            continue
        if column.per == "step":
            return range(index, index + 1)
        return range(*dataset.episode_starts[index : index + 2].tolist())
    raise UserError(
        where=f"{dataset.path}, excluded",
        expected="FILE:RECORD of one of its shards, such as steps/00000-of-00001.arrayrecord:17",
        found=name,
        remedy="Copy it from the error that names the damaged record.",
    )


def _describe(part: DatasetConfig, config: DataConfig) -> str:
    filters = {"tasks": part.tasks, "episodes": part.episodes, "split": config.split}
    return ", ".join(f"{name} {value}" for name, value in filters.items() if value)
