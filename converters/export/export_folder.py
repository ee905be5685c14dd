"""The folder of an export: new, or in the place of an export that stands there."""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

from pipeline.data.dataset import Dataset
from pipeline.errors import DataError, UserError
from pipeline.files import is_remote, sync, temporary_path
from pipeline.hub.hub_address import is_dataset_address


def export_folder(dataset: Dataset, out: str | None, suffix: str) -> pathlib.Path:
    """Returns the folder that an export of a dataset is written to.

    Args:
      dataset: What is exported.
      out: The folder, as the user named it; None: the dataset's with `suffix` added, or for one
        on the hub its name with it, in the current directory.
      suffix: Such as `_rlds`.

    Raises:
      UserError: It is remote, or inside the dataset.
    """
    source = pathlib.Path(dataset.directory).absolute()
    beside = source.with_name(f"{source.name}{suffix}")
    if is_dataset_address(dataset.path):
        beside = pathlib.Path(f"{dataset.manifest.name}{suffix}")
    folder = pathlib.Path(out or beside).absolute()
    if is_remote(out or beside):
        raise in_use(out or beside, "an object store", "Copy the export there afterwards.")
    # Resolved: a link may lead into the dataset.
    if folder.resolve().is_relative_to(source.resolve()):
        raise in_use(folder, "the dataset or a folder inside it", "Name another destination.")
    return folder


@contextlib.contextmanager
def replacing(
    folder: pathlib.Path, check_own: Callable[[pathlib.Path], None], *, overwrite: bool
) -> Iterator[pathlib.Path]:
    """Yields a new folder that takes the place of `folder` at the end of the block.

    Nothing stands at `folder` until all of it does: after an error or a kill, what stood there
    before still does, or the next call puts it back.

    Args:
      folder: The destination.
      check_own: Called with a folder that would be replaced; raises a `UserError` if anything in it
        is not of an earlier export.
      overwrite: Whether an export that stands there is replaced.

    Raises:
      UserError: The destination is in use.
      DataError: The system refused a write.
    """
    _clear_leftovers(folder)
    with _named_errors(folder):
        _check_free(folder, check_own, overwrite=overwrite)
    with _named_errors(folder), _renamed(folder) as temporary:
        yield temporary


def in_use(folder: pathlib.Path | str, found: str, remedy: str) -> UserError:
    """Returns the error of a destination that may not be written."""
    return UserError(where=str(folder), expected="a new local folder", found=found, remedy=remedy)


def _clear_leftovers(folder: pathlib.Path) -> None:
    """Removes what killed exports to `folder` left; one that they were about to replace is kept."""
    # The last group marks what was about to be replaced.
    name = re.compile(rf"\.{re.escape(folder.name)}\.([0-9a-f]{{8}}\.)?(\d+)(\.old)?\.tmp")
    with _named_errors(folder):
        for path in sorted(folder.parent.glob(".*.tmp")):
            match = name.fullmatch(path.name)
            # Another export may be at work in it.
            if match is None or _is_alive(int(match[2])):
                continue
            # Killed between the two renames: the old export is put back.
            if match[3] and not folder.exists():
                path.replace(folder)
            else:
                shutil.rmtree(path)


def _is_alive(pid: int) -> bool:
    """Whether another process has that number; what this one's left is of an earlier process."""
    if pid == os.getpid():
        return False
    try:
        # Signal 0 asks whether the process exists.
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _check_free(
    folder: pathlib.Path, check_own: Callable[[pathlib.Path], None], *, overwrite: bool
) -> None:
    """Refuses a destination that is in use; with `overwrite` only one that is not an export."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        found = "a link" if folder.is_symlink() else "a file"
        raise in_use(folder, found, "Name another destination.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    # First: --overwrite is no remedy for a folder that is not an export.
    check_own(folder)
    if not overwrite:
        raise in_use(folder, "one that exists", "Replace it with --overwrite.")


@contextlib.contextmanager
def _renamed(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside `folder` that takes its place at a normal end, and is gone at another."""
    temporary = temporary_path(folder)
    old = temporary.with_suffix(".old.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        # Two renames, because a folder that is not empty cannot be replaced.
        if folder.exists():
            folder.replace(old)
        temporary.replace(folder)
        sync(folder.parent)
    finally:
        # The second rename failed: the old export is put back.
        if old.exists() and not folder.exists():
            old.replace(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _named_errors(folder: pathlib.Path) -> Iterator[None]:
    """Names the file that the system refused inside the block."""
    try:
        yield
    except OSError as error:
        raise DataError(
            where=str(error.filename or folder),
            expected="to write the export",
            found=error.strerror or str(error),
            remedy="Free space on the device or allow writing, and run the same command again.",
        ) from error
