"""Writes text files atomically, and reads JSON and TOML with checks."""

import contextlib
import fcntl
import functools
import glob
import json
import math
import os
import pathlib
import re
import secrets
import stat
import tomllib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar

import pydantic
import xxhash
from etils import epath

from pipeline.added_fields import without_absent
from pipeline.config_checks import ConfigError, listed
from pipeline.errors import DataError, UserError, nearest_name
from pipeline.parts.part import field_names

T = TypeVar("T")

Measured = Annotated[
    float, pydantic.BeforeValidator(lambda value: math.nan if value is None else value)
]
"""A float that `checksums.to_json_line` writes as null if it is NaN; null is read as NaN."""
# Brackets with nothing but numbers between, over several lines.
_NUMBERS_OVER_LINES = re.compile(r"\[\n\s*([-+\d.eE,\s]+?)\s*\n\s*\]")


MAX_TEXT_BYTES = 512 * 2**20
"""Size limit for a JSON or TOML file; those of a dataset of ten million episodes are smaller."""
_PLAIN_TYPES = {"str", "int", "float", "bool"}
"""Names by which pydantic calls these types in the place of a mismatch."""
_NAMING = ("op", "key", "name", "part", "source", "path", "file")
"""Fields that name an element of a list, the best first."""
UNPARSABLE = (ValueError, RecursionError, MemoryError, OverflowError)
"""What parsers raise for malformed text, for too deep nesting and for too large numbers."""
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
    """Returns a path on a disk, or in an object store after checking that the store answers.

    Raises:
      UserError: The store's client is not installed, or the store does not answer.
    """
    try:
        opened = epath.Path(path)
        if is_remote(path):
            # Connects now, so that a missing client or credential shows before any work.
            opened.exists()
    except Exception as error:
        # The stores' clients raise types of their own.
        raise UserError(
            where=os.fspath(path),
            expected="a path on a disk, or of an object store that can be reached",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}",
            remedy="Install the store's client (gs://: gcsfs, s3://: s3fs), check its credentials.",
        ) from error
    return opened


def special_file(path: epath.PathLike) -> str | None:
    """Names the kind of a special file, whose reading may never end, such as `a FIFO`.

    None for a file, a folder, a missing path, and an object of a store.
    """
    if is_remote(path):
        return None
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    return next((words for test, words in _SPECIAL_FILES.items() if test(mode)), None)


def read_text(path: epath.PathLike, *, expected: str, remedy: str) -> str:
    """Reads a text file as UTF-8, whatever the locale.

    Args:
      path: Path on a disk or in an object store.
      expected: What the file has to be, for the error.
      remedy: What to do, for the error.

    Raises:
      DataError: The file is missing, may not be read, is no regular file, is larger than
        `MAX_TEXT_BYTES` or is not UTF-8.
    """
    # Opening a FIFO blocks until somebody writes.
    found = special_file(path)
    try:
        if found is None and (size := epath.Path(path).stat().length) > MAX_TEXT_BYTES:
            found = f"a file of {size:,} bytes; at most {MAX_TEXT_BYTES:,} are read"
        if found is None:
            # Bytes, decoded here: `read_text` would use the locale's encoding.
            return epath.Path(path).read_bytes().decode()
    except FileNotFoundError:
        found = "no such file"
    except (OSError, UnicodeDecodeError) as error:
        found = f"{type(error).__name__}: {error}"
    raise DataError(where=str(path), expected=expected, found=found, remedy=remedy)


def parse_json(text: str | bytes, *, where: str, expected: str, remedy: str) -> Any:
    """Parses a JSON text; bytes are UTF-8.

    Raises:
      DataError: The text is no JSON, is nested too deep, or has numbers too large to be read.
    """
    with _named_as_unreadable(where, expected, remedy):
        return json.loads(text.decode() if isinstance(text, bytes) else text)


def toml_to_json(text: str, *, where: str, expected: str, remedy: str) -> str:
    """Converts a TOML text to JSON; dates become text.

    Raises:
      DataError: The text is no TOML, is nested too deep, or has numbers too large to be read.
    """
    with _named_as_unreadable(where, expected, remedy):
        # `default=str` for dates and times, which JSON lacks.
        return json.dumps(tomllib.loads(text), default=str)


