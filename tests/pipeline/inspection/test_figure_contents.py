import pathlib
from collections.abc import Callable

import pytest

from pipeline.data.dataset import open_dataset
from pipeline.inspection import image_strips, value_panels
from pipeline.inspection.figure_contents import read_figure


def test_figure_of_a_dataset_shows_its_tasks(mini_dataset: pathlib.Path) -> None:
    contents = read_figure(open_dataset(str(mini_dataset)), None)
    assert contents.title == ("libero_mini",)
    assert contents.subtitle == "4 episodes, 455 steps, 2 tasks, 20 Hz"
    assert len(contents.strips) == 2
    mirrored = "rotated_180: upright, but mirrored left to right against the world"
    assert contents.images_note == f"Pixels as stored; {mirrored} (docs/format.md)."
    assert "Blue: episode 2; grey: 3 other episodes. Bars: all 455 steps," in contents.panels_note


def test_figure_of_an_episode_has_a_strip_for_each_camera(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    contents = read_figure(dataset, 3)
    assert contents.title == (dataset.manifest.tasks[0],)
    assert contents.subtitle == "libero_mini, episode 3: 106 steps, 5.3 s"
    assert [list(strip.cameras) for strip in contents.strips] == [
        ["image_primary"],
        ["image_wrist"],
    ]
    assert "Blue: episode 3; grey: 3 other" in contents.panels_note


def test_instructions_of_an_episode_are_its_title(
    copied: pathlib.Path, edit_json: Callable[..., None]
) -> None:
    changes = [{"episode": 0, "step": 40, "task": 1}]
    edit_json(copied / "dataset.json", lambda d: d.update(task_changes=changes))
    dataset = open_dataset(str(copied))
    first, second = dataset.manifest.tasks
    contents = read_figure(dataset, 0)
    assert contents.title == (first, f"from step 40: {second}")
    assert contents.changes == (40,)
    assert contents.panels_note.endswith("Dotted: a new instruction.")


def test_sample_of_a_large_dataset_is_called_one(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_panels, "MAX_EPISODES", 2)
    monkeypatch.setattr(image_strips, "MAX_TASKS", 1)
    contents = read_figure(open_dataset(str(mini_dataset)), None)
    sampled = "a sample: 208 steps of 2 of 4 episodes, evenly spread"
    assert sampled in contents.panels_note
    assert contents.images_note.startswith("1 of 2 tasks, evenly spread.")
