"""Marks fields that a dataclass gained after its first release, so that older files stay valid.

Such a field is written only where it differs from its default. Files written before the field
existed therefore keep their text and hash, and older releases can still read files without it.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

LATER: Mapping[str, bool] = MappingProxyType({"later": True})
"""The metadata of such a field: `dataclasses.field(default=(), metadata=LATER)`."""


def without_absent(value: object, plain: Any) -> Any:
    """Returns plain values without the later fields that have their default.

    Args:
      value: A dataclass, however nested in mappings and sequences.
      plain: The same value as dicts, lists and scalars; not modified.
    """
    if dataclasses.is_dataclass(value):
        if plain.keys() != {field.name for field in dataclasses.fields(value)}:
            # The record of a part, which `pipeline.parts.part` wrote without them.
            return plain
        present = [field for field in dataclasses.fields(value) if not _is_absent(field, value)]
        # By field, because `plain` holds JSON values without their classes.
        return {f.name: without_absent(getattr(value, f.name), plain[f.name]) for f in present}
    if isinstance(value, Mapping):
        pairs = zip(value.values(), plain.items(), strict=True)
        return {key: without_absent(held, shown) for held, (key, shown) in pairs}
    # Skips sequences of scalars: a manifest can hold a million episode lengths.
    if isinstance(value, tuple | list) and value and not isinstance(value[0], int | float | str):
        return [without_absent(*pair) for pair in zip(value, plain, strict=True)]
    return plain


def _is_absent(field: dataclasses.Field, value: object) -> bool:
    if not field.metadata.get("later"):
        return False
    make = field.default_factory
    # A mutable default is made by its factory.
    default = field.default if make is dataclasses.MISSING else make()
    return getattr(value, field.name) == default
