"""Checks configs, and reports all problems at once."""

import contextlib
import contextvars
import dataclasses
import functools
import numbers
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from pipeline.errors import UserError, nearest_name, shown

_PLAIN = {
    int: (numbers.Integral, "an integer", "Give one, without quotes."),
    float: (numbers.Real, "a number", "Give one, without quotes."),
    str: (str, "a text", "Give it in quotes; str() makes a text of a path."),
}
"""What a field for a number or a text accepts, in types and in words, and the remedy."""
_is_deferred = contextvars.ContextVar("is_deferred", default=False)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config."""

    field: str
    """The field to change; dots lead into nested configs."""
    expected: str
    """What the field has to be."""
    found: object
    """What it is."""
    remedy: str
    """What to do."""

    def __str__(self) -> str:
        """The problem in one line, like an error."""
        return f"{self.field}: expected {self.expected}; found {self.found}. {self.remedy}"

    def below(self, path: str) -> "Problem":
        """Returns the problem with the path of the config in front of its field."""
        return dataclasses.replace(self, field=f"{path}.{self.field}") if path else self


class ConfigError(UserError, ValueError):
    """A config whose fields are out of range or contradict each other.

    Args:
      where: Name of the config, or how the command line calls it.
      problems: All problems, at least one.
      how: How fields are changed, such as ` in the file or by flags`; empty: nothing is added.
    """

    def __init__(self, where: str, problems: Sequence[Problem], how: str = "") -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            problem = self.problems[0]
            super().__init__(
                where=f"{where}, {problem.field}",
                expected=problem.expected,
                found=str(problem.found),
                remedy=problem.remedy + (f" Change it{how}." if how else ""),
            )
        else:
            super().__init__(
                where=where,
                expected="settings that fit together",
                found=f"{len(self.problems)} problems",
                remedy=f"Change these fields{how}:" + "".join(f"\n  {p}" for p in self.problems),
            )
        self._arguments = (where, self.problems, how)

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps the problems when the error crosses a process border."""
        return ConfigError, self._arguments


def listed(problems: Sequence[Problem]) -> str:
    """The problems without their remedies, as a part of a sentence."""
    return "; ".join(f"{p.field}: expected {p.expected}, not {p.found}" for p in problems)


@runtime_checkable
class Checked(Protocol):
    """A frozen dataclass whose `__post_init__` calls `check`."""

    def problems(self) -> Iterator[Problem]:
        """Yields each thing that is wrong with the fields."""
        ...


@runtime_checkable
class Mark(Protocol):
    """What checks the values of a field, in its type: `Annotated[KIND, mark]`."""

    def problems_of(self, kind: Any, value: Any) -> Iterator[tuple[str, str, str]]:
        """Yields (expected, found, remedy) for what is wrong with a value.

        Args:
          kind: The type that is annotated.
          value: The value to check.
        """
        ...


def check(config: Checked) -> None:
    """Raises a `ConfigError` that lists all problems of a config, unless checks are deferred.

    A list in a field for a tuple becomes a tuple, so that both ways of writing give equal configs.
    """
    _make_tuples(config)
    if _is_deferred.get():
        return
    found = _own_problems(config, after=[])
    if found:
        raise ConfigError(type(config).__name__, found)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets invalid configs be created inside the block; call `all_problems` afterwards."""
    token = _is_deferred.set(True)
    try:
        yield
    finally:
        _is_deferred.reset(token)


def all_problems(config: object) -> list[Problem]:
    """Lists the problems of a config and of all nested configs, innermost first, each once."""
    found: list[Problem] = []
    for path, part in _configs(config, ""):
        if isinstance(part, Checked):
            found += [problem.below(path) for problem in _own_problems(part, after=found)]
    # A part that two configs share is listed once.
    return list(dict.fromkeys(found))


def check_positive(config: object, *fields: str) -> Iterator[Problem]:
    """Yields the problem of each field that is less than 1.

    Args:
      config: The config that has the fields.
      fields: Names of the fields to check.
    """
    for field in fields:
        value = getattr(config, field)
        if value < 1:
            yield Problem(field, "at least 1", value, "Give a whole number from 1.")


def _make_tuples(config: object) -> None:
    """Replaces lists in a config's fields for tuples."""
    for field, hint in _hints(type(config)).items():
        value = getattr(config, field)
        is_for_tuple = any(get_origin(kind) is tuple for kind in (hint, *get_args(hint)))
        if is_for_tuple:
            # The dataclass is frozen, and has just been made.
            object.__setattr__(config, field, _as_tuple(value))


def _as_tuple(value: Any) -> Any:
    """Turns lists into tuples, at every depth of lists and tuples; other values stay."""
    return tuple(map(_as_tuple, value)) if type(value) in (tuple, list) else value


def _own_problems(config: Checked, after: list[Problem]) -> list[Problem]:
    """Lists the problems of one config; a check that fails because of earlier ones adds none."""
    found = [*_mistyped(config)]
    if found:
        # The other checks expect values of these types.
        return found
    try:
        for problem in config.problems():
            found.append(problem)  # noqa: PERF402  (keeps the problems before an exception)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # A check that fails because of an earlier problem adds nothing.
        if not (found or after):
            raise
    return found


