"""The conventions of a dataset's values, as data: checked at training and at rollout."""

import dataclasses
import math
from typing import Literal

import numpy as np

from pipeline.errors import UserError

# The middle of the normalised gripper.
_OPEN_THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True)
class Conventions:
    """Signs, frames and rates that cannot be read off the arrays."""

    image_orientation: Literal["upright", "rotated_180", "flipped_vertically"]
    """Orientation of the stored pixels relative to the camera's true image. Published LIBERO
    datasets hold the simulator's vertically flipped frames rotated by 180 degrees: they are called
    `rotated_180`, and show a world mirrored left to right."""
    rotation: Literal["axis_angle", "euler_xyz", "quaternion_xyzw", "none"]
    """Representation of the action's rotation."""
    control_frequency_hz: float
    """Actions per second."""
    no_ops: Literal["kept", "removed_at_source", "removed_at_conversion"]
    """Whether steps without motion were kept, and where they were removed."""
    gripper_dim: int | None = None
    """Index of the gripper in the action; None where there is none. Not normalised."""
    gripper_open: float = 1.0
    """Value of the stored action that opens the gripper."""
    gripper_close: float = 0.0
    """Value of the stored action that closes it."""
    no_op_threshold: float | None = None
    """Norm of an action without its gripper below which it counts as no motion; only for
    `removed_at_conversion`."""

    def __post_init__(self) -> None:
        """Checks ranges, and that the gripper's two commands differ."""
        if not 0 < self.control_frequency_hz < math.inf:
            raise ValueError(
                f"control_frequency_hz must be above 0 and finite, not {self.control_frequency_hz}"
            )
        if (self.no_ops == "removed_at_conversion") != (self.no_op_threshold is not None):
            raise ValueError(
                "no_op_threshold belongs to no_ops = removed_at_conversion, "
                f"not to {self.no_ops} with {self.no_op_threshold}"
            )
        if self.no_op_threshold is not None and not 0 < self.no_op_threshold < math.inf:
            raise ValueError(
                f"no_op_threshold must be above 0 and finite, not {self.no_op_threshold}"
            )
        if not (math.isfinite(self.gripper_open) and math.isfinite(self.gripper_close)):
            raise ValueError(
                f"gripper_open {self.gripper_open} and gripper_close {self.gripper_close} "
                "must be finite"
            )
        if self.gripper_dim is not None and self.gripper_dim < 0:
            raise ValueError(f"gripper_dim must be at least 0, not {self.gripper_dim}")
        if self.gripper_dim is not None and self.gripper_open == self.gripper_close:
            raise ValueError(
                f"gripper_open and gripper_close are both {self.gripper_open}: "
                "the two commands must differ"
            )

    def normalized_dims(self, action_dim: int) -> np.ndarray:
        """Bool (a): True where the action is normalised, False for the gripper."""
        mask = np.ones(action_dim, bool)
        if self.gripper_dim is not None:
            mask[self.gripper_dim] = False
        return mask


def is_no_op(action: np.ndarray, conventions: Conventions) -> np.ndarray:
    """Finds the steps of an episode without motion, for `removed_at_conversion`; bool (t).

    A step is a no-op if the norm of its action without the gripper is below `no_op_threshold` and
    its gripper command equals that of the last kept step. The last step of the episode is kept
    because it carries `is_last` and the reward, unless all steps are no-ops.

    Args:
      action: (t, a), as stored.
      conventions: Conventions with the gripper's dimension and the threshold.

    Source: the filter that made the `_no_noops` sets of OpenVLA, which removes the last step too.
    """
    is_arm = conventions.normalized_dims(action.shape[1])
    arm = action[:, is_arm]
    # Half precision overflows in the squares of a norm.
    motion = np.linalg.norm(arm.astype(np.promote_types(arm.dtype, np.float32)), axis=1)
    commands = action[:, ~is_arm].tolist()
    removed = np.zeros(len(action), bool)
    last = None
    for t, command in enumerate(commands):
        # A command that changes is no no-op, even if the arm rests: it opens or closes the gripper.
        removed[t] = motion[t] < conventions.no_op_threshold and last in (None, command)
        # Compared with the last kept step: a slow change would otherwise vanish step by step.
        last = last if removed[t] else command
    if not removed.all():
        # The last step carries `is_last` and the reward.
        removed[-1] = False
    return removed


def standardize_gripper(action: np.ndarray, conventions: Conventions) -> np.ndarray:
    """The action with its gripper as 1 = open, 0 = close; float32 (..., a), a new array.

    Source: Octo's standardisation of LIBERO (clip to [0, 1], then invert). Here the stored range
    is mapped linearly and then clipped: the same for commands that are fully open or closed.
    """
    if conventions.gripper_dim is None:
        return action
    span = conventions.gripper_open - conventions.gripper_close
    # Linear for any pair of commands, also where open is the smaller one.
    gripper = (action[..., conventions.gripper_dim] - conventions.gripper_close) / span
    standardized = action.copy()
    standardized[..., conventions.gripper_dim] = np.clip(gripper, 0.0, 1.0)
    return standardized


def restore_gripper(action: np.ndarray, conventions: Conventions) -> np.ndarray:
    """Inverts it at rollout: values above 0.5 become the open command, others the close command.

    Raises:
      UserError: The actions have no gripper.
    """
    if conventions.gripper_dim is None:
        return action
    if np.shape(action)[-1:] <= (conventions.gripper_dim,):
        raise UserError(
            where="restore_gripper, actions",
            expected=f"a gripper at index {conventions.gripper_dim} of the last axis",
            found=f"the shape {np.shape(action)}",
            remedy="Give whole actions, with any axes before the last.",
        )
    # A policy's gripper is continuous; the robot knows two commands.
    is_open = action[..., conventions.gripper_dim] > _OPEN_THRESHOLD
    restored = action.copy()
    restored[..., conventions.gripper_dim] = np.where(
        is_open, conventions.gripper_open, conventions.gripper_close
    )
    return restored
