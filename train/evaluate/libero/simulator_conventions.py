"""Converts between a dataset's values and the simulator's: actions, images, the state.

A policy's action has the dataset's units, with 1 = open for the gripper (`standardize_gripper`). A
**command** is what the simulator's controller takes: seven numbers in [-1, 1], the gripper -1 to
open and +1 to close. A **frame** is what the simulator renders: upside down.
"""

from typing import assert_never

import numpy as np

from pipeline.data.conventions import Conventions, restore_gripper, standardize_gripper
from pipeline.errors import UserError

ACTION_DIM = 7
"""Translation, 1 is 0.05 m; rotation as axis times angle, 1 is 0.5 rad; gripper."""
GRIPPER_DIM = 6
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
    held = {field: getattr(conventions, field) for field in _HONOURED}
    if conventions.grippers:  # several, or a continuous one
        held["gripper_dim"] = ", ".join(f"{g.dim} ({g.kind})" for g in conventions.grippers)
    misfits = {field: value for field, value in held.items() if value != _HONOURED[field]}
    if misfits:
        raise UserError(
            where=f"{where}, conventions",
            expected="what LIBERO's controller takes: "
            + ", ".join(f"{field} = {_HONOURED[field]}" for field in misfits),
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
    if action.shape[-1:] != (ACTION_DIM,) or not np.isfinite(action).all():
        raise UserError(
            where="the policy's action",
            expected=f"{ACTION_DIM} finite numbers",
            found=f"{action.dtype}{list(action.shape)}, such as {action.reshape(-1)[:8].tolist()}",
            remedy="Check the policy and its statistics: a finite one trained on LIBERO fits.",
        )
    # float64, which the controller computes in.
    command = np.clip(action.astype(np.float64), -1.0, 1.0)
    is_open = action[..., GRIPPER_DIM] > _OPEN_THRESHOLD
    # The gripper has two commands; a policy's value lies between.
    command[..., GRIPPER_DIM] = np.where(is_open, OPEN, CLOSE)
    return command


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
