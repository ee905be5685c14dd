import io
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import DataError
from pipeline.inspection import dataset_figure
from pipeline.inspection.dataset_figure import (
    axis_limits,
    draw_figure,
    make_figure,
    read_panels,
    select_episodes,
)
from tests.small_dataset import write_dataset

BOWL = "pick up the black bowl between the plate and the ramekin and place it on the plate"
SOUP = "pick up the alphabet soup and place it in the basket"
CAMERA = "observation/image_primary"


@pytest.fixture(scope="module")
def mini(mini_dataset: pathlib.Path) -> Dataset:
    return open_dataset(str(mini_dataset))


def texts(figure: Figure) -> list[str]:
    """The texts of a figure in their order, with wrapped lines joined."""
    found = (artist.get_text() for artist in figure.findobj(Text))
    return [" ".join(text.split()) for text in found if text]


def size(png: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    image.load()
    return image.size


def test_figure_of_a_dataset_shows_its_tasks(mini: Dataset) -> None:
    figure = make_figure(mini, None)
    found = texts(figure)
    assert {"libero_mini", "4 episodes, 455 steps, 2 tasks, 20 Hz"} <= set(found)
    mirrored = "rotated_180: upright, but mirrored left to right against the world"
    assert f"Pixels as stored; {mirrored} (docs/format.md)." in found
    assert f"{BOWL} (episode 0)" in found
    assert f"{SOUP} (episode 1)" in found
    assert found.count("image_wrist") == 2
    # Each tick has a second label, which is hidden.
    assert [found.count(f"step {n}") for n in (0, 50, 101, 62, 123)] == [8, 4, 4, 4, 4]
    (note,) = (text for text in found if text.startswith("Blue"))
    assert "Blue: episode 2; grey: 3 other episodes. Bars: all 455 steps," in note
    assert {"dx", "x (m)", "gripper left (m)", "joint 6 (rad)", "11 %"} <= set(found)


def test_figure_of_an_episode_has_a_strip_for_each_camera(mini: Dataset) -> None:
    figure = make_figure(mini, 3)
    found = texts(figure)
    assert {BOWL, "libero_mini, episode 3: 106 steps, 5.3 s"} <= set(found)
    strips = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in strips] == ["image_primary", "image_wrist"]
    labels = [label.get_text() for label in strips[0].get_xticklabels()]
    assert (len(labels), labels[0], labels[-1]) == (8, "step 0", "step 105")
    shown = np.asarray(strips[1].images[0].get_array())
    stored = mini.step(3, 105, ["observation/image_wrist"])["observation"]["image_wrist"]
    np.testing.assert_array_equal(shown[:, 7 * 133 : 7 * 133 + 128], stored)
    assert any("Blue: episode 3; grey: 3 other" in text for text in found)
    png = draw_figure(mini, 3)
    assert size(png)[0] == 1680
    assert 1500 < size(png)[1] < 2500


def test_instructions_of_an_episode_are_its_title(
    copied: pathlib.Path, edit_json: Callable[..., None]
) -> None:
    changes = [{"episode": 0, "step": 40, "task": 1}]
    edit_json(copied / "dataset.json", lambda d: d.update(task_changes=changes))
    dataset = open_dataset(str(copied))
    found = texts(make_figure(dataset, 0))
    assert f"{BOWL} from step 40: {SOUP}" in found
    assert any(text.endswith("Dotted: a new instruction.") for text in found)
    assert read_panels(dataset, 0)["action"][0].changes == [40]


def test_sample_of_a_large_dataset_is_called_one(
    mini: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_figure, "MAX_EPISODES", 2)
    monkeypatch.setattr(dataset_figure, "MAX_TASKS", 1)
    monkeypatch.setattr(dataset_figure, "MAX_PANELS", 5)
    found = texts(make_figure(mini, None))
    assert "a sample: 208 steps of 2 of 4 episodes, evenly spread" in " ".join(found)
    assert any(text.startswith("1 of 2 tasks, evenly spread.") for text in found)
    assert "Drawn: the first 5 of 8 dimensions." in found
    assert "drz" not in found
    assert select_episodes(np.arange(4), 1) == ([0, 3], [0, 3])
    counted = read_panels(mini, 1)["action"][0].counted
    assert len(counted) == 102 + 106


def test_few_of_many_episodes_are_drawn_behind_the_curve() -> None:
    counted, behind = select_episodes(np.arange(100), 99)
    assert counted == list(range(100))
    assert (len(behind), behind[0]) == (15, 0)


