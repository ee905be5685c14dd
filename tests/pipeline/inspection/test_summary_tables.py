import dataclasses
import pathlib
import re
from collections import Counter
from typing import Any

import pytest
from rich.console import Console

from pipeline.data.conventions import Gripper, PoseRotation
from pipeline.data.dataset import open_dataset
from pipeline.inspection.dataset_summary import summarize, summarize_episode
from pipeline.inspection.summary_tables import to_text

BOWL = "pick up the black bowl between the plate and the ramekin and place it on the plate"
SOUP = "pick up the alphabet soup and place it in the basket"


def plain(width: int = 120) -> Console:
    return Console(force_terminal=False, width=width, highlight=False, markup=False, emoji=False)


@pytest.fixture(scope="module")
def summary(mini_dataset: pathlib.Path) -> dict[str, Any]:
    # A path of its own: that of the machine's temporary folder may be longer than a line.
    return summarize(open_dataset(str(mini_dataset))) | {"path": "data/libero_mini"}


def test_text_shows_every_part_without_colour(summary: dict[str, Any]) -> None:
    text = to_text(summary, plain())
    assert "\x1b" not in text
    assert "4 episodes, 455 steps, 2 tasks, 8.1 MB" in text
    assert re.search(r"vggt_tokens +step +455 +2 +1\.4 +3,169 ", text)
    assert re.search(r"action +episodes +float32 +float32 +7 +28 ", text)
    assert re.search(rf"0 +2 +208 +{BOWL}", text)
    assert re.search(r"steps +102 +114\.5 +124 +455", text)
    assert re.search(r"rx_rad +3\.1381 +0\.0096 +3\.1157 +3\.1167 +3\.1570 +3\.1584", text)
    assert re.search(r"gripper +6 \(gripper\) binary, open -1, close 1\n", text)
    assert "control frequency   20 Hz" in text


@pytest.mark.parametrize("width", [60, 80, 85, 90, 94, 100, 120, 200])
def test_lines_fit_and_no_cell_is_cut_off(summary: dict[str, Any], width: int) -> None:
    text = to_text(summary, plain(width))
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    features = text[text.index("Features") : text.index("Tasks")]
    words = set(text.split())
    assert {f["key"] for f in summary["features"]} <= words
    assert {dim for f in summary["features"] for dim in f["dims"]} <= set(features.split())
    licence = summary["columns"][2]["licence"]
    assert set(f"{BOWL} {SOUP} {licence}".split()) <= words


def test_text_of_an_episode(mini_dataset: pathlib.Path) -> None:
    text = to_text(summarize_episode(open_dataset(str(mini_dataset)), 1), plain())
    assert "libero_mini, episode 1\nof 4 episodes\n" in text
    assert re.search(r"length +124 steps, 6\.2 s", text)
    assert re.search(r"steps of the dataset +102 to 225", text)
    assert re.search(r"steps +102 to 225 +steps/00000-of-00002\.arrayrecord\n", text)
    assert re.search(r"is_last +false +true +false +true", text)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_word_of_an_episode_is_broken(mini_dataset: pathlib.Path, width: int) -> None:
    summary = summarize_episode(open_dataset(str(mini_dataset)), 1)
    text = to_text(summary, plain(width))
    assert max(map(len, text.splitlines())) <= width
    assert set(to_text(summary, plain(400)).split()) <= set(text.split())


@pytest.mark.parametrize("width", [60, 80, 94])
def test_narrow_tables_show_every_word_of_wide_ones(summary: dict[str, Any], width: int) -> None:
    wide, narrow = (to_text(summary, plain(columns)).split() for columns in (400, width))
    assert {word for word in wide if "─" not in word} <= set(narrow)
    numbers = [Counter(word for word in words if "." in word) for words in (wide, narrow)]
    assert numbers[0] == numbers[1]


def test_columns_that_have_no_room_follow_in_another_table(summary: dict[str, Any]) -> None:
    text = to_text(summary, plain(80))
    assert re.search(r"\n observation/image_primary +steps +encoded +uint8 +128 128 3", text)
    dims = text[text.index("feature                  dims") : text.index("Tasks")]
    assert re.search(r"\n action +dx dy dz drx dry drz gripper\n observation/proprio ", dims)
    assert "reward" not in dims
    assert re.search(r"\n joint_state\n   joint_0_rad +0\.0628 ", text)


def test_a_long_key_and_wide_numbers_are_not_broken_either(summary: dict[str, Any]) -> None:
    key = "observation/" + "_".join(["position_of_the_left_wrist"] * 2)
    wide = {"mean": -1.5e-30, "std": -2.5e-30, "min": -3.5e8, "p01": -4.5e8, "max": -5.5e8}
    dims = [dim | wide for dim in summary["statistics"]["action"]]
    features = [summary["features"][0] | {"key": key}, *summary["features"][1:]]
    text = to_text(summary | {"features": features, "statistics": {key: dims}}, plain(80))
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(rf"\n {key} +episodes\n", text)
    assert re.search(rf"\n {key} +7\n", text)
    assert re.search(r"\n   gripper +-1\.500e-30 +-2\.500e-30\n", text)


