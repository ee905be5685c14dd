"""Parts of a config: frozen dataclasses of the library, or of a user's own file.

The type of a field that holds them is a protocol with a mark:

    transforms: tuple[Annotated[Transform, Part("pipeline.loading.transforms.dropout")], ...]

In JSON a part of the library is `{"part": "Dropout", "fields": {...}}`. A user's has its source
too: `{"part": "Wrench", "module": "my_parts", "file": "my_parts.py", "checksum": "...", "fields":
{...}}`.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from inspect import get_annotations
from typing import Any, Union, get_args, get_type_hints

import pydantic
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from pipeline.added_fields import without_absent
from pipeline.errors import nearest_name
from pipeline.parts.part_sources import MissingPartError, PartSource, find_class, source_of

_REMEDY = "Write a frozen dataclass at the top of a file, and give an instance of it."
_SOURCE = ("module", "file", "checksum")


class Part:
    """Marks the type of a field that holds a part: `Annotated[PROTOCOL, Part(...)]`.

    The protocol is `runtime_checkable`. What it wants besides methods it declares as properties,
    because the fields of a frozen dataclass are read-only.

    Args:
      *modules: Modules of the library that define its parts of this kind. Of these classes a file
        has the name alone.
      plain: Classes of which a file has the fields alone, without a name, as files had before
        there were parts.
    """

    def __init__(self, *modules: str, plain: tuple[type, ...] = ()) -> None:
        self.modules = modules
        self.plain = plain

    def __get_pydantic_core_schema__(self, kind: Any, handler: object) -> core_schema.CoreSchema:
        """Returns how pydantic reads and writes a part, whatever class it is of."""
        del handler  # it would read the protocol's own members
        return core_schema.with_info_plain_validator_function(
            functools.partial(self._read, kind),
            serialization=core_schema.plain_serializer_function_ser_schema(self.write),
        )

    def write(self, value: Any) -> dict[str, Any]:
        """Returns the JSON values of a part."""
        kind = type(value)
        dumped = _adapter(kind).dump_python(value, mode="json", warnings="error")
        fields = without_absent(value, dumped)
        if kind in self.plain:
            return fields
        if kind.__module__ in self.modules:
            return {"part": kind.__name__, "fields": fields}
        source = source_of(kind)
        names = {"part": kind.__name__, "module": source.module, "file": source.file}
        return {**names, "checksum": source.checksum, "fields": fields}

    def problems_of(self, kind: Any, value: Any) -> Iterator[tuple[str, str, str]]:
        """Yields (expected, found, remedy) for the first thing that keeps a value from being one.

        Args:
          kind: The protocol of the field.
          value: The value to check.
        """
        found, expected = type(value), "an instance of a frozen dataclass"
        if isinstance(value, type):
            yield expected, f"the class {value.__name__}", f"Write {value.__name__}(...)."
        elif not dataclasses.is_dataclass(value):
            shown = getattr(value, "__name__", None)
            text = f"the function {shown}" if shown and callable(value) else f"{value!r:.60}"
            yield _needs(kind), text, _REMEDY
        elif not found.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
            remedy = f"Write @dataclasses.dataclass(frozen=True) above class {found.__name__}."
            yield "a frozen dataclass", f"{found.__name__}, which is not frozen", remedy
        elif not isinstance(value, kind):
            lacks = lacked(kind, found)
            text = f"{found.__name__}, which lacks {', '.join(lacks)}" if lacks else found.__name__
            yield _needs(kind), text, f"Add {'them' if len(lacks) > 1 else 'it'} to the class."
        elif "." in found.__qualname__ and found not in self.plain:
            remedy = "Move the class to the top of the file: a checkpoint records it by its name."
            yield "a class at the top of a file", found.__qualname__, remedy
        else:
            yield from _unwritable(self, value)

    def _read(self, kind: Any, values: Any, info: Any) -> Any:
        """Returns the part that JSON values describe."""
        if isinstance(values, dict) and "part" in values:
            found = self._class_of(values, info.context)
            # Before it is made: making it executes what the class checks.
            if lacks := lacked(kind, found):
                raise _error(f"{found.__name__} lacks {', '.join(lacks)}")
            if not _members(kind) and not issubclass(found, kind):
                raise _error(f"expected {_needs(kind)}, not {found.__name__}")
            part = _parsed(found, values.get("fields", {}), info.context, ("fields",))
        elif self.plain and isinstance(values, dict):
            part = _parsed(Union[self.plain], values, info.context)  # noqa: UP007  (of a tuple)
        else:
            raise _error("it needs the field part, which has the name of a class")
        if not isinstance(part, kind):
            raise _error(f"expected {_needs(kind)}, not {type(part).__name__}")
        return part

    def _class_of(self, values: dict[str, Any], directory: pathlib.Path | None) -> type:
        """Returns the class that a record of a part names."""
        record = _parsed(_Record, values)
        source = None
        if record.module is not None:
            source = PartSource(record.module, record.file, record.checksum, None)
        try:
            return find_class(record.part, source, self.modules, directory)
        except MissingPartError as error:
            raise _error(str(error), remedy=error.remedy) from error


def without_sources(values: Any) -> Any:
    """Returns JSON values without what records the sources of users' parts."""
    if isinstance(values, dict):
        left_out = _SOURCE if _is_users(values) else ()
        return {key: without_sources(v) for key, v in values.items() if key not in left_out}
    return [without_sources(value) for value in values] if isinstance(values, list) else values