def _mistyped(config: object) -> Iterator[Problem]:
    """Yields fields whose value is no mode of theirs, no tuple of what they list, or no number."""
    for field, hint in _hints(type(config)).items():
        value = getattr(config, field)
        marks = _marks(type(config))[field]
        found = list(_no_parts(field, marks, value))
        if found:
            yield from found
            continue
        kinds = [hint, *(get_args(hint) if isinstance(hint, UnionType) else ())]
        modes = [mode for kind in kinds if get_origin(kind) is Literal for mode in get_args(kind)]
        if modes and value not in modes and not (value is None and NoneType in kinds):
            nearest = nearest_name(str(value), [str(mode) for mode in modes])
            remedy = f"Did you mean {nearest!r}?" if nearest else "Give one of them."
            yield Problem(field, f"one of {', '.join(map(repr, modes))}", repr(value), remedy)
        yield from _no_number(field, kinds, value)
        elements = [get_args(k) for k in kinds if get_origin(k) is tuple and get_args(k)[-1] is ...]
        if not elements or (value is None and NoneType in kinds):
            continue
        kind = elements[0][0]
        is_tuple = isinstance(value, tuple | list)
        if is_tuple and all(_is_of(kind, element) for element in value):
            continue
        # A pair is written like its value: (str, int).
        names = [getattr(k, "__name__", str(k)) for k in get_args(kind)]
        is_pair = get_origin(kind) is tuple
        name = f"({', '.join(names)})" if is_pair else getattr(kind, "__name__", str(kind))
        made = name if is_pair else f"{name}(...)"
        example = f"({shown(value)},)" if name == "str" else f"({made},)"
        found = f"{value!r:.80}" if is_tuple else f"{shown(value):.80}"
        yield Problem(field, f"a tuple of {name}", found, f"Write {field}={example}.")


def _is_of(kind: Any, element: object) -> bool:
    """Returns whether an element of a tuple has its type; a kind that is no class fits all."""
    if get_origin(kind) is not tuple:
        if kind is float and isinstance(element, int):
            # As in annotations: 2 is written for 2.0. True is a number of Python's.
            return not isinstance(element, bool)
        # Any is a class, but not one for `isinstance`.
        return kind is Any or not isinstance(kind, type) or isinstance(element, kind)
    kinds = get_args(kind)
    if not isinstance(element, tuple | list) or len(element) != len(kinds):
        return False
    return all(map(_is_of, kinds, element))


def _no_parts(field: str, marks: list[tuple[Any, Mark]], value: object) -> Iterator[Problem]:
    """Yields a problem for each value of a field of parts that is none."""
    several = value if isinstance(value, tuple | list) else None
    for number, each in enumerate((value,) if several is None else several):
        for kind, mark in marks if each is not None else ():
            place = field if several is None else f"{field}.{number}"
            is_instance = dataclasses.is_dataclass(each) and not isinstance(each, type)
            mistyped = [problem.below(place) for problem in _mistyped(each)] if is_instance else []
            # A part is also read as it is written, even with fields that are out of range.
            with deferred():
                others = [Problem(place, *found) for found in mark.problems_of(kind, each)]
            yield from mistyped or others


def _no_number(field: str, kinds: list[Any], value: object) -> Iterator[Problem]:
    """Yields the problem of a field for a number or a text that has a value of another type."""
    plain = [kind for kind in kinds if kind is not NoneType and not isinstance(kind, UnionType)]
    if len(plain) != 1 or plain[0] not in _PLAIN or (value is None and NoneType in kinds):
        return
    accepted, expected, remedy = _PLAIN[plain[0]]
    # True is a number of Python's.
    if not isinstance(value, accepted) or isinstance(value, bool):
        yield Problem(field, expected, f"{shown(value):.80}", remedy)


def marks_of(hint: Any) -> list[tuple[Any, Mark]]:
    """Lists (kind, mark) of the marks in the type of a field, which has its annotations."""
    if get_origin(hint) is Annotated:
        kind, *extras = get_args(hint)
        marks = [(kind, extra) for extra in extras if isinstance(extra, Mark)]
        return marks or marks_of(kind)
    return [mark for argument in get_args(hint) for mark in marks_of(argument)]


def is_typed(config: object) -> bool:
    """Returns whether the values of a config have the types of their fields, at every depth."""
    parts = (part for _, part in _configs(config, ""))
    return not any(problem for part in parts for problem in _mistyped(part))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a config's fields, without what annotates them for the command line."""
    return get_type_hints(kind)


@functools.cache
def _marks(kind: type) -> dict[str, list[tuple[Any, Mark]]]:
    """The parts in the types of a config's fields."""
    hints = get_type_hints(kind, include_extras=True)
    return {field: marks_of(hint) for field, hint in hints.items()}


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
