"""Computed features: the values that operations make of the keys of a source."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from converters.mapping.mapped_features import EXACT_INTEGER, FeatureMapping
from converters.operations.operations import computed, output_type, steps_ahead
from converters.operations.text_operations import EpisodeText
from converters.operations.value_type import FLOATS, Others, ValueType
from converters.sources.source import STEPS

COMPUTED = "steps/computed/"
"""Prefix of the keys that a source gets for computed features."""


@dataclasses.dataclass(frozen=True)
class ComputedFeature:
    """A feature of a mapping that computes."""

    mapping: FeatureMapping

    @property
    def key(self) -> str:
        """The key that its values get in the source, such as `steps/computed/action`."""
        # A text of the episode stands outside `steps/`.
        return (COMPUTED.removeprefix(STEPS) if self.is_text else COMPUTED) + self.mapping.key

    @property
    def is_text(self) -> bool:
        """Whether it is a text of the whole episode."""
        compute = self.mapping.compute
        return bool(compute) and isinstance(compute[-1], EpisodeText)

    @property
    def ahead(self) -> int:
        """How many steps it looks ahead."""
        parts = max(steps_ahead(part.compute) for part in self.mapping.parts)
        return parts + steps_ahead(self.mapping.compute)

    def type(self, types: Mapping[str, ValueType]) -> ValueType:
        """The type of its values.

        Args:
          types: Types of the source's keys.

        Raises:
          ValueError: An operation cannot take what it gets, or the parts cannot be joined; one
            sentence that names key and operation.
        """
        joined, parts = [], self.mapping.parts
        for operation in [*self.mapping.compute, *(o for part in parts for o in part.compute)]:
            for key in operation.keys:
                if types[key].kind != "tensor":
                    raise ValueError(f"operation {operation.op}: {key} is {types[key]}, no numbers")
        for part in parts:
            if part.constant is not None:
                joined.append(ValueType("tensor", "float32", (part.width,)))
                continue
            try:
                made = output_type(part.operations, types[part.source])
            except ValueError as error:
                raise ValueError(f"{part.source}: {error}") from error
            if len(parts) > 1 and (made.kind != "tensor" or len(made.shape) > 1):
                raise ValueError(f"{part.source}: a part is a number or a vector, not {made}")
            joined.append(made)
        made = joined[0]
        if len(parts) > 1:
            width = sum(math.prod(one.shape) for one in joined)
            made = ValueType("tensor", _joined_dtype([one.dtype for one in joined]), (width,))
        made = output_type(self.mapping.compute, made)
        if made.kind not in ("tensor", "image") and not self.is_text:
            raise ValueError(
                f"a feature is a tensor, an image or, by episode_text, one text, not {made}"
            )
        return made

    def values(self, episode: Others, num_steps: int) -> np.ndarray:
        """Its values, (t, *shape), of the type that `type` gives.

        Args:
          episode: By source key: (t, *shape), for keys of the whole episode as well.
          num_steps: Steps of the episode, at least 1.

        Raises:
          ValueError: The values do not allow it; it names key, operation and step.
        """
        columns = []
        for part in self.mapping.parts:
            if part.constant is not None:
                columns.append(np.full((num_steps, part.width), part.constant, np.float32))
                continue
            try:
                columns.append(computed(part.operations, episode[part.source], episode))
            except ValueError as error:
                raise ValueError(f"{part.source}: {error}") from error
        made = columns[0]
        if len(columns) > 1:
            dtype = _joined_dtype([column.dtype.name for column in columns])
            made = np.concatenate([_as_floats(column, dtype) for column in columns], axis=1)
        return computed(self.mapping.compute, made, episode)


def _joined_dtype(dtypes: list[str]) -> str:
    return FLOATS[1] if FLOATS[1] in dtypes else FLOATS[0]


def _as_floats(column: np.ndarray, dtype: str) -> np.ndarray:
    """A number or vector per step as (t, n) of floats."""
    flat = column.reshape(len(column), -1)
    is_integer = flat.dtype.kind in "iu"
    if is_integer and flat.size and np.abs(flat.astype(np.float64)).max() > EXACT_INTEGER:
        raise ValueError(f"integers above {EXACT_INTEGER}, which float32 does not hold")
    return flat.astype(dtype)
