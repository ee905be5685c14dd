"""The cache of whole repositories by commit, and the commits that branches had when last asked."""

import contextlib
import fcntl
import logging
import os
import pathlib
from collections.abc import Callable, Iterator

from pipeline.errors import DataError
from pipeline.files import write_text_atomically, writing
from pipeline.hub.cache_places import dataset_cache
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_client import open_hub
from pipeline.hub.hub_errors import is_unreachable

_log = logging.getLogger(__name__)
_DEFAULT = "HEAD"
"""Name under which the commit of the default branch is kept."""


def pin(repository: Repository) -> Repository:
    """Returns a repository at the commit that its revision names, and remembers that.

    Where the hub cannot be reached, the commit of the last time is used, with a warning.

    Raises:
      DataError: The hub refuses, or cannot be reached and was not asked before.
      UserError: The cache cannot be written.
    """
    if repository.is_pinned:
        return repository
    known = cached_folder(repository) / "refs" / (repository.revision or _DEFAULT)
    try:
        pinned = open_hub().resolve(repository)
    except DataError as error:
        if not is_unreachable(error.__cause__) or not known.exists():
            raise
        pinned = repository.at_revision(known.read_text().strip())
        _log.warning("%s: the hub cannot be reached; using %s", repository, pinned)
        return pinned
    with writing(known):
        known.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(known, f"{pinned.revision}\n")
    return pinned


def cached_folder(repository: Repository) -> pathlib.Path:
    """The folder of the cache for all commits of a repository, whether it exists or not."""
    owner, name = repository.id.split("/")
    return dataset_cache() / f"{repository.kind}s--{owner}--{name}"


def cached_directory(pinned: Repository) -> pathlib.Path:
    """The folder of the cache for files of a commit, whether it exists or not."""
    return cached_folder(pinned) / "commits" / str(pinned.revision)


@contextlib.contextmanager
def waiting_lock(path: pathlib.Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds a lock file inside the block; waits while another process holds it.

    The system frees the lock when the process ends, however that happens.

    Args:
      path: The file; it and its folder are created.
      on_wait: Called once before waiting.

    Raises:
      UserError: The file cannot be created.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
