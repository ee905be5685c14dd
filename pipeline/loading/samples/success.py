"""Whether an episode succeeded: declared in the manifest, or recorded as a feature."""

import math
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.manifest import EDIT
from pipeline.data.schema import EPISODES
from pipeline.errors import UserError
from pipeline.loading.samples.start_reading import noticed

FEATURES = ("success", "next/success")
"""Trajectories that say it, the first that a dataset has; the second is LeRobot's."""


def success_problems(dataset: Dataset) -> Iterator[UserError]:
    """Yields the error of a dataset that does not say which of its episodes succeeded."""
    if dataset.manifest.failed_episodes is not None or _feature(dataset) is not None:
        return
    yield UserError(
        where=f"{dataset.path}, outcome and failure_weight",
        expected="to know which episodes succeeded",
        found=f"neither declared failures nor a feature {' or '.join(FEATURES)} of one number",
        remedy=f"Declare them: {EDIT} {dataset.path} --failed 3,7-9 (none: all succeeded); or map "
        "a key of the source to `success` and convert again (docs/format.md, Success).",
    )


def successes(dataset: Dataset, episodes: np.ndarray, excluded: Collection[str]) -> np.ndarray:
    """Returns which episodes succeeded; bool (episodes of the dataset), True for all others.

    Declared failures count; without any declaration an episode succeeded if its feature `success`
    is above 0 at the last step.

    Args:
      dataset: The dataset.
      episodes: int64 (n), the episodes that are asked for, which may repeat; without a declaration
        their trajectories are read.
      excluded: Records that cannot be read, each FILE:RECORD; their episodes count as successes.

    Raises:
      UserError: The dataset does not say it.
      RecordError: A trajectory is corrupt.
    """
    succeeded = np.ones(dataset.num_episodes, bool)
    if dataset.manifest.failed_episodes is not None:
        succeeded[list(dataset.manifest.failed_episodes)] = False
        return succeeded
    lost = {dataset.columns[EPISODES].find(name) for name in excluded}
    asked = noticed(
        [e for e in np.unique(episodes).tolist() if e not in lost],
        f"{dataset.path}: success is read from the trajectory of every episode at each start",
        f"declare it once: {EDIT} {dataset.path} --failed recorded",
    )
    for episode, is_success in recorded_successes(dataset, asked):
        succeeded[episode] = is_success
    return succeeded


def recorded_successes(dataset: Dataset, episodes: Iterable[int]) -> Iterator[tuple[int, bool]]:
    """Yields episodes and whether they succeeded by the feature of their trajectories.

    Args:
      dataset: The dataset.
      episodes: Their numbers; each trajectory is read.

    Raises:
      UserError: The dataset has no such feature.
      RecordError: A trajectory is corrupt.
    """
    key = _feature(dataset)
    if key is None:
        raise next(success_problems(dataset))
    for episode in episodes:
        value = np.asarray(dataset.columns[EPISODES].read(episode)[key])[-1]
        # NaN is no success.
        yield episode, bool((value > 0).all())


def _feature(dataset: Dataset) -> str | None:
    """The key of the trajectory that says it; None if there is none."""
    found = {
        feature.key
        for column, feature in dataset.manifest.schema.features()
        if column.name == EPISODES and feature.kind == "tensor" and math.prod(feature.shape) == 1
    }
    return next((key for key in FEATURES if key in found), None)
