"""Prints text safely: escaped for the terminal, to streams that may be closed or full."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any


def escaped(text: str) -> str:
    r"""Escapes the characters of a line that a terminal would interpret or hide.

    These are control characters (ESC, newlines), characters without width or that change the
    direction of text, and bytes of file names that are not UTF-8. Names and texts of a dataset
    come from strangers, so they must not control the terminal.

    cup\x1b[2J   "cup", an escape character, "[2J"
    """
    # The usual case, without a copy.
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escaped_lines(text: str) -> str:
    """Applies `escaped` to each of several lines."""
    return "\n".join(map(escaped, text.split("\n")))


def count(number: int, noun: str) -> str:
    """Formats a count like `1 step` or `5,000 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def ranges(numbers: Sequence[int], longest: int | None = 60) -> str:
    """Returns ascending whole numbers such as `3,7-9`, at most `longest` characters of them.

    Args:
      numbers: Ascending, none twice.
      longest: Characters; None: all are listed.
    """
    borders = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    pairs = zip([0, *borders], [*borders, len(numbers)], strict=True)
    runs = [(numbers[a], numbers[b - 1]) for a, b in pairs] if len(numbers) else []
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    if longest is None or len(text) <= longest:
        return text
    return f"{text[:longest].rpartition(',')[0]},... ({len(numbers):,} in all)"


def shortened(text: str, longest: int) -> str:
    """Returns a text, or its first characters and how many it has.

    Args:
      text: The text.
      longest: Characters that are kept.
    """
    if len(text) <= longest:
        return text
    return f"{text[:longest]}... ({len(text):,} characters in all)"


def first_few(texts: Sequence[str], separator: str = ", ", most: int = 5) -> str:
    """Returns the first texts, and how many more there are, such as `a, b and 99,980 more`.

    Args:
      texts: The texts.
      separator: Stands between two of them.
      most: Number of texts that are listed.
    """
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more


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
    """Logs to stderr, escaped: warnings, and lower levels for loggers that a caller opens up."""
    handler = _StderrHandler()
    handler.setFormatter(_EscapingFormatter("%(message)s"))
    # `force`: a library may have configured logging before.
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # It has a handler of its own: each of its messages would be printed twice.
    logging.getLogger("huggingface_hub").propagate = False


class _StderrHandler(logging.StreamHandler):
    """Writes to what stderr is now: a progress bar replaces it, to print lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _EscapingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escaped_lines(super().format(record))


class OutputError(Exception):
    """Stdout cannot be written any more; `__cause__` is the system's error."""


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    r"""Lets any text be printed inside the block, whatever stdout and stderr are.

    Characters that a stream cannot encode become escapes, such as \xe9. Output to a stream that
    the caller closed (`>&-`) is discarded, and so is output to a stderr that is full or has no
    reader: a job must not fail because of its log.

    Raises:
      OutputError: Stdout is full or has no reader; raised at the end of the block at the latest.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _wrapped(sys.stdout, _Stdout), _wrapped(sys.stderr, _Stderr)
    try:
        yield
        # Here, so that a full disk is an error of the command.
        sys.stdout.flush()
    except SystemExit:  # `--help` has printed as well
        sys.stdout.flush()
        raise
    finally:
        # After an error of the block, which is the one to report.
        with contextlib.suppress(OutputError):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class _Stdout(io.FileIO):
    has_failed = False

    def write(self, data: Any) -> int:
        # What could not be written stays buffered, and is written again when the stream is dropped.
        if self.has_failed:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.has_failed = True
            raise OutputError from error


class _Stderr(io.FileIO):
    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            super().write(data)
        # All of it counts as written, or the writer above would try again.
        return len(data)


def _wrapped(stream: Any, kind: type[io.FileIO]) -> Any:  # beartype: no TextIO is a TextIOWrapper
    """Returns a stream that writes to the file of `stream` through the class `kind`."""
    if stream is None:
        # The stream was closed by the caller.
        return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        # Its descriptor stays open: the original stream is put back afterwards.
        file = kind(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):  # one in memory
        # Such as pytest's capture, which has no file.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    # What was written before, so that the order of lines stays.
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=kind is _Stderr or stream.isatty(),
    )
