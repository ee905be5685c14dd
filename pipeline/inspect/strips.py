"""Camera images of a picture: a few steps of an episode, side by side."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pipeline.dataset import Dataset
from pipeline.inspect.names import short_name
from pipeline.schema import Column, Feature

MAX_TASKS = 6
"""Whose images are shown, spread evenly over the tasks."""
_TASK_IMAGES = 6
"""Of a task, of all cameras together."""
_EPISODE_IMAGES = 8
"""Of a camera, where an episode is shown."""


@dataclasses.dataclass(frozen=True)
class Strip:
    """Images beside each other under a heading."""

    heading: str
    """The instruction; empty where the picture's title has it."""
    note: str
    """Where the images come from."""
    cameras: Mapping[str, Mapping[int, np.ndarray]]
    """By name, then by step: uint8 (h w 3), as stored."""


def spread(total: int, count: int) -> list[int]:
    """At most `count` different indices below `total`, evenly spread, with the first and last."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int)).tolist()


def read_task_strips(dataset: Dataset) -> tuple[Strip, ...]:
    """For some tasks, a few images of the first episode that begins with each.

    Raises:
      DataError: A corrupt record or image.
    """
    cameras = _cameras(dataset)
    if not cameras:
        return ()
    manifest = dataset.manifest
    count = max(1, _TASK_IMAGES // len(cameras))
    first = {task: n for n, task in reversed(list(enumerate(manifest.episode_tasks)))}
    tasks = sorted(first)
    strips = []
    for task in (tasks[place] for place in spread(len(tasks), MAX_TASKS)):
        images = {short_name(f.key): _read(dataset, c, f, first[task], count) for c, f in cameras}
        strips.append(Strip(manifest.tasks[task], f"episode {first[task]}", images))
    return tuple(strips)


def read_episode_strips(dataset: Dataset, episode: int) -> tuple[Strip, ...]:
    """A strip for each camera.

    Raises:
      DataError: A corrupt record or image.
    """
    return tuple(
        Strip("", "", {short_name(f.key): _read(dataset, c, f, episode, _EPISODE_IMAGES)})
        for c, f in _cameras(dataset)
    )


def _cameras(dataset: Dataset) -> list[tuple[Column, Feature]]:
    pairs = dataset.manifest.schema.features()
    return [(c, f) for c, f in pairs if c.is_camera(f)]


def _read(
    dataset: Dataset, column: Column, feature: Feature, episode: int, count: int
) -> dict[int, np.ndarray]:
    """Images at `count` steps spread over the episode, by step."""
    images = {}
    for step in spread(dataset.manifest.episode_lengths[episode], count):
        record = int(dataset.episode_starts[episode]) + step
        images[step] = np.empty(feature.shape, np.uint8)
        dataset.columns[column.name].read_into(record, {feature.key: images[step]})
    return images