@contextlib.contextmanager
def _named_as_unreadable(where: str, expected: str, remedy: str) -> Iterator[None]:
    """Turns a parser's error inside the block into one that says where the text is."""
    try:
        yield
    except UNPARSABLE as error:
        found = f"{type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, RecursionError):
            found = "values that are nested too deep to be read"
        raise DataError(where=where, expected=expected, found=found, remedy=remedy) from error


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
    """Turns the system's error of a write inside the block into one that names the path.

    Raises:
      UserError: The system refused a write.
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
def locked(path: pathlib.Path, refused: UserError | None, *, shared: bool = False) -> Iterator[int]:
    """Locks a file, which is created if missing, and yields its descriptor.

    The system frees the lock when the process ends, however that happens.

    Args:
      path: The file; its folder exists.
      refused: Raised where another process holds the lock; None: waits until it is free.
      shared: Whether other processes may hold it too, as long as they share it.

    Raises:
      UserError: `refused`, or one that says that the file cannot be created or locked.
    """
    with writing(path):
        # Not truncated: another process may hold it. The umask takes rights away from 0o666.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    # Without waiting where it is refused: a job that runs for hours is an error to report.
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if refused else 0)
    try:
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError as error:
            raise refused or error from error
        except OSError as error:
            raise UserError(
                where=str(path),
                expected="a file system that can lock files",
                found=error.strerror or str(error),
                remedy="Mount it with locks (NFS: without nolock; Lustre: with flock), or use "
                "another disk.",
            ) from error
        yield descriptor
    finally:
        # Closing frees the lock.
        os.close(descriptor)


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """Returns a unique hidden path beside a file, where it is written until it is complete."""
    # Hidden, so that globs skip it; random and with the process id, so that no two collide.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")


def temporary_of(name: str) -> str | None:
    """Inverts `temporary_path` for a file name; None if it is no name of a temporary file."""
    match = re.fullmatch(r"\.(.+?)(\.[0-9a-f]{8})?\.\d+\.tmp", name)
    return match and match[1]


def temporaries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the temporary files that killed processes left in a folder."""
    return [path for path in sorted(folder.iterdir()) if temporary_of(path.name)]


