"""Rotations among the named dimensions of a vector, and how another representation moves those."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.data.rotations import Representation, num_values
from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec


@dataclasses.dataclass(frozen=True)
class RotationLayout:
    """Where a rotation is in a vector, before and after it got another representation.

    before:  x y z [rx ry rz] gripper      old = 3 4 5
    after:   x y z [m0 ... m5] gripper     the new ones begin at 3
    """

    old: list[int]
    """Places before, in the order of the representation."""
    names: tuple[str, ...]
    """Names after."""
    target: Representation
    """Representation after."""
    num_dims: int
    """Dimensions of the vector before."""

    @property
    def _others(self) -> list[int]:
        """Places of all other dimensions before."""
        return [dim for dim in range(self.num_dims) if dim not in self.old]

    @property
    def _begin(self) -> int:
        """The place of the first new dimension, which is also the number of others before it."""
        return min(self.old)

    def leaf_after(self, leaf: LeafSpec) -> LeafSpec:
        """The type of the vector with the new dimensions; their names may be taken."""
        others = [leaf.dims[dim] for dim in self._others]
        names = (*others[: self._begin], *self.names, *others[self._begin :])
        stated = {name: leaf.rotations[name] for name in others if name in leaf.rotations}
        stated |= dict.fromkeys(self.names, self.target)
        shape = (*leaf.shape[:-1], len(names))
        return dataclasses.replace(leaf, shape=shape, dims=names, rotations=stated)

    def taken(self, values: np.ndarray) -> np.ndarray:
        """The rotations of vectors before, float64 (..., n)."""
        return values[..., self.old].astype(np.float64)

    def replaced(self, values: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Vectors with their new rotations (..., m), in the dtype of the vectors."""
        others = values[..., self._others]
        first, last = others[..., : self._begin], others[..., self._begin :]
        return np.concatenate([first, rotation.astype(values.dtype), last], axis=-1)

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


def rotation_names(prefix: str, representation: Representation) -> tuple[str, ...]:
    """Such as `rot6d_0` to `rot6d_5`; angles have their unit, as in `axis_angle_0_rad`."""
    count = num_values(representation)
    # Three values are angles, or an axis times an angle.
    unit = "_rad" if count == len("xyz") else ""
    return tuple(f"{prefix}{representation}_{number}{unit}" for number in range(count))


def check_stated(
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


def with_positive_real(values: np.ndarray, representation: Representation) -> np.ndarray:
    """The same rotations (..., n): of quaternions q and -q, a model can only learn one."""
    match representation:
        case "quaternion_xyzw":
            real = values[..., 3:]
        case "quaternion_wxyz":
            real = values[..., :1]
        case _:
            return values
    return np.where(real < 0, -values, values)


@contextlib.contextmanager
def rotations_of(transform: Any, what: str) -> Iterator[None]:
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
