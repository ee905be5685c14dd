"""Reads the content of a figure of a dataset or an episode, with headings and notes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.inspection.episode_summary import EpisodeTask, episode_tasks
from pipeline.inspection.image_strips import Strip, read_episode_strips, read_task_strips
from pipeline.inspection.value_panels import PanelGroup, Selection, read_panels, select_episodes
from pipeline.terminal import count

_ORIENTATIONS = {
    "upright": "as the camera sees the world",
    "flipped_vertically": "upside down",
    "rotated_180": "upright, but mirrored left to right against the world",
}
"""Descriptions of the values of `image_orientation`."""


@dataclasses.dataclass(frozen=True)
class FigureContents:
    """The content of a figure."""

    title: tuple[str, ...]
    """Name of the dataset, or the instructions of the episode, one paragraph each."""
    subtitle: str
    strips: tuple[Strip, ...]
    images_note: str
    """Explains the pixels."""
    groups: tuple[PanelGroup, ...]
    panels_note: str
    """Explains the curves and histograms."""
    step_s: float
    """Duration of a step in seconds."""
    changes: tuple[int, ...]
    """Steps at which the shown episode's instruction changes."""


def read_figure(dataset: Dataset, episode: int | None) -> FigureContents:
    """Reads the content of a figure, from at most 512 episode records and a few dozen images.

    Args:
      dataset: The opened directory.
      episode: Index of the episode to show. None: images of several tasks, and the curves of an
        episode of median length.

    Raises:
      DataError: A record or image is corrupt.
    """
    manifest = dataset.manifest
    shown = _median_episode(manifest.episode_lengths) if episode is None else episode
    selection = select_episodes(dataset.num_episodes, shown)
    tasks = episode_tasks(manifest, shown)
    if episode is None:
        title, subtitle = (manifest.name,), _dataset_words(dataset)
        strips = read_task_strips(dataset)
    else:
        title, subtitle = _instructions(tasks), _episode_words(dataset, episode)
        strips = read_episode_strips(dataset, episode)
    return FigureContents(
        title=title,
        subtitle=subtitle,
        strips=strips,
        images_note=_images_note(dataset, None if episode is not None else len(strips)),
        groups=read_panels(dataset, selection),
        panels_note=_panels_note(dataset, selection, has_changes=len(tasks) > 1),
        step_s=1 / manifest.conventions.control_frequency_hz,
        changes=tuple(task.step for task in tasks[1:]),
    )


def _median_episode(lengths: Sequence[int]) -> int:
    # An episode that exists, where the median of lengths may lie between two.
    return int(np.argsort(lengths, kind="stable")[len(lengths) // 2])


def _instructions(tasks: Sequence[EpisodeTask]) -> tuple[str, ...]:
    return (tasks[0].text, *(f"from step {task.step}: {task.text}" for task in tasks[1:]))


def _dataset_words(dataset: Dataset) -> str:
    numbers = (dataset.num_episodes, dataset.num_steps, len(dataset.manifest.tasks))
    counts = ", ".join(map(count, numbers, ("episode", "step", "task")))
    return f"{counts}, {dataset.manifest.conventions.control_frequency_hz:g} Hz"


def _episode_words(dataset: Dataset, episode: int) -> str:
    manifest = dataset.manifest
    steps = manifest.episode_lengths[episode]
    seconds = steps / manifest.conventions.control_frequency_hz
    return f"{manifest.name}, episode {episode}: {steps:,} steps, {seconds:.1f} s"


def _images_note(dataset: Dataset, num_tasks_shown: int | None) -> str:
    """Explains the pixels and which tasks are shown; `num_tasks_shown` is None for an episode."""
    orientation = dataset.manifest.conventions.image_orientation
    note = f"Pixels as stored; {orientation}: {_ORIENTATIONS[orientation]} (docs/format.md)."
    num_tasks = len(dataset.manifest.tasks)
    if num_tasks_shown in (None, num_tasks):
        return note
    return f"{num_tasks_shown} of {num_tasks} tasks, evenly spread. {note}"


def _panels_note(dataset: Dataset, selection: Selection, *, has_changes: bool) -> str:
    num_counted, num_others = len(selection.counted), len(selection.behind)
    steps = sum(dataset.manifest.episode_lengths[episode] for episode in selection.counted)
    over = f"all {steps:,} steps"
    if num_counted < dataset.num_episodes:
        of_all = f"{num_counted} of {dataset.num_episodes:,} episodes"
        over = f"a sample: {steps:,} steps of {of_all}, evenly spread"
    others = f"; grey: {num_others} other episodes" if num_others else ""
    return (
        f"Blue: episode {selection.shown}{others}. Bars: {over}, with the share of the longest "
        "one. Dashed: 1st and 99th percentile of the dataset."
    ) + (" Dotted: a new instruction." if has_changes else "")
