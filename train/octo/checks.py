"""Checks of ranges that several configs share."""

from typing import Any


def check_positive(config: Any, *fields: str) -> None:
    """Raises `ValueError` where a field is less than 1.

    Args:
      config: Has the fields.
      fields: Their names.
    """
    for field in fields:
        value = getattr(config, field)
        if value < 1:
            raise ValueError(f"{field} must be at least 1, not {value}")
