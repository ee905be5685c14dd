import dataclasses
import io
import pathlib
from collections.abc import Callable

import pytest
from PIL import Image

from converters.job.convert import convert
from converters.mapping.mapping_registry import registered
from converters.mapping.standardize import FeatureMapping
from converters.sources.open_source import open_source
from pipeline.data.dataset import open_dataset
from pipeline.inspection.figure import draw_figure
from pipeline.inspection.figure_contents import read_figure

WIDTH = 1680


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
        taken = {registered("libero").task, *(f.source for f in features)}
        conventions = dataclasses.replace(registered("libero").conventions, gripper_dim=None)
        mapping = dataclasses.replace(
            registered("libero"),
            features=features,
            conventions=conventions,
            column_licences={},
            source_id=None,
            ignore=tuple(key for key in source.keys if key not in taken),
        )
        convert(source, tmp_path / "made", mapping)
        return tmp_path / "made"

    return build


@pytest.mark.parametrize("episode", [None, 1])
def test_figure_is_a_png_of_one_width(mini_dataset: pathlib.Path, episode: int | None) -> None:
    width, height = size(draw_figure(read_figure(open_dataset(str(mini_dataset)), episode)))
    assert width == WIDTH
    assert 1500 < height < 2500


def test_dataset_without_images_names_or_proprio(make: Callable[..., pathlib.Path]) -> None:
    directory = make(
        FeatureMapping("action", "steps/action"), FeatureMapping("observation/r", "steps/reward")
    )
    contents = read_figure(open_dataset(str(directory)), None)
    assert contents.strips == ()
    labels = [[panel.name for panel in group.panels] for group in contents.groups]
    assert labels == [[f"[{i}]" for i in range(7)], ["r"]]
    assert size(draw_figure(contents))[0] == WIDTH


def test_dataset_of_images_alone(make: Callable[..., pathlib.Path]) -> None:
    directory = make(
        FeatureMapping("action", "steps/action"),
        FeatureMapping("observation/proprio", "steps/observation/state", "steps"),
        FeatureMapping("observation/image_primary", "steps/observation/image", "steps"),
    )
    contents = read_figure(open_dataset(str(directory)), 0)
    assert len(contents.strips) == 1
    contents = dataclasses.replace(contents, groups=())
    assert size(draw_figure(contents))[0] == WIDTH


@pytest.mark.parametrize(
    ("instruction", "episode"),
    [
        ("put $pick_up \\frac{a} the bowl$ away " * 12, None),
        ("把黑色的碗放到盘子上 " * 30, 0),
        ("ボウルを皿に置く, गेंद उठाओ, ضع الوعاء 🤖", None),
        ("", 0),
    ],
)
def test_instruction_in_any_script_is_drawn_without_a_warning(
    copied: pathlib.Path,
    edit_json: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    instruction: str,
    episode: int | None,
) -> None:
    changes = [{"episode": 0, "step": 40, "task": 1}]
    edit_json(
        copied / "dataset.json",
        lambda d: d.update(tasks=[instruction, d["tasks"][1]], task_changes=changes),
    )
    contents = read_figure(open_dataset(str(copied)), episode)
    # The instruction is in the title and above the images; one panel is drawn in less time.
    group = dataclasses.replace(contents.groups[0], panels=contents.groups[0].panels[:1])
    contents = dataclasses.replace(contents, groups=(group,), strips=contents.strips[:1])
    assert size(draw_figure(contents))[0] == WIDTH
    assert caplog.messages == []


def test_cut_feature_and_outliers_are_drawn(mini_dataset: pathlib.Path) -> None:
    contents = read_figure(open_dataset(str(mini_dataset)), 0)
    group = contents.groups[0]
    panel = dataclasses.replace(group.panels[0], min=-250.0, max=250.0)
    group = dataclasses.replace(group, note="the first 1 of 7 dimensions", panels=(panel,))
    assert size(draw_figure(dataclasses.replace(contents, groups=(group,))))[0] == WIDTH
