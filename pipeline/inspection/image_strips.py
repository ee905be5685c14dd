"""Reads the camera images of a figure: a few steps of an episode, side by side."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.schema import Column, Feature
from pipeline.inspection.feature_names import short_name

MAX_TASKS = 6
"""Maximum number of tasks with images, spread evenly over all tasks."""
_TASK_IMAGES = 6
"""Number of images per task, over all cameras."""
_EPISODE_IMAGES = 8
"""Number of images per camera when an episode is shown."""


@dataclasses.dataclass(frozen=True)
class Strip:
    """A row of images under a heading."""

    heading: str
    """The instruction; empty if the figure's title has it."""
    note: str
    """The episode of the images."""
    cameras: Mapping[str, Mapping[int, np.ndarray]]
    """Images by camera, then by step: as stored, uint8 (h w 3), or depth in m, float32 (h w 1)."""


def spread(total: int, count: int) -> list[int]:
    """Returns up to `count` indices below `total`, evenly spread, including first and last."""
    # `unique`, because rounding may give one index twice.
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int)).tolist()


def read_task_strips(dataset: Dataset) -> tuple[Strip, ...]:
    """Reads a few images of some tasks, each from the first episode that begins with the task.

    Raises:
      DataError: A record or image is corrupt.
    """
    cameras = _cameras(dataset)
    if not cameras:
        return ()
    manifest = dataset.manifest
    count = max(1, _TASK_IMAGES // len(cameras))
    # Reversed, so that the first episode of each task is the last one kept.
    first = {task: n for n, task in reversed(list(enumerate(manifest.episode_tasks)))}
    tasks = sorted(first)
    strips = []
    for task in (tasks[place] for place in spread(len(tasks), MAX_TASKS)):
        images = {short_name(f.key): _read(dataset, c, f, first[task], count) for c, f in cameras}
        strips.append(Strip(manifest.tasks[task], f"episode {first[task]}", images))
    return tuple(strips)


def read_episode_strips(dataset: Dataset, episode: int) -> tuple[Strip, ...]:
    """Reads one strip per camera.

    Raises:
      DataError: A record or image is corrupt.
    """
    return tuple(
        Strip("", "", {short_name(f.key): _read(dataset, c, f, episode, _EPISODE_IMAGES)})
        for c, f in _cameras(dataset)
    )


def _cameras(dataset: Dataset) -> list[tuple[Column, Feature]]:
    pairs = dataset.manifest.schema.features()
    return [(c, f) for c, f in pairs if c.is_camera(f) or f.kind == "depth"]


def _read(
    dataset: Dataset, column: Column, feature: Feature, episode: int, count: int
) -> dict[int, np.ndarray]:
    """Reads images at `count` steps spread over the episode, by step."""
    images = {}
    for step in spread(dataset.manifest.episode_lengths[episode], count):
        record = int(dataset.episode_starts[episode]) + step
        images[step] = np.empty(feature.shape, feature.batch_dtype)
        dataset.columns[column.name].read_into(record, {feature.key: images[step]})
    return images
