"""Which episodes and steps of a dataset a config chooses, and how often each is sampled."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.schema import Column
from pipeline.errors import UserError, did_you_mean
from pipeline.loading.samples.dataset_config import DatasetConfig
from pipeline.loading.samples.selection import Selection, Stratum
from pipeline.loading.samples.success import success_problems
from pipeline.loading.samples.task_globs import TaskGlobs
from pipeline.terminal import first_few, ranges


@dataclasses.dataclass(frozen=True)
class Runs:
    """Stretches of steps of one instruction, in the order of the dataset; int64 (runs) each."""

    starts: np.ndarray
    """First step of each."""
    ends: np.ndarray
    """The step after the last."""
    episodes: np.ndarray
    """Its episode."""
    tasks: np.ndarray
    """Its task."""

    @property
    def counts(self) -> np.ndarray:
        """Number of steps before each, then of all; int64 (runs + 1)."""
        return np.concatenate([[0], np.cumsum(self.ends - self.starts)])

    def at(self, rows: np.ndarray) -> "Runs":
        """Returns some of them, by their indices or a mask."""
        return Runs(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def inside(self, spans: np.ndarray) -> "Runs":
        """Returns what of them lies inside spans, cut where those begin and end.

            runs 0-10, 10-20    spans 2-5, 8-12    2-5, 8-10, 10-12

        Args:
          spans: int64 (spans 2), ascending: first step and the one after the last of each.
        """
        first = np.searchsorted(spans[:, 1], self.starts, side="right")
        count = np.maximum(np.searchsorted(spans[:, 0], self.ends, side="left") - first, 0)
        rows = np.repeat(np.arange(len(first)), count)
        # Each run's spans, one after the other.
        which = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[rows]
        cut = self.at(rows)
        return dataclasses.replace(
            cut,
            starts=np.maximum(cut.starts, spans[which, 0]),
            ends=np.minimum(cut.ends, spans[which, 1]),
        )


def runs_of(dataset: Dataset) -> Runs:
    """Returns the stretches of all episodes; one ends where the instruction changes."""
    starts, tasks = dataset.episode_starts[:-1], dataset.episode_tasks
    episodes = np.arange(dataset.num_episodes)
    if dataset.manifest.task_changes:
        changes = [(c.episode, c.step, c.task) for c in dataset.manifest.task_changes]
        episode, step, task = np.array(changes, np.int64).T
        # Behind the stretch that starts with the episode; the changes of one are in order.
        starts = np.insert(starts, episode + 1, dataset.episode_starts[episode] + step)
        tasks = np.insert(tasks, episode + 1, task)
        episodes = np.insert(episodes, episode + 1, episode)
    return Runs(starts, np.append(starts[1:], dataset.num_steps), episodes, tasks)


def chosen_episodes(dataset: Dataset, part: DatasetConfig) -> np.ndarray:
    """Returns which episodes are chosen by their numbers and not excluded; bool (episodes)."""
    chosen = np.zeros(dataset.num_episodes, bool)
    first, end = part.episodes or (0, dataset.num_episodes)
    chosen[first:end] = True
    if part.episode_list:
        is_listed = np.zeros(dataset.num_episodes, bool)
        is_listed[[*part.episode_list]] = True
        chosen &= is_listed
    # Excluded by `octograin edit`.
    chosen[list(dataset.manifest.excluded_episodes)] = False
    return chosen


def chosen_spans(dataset: Dataset, part: DatasetConfig) -> np.ndarray:
    """Returns the parts of episodes that count as recorded; int64 (spans 2), ascending.

    It is empty where all of every episode counts, and where nothing does.
    """
    if not part.has_parts:
        return np.empty((0, 2), np.int64)
    starts, ends = dataset.episode_starts[:-1], dataset.episode_starts[1:]
    # All steps at the most: a larger number need not fit in an array.
    head, tail = (min(number, dataset.num_steps) for number in part.trim)
    spans = np.stack([starts + head, ends - tail], axis=1)
    if part.segments:
        segments = _segments(part)
        # By episode, then by their first step.
        order = np.lexsort((segments[:, 1], segments[:, 0]))
        episode, first, end = segments[order].T
        spans = np.stack(
            [
                np.maximum(starts[episode] + first, spans[episode, 0]),
                np.minimum(starts[episode] + end, spans[episode, 1]),
            ],
            axis=1,
        )
    return spans[spans[:, 0] < spans[:, 1]]


def wanted_tasks(dataset: Dataset, part: DatasetConfig) -> np.ndarray:
    """Returns which tasks match one of the globs, or all without globs; bool (tasks)."""
    tasks = dataset.manifest.tasks
    if not part.tasks:
        return np.ones(len(tasks), bool)
    wanted = np.zeros(len(tasks), bool)
    globs = TaskGlobs(tasks)
    for glob in part.tasks:
        wanted[[*globs.rows(glob)]] = True
    return wanted


def run_weights(
    dataset: Dataset, part: DatasetConfig, runs: Runs, succeeded: np.ndarray
) -> np.ndarray:
    """Returns how often each step of stretches is sampled; float64 (runs).

    Args:
      dataset: The dataset.
      part: The config.
      runs: The selected stretches.
      succeeded: bool (episodes): whether each episode succeeded.
    """
    of_tasks = np.ones(len(dataset.manifest.tasks))
    if part.task_weights:
        globs = TaskGlobs(dataset.manifest.tasks)
        # The first glob that matches counts, so it is written last.
        for glob, weight in reversed(part.task_weights):
            of_tasks[[*globs.rows(glob)]] = weight
    weights = of_tasks[runs.tasks]
    return np.where(succeeded[runs.episodes], weights, weights * part.failure_weight)


def stratify(runs: Runs, weights: np.ndarray, whole: Selection) -> Selection:
    """Returns a selection with its strata.

    Args:
      runs: The selected stretches.
      weights: float64 (runs): how often each step of them is sampled.
      whole: The selection of all of them.
    """
    if (weights == 1).all():
        return whole
    strata = []
    # The largest weight first.
    for weight, rows in reversed([*_grouped(weights)]):
        own = runs.at(rows)
        selection = dataclasses.replace(whole, starts=own.starts, counts=own.counts)
        strata.append(Stratum(weight, selection))
    return dataclasses.replace(whole, strata=tuple(strata))


def _grouped(weights: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Yields each weight that occurs, ascending, and its rows, ascending, int64 (n)."""
    # Sorted once: a mask of all rows for each of a hundred weights takes seconds for a million.
    order = np.argsort(weights, kind="stable")
    ordered = weights[order]
    firsts = np.flatnonzero(np.diff(ordered, prepend=-1.0))
    yield from zip(ordered[firsts].tolist(), np.split(order, firsts[1:]), strict=True)


