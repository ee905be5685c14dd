"""The type of the values that an operation takes or gives, and the interface of operations."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import numpy as np

FLOATS = ("float32", "float64")
"""Dtypes that operations compute in; what a half loses would be lost again in each operation."""

Others = Mapping[str, np.ndarray]
"""Values of other source keys by name, for operations that need them: each (t, *shape)."""


@dataclasses.dataclass(frozen=True)
class ValueType:
    """The type of one value: of one step, or of the whole episode."""

    kind: Literal["tensor", "image", "text", "other"]
    """A text is an array of the objects `bytes`, in UTF-8 or any other bytes."""
    dtype: str
    """Dtype of a tensor; `utf8` for a text."""
    shape: tuple[int, ...]
    """Shape without the time axis."""

    def __str__(self) -> str:
        """The type as messages show it."""
        if self.kind == "tensor":
            return f"{self.dtype}{list(self.shape)}"
        return "a text" if self.kind == "text" else f"{self.kind} {self.dtype}{list(self.shape)}"


@runtime_checkable
class Operation(Protocol):
    """One step of a computation: a pure function of the values of a whole episode."""

    @property
    def op(self) -> str:
        """The name in a mapping."""
        ...

    @property
    def ahead(self) -> int:
        """How many steps it looks ahead: its last values are made up, and these steps dropped."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Other source keys that it needs, each with one value per step."""
        ...

    def output(self, given: ValueType) -> ValueType:
        """The type that it gives for values of a type.

        Raises:
          ValueError: It cannot take them; one sentence, without a full stop.
        """
        ...

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The result, (t, *shape) of the type that `output` gives; `values` is not modified.

        Args:
          values: (t, *shape), t at least 1.
          others: At least its `keys`.

        Raises:
          ValueError: The values do not allow it; one sentence, without a full stop.
        """
        ...


class Simple:
    """What holds for most operations: they look at no other step, and at no other key."""

    @property
    def ahead(self) -> int:
        """None."""
        return 0

    @property
    def keys(self) -> tuple[str, ...]:
        """None."""
        return ()


class SameFloats(Simple):
    """What holds for operations that take floats and give the same type."""

    def output(self, given: ValueType) -> ValueType:
        """The same."""
        require_floats(given)
        return given


def require_floats(given: ValueType) -> None:
    """Raises a `ValueError` unless the type is a tensor of float32 or float64."""
    if given.kind != "tensor" or given.dtype not in FLOATS:
        raise ValueError(
            f"it takes numbers of {' or '.join(FLOATS)}, not {given}; an operation cast makes them"
        )


def require_size(given: ValueType, name: str, values: float | tuple[float, ...]) -> None:
    """Raises a `ValueError` where there is one number per column, but not for each column."""
    if isinstance(values, tuple) and given.shape[-1:] != (len(values),):
        raise ValueError(f"{name} has {len(values)} numbers, one per column, but gets {given}")
