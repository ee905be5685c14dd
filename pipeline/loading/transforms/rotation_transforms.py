"""Transforms of the rotations of actions: relative to the current pose, and other representations.

Both compute in float64 and return float32. `apply` changes `action` (b w h a) and
`action_pad_mask`; `invert` takes predicted actions (b h a) back to what they were.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from pipeline.config_checks import Problem, check
from pipeline.data.rotations import (
    Representation,
    absolute_position,
    absolute_rotation,
    convert_rotation,
    num_values,
    relative_position,
    relative_rotation,
)
from pipeline.data.schema import ACTION
from pipeline.loading.batch import BatchSpec, FlatBatch
from pipeline.loading.transforms.action_dims import (
    ACTION_MASK,
    action_dims,
    check_names,
    check_window,
    state_of,
    where_of,
    with_dims,
)
from pipeline.loading.transforms.rotation_layout import (
    RotationLayout,
    check_stated,
    rotation_names,
    rotations_of,
    with_positive_real,
)
from pipeline.loading.transforms.transform import Draws, dims_at

_QUATERNION: Representation = "quaternion_xyzw"
"""The representation that poses are computed in."""
_IDENTITY = np.array([0.0, 0.0, 0.0, 1.0])
_POSITION_SIZE = 3


@dataclasses.dataclass(frozen=True)
class RelativePose:
    """Expresses the poses of a chunk in the frame of the current pose: T_now^-1 T_future.

    Positions become R_now^T (p_future - p_now), rotations R_now^T R_future. The current pose is
    the state at each step of the window. One transform is for one arm.
    """

    position: tuple[str, ...]
    """The three dimensions of the action's position, in the state's frame and unit."""
    rotation: tuple[str, ...]
    """The dimensions of its rotation, in the order of the representation."""
    representation: Representation
    """Representation of the action's rotation."""
    state: str = "proprio"
    """Observation that holds the current pose."""
    state_position: tuple[str, ...] = ()
    """The position in the state; empty: the same names."""
    state_rotation: tuple[str, ...] = ()
    """The rotation in the state; empty: the same names."""
    state_representation: Representation | None = None
    """Representation of the state's rotation; None: the same."""
    target: Representation = "rot6d"
    """Representation of the relative rotation."""
    prefix: str = ""
    """Start of the new names, such as `left_` for `left_rot6d_0`, which keeps those of two arms
    apart. Where the representation stays the same, so do the names."""

    def __post_init__(self) -> None:
        """Checks the number of names."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        held = self.state_representation or self.representation
        yield from check_names(self, "position", _POSITION_SIZE)
        yield from check_names(self, "rotation", num_values(self.representation))
        if shared := set(self.position) & set(self.rotation):
            found = ", ".join(sorted(shared))
            yield Problem(
                "rotation", "other dimensions than the position", found, "Name them once."
            )
        yield from check_names(self, "state_position", _POSITION_SIZE)
        yield from check_names(self, "state_rotation", num_values(held))
        if not self.state_rotation and num_values(held) != num_values(self.representation):
            yield Problem(
                "state_rotation",
                f"the {num_values(held)} names of the state's rotation, {held}",
                "none",
                "Name them: the action's rotation has another number.",
            )

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Returns the types with the rotation in its new representation.

        Its dimensions are where the first one of the rotation was.

        Raises:
          UserError: The action or the state lacks a dimension, one is a gripper or unused, a new
            name is taken, or the state has fewer steps than the window.
        """
        action_dims(self, "position", spec)
        self._state_dims(spec)
        return _spec_after(self, self.representation, spec)

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Expresses each chunk in the pose at its step of the window.

        Raises:
          UserError: Values are no rotation, such as a quaternion of zeros.
        """
        del draws
        position, turn = self._state_pose(batch, spec)
        # (b w 1 n), against the poses (b w h n) of the chunks
        now = position[:, :, None], turn[:, :, None]
        dims = action_dims(self, "position", spec)
        layout = _rotation(self, self.representation, spec)
        action = batch[ACTION].copy()
        with rotations_of(self, ACTION):
            future = convert_rotation(layout.taken(action), self.representation, _QUATERNION)
            action[..., dims] = relative_position(
                now[0], action[..., dims].astype(np.float64), now[1], _QUATERNION
            )
            turned = relative_rotation(now[1], future, _QUATERNION)
            turned = with_positive_real(turned, _QUATERNION)
            rotation = convert_rotation(turned, _QUATERNION, self.target)
        return batch | {
            ACTION: layout.replaced(action, rotation),
            ACTION_MASK: layout.replaced_mask(batch[ACTION_MASK]),
        }

    def invert(self, action: np.ndarray, batch: FlatBatch, spec: BatchSpec) -> np.ndarray:
        """Returns poses in the state's frame, T_now T_relative; float32 (b h a).

        Values that are not finite become NaN.

        Raises:
          UserError: Values are no rotation, such as a quaternion of zeros.
        """
        position, turn = self._state_pose(batch, spec)
        now = position[:, -1, None], turn[:, -1, None]
        dims = action_dims(self, "position", spec)
        layout = _rotation(self, self.representation, spec)
        absolute, rotation = layout.restored(action)
        # Infinite positions become NaN: a policy reports both.
        with rotations_of(self, "predicted actions"), np.errstate(invalid="ignore"):
            relative = _converted(rotation, self.target, _QUATERNION)
            reached = absolute_rotation(now[1], _finite(relative), _QUATERNION)
            absolute[..., dims] = absolute_position(
                now[0], absolute[..., dims].astype(np.float64), now[1], _QUATERNION
            )
            own = convert_rotation(reached, _QUATERNION, self.representation)
        absolute[..., layout.old] = np.where(np.isfinite(relative[..., :1]), own, np.nan)
        return absolute

    def _state_dims(self, spec: BatchSpec) -> tuple[list[int], list[int]]:
        """Places of position and rotation in the state."""
        key = f"observation/{self.state}"
        found = [
            dims_at(
                spec,
                key,
                getattr(self, f"state_{field}") or getattr(self, field),
                where_of(self, f"state_{field}" if getattr(self, f"state_{field}") else field),
            )
            for field in ("position", "rotation")
        ]
        check_window(self, spec)
        held = self.state_representation or self.representation
        check_stated(self, spec[key], found[1], held, key)
        return found[0], found[1]

    def _state_pose(self, batch: FlatBatch, spec: BatchSpec) -> tuple[np.ndarray, np.ndarray]:
        """Position (b w 3) and quaternion (b w 4) of the state, float64."""
        position, rotation = self._state_dims(spec)
        state = state_of(self, batch, spec)
        held = self.state_representation or self.representation
        with rotations_of(self, f"observation/{self.state}"):
            turn = convert_rotation(state[..., rotation], held, _QUATERNION)
        return state[..., position], turn


@dataclasses.dataclass(frozen=True)
class ConvertActionRotation:
    """Writes a rotation of the action in another representation.

    Of the two quaternions of a rotation it writes the one whose real part is not negative.
    """

    rotation: tuple[str, ...]
    """The dimensions of the rotation, in the order of the representation."""
    source: Representation
    """Representation of the rotation in the dataset."""
    target: Representation
    """Representation that the model learns."""
    prefix: str = ""
    """Start of the new names, such as `left_` for `left_rot6d_0`."""

    def __post_init__(self) -> None:
        """Checks the number of names."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        yield from check_names(self, "rotation", num_values(self.source))

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Returns the types with the new dimensions where the first old one was.

        Raises:
          UserError: The action lacks a dimension, one is a gripper or unused, or a new name is
            taken.
        """
        return _spec_after(self, self.source, spec)

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Converts the rotations of all chunks.

        Raises:
          UserError: Values are no rotation, such as a quaternion of zeros.
        """
        del draws
        layout = _rotation(self, self.source, spec)
        with rotations_of(self, ACTION):
            turned = convert_rotation(layout.taken(batch[ACTION]), self.source, self.target)
        rotation = with_positive_real(turned, self.target)
        return batch | {
            ACTION: layout.replaced(batch[ACTION], rotation),
            ACTION_MASK: layout.replaced_mask(batch[ACTION_MASK]),
        }

    def invert(self, action: np.ndarray, batch: FlatBatch, spec: BatchSpec) -> np.ndarray:
        """Converts the rotations back, float32 (b h a).

        Rotations that are not finite become NaN.

        Raises:
          UserError: Values are no rotation, such as a quaternion of zeros.
        """
        del batch
        layout = _rotation(self, self.source, spec)
        restored, rotation = layout.restored(action)
        with rotations_of(self, "predicted actions"):
            restored[..., layout.old] = _converted(rotation, self.target, self.source)
        return restored


