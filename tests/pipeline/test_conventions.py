import dataclasses

import numpy as np
import pytest

from pipeline.conventions import Conventions, restore_gripper, standardize_gripper

LIBERO = Conventions("rotated_180", "axis_angle", 20.0, "kept", 6, -1.0, 1.0)
UNIT = dataclasses.replace(LIBERO, gripper_open=1.0, gripper_close=0.0)
NO_GRIPPER = dataclasses.replace(LIBERO, gripper_dim=None)


def actions(*gripper: float) -> np.ndarray:
    """float32 (t 7) with the given last dimension."""
    rows = np.tile(np.arange(7, dtype=np.float32), (len(gripper), 1))
    rows[:, 6] = gripper
    return rows


@pytest.mark.parametrize(
    ("conventions", "stored", "standard"),
    [
        (LIBERO, [-1, 1, 0, -3, 3], [1, 0, 0.5, 1, 0]),
        (UNIT, [1, 0, 0.25, 2, -1], [1, 0, 0.25, 1, 0]),
    ],
)
def test_gripper_becomes_one_for_open(
    conventions: Conventions, stored: list, standard: list
) -> None:
    np.testing.assert_array_equal(
        standardize_gripper(actions(*stored), conventions), actions(*standard)
    )


@pytest.mark.parametrize("conventions", [LIBERO, UNIT, NO_GRIPPER])
def test_restoring_undoes_standardizing(conventions: Conventions) -> None:
    stored = actions(conventions.gripper_open, conventions.gripper_close)
    standard = standardize_gripper(stored, conventions)
    assert standard.dtype == np.float32
    np.testing.assert_array_equal(restore_gripper(standard, conventions), stored)


def test_restored_command_is_one_of_two() -> None:
    restored = restore_gripper(actions(0.0, 0.49, 0.51, 1.0), LIBERO)
    np.testing.assert_array_equal(restored[:, 6], [1, 1, -1, -1])


def test_inputs_are_not_modified() -> None:
    stored = actions(-1, 1)
    standardize_gripper(stored, LIBERO)
    restore_gripper(stored, LIBERO)
    np.testing.assert_array_equal(stored, actions(-1, 1))


def test_all_but_the_gripper_is_normalised() -> None:
    np.testing.assert_array_equal(LIBERO.normalized_dims(7), [True] * 6 + [False])
    np.testing.assert_array_equal(NO_GRIPPER.normalized_dims(3), [True] * 3)


def test_two_equal_commands_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gripper_open and gripper_close are both 1.0"):
        dataclasses.replace(LIBERO, gripper_open=1.0)
