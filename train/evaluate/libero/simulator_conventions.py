"""Converts between a dataset's values and the simulator's: actions, images, the state.

A policy's action has the dataset's units, with 1 = open for the gripper (`standardize_gripper`). A
**command** is what the simulator's controller takes: seven numbers in [-1, 1], the gripper -1 to
open and +1 to close. A **target** is a pose to reach, the action of a dataset with `target_poses`.
A **frame** is what the simulator renders: upside down.
"""

from typing import assert_never

import numpy as np

from pipeline.data.conventions import Conventions, restore_gripper, standardize_gripper
from pipeline.data.rotations import (
    Representation,
    convert_rotation,
    num_values,
    relative_rotation,
)
from pipeline.errors import UserError

ACTION_DIM = 7
"""Translation, 1 is 0.05 m; rotation as axis times angle, 1 is 0.5 rad; gripper."""
_UNIT_M, _UNIT_RAD = 0.05, 0.5
GRIPPER_DIM = 6
_POSITION_DIM = 3
CONTROL_FREQUENCY_HZ = 20.0
"""The benchmark's rate, to which the controller's gains and the scale of an action are tuned."""

OPEN, CLOSE = -1.0, 1.0
"""The two commands to the gripper; it holds still at 0."""

_OPEN_THRESHOLD = 0.5
_HONOURED = {
    "rotation": "axis_angle",
    "control_frequency_hz": CONTROL_FREQUENCY_HZ,
    "gripper_dim": GRIPPER_DIM,
}
"""The only supported value, by field of `Conventions`. Other fields may have any value."""


def check_conventions(conventions: Conventions, where: str) -> None:
    """Rejects conventions that the simulator does not support.

    Args:
      conventions: Conventions of the dataset or checkpoint.
      where: Its place, for the error.

    Raises:
      UserError: All fields that do not fit, together.
    """
    honoured = dict(_HONOURED)
    if conventions.target_poses and conventions.rotation != "none":
        # Poses in any representation become commands.
        honoured["rotation"] = conventions.rotation
        honoured["gripper_dim"] = _POSITION_DIM + num_values(conventions.rotation)
    held = {field: getattr(conventions, field) for field in honoured}
    if conventions.grippers:  # several, or a continuous one
        held["gripper_dim"] = ", ".join(f"{g.dim} ({g.kind})" for g in conventions.grippers)
    misfits = {field: value for field, value in held.items() if value != honoured[field]}
    if misfits:
        raise UserError(
            where=f"{where}, conventions",
            expected="what LIBERO's controller takes: "
            + ", ".join(f"{field} = {honoured[field]}" for field in misfits),
            found=", ".join(f"{field} = {value}" for field, value in misfits.items()),
            remedy="Evaluate a policy of a LIBERO dataset, or correct them with `octograin edit`.",
        )


def to_command(action: np.ndarray) -> np.ndarray:
    """The command of a policy's action.

    Args:
      action: (..., 7) in the dataset's units, after `unnormalize`; the gripper is 1 = open, 0 =
        close, and anything between goes to the nearer one.

    Returns:
      float64 (..., 7) in [-1, 1], a new array. The arm is clipped there, as the controller would.

    Raises:
      UserError: Another width, or values that are not finite: a policy that has diverged.

    Source: OpenVLA's and Octo's rollouts (2a - 1, then its sign, then times -1).
    """
    _check_action(action, ACTION_DIM)
    # float64, which the controller computes in.
    command = np.clip(action.astype(np.float64), -1.0, 1.0)
    is_open = action[..., GRIPPER_DIM] > _OPEN_THRESHOLD
    # The gripper has two commands; a policy's value lies between.
    command[..., GRIPPER_DIM] = np.where(is_open, OPEN, CLOSE)
    return command


def target_to_action(target: np.ndarray, state: np.ndarray, rotation: Representation) -> np.ndarray:
    """The action that sends the controller to a pose.

    The controller adds a command to the pose that it has at that moment, which is measured 2 ms
    after the state.

    Args:
      target: (..., 4 + n): position in m, rotation, gripper.
      state: (..., 8) as the simulator observes it; the first six are the pose.
      rotation: Representation of the target's rotation, of n numbers.

    Returns:
      float64 (..., 7) as `to_command` takes it, not clipped.

    Raises:
      UserError: Another width, or values that are not finite.

    Source: robosuite 1.4.0, `set_goal_position` and `set_goal_orientation`, inverted.
    """
    _check_action(target, _POSITION_DIM + num_values(rotation) + 1)
    wanted, now = target.astype(np.float64), state.astype(np.float64)
    moved = wanted[..., :_POSITION_DIM] - now[..., :_POSITION_DIM]
    turn = convert_rotation(wanted[..., _POSITION_DIM:-1], rotation, "axis_angle")
    # About the axes of the world.
    turned = relative_rotation(now[..., _POSITION_DIM:GRIPPER_DIM], turn, "axis_angle", "base")
    return np.concatenate([moved / _UNIT_M, turned / _UNIT_RAD, wanted[..., -1:]], axis=-1)


def _check_action(action: np.ndarray, num_values: int) -> None:
    if action.shape[-1:] != (num_values,) or not np.isfinite(action).all():
        raise UserError(
            where="the policy's action",
            expected=f"{num_values} finite numbers",
            found=f"{action.dtype}{list(action.shape)}, such as {action.reshape(-1)[:8].tolist()}",
            remedy="Check the policy and its statistics: a finite one trained on LIBERO fits.",
        )


def from_command(command: np.ndarray) -> np.ndarray:
    """The inverse of `to_command`: float32 (..., 7) with 1 = open, 0 = close.

    A gripper that is held still (0) counts as closing, as `to_command` would have it.
    """
    action = command.astype(np.float32)
    action[..., GRIPPER_DIM] = np.where(command[..., GRIPPER_DIM] < 0, 1.0, 0.0)
    return action


def stored_to_command(stored: np.ndarray, conventions: Conventions) -> np.ndarray:
    """The command of an action as a dataset stores it, to replay it: float64 (..., 7)."""
    return to_command(standardize_gripper(stored, conventions))


def command_to_stored(command: np.ndarray, conventions: Conventions) -> np.ndarray:
    """The inverse of `stored_to_command`, to record it: float32 (..., 7)."""
    return restore_gripper(from_command(command), conventions)


def frame_to_image(frame: np.ndarray, conventions: Conventions) -> np.ndarray:
    """A rendered frame (h, w, 3) as the dataset's images lie; a contiguous copy.

    The inverse of each orientation is the same again.
    """
    match conventions.image_orientation:
        case "flipped_vertically":
            # The simulator's own orientation.
            image = frame
        case "upright":
            # Rows reversed, since a frame is upside down.
            image = frame[::-1]
        case "rotated_180":
            image = frame[::-1, ::-1]
        case _:
            assert_never(conventions.image_orientation)
    # A contiguous copy: reversed views would be slow to decode and to send.
    return np.array(image, order="C")


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """float64 (3): axis times angle of a quaternion (x, y, z, w), the angle in [0, 2 pi].

    The angle is not brought below pi: published states have w's sign as the simulator gives it.

    Source: robosuite's `quat2axisangle`, with which published LIBERO states were made.
    """
    # Rounding may leave the range of the arc cosine.
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    # No rotation has no axis.
    if sine == 0.0:
        return np.zeros(3)
    return np.asarray(quaternion[:3], np.float64) * (2.0 * np.arccos(w) / sine)
