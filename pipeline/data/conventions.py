"""The conventions of a dataset's values, as data: checked at training and at rollout."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, assert_never

import numpy as np

from pipeline.added_fields import LATER
from pipeline.data.schema import ACTION
from pipeline.errors import UserError

# The middle of the normalised gripper.
_OPEN_THRESHOLD = 0.5

Rotation = Literal[
    "axis_angle", "euler_xyz", "quaternion_xyzw", "quaternion_wxyz", "rot6d", "rot6d_rows"
]
"""A representation of a rotation; `rot6d` is the matrix's first two columns, `rot6d_rows` its first
two rows."""
ROTATION_DIMS: Mapping[Rotation, int] = MappingProxyType(
    {
        "axis_angle": 3,
        "euler_xyz": 3,
        "quaternion_xyzw": 4,
        "quaternion_wxyz": 4,
        "rot6d": 6,
        "rot6d_rows": 6,
    }
)
"""How many numbers each representation has."""


@dataclasses.dataclass(frozen=True)
class Gripper:
    """A gripper of an action."""

    dim: int
    """Index in the action. It is not normalised."""
    open: float = 1.0
    """Value of the stored action that opens it, or at which it is fully open."""
    close: float = 0.0
    """Value of the stored action that closes it, or at which it is fully closed."""
    kind: Literal["binary", "continuous"] = "binary"
    """`binary`: two commands, of which a rollout sends the nearer one. `continuous`: any value
    between them, such as a width."""

    def __post_init__(self) -> None:
        """Checks ranges, and that the two commands differ."""
        _check_gripper(self, ("dim", "open", "close"))

    def standardize(self, stored: np.ndarray) -> np.ndarray:
        """Maps stored values linearly to 1 = open and 0 = close, clipped; any shape."""
        # Linear for any pair of commands, also where open is the smaller one.
        return np.clip((stored - self.close) / (self.open - self.close), 0.0, 1.0)

    def restore(self, standardized: np.ndarray) -> np.ndarray:
        """Inverts `standardize`; a binary gripper gets the nearer of its two commands."""
        match self.kind:
            case "binary":
                # A policy's gripper is continuous; the robot knows two commands.
                return np.where(standardized > _OPEN_THRESHOLD, self.open, self.close)
            case "continuous":
                # Clipped, as a policy may leave the range. Exact at both ends, unlike
                # close + x * (open - close).
                opened = np.clip(standardized, 0.0, 1.0)
                return self.open * opened + self.close * (1.0 - opened)
            case _:
                assert_never(self.kind)


@dataclasses.dataclass(frozen=True)
class PoseRotation:
    """Where a pose of a feature has its rotation, and in which representation."""

    feature: str
    """Key of a vector, such as `observation/proprio`."""
    dim: int
    """Index of the rotation's first number in the feature."""
    representation: Rotation
    """Representation, which also gives the number of dimensions."""

    def __post_init__(self) -> None:
        """Checks the index."""
        if self.dim < 0:
            raise ValueError(f"dim must be at least 0, not {self.dim}")

    @property
    def dims(self) -> range:
        """Indices of its numbers in the feature."""
        return range(self.dim, self.dim + ROTATION_DIMS[self.representation])

    def __str__(self) -> str:
        """Such as `observation/proprio 3:6 axis_angle`."""
        return f"{self.feature} {self.dims.start}:{self.dims.stop} {self.representation}"


