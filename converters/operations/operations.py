"""The operations by name, and chains of them: the computation of a feature, as data."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pydantic

from converters.operations.array_operations import (
    Cast,
    Clip,
    Columns,
    Divide,
    Invert,
    Negate,
    Offset,
    Reshape,
    Scale,
    Turn,
)
from converters.operations.gripper_operations import (
    BinarizeGripper,
    GripperHysteresis,
    RelativeGripper,
)
from converters.operations.rotation_operations import (
    AddToState,
    ConvertRotation,
    ScaleByMotion,
    TurnInPlane,
)
from converters.operations.text_operations import (
    CodePoints,
    EpisodeText,
    Substitute,
    TextOfCode,
    Unzip,
)
from converters.operations.time_operations import (
    Accumulate,
    Difference,
    Next,
    RotationDifference,
    SumAhead,
)
from converters.operations.value_type import Operation, Others, ValueType

AnyOperation = Annotated[
    Columns
    | Scale
    | Divide
    | Offset
    | Negate
    | Invert
    | Clip
    | Reshape
    | Cast
    | RelativeGripper
    | BinarizeGripper
    | GripperHysteresis
    | Next
    | Difference
    | RotationDifference
    | Accumulate
    | SumAhead
    | ConvertRotation
    | AddToState
    | TurnInPlane
    | ScaleByMotion
    | Turn
    | Unzip
    | CodePoints
    | TextOfCode
    | Substitute
    | EpisodeText,
    pydantic.Field(discriminator="op"),
]
"""An operation in a mapping: in TOML a table whose `op` says which."""


def output_type(operations: Sequence[Operation], given: ValueType) -> ValueType:
    """The type of the last operation's result.

    Raises:
      ValueError: One cannot take what the one before it gives; it names the operation.
    """
    for place, operation in enumerate(operations):
        try:
            given = operation.output(given)
        except ValueError as error:
            raise ValueError(f"{_name(operations, place)}: {error}") from error
    return given


def computed(operations: Sequence[Operation], values: np.ndarray, others: Others) -> np.ndarray:
    """The last operation's result, (t, *shape).

    Args:
      operations: In their order.
      values: (t, *shape), t at least 1, of a type that they take.
      others: The values of all their `keys`.

    Raises:
      ValueError: The values do not allow it; it names the operation and the step.
    """
    for place, operation in enumerate(operations):
        try:
            values = operation.apply(values, others)
        except ValueError as error:
            name = _name(operations, place)
            raise ValueError(f"{name}, {_cause(operation, values, others, error)}") from error
    return values


def _cause(operation: Operation, values: np.ndarray, others: Others, error: ValueError) -> str:
    """The first step whose values alone are refused, and why; the error where none is."""
    for t in range(len(values)):
        try:
            operation.apply(values[t : t + 1], {k: others[k][t : t + 1] for k in operation.keys})
        except ValueError as of_step:
            return f"step {t}: {of_step}"
    return f"steps 0 to {len(values) - 1}: {error}"


def steps_ahead(operations: Sequence[Operation]) -> int:
    """How many steps a chain looks ahead."""
    return sum(operation.ahead for operation in operations)


def _name(operations: Sequence[Operation], place: int) -> str:
    """The name of an operation, with its place where it is there more than once."""
    name = operations[place].op
    doubled = [operation.op for operation in operations].count(name) > 1
    return f"operation {name}" + (f" ({place + 1}. of {len(operations)})" if doubled else "")
