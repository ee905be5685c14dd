"""Transforms of actions that treat each dimension by itself: relative, masked, padded.

Dimensions are chosen by their names. `apply` changes `action` (b w h a) and `action_pad_mask`;
`invert` takes predicted actions (b h a), which are for the last step of the window, back to what
they were. Both compute in float64 and return float32.
"""

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np

from pipeline.config_checks import Problem, check, check_positive
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


@dataclasses.dataclass(frozen=True)
class RelativeActions:
    """Subtracts the state from actions of the same quantity, such as targets of joints.

    The numbers are subtracted as they are: angles are not wrapped. For a pose with a rotation use
    `RelativePose`: differences of axis-angle vectors or Euler angles are not rotations.
    """

    relative: tuple[str, ...]
    """Dimensions of the action that become relative."""
    state: str = "proprio"
    """Observation that holds the state, a vector in the action's units."""
    state_dims: tuple[str, ...] = ()
    """Their names in the state, in the same order; empty: the same names."""

    def __post_init__(self) -> None:
        """Checks the names."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        yield from check_names(self, "relative")
        yield from check_names(self, "state_dims", len(self.relative))

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Returns the same types.

        Raises:
          UserError: The action or the state lacks a dimension, one is a gripper or unused, or the
            state has fewer steps than the window.
        """
        self._dims(spec)
        return spec

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Subtracts the state of each step of the window from the chunk that starts there."""
        del draws
        dims, state_dims = self._dims(spec)
        state = state_of(self, batch, spec)[..., state_dims]
        action = batch[ACTION].copy()
        action[..., dims] = action[..., dims].astype(np.float64) - state[:, :, None]
        return batch | {ACTION: action}

    def invert(self, action: np.ndarray, batch: FlatBatch, spec: BatchSpec) -> np.ndarray:
        """Adds the state of the window's last step; float32 (b h a)."""
        dims, state_dims = self._dims(spec)
        state = state_of(self, batch, spec)[..., state_dims]
        absolute = action.copy()
        absolute[..., dims] = action[..., dims].astype(np.float64) + state[:, -1, None]
        return absolute

    def _dims(self, spec: BatchSpec) -> tuple[list[int], list[int]]:
        """Places in the action and in the state."""
        dims = action_dims(self, "relative", spec)
        key = f"observation/{self.state}"
        where = where_of(self, "state_dims" if self.state_dims else "relative")
        state_dims = dims_at(spec, key, self.state_dims or self.relative, where)
        check_window(self, spec)
        return dims, state_dims


@dataclasses.dataclass(frozen=True)
class MaskActions:
    """Excludes dimensions from the loss, such as those of an arm that the robot lacks."""

    dims: tuple[str, ...]
    """Dimensions of the action that are unused."""
    value: float = 0.0
    """What they are at rollout, in the unit that they have here: the dataset's, unless an earlier
    transform makes them relative; a gripper: 1 = open, 0 = close."""

    def __post_init__(self) -> None:
        """Checks the names."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        yield from check_names(self, "dims")
        if not np.isfinite(self.value):
            yield Problem("value", "a finite number", self.value, "Give what the robot ignores.")

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Returns the types; the dimensions are no longer normalised.

        Raises:
          UserError: The action lacks a dimension, or has no other.
        """
        dims_at(spec, ACTION, self.dims, where_of(self, "dims"))
        if not set(spec[ACTION].dims) - {*self.dims, *spec[ACTION].unused}:
            raise UserError(
                where=where_of(self, "dims"),
                expected="some of the action's dimensions",
                found="all of them",
                remedy="Leave those out that the policy is to learn.",
            )
        return spec | {ACTION: _without(spec[ACTION], self.dims)}

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Makes the dimensions 0, and False in `action_pad_mask`."""
        del draws
        dims = dims_at(spec, ACTION, self.dims, where_of(self, "dims"))
        action, mask = batch[ACTION].copy(), batch[ACTION_MASK].copy()
        action[..., dims] = 0.0
        mask[..., dims] = False
        return batch | {ACTION: action, ACTION_MASK: mask}

    def invert(self, action: np.ndarray, batch: FlatBatch, spec: BatchSpec) -> np.ndarray:
        """Sets the dimensions to `value`, float32 (b h a)."""
        del batch
        filled = action.copy()
        filled[..., dims_at(spec, ACTION, self.dims, where_of(self, "dims"))] = self.value
        return filled


@dataclasses.dataclass(frozen=True)
class PadActions:
    """Appends unused dimensions, up to the number that a model predicts.

    They are 0 in a batch, excluded from the loss, not normalised, and cut off at rollout.
    """

    size: int
    """Number of dimensions afterwards."""

    def __post_init__(self) -> None:
        """Checks the size."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        yield from check_positive(self, "size")

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Returns the types with dimensions `unused_0`, `unused_1`, ... at the end.

        Raises:
          UserError: The action has more dimensions, or one of these names.
        """
        leaf = spec[ACTION]
        num_dims = leaf.shape[-1]
        if num_dims > self.size:
            raise UserError(
                where=where_of(self, "size"),
                expected=f"at least {num_dims}, the dimensions of the action",
                found=str(self.size),
                remedy="Give the action_dim of the model's head.",
            )
        names = tuple(f"unused_{n}" for n in range(self.size - num_dims))
        return spec | with_dims(self, spec, _without(leaf, names), (*leaf.dims, *names))

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Appends zeros to the action, and False to `action_pad_mask`."""
        del draws, spec
        action, mask = batch[ACTION], batch[ACTION_MASK]
        widths = [(0, 0)] * (action.ndim - 1) + [(0, self.size - action.shape[-1])]
        # Zeros, which are False in the mask.
        return batch | {ACTION: np.pad(action, widths), ACTION_MASK: np.pad(mask, widths)}

    def invert(self, action: np.ndarray, batch: FlatBatch, spec: BatchSpec) -> np.ndarray:
        """Cuts the appended dimensions off, float32 (b h a)."""
        del batch
        return action[..., : spec[ACTION].shape[-1]].copy()


def _without(leaf: LeafSpec, names: Collection[str]) -> LeafSpec:
    """The type of actions of which some dimensions are neither normalised nor learned."""
    return dataclasses.replace(leaf, raw=leaf.raw | set(names), unused=leaf.unused | set(names))