@pytest.mark.parametrize("episode", [None, 0])
def test_dataset_without_images_names_or_proprio(
    tmp_path: pathlib.Path, episode: int | None
) -> None:
    path = write_dataset(tmp_path / "d", {"action": (7,), "observation/r": ()})
    found = texts(make_figure(open_dataset(str(path)), episode))
    assert "Cameras" not in found
    assert {*(f"[{i}]" for i in range(7)), "r"} <= set(found)


def test_dataset_of_images_alone(tmp_path: pathlib.Path) -> None:
    path = write_dataset(tmp_path / "d", {CAMERA: (8, 8, 3)})
    dataset = open_dataset(str(path))
    figure = make_figure(dataset, 0)
    assert len(figure.axes) == 3  # the title, the heading and the strip
    assert size(draw_figure(dataset, None))[0] == 1680


def test_cameras_of_several_sizes_are_beside_each_other(tmp_path: pathlib.Path) -> None:
    sizes = {"a": (8, 8, 3), "b": (8, 16, 3), "c": (24, 8, 3), "d": (8, 8, 3), "e": (4, 4, 3)}
    path = write_dataset(tmp_path / "d", {f"observation/{n}": shape for n, shape in sizes.items()})
    figure = make_figure(open_dataset(str(path)), None)
    strips = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in strips] == [*"abcde"] * 2


@pytest.mark.parametrize(
    "instruction",
    [
        "put $pick_up \\frac{a} the bowl$ away " * 12,
        "把黑色的碗放到盘子上 " * 30,
        "ボウルを皿に置く, गेंद उठाओ, ضع الوعاء 🤖",
        "",
    ],
)
@pytest.mark.parametrize("episode", [None, 0])
def test_instruction_in_any_script_is_drawn_without_a_warning(
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    instruction: str,
    episode: int | None,
) -> None:
    shapes = {"action": (1,), CAMERA: (8, 8, 3)}
    path = write_dataset(tmp_path / "d", shapes, tasks=[instruction, "open the drawer"])
    assert size(draw_figure(open_dataset(str(path)), episode))[0] == 1680
    assert caplog.messages == []


def test_corrupt_image_names_its_record(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(str(mini_dataset))
    monkeypatch.setattr(dataset.columns["steps"], "read", lambda _: {CAMERA: b"no image"})
    place = r"steps/00000-of-00002\.arrayrecord, record 102, observation/image_primary"
    with pytest.raises(DataError, match=place):
        make_figure(dataset, 1)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ((-1.0, 1.0, -0.9, 0.9), (-1.0, 1.0)),
        ((-1.0, 100.0, 0.0, 1.0), (-1.0, 2.0)),
        ((-9.0, 1.0, 0.0, 1.0), (-1.0, 1.0)),
        ((0.0, 1.0, 0.0, 0.0), (0.0, 1.0)),
        ((3.0, 3.0, 3.0, 3.0), (2.5, 3.5)),
    ],
)
def test_axis_leaves_outliers_out(
    values: tuple[float, float, float, float], limits: tuple[float, float]
) -> None:
    assert axis_limits(*values) == limits


def test_panels_have_the_values_of_every_step(mini: Dataset) -> None:
    panels = read_panels(mini, 3)
    assert list(panels) == ["action", "observation/proprio", "observation/joint_state"]
    episodes = [mini.episode(n, ["action"])["action"].astype(float) for n in range(4)]
    for dim, panel in enumerate(panels["action"]):
        np.testing.assert_array_equal(panel.counted, np.concatenate(episodes)[:, dim])
        assert panel.bounds[2] == mini.statistics["action"].p01[dim]
        np.testing.assert_array_equal(panel.curves[-1], episodes[3][:, dim])
        assert [len(curve) for curve in panel.curves[:-1]] == [102, 124, 123]
    assert panels["observation/proprio"][0].name == "x_m"


def test_a_panel_shows_shares_and_what_is_beyond_the_axis(mini: Dataset) -> None:
    panel = read_panels(mini, 0)["action"][0]
    least, _, p01, p99 = panel.bounds
    axes = Figure().subplots()
    dataset_figure.draw_panel(axes, panel._replace(bounds=(least, 250.0, p01, p99)))
    limits = axis_limits(least, 250.0, p01, p99)
    assert limits[1] < 3
    bars: Any = axes.patches[0]
    values, edges, baseline = bars.get_data()
    np.testing.assert_allclose((edges[0], edges[-1]), limits)
    counts, _ = np.histogram(panel.counted, len(values), limits)
    np.testing.assert_allclose(
        (values - baseline) / (values - baseline).max(), counts / counts.max()
    )
    found = [text.get_text() for text in axes.texts]
    assert found == ["max 250", f"{100 * counts.max() / 455:.0f} %"]
