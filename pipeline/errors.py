"""The one error that a user sees: where, what was expected, what was found, what to do."""

import contextlib
import logging
import sys
from collections.abc import Iterator

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A mistake that a person can mend, told in one line.

    Args:
      where: The place: a path, a flag, or dataset, shard, record and key path.
      expected: What had to be there.
      found: What was there instead.
      remedy: What to do now; a command where there is one.
    """

    def __init__(self, *, where: str, expected: str, found: str, remedy: str) -> None:
        super().__init__(f"{where}: expected {expected}; found {found}. {remedy}")
        self.where = where
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps the fields when the error crosses a process border."""
        return _rebuild, (type(self), dict(self.__dict__))


class SchemaError(UserError):
    """Data that the declared types do not allow."""


class DataError(UserError):
    """A file that is missing, damaged or not what the manifest says."""


class RecordError(DataError):
    """One record that cannot be used, in a dataset that is otherwise readable.

    Args:
      where: As of every `UserError`.
      expected: As of every `UserError`.
      found: As of every `UserError`.
      remedy: As of every `UserError`.
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
    """The start of a remedy: how an optional dependency of pyproject.toml is installed."""
    return f"In the checkout, run `pip install -c constraints.txt -e '.[{name}]'`"


def _rebuild(kind: type[UserError], fields: dict[str, str]) -> UserError:
    return kind(**fields)


@contextlib.contextmanager
def user_errors_exit(*, debug: bool = False, interrupted: str = "interrupted") -> Iterator[None]:
    """Turns a `UserError` inside the block into one line on stderr and exit code 2.

    Ctrl-C becomes one line as well, and exit code 130.

    Args:
      debug: Lets the error through with its traceback.
      interrupted: The line after Ctrl-C.

    Raises:
      SystemExit: With code 2, where a `UserError` was raised and `debug` is off; with code 130
        after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        raise SystemExit(EXIT_INTERRUPTED) from None
    except UserError as error:
        if debug:
            raise
        logging.getLogger(__name__).debug("exit with a user error", exc_info=error)
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(EXIT_USER_ERROR) from None