def _rotation(
    transform: "RelativePose | ConvertActionRotation", source: Representation, spec: BatchSpec
) -> RotationLayout:
    """Finds the rotation of a transform in the action."""
    old = action_dims(transform, "rotation", spec)
    leaf = spec[ACTION]
    check_stated(transform, leaf, old, source, ACTION)
    names = tuple(leaf.dims[dim] for dim in old)
    if transform.target != source:
        names = rotation_names(transform.prefix, transform.target)
    return RotationLayout(old, names, transform.target, leaf.shape[-1])


def _spec_after(
    transform: "RelativePose | ConvertActionRotation", source: Representation, spec: BatchSpec
) -> BatchSpec:
    """The types with the rotation of a transform in its new representation."""
    turned = _rotation(transform, source, spec).leaf_after(spec[ACTION])
    return spec | with_dims(transform, spec, turned, turned.dims)


def _converted(values: np.ndarray, source: Representation, target: Representation) -> np.ndarray:
    """Rotations in another representation; NaN where a value is not finite."""
    is_finite = np.isfinite(values).all(axis=-1, keepdims=True)
    one = convert_rotation(_IDENTITY, _QUATERNION, source)
    converted = convert_rotation(np.where(is_finite, values, one), source, target)
    return np.where(is_finite, converted, np.nan)


def _finite(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions, with no rotation in place of NaN."""
    return np.where(np.isfinite(quaternions), quaternions, _IDENTITY)
