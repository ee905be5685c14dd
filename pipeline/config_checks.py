"""Checks configs, and reports all problems at once."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

_is_deferred = contextvars.ContextVar("is_deferred", default=False)


@runtime_checkable
class Checked(Protocol):
    """A frozen dataclass whose `__post_init__` calls `check`."""

    def problems(self) -> Iterator[str]:
        """Yields a sentence for each thing that is wrong with the fields."""
        ...


def check(config: Checked) -> None:
    """Raises a `ValueError` that lists all problems of a config, unless checks are deferred."""
    if _is_deferred.get():
        return
    found = _own_problems(config, after=[])
    if found:
        raise ValueError("; ".join(found))


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets invalid configs be created inside the block; call `all_problems` afterwards."""
    token = _is_deferred.set(True)
    try:
        yield
    finally:
        _is_deferred.reset(token)


def all_problems(config: object) -> list[str]:
    """Lists the problems of a config and of all nested configs, innermost first, each once."""
    found: list[str] = []
    for path, part in _configs(config, ""):
        if isinstance(part, Checked):
            texts = _own_problems(part, after=found)
            # Some sentences name their own place already.
            found += [text if text.startswith(path) else f"{path}: {text}" for text in texts]
    # A part that two configs share is listed once.
    return list(dict.fromkeys(found))


def check_positive(config: object, *fields: str) -> Iterator[str]:
    """Yields the problem of each field that is less than 1.

    Args:
      config: The config that has the fields.
      fields: Names of the fields to check.
    """
    for field in fields:
        value = getattr(config, field)
        if value < 1:
            yield f"{field} must be at least 1, not {value}"


def _own_problems(config: Checked, after: list[str]) -> list[str]:
    """Lists the problems of one config; a check that fails because of earlier ones adds none."""
    found: list[str] = []
    try:
        for problem in config.problems():
            found.append(problem)  # noqa: PERF402  (keeps the problems before an exception)
    except (ArithmeticError, LookupError, ValueError):
        # A check that fails because of an earlier problem adds nothing.
        if not (found or after):
            raise
    return found


def _configs(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, config) for every config in a value, the value itself last."""
    parts: dict[str, Any] = {}
    if isinstance(value, tuple):
        parts = {str(number): part for number, part in enumerate(value)}
    elif dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    # Inner configs first: their problems are often the cause of the outer ones.
    for name, part in parts.items():
        yield from _configs(part, f"{path}.{name}" if path else name)
    if dataclasses.is_dataclass(value):
        yield path, value
