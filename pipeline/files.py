"""Text files written whole or not at all, and JSON and TOML that are checked as they are read."""

import contextlib
import dataclasses
import difflib
import fcntl
import functools
import json
import math
import os
import pathlib
import re
import secrets
import stat
import tomllib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import pydantic
import xxhash
from etils import epath

from pipeline.errors import DataError, UserError
from pipeline.later import without_absent

T = TypeVar("T")

Measured = Annotated[
    float, pydantic.BeforeValidator(lambda value: math.nan if value is None else value)
]
"""A float that `checksums.to_json_line` may have written as null; read again, it is NaN."""
_NUMBERS_OVER_LINES = re.compile(r"\[\n\s*([-+\d.eE,\s]+?)\s*\n\s*\]")


MAX_TEXT_BYTES = 256 * 2**20
"""Of a JSON or TOML file; those of a dataset of ten million episodes take less."""
UNPARSABLE = (ValueError, RecursionError, MemoryError, OverflowError)
"""What parsers raise: of text of another form, or nested or with numbers beyond what they hold."""
_SPECIAL_FILES = {
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names an object store, such as `gs://bucket/folder`."""
    return "://" in os.fspath(path)


def open_path(path: epath.PathLike) -> epath.Path:
    """A path on a disk or in an object store whose client is installed and answers.

    Raises:
      UserError: Where it does not.
    """
    try:
        opened = epath.Path(path)
        if is_remote(path):
            opened.exists()
    except Exception as error:
        raise UserError(
            where=os.fspath(path),
            expected="a path on a disk, or of an object store that can be reached",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}",
            remedy="Install the store's client (gs://: gcsfs, s3://: s3fs), check its credentials.",
        ) from error
    return opened


def special_file(path: epath.PathLike) -> str | None:
    """What lies at a path where reading may never end, such as `a FIFO`.

    None for a file, a folder, nothing at all, and an object of a store.
    """
    if is_remote(path):
        return None
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    return next((words for test, words in _SPECIAL_FILES.items() if test(mode)), None)


def read_text(path: epath.PathLike, *, expected: str, remedy: str) -> str:
    """The text of a file, in UTF-8 whatever the locale.

    Args:
      path: On a disk or in an object store.
      expected: What the file has to be, for the error.
      remedy: For the error.

    Raises:
      DataError: Where it is missing, may not be read, is no file, is larger than `MAX_TEXT_BYTES`
        or is not UTF-8.
    """
    found = special_file(path)
    try:
        if found is None and (size := epath.Path(path).stat().length) > MAX_TEXT_BYTES:
            found = f"a file of {size:,} bytes; at most {MAX_TEXT_BYTES:,} are read"
        if found is None:
            return epath.Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        found = f"{type(error).__name__}: {error}"
    raise DataError(where=str(path), expected=expected, found=found, remedy=remedy)


def parse_json(text: str | bytes, *, where: str, expected: str, remedy: str) -> Any:
    """The values of a JSON text; bytes are UTF-8.

    Raises:
      DataError: Where it is none, or nested deeper or with larger numbers than can be read.
    """
    with _named_as_unreadable(where, expected, remedy):
        return json.loads(text.decode() if isinstance(text, bytes) else text)


def toml_to_json(text: str, *, where: str, expected: str, remedy: str) -> str:
    """The values of a TOML text as JSON; a date as its text.

    Raises:
      DataError: As `parse_json`.
    """
    with _named_as_unreadable(where, expected, remedy):
        return json.dumps(tomllib.loads(text), default=str)


@contextlib.contextmanager
def _named_as_unreadable(where: str, expected: str, remedy: str) -> Iterator[None]:
    """Names a text that a parser refuses, or cannot hold, inside the block."""
    try:
        yield
    except UNPARSABLE as error:
        found = f"{type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, RecursionError):
            found = "values that are nested too deep to be read"
        raise DataError(where=where, expected=expected, found=found, remedy=remedy) from error


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
    """Names the path where the system refuses what is written to it inside the block.

    Raises:
      UserError: Where it does.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            where=str(error.filename or path),
            expected="a destination that can be written",
            found=error.strerror or str(error),
            remedy="Allow writing, free space, or name another destination.",
        ) from error


@contextlib.contextmanager
def locked(path: pathlib.Path, refused: UserError) -> Iterator[int]:
    """Holds the lock of a file, which is made where it is missing, and yields its descriptor.

    The system frees the lock when the process ends, however that happens.

    Args:
      path: The file; its folder exists.
      refused: Raised where another process holds the lock.

    Raises:
      UserError: As `refused`, or the file cannot be made or locked.
    """
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with writing(path):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise refused from error
        yield descriptor
    finally:
        os.close(descriptor)


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """Where a file is written until it is whole: beside it, hidden, named by no one else."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")


def temporary_of(name: str) -> str | None:
    """The name of the file that a name of `temporary_path` stands for; None for any other name."""
    match = re.fullmatch(r"\.(.+?)(\.[0-9a-f]{8})?\.\d+\.tmp", name)
    return match and match[1]


def temporaries(folder: pathlib.Path) -> list[pathlib.Path]:
    """What killed processes were writing in a folder, by the names that `temporary_path` gives."""
    return [path for path in sorted(folder.iterdir()) if temporary_of(path.name)]


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
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)
    sync(local.parent)


def json_checksum(values: Any) -> str:
    """XXH3 of 128 bits over JSON values, however they are indented and ordered; 32 hex digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def dump_json(values: object) -> str:
    """Indented JSON with a newline at the end; a list of numbers stays on one line."""
    return _NUMBERS_OVER_LINES.sub(_on_one_line, json.dumps(values, indent=1)) + "\n"


def _on_one_line(match: re.Match[str]) -> str:
    return "[" + re.sub(r"\s+", " ", match.group(1)) + "]"


def to_json_values(value: object) -> Any:
    """A dataclass, however nested, as plain JSON values; `pipeline.later` says what is left out."""
    return without_absent(value, _adapter(type(value)).dump_python(value, mode="json"))


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
        details = "; ".join(_problem(kind, e["type"], e["loc"], e["msg"]) for e in error.errors())
        raise DataError(
            where=where, expected=f"a valid {kind.__name__}", found=details, remedy=remedy
        ) from error


def _problem(kind: type, error: str, location: Sequence[str | int], message: str) -> str:
    """A mismatch that pydantic found, with its place where it is not the whole."""
    if error == "unexpected_keyword_argument":
        *location, name = location
        similar = difflib.get_close_matches(str(name), _field_names(kind, location), n=1)
        message = f"unknown field {name}" + "".join(f" ({field}?)" for field in similar)
    place = ".".join(map(str, location))
    return (f"{place}: " if place else "") + message.removeprefix("Value error, ")


def _field_names(kind: type, location: Sequence[str | int]) -> list[str]:
    """The fields that the dataclass at a place below another one has."""
    kinds = [kind]
    for name in location:
        hints = [get_type_hints(outer) for outer in kinds]
        kinds = [k for h in hints if name in h for k in _dataclasses(h[str(name)])] or kinds
    return [field.name for k in kinds for field in dataclasses.fields(k)]


def _dataclasses(annotation: Any) -> Iterator[Any]:
    """Those that an annotation names, such as `tuple[Part, ...]`."""
    if dataclasses.is_dataclass(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _dataclasses(argument)