# --- what does not fit the dataset


def choice_problems(dataset: Dataset, part: DatasetConfig) -> Iterator[UserError]:
    """Yields each thing that a config chooses by and the dataset lacks, without reading records."""
    count = dataset.num_episodes
    if part.episodes is not None and part.episodes[1] > count:
        first, end = part.episodes
        yield UserError(
            where=f"{dataset.path}, episodes {first} {end}",
            expected=f"at most {count}, the number of its episodes",
            found=str(end),
            remedy="Name the first episode and the one after the last.",
        )
    segments = _segments(part)
    listed = np.fromiter(part.episode_list, np.int64)
    for field, episodes in {"episode_list": listed, "segments": segments[:, 0]}.items():
        yield from _episode_problems(dataset, field, episodes)
    lengths = np.diff(dataset.episode_starts)
    known = segments[segments[:, 0] < count]
    beyond = known[known[:, 2] > lengths[known[:, 0]]].tolist()
    if beyond:
        yield UserError(
            where=f"{dataset.path}, segments",
            expected="ends of at most the steps of their episodes",
            found=first_few([f"{e} {a} {z} of {lengths[e]} steps" for e, a, z in beyond]),
            remedy="Count the steps of each episode from 0; a segment ends before its last number.",
        )
    globs = {"tasks": part.tasks, "task_weights": tuple(glob for glob, _ in part.task_weights)}
    if any(globs.values()):
        yield from _glob_problems(dataset, globs)
    if part.uses_success:
        yield from success_problems(dataset)
    for name in part.excluded:
        if find_record(dataset, name) is None:
            yield UserError(
                where=f"{dataset.path}, excluded",
                expected="FILE:RECORD of one of its shards, such as "
                "steps/00000-of-00001.arrayrecord:17",
                found=name,
                remedy="Copy it from the error that names the corrupt record.",
            )


def find_record(dataset: Dataset, name: str) -> tuple[Column, int] | None:
    """Finds the column of a record given as FILE:RECORD, and the record's index there."""
    for column in dataset.manifest.schema.columns:
        index = dataset.columns[column.name].find(name)
        if index is not None:
            return column, index
    return None


def raise_together(errors: Sequence[UserError]) -> None:
    """Raises the only error of a list as it is, or one that lists several."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserError(
            where="data.datasets",
            expected="choices that fit the datasets",
            found=f"{len(errors)} problems",
            remedy="Correct these:" + "".join(f"\n  {error}" for error in errors),
        )


def _segments(part: DatasetConfig) -> np.ndarray:
    """Returns the segments of a config in its order; int64 (segments 3)."""
    # As one flat list, which numpy reads twice as fast as tuples. Nothing has more steps than fit.
    flat = itertools.chain.from_iterable(part.segments)
    return np.fromiter(flat, np.int64).reshape(-1, 3)


def _episode_problems(dataset: Dataset, field: str, episodes: np.ndarray) -> Iterator[UserError]:
    """Yields the errors of named episodes, int64 (n), that the dataset lacks or excludes."""
    if not len(episodes):
        return
    is_known = episodes < dataset.num_episodes
    beyond = sorted({*episodes[~is_known].tolist()})
    if beyond:
        yield UserError(
            where=f"{dataset.path}, {field}",
            expected=f"episodes from 0 to {dataset.num_episodes - 1}",
            found=ranges(beyond),
            remedy="Take them out; episodes are counted from 0.",
        )
    is_excluded = np.zeros(dataset.num_episodes, bool)
    is_excluded[[*dataset.manifest.excluded_episodes]] = True
    named = episodes[is_known]
    excluded = sorted({*named[is_excluded[named]].tolist()})
    if excluded:
        listed = ranges(excluded)
        yield UserError(
            where=f"{dataset.path}, {field}",
            expected="episodes that are not excluded from the dataset",
            found=listed,
            remedy=f"Take them out, or use them again: octograin edit {dataset.path} "
            f"--include {listed}",
        )


def _glob_problems(dataset: Dataset, globs: Mapping[str, Sequence[str]]) -> Iterator[UserError]:
    """Yields the errors of globs, by field, that match no instruction."""
    tasks = dataset.manifest.tasks
    known = TaskGlobs(tasks)
    for field, glob in ((field, glob) for field, several in globs.items() for glob in several):
        if next(known.rows(glob), None) is None:
            yield UserError(
                where=f"{dataset.path}, {field}",
                expected="a glob over its instructions: " + first_few(tasks, "; "),
                found=repr(glob),
                remedy=did_you_mean(glob, tasks) + "Fix the glob, such as '*bowl*'.",
            )
