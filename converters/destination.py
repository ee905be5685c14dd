"""Claiming the directory that a job writes: one job at a time, and never over what is not its own.

While the job runs, `.conversion/` in it holds the lock, the plan (what is converted, and how) and
one file for each shard that is done. A rerun of the same plan goes on from there; another plan is
refused. On an object store there is no lock; the plan alone keeps jobs apart.
"""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from converters.shards import PART_SUFFIX
from pipeline.errors import UserError
from pipeline.files import TEMPORARIES, is_remote, write_text_atomically
from pipeline.manifest import FILE_NAME, STATISTICS_NAME, WORK

_PLAN = "plan.json"
_LOCK = "lock"
_OWN_FILES = {
    1: (FILE_NAME, STATISTICS_NAME, TEMPORARIES),
    2: ("[0-9]*-of-[0-9]*.arrayrecord", TEMPORARIES),
}
"""By depth: a folder of several datasets is not one, and is never cleared."""


@contextlib.contextmanager
def claim(destination: epath.Path, plan: str, *, overwrite: bool) -> Iterator[None]:
    """Holds a destination for one job of `plan`; at a normal end only the dataset is left.

    Args:
      destination: The directory; made where it is missing.
      plan: Text that says what is converted, and how.
      overwrite: Whether what stands there is replaced, a dataset or an unfinished conversion.

    Raises:
      UserError: Where another job is at work in it, it holds a dataset, other files or the
        unfinished conversion of another plan, or may not be written.
    """
    with _explained(destination), contextlib.ExitStack() as stack:
        _check_own(destination)
        if not overwrite:
            _resumes(destination, plan)
        (destination / WORK).mkdir(parents=True, exist_ok=True)
        if not is_remote(destination):
            stack.enter_context(_lock(destination))
        if overwrite or not _resumes(destination, plan):
            _clear(destination)
        write_text_atomically(destination / WORK / _PLAN, plan)
        _remove_temporaries(destination)
        yield
        _remove_temporaries(destination)
        _remove_work(destination)


def _check_own(destination: epath.Path) -> None:
    """Refuses a destination that holds what no conversion writes."""
    if destination.exists() and not destination.is_dir():
        raise _in_use(destination, "a file", "Name another destination.")
    for path in _files(destination):
        if not any(path.match(pattern) for pattern in _OWN_FILES.get(len(path.parts), ())):
            raise _in_use(destination, f"other files: {path}", "Name another destination.")


def _resumes(destination: epath.Path, plan: str) -> bool:
    """Whether an unfinished conversion of this plan lies there.

    Raises:
      UserError: Where a dataset does, or the unfinished conversion of another plan.
    """
    started = destination / WORK / _PLAN
    if started.exists() and started.read_text() == plan:
        return True
    if (destination / FILE_NAME).exists():
        raise _in_use(destination, "a dataset", "Replace it with --overwrite.")
    if any((destination / WORK).glob(f"[0-9]*{PART_SUFFIX}")):
        raise _in_use(
            destination,
            "an unfinished conversion of another source, mapping or range of episodes",
            f"See {started}: finish that one, or start over with --overwrite.",
        )
    return False


def _clear(destination: epath.Path) -> None:
    """Empties the destination: the dataset stops being one before any of its shards is touched."""
    (destination / FILE_NAME).unlink(missing_ok=True)
    for path in _children(destination / WORK):
        if path.name != _LOCK:
            path.unlink()
    for path in _children(destination):
        if path.name == WORK:
            continue
        if path.is_dir():
            path.rmtree()
        else:
            path.unlink()


def _remove_work(destination: epath.Path) -> None:
    """Removes what the job knew; the plan last: with it a rerun knows that only this is left."""
    for path in _children(destination / WORK):
        if path.name != _PLAN:
            path.unlink()
    (destination / WORK).rmtree()


def _remove_temporaries(destination: epath.Path) -> None:
    """Removes what killed workers left behind."""
    for path in _files(destination):
        if path.match(TEMPORARIES):
            (destination / path).unlink(missing_ok=True)


def _files(destination: epath.Path) -> Iterator[pathlib.PurePath]:
    """Yields the files, relative to the destination, but for those of the job itself."""
    pending = [destination]
    while pending:
        for path in _children(pending.pop()):
            if path.name != WORK and path.is_dir():
                pending.append(path)
            elif path.name != WORK:
                yield pathlib.PurePath(path.relative_to(destination))


def _children(directory: epath.Path) -> list[epath.Path]:
    """What lies in a directory; nothing where it is missing, as an empty one of a store is."""
    return sorted(directory.iterdir()) if directory.exists() else []


@contextlib.contextmanager
def _lock(destination: epath.Path) -> Iterator[None]:
    """Holds the lock; the system frees it when the process ends, however that happens."""
    path = pathlib.Path(destination) / WORK / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(
                destination, "another conversion at work in it", "Wait for its end, or stop it."
            ) from error
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise _in_use(
                destination, "a conversion that ended just now", "Run the same command again."
            )
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(destination: epath.Path) -> Iterator[None]:
    """Names the destination where the system refuses what is done to it inside the block."""
    try:
        yield
    except OSError as error:
        raise UserError(
            where=str(error.filename or destination),
            expected="a destination that can be written",
            found=error.strerror or str(error),
            remedy="Allow writing, free space, or name another destination.",
        ) from error


def _in_use(destination: epath.Path, found: str, remedy: str) -> UserError:
    return UserError(
        where=str(destination),
        expected="an empty or new directory",
        found=found,
        remedy=remedy,
    )
