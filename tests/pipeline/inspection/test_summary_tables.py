import dataclasses
import pathlib
import re
from collections import Counter

import pytest
from rich.console import Console

from pipeline.data.conventions import Gripper, PoseRotation
from pipeline.data.dataset import open_dataset
from pipeline.inspection.dataset_summary import Summary, summarize
from pipeline.inspection.episode_summary import summarize_episode
from pipeline.inspection.summary_tables import to_text

BOWL = "pick up the black bowl between the plate and the ramekin and place it on the plate"
SOUP = "pick up the alphabet soup and place it in the basket"


def plain(width: int = 120) -> Console:
    return Console(force_terminal=False, width=width, highlight=False, markup=False, emoji=False)


@pytest.fixture(scope="module")
def summary(mini_dataset: pathlib.Path) -> Summary:
    return summarize(open_dataset(str(mini_dataset)))


def test_text_shows_every_part_without_colour(summary: Summary) -> None:
    text = to_text(summary, plain())
    assert "\x1b" not in text
    assert "4 episodes, 455 steps, 2 tasks, 8.1 MB" in text
    assert re.search(r"vggt_tokens +step +455 +2 +1\.4 +3,169 ", text)
    assert re.search(r"action +episodes +float32 +float32 +7 +28 ", text)
    assert re.search(rf"0 +2 +208 +{BOWL}", text)
    assert re.search(r"steps +102 +114\.5 +124 +455", text)
    assert re.search(r"rx_rad +3\.1381 +0\.0096 +3\.1157 +3\.1167 +3\.1570 +3\.1584", text)
    assert re.search(r"gripper dim +6 \(gripper\)", text)
    assert "control frequency   20 Hz" in text


@pytest.mark.parametrize("width", [60, 80, 85, 90, 94, 100, 120, 200])
def test_lines_fit_and_no_cell_is_cut_off(summary: Summary, width: int) -> None:
    text = to_text(summary, plain(width))
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    features = text[text.index("Features") : text.index("Tasks")]
    words = set(text.split())
    assert {f.key for f in summary.features} <= words
    assert {dim for f in summary.features for dim in f.dims} <= set(features.split())
    assert set(f"{BOWL} {SOUP} {summary.columns[2].licence}".split()) <= words


def test_text_of_an_episode(mini_dataset: pathlib.Path) -> None:
    text = to_text(summarize_episode(open_dataset(str(mini_dataset)), 1), plain())
    assert "libero_mini, episode 1\nof 4 episodes\n" in text
    assert re.search(r"length +124 steps, 6\.2 s", text)
    assert re.search(r"steps of the dataset +102 to 225", text)
    assert re.search(r"steps/00000-of-00002\.arrayrecord +102 +225", text)
    assert re.search(r"is_last +false +true +false +true", text)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_word_of_an_episode_is_broken(mini_dataset: pathlib.Path, width: int) -> None:
    summary = summarize_episode(open_dataset(str(mini_dataset)), 1)
    text = to_text(summary, plain(width))
    assert max(map(len, text.splitlines())) <= width
    assert set(to_text(summary, plain(400)).split()) <= set(text.split())


@pytest.mark.parametrize("width", [60, 80, 94])
def test_narrow_tables_show_every_word_of_wide_ones(summary: Summary, width: int) -> None:
    wide, narrow = (
        to_text(summary, plain(columns)).replace(",", " ").split() for columns in (400, width)
    )
    assert {word for word in wide if "─" not in word} <= set(narrow)
    numbers = [Counter(word for word in words if "." in word) for words in (wide, narrow)]
    assert numbers[0] == numbers[1]


def test_narrow_dims_have_a_block_of_their_own(summary: Summary) -> None:
    text = to_text(summary, plain(80))
    assert re.search(r"\n dims\n action\n   dx dy dz drx dry drz gripper\n", text)
    assert re.search(r"\n steps *\n   observation/image_primary +encoded +uint8 +128 128 3", text)
    assert re.search(r"\nobservation/joint_state\n joint_0_rad +0\.0628 ", text)


def test_a_long_key_and_wide_numbers_are_not_broken_either(summary: Summary) -> None:
    key = "observation/" + "_".join(["position_of_the_left_wrist"] * 2)
    dims = tuple(
        dataclasses.replace(dim, mean=-1.5e-30, std=-2.5e-30, min=-3.5e8, p01=-4.5e8, max=-5.5e8)
        for dim in summary.statistics["action"]
    )
    features = (dataclasses.replace(summary.features[0], key=key), *summary.features[1:])
    changed = dataclasses.replace(summary, features=features, statistics={key: dims})
    text = to_text(changed, plain(80))
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(rf"\n {key}\n   episodes float32 float32 7 28 dx dy dz ", text)
    assert text.count(f"\n{key}\n") == 2
    assert re.search(r"\n gripper +-1\.500e-30 +-2\.500e-30 +-3\.500e\+08\n", text)


@pytest.mark.parametrize("width", [30, 40])
def test_very_narrow_tables_fold_and_lose_no_key(summary: Summary, width: int) -> None:
    text = to_text(summary, plain(width))
    assert max(map(len, text.splitlines())) <= width
    characters = re.sub(r"[\s─]", "", text)
    assert all(feature.key in characters for feature in summary.features)


def test_steps_that_were_left_out_have_a_column_of_their_own(summary: Summary) -> None:
    assert "no-ops removed" not in to_text(summary, plain())
    tasks = (dataclasses.replace(summary.tasks[0], removed_steps=7), *summary.tasks[1:])
    text = to_text(dataclasses.replace(summary, tasks=tasks), plain(200))
    assert re.search(rf"no-ops removed +instruction\n.*\n +0 +2 +208 +7 +{BOWL}", text)


def test_several_grippers_and_rotations_are_listed(summary: Summary) -> None:
    conventions = dataclasses.replace(
        summary.conventions,
        gripper_dim=None,
        gripper_open=1.0,
        gripper_close=0.0,
        grippers=(Gripper(0), Gripper(6, 0.08, 0.0, "continuous")),
        rotations=(PoseRotation("observation/proprio", 3, "axis_angle"),),
    )
    text = to_text(dataclasses.replace(summary, conventions=conventions), plain(200))
    assert re.search(r"gripper dim +0 \(dx\), 6 \(gripper\)\n", text)
    assert "0 binary, open 1, close 0; 6 continuous, open 0.08, close 0\n" in text
    assert re.search(r"rotations +observation/proprio 3:6 axis_angle\n", text)
    assert "gripper open" not in text


def test_dataset_without_a_gripper_says_so(summary: Summary) -> None:
    conventions = dataclasses.replace(summary.conventions, gripper_dim=None)
    text = to_text(dataclasses.replace(summary, conventions=conventions), plain())
    assert re.search(r"gripper dim +none", text)
    assert "gripper open" not in text


def test_goal_images_alone_leave_no_blank_instruction(summary: Summary) -> None:
    tasks = (dataclasses.replace(summary.tasks[0], text=""),)
    text = to_text(dataclasses.replace(summary, tasks=tasks), plain())
    assert re.search(r"\d +none$", text, re.MULTILINE)
    assert " steps, 1 task," in text


def test_a_number_that_is_shown_as_zero_has_no_sign(summary: Summary) -> None:
    key, dims = next(iter(summary.statistics.items()))
    tiny = dataclasses.replace(dims[0], mean=-1e-9, min=-1.0)
    text = to_text(dataclasses.replace(summary, statistics={key: (tiny, *dims[1:])}), plain())
    assert "-0.0000" not in text
    assert "-1.0000" in text