@dataclasses.dataclass(frozen=True)
class Conventions:
    """Signs, frames and rates that cannot be read off the arrays."""

    image_orientation: Literal["upright", "rotated_180", "flipped_vertically"]
    """Orientation of the stored pixels relative to the camera's true image. Published LIBERO
    datasets hold the simulator's vertically flipped frames rotated by 180 degrees: they are called
    `rotated_180`, and show a world mirrored left to right."""
    rotation: Literal[Rotation, "none"]
    """Representation of the action's rotation, the same for every arm."""
    control_frequency_hz: float
    """Actions per second."""
    no_ops: Literal["kept", "removed_at_source", "removed_at_conversion"]
    """Whether steps without motion were kept, and where they were removed."""
    gripper_dim: int | None = None
    """Index of the one binary gripper in the action; None if there is none, or for `grippers`. Not
    normalised."""
    gripper_open: float = 1.0
    """Value of the stored action that opens the gripper."""
    gripper_close: float = 0.0
    """Value of the stored action that closes it."""
    no_op_threshold: float | None = None
    """Norm of an action without its gripper below which it counts as no motion; only for
    `removed_at_conversion`."""
    grippers: tuple[Gripper, ...] = dataclasses.field(default=(), metadata=LATER)
    """The grippers of an action that has several, or a continuous one. A single binary gripper may
    be given here too; it is kept in `gripper_dim`, `gripper_open` and `gripper_close`."""
    rotations: tuple[PoseRotation, ...] = dataclasses.field(default=(), metadata=LATER)
    """Where the features' poses have their rotations; empty if that is not known."""
    target_poses: bool = dataclasses.field(default=False, metadata=LATER)
    """Whether the action is a pose to reach: three numbers of position, then the rotation, in the
    frame and unit of the state. Otherwise it is what the robot's controller takes."""

    def __post_init__(self) -> None:
        """Checks ranges, grippers and rotations."""
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
        self._check_grippers()
        self._check_rotations()

    def _check_grippers(self) -> None:
        """Checks the grippers, and gives a single binary one the form of the three fields."""
        one = (self.gripper_dim, self.gripper_open, self.gripper_close)
        if not self.grippers:
            _check_gripper(self, ("gripper_dim", "gripper_open", "gripper_close"))
            return
        if one != (None, 1.0, 0.0):
            raise ValueError(
                "give either grippers or gripper_dim, gripper_open and gripper_close, not both: "
                f"found {len(self.grippers)} grippers and gripper_dim {one[0]}, gripper_open "
                f"{one[1]}, gripper_close {one[2]}"
            )
        dims = [gripper.dim for gripper in self.grippers]
        if len(set(dims)) < len(dims):
            raise ValueError(f"grippers must have different dims, not {dims}")
        if len(dims) == 1 and self.grippers[0].kind == "binary":
            # One form for one meaning: files and checksums from before `grippers` stay valid.
            for name in ("dim", "open", "close"):
                object.__setattr__(self, f"gripper_{name}", getattr(self.grippers[0], name))
            object.__setattr__(self, "grippers", ())

    def _check_rotations(self) -> None:
        """Checks that no two poses overlap, and that those of the action agree with `rotation`."""
        taken: dict[tuple[str, int], PoseRotation] = {}
        for pose in self.rotations:
            for dim in pose.dims:
                if other := taken.get((pose.feature, dim)):
                    raise ValueError(f"rotations must not overlap: {other} and {pose}")
                taken[pose.feature, dim] = pose
            if pose.feature == ACTION and pose.representation != self.rotation:
                raise ValueError(f"rotation is {self.rotation}, but rotations has {pose}")
        for gripper in self.all_grippers:
            if pose := taken.get((ACTION, gripper.dim)):
                raise ValueError(f"a gripper is at {gripper.dim}, inside the rotation {pose}")

    @property
    def gripper_field(self) -> str:
        """The field that has the grippers' dimensions, for errors."""
        return "grippers.dim" if self.grippers else "gripper_dim"

    @property
    def all_grippers(self) -> tuple[Gripper, ...]:
        """All grippers of the action, in whichever form they are given."""
        if self.gripper_dim is None:
            return self.grippers
        return (Gripper(self.gripper_dim, self.gripper_open, self.gripper_close),)

    def rotation_names(self, key: str, dims: Sequence[str]) -> dict[str, str]:
        """Returns the representation of the rotation that a dimension may belong to, by its name.

        Of an action whose poses are not known, any dimension but a gripper may be of a rotation.

        Args:
          key: Key of the feature.
          dims: Names of its dimensions.
        """
        poses = [pose for pose in self.rotations if pose.feature == key]
        if poses or key != ACTION or self.rotation == "none":
            return {dims[dim]: pose.representation for pose in poses for dim in pose.dims}
        others = np.flatnonzero(self.normalized_dims(len(dims))).tolist()
        return {dims[dim]: self.rotation for dim in others}

    def normalized_dims(self, action_dim: int) -> np.ndarray:
        """Bool (a): True where the action is normalised, False for the grippers."""
        mask = np.ones(action_dim, bool)
        mask[[gripper.dim for gripper in self.all_grippers]] = False
        return mask


