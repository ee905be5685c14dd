import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from pipeline.data.conventions import (
    ROTATION_DIMS,
    Conventions,
    Gripper,
    PoseRotation,
    Rotation,
    grippers_of,
    is_no_op,
    restore_gripper,
    standardize_gripper,
)
from pipeline.data.rotations import Representation, num_values
from pipeline.errors import UserError
from pipeline.files import from_json_text, to_json_values

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


# --- several grippers

HANDS = (Gripper(6, 1.0, -1.0), Gripper(13, 0.08, 0.0, "continuous"))
TWO_ARMS = Conventions("upright", "euler_xyz", 50.0, "kept", grippers=HANDS)


def test_two_grippers_are_standardised_and_restored_each_by_its_kind() -> None:
    stored = np.tile(np.arange(14, dtype=np.float32), (4, 1))
    stored[:, 6], stored[:, 13] = [1, -1, 1, -1], [0.08, 0.06, 0.0, -0.01]
    standard = standardize_gripper(stored, TWO_ARMS)
    assert standard.dtype == np.float32
    np.testing.assert_array_equal(standard[:, 6], [1, 0, 1, 0])
    np.testing.assert_allclose(standard[:, 13], [1, 0.75, 0, 0], rtol=1e-6)
    others = TWO_ARMS.normalized_dims(14)
    assert np.flatnonzero(~others).tolist() == [6, 13]
    np.testing.assert_array_equal(standard[:, others], stored[:, others])
    standard[:, 6], standard[:, 13] = [0.9, 0.4, 0.6, 0.5], [1, 0.75, -0.02, 1.5]
    restored = restore_gripper(standard, TWO_ARMS)
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored[:, 6], [1, -1, 1, -1])
    np.testing.assert_allclose(restored[:, 13], [0.08, 0.06, 0.0, 0.08], rtol=1e-6)


@given(
    opens=st.floats(-255, 255, width=32),
    closes=st.floats(-255, 255, width=32),
    part=st.floats(0, 1, width=32),
)
def test_a_continuous_gripper_survives_both_ways(opens: float, closes: float, part: float) -> None:
    assume(abs(opens - closes) > 1e-3)
    gripper = Gripper(0, opens, closes, "continuous")
    ends = np.array([opens, closes], np.float32)
    # Bitwise at both ends, whatever they are.
    np.testing.assert_array_equal(gripper.restore(gripper.standardize(ends)), ends)
    stored = np.float32(closes + part * (opens - closes))
    back = gripper.restore(gripper.standardize(np.array([stored], np.float32)))
    np.testing.assert_allclose(back, [stored], atol=1e-6 * max(abs(opens), abs(closes)))


def test_an_action_without_the_second_gripper_is_reported() -> None:
    with pytest.raises(UserError, match=r"a gripper at index 13 .*; found the shape \(4, 7\)"):
        restore_gripper(np.zeros((4, 7), np.float32), TWO_ARMS)


def test_a_step_in_which_one_of_two_grippers_moves_is_kept() -> None:
    action = np.zeros((5, 14), np.float32)
    action[0, 0] = 1  # the arm moves; then nothing, the second gripper, nothing
    action[2:, 13] = 0.02
    still = dataclasses.replace(TWO_ARMS, no_ops="removed_at_conversion", no_op_threshold=0.5)
    np.testing.assert_array_equal(is_no_op(action, still), [False, True, False, True, False])


def test_one_binary_gripper_has_one_form() -> None:
    listed = Conventions(
        "rotated_180", "axis_angle", 20.0, "kept", grippers=(Gripper(6, -1.0, 1.0),)
    )
    assert listed == LIBERO
    assert to_json_values(listed) == to_json_values(LIBERO)
    assert not {"grippers", "rotations"} & to_json_values(LIBERO).keys()
    assert LIBERO.all_grippers == (Gripper(6, -1.0, 1.0),)
    assert NO_GRIPPER.all_grippers == ()
    assert dataclasses.replace(listed, gripper_open=0.0).all_grippers == (Gripper(6, 0.0, 1.0),)


