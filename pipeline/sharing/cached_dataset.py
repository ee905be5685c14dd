"""Keeps columns of datasets of the hub on this machine, and finds datasets by their address."""

import logging
import pathlib
from collections.abc import Collection

from etils import epath

from pipeline.errors import DataError
from pipeline.hub.hub_address import is_dataset_address, parse_repository
from pipeline.hub.hub_cache import cached_directory, cached_folder, pin, waiting_lock
from pipeline.hub.hub_transfer import size
from pipeline.sharing.pull import pull
from pipeline.sharing.pull_plan import PullPlan, is_complete, plan_pull
from pipeline.sharing.remote_dataset import read_remote

_log = logging.getLogger(__name__)
EXPECTED = "hf://datasets/owner/name[@revision]"


def pin_address(address: str, before: str | None = None) -> str:
    """Returns the address of a dataset with the commit that its revision names now.

    Args:
      address: The address.
      before: The address with the commit that a resumed run has used. It is returned, with a
        warning where the revision names another commit now, or the hub cannot say.

    Raises:
      DataError: The address is malformed, or the hub refuses or is not reached.
    """
    repository = parse_repository(address, EXPECTED)
    try:
        pinned = str(pin(repository))
    except DataError as error:
        if before is None:
            raise
        pinned = before
        _log.warning("%s The run continues with %s", error, before)
    if before is None or repository.is_pinned:
        return pinned
    if pinned != before:
        _log.warning("%s is %s now; the run continues with %s", address, pinned, before)
    return before


def fetch_dataset(address: str, names: Collection[str] | None = None) -> pathlib.Path:
    """Returns the directory of a dataset of the hub, after fetching the columns that it lacks.

    Several processes of a machine fetch a dataset once: one does, the others wait.

    Args:
      address: Its address, with a commit.
      names: Columns or features that will be read; None: all.

    Raises:
      DataError: A file is not what the hub or the manifest declares, or cannot be fetched.
      UserError: There is no such feature, or the disk has no room or refuses.
    """
    repository = parse_repository(address, EXPECTED)
    directory = cached_directory(repository)
    if is_complete(directory, names):
        return directory
    lock = cached_folder(repository) / "locks" / f"{repository.revision}.lock"
    with waiting_lock(lock, lambda: _log.warning("%s: another process fetches it", address)):
        # That process may have fetched these columns.
        if not is_complete(directory, names):
            plan = plan_fetch(address, names)
            _log.info("%s: fetching %s to %s", address, size(plan.num_bytes), directory)
            pull(plan)
    return directory


def plan_fetch(address: str, names: Collection[str] | None = None) -> PullPlan:
    """Finds out what `fetch_dataset` would fetch, and changes nothing.

    Raises:
      UserError: There is no such feature, or the hub lacks a file, refuses or is not reached.
    """
    repository = parse_repository(address, EXPECTED)
    # All columns are listed: what a run records must not depend on what was fetched before.
    return plan_pull(read_remote(repository), cached_directory(repository), names, lists_all=True)


def is_cached(address: str, names: Collection[str] | None = None) -> bool:
    """Whether the cache has the columns of a dataset; the address has a commit."""
    return is_complete(cached_directory(parse_repository(address, EXPECTED)), names)


def directory_of(path: str) -> epath.Path:
    """Where a dataset lies: the directory itself, or for an address with a commit the cache's."""
    if is_dataset_address(path):
        return epath.Path(cached_directory(parse_repository(path, EXPECTED)))
    return epath.Path(path)
