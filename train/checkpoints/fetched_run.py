"""Finds the checkpoint of a run: in a directory, or on the hub, from where it is fetched once."""

import dataclasses
import logging
import os
import pathlib

from pipeline.checksums import read_json, write_json
from pipeline.errors import DataError, UserError
from pipeline.files import writing
from pipeline.hub.hub_address import SCHEME, Repository, parse_repository
from pipeline.hub.hub_cache import cached_directory, pin, waiting_lock
from pipeline.hub.hub_client import RemoteFile, open_hub
from pipeline.hub.hub_errors import is_unreachable
from pipeline.hub.hub_transfer import bytes_there, check_disk_space, download_all, is_there
from train.checkpoints.checkpoint_store import DIRECTORY as CHECKPOINTS
from train.checkpoints.hub_paths import (
    CONFIG_NAME,
    ENVIRONMENT_NAME,
    checkpoint_steps,
    own_paths,
)

_LISTING = ".files.json"
"""File of the cache with what a commit has, so that a later use of it needs no network."""
_NO_SPACE = "Free space, or name a folder on another disk for the cache: OCTOGRAIN_CACHE=FOLDER"
_log = logging.getLogger("train.hub")


@dataclasses.dataclass(frozen=True)
class FetchedRun:
    """A run whose checkpoint lies on this machine."""

    directory: pathlib.Path
    """Directory with the checkpoint. One of the cache is only read: other processes share it."""
    step: int | None
    """Training step of the checkpoint; None: the last one in the directory."""
    address: str | None = None
    """Where on the hub it came from, `hf://owner/name@commit`; None: the directory was given."""


def find_run(run: str | os.PathLike[str], step: int | None = None) -> FetchedRun:
    """Returns where a run lies, after fetching its checkpoint if it is on the hub.

    What was fetched before is used without a network; the commit of a branch is then that of the
    last time.

    Args:
      run: A run directory, which is not looked up, or hf://owner/name[@revision].
      step: Training step of the checkpoint; None: the last one.

    Raises:
      UserError: The repository has no such checkpoint, or the cache cannot be written or has no
        room.
      DataError: It is no run, or cannot be fetched.
    """
    path = os.fspath(run)
    if not path.startswith(SCHEME):
        return FetchedRun(pathlib.Path(path), step)
    pinned = pin(parse_policy(path))
    directory = cached_directory(pinned)
    listing = directory.with_name(f"{directory.name}{_LISTING}")
    chosen, files = _of_checkpoint(pinned, listing, step) if listing.exists() else (0, [])
    # Without the lock first: a complete cache may be one that others write, and we only read.
    if not files or not all(is_there(file, directory) for file in files):
        with waiting_lock(
            directory.with_name(f"{directory.name}.lock"),
            lambda: _log.warning("%s: waiting for another process that fetches it", pinned),
        ):
            chosen, files = _of_checkpoint(pinned, listing, step)
            missing = sum(file.num_bytes - bytes_there(file, directory) for file in files)
            check_disk_space(directory, missing, _NO_SPACE)
            download_all(pinned, files, directory)
    return FetchedRun(directory, chosen, str(pinned))


def holds_run(address: str) -> bool:
    """Returns whether a repository has a checkpoint of a run; False where no hub can be asked.

    Raises:
      DataError: It is no address, or the hub refuses.
    """
    try:
        pinned = pin(parse_repository(address))
        listing = cached_directory(pinned).with_name(f"{pinned.revision}{_LISTING}")
        return bool(checkpoint_steps([file.path for file in _listed(pinned, listing)]))
    except DataError as error:
        if is_unreachable(error.__cause__):
            return False
        raise


def _of_checkpoint(
    pinned: Repository, listing: pathlib.Path, step: int | None
) -> tuple[int, list[RemoteFile]]:
    """Returns the training step of the checkpoint to use, and its files."""
    files = _listed(pinned, listing)
    chosen = _chosen(pinned, check_run(pinned, files), step)
    return chosen, [file for file in files if file.path.startswith(f"{CHECKPOINTS}/{chosen}/")]


def _chosen(pinned: Repository, steps: list[int], step: int | None) -> int:
    """Returns the training step of the checkpoint to use."""
    if step is None or step in steps:
        return steps[-1] if step is None else step
    raise UserError(
        where=str(pinned),
        expected=f"a checkpoint of step {step}",
        found=f"the steps {steps}",
        remedy="Choose one that exists.",
    )


def parse_policy(address: str) -> Repository:
    """Reads the address of a policy on the hub.

    Raises:
      DataError: It is none, or that of a dataset.
    """
    repository = parse_repository(address)
    if repository.is_dataset:
        raise DataError(
            where=address,
            expected="the address of a policy, hf://owner/name",
            found="one of a dataset",
            remedy="Leave out datasets/ if it is a policy.",
        )
    return repository


def check_run(pinned: Repository, files: list[RemoteFile]) -> list[int]:
    """Returns the steps of the checkpoints that a repository has.

    Raises:
      DataError: It is no run, or one without a checkpoint.
    """
    paths = [file.path for file in files]
    if steps := checkpoint_steps(paths):
        return steps
    own = own_paths(paths)
    names = [path for path in paths if path != ".gitattributes"]
    shown = ", ".join((own or names)[:4])
    raise DataError(
        where=str(pinned),
        expected="a run of octograin, with checkpoints/STEP",
        found=f"{shown}, but no checkpoint" if shown else "no files",
        remedy="Its upload is incomplete: push it again with `octograin push RUN hf://...`."
        if {CONFIG_NAME, ENVIRONMENT_NAME} <= {*own}
        else "Name a repository that `octograin push` wrote.",
    )


def _listed(pinned: Repository, listing: pathlib.Path) -> list[RemoteFile]:
    """Returns the files of a commit, as the hub listed them when they were first fetched."""
    remedy = "Delete this file, and run the same again."
    if listing.exists():
        return [RemoteFile(**values) for values in read_json(listing, remedy=remedy)["files"]]
    files = open_hub().list_files(pinned)
    with writing(listing):
        listing.parent.mkdir(parents=True, exist_ok=True)
        write_json(listing, {"files": [dataclasses.asdict(file) for file in files]})
    return files
