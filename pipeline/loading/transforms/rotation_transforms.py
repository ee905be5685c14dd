"""Transforms of the rotations of actions: relative to the current pose, and other representations.

Both compute in float64 and return float32. `apply` changes `action` (b w h a) and
`action_pad_mask`; `invert` takes predicted actions (b h a) back to what they were.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

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
from pipeline.errors import UserError
from pipeline.loading.batch import BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.transforms.action_dims import (
    ACTION_MASK,
    action_dims,
    check_names,
    check_window,
    state_of,
    where_of,
    with_dims,
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
        return _rotation(self, self.representation, spec).spec_after(spec)

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
        with _rotations_of(self, ACTION):
            future = convert_rotation(layout.taken(action), self.representation, _QUATERNION)
            action[..., dims] = relative_position(
                now[0], action[..., dims].astype(np.float64), now[1], _QUATERNION
            )
            turned = _with_positive_real(relative_rotation(now[1], future, _QUATERNION))
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
        with _rotations_of(self, "predicted actions"), np.errstate(invalid="ignore"):
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
        _check_stated(self, spec[key], found[1], held, key)
        return found[0], found[1]

    def _state_pose(self, batch: FlatBatch, spec: BatchSpec) -> tuple[np.ndarray, np.ndarray]:
        """Position (b w 3) and quaternion (b w 4) of the state, float64."""
        position, rotation = self._state_dims(spec)
        state = state_of(self, batch, spec)
        held = self.state_representation or self.representation
        with _rotations_of(self, f"observation/{self.state}"):
            turn = convert_rotation(state[..., rotation], held, _QUATERNION)
        return state[..., position], turn


@dataclasses.dataclass(frozen=True)
class ConvertActionRotation:
    """Writes a rotation of the action in another representation."""

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
        return _rotation(self, self.source, spec).spec_after(spec)

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Converts the rotations of all chunks.

        Raises:
          UserError: Values are no rotation, such as a quaternion of zeros.
        """
        del draws
        layout = _rotation(self, self.source, spec)
        with _rotations_of(self, ACTION):
            rotation = convert_rotation(layout.taken(batch[ACTION]), self.source, self.target)
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
        with _rotations_of(self, "predicted actions"):
            restored[..., layout.old] = _converted(rotation, self.target, self.source)
        return restored


# --- a rotation among the dimensions of the action


@dataclasses.dataclass(frozen=True)
class _RotationLayout:
    """Where a rotation is in the action, before and after it got another representation.

    before:  x y z [rx ry rz] gripper      old = 3 4 5
    after:   x y z [m0 ... m5] gripper     the new ones begin at 3
    """

    transform: "RelativePose | ConvertActionRotation"
    """The transform, for errors."""
    old: list[int]
    """Places before, in the order of the representation."""
    names: tuple[str, ...]
    """Names after."""
    target: Representation
    """Representation after."""
    num_dims: int
    """Dimensions of the action before."""

    @property
    def _others(self) -> list[int]:
        """Places of all other dimensions before."""
        return [dim for dim in range(self.num_dims) if dim not in self.old]

    @property
    def _begin(self) -> int:
        """The place of the first new dimension, which is also the number of others before it."""
        return min(self.old)

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """The types with the new dimensions."""
        leaf = spec[ACTION]
        others = [leaf.dims[dim] for dim in self._others]
        names = (*others[: self._begin], *self.names, *others[self._begin :])
        stated = {name: leaf.rotations[name] for name in others if name in leaf.rotations}
        stated |= dict.fromkeys(self.names, self.target)
        turned = dataclasses.replace(leaf, rotations=stated)
        return spec | with_dims(self.transform, spec, turned, names)

    def taken(self, action: np.ndarray) -> np.ndarray:
        """The rotations of actions before, float64 (..., n)."""
        return action[..., self.old].astype(np.float64)

    def replaced(self, action: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Actions with their new rotations (..., m), in the dtype of the action."""
        others = action[..., self._others]
        first, last = others[..., : self._begin], others[..., self._begin :]
        return np.concatenate([first, rotation.astype(action.dtype), last], axis=-1)

    def replaced_mask(self, mask: np.ndarray) -> np.ndarray:
        """The mask (..., a) of actions with new rotations, which are real if the old ones are."""
        is_real = mask[..., self.old].all(axis=-1, keepdims=True)
        return self.replaced(mask, np.repeat(is_real, len(self.names), axis=-1))

    def restored(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions (..., a) without their rotations, and the new rotations, float64 (..., m)."""
        end = self._begin + len(self.names)
        restored = np.zeros((*action.shape[:-1], self.num_dims), np.float32)
        restored[..., self._others] = np.delete(action, range(self._begin, end), axis=-1)
        return restored, action[..., self._begin : end].astype(np.float64)


def _rotation(
    transform: "RelativePose | ConvertActionRotation", source: Representation, spec: BatchSpec
) -> _RotationLayout:
    """Finds the rotation of a transform in the action."""
    old = action_dims(transform, "rotation", spec)
    leaf = spec[ACTION]
    _check_stated(transform, leaf, old, source, ACTION)
    names = tuple(leaf.dims[dim] for dim in old)
    if transform.target != source:
        names = _rotation_names(transform.prefix, transform.target)
    return _RotationLayout(transform, old, names, transform.target, leaf.shape[-1])


def _rotation_names(prefix: str, representation: Representation) -> tuple[str, ...]:
    """Such as `rot6d_0` to `rot6d_5`; angles have their unit, as in `axis_angle_0_rad`."""
    count = num_values(representation)
    # Three values are angles, or an axis times an angle.
    unit = "_rad" if count == len("xyz") else ""
    return tuple(f"{prefix}{representation}_{number}{unit}" for number in range(count))


def _check_stated(
    transform: Any, leaf: LeafSpec, dims: Sequence[int], used: Representation, key: str
) -> None:
    """Checks the representation of a rotation against what the dataset's conventions state."""
    stated = {leaf.dims[dim]: leaf.rotations.get(leaf.dims[dim], used) for dim in dims}
    wrong = {name: found for name, found in stated.items() if found != used}
    if wrong:
        raise UserError(
            where=f"{type(transform).__name__}, {key}",
            expected=f"{', '.join(wrong)} as {used}",
            found=f"{', '.join(sorted(set(wrong.values())))} in the dataset's conventions",
            remedy="Give that representation, or correct the dataset with `octograin edit`.",
        )


def _converted(values: np.ndarray, source: Representation, target: Representation) -> np.ndarray:
    """Rotations in another representation; NaN where a value is not finite."""
    is_finite = np.isfinite(values).all(axis=-1, keepdims=True)
    one = convert_rotation(_IDENTITY, _QUATERNION, source)
    converted = convert_rotation(np.where(is_finite, values, one), source, target)
    return np.where(is_finite, converted, np.nan)


def _finite(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions, with no rotation in place of NaN."""
    return np.where(np.isfinite(quaternions), quaternions, _IDENTITY)


def _with_positive_real(quaternions: np.ndarray) -> np.ndarray:
    """The same rotations (..., 4), x y z w: of q and -q, a model can only learn one."""
    return np.where(quaternions[..., 3:] < 0, -quaternions, quaternions)


@contextlib.contextmanager
def _rotations_of(transform: Any, what: str) -> Iterator[None]:
    """Says which values are no rotations, where a function inside the block refuses them."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            where=f"{type(transform).__name__}, {what}",
            expected="rotations",
            found=str(error),
            remedy="Check the names and the representation against the dataset.",
        ) from error
