import dataclasses

import numpy as np
import pytest

from pipeline.data.conventions import Conventions, Gripper, restore_gripper
from pipeline.errors import UserError
from pipeline.loading.transforms.gripper_rules import (
    ContinuousGripper,
    GripperHysteresis,
    GripperThreshold,
)
from train.policy.gripper_commands import GripperCommands

DIMS = ("x_m", "left", "y_m", "right_m")
HANDS = Conventions(
    "upright",
    "none",
    50.0,
    "kept",
    grippers=(Gripper(1, -1.0, 1.0), Gripper(3, 0.08, 0.02, "continuous")),
)
ONE = dataclasses.replace(HANDS, grippers=(), gripper_dim=3, gripper_open=0.0, gripper_close=1.0)
NONE = dataclasses.replace(HANDS, grippers=())


def actions(left: list[float], right: list[float]) -> np.ndarray:
    """float32 (n 4) with these openings, and something else beside them."""
    rows = np.random.default_rng(0).normal(size=(len(left), 4)).astype(np.float32)
    rows[:, 1], rows[:, 3] = left, right
    return rows


@pytest.mark.parametrize("conventions", [HANDS, ONE, NONE])
def test_without_rules_the_commands_are_bitwise_those_of_restore_gripper(
    conventions: Conventions,
) -> None:
    given = np.random.default_rng(1).normal(0.5, 0.5, (500, 4)).astype(np.float32)
    given[:4] = [[0.5] * 4, [0.0] * 4, [1.0] * 4, [-0.0] * 4]
    grippers = GripperCommands(conventions, DIMS)
    found = np.concatenate([grippers(part) for part in np.array_split(given, 7)])
    expected = restore_gripper(given, conventions)
    assert found.dtype == expected.dtype == np.float32
    assert found.tobytes() == expected.tobytes()


def test_each_gripper_has_its_own_rule() -> None:
    rules = (GripperHysteresis("right_m", 0.7, 0.3), GripperThreshold("left", 0.2))
    grippers = GripperCommands(HANDS, DIMS, rules)
    given = actions([0.1, 0.3, 0.6], [0.8, 0.4, 0.2])
    kept = given.copy()
    commands = grippers(given)
    np.testing.assert_array_equal(given, kept)
    np.testing.assert_array_equal(commands[:, 1], [1, -1, -1])
    np.testing.assert_array_equal(commands[:, 3], np.float32([0.08, 0.08, 0.02]))
    np.testing.assert_array_equal(commands[:, [0, 2]], given[:, [0, 2]])


def test_a_binary_gripper_may_have_any_opening() -> None:
    grippers = GripperCommands(HANDS, DIMS, (ContinuousGripper("left"),))
    commands = grippers(actions([0.0, 0.25, 1.5], [0, 0, 0]))
    np.testing.assert_allclose(commands[:, 1], [1, 0.5, -1])


def test_the_last_command_stays_from_one_call_to_the_next_and_no_longer() -> None:
    rules = (GripperHysteresis("left", 0.7, 0.3),)
    grippers = GripperCommands(HANDS, DIMS, rules)
    np.testing.assert_array_equal(grippers.decide(actions([0.9], [0]))[:, 1], [1])
    np.testing.assert_array_equal(grippers.decide(actions([0.4, 0.1], [0, 0]))[:, 1], [1, 0])
    np.testing.assert_array_equal(grippers.decide(actions([0.6], [0]))[:, 1], [0])
    # Another environment or episode begins without a command.
    another = GripperCommands(HANDS, DIMS, rules)
    np.testing.assert_array_equal(another.decide(actions([0.6], [0]))[:, 1], [1])


def test_rules_and_actions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"policy, data.gripper_rules: .*; found middle"):
        GripperCommands(HANDS, DIMS, (GripperThreshold("middle"),))
    with pytest.raises(UserError, match=r"a gripper at index 3 .*; found the shape \(2, 3\)"):
        GripperCommands(HANDS, DIMS)(np.zeros((2, 3), np.float32))
