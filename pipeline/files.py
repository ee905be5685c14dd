"""Text files written whole or not at all, and JSON that is checked as it is read."""

import functools
import json
import os
import pathlib
import re
from typing import Any, TypeVar

import pydantic
from etils import epath

from pipeline.errors import DataError

T = TypeVar("T")

_NUMBERS_OVER_LINES = re.compile(r"\[\n\s*([-+\d.eE,\s]+?)\s*\n\s*\]")


TEMPORARIES = ".*.tmp"
"""Glob over the names that `temporary_path` gives."""


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names an object store, such as `gs://bucket/folder`."""
    return "://" in os.fspath(path)


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """Where a file is written until it is whole: beside it, hidden, of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sync(path: pathlib.Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomically(path: epath.PathLike, text: str) -> None:
    """Writes `text` so that a reader sees all of it or the file of before.

    An object store does so by itself.
    """
    if is_remote(path):
        epath.Path(path).write_text(text)
        return
    local = pathlib.Path(path)
    temporary = temporary_path(local)
    try:
        temporary.write_text(text)
        sync(temporary)
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)
    sync(local.parent)


def dump_json(values: object) -> str:
    """Indented JSON with a newline at the end; a list of numbers stays on one line."""
    return _NUMBERS_OVER_LINES.sub(_on_one_line, json.dumps(values, indent=1)) + "\n"


def _on_one_line(match: re.Match[str]) -> str:
    return "[" + re.sub(r"\s+", " ", match.group(1)) + "]"


def to_json_values(value: object) -> Any:
    """A dataclass, however nested, as plain JSON values."""
    return _adapter(type(value)).dump_python(value, mode="json")


@functools.cache
def _adapter(kind: type) -> Any:  # beartype knows no TypeAdapter[T]
    """What checks and writes a dataclass; it takes milliseconds to build."""
    return pydantic.TypeAdapter(kind)


def from_json_text(kind: type[T], text: str | bytes, *, where: str, remedy: str) -> T:
    """A dataclass from JSON, every field checked against its annotation and none left over.

    Raises:
      DataError: All mismatches together, each with its place.
    """
    try:
        return _adapter(kind).validate_json(text, strict=True, extra="forbid")
    except pydantic.ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()
        )
        raise DataError(
            where=where, expected=f"a valid {kind.__name__}", found=details, remedy=remedy
        ) from error
