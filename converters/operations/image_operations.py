"""Operations on the pixels of images."""

import dataclasses
from typing import Literal

import numpy as np

from converters.operations.value_type import Others, Simple, ValueType

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
