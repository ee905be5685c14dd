"""Operations over the steps of an episode: differences, the next state, running sums.

Those that look `steps` steps ahead give no true value for the last `steps` steps of an episode;
these are dropped from every feature of the dataset.
"""

import dataclasses
from typing import Literal

import numpy as np

from converters.operations.array_operations import Columns
from converters.operations.value_type import Others, SameFloats, Simple, ValueType, require_floats
from pipeline.data.rotations import Representation, num_values, relative_rotation


@dataclasses.dataclass(frozen=True)
class Next(Simple):
    """Takes the value of a later step: the state that an action reaches, as the action."""

    steps: int = 1
    """How many steps later; where every n-th step is kept, n."""
    op: Literal["next"] = "next"

    def __post_init__(self) -> None:
        """Checks the range."""
        _check_steps(self.steps)

    @property
    def ahead(self) -> int:
        """Its steps."""
        return self.steps

    def output(self, given: ValueType) -> ValueType:
        """The same."""
        if given.kind != "tensor":
            raise ValueError(f"it takes a tensor, not {given}")
        return given

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """x[t + steps]; the last ones repeat the last value."""
        return _later(values, self.steps)


@dataclasses.dataclass(frozen=True)
class Difference(Simple):
    """Takes the difference to a later step: x[t + steps] - x[t], the motion that follows a step.

    Differences of angles are no rotations; see `rotation_difference`.
    """

    steps: int = 1
    """How many steps later; where every n-th step is kept, n."""
    angles: str = ""
    """Columns that are angles in radians, such as `3:6`: their differences are taken the short way
    round, in [-pi, pi). Empty: none."""
    op: Literal["difference"] = "difference"

    def __post_init__(self) -> None:
        """Checks the range, and the columns."""
        _check_steps(self.steps)
        if self.angles:
            Columns(self.angles)

    @property
    def ahead(self) -> int:
        """Its steps."""
        return self.steps

    def output(self, given: ValueType) -> ValueType:
        """The same."""
        require_floats(given)
        if self.angles:
            Columns(self.angles).output(given)
        return given

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The differences; 0 at the end."""
        exact = values.astype(np.float64)
        moved = _later(exact, self.steps) - exact
        if self.angles:
            wrapped = Columns(self.angles).indices(values.shape[-1])
            moved[..., wrapped] = (moved[..., wrapped] + np.pi) % (2 * np.pi) - np.pi
        return moved.astype(values.dtype)


@dataclasses.dataclass(frozen=True)
class RotationDifference(Simple):
    """Takes the rotation from the orientation of a step to that of a later one.

    Source: `pipeline.data.rotations.relative_rotation`.
    """

    representation: Representation
    """The representation of the orientations, and of the result."""
    columns: str = ""
    """Columns that hold the orientation, such as `3:6`; the others stay. Empty: all."""
    frame: Literal["tool", "base"] = "base"
    """`base`: R_next R_now^T, seen from the base; `tool`: R_now^T R_next."""
    steps: int = 1
    """How many steps later; where every n-th step is kept, n."""
    op: Literal["rotation_difference"] = "rotation_difference"

    def __post_init__(self) -> None:
        """Checks the range, and the columns."""
        _check_steps(self.steps)
        Columns(self.columns or ":")

    @property
    def ahead(self) -> int:
        """Its steps."""
        return self.steps

    def output(self, given: ValueType) -> ValueType:
        """The same."""
        require_floats(given)
        taken = Columns(self.columns or ":").output(given)
        size = num_values(self.representation)
        if taken.shape[-1] != size:
            raise ValueError(f"{self.representation} has {size} values, not {taken.shape[-1]}")
        return given

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The same values with the rotation in these columns; no rotation at the end."""
        places = Columns(self.columns or ":").indices(values.shape[-1])
        now = values[..., places]
        turned = values.copy()
        future = _later(now, self.steps)
        turned[..., places] = relative_rotation(now, future, self.representation, self.frame)
        return turned


@dataclasses.dataclass(frozen=True)
class Accumulate(SameFloats):
    """Makes absolute values of relative ones: the sum of all up to a step, itself included."""

    op: Literal["accumulate"] = "accumulate"

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """x[0] + ... + x[t]."""
        return np.cumsum(values.astype(np.float64), axis=0).astype(values.dtype)


@dataclasses.dataclass(frozen=True)
class SumAhead(SameFloats):
    """Adds up the values of a step and of those after it: relative actions of a longer step."""

    steps: int
    """How many are added; where every n-th step is kept, n."""
    op: Literal["sum_ahead"] = "sum_ahead"

    def __post_init__(self) -> None:
        """Checks the range."""
        _check_steps(self.steps)

    @property
    def ahead(self) -> int:
        """All but the step itself."""
        return self.steps - 1

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """x[t] + ... + x[t + steps - 1], of those that are there."""
        exact = values.astype(np.float64)
        padded = np.concatenate([exact, np.zeros((self.steps - 1, *values.shape[1:]))])
        # Added one by one: a running sum would lose digits over a long episode.
        summed = sum(padded[n : n + len(values)] for n in range(self.steps))
        return np.asarray(summed).astype(values.dtype)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")


def _later(values: np.ndarray, steps: int) -> np.ndarray:
    """x[t + steps]; the last ones repeat the last value."""
    return values[np.minimum(np.arange(len(values)) + steps, len(values) - 1)]
