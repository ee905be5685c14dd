"""The instruction of a step from several keys of the source, or from what is no text there."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from converters.operations.operations import AnyOperation, computed, output_type
from converters.operations.value_type import Others, ValueType
from pipeline.added_fields import LATER
from pipeline.data.schema import Blob


@dataclasses.dataclass(frozen=True)
class InstructionFrom:
    """The first text of several keys that is not empty, at each step by itself."""

    keys: tuple[str, ...]
    """Keys in the source, the preferred one first; of steps or of the whole episode. Those that the
    source lacks are passed over, but not all of them."""
    compute: tuple[AnyOperation, ...] = ()
    """Operations on the value of each key that make a text of it, such as `code_points`."""
    default: str = dataclasses.field(default="", metadata=LATER)
    """The text of steps where all keys are empty."""

    def __post_init__(self) -> None:
        """Checks that there is a key, and that no operation looks at other steps or keys."""
        if not self.keys:
            raise ValueError("instruction_from.keys names no key")
        for operation in self.compute:
            if operation.ahead or operation.keys:
                raise ValueError(f"instruction_from.compute: {operation.op} makes no text")

    def check(self, types: Mapping[str, ValueType]) -> None:
        """Raises a `ValueError` where one of the keys that are there does not become a text."""
        for key in types:
            try:
                made = output_type(self.compute, types[key])
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
            if made.kind != "text":
                raise ValueError(f"{key}: the instruction is a text, not {made}")

    def texts(self, values: Others) -> list[Blob]:
        """The instruction of each step.

        Args:
          values: By key, of those that are there: (t, ...).

        Raises:
          ValueError: A value does not become a text; it names key, operation and step.
        """
        chosen: np.ndarray | None = None
        for key in filter(values.__contains__, self.keys):
            try:
                texts = computed(self.compute, values[key], {})
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
            if chosen is None:
                chosen = texts.copy()
            is_empty = np.array([not bytes(text).strip() for text in chosen], bool)
            chosen[is_empty] = texts[is_empty]
        assert chosen is not None  # there is one of the keys
        default = self.default.encode()
        return [bytes(text) if bytes(text).strip() else default for text in chosen]
