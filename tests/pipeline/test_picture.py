import dataclasses
import io
import os
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from converters.convert import convert
from converters.mappings import LIBERO
from converters.rlds.source import open_source
from converters.standardize import FeatureMapping
from pipeline import picture
from pipeline.dataset import open_dataset
from pipeline.errors import DataError, UserError
from pipeline.picture import (
    axis_limits,
    check_target,
    collect,
    dim_names,
    draw,
    split_unit,
    spread,
    write,
)
from pipeline.schema import Feature

WIDTH = 1680


def feature(shape: tuple[int, ...], *dims: str) -> Feature:
    return Feature("f", "tensor", shape, "float32", "float32", "steps/f", dims=dims)


def size(png: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    image.load()
    return image.size


@pytest.fixture
def make(mini_rlds: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Converts the bundled set with these features alone."""

    def build(*features: FeatureMapping) -> pathlib.Path:
        source = open_source(str(mini_rlds))
        taken = {LIBERO.task, *(f.source for f in features)}
        mapping = dataclasses.replace(
            LIBERO,
            features=features,
            source_id=None,
            ignore=tuple(key for key in source.keys if key not in taken),
        )
        convert(source, tmp_path / "made", mapping)
        return tmp_path / "made"

    return build


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (feature((2,), "x_m", "y_m"), ("x_m", "y_m")),
        (feature((2,)), ("[0]", "[1]")),
        (feature((2, 2), "u", "v"), ("[0] u", "[0] v", "[1] u", "[1] v")),
        (feature((1, 2)), ("[0, 0]", "[0, 1]")),
        (feature(()), ("",)),
    ],
)
def test_every_value_of_a_step_has_a_name(given: Feature, names: tuple[str, ...]) -> None:
    assert dim_names(given) == names


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("rz_rad", ("rz", "rad")),
        ("gripper_left_m", ("gripper left", "m")),
        ("vx_m_s", ("vx", "m/s")),
        ("tilt_deg", ("tilt", "°")),
        ("dx", ("dx", "")),
        ("m", ("m", "")),
        ("[3]", ("[3]", "")),
        ("", ("", "")),
    ],
)
def test_unit_is_split_from_a_name(name: str, parts: tuple[str, str]) -> None:
    assert split_unit(name) == parts


@pytest.mark.parametrize(
    ("total", "count", "places"),
    [(10, 3, [0, 4, 9]), (3, 8, [0, 1, 2]), (1, 8, [0]), (100, 2, [0, 99])],
)
def test_places_are_spread_evenly(total: int, count: int, places: list[int]) -> None:
    assert spread(total, count) == places


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


def test_picture_of_a_dataset_shows_its_tasks(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    content = collect(dataset, None)
    assert content.title == ("libero_mini",)
    assert content.subtitle == "4 episodes, 455 steps, 2 tasks, 20 Hz"
    assert [strip.heading for strip in content.strips] == list(dataset.manifest.tasks)
    assert [strip.note for strip in content.strips] == ["episode 0", "episode 1"]
    names = [(name, [f.caption for f in frames]) for name, frames in content.strips[0].cameras]
    steps = ["step 0", "step 50", "step 101"]
    assert names == [("image_primary", steps), ("image_wrist", steps)]
    assert content.images_note == "Pixels as stored; image orientation: rotated_180."
    assert "Blue: episode 2; grey: 3 other episodes. Bars: all 455 steps," in content.panels_note


def test_picture_of_an_episode_has_a_strip_for_each_camera(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    content = collect(dataset, 3)
    assert content.title == (dataset.manifest.tasks[0],)
    assert content.subtitle == "libero_mini, episode 3: 106 steps, 5.3 s"
    assert [len(strip.cameras[0][1]) for strip in content.strips] == [8, 8]
    last = content.strips[1].cameras[0][1][-1]
    assert (last.caption, last.image.shape) == ("step 105", (128, 128, 3))
    action = np.asarray(dataset.columns["episodes"].read(3)["action"])
    np.testing.assert_array_equal(content.groups[0].panels[2].curve, action[:, 2])


def test_histograms_count_every_step(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    content = collect(dataset, 0)
    assert [group.key for group in content.groups] == [
        "action",
        "observation/proprio",
        "observation/joint_state",
    ]
    reader = dataset.columns["episodes"]
    actions = np.concatenate([np.asarray(reader.read(n)["action"]) for n in range(4)])
    for dim, panel in enumerate(content.groups[0].panels):
        expected, _ = np.histogram(actions[:, dim].astype(float), picture.NUM_BINS, panel.limits)
        np.testing.assert_array_equal(panel.counts, expected)
        assert panel.num_values == 455
        assert panel.p01 == dataset.statistics["action"].p01[dim]
    x = content.groups[1].panels[0]
    assert (x.label, x.unit, len(x.others)) == ("x", "m", 3)


def test_large_dataset_is_sampled_and_says_so(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "MAX_EPISODES", 2)
    monkeypatch.setattr(picture, "MAX_TASKS", 1)
    content = collect(open_dataset(str(mini_dataset)), None)
    assert content.groups[0].panels[0].num_values == 102 + 106
    sampled = "a sample: 208 steps of 2 of 4 episodes, evenly spread"
    assert sampled in content.panels_note
    assert content.images_note.startswith("1 of 2 tasks, evenly spread.")


def test_wide_feature_is_cut_to_its_first_dimensions(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "MAX_PANELS", 5)
    content = collect(open_dataset(str(mini_dataset)), None)
    assert [len(group.panels) for group in content.groups] == [5, 5, 5]
    assert content.groups[0].note == "the first 5 of 7 dimensions"
    assert size(draw(content))[0] == WIDTH


@pytest.mark.parametrize("episode", [None, 1])
def test_picture_is_a_png_of_one_width(mini_dataset: pathlib.Path, episode: int | None) -> None:
    width, height = size(draw(collect(open_dataset(str(mini_dataset)), episode)))
    assert width == WIDTH
    assert 1500 < height < 2500


def test_dataset_without_images_names_or_proprio(make: Callable[..., pathlib.Path]) -> None:
    directory = make(
        FeatureMapping("action", "steps/action"), FeatureMapping("observation/r", "steps/reward")
    )
    content = collect(open_dataset(str(directory)), None)
    assert (content.strips, content.images_note) == ((), "")
    labels = [[panel.label for panel in group.panels] for group in content.groups]
    assert labels == [[f"[{i}]" for i in range(7)], ["r"]]
    assert size(draw(content))[0] == WIDTH


def test_dataset_of_images_alone(make: Callable[..., pathlib.Path]) -> None:
    directory = make(
        FeatureMapping("reward", "steps/reward"),
        FeatureMapping("observation/proprio", "steps/observation/state", "steps"),
        FeatureMapping("observation/image_primary", "steps/observation/image", "steps"),
    )
    content = collect(open_dataset(str(directory)), 0)
    assert (content.groups, content.panels_note) == ((), "")
    assert len(content.strips) == 1
    assert size(draw(content))[0] == WIDTH


def test_long_and_odd_instructions_are_drawn_as_they_are(
    copied: pathlib.Path, edit_json: Callable[..., None]
) -> None:
    odd = "put $pick_up \\frac{a} the bowl$ away " * 12
    changes = [{"episode": 0, "step": 40, "task": 1}]
    edit_json(
        copied / "dataset.json",
        lambda d: d.update(tasks=[odd, d["tasks"][1]], task_changes=changes),
    )
    dataset = open_dataset(str(copied))
    content = collect(dataset, 0)
    assert content.title == (odd, f"from step 40: {dataset.manifest.tasks[1]}")
    assert content.changes == (40,)
    assert content.panels_note.endswith("Dotted: a new instruction.")
    assert size(draw(content))[0] == WIDTH
    assert size(draw(collect(dataset, None)))[0] == WIDTH


def test_extremes_beyond_the_axis_are_kept(
    copied: pathlib.Path, edit_json: Callable[..., None]
) -> None:
    edit_json(copied / "statistics.json", lambda d: d["action"]["max"].__setitem__(0, 250.0))
    panel = collect(open_dataset(str(copied)), 0).groups[0].panels[0]
    assert panel.value_range[1] == 250.0
    assert panel.limits[1] < 3


def test_damaged_image_names_its_record(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(str(mini_dataset))
    monkeypatch.setattr(
        dataset.columns["steps"], "read", lambda _: {"observation/image_primary": b"no image"}
    )
    with pytest.raises(DataError, match=r"column steps, record 102, observation/image_primary"):
        collect(dataset, 1)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("out.jpg", r"expected a file that ends in \.png; found \.jpg"),
        ("out", "found no suffix"),
        ("missing/out.png", "expected a folder that exists; found no folder .*missing"),
        ("folder.png", "expected a file; found a folder of this name"),
    ],
)
def test_target_that_cannot_be_is_refused(path: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=f"--plot .*{message}.*Name a file such as out.png"):
        check_target(str(tmp_path / path))


def test_folder_that_is_read_only_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"a folder that can be written; found .* read-only"):
        check_target(str(tmp_path / "out.png"))


def test_failed_write_keeps_the_picture_of_before(
    mini_dataset: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"before")

    def fail(_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(picture, "sync", fail)
    with pytest.raises(UserError, match="No space left on device"):
        write(open_dataset(str(mini_dataset)), 0, target)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_missing_matplotlib_is_a_user_error(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = collect(open_dataset(str(mini_dataset)), 0)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"expected the package matplotlib.*pip install matplotlib"):
        draw(content)
