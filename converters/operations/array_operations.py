"""Operations on each step by itself: columns, arithmetic, shapes and dtypes."""

import dataclasses
import math
import re
from typing import Literal

import numpy as np

from converters.operations.value_type import (
    Others,
    SameFloats,
    Simple,
    ValueType,
    require_floats,
    require_size,
)

_AXES = {"rotate_180": (1, 2), "flip_vertically": (1,), "flip_horizontally": (2,)}


@dataclasses.dataclass(frozen=True)
class Turn(Simple):
    """Turns or mirrors images whose source holds pixels; encoded ones would lose by it."""

    by: Literal["rotate_180", "flip_vertically", "flip_horizontally"]
    """How: `rotate_180` exchanges rows and columns, `flip_vertically` the rows alone."""
    op: Literal["turn"] = "turn"

    def output(self, given: ValueType) -> ValueType:
        """The same type."""
        if given.kind != "image":
            raise ValueError(f"it takes pixels of an image, not {given}")
        return given

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The images, as a view of the pixels."""
        return np.flip(values, _AXES[self.by])


_RANGE = re.compile(r"\s*(?:(-?\d+)|(-?\d+)?:(-?\d+)?)\s*")


@dataclasses.dataclass(frozen=True)
class Columns(Simple):
    """Takes columns of the last axis, in the order in which they are named."""

    columns: str
    """Indices and ranges with commas between: `0:6`, `-1:`, `6`, `0:3, 7:10`. Negative ones count
    from the end. The last of a range is not part of it."""
    op: Literal["columns"] = "columns"

    def __post_init__(self) -> None:
        """Checks the text."""
        if not all(_RANGE.fullmatch(part) for part in self.columns.split(",")):
            raise ValueError(
                f"columns {self.columns!r} must be such as '0:6', '-1:', '6' or '0, 2'"
            )

    def indices(self, width: int) -> list[int]:
        """The places of the columns in an axis of a width.

        Raises:
          ValueError: One is not there, or a range is empty.
        """
        places: list[int] = []
        for part in self.columns.split(","):
            one, start, stop = _RANGE.fullmatch(part).groups()  # pyright: ignore[reportOptionalMemberAccess]
            first = int(one if one is not None else start or 0)
            first += width * (first < 0)
            last = first + 1 if one is not None else int(stop or width)
            last += width * (last < 0)
            # Python would shorten a range that is too long without a word.
            if not 0 <= first < last <= width:
                held = f"{width} column{'' if width == 1 else 's'}, counted from 0"
                raise ValueError(f"columns {part.strip()} are not among {held}")
            places += range(first, last)
        return places

    def output(self, given: ValueType) -> ValueType:
        """The same with another last axis."""
        if given.kind != "tensor" or not given.shape:
            raise ValueError(f"it takes columns of a tensor, not of {given}")
        width = len(self.indices(given.shape[-1]))
        return dataclasses.replace(given, shape=(*given.shape[:-1], width))

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The columns."""
        return values[..., self.indices(values.shape[-1])]


@dataclasses.dataclass(frozen=True)
class Scale(Simple):
    """Multiplies: x times `by`."""

    by: float | tuple[float, ...]
    """A factor, or one per column."""
    op: Literal["scale"] = "scale"

    def output(self, given: ValueType) -> ValueType:
        """The same."""
        return _arithmetic(given, "by", self.by)

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The products."""
        return _rounded(_exact(values) * np.asarray(self.by), values)


@dataclasses.dataclass(frozen=True)
class Divide(Simple):
    """Divides: x / `by`."""

    by: float | tuple[float, ...]
    """A divisor, or one per column; none is 0."""
    op: Literal["divide"] = "divide"

    def __post_init__(self) -> None:
        """Checks the divisors."""
        if not np.all(self.by):
            raise ValueError(f"by {self.by} must not be 0")

    def output(self, given: ValueType) -> ValueType:
        """The same."""
        return _arithmetic(given, "by", self.by)

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The quotients."""
        return _rounded(_exact(values) / np.asarray(self.by), values)


