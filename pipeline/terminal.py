"""What a command prints: text that no terminal obeys, and streams that may be closed or full."""

import contextlib
import dataclasses
import io
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def escaped(text: str) -> str:
    r"""One line without the characters that a terminal obeys or hides: each becomes its escape.

    Control characters (ESC, newlines), those that change the direction of text or have no width,
    and bytes of file names that are no UTF-8. Names and texts of a dataset are written by others.

    cup\x1b[2J   "cup", an escape character, "[2J"
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escaped_lines(text: str) -> str:
    """Several lines, each as `escaped` returns it."""
    return "\n".join(map(escaped, text.split("\n")))


def escaped_fields(value: T) -> T:
    """A dataclass, tuple or mapping with every text in it escaped, however nested."""
    changed: Any = value
    if isinstance(value, str):
        changed = escaped(value)
    elif isinstance(value, tuple | list):
        changed = type(value)(map(escaped_fields, value))
    elif isinstance(value, Mapping):
        changed = {escaped_fields(key): escaped_fields(part) for key, part in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        parts = {name: escaped_fields(getattr(value, name)) for name in names}
        changed = dataclasses.replace(value, **parts)
    return changed


def show(lines: str) -> None:
    """Writes lines to stdout, escaped."""
    sys.stdout.write(escaped_lines(lines))


def program(module: str) -> str:
    """The command that runs a module's `main`: `octograin convert`, or `python -m converters.rlds`.

    Args:
      module: The module, as `python -m` takes it.
    """
    name = sys.argv[0]
    return name if name.startswith("octograin ") else f"python -m {module}"


def log_to_stderr() -> None:
    """Sends warnings, and what a caller lowers the level of a logger to, escaped to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapingFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class _EscapingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escaped_lines(super().format(record))


class OutputError(Exception):
    """Stdout takes no more; `__cause__` is the system's error."""


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    r"""Lets any text be printed inside the block, whatever stdout and stderr are.

    What a stream cannot encode becomes an escape, such as \xe9. A stream that the caller closed
    (`>&-`) takes everything and shows nothing, and so does a stderr that is full or has no reader:
    a job does not end over its log.

    Raises:
      OutputError: Where stdout is full or has no reader, by the end of the block at the latest.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _wrapped(sys.stdout, _Stdout), _wrapped(sys.stderr, _Stderr)
    try:
        yield
        sys.stdout.flush()
    except SystemExit:  # `--help` has printed as well
        sys.stdout.flush()
        raise
    finally:
        with contextlib.suppress(OutputError):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class _Stdout(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError from error


class _Stderr(io.FileIO):
    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            super().write(data)
        return len(data)


def _wrapped(stream: Any, kind: type[io.FileIO]) -> Any:  # beartype: no TextIO is a TextIOWrapper
    """A stream that writes to the file of another one, through a class of its own."""
    if stream is None:
        return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        file = kind(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):  # one in memory
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=kind is _Stderr or stream.isatty(),
    )