def test_grippers_are_read_from_json_of_both_forms() -> None:
    for conventions in (LIBERO, NO_GRIPPER, TWO_ARMS):
        values = json.loads(json.dumps(to_json_values(conventions)))
        assert grippers_of(values) == conventions.all_grippers
        text = json.dumps(values)
        assert from_json_text(Conventions, text, where="x", remedy="y") == conventions
    # Descriptions of the first releases.
    assert grippers_of({"gripper_dim": 1}) == (Gripper(1),)
    assert grippers_of({}) == ()


POSES = (PoseRotation("action", 3, "euler_xyz"), PoseRotation("action", 10, "euler_xyz"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"gripper_dim": 6},
            "give either grippers or gripper_dim, gripper_open and gripper_close, not both: found "
            "2 grippers and gripper_dim 6, gripper_open 1.0, gripper_close 0.0",
        ),
        (
            {"gripper_open": -1.0},
            "not both: found 2 grippers and gripper_dim None, gripper_open -1",
        ),
        ({"grippers": (Gripper(6), Gripper(6))}, r"must have different dims, not \[6, 6\]"),
        (
            {"rotations": (*POSES, POSES[0])},
            "must not overlap: action 3:6 euler_xyz and action 3:6",
        ),
        (
            {"rotations": (PoseRotation("p", 3, "rot6d"), PoseRotation("p", 8, "axis_angle"))},
            "must not overlap: p 3:9 rot6d and p 8:11 axis_angle",
        ),
        (
            {"rotations": (PoseRotation("action", 3, "axis_angle"),)},
            "rotation is euler_xyz, but rotations has action 3:6 axis_angle",
        ),
        (
            {"rotations": (PoseRotation("action", 11, "euler_xyz"),)},
            "a gripper is at 13, inside the rotation action 11:14 euler_xyz",
        ),
    ],
)
def test_grippers_and_rotations_that_contradict_themselves_are_refused(
    changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TWO_ARMS, **changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": -1}, "dim must be at least 0, not -1"),
        ({"dim": 0, "open": np.inf}, r"open inf and close 0\.0 must be finite"),
        ({"dim": 0, "close": 1.0}, r"open and close are both 1\.0: the two commands must differ"),
    ],
)
def test_a_gripper_that_cannot_be_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gripper(**values)


def test_a_pose_lies_at_its_dimensions() -> None:
    pose = PoseRotation("observation/proprio", 3, "quaternion_wxyz")
    assert (pose.dims, str(pose)) == (range(3, 7), "observation/proprio 3:7 quaternion_wxyz")
    # Those that the functions of rotations convert.
    assert set(ROTATION_DIMS) == set(get_args(Rotation)) <= set(get_args(Representation))
    assert {name: num_values(name) for name in get_args(Rotation)} == ROTATION_DIMS
    with pytest.raises(ValueError, match="dim must be at least 0, not -3"):
        PoseRotation("action", -3, "axis_angle")


def test_dimensions_that_may_be_of_a_rotation_have_its_representation() -> None:
    names = tuple("abcdefg")
    # Without poses, all of an action but its gripper, and nothing of an observation.
    assert LIBERO.rotation_names("action", names) == dict.fromkeys("abcdef", "axis_angle")
    assert LIBERO.rotation_names("observation/proprio", names) == {}
    joints = dataclasses.replace(LIBERO, rotation="none")
    assert joints.rotation_names("action", names) == {}
    poses = (PoseRotation("action", 3, "axis_angle"), PoseRotation("p", 0, "quaternion_xyzw"))
    known = dataclasses.replace(LIBERO, rotations=poses)
    assert known.rotation_names("action", names) == dict.fromkeys("def", "axis_angle")
    assert known.rotation_names("p", names) == dict.fromkeys("abcd", "quaternion_xyzw")
