import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from converters.mapping.mapping_registry import registered
from converters.operations.operations import computed
from pipeline.data.conventions import Conventions, Gripper, standardize_gripper
from pipeline.errors import UserError
from train.evaluate.libero.simulator_conventions import (
    axis_angle,
    check_conventions,
    command_to_stored,
    frame_to_image,
    from_command,
    stored_to_command,
    target_to_action,
    to_command,
)

PUBLISHED = registered("libero").conventions
POSES = registered("libero_poses")
OTHER_SIGN = dataclasses.replace(PUBLISHED, gripper_open=1.0, gripper_close=0.0)

states = arrays(
    # Angles up to 2 pi, as published states have them, about any axis.
    np.float32,
    (3, 8),
    elements=st.floats(-3.5, 3.5, width=32),
)
arms = arrays(np.float32, (3, 6), elements=st.floats(-1, 1, width=32))
grippers = arrays(np.float32, (3, 1), elements=st.sampled_from([0.0, 1.0]))


def test_1_opens_and_0_closes() -> None:
    action = np.zeros((5, 7), np.float32)
    action[:, 6] = [1.0, 0.0, 0.51, 0.5, 1.3]
    assert to_command(action)[:, 6].tolist() == [-1.0, 1.0, -1.0, 1.0, -1.0]


def test_the_gripper_is_what_peers_make_of_it() -> None:
    """2a - 1, then the sign, then times -1; a value of one half has no sign, and closes here."""
    action = np.zeros((4, 7), np.float32)
    action[:, 6] = [0.0, 0.2, 0.8, 1.0]
    assert np.array_equal(to_command(action)[:, 6], -np.sign(2 * action[:, 6] - 1))


def test_the_arm_is_clipped_as_the_controller_would() -> None:
    command = to_command(np.array([1.5, -2.0, 0.25, 0.0, -1.0, 1.0, 1.0], np.float32))
    assert command.tolist() == [1.0, -1.0, 0.25, 0.0, -1.0, 1.0, -1.0]
    assert command.dtype == np.float64


@given(arms, grippers)
def test_a_command_and_back_is_the_action(arm: np.ndarray, gripper: np.ndarray) -> None:
    action = np.concatenate([arm, gripper], axis=1)
    before = action.copy()
    assert np.array_equal(from_command(to_command(action)), action)
    assert np.array_equal(action, before)


@pytest.mark.parametrize("conventions", [PUBLISHED, OTHER_SIGN])
@given(arm=arms, gripper=grippers)
def test_a_stored_action_and_back_is_the_same(
    conventions: Conventions, arm: np.ndarray, gripper: np.ndarray
) -> None:
    span = conventions.gripper_open - conventions.gripper_close
    stored = np.concatenate([arm, conventions.gripper_close + span * gripper], axis=1)
    command = stored_to_command(stored, conventions)
    assert np.array_equal(command_to_stored(command, conventions), stored)
    standardized = standardize_gripper(stored, conventions)
    assert np.array_equal(to_command(standardized), command)


def test_published_actions_are_the_simulators_commands() -> None:
    stored = np.array([[0.5, 0, 0, 0, 0, 0, -1.0], [0, 0.5, 0, 0, 0, 0, 1.0]], np.float32)
    assert np.array_equal(stored_to_command(stored, PUBLISHED), stored)


@pytest.mark.parametrize(
    "action",
    [
        np.zeros(8),
        np.full(7, np.nan),
        np.array([0, 0, 0, 0, 0, 0, np.inf]),
        np.zeros((2, 0)),
    ],
)
def test_an_action_that_is_none_is_refused(action: np.ndarray) -> None:
    with pytest.raises(
        UserError, match=r"policy's action: expected 7 finite numbers; found float64"
    ):
        to_command(action)