@pytest.mark.parametrize("width", [30, 40])
def test_very_narrow_tables_are_folded(summary: dict[str, Any], width: int) -> None:
    text = to_text(summary, plain(width))
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    if width == 40:
        assert {feature["key"] for feature in summary["features"]} <= set(text.split())


def test_steps_that_were_left_out_have_a_column_of_their_own(summary: dict[str, Any]) -> None:
    assert "no-ops removed" not in to_text(summary, plain())
    tasks = [summary["tasks"][0] | {"removed_steps": 7}, *summary["tasks"][1:]]
    text = to_text(summary | {"tasks": tasks}, plain(200))
    assert re.search(rf"no-ops removed +instruction\n.*\n +0 +2 +208 +7 +{BOWL}", text)


def test_several_grippers_rotations_and_target_poses_are_listed(summary: dict[str, Any]) -> None:
    conventions = dataclasses.replace(
        summary["conventions"],
        gripper_dim=None,
        gripper_open=1.0,
        gripper_close=0.0,
        grippers=(Gripper(0), Gripper(6, 0.08, 0.0, "continuous")),
        rotations=(PoseRotation("observation/proprio", 3, "axis_angle"),),
        target_poses=True,
    )
    text = to_text(summary | {"conventions": conventions}, plain(200))
    grippers = "0 (dx) binary, open 1, close 0; 6 (gripper) continuous, open 0.08, close 0"
    assert f"gripper             {grippers}\n" in text
    assert re.search(r"rotations +observation/proprio 3:6 axis_angle\n", text)
    assert re.search(r"action +target poses\n", text)


def test_dataset_without_a_gripper_says_so(summary: dict[str, Any]) -> None:
    conventions = dataclasses.replace(summary["conventions"], gripper_dim=None)
    text = to_text(summary | {"conventions": conventions}, plain())
    assert re.search(r"gripper +none\n", text)
    assert " open " not in text


def test_goal_images_alone_leave_no_blank_instruction(summary: dict[str, Any]) -> None:
    text = to_text(summary | {"tasks": [summary["tasks"][0] | {"text": ""}]}, plain())
    assert re.search(r"\d +none$", text, re.MULTILINE)
    assert " steps, 1 task," in text


def test_a_number_that_is_shown_as_zero_has_no_sign(summary: dict[str, Any]) -> None:
    key, dims = next(iter(summary["statistics"].items()))
    tiny = dims[0] | {"mean": -1e-9, "min": -1.0}
    text = to_text(summary | {"statistics": {key: [tiny, *dims[1:]]}}, plain())
    assert "-0.0000" not in text
    assert "-1.0000" in text


def test_names_of_a_source_cannot_control_the_terminal(summary: dict[str, Any]) -> None:
    escape = "cup\x1b[2J\n"
    tasks = [summary["tasks"][0] | {"text": escape}]
    odd = {"name": escape, "tasks": tasks, "provenance": {escape: escape}, "path": escape}
    statistics = {escape: summary["statistics"]["reward"]}
    text = to_text(summary | odd | {"statistics": statistics}, plain())
    assert "\x1b" not in text
    assert text.count(r"cup\x1b[2J\n") == 6


def test_of_too_many_tasks_those_with_the_most_episodes_are_listed(summary: dict[str, Any]) -> None:
    tasks = [
        {"index": n, "text": f"task {n}", "episodes": n // 2, "steps": n, "removed_steps": 0}
        for n in range(100_000)
    ]
    text = to_text(dict(summary, tasks=tasks), plain())
    table = text[text.index("Tasks, by their number of episodes") : text.index("Episode lengths")]
    lines = [line.split() for line in table.splitlines()[3:]]
    assert lines[0] == ["99,998", "49,999", "99,998", "task", "99998"]
    assert lines[1] == ["99,999", "49,999", "99,999", "task", "99999"]
    assert len(lines) == 102
    assert lines[100] == ["and", "99,900", "more", "with", "--json"]


def test_the_list_of_an_edit_is_cut_with_a_count(summary: dict[str, Any]) -> None:
    numbers = ",".join(map(str, range(0, 1_000_000, 2)))
    note = f'2026-11-30 excluded_episodes: "none" -> "{numbers}"'
    provenance = {**summary["provenance"], "edit_1": note}
    text = to_text(dict(summary, provenance=provenance), plain())
    assert len(text) < 10_000
    words = "".join(text.split())
    assert '2026-11-30excluded_episodes:"none"->"0,2,4,' in words
    assert f"...({len(note):,}charactersinall)" in words
