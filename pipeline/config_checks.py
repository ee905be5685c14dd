"""Checks configs, and reports all problems at once."""

import contextlib
import contextvars
import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import numpy as np

from pipeline.errors import UserError, nearest_name

_PLAIN = {
    int: (int, "an integer", "Give one, without quotes or a decimal point."),
    float: (float | int, "a number", "Give one, without quotes."),
    bool: (bool, "True or False", "Give one of them, without quotes."),
    str: (str, "a text", "Give it in quotes; str() makes a text of a path."),
}
"""What a field for a number or a text accepts, in types and in words, and the remedy."""
_MAPPINGS = (dict, Mapping)
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

    Values are converted as if they had been written to JSON and read again: a list in a field for a
    tuple becomes a tuple, an integer for a number a float, a NumPy scalar one of Python. Whatever a
    config is read from, a value of another type than its field's is refused.
    """
    _convert_fields(config)
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
        if not isinstance(value, _Mistyped) and value < 1:
            yield Problem(field, "at least 1", value, "Give a whole number from 1.")


def _convert_fields(config: object) -> None:
    """Replaces the values of a config's fields for those that its JSON would give."""
    for field, hint in _hints(type(config)).items():
        value = getattr(config, field)
        converted = _converted(hint, value)
        if converted is not value:
            # The dataclass is frozen, and has just been made.
            object.__setattr__(config, field, converted)


def _converted(hint: Any, value: Any) -> Any:
    """Returns a value as its type has it; one that does not fit stays as it is.

    list -> tuple, at every depth    int -> float, for a number    NumPy's scalars -> Python's
    """
    if _is_plainly(hint, value):
        return value
    kinds = _alternatives(hint)
    plain: Any = value.item() if isinstance(value, np.generic) else value
    if type(plain) is int and float in kinds and int not in kinds:
        return float(plain)
    inner = next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), None)
    if inner is None or not isinstance(plain, tuple | list):
        return plain
    hints = inner[:1] * len(plain) if inner[-1:] == (...,) else inner
    # Of another length, which `_of_tuple` reports.
    paired = itertools.zip_longest(hints, plain, fillvalue=Any)
    return tuple(_converted(of_one, one) for of_one, one in itertools.islice(paired, len(plain)))


class _Mistyped:
    """Stands for a value of another type while the other fields are checked.

    Whatever a check does with it fails, so that nothing is reported that only follows from it.
    """

    def _fail(self, *_: object) -> Any:
        raise TypeError("a value of another type")

    __bool__ = __eq__ = __str__ = __repr__ = _fail
    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _own_problems(config: Checked, after: list[Problem]) -> list[Problem]:
    """Lists the problems of one config; a check that fails because of earlier ones adds none."""
    found = [*_mistyped(config)]
    fields = {_field_of(problem) for problem in found}
    if fields:
        config = copy.copy(config)
    for field in fields:
        object.__setattr__(config, field, _Mistyped())
    try:
        for problem in config.problems():
            if _field_of(problem) not in fields:
                found.append(problem)  # noqa: PERF401  (keeps the problems before an exception)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # A check that fails because of an earlier problem adds nothing.
        if not (found or after):
            raise
    return found


def _field_of(problem: Problem) -> str:
    return problem.field.partition(".")[0]


def _mistyped(config: object) -> Iterator[Problem]:
    """Yields a problem for each value that is not of its field's type."""
    for field, hint in _hints(type(config)).items():
        yield from _mismatches(field, hint, getattr(config, field))


def _mismatches(place: str, hint: Any, value: Any) -> Iterator[Problem]:
    """Yields what keeps a value from having a type; nothing for a type that is not known here.

    Args:
      place: Dotted path of the value, from the field on.
      hint: The type, with its annotations.
      value: The value to check.
    """
    if _is_plainly(hint, value):
        return
    kinds = _alternatives(hint)
    if value is None and NoneType in kinds:
        return
    found = [[*_of_kind(place, kind, value)] for kind in kinds if kind is not NoneType]
    if not found or not all(found):
        return
    if len(found) > 1:
        expected = " or ".join(problems[0].expected for problems in found)
        found = [[Problem(place, expected, _found(value), "Give one of them.")]]
    for problem in found[0]:
        none = ", or None" if NoneType in kinds and problem.field == place else ""
        yield dataclasses.replace(problem, expected=problem.expected + none)


