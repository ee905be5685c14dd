"""Flags from the fields of a dataclass: their help texts, and those of the parts of a config."""

import dataclasses
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import docstring_parser
import tyro

T = TypeVar("T")
PartsFlag = tyro.conf.UseAppendAction[
    Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
]
"""The flag --parts of a command that reads a run: `pipeline.parts.part_files.load_parts` takes its
value."""


def part_flags() -> tyro.constructors.ConstructorRegistry:
    """Returns tyro's rules, and one that makes flags of the fields of a part.

    A part has a protocol as its type, and as its default an instance of any class.
    """
    registry = tyro.constructors.ConstructorRegistry()

    @registry.struct_rule
    def part_rule(
        info: tyro.constructors.StructTypeInfo,
    ) -> tyro.constructors.StructConstructorSpec | None:
        if not (_holds_protocol(info.type) and dataclasses.is_dataclass(info.default)):
            return None
        of_class = dataclasses.replace(info, type=type(info.default))
        found = tyro.constructors.ConstructorRegistry.get_struct_spec(of_class)
        return found if isinstance(found, tyro.constructors.StructConstructorSpec) else None

    return registry


def _holds_protocol(kind: Any) -> bool:
    """Whether a type is a protocol, or may be one, such as `PROTOCOL | None`."""
    return getattr(kind, "_is_protocol", False) or any(map(_holds_protocol, get_args(kind)))


def joined_help(kind: type[T]) -> type[T]:
    """The same class, with each field's docstring as one paragraph that fits any terminal.

    tyro would break a help text wherever its docstring has a line break in the source.
    """
    hints = get_type_hints(kind, include_extras=True)
    for field in docstring_parser.parse_from_object(kind).params:
        if field.arg_name in hints and field.description:
            text = tyro.conf.arg(help=" ".join(field.description.split()))
            kind.__annotations__[field.arg_name] = Annotated[hints[field.arg_name], text]
    return kind
