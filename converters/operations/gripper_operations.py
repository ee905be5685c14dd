"""Operations on gripper commands; a column by itself, over the steps of a whole episode.

Their result is 1 where the gripper is open and 0 where it is closed.
"""

import dataclasses
from typing import Literal

import numpy as np

from converters.operations.value_type import Others, SameFloats


@dataclasses.dataclass(frozen=True)
class RelativeGripper(SameFloats):
    """Makes a state of commands that close (above `threshold`), open (below -`threshold`) or keep.

    Until the first command the state is the opposite of what that command does; without any
    command it is open.

    Source: Octo's `rel2abs_gripper_actions`, whose thresholds are compared in float32.
    """

    threshold: float = 0.1
    """Values from -threshold to threshold, both included, are no command."""
    op: Literal["relative_gripper"] = "relative_gripper"

    def __post_init__(self) -> None:
        """Checks the range."""
        if not self.threshold > 0:
            raise ValueError(f"threshold must be above 0, not {self.threshold}")

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """1 where it is open, 0 where it is closed."""
        single, threshold = values.astype(np.float32), np.float32(self.threshold)
        decided = np.where(single > threshold, 0.0, np.where(single < -threshold, 1.0, np.nan))
        # 0 and 1 exchange; an episode without a command is open from its first step.
        before = np.nan_to_num(1 - _first(decided), nan=1.0)
        return _filled(np.concatenate([before[None], decided]))[1:].astype(values.dtype)


@dataclasses.dataclass(frozen=True)
class BinarizeGripper(SameFloats):
    """Makes 1 of values above `open_above`, 0 of those below `close_below`.

    Values between take the next decided one; it looks ahead to the end of the episode. At the end
    of an episode, where none comes, they become the last value of the episode as it is.

    Source: Octo's `binarize_gripper_actions`, whose thresholds are compared in float32.
    """

    open_above: float = 0.95
    """Higher values are open."""
    close_below: float = 0.05
    """Lower values are closed."""
    op: Literal["binarize_gripper"] = "binarize_gripper"

    def __post_init__(self) -> None:
        """Checks the order."""
        _check_order(self.open_above, self.close_below)

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """1 where it is open, 0 where it is closed, in between at the end of some episodes."""
        decided = _decided(values, self.open_above, self.close_below)
        tail = np.where(np.isnan(decided[-1]), values[-1], decided[-1])
        # From the end: the next value of a step is the one before in reverse.
        reverse = np.concatenate([tail[None], decided[::-1]])
        return _filled(reverse)[1:][::-1].astype(values.dtype)


@dataclasses.dataclass(frozen=True)
class GripperHysteresis(SameFloats):
    """Makes 1 of values above `open_above`, 0 of those below `close_below`; others keep the state.

    It looks back alone, as a robot can. Before the first decided value the state is that value;
    where none is decided it is open.
    """

    open_above: float
    """Higher values open it."""
    close_below: float
    """Lower values close it."""
    op: Literal["gripper_hysteresis"] = "gripper_hysteresis"

    def __post_init__(self) -> None:
        """Checks the order."""
        _check_order(self.open_above, self.close_below)

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """1 where it is open, 0 where it is closed."""
        decided = _decided(values, self.open_above, self.close_below)
        before = np.nan_to_num(_first(decided), nan=1.0)
        return _filled(np.concatenate([before[None], decided]))[1:].astype(values.dtype)


def _check_order(open_above: float, close_below: float) -> None:
    if not close_below <= open_above:
        raise ValueError(f"close_below {close_below} must not be above open_above {open_above}")


def _decided(values: np.ndarray, open_above: float, close_below: float) -> np.ndarray:
    """1, 0, or NaN where it is neither; float64 (t, *shape)."""
    single = values.astype(np.float32)
    closed = np.where(single < np.float32(close_below), 0.0, np.nan)
    return np.where(single > np.float32(open_above), 1.0, closed)


def _first(decided: np.ndarray) -> np.ndarray:
    """The first value of each column that is not NaN; NaN where all are."""
    place = np.argmax(~np.isnan(decided), axis=0)
    # An array even of no axis, where indexing gives a scalar.
    return np.take_along_axis(decided, place[None], axis=0)[0, ...]


def _filled(decided: np.ndarray) -> np.ndarray:
    """Each NaN replaced by the value before it."""
    steps = np.arange(len(decided)).reshape(-1, *[1] * (decided.ndim - 1))
    last = np.maximum.accumulate(np.where(np.isnan(decided), 0, steps), axis=0)
    return np.take_along_axis(decided, last, axis=0)