def _of_kind(place: str, kind: Any, value: Any) -> Iterator[Problem]:
    """Yields what keeps a value from having a type that is no union."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _of_part(place, *marks_of(kind)[0], value)
    elif origin is Literal:
        yield from _of_modes(place, get_args(kind), value)
    elif origin is tuple:
        yield from _of_tuple(place, kind, value)
    elif origin in _MAPPINGS:
        yield from _of_mapping(place, kind, value)
    elif kind in _PLAIN:
        accepted, expected, remedy = _PLAIN[kind]
        # True is a number of Python's.
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            yield Problem(place, expected, _found(value), remedy)
    elif not _is_instance(value, origin or kind):
        name = _name(kind)
        yield Problem(place, f"an instance of {name}", _found(value), f"Write {name}(...).")


def _of_part(place: str, kind: Any, mark: Mark, value: Any) -> Iterator[Problem]:
    """Yields why a value is no part of its kind."""
    is_instance = dataclasses.is_dataclass(value) and not isinstance(value, type)
    mistyped = [problem.below(place) for problem in _mistyped(value)] if is_instance else []
    # A part is also read as it is written, even with fields that are out of range.
    with deferred():
        others = [Problem(place, *found) for found in mark.problems_of(kind, value)]
    yield from mistyped or others


def _of_modes(place: str, modes: Sequence[Any], value: Any) -> Iterator[Problem]:
    # 1 equals True.
    if any(type(mode) is type(value) and mode == value for mode in modes):
        return
    nearest = nearest_name(str(value), [str(mode) for mode in modes])
    remedy = f"Did you mean {nearest!r}?" if nearest else "Give one of them."
    yield Problem(place, f"one of {', '.join(map(repr, modes))}", _found(value), remedy)


def _of_tuple(place: str, kind: Any, value: Any) -> Iterator[Problem]:
    inner = get_args(kind)
    is_open = inner[-1:] == (...,)
    is_tuple = isinstance(value, tuple | list)
    # One pair in the place of several has no pairs inside.
    are_pairs = is_open and get_origin(inner[0]) is tuple
    is_pair = is_tuple and are_pairs and not any(isinstance(one, tuple | list) for one in value)
    if is_tuple and (not value or not is_pair) and (is_open or len(value) == len(inner)):
        hints = inner[:1] * len(value) if is_open else inner
        for number, pair in enumerate(zip(hints, value, strict=True)):
            yield from _mismatches(f"{place}.{number}", *pair)
        return
    of, example = "", _name(kind)
    if is_open:
        is_one = isinstance(value, str | int) and not any(_mismatches(place, inner[0], value))
        of, example = "of ", f"({repr(value) if is_one else _example(inner[0])},)"
    expected = f"a tuple {of}{_name(inner[0] if is_open else kind)}"
    made = example if "." in place else f"{place}={example}"
    yield Problem(place, expected, _found(value), f"Write {made}.")


def _of_mapping(place: str, kind: Any, value: Any) -> Iterator[Problem]:
    of_key, of_value = get_args(kind)
    if not isinstance(value, Mapping):
        expected = f"a dictionary of {_name(of_key)} to {_name(of_value)}"
        yield Problem(place, expected, _found(value), f"Write {place}={{...}}.")
        return
    for key, inner in value.items():
        yield from _mismatches(f"{place}, the key {key!r}", of_key, key)
        yield from _mismatches(f"{place}.{key}", of_value, inner)


def _is_plainly(hint: Any, value: Any) -> bool:
    """Whether a value has exactly this type: a quick answer for most of them, such as (3, "x")."""
    return type(value) is hint or (
        type(value) is tuple and tuple(map(type, value)) == get_args(hint)
    )


def _is_instance(value: object, kind: Any) -> bool:
    """Whether a value is of a class; true for what is no class, or none that can be checked."""
    try:
        return kind is Any or not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol without `runtime_checkable`
        return True


def _name(hint: Any) -> str:
    """The name of a type as it is written; a pair is written like its value: (str, int)."""
    (kind, *others) = _alternatives(hint)
    origin, inner = get_origin(kind), get_args(kind)
    if others or kind is ...:
        return "..." if kind is ... else str(hint)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return f"({', '.join(map(_name, inner))})"
    return getattr(inner[0] if origin is Annotated else kind, "__name__", str(kind))


def _example(hint: Any) -> str:
    """What is written for a value of a type."""
    if get_origin(hint) is Literal:
        return repr(get_args(hint)[0])
    is_made = (isinstance(hint, type) and hint not in _PLAIN) or get_origin(hint) is Annotated
    return f"{_name(hint)}(...)" if is_made else _name(hint)


def _found(value: object) -> str:
    """A value in one short line; of a class or a nested config its name, as it would be longer."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if dataclasses.is_dataclass(value):
        return f"an instance of {type(value).__name__}"
    return f"{' '.join(repr(value).split()):.80}"


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
    """The types of a dataclass's fields, with what annotates them."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _alternatives(hint: Any) -> list[Any]:
    """The types of a union, or a type itself; of what annotates them, the marks are kept."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for each in get_args(hint) for kind in _alternatives(each)]
    if get_origin(hint) is Annotated and not any(isinstance(e, Mark) for e in hint.__metadata__):
        return _alternatives(hint.__origin__)
    return [hint]


def _configs(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, config) for every config in a value, the value itself last."""
    parts: dict[str, Any] = {}
    if isinstance(value, type):
        return
    if isinstance(value, tuple):
        parts = {str(number): part for number, part in enumerate(value)}
    elif dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    # Inner configs first: their problems are often the cause of the outer ones.
    for name, part in parts.items():
        yield from _configs(part, f"{path}.{name}" if path else name)
    if dataclasses.is_dataclass(value):
        yield path, value
