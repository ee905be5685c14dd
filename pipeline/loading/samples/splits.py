"""Selects the steps of a dataset that a run samples: splits, filters and excluded records."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from pipeline.data.action_hashes import has_actions, hash_actions, stored_hashes
from pipeline.data.dataset import Dataset, excluded_note
from pipeline.data.manifest import EDIT
from pipeline.data.schema import ACTION, EPISODES, Column
from pipeline.errors import UserError
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.samples.selection import Selection, Stratum
from pipeline.loading.samples.start_reading import noticed
from pipeline.loading.samples.step_choice import (
    choice_problems,
    chosen_episodes,
    chosen_spans,
    find_record,
    raise_together,
    run_weights,
    runs_of,
    stratify,
    wanted_tasks,
)
from pipeline.loading.samples.success import successes

# XXH3-64 below 2**64 becomes a fraction in [0, 1].
_HASH_RANGE = 2.0**64
_NONE = np.array([], np.int64)


def select_all(datasets: Sequence[Dataset], config: DataConfig) -> tuple[Selection, ...]:
    """Selects the steps of every dataset of a mixture.

    Raises:
      UserError: Configs choose by what their datasets do not have, all of it together; or what one
        chooses leaves nothing.
      RecordError: A trajectory is corrupt, and a split reads all of them, as the dataset has no
        hashes of its actions.
    """
    parts = tuple(zip(datasets, config.datasets, strict=True))
    raise_together([error for each in parts for error in choice_problems(*each)])
    return tuple(_select(dataset, part, config) for dataset, part in parts)


def select(dataset: Dataset, part: DatasetConfig, config: DataConfig) -> Selection:
    """Selects the steps of a dataset that a run samples.

    Raises:
      UserError: The config chooses by what the dataset does not have, or leaves nothing.
      RecordError: A trajectory is corrupt, and a split reads all of them, as the dataset has no
        hashes of its actions.
    """
    raise_together([*choice_problems(dataset, part)])
    return _select(dataset, part, config)


def _select(dataset: Dataset, part: DatasetConfig, config: DataConfig) -> Selection:
    """Selects the steps by a config that fits the dataset."""
    found = (find_record(dataset, name) for name in part.excluded)
    excluded = [record for record in found if record is not None]
    # Its actions cannot be read for the split.
    lost = {index for column, index in excluded if column.per == "episode"}
    episodes = chosen_episodes(dataset, part) & _in_split(dataset, config, lost)
    runs = runs_of(dataset)
    runs = runs.at(episodes[runs.episodes] & wanted_tasks(dataset, part)[runs.tasks])
    spans = chosen_spans(dataset, part)
    if part.has_parts:
        runs = runs.inside(spans)
    succeeded = np.ones(dataset.num_episodes, bool)
    if part.uses_success:
        succeeded = successes(dataset, runs.episodes, part.excluded)
    if part.outcome != "any":
        runs = runs.at(succeeded[runs.episodes] == (part.outcome == "success"))
    if not len(runs.starts):
        raise UserError(
            where=dataset.path,
            expected="steps to sample",
            found=f"none in: {_describe(dataset, part, config)}",
            remedy="Relax one of these filters.",
        )
    selection = Selection(runs.starts, runs.counts, spans=spans)
    selection = _without_records(selection, dataset, excluded, config)
    weights = run_weights(dataset, part, runs, succeeded)
    selection = stratify(runs, weights, selection)
    for stratum in selection.strata or (Stratum(1.0, selection),):
        weight = f", steps of the weight {stratum.weight:g}" if selection.strata else ""
        stratum.selection.check(f"{dataset.path}{weight}")
    return selection


def _without_records(
    selection: Selection,
    dataset: Dataset,
    excluded: Sequence[tuple[Column, int]],
    config: DataConfig,
) -> Selection:
    """Returns a selection whose samples read none of the excluded records."""
    unsampled, unseen = _NONE, _NONE
    for column, index in excluded:
        steps = _steps_that_read(dataset, column, index, config)
        if column.per == "step":
            # A window does not reach out of its span.
            borders = np.tile([0, dataset.num_steps], (len(steps), 1))
            steps = steps[selection.bounds(steps, borders)[:, 0] <= index]
        unsampled = np.union1d(unsampled, steps)
        if any(map(column.is_camera, column.features)):
            # For a camera column the record's index is the step itself.
            unseen = np.union1d(unseen, [index])
    return dataclasses.replace(selection, unsampled=unsampled, unseen=unseen)


def _in_split(dataset: Dataset, config: DataConfig, lost: Collection[int]) -> np.ndarray:
    """Which episodes are in the configured split; bool (episodes)."""
    is_whole = config.split == "all" or config.validation_fraction == 0
    # Without actions in the trajectories the loader refuses the dataset, with a remedy.
    if is_whole or not has_actions(dataset.manifest.schema):
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
    """Hashes the actions of each episode to a number in [0, 1]; float64 (episodes).

    Episodes below `validation_fraction` are held out. An episode therefore stays in its split when
    others are added, removed or moved, and copies of an episode are in the same split. Episodes
    that `octograin edit` excluded have the number 1.

    Args:
      dataset: The dataset; all its trajectories are read if it has no hashes of its actions.
      lost: Episodes that are not read; the number of those without a hash is 1.

    Raises:
      RecordError: A trajectory that is read is corrupt.
    """
    excluded = dataset.manifest.excluded_episodes
    hashes = stored_hashes(dataset.manifest)
    if hashes is None:
        return _read_places(dataset, {*lost, *excluded})
    places = hashes / _HASH_RANGE
    # Those in `lost` keep theirs: a run may exclude a record on resume and continue with its split.
    places[list(excluded)] = 1
    return places


def _read_places(dataset: Dataset, lost: Collection[int]) -> np.ndarray:
    """The same from the records, without those of some episodes, whose number is 1."""
    reader = dataset.columns[EPISODES]
    # 1 is beyond every fraction, so an episode that cannot be read is in the training split.
    places = np.ones(dataset.num_episodes)
    for episode in noticed(
        [e for e in range(dataset.num_episodes) if e not in lost],
        f"{dataset.path}: the split reads every trajectory at each start",
        f"store what it needs once: {EDIT} {dataset.path}",
    ):
        # Actions alone: they distinguish episodes, and are small.
        places[episode] = hash_actions(np.asarray(reader.read(episode)[ACTION])) / _HASH_RANGE
    return places


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
    found = "; ".join(text for text in (part.choice(), f"split {config.split}") if text)
    return found + excluded_note(dataset.manifest)