def grippers_of(conventions: Mapping[str, Any]) -> tuple[Gripper, ...]:
    """Returns the grippers of conventions in JSON, of which other fields may be missing."""
    if conventions.get("gripper_dim") is not None:
        names = {name: f"gripper_{name}" for name in ("dim", "open", "close")}
        return (Gripper(**{k: conventions[v] for k, v in names.items() if v in conventions}),)
    return tuple(Gripper(**gripper) for gripper in conventions.get("grippers", ()))


def _check_gripper(holder: "Gripper | Conventions", names: tuple[str, str, str]) -> None:
    """Checks the index and the commands of a gripper, in the fields of those names."""
    dim, opens, closes = (getattr(holder, name) for name in names)
    if not (math.isfinite(opens) and math.isfinite(closes)):
        raise ValueError(f"{names[1]} {opens} and {names[2]} {closes} must be finite")
    if dim is not None and dim < 0:
        raise ValueError(f"{names[0]} must be at least 0, not {dim}")
    if dim is not None and opens == closes:
        raise ValueError(
            f"{names[1]} and {names[2]} are both {opens}: the two commands must differ"
        )


def is_no_op(action: np.ndarray, conventions: Conventions) -> np.ndarray:
    """Finds the steps of an episode without motion, for `removed_at_conversion`; bool (t).

    A step is a no-op if the norm of its action without the grippers is below `no_op_threshold` and
    its gripper commands equal those of the last kept step. The last step of the episode is kept
    because it carries `is_last` and the reward, unless all steps are no-ops.

    Args:
      action: (t, a), as stored.
      conventions: Conventions with the grippers' dimensions and the threshold.

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
        # A command that changes is no no-op, even if the arms rest: it moves a gripper.
        removed[t] = motion[t] < conventions.no_op_threshold and last in (None, command)
        # Compared with the last kept step: a slow change would otherwise vanish step by step.
        last = last if removed[t] else command
    if not removed.all():
        # The last step carries `is_last` and the reward.
        removed[-1] = False
    return removed


def standardize_gripper(action: np.ndarray, conventions: Conventions) -> np.ndarray:
    """The action with each gripper as 1 = open, 0 = close; float32 (..., a), a new array.

    Source: Octo's standardisation of LIBERO (clip to [0, 1], then invert). Here the stored range
    is mapped linearly and then clipped: the same for commands that are fully open or closed.
    """
    standardized = action.copy()
    for gripper in conventions.all_grippers:
        standardized[..., gripper.dim] = gripper.standardize(action[..., gripper.dim])
    return standardized


def restore_gripper(action: np.ndarray, conventions: Conventions) -> np.ndarray:
    """Inverts it at rollout; float32 (..., a), a new array.

    For a binary gripper, values above 0.5 become the open command and others the close command.
    For a continuous one, values are clipped to [0, 1] and mapped linearly.

    Raises:
      UserError: The actions lack a gripper.
    """
    check_has_grippers(action, conventions)
    restored = action.copy()
    for gripper in conventions.all_grippers:
        restored[..., gripper.dim] = gripper.restore(action[..., gripper.dim])
    return restored


def check_has_grippers(action: np.ndarray, conventions: Conventions) -> None:
    """Raises a `UserError` where actions (..., a) lack one of the grippers."""
    for gripper in conventions.all_grippers:
        if np.shape(action)[-1:] <= (gripper.dim,):
            raise UserError(
                where="grippers, actions",
                expected=f"a gripper at index {gripper.dim} of the last axis",
                found=f"the shape {np.shape(action)}",
                remedy="Give whole actions, with any axes before the last.",
            )
