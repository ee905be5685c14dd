import pathlib

import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from train.evaluate.libero.suites import (
    MAX_STEPS,
    Task,
    Trial,
    places_in,
    read_tasks,
    select_tasks,
    to_text,
)


def test_tasks_come_in_the_benchmarks_order(root: pathlib.Path) -> None:
    assert read_tasks(root, "libero_spatial") == (
        Task("libero_spatial", 0, "pick_up_the_bowl"),
        Task("libero_spatial", 1, "push_the_plate"),
    )


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("pick_up_the_bowl", "pick up the bowl"),
        ("KITCHEN_SCENE3_turn_on_the_stove", "turn on the stove"),
        ("LIVING_ROOM_SCENE10_close_the_DRAWER", "close the DRAWER"),
    ],
)
def test_the_instruction_is_that_of_the_published_sets(name: str, instruction: str) -> None:
    assert Task("libero_10", 0, name).instruction == instruction


def test_the_limits_are_those_of_the_published_evaluations() -> None:
    assert MAX_STEPS == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }
    assert Task("libero_goal", 0, "x").max_steps == 300


def test_a_task_knows_its_files(root: pathlib.Path) -> None:
    task = read_tasks(root, "libero_spatial")[0]
    assert task.scene_path(root) == root / "bddl_files/libero_spatial/pick_up_the_bowl.bddl"
    assert np.array_equal(task.init_states(root), np.arange(12.0).reshape(3, 4))
    assert str(Trial(task, 7)) == "libero_spatial task 0, initial state 7"


def test_tasks_are_selected_by_index_in_the_given_order(root: pathlib.Path) -> None:
    assert [task.index for task in select_tasks(root, "libero_10", (1, 0))] == [1, 0]
    assert [task.index for task in select_tasks(root, "libero_10")] == [0, 1]


def test_what_is_not_there_is_named(root: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"suite: .*libero_spatial, .*found libero_spacial"):
        read_tasks(root, "libero_spacial")
    with pytest.raises(UserError, match=r"tasks of libero_10: .*from 0 to 1; found 2, 7\."):
        select_tasks(root, "libero_10", (2, 0, 7))


@pytest.mark.parametrize("text", [None, "libero_task_map = ", "x = 1", "libero_task_map = f()"])
def test_a_package_without_its_tasks_is_to_be_installed_again(
    root: pathlib.Path, text: str | None
) -> None:
    path = root / "benchmark" / "libero_suite_task_map.py"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=r"task_map\.py: .*LIBERO's list of tasks.*make libero"):
        read_tasks(root, "libero_spatial")


def test_trials_are_named_and_found_again() -> None:
    first, second = Task("libero_spatial", 0, "lift_it"), Task("libero_object", 12, "push_it")
    trials = [Trial(first, 3), Trial(second, 40), Trial(first, 11)]
    text = to_text(trials)
    assert text == "libero_spatial task 0: 3 11; libero_object task 12: 40"
    assert places_in(text) == {
        ("libero_spatial", 0, 3),
        ("libero_spatial", 0, 11),
        ("libero_object", 12, 40),
    }
    for other in ("", "none", "libero_spatial task 0:", text + "; and others"):
        assert places_in(other) is None