def fields_of_parts(values: Any) -> Any:
    """Returns JSON values in which parts lie as flags call their fields.

    {"head": {"part": "Flow", "fields": {"width": 8}}}    {"head": {"part": "Flow", "width": 8}}
    {"transforms": [{"part": "Shift", "fields": {}}]}     {"transforms": {"0": {"part": "Shift"}}}
    """
    if isinstance(values, list) and any(_is_record(value) for value in values):
        values = {str(number): value for number, value in enumerate(values)}
    if not isinstance(values, dict):
        return values
    if _is_record(values):
        values = {"part": values["part"], **values["fields"]}
    return {key: fields_of_parts(value) for key, value in values.items()}


def files_of_parts(values: Any) -> Iterator[str]:
    """Yields the names of the files that JSON values record for users' parts."""
    if isinstance(values, dict):
        if _is_users(values) and values["file"]:
            yield values["file"]
        values = list(values.values())
    for value in values if isinstance(values, list) else ():
        yield from files_of_parts(value)


def _is_users(values: dict[str, Any]) -> bool:
    """Returns whether JSON values are the record of a user's part."""
    return {"part", *_SOURCE, "fields"} == values.keys()


def _is_record(values: Any) -> bool:
    """Returns whether JSON values are the record of a part."""
    return isinstance(values, dict) and (_is_users(values) or {"part", "fields"} == values.keys())


def _unwritable(mark: Part, value: Any) -> Iterator[tuple[str, str, str]]:
    """Yields why a part would not be read from a file as it was written."""
    expected = "fields that JSON holds: numbers, texts, tuples and dataclasses of them"
    remedy = "Annotate each field with its type, and keep arrays and objects out of them."
    try:
        before = mark.write(value)
        again = _parsed(type(value), before if type(value) in mark.plain else before["fields"])
        after = mark.write(again)
    except Exception as error:  # noqa: BLE001  (pydantic and the class's own code raise anything)
        yield expected, f"{type(value).__name__}: {' '.join(str(error).split())[:200]}", remedy
        return
    if before != after:
        yield expected, f"{type(value).__name__}, whose fields are not read as written", remedy


def _parsed(
    kind: Any,
    values: Any,
    directory: pathlib.Path | None = None,
    place: tuple[str, ...] = (),
) -> Any:
    """Parses JSON values as strictly as `pipeline.files.from_json_text`.

    Raises:
      ValidationError: With `place` before each place.
    """
    try:
        # Text again: read as Python values, a list would be no tuple.
        text = json.dumps(values)
        return _adapter(kind).validate_json(text, strict=True, extra="forbid", context=directory)
    except pydantic.ValidationError as error:
        raise _relined(error, kind, place) from error


def _relined(
    error: pydantic.ValidationError, kind: Any, place: tuple[str, ...] = ()
) -> pydantic.ValidationError:
    """Returns an error that pydantic joins with those around it, with names for unknown fields."""
    lines = [_line(kind, dict(line), place) for line in error.errors()]
    return pydantic.ValidationError.from_exception_data(error.title, lines, "json")


def _line(kind: Any, line: dict[str, Any], place: tuple[str, ...]) -> InitErrorDetails:
    of, location, context = line["type"], line["loc"], line.get("ctx", {})
    value = line["input"]
    if of == "unexpected_keyword_argument":
        *location, name = location
        nearest = nearest_name(str(name), field_names(kind, location))
        message = f"unknown field {name}" + (f" ({nearest}?)" if nearest else "")
        of, value = _error(message), None
    elif of == "part":  # of a part inside this one
        of = _error(line["msg"], **context)
    location = (*place, *location)
    return InitErrorDetails(type=of, loc=location, input=value, ctx=context)


def _error(message: str, **context: Any) -> PydanticCustomError:
    """Returns what a reader raises; `message` may hold braces."""
    return PydanticCustomError("part", "{message}", {**context, "message": message})


def field_names(kind: Any, location: Sequence[str | int]) -> list[str]:
    """Lists the fields of the nested dataclass at a location in a dataclass."""
    kinds = list(_dataclasses(kind))
    for name in location:
        hints = [get_type_hints(outer) for outer in kinds]
        # Through the fields on the way; numbers of list places are in no class and are skipped.
        kinds = [k for h in hints if name in h for k in _dataclasses(h[str(name)])] or kinds
    return [field.name for k in kinds for field in dataclasses.fields(k)]


def _dataclasses(annotation: Any) -> Iterator[Any]:
    """Yields the dataclasses in an annotation such as `tuple[Part, ...]`."""
    if dataclasses.is_dataclass(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _dataclasses(argument)


def lacked(kind: Any, found: type) -> list[str]:
    """Lists what a dataclass lacks of a protocol; none for another type."""
    fields = {field.name for field in dataclasses.fields(found)}
    return [name for name in _members(kind) if name not in fields and not hasattr(found, name)]


def _members(kind: Any) -> list[str]:
    """Lists the methods and properties of a protocol; none for another type."""
    bases = [base for base in getattr(kind, "__mro__", ()) if getattr(base, "_is_protocol", False)]
    names = [name for base in reversed(bases) for name in (*get_annotations(base), *vars(base))]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def _needs(kind: Any) -> str:
    """What a protocol or another type wants, in words."""
    if members := _members(kind):
        return f"a dataclass with {', '.join(members)}"
    return " or ".join(getattr(each, "__name__", str(each)) for each in get_args(kind) or (kind,))


@functools.cache
def _adapter(kind: Any) -> Any:  # beartype knows no TypeAdapter[T]
    """Builds what validates and writes a dataclass; cached, as building takes milliseconds."""
    return pydantic.TypeAdapter(kind)


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a file has of a part."""

    part: str
    fields: dict[str, Any]
    module: str | None = None
    file: str | None = None
    checksum: str | None = None