def targets_of(action: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The action that the mapping `libero_poses` makes, (t, 10)."""
    source = {"steps/action": action, "steps/observation/state": state}
    parts = POSES.features[0].parts
    made = [computed(part.operations, source[part.source], source) for part in parts]
    return np.concatenate(made, axis=1)


def test_a_target_is_the_state_moved_and_turned_about_the_worlds_axes() -> None:
    """The arm points down; half of the largest turn about z is 0.25 rad."""
    state = np.array([[0.1, 0.2, 1.0, np.pi, 0, 0, 0.04, -0.04]], np.float32)
    action = np.array([[1, -0.5, 0, 0, 0, 0.5, -1]], np.float32)
    target = targets_of(action, state)
    c, s = np.cos(0.25), np.sin(0.25)
    assert np.allclose(target, [[0.15, 0.175, 1.0, c, s, 0, s, -c, 0, -1]], atol=1e-6)


@given(arms, grippers, states)
def test_a_target_sends_the_controller_where_the_command_did(
    arm: np.ndarray, gripper: np.ndarray, state: np.ndarray
) -> None:
    action = np.concatenate([arm, gripper], axis=1)
    target = targets_of(action, state)
    assert target.dtype == np.float32
    back = target_to_action(target, state, "rot6d")
    # The rounding of metres and of the rotation to float32.
    assert np.abs(back - action).max() < 1e-5


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"action: expected 10 finite numbers; found float64\[7\]"):
        target_to_action(np.zeros(7), np.zeros(8), "rot6d")
    with pytest.raises(UserError, match=r"expected 7 finite numbers; found float64\[7\]"):
        target_to_action(np.full(7, np.nan), np.zeros(8), "axis_angle")


def test_orientations_are_those_that_format_md_names() -> None:
    frame = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    true = frame[::-1]
    by_name: dict[str, Any] = {
        "upright": true,
        "flipped_vertically": true[::-1],
        "rotated_180": true[:, ::-1],
    }
    for name, image in by_name.items():
        conventions = dataclasses.replace(PUBLISHED, image_orientation=name)
        made = frame_to_image(frame, conventions)
        assert np.array_equal(made, image), name
        assert made.flags.c_contiguous
        assert not np.shares_memory(made, frame)
        assert np.array_equal(frame_to_image(made, conventions), frame)


def test_all_that_cannot_be_honoured_is_reported_together() -> None:
    check_conventions(PUBLISHED, "runs/a")
    check_conventions(OTHER_SIGN, "runs/a")
    strange = dataclasses.replace(PUBLISHED, rotation="euler_xyz", control_frequency_hz=10.0)
    with pytest.raises(UserError) as caught:
        check_conventions(strange, "runs/a")
    assert str(caught.value) == (
        "runs/a, conventions: expected what LIBERO's controller takes: rotation = axis_angle, "
        "control_frequency_hz = 20.0; found rotation = euler_xyz, control_frequency_hz = 10.0. "
        "Evaluate a policy of a LIBERO dataset, or correct them with `octograin edit`."
    )
    with pytest.raises(UserError, match="found gripper_dim = None"):
        check_conventions(dataclasses.replace(PUBLISHED, gripper_dim=None), "x")
    check_conventions(POSES.conventions, "x")
    as_axis_angle = dataclasses.replace(PUBLISHED, target_poses=True)
    check_conventions(as_axis_angle, "x")
    nine = dataclasses.replace(as_axis_angle, rotation="rot6d")
    with pytest.raises(UserError, match="gripper_dim = 9; found gripper_dim = 6"):
        check_conventions(nine, "x")
    none = {"gripper_dim": None, "gripper_open": 1.0, "gripper_close": 0.0}
    width = dataclasses.replace(PUBLISHED, **none, grippers=(Gripper(6, kind="continuous"),))
    with pytest.raises(UserError, match=r"gripper_dim = 6; found gripper_dim = 6 \(continuous\)"):
        check_conventions(width, "x")


def test_a_quaternion_becomes_axis_times_angle() -> None:
    half = np.sqrt(0.5)
    assert axis_angle(np.array([0, 0, 0, 1.0])).tolist() == [0, 0, 0]
    assert np.allclose(axis_angle(np.array([0, half, 0, half])), [0, np.pi / 2, 0])
    assert np.allclose(axis_angle(np.array([1.0, 0, 0, 0])), [np.pi, 0, 0])
    # Beyond pi, as published states are: not the short way round.
    assert np.allclose(axis_angle(np.array([half, 0, 0, -half])), [1.5 * np.pi, 0, 0])
    assert np.isfinite(axis_angle(np.array([0, 0, 0, 1.0000001]))).all()