def matching(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """Lists the paths in a folder that match a glob, such as `*/*.parquet`, in order."""
    # epath takes the name of the folder as a pattern too, and `[` or `*` in it match others.
    return sorted(epath.Path(glob.escape(os.fspath(folder))).glob(pattern))


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    # Folders are opened read-only too; fsync needs no right to write.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomically(path: epath.PathLike, text: str) -> None:
    """Writes `text` so that a reader sees either all of it or the previous file.

    Writes to an object store are atomic by themselves.
    """
    if is_remote(path):
        # An object appears when its upload is complete.
        epath.Path(path).write_text(text)
        return
    local = pathlib.Path(path)
    temporary = temporary_path(local)
    try:
        temporary.write_text(text, encoding="utf-8")
        # Data before the name, or a crash leaves the new name with no content.
        sync(temporary)
        # Atomic on POSIX, within one file system.
        temporary.replace(local)
    finally:
        # After `replace` nothing is left under this name.
        temporary.unlink(missing_ok=True)
    # The name is an entry of the folder, which has its own fsync.
    sync(local.parent)


def json_checksum(values: Any) -> str:
    """Hashes JSON values, independent of indentation and order: 32 hex digits of XXH3-128."""
    # Separators and order are fixed, because the checksum is over this text.
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def dump_json(values: object) -> str:
    """Formats indented JSON with a final newline; a list of numbers stays on one line."""
    # `indent` alone would give every number of a list its own line.
    return _NUMBERS_OVER_LINES.sub(_on_one_line, json.dumps(values, indent=1)) + "\n"


def _on_one_line(match: re.Match[str]) -> str:
    return "[" + re.sub(r"\s+", " ", match.group(1)) + "]"


def to_json_values(value: object) -> Any:
    """Converts a nested dataclass to JSON values; `pipeline.added_fields` omits some fields."""
    return without_absent(value, _adapter(type(value)).dump_python(value, mode="json"))


@functools.cache
def _adapter(kind: type) -> Any:  # beartype knows no TypeAdapter[T]
    """Builds what validates and writes a dataclass; cached, as building takes milliseconds."""
    return pydantic.TypeAdapter(kind)


def from_json_text(
    kind: type[T],
    text: str | bytes,
    *,
    where: str,
    remedy: str,
    directory: pathlib.Path | None = None,
) -> T:
    """Parses a dataclass from JSON; checks every field's type, and rejects unknown fields.

    Args:
      kind: The dataclass.
      text: The JSON text.
      where: Name of the file, for the error.
      remedy: What to do, for the error.
      directory: The run or checkpoint that the text is of. Modules outside of it may be imported
        for the parts that the text records; None: none are.

    Raises:
      DataError: The text does not match; it lists all mismatches, each with its place.
    """
    try:
        # Strict: "3" is no int; an unknown field is a typo, or of a later release.
        return _adapter(kind).validate_json(text, strict=True, extra="forbid", context=directory)
    except pydantic.ValidationError as error:
        # Parsed again for the names of list elements; what pydantic read as JSON, json reads too.
        is_json = all(e["type"] != "json_invalid" for e in error.errors())
        values = json.loads(text) if is_json else None
        found = _without_other_types([dict(e) for e in error.errors()])
        details = dict.fromkeys(_problem(kind, e, values) for e in found)
        # Of a part that is missing, whose own remedy is the better one.
        own = dict.fromkeys(e["ctx"]["remedy"] for e in found if "remedy" in e.get("ctx", {}))
        shown, remedy = "; ".join(details), " ".join(own) or remedy
        if own and len(details) > 1:
            shown = f"{len(details)} problems"
            remedy = "\n".join(["These are:", *(f"  {detail}" for detail in details), *own])
        raise DataError(
            where=where, expected=f"a valid {kind.__name__}", found=shown, remedy=remedy
        ) from error


def _without_other_types(errors: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mismatches, less those of a plain type of a union whose value is an object or a list.

    Where a value may be a text or an object, pydantic reports for an object with a misspelled
    field that it is no text either, which nobody meant.
    """
    places = [tuple(error["loc"]) for error in errors]

    def is_noise(error: dict[str, Any]) -> bool:
        *outer, tag = error["loc"] or ("",)
        if tag not in _PLAIN_TYPES or not isinstance(error["input"], dict | list):
            return False
        beside = (place[len(outer) :] for place in places if place[: len(outer)] == tuple(outer))
        return any(place and place[0] not in _PLAIN_TYPES for place in beside)

    return [error for error in errors if not is_noise(error)]


def _problem(kind: type, error: dict[str, Any], values: Any) -> str:
    """Formats a mismatch that pydantic found, with its place unless it is the whole value."""
    location, message = error["loc"], error["msg"].removeprefix("Value error, ")
    if error["type"] == "unexpected_keyword_argument":
        *location, name = location
        nearest = nearest_name(str(name), field_names(kind, location))
        message = f"unknown field {name}" + (f" ({nearest}?)" if nearest else "")
    elif "discriminator" in error.get("ctx", {}):
        message = _tag_message(**error["ctx"])
    elif isinstance(error["input"], str | int | float) and error["type"] != "json_invalid":
        # What was found; of an object or a list it would be too long.
        message += f", not {error['input']!r:.60}"
    place = _place(location, values, is_field=error["type"] == "missing")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return listed([problem.below(place) for problem in cause.problems])
    return (f"{place}: " if place else "") + message


def _tag_message(discriminator: str, tag: str | None = None, expected_tags: str = "") -> str:
    """What is wrong with the field that says which class of a union an object is of."""
    field = discriminator.strip("'")
    if tag is None:
        return f"it needs the field {field}"
    known = [name.strip("' ") for name in expected_tags.split(",")]
    nearest = nearest_name(tag, known)
    hint = f" ({nearest}?)" if nearest else ""
    return f"{field} {tag!r:.60} is not known{hint}: it is one of {', '.join(known)}"


def _place(location: Sequence[str | int], values: Any, *, is_field: bool) -> str:
    """A place in parsed JSON, for a reader who counts from 1: `features (7th, action).dims`.

    Args:
      location: Fields and places in lists, and among them names of types of a union.
      values: The parsed JSON.
      is_field: Whether the last part is a field although the values lack it.
    """
    place = ""
    for number, part in enumerate(location, 1):
        inner = None
        is_last = number == len(location)
        # The name of a type that pydantic tried is no place in the values.
        is_type = isinstance(part, str) and not (isinstance(values, dict) and part in values)
        if values is not None and is_type and not (is_last and is_field):
            continue
        if isinstance(values, dict):
            inner = values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            inner = values[part]
        if isinstance(part, int):
            names = [inner.get(field) for field in _NAMING] if isinstance(inner, dict) else []
            name = next((f", {name}" for name in names if isinstance(name, str)), "")
            place += f" ({_ordinal(part + 1)}{name})"
        else:
            place += f".{part}" if place else part
        values = inner
    return place.strip()


def _ordinal(number: int) -> str:
    """The ordinal of a number from 1: 1st, 2nd, 3rd, 4th, ..., 11th, ..., 21st."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"
