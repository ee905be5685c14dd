"""How predicted openings of a gripper become its commands at rollout.

A policy predicts 1 = open to 0 = close for every gripper. Its rule decides what the robot is sent;
the dataset's conventions then map 1 and 0 to the gripper's own open and close.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from pipeline.config_checks import Problem, check
from pipeline.data.conventions import Conventions, Gripper
from pipeline.errors import UserError, did_you_mean

_OPEN, _CLOSED = 1.0, 0.0


@runtime_checkable
class GripperRule(Protocol):
    """A rule for one gripper, in `DataConfig.gripper_rules`."""

    @property
    def dim(self) -> str:
        """Returns the name of the gripper in the action."""
        ...

    def decide(self, opening: float, last: float | None) -> float:
        """Returns what one step's command opens the gripper to, from 1 = open to 0 = close.

        Args:
          opening: The predicted opening; it may lie outside of 0 to 1.
          last: What was decided for the step before; None at the start of an episode.
        """
        ...


@dataclasses.dataclass(frozen=True)
class GripperThreshold:
    """Opens above a threshold, and closes otherwise."""

    dim: str
    """Name of the gripper in the action."""
    value: float = 0.5
    """The threshold, between 0 = close and 1 = open."""

    def __post_init__(self) -> None:
        """Checks the range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        if not math.isfinite(self.value):
            yield Problem("value", "a finite number", self.value, "0.5 is the middle.")

    def decide(self, opening: float, last: float | None) -> float:
        """Returns 1 or 0."""
        del last
        return _OPEN if opening > self.value else _CLOSED


@dataclasses.dataclass(frozen=True)
class GripperHysteresis:
    """Opens above one value and closes below another; between them the last command stays.

    The first command of an episode is the one whose value is nearer.
    """

    dim: str
    """Name of the gripper in the action."""
    open_above: float = 0.7
    """Opening above which it opens."""
    close_below: float = 0.3
    """Opening below which it closes."""

    def __post_init__(self) -> None:
        """Checks the order of the values."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        if not -math.inf < self.close_below < self.open_above < math.inf:
            yield Problem(
                "open_above",
                f"a finite number above close_below, {self.close_below}",
                self.open_above,
                "Leave a range between them in which the last command stays.",
            )

    def decide(self, opening: float, last: float | None) -> float:
        """Returns 1, 0 or the last decision."""
        if last is None:
            middle = (self.open_above + self.close_below) / 2
            return _OPEN if opening > middle else _CLOSED
        if opening > self.open_above:
            return _OPEN
        return _CLOSED if opening < self.close_below else last


@dataclasses.dataclass(frozen=True)
class ContinuousGripper:
    """Sends any opening, clipped to 0 to 1, which is mapped to the range of the commands."""

    dim: str
    """Name of the gripper in the action."""

    def __post_init__(self) -> None:
        """Checks the type of the name."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields nothing: whether there is such a gripper, the dataset shows."""
        yield from ()

    def decide(self, opening: float, last: float | None) -> float:
        """Returns the opening in [0, 1]."""
        del last
        return min(max(opening, _CLOSED), _OPEN)


def rules_by_index(
    rules: Sequence[GripperRule],
    conventions: Conventions,
    action_dims: Sequence[str],
    where: str,
) -> Mapping[int, GripperRule]:
    """Returns the rule of each gripper, by its index in the action.

    A gripper without one has that of its kind: a threshold of 0.5, or any opening.

    Args:
      rules: Rules by the names of grippers.
      conventions: Conventions of the dataset, which know its grippers.
      action_dims: Names of the action's dimensions; empty: they are numbered from 0.
      where: The dataset, for the error.

    Raises:
      UserError: A rule is for a dimension that is no gripper.
    """
    # A gripper has the name that transforms know it by.
    names = {
        action_dims[gripper.dim] if action_dims else str(gripper.dim): gripper
        for gripper in conventions.all_grippers
    }
    unknown = [rule.dim for rule in rules if rule.dim not in names]
    if unknown:
        raise UserError(
            where=f"{where}, data.gripper_rules",
            expected=f"names of its grippers, which are {', '.join(names) or 'none'}",
            found=", ".join(unknown),
            remedy=did_you_mean(unknown[0], names) + "Name them as `octograin inspect` shows them.",
        )
    chosen = {rule.dim: rule for rule in rules}
    return {g.dim: chosen.get(name) or _usual(g, name) for name, g in names.items()}


def check_one_each(rules: Sequence[GripperRule]) -> Iterator[Problem]:
    """Yields the problem of two rules for one gripper."""
    names = [rule.dim for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        found = f"several for {', '.join(twice)}"
        yield Problem("gripper_rules", "one rule per gripper", found, "Keep one of them.")


def _usual(gripper: Gripper, name: str) -> GripperRule:
    """The rule of a gripper's kind."""
    return GripperThreshold(name) if gripper.kind == "binary" else ContinuousGripper(name)
