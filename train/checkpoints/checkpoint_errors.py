"""Finds why a checkpoint cannot be read or written: corruption, permissions, space or device."""

import contextlib
import errno
import logging
import os
import pathlib
import re
from collections.abc import Iterator

import jax

from pipeline.errors import DataError, UserError

# No right to access, or a disk mounted read-only.
_RIGHTS = {errno.EACCES, errno.EPERM, errno.EROFS}
# No space, no quota, or a file larger than the file system allows.
_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A disk or a network mount that does not answer.
_DEVICE = {
    errno.EIO,
    errno.ESTALE,
    errno.ENXIO,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
    errno.ESHUTDOWN,
}
_SEE_TO_DEVICE = "The disk or its mount does not respond correctly: check it"
_HALF = 150
_IN_TEXT = re.compile(r"os_error_code='(\d+)'|OS error (\d+)")
"""Pattern of the system's error code, which TensorStore gives only inside its message."""


def _is_news(record: logging.LogRecord) -> bool:
    """Returns whether a record is logged: not if Orbax's threads also raise the same error."""
    return "orbax" not in record.pathname or record.levelno < logging.ERROR


# Orbax's threads log the errors that they also raise, and those are reported anyway.
logging.getLogger("absl").addFilter(_is_news)


def complete_steps(checkpoints: pathlib.Path) -> list[int]:
    """Returns the training steps of a run's complete checkpoints; others have other names."""
    if not checkpoints.is_dir():
        return []
    # Orbax gives a checkpoint its number as its name only when it is complete.
    return sorted(int(name) for name in os.listdir(checkpoints) if name.isdecimal())


def damage(path: pathlib.Path, expected: str, found: str) -> DataError:
    """Returns the error for a corrupt checkpoint; it names the previous checkpoint, if any.

    Args:
      path: The directory of the checkpoint.
      expected: What was expected there, for the error message.
      found: What was found, for the error message.
    """
    earlier = [step for step in complete_steps(path.parent) if step < int(path.name)]
    if earlier:
        way_on = (
            f"use step {earlier[-1]}, the checkpoint before it; or resume from that one "
            f"once {path.name} is moved out of {path.parent}"
        )
    else:
        way_on = "no earlier step is there: start the run from scratch with --overwrite"
    return DataError(
        where=str(path),
        expected=expected,
        found=found,
        remedy=f"Check the disk and read it again; if it stays so, {way_on}.",
    )


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turns what fails inside the block, a read of a checkpoint, into an error with its cause.

    Raises:
      UserError: The system refuses, or the disk or its mount does not respond.
      DataError: The checkpoint is corrupt.
    """
    try:
        yield
    except (UserError, jax.errors.JaxRuntimeError):
        # Errors with a message of their own, and those of the device, keep their type.
        raise
    except Exception as error:  # Orbax raises even `Exception` itself
        number = _error_number(error)
        if number in _RIGHTS:
            remedy = "Give this user the right to read it."
        elif number in _DEVICE:
            remedy = f"{_SEE_TO_DEVICE}, then read it again."
        else:
            cause = error.__cause__ or error
            found = f"{type(cause).__name__}: {_in_one_line(cause)}"
            raise damage(path, "a whole checkpoint", found) from error
        raise UserError(
            where=str(path),
            expected="a checkpoint that can be read",
            found=_in_one_line(error),
            remedy=remedy,
        ) from error


@contextlib.contextmanager
def writing(checkpoints: pathlib.Path) -> Iterator[None]:
    """Turns what fails inside the block, a write of a checkpoint, into an error with its cause.

    Raises:
      UserError: The system cannot write; any other error passes unchanged.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        number = _error_number(error)
        # No system error behind it: a bug, which keeps its traceback.
        if number is None and not isinstance(error, OSError):
            raise
        if number in _RIGHTS:
            remedy = "Give this user the right to write it"
        elif number in _SPACE:
            remedy = "Free space"
        elif number in _DEVICE:
            remedy = _SEE_TO_DEVICE
        else:
            remedy = "Fix the disk"
        raise unwritten(checkpoints, _in_one_line(error), remedy) from error


def unwritten(checkpoints: pathlib.Path, found: str, remedy: str) -> UserError:
    """Returns the error for a failed write; it names the last complete checkpoint."""
    steps = complete_steps(checkpoints)
    kept = f"that of step {steps[-1]} is complete" if steps else "none is complete"
    return UserError(
        where=str(checkpoints),
        expected="a checkpoint that can be written",
        found=f"{found} ({kept})",
        remedy=f"{remedy}, then continue with --resume.",
    )


def _error_number(error: BaseException) -> int | None:
    """Returns the system's error code behind an exception; None if there is none."""
    # Follows the chain of causes: Orbax and TensorStore wrap the system's error.
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno is not None:
            return behind.errno
        # TensorStore raises `ValueError` with the number inside its text.
        match = _IN_TEXT.search(str(behind))
        if match:
            return int(match[1] or match[2])
        behind = behind.__cause__ or behind.__context__
    return None


def _in_one_line(error: BaseException) -> str:
    """Returns the message in one line; of a long one, only its beginning and its end."""
    text = " ".join(str(error).split())
    return text if len(text) <= 2 * _HALF else f"{text[:_HALF]} … {text[-_HALF:]}"
