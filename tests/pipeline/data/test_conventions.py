import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.conventions import Conventions, is_no_op, restore_gripper, standardize_gripper
from pipeline.errors import UserError

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


# --- steps without motion

STILL = dataclasses.replace(
    LIBERO, no_ops="removed_at_conversion", no_op_threshold=0.5, gripper_dim=1
)
ARM = dataclasses.replace(STILL, gripper_dim=None)


@pytest.mark.parametrize(
    ("arm", "gripper", "removed"),
    [
        ([1, 1, 1], [0, 0, 0], [0, 0, 0]),
        ([1, 0, 1], [0, 0, 0], [0, 1, 0]),
        ([1, 0, 0], [0, 0, 0], [0, 1, 0]),  # the last step stays
        ([0, 0, 1], [0, 0, 0], [1, 1, 0]),
        ([0, 0, 1], [0, 1, 1], [1, 1, 0]),  # no step stays before them: no command to compare
        ([1, 0, 1], [0, 1, 1], [0, 0, 0]),  # the gripper moves
        ([1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0]),
        ([1, 0, 0, 0, 1], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0]),
        ([0, 0, 0], [0, 0, 0], [1, 1, 1]),
        ([0, 0, 0], [0, 1, 0], [1, 1, 1]),
        ([0], [0], [1]),
        ([1], [0], [0]),
        ([1, 0.5, 1], [0, 0, 0], [0, 0, 0]),  # at the threshold
        ([1, 0.499, 1], [0, 0, 0], [0, 1, 0]),
        ([1, -0.5, 1], [0, 0, 0], [0, 0, 0]),
        ([1, -0.499, 1], [0, 0, 0], [0, 1, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_steps_that_move_nothing_are_found(
    arm: list, gripper: list, removed: list, dtype: type
) -> None:
    action = np.array([arm, gripper], dtype).T
    np.testing.assert_array_equal(is_no_op(action, STILL), np.array(removed, bool))


@pytest.mark.parametrize(
    ("arm", "removed"), [([0, 1, 0, 0], [1, 0, 1, 0]), ([0, 0], [1, 1]), ([1, 0], [0, 0])]
)
def test_without_a_gripper_the_whole_action_counts(arm: list, removed: list) -> None:
    action = np.array([arm, np.zeros(len(arm))], np.float32).T
    np.testing.assert_array_equal(is_no_op(action, ARM), np.array(removed, bool))
    action[:, 1] = 1
    assert not is_no_op(action, ARM).any()


def test_the_motion_is_the_norm_over_all_dimensions() -> None:
    action = np.array([[1, 1, 1], [0.3, 0.4, 9], [0.29, 0.4, 9], [1, 1, 9]], np.float32)
    still = dataclasses.replace(STILL, gripper_dim=2)
    action[0, 2] = 9
    np.testing.assert_array_equal(is_no_op(action, still), [False, False, True, False])


def test_a_small_motion_in_half_precision_is_one() -> None:
    # The square of 1.5e-4 is 0 as a float16.
    action = np.array([[1, 0], [1.5e-4, 0], [0, 0], [1, 0]], np.float16)
    fine = dataclasses.replace(STILL, no_op_threshold=1e-4)
    np.testing.assert_array_equal(is_no_op(action, fine), [False, False, True, False])


def reference_no_ops(action: list[list[float]], threshold: float) -> list[bool]:
    """Filters an episode as OpenVLA does, except for the last step."""
    kept: list[list[float]] = []
    removed = []
    for *arm, command in action:
        moves = sum(x * x for x in arm) >= threshold * threshold
        changes = bool(kept) and kept[-1][-1] != command
        removed.append(not (moves or changes))
        if moves or changes:
            kept.append([*arm, command])
    if kept:
        removed[-1] = False
    return removed


@settings(max_examples=200)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(-2, 2), st.integers(-2, 2), st.sampled_from([-1, 0, 1]),
        ),
        min_size=1,
        max_size=12,
    ),
    threshold=st.sampled_from([0.5, 1.0, 1.25, 2.0, 3.0]),
)  # fmt: skip
def test_no_ops_are_those_of_a_loop_over_the_episode(steps: list, threshold: float) -> None:
    filtering = dataclasses.replace(STILL, gripper_dim=2, no_op_threshold=threshold)
    found = is_no_op(np.array(steps, np.float32), filtering)
    assert found.tolist() == reference_no_ops([list(map(float, s)) for s in steps], threshold)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"control_frequency_hz": 0.0},
            r"control_frequency_hz must be above 0 and finite, not 0\.0",
        ),
        (
            {"control_frequency_hz": -1.0},
            r"control_frequency_hz must be above 0 and finite, not -1\.0",
        ),
        ({"gripper_dim": -1}, "gripper_dim must be at least 0, not -1"),
        ({"gripper_close": -1.0}, r"gripper_open and gripper_close are both -1\.0: the two comm"),
        (
            {"no_op_threshold": 0.1},
            r"no_op_threshold belongs to no_ops = removed_at_conversion, not to kept with 0\.1",
        ),
        (
            {"no_ops": "removed_at_source", "no_op_threshold": 0.1},
            r"removed_at_source with 0\.1",
        ),
        ({"no_ops": "removed_at_conversion"}, "not to removed_at_conversion with None"),
    ],
)
def test_conventions_that_contradict_themselves_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LIBERO, **changes)


def test_actions_without_a_gripper_are_reported() -> None:
    with pytest.raises(UserError, match=r"a gripper at index 6 .*; found the shape \(4, 6\)"):
        restore_gripper(np.zeros((4, 6), np.float32), LIBERO)
