"""Downloads many files of a repository at once, with their progress."""

import concurrent.futures
import contextlib
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pipeline.errors import DataError, UserError
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_client import RemoteFile, begun_bytes, open_hub
from pipeline.terminal import escaped

_NUM_THREADS = 8
"""Files that are downloaded at once: of small ones, most of the time is waiting for an answer."""
_LOG_INTERVAL_S = 30.0


def download_all(
    pinned: Repository,
    files: Sequence[RemoteFile],
    directory: pathlib.Path,
    use: Callable[[RemoteFile], None] = lambda _: None,
) -> None:
    """Downloads those of the files that a directory lacks, each resumed where it ended.

    Args:
      pinned: The repository, at a commit.
      files: Files of that commit.
      directory: Where they go, under their paths in the repository.
      use: Called with each file, from any thread, once it is whole.

    Raises:
      DataError: The content of a file is not what the hub declares, a path leaves the directory, or
        the hub refuses or is not reached. Files that are complete stay.
      UserError: The disk refuses.
    """
    hub, stop = open_hub(), threading.Event()
    total = sum(file.num_bytes for file in files)
    begun = sum(bytes_there(file, directory) for file in files)
    if not files:
        return
    with (
        # Without the commit, which would leave no room for the bar.
        shown_transfer(str(pinned.at_revision(None)), total, begun) as advance,
        concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as threads,
    ):

        def count(num_bytes: int) -> None:
            advance(num_bytes)
            if stop.is_set():
                raise _StoppedError

        def download(file: RemoteFile) -> None:
            if not is_there(file, directory):
                hub.download(pinned, file, directory / file.path, count)
            use(file)

        downloads = [threads.submit(download, file) for file in files]
        try:
            for done in concurrent.futures.as_completed(downloads):
                done.result()
        finally:
            # After an error, or Ctrl-C; what came so far is kept.
            stop.set()
            threads.shutdown(cancel_futures=True)


class _StoppedError(Exception):
    """Another file could not be fetched."""


def is_there(file: RemoteFile, directory: pathlib.Path) -> bool:
    """Whether a file was downloaded; only a complete one gets its name.

    Raises:
      DataError: The path of the file leaves the directory.
    """
    parts = pathlib.PurePosixPath(file.path).parts
    if ".." in parts or file.path.startswith("/") or not parts:
        raise DataError(
            where=file.path,
            expected="a path inside the repository",
            found="one that leaves it",
            remedy="Do not use this repository, or this hub.",
        )
    path = directory / file.path
    return path.is_file() and path.stat().st_size == file.num_bytes


def bytes_there(file: RemoteFile, directory: pathlib.Path) -> int:
    """How many bytes of a file a directory has; fewer than all after a download that was ended."""
    return file.num_bytes if is_there(file, directory) else begun_bytes(directory / file.path)


def check_disk_space(directory: pathlib.Path, num_bytes: int, remedy: str) -> None:
    """Checks that the disk of a directory, which may not exist yet, has room for so many bytes.

    Raises:
      UserError: It has not; the remedy is what to do.
    """
    folder = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            where=str(directory),
            expected=f"{size(num_bytes)} on its disk",
            found=f"{size(free)} free",
            remedy=remedy,
        )


@contextlib.contextmanager
def shown_transfer(name: str, num_bytes: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Shows the progress of a transfer on stderr: a bar, or in a log a line every half minute.

    Args:
      name: What is transferred.
      num_bytes: Bytes of all files.
      done: Bytes that are there already.

    Yields:
      What to call, from any thread, with the number of bytes since the last call.
    """
    console, lock = Console(stderr=True), threading.Lock()
    logged = time.monotonic()
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        row = bar.add_task(escaped(name), total=num_bytes, completed=done)

        def advance(count: int) -> None:
            nonlocal done, logged
            with lock:
                done += count
                bar.update(row, advance=count)
                if not console.is_terminal and time.monotonic() - logged > _LOG_INTERVAL_S:
                    logged = time.monotonic()
                    sys.stderr.write(f"{escaped(name)}: {size(done)} of {size(num_bytes)}\n")

        yield advance


def size(num_bytes: int) -> str:
    """Formats a size, such as `512 bytes`, `3.4 MB` or `1.2 GB`."""
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= divisor:
            return f"{num_bytes / divisor:,.1f} {unit}"
    return f"{num_bytes} bytes"
