"""Operations on rotations, and those that turn or scale by what other keys of an episode hold."""

import dataclasses
from typing import Literal

import numpy as np

from converters.operations.array_operations import Columns
from converters.operations.value_type import Others, SameFloats, Simple, ValueType, require_floats
from pipeline.data.rotations import (
    Representation,
    absolute_rotation,
    convert_rotation,
    num_values,
)

_PLANE = 2


@dataclasses.dataclass(frozen=True)
class ConvertRotation(Simple):
    """Writes a rotation in another representation, in the place of the old one.

    Source: `pipeline.data.rotations.convert_rotation`.
    """

    source: Representation
    """The representation at the source."""
    target: Representation
    """The one that is wanted."""
    columns: str = ""
    """Neighbouring columns that hold it, such as `3:7`; the others stay. Empty: all."""
    op: Literal["convert_rotation"] = "convert_rotation"

    def __post_init__(self) -> None:
        """Checks the columns."""
        Columns(self.columns or ":")

    def output(self, given: ValueType) -> ValueType:
        """The same, wider or narrower by the difference of the representations."""
        require_floats(given)
        taken = Columns(self.columns or ":").output(given).shape[-1]
        size = num_values(self.source)
        if taken != size:
            raise ValueError(f"{self.source} has {size} values, not {taken}")
        places = Columns(self.columns or ":").indices(given.shape[-1])
        if places != list(range(places[0], places[0] + size)):
            raise ValueError(f"columns {self.columns} are not side by side")
        width = given.shape[-1] - size + num_values(self.target)
        return dataclasses.replace(given, shape=(*given.shape[:-1], width))

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The columns before, the rotation, and the columns after."""
        places = Columns(self.columns or ":").indices(values.shape[-1])
        turned = convert_rotation(values[..., places], self.source, self.target)
        before, after = values[..., : places[0]], values[..., places[-1] + 1 :]
        return np.concatenate([before, turned, after], axis=-1)


@dataclasses.dataclass(frozen=True)
class AddToState(SameFloats):
    """Applies a change to the state at the same step: the target that a relative action commands.

    Source: `pipeline.data.rotations.absolute_rotation`.
    """

    state: str
    """Key of the state."""
    columns: str = ""
    """Columns of the state that are changed, such as `3:6`. Empty: all."""
    rotation: Representation | None = None
    """Representation of a rotation, of state and change. None: the numbers are added."""
    frame: Literal["tool", "base"] = "base"
    """Frame of a change that is a rotation. `base`: R_change R_state; `tool`: R_state R_change."""
    op: Literal["add_to_state"] = "add_to_state"

    def __post_init__(self) -> None:
        """Checks the columns."""
        Columns(self.columns or ":")

    @property
    def keys(self) -> tuple[str, ...]:
        """The state's."""
        return (self.state,)

    def output(self, given: ValueType) -> ValueType:
        """The same."""
        require_floats(given)
        if self.rotation and given.shape[-1:] != (num_values(self.rotation),):
            raise ValueError(f"{self.rotation} has {num_values(self.rotation)} values, not {given}")
        return given

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The targets, in float64 until the end."""
        held = np.asarray(others[self.state], np.float64)
        state = held[..., Columns(self.columns or ":").indices(held.shape[-1])]
        if state.shape != values.shape:
            raise ValueError(
                f"{self.state} has {list(state.shape[1:])} values per step in these columns, not "
                f"{list(values.shape[1:])}"
            )
        change = values.astype(np.float64)
        if self.rotation is None:
            return (state + change).astype(values.dtype)
        reached = absolute_rotation(state, change, self.rotation, self.frame)
        return reached.astype(values.dtype)


@dataclasses.dataclass(frozen=True)
class TurnInPlane(Simple):
    """Turns a planar vector by an angle that another key has at the same step."""

    angle: str
    """Key of the angle in radians: a number or a vector of one."""
    inverse: bool = False
    """Whether it is turned back: a motion of the base, seen from a robot that has this yaw."""
    op: Literal["turn_in_plane"] = "turn_in_plane"

    @property
    def keys(self) -> tuple[str, ...]:
        """The angle's."""
        return (self.angle,)

    def output(self, given: ValueType) -> ValueType:
        """The same."""
        require_floats(given)
        if given.shape != (_PLANE,):
            raise ValueError(f"it takes vectors of {_PLANE}, not {given}")
        return given

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The vectors, turned: (x cos - y sin, x sin + y cos)."""
        angles = np.asarray(others[self.angle], np.float64).reshape(len(values), -1)
        if angles.shape[1] != 1:
            raise ValueError(f"{self.angle} has {angles.shape[1]} values per step, not one angle")
        angle = angles[:, 0] * (-1 if self.inverse else 1)
        x, y = values[:, 0].astype(np.float64), values[:, 1].astype(np.float64)
        sine, cosine = np.sin(angle), np.cos(angle)
        return np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1).astype(values.dtype)


@dataclasses.dataclass(frozen=True)
class ScaleByMotion(SameFloats):
    """Scales an episode so that its motions have the unit of its actions.

    The factor is the norm of the first action over that of the first motion: the difference of the
    positions of the first two steps.

    Source: Octo's mapping of the GNM sets, whose actions are in units of a normalised waypoint.
    """

    action: str
    """Key of the actions."""
    position: str
    """Key of the positions."""
    op: Literal["scale_by_motion"] = "scale_by_motion"

    @property
    def keys(self) -> tuple[str, ...]:
        """Both."""
        return (self.action, self.position)

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The scaled values."""
        action, position = (np.asarray(others[key], np.float64) for key in self.keys)
        motion = np.linalg.norm(position[1:2] - position[:1])
        if not motion > 0:
            raise ValueError(f"{self.position} does not change from step 0 to 1: no factor")
        return (values.astype(np.float64) * (np.linalg.norm(action[0]) / motion)).astype(
            values.dtype
        )
