"""Selects the steps of a dataset that a run samples: splits, filters and excluded records."""

import dataclasses
import fnmatch
from collections.abc import Collection, Iterator

import numpy as np
import xxhash

from pipeline.data.dataset import Dataset, excluded_note
from pipeline.data.schema import ACTION, EPISODES, Column
from pipeline.errors import DataError, UserError
from pipeline.loading.data_config import DataConfig, DatasetConfig

# XXH3-64 below 2**64 becomes a fraction in [0, 1).
_HASH_RANGE = 2**64
# More attempts than any realistic share of excluded steps needs.
_SCATTERED_ATTEMPTS = 64
_NONE = np.array([], np.int64)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The selected steps of one dataset, numbered from 0."""

    starts: np.ndarray
    """int64 (runs): first step of each stretch of selected steps, ascending."""
    counts: np.ndarray
    """int64 (runs + 1): number of selected steps before each stretch, then their total."""
    unsampled: np.ndarray = dataclasses.field(default_factory=lambda: _NONE)
    """int64, ascending: steps whose samples would read an excluded record."""
    unseen: np.ndarray = dataclasses.field(default_factory=lambda: _NONE)
    """int64, ascending: steps whose images are in an excluded record."""

    @property
    def num_steps(self) -> int:
        """Number of selected steps."""
        return int(self.counts[-1])

    @property
    def all_steps(self) -> np.ndarray:
        """The selected steps of the dataset, ascending; int64 (num_steps)."""
        return self._at(np.arange(self.num_steps))

    def steps(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the steps of the dataset for numbers of selected steps; int64 (b).

        A step that would read an excluded record is replaced by another selected step, chosen by a
        hash of its number, so that no single step replaces many.

        Args:
          numbers: int64 (b), each at least 0 and less than `num_steps`.
        """
        steps = self._at(numbers)
        bad = np.isin(steps, self.unsampled)
        attempt = 0
        # A stand-in may be excluded too, so it is drawn again by the next attempt.
        while bad.any():
            attempt += 1
            # From the number, not the step: the same sample is replaced alike in every epoch.
            steps[bad] = self._at(_stand_ins(numbers[bad], attempt, self.num_steps))
            bad = np.isin(steps, self.unsampled)
        return steps

    def goals(self, first: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Returns the steps whose images are read as goals; int64 (b).

        A step whose images are in an excluded record is replaced by the step before it.

        Args:
          first: int (b), current steps of the samples, from `steps`.
          goal: int (b), steps of the same episodes, none before `first`.
        """
        # Not before the sample's own step, where the loop has to end.
        bad = np.isin(goal, self.unseen) & (goal > first)
        while bad.any():
            goal = np.where(bad, goal - 1, goal)
            bad = np.isin(goal, self.unseen) & (goal > first)
        return goal

    def example(self) -> np.ndarray:
        """Returns the sampled steps of the stretch that lost the fewest steps; int64 (t).

        If several stretches lost equally few, it is the first of them.
        """
        ends = self.starts + np.diff(self.counts)
        # Excluded steps inside each stretch; `unsampled` is ascending.
        lost = np.searchsorted(self.unsampled, ends) - np.searchsorted(self.unsampled, self.starts)
        left = ends - self.starts > lost
        # Stretches without a step left cannot win.
        best = int(np.argmin(np.where(left, lost, np.iinfo(np.int64).max)))
        steps = np.arange(self.starts[best], ends[best])
        return steps[~np.isin(steps, self.unsampled)]

    def check(self, where: str) -> None:
        """Raises a `DataError` if exclusion leaves no step to sample."""
        left = self.num_steps
        for start, end in zip(self.starts, self.starts + np.diff(self.counts), strict=True):
            left -= int(np.diff(np.searchsorted(self.unsampled, [start, end]))[0])
        if not left:
            raise DataError(
                where=where,
                expected="a selected step whose sample reads no excluded record",
                found=f"none among {self.num_steps}",
                remedy="Leave the dataset out, or convert it again from an intact source.",
            )

    def digest(self) -> str:
        """Checksum of the selected steps, 16 hex digits; excluded records do not change it."""
        # Without `unsampled`: a run may exclude a record on resume.
        return xxhash.xxh3_64_hexdigest(self.starts.tobytes() + self.counts.tobytes())

    def _at(self, numbers: np.ndarray) -> np.ndarray:
        # The last stretch that starts at or before each number.
        run = np.searchsorted(self.counts, numbers, side="right") - 1
        return self.starts[run] + numbers - self.counts[run]


def _stand_ins(numbers: np.ndarray, attempt: int, num_steps: int) -> np.ndarray:
    """Replacement numbers, int64 (b); later attempts run through all numbers below `num_steps`.

    Source: the multipliers of SplitMix64 (Steele et al. 2014).
    """
    if attempt > _SCATTERED_ATTEMPTS:
        # Scattering may never hit the few steps that are left; counting reaches all of them.
        return (numbers + attempt) % num_steps
    # uint64 arithmetic wraps, as the hash needs.
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(attempt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed >> np.uint64(11)) % np.uint64(num_steps)).astype(np.int64)


def select(dataset: Dataset, part: DatasetConfig, config: DataConfig) -> Selection:
    """Selects the steps of a dataset that a run samples.

    Raises:
      UserError: A filter names what the dataset does not have, or leaves nothing.
      RecordError: A trajectory is corrupt; a split reads all of them.
    """
    excluded = [_find(dataset, name) for name in part.excluded]
    # Its actions cannot be read for the split.
    lost = {index for column, index in excluded if column.per == "episode"}
    lost |= {*dataset.manifest.excluded_episodes}
    episodes = _in_range(dataset, part) & _in_split(dataset, config, lost)
    wanted = _wanted_tasks(dataset, part)
    # `reshape` for the empty list, which has one axis.
    runs = np.array(list(_runs(dataset, episodes, wanted)), np.int64).reshape(-1, 2)
    if not len(runs):
        raise UserError(
            where=dataset.path,
            expected="steps to sample",
            found=f"none with {_describe(dataset, part, config)}",
            remedy="Relax one of these filters.",
        )
    unsampled, unseen = _NONE, _NONE
    for column, index in excluded:
        unsampled = np.union1d(unsampled, _steps_that_read(dataset, column, index, config))
        if any(map(column.is_camera, column.features)):
            # For a camera column the record's index is the step itself.
            unseen = np.union1d(unseen, [index])
    selection = Selection(
        starts=runs[:, 0],
        counts=np.cumsum([0, *(runs[:, 1] - runs[:, 0])]),
        unsampled=unsampled,
        unseen=unseen,
    )
    selection.check(dataset.path)
    return selection


def _in_range(dataset: Dataset, part: DatasetConfig) -> np.ndarray:
    """Which episodes are in the configured range; bool (episodes)."""
    first, end = part.episodes or (0, dataset.num_episodes)
    # Excluded by `octograin edit`.
    kept = np.isin(np.arange(dataset.num_episodes), dataset.kept_episodes)
    if end > dataset.num_episodes:
        raise UserError(
            where=f"{dataset.path}, episodes {first} {end}",
            expected=f"at most {dataset.num_episodes}, the number of its episodes",
            found=str(end),
            remedy="Name the first episode and the one after the last.",
        )
    numbers = np.arange(dataset.num_episodes)
    return kept & (first <= numbers) & (numbers < end)


def _in_split(dataset: Dataset, config: DataConfig, lost: Collection[int]) -> np.ndarray:
    """Which episodes are in the configured split; bool (episodes)."""
    if config.split == "all" or config.validation_fraction == 0:
        return np.ones(dataset.num_episodes, bool)
    places = episode_places(dataset, lost)
    # By hash: about this share of the episodes, each on its own.
    held_out = places < config.validation_fraction
    chosen = held_out if config.split == "validation" else ~held_out
    if not chosen.any():
        raise UserError(
            where=f"{dataset.path}, split {config.split}",
            expected="at least one episode",
            found=f"none of {len(places)} with validation_fraction {config.validation_fraction}",
            remedy=_other_fraction(places, is_validation=config.split == "validation"),
        )
    return chosen


def _other_fraction(places: np.ndarray, *, is_validation: bool) -> str:
    """Says which validation_fraction leaves an episode in a split that has none."""
    bound = places.min() if is_validation else places.max()
    fraction = 0.0
    # As few digits as give a fraction above 0 and below 1, so that one can type it.
    for scale in (10, 100, 1000, 10**6, 10**9):
        fraction = (np.floor(bound * scale) + is_validation) / scale
        if 0 < fraction < 1:
            break
    count = int((places < fraction).sum())
    return (
        "Episodes are held out by a hash of their actions, so of a few it may be none or all: use "
        f"validation_fraction={fraction:.10g}, which holds out {count} of {len(places)}, or add "
        "episodes."
    )


def episode_places(dataset: Dataset, lost: Collection[int] = ()) -> np.ndarray:
    """Hashes the actions of each episode to a number in [0, 1); float64 (episodes).

    Episodes below `validation_fraction` are held out. An episode therefore stays in its split when
    others are added, removed or moved, and copies of an episode are in the same split.

    Args:
      dataset: The dataset; all its trajectories are read.
      lost: Episodes that are not read; their number is 1.

    Raises:
      RecordError: A trajectory is corrupt.
    """
    reader = dataset.columns[EPISODES]
    # 1 is beyond every fraction, so an episode that cannot be read is in the training split.
    places = np.ones(dataset.num_episodes)
    for i in range(dataset.num_episodes):
        if i not in lost:
            actions = np.asarray(reader.read(i)[ACTION])
            # Actions alone: they tell episodes apart, and are small.
            places[i] = xxhash.xxh3_64_intdigest(actions.tobytes()) / _HASH_RANGE
    return places


def _wanted_tasks(dataset: Dataset, part: DatasetConfig) -> np.ndarray:
    """Which tasks pass the configured filter; bool (tasks)."""
    tasks = dataset.manifest.tasks
    if not part.tasks:
        return np.ones(len(tasks), bool)
    for glob in part.tasks:
        if not fnmatch.filter(tasks, glob):
            raise UserError(
                where=f"{dataset.path}, tasks",
                expected="a glob over its instructions: " + "; ".join(tasks),
                found=repr(glob),
                remedy="Fix the glob, such as '*bowl*'.",
            )
    return np.array([any(fnmatch.fnmatchcase(task, g) for g in part.tasks) for task in tasks])


def _runs(dataset: Dataset, episodes: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields start and end of each stretch of wanted steps; adjacent stretches are not joined."""
    for episode in np.flatnonzero(episodes).tolist():
        start, end = dataset.episode_starts[episode : episode + 2].tolist()
        task = dataset.manifest.episode_tasks[episode]
        # Changes of the instruction inside the episode, in order.
        for change in dataset.task_changes.get(episode, ()):
            border = int(dataset.episode_starts[episode]) + change.step
            if wanted[task]:
                yield start, border
            start, task = border, change.task
        if wanted[task]:
            yield start, end


def _find(dataset: Dataset, name: str) -> tuple[Column, int]:
    """Finds the column of a record given as FILE:RECORD, and the record's index there."""
    for column in dataset.manifest.schema.columns:
        index = dataset.columns[column.name].find(name)
        if index is not None:
            return column, index
    raise UserError(
        where=f"{dataset.path}, excluded",
        expected="FILE:RECORD of one of its shards, such as steps/00000-of-00001.arrayrecord:17",
        found=name,
        remedy="Copy it from the error that names the corrupt record.",
    )


def _steps_that_read(
    dataset: Dataset, column: Column, index: int, config: DataConfig
) -> np.ndarray:
    """Steps whose samples read a record, int64; none if its column is not read."""
    if column.per == "episode":
        # Every step of the episode reads its trajectory.
        return np.arange(*dataset.episode_starts[index : index + 2])
    # Steps after it read it as history, but not those of the next episode.
    end = dataset.episode_starts[np.searchsorted(dataset.episode_starts, index, side="right")]
    return np.arange(index, min(index + config.longest_window(column), end))


def _describe(dataset: Dataset, part: DatasetConfig, config: DataConfig) -> str:
    filters = {"tasks": part.tasks, "episodes": part.episodes, "split": config.split}
    found = ", ".join(f"{name} {value}" for name, value in filters.items() if value)
    return found + excluded_note(dataset.manifest)
