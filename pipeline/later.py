"""Fields that a dataclass gained after its first release.

They are not written where they have their default, so what was written before a field existed keeps
its text and its hash, and an older release reads what does not need the field.
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
      plain: The same as dicts, lists and scalars; not modified.
    """
    if dataclasses.is_dataclass(value):
        present = [field for field in dataclasses.fields(value) if not _is_absent(field, value)]
        return {f.name: without_absent(getattr(value, f.name), plain[f.name]) for f in present}
    if isinstance(value, Mapping):
        pairs = zip(value.values(), plain.items(), strict=True)
        return {key: without_absent(held, shown) for held, (key, shown) in pairs}
    # A million episode lengths are not looked at one by one.
    if isinstance(value, tuple | list) and value and not isinstance(value[0], int | float | str):
        return [without_absent(*pair) for pair in zip(value, plain, strict=True)]
    return plain


def _is_absent(field: dataclasses.Field, value: object) -> bool:
    if not field.metadata.get("later"):
        return False
    make = field.default_factory
    default = field.default if make is dataclasses.MISSING else make()
    return getattr(value, field.name) == default
