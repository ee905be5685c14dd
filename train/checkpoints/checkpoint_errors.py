"""Turns what fails while a checkpoint is read or written into an error with cause and remedy."""

import contextlib
import errno
import logging
import os
import pathlib
import re
from collections.abc import Iterator

import jax

from pipeline.errors import DataError, UserError
from pipeline.hub.cache_places import cache_directories
from train.checkpoints.packed_arrays import FILE_NAME as PACKED_NAME
from train.checkpoints.pulled_run import read_pull

_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Give this user the right to use it"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Free space"),
}
_CHECK_DISK = "Check the disk and its mount"
_CORRUPT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG}
"""Error codes of a read where files are missing, or where corrupt content names others."""
_CODE_IN_TEXT = re.compile(r"os_error_code='(\d+)'|OS error (\d+)")
"""TensorStore gives the system's error code only inside its message."""
_HALF = 150

# Orbax's threads log the errors that they also raise, and those are reported anyway.
logging.getLogger("absl").addFilter(
    lambda record: "orbax" not in record.pathname or record.levelno < logging.ERROR
)


def complete_steps(checkpoints: pathlib.Path) -> list[int]:
    """Returns the training steps of a run's complete checkpoints; others have other names."""
    if not checkpoints.is_dir():
        return []
    # Orbax gives a checkpoint its number as its name only when it is complete.
    return sorted(int(name) for name in os.listdir(checkpoints) if name.isdecimal())


def damage(path: pathlib.Path, expected: str, found: str) -> DataError:
    """Returns the error for the corrupt checkpoint at `path`; it names the one before, if any.

    One in the hub's cache is fetched again once it is deleted, and one that was pulled is pulled
    again.
    """
    if any(path.is_relative_to(cache.absolute()) for cache in cache_directories()):
        remedy = (
            f"Delete {path}, and run the same again: it is then fetched again. If that repeats, it "
            "is corrupt on the hub: name another revision."
        )
        return DataError(where=str(path), expected=expected, found=found, remedy=remedy)
    # A run directory holds `checkpoints/STEP`.
    pulled = read_pull(path.parent.parent)
    if pulled is not None and int(path.name) in pulled.steps:
        again = f"octograin pull {pulled.address} {path.parent.parent}"
        remedy = f"Move the run directory away, and pull it again: {again}"
        return DataError(where=str(path), expected=expected, found=found, remedy=remedy)
    if (path / PACKED_NAME).is_file():
        remedy = "Check the disk and read it again; if it stays so, copy or export it again."
        return DataError(where=str(path), expected=expected, found=found, remedy=remedy)
    earlier = [step for step in complete_steps(path.parent) if step < int(path.name)]
    if earlier:
        way_on = (
            f"use step {earlier[-1]}, the checkpoint before it; or resume from that one "
            f"once {path.name} is moved out of {path.parent}"
        )
    else:
        way_on = "no earlier step is there: start the run from scratch with --overwrite"
    remedy = f"Check the disk and read it again; if it stays so, {way_on}."
    return DataError(where=str(path), expected=expected, found=found, remedy=remedy)


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
        code = _system_code(error)
        if code is None or code in _CORRUPT:
            cause = error.__cause__ or error
            found = f"{type(cause).__name__}: {_in_one_line(cause)}"
            raise damage(path, "a whole checkpoint", found) from error
        raise UserError(
            where=str(path),
            expected="a checkpoint that can be read",
            found=_in_one_line(error),
            remedy=f"{_REMEDIES.get(code, _CHECK_DISK)}, then read it again.",
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
        code = _system_code(error)
        # No system error behind it: a bug, which keeps its traceback.
        if code is None and not isinstance(error, OSError):
            raise
        remedy = _REMEDIES.get(code or 0, _CHECK_DISK)
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


def _system_code(error: BaseException | None) -> int | None:
    """Returns the system's error code behind an exception; None if there is none."""
    # Follows the chain of causes: Orbax and TensorStore wrap the system's error.
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if match := _CODE_IN_TEXT.search(str(error)):
            return int(match[1] or match[2])
        error = error.__cause__ or error.__context__
    return None


def _in_one_line(error: BaseException) -> str:
    """Returns the message in one line; of a long one, only its beginning and its end."""
    text = " ".join(str(error).split())
    return text if len(text) <= 2 * _HALF else f"{text[:_HALF]} … {text[-_HALF:]}"
