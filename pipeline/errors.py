"""Errors that a user sees: where, what was expected, what was found, and what to do."""

import contextlib
import difflib
import heapq
import logging
import sys
from collections.abc import Collection, Iterator

from pipeline.terminal import OutputError, escaped, escaped_lines, printable_streams

EXIT_USER_ERROR = 2
EXIT_OTHER_DIED = 75
"""The exit code of a process of a run that ends because another one died. It is `EX_TEMPFAIL` of
sysexits.h: the same command with --resume may succeed."""
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141
"""The exit code that a shell reports for a program that was ended by SIGPIPE."""
_MOST_COMPARED = 1000
"""Maximum number of names that are compared letter by letter."""


class UserError(Exception):
    """A mistake that the user can fix, reported in one line.

    Args:
      where: The place: a path, a flag, or dataset, shard, record and key path.
      expected: What had to be there.
      found: What was there instead.
      remedy: What to do now; a command where there is one.
    """

    def __init__(self, *, where: str, expected: str, found: str, remedy: str) -> None:
        line = escaped(f"{where}: expected {expected}; found {found}.")
        super().__init__(f"{line} {escaped_lines(remedy)}")  # a remedy may list several errors
        self.where = where
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps the fields when the error crosses a process border."""
        # Exceptions pickle their positional arguments, and these are keywords.
        return _rebuild, (type(self), dict(self.__dict__))


def shown(value: object) -> str:
    """A value as an error shows it: texts in quotes, so that '3' is not taken for a number."""
    return repr(value) if isinstance(value, str) else str(value)


def nearest_name(name: str, names: Collection[str]) -> str | None:
    """The name that was likely meant; None if none is spelled alike.

    Of keys with a path the last part is enough: `proprio` finds `observation/proprio`. Of more than
    1,000 names, such as instructions, those that share the most words with it are compared.
    """
    if len(names) > _MOST_COMPARED:
        words = {*name.split()}
        # Comparing 100,000 instructions letter by letter would take 9 s.
        shared = {known: len(words.intersection(known.split())) for known in names}
        names = heapq.nlargest(_MOST_COMPARED, shared, key=shared.__getitem__)
    by_last_part = {known.rpartition("/")[2]: known for known in names}
    for wanted, known in ((name, {n: n for n in names}), (name.rpartition("/")[2], by_last_part)):
        for found in difflib.get_close_matches(wanted, known, n=1):
            return known[found]
    return None


def did_you_mean(name: str, names: Collection[str]) -> str:
    """The start of a remedy: a question with the nearest name, and a space; empty if none is."""
    nearest = nearest_name(name, names)
    return f"Did you mean {nearest}? " if nearest else ""


class SchemaError(UserError):
    """Data that the declared types do not allow."""


class DataError(UserError):
    """A file that is missing, corrupt or not what the manifest says."""


class RecordError(DataError):
    """One record that cannot be used, in a dataset that is otherwise readable.

    Args:
      where: The place, with the path of the shard and the record's place in it.
      expected: What had to be there.
      found: What was there instead.
      remedy: What to do now; a command where there is one.
      dataset: The dataset directory, as the user named it.
      record: The record as FILE:RECORD, such as `steps/00000-of-00001.arrayrecord:17`.
    """

    def __init__(
        self, *, where: str, expected: str, found: str, remedy: str, dataset: str, record: str
    ) -> None:
        super().__init__(where=where, expected=expected, found=found, remedy=remedy)
        self.dataset = dataset
        self.record = record


def install_extra(name: str) -> str:
    """The start of a remedy: how to install an optional dependency of pyproject.toml."""
    return f"In the checkout, run `pip install -c constraints.txt -e '.[{name}]'`"


def _rebuild(kind: type[UserError], fields: dict[str, str]) -> UserError:
    return kind(**fields)


@contextlib.contextmanager
def user_errors_exit(*, interrupted: str = "interrupted") -> Iterator[None]:
    """Wraps a command line: turns errors that the user can cause into one line and an exit code.

    A `UserError` inside the block becomes a line on stderr and exit code 2; Ctrl-C a line and code
    130. If the reader of stdout has closed it (`| head`), the command ends silently with code 141,
    as `cat` does; if stdout is full, with a line and code 2. Text is printed in any locale.
    The flag --debug on the command line shows the traceback of an error.

    Args:
      interrupted: The line printed after Ctrl-C.

    Raises:
      SystemExit: The block failed; it carries the exit code.
    """
    try:
        with printable_streams():
            yield
    except KeyboardInterrupt:
        message, code = interrupted, EXIT_INTERRUPTED
    except UserError as error:
        # Read from `sys.argv`: the error may come before the flags are parsed.
        if "--debug" in sys.argv[1:]:
            raise
        logging.getLogger(__name__).debug("exit with a user error", exc_info=error)
        message, code = f"error: {error}", EXIT_USER_ERROR
    except OutputError as error:
        message, code = f"error: {_full(error)}", EXIT_USER_ERROR
        if isinstance(error.__cause__, BrokenPipeError):
            message, code = "", EXIT_NO_READER
    else:
        return
    # New streams: those of the block are closed by now.
    with printable_streams():
        sys.stderr.write(f"{message}\n" if message else "")
    # `from None`: the line above is all that a user needs.
    raise SystemExit(code) from None


def _full(error: OutputError) -> UserError:
    return UserError(
        where="stdout",
        expected="to take what the command prints",
        found=getattr(error.__cause__, "strerror", None) or str(error.__cause__),
        remedy="Free space where its output goes, or send it elsewhere.",
    )