@dataclasses.dataclass(frozen=True)
class Offset(Simple):
    """Adds: x + `by`."""

    by: float | tuple[float, ...]
    """A number, or one per column."""
    op: Literal["offset"] = "offset"

    def output(self, given: ValueType) -> ValueType:
        """The same."""
        return _arithmetic(given, "by", self.by)

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The sums."""
        return _rounded(_exact(values) + np.asarray(self.by), values)


@dataclasses.dataclass(frozen=True)
class Negate(SameFloats):
    """Changes the sign: -x."""

    op: Literal["negate"] = "negate"

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The opposites; 0 stays +0."""
        return values * -1 + 0.0


@dataclasses.dataclass(frozen=True)
class Invert(SameFloats):
    """Exchanges 0 and 1: 1 - x, as between a gripper that is open at 1 and one that is closed."""

    op: Literal["invert"] = "invert"

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The differences to 1."""
        return 1 - values


@dataclasses.dataclass(frozen=True)
class Clip(SameFloats):
    """Limits values to a range."""

    low: float
    """What lower values become."""
    high: float
    """What higher values become."""
    op: Literal["clip"] = "clip"

    def __post_init__(self) -> None:
        """Checks the order."""
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The limited values."""
        return np.clip(values, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Reshape(Simple):
    """Gives each step another shape, in C order: a matrix as a vector, a number as a vector of one.

    A depth image of (h, w, 1) becomes (h, w), and the other way round.
    """

    shape: tuple[int, ...]
    """Shape of one value; one length may be -1 and follows from the others."""
    op: Literal["reshape"] = "reshape"

    def output(self, given: ValueType) -> ValueType:
        """The same with another shape."""
        if given.kind != "tensor":
            raise ValueError(f"it takes a tensor, not {given}")
        size = math.prod(given.shape)
        known = math.prod(length for length in self.shape if length != -1)
        free = self.shape.count(-1)
        if free > 1 or (size % known if free and known else size != known):
            raise ValueError(f"shape {list(self.shape)} does not hold the {size} values of {given}")
        shape = tuple(size // known if length == -1 else length for length in self.shape)
        return dataclasses.replace(given, shape=shape)

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The same values."""
        return values.reshape(len(values), *self.shape)


@dataclasses.dataclass(frozen=True)
class Cast(Simple):
    """Gives values another dtype, each value unchanged or rounded to the nearest float."""

    dtype: Literal["float32", "float64", "int32", "uint8", "bool"]
    """The dtype."""
    reason: str
    """Why the source's dtype is not what the numbers mean."""
    op: Literal["cast"] = "cast"

    def __post_init__(self) -> None:
        """Checks that a reason is given."""
        if not self.reason.strip():
            raise ValueError("reason is empty: a cast says why")

    def output(self, given: ValueType) -> ValueType:
        """The same with the dtype."""
        if given.kind != "tensor":
            raise ValueError(f"it takes a tensor, not {given}")
        return dataclasses.replace(given, dtype=self.dtype)

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The values as the dtype."""
        with np.errstate(invalid="ignore", over="ignore"):
            cast = values.astype(self.dtype)
        # Rounding to a float loses digits; into an integer or bool it would lose the value.
        same = np.isclose(cast, values, rtol=1e-6, equal_nan=True)
        changed = ~same if self.dtype.startswith("float") else cast != values
        if changed.any():
            raise ValueError(f"{self.dtype} does not hold {values[changed].ravel()[0]}")
        return cast


def _arithmetic(given: ValueType, name: str, by: float | tuple[float, ...]) -> ValueType:
    require_floats(given)
    require_size(given, name, by)
    return given


def _exact(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)


def _rounded(exact: np.ndarray, values: np.ndarray) -> np.ndarray:
    return exact.astype(values.dtype)
