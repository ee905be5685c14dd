"""`octograin pull hf://owner/name DIR`: fetches a policy from the hub as a run directory."""

import contextlib
import dataclasses
import glob
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Annotated

import tyro

from pipeline.errors import UserError, user_errors_exit
from pipeline.files import locked, sync, writing
from pipeline.flag_help import joined_help
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_client import open_hub
from pipeline.hub.hub_transfer import bytes_there, check_disk_space, download_all
from pipeline.terminal import log_to_stderr, program, show
from train.checkpoints.checkpoint_errors import complete_steps
from train.checkpoints.checkpoint_store import DIRECTORY as CHECKPOINTS
from train.checkpoints.fetched_run import check_run, parse_policy
from train.checkpoints.pulled_run import NOTE_NAME, note_pull
from train.checkpoints.run_directory import LOCK_NAME

_INTERRUPTED = "interrupted; the same command resumes"
# A note in a repository would be that of another pull.
_NOT_OF_THE_RUN = (".gitattributes", NOTE_NAME)
_UNFINISHED = re.compile(r"\.[0-9a-f]{12}\.pull$")
_log = logging.getLogger("train.hub")


@dataclasses.dataclass(frozen=True)
class Args:
    """Fetches a policy from the Hugging Face hub as a run directory.

    A pull that was ended resumes when the same command is run again. DIR appears when all is there;
    until then files are in .DIR.COMMIT.pull beside it.
    """

    address: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADDRESS")]
    """hf://owner/name, with @ and a branch, tag or commit behind it to pin one."""
    dst: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory to create."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line, downloads and prints what to do next."""
    log_to_stderr()
    with user_errors_exit(interrupted=_INTERRUPTED):
        args = tyro.cli(joined_help(Args), prog=program("train.hub.pull_run"), use_underscores=True)
        pulled = pull_run(args.address, args.dst)
        steps = ", ".join(map(str, complete_steps(args.dst / CHECKPOINTS)))
        show(f"{args.dst}: pulled {pulled}, checkpoints of training step {steps}\n")


def pull_run(address: str, directory: pathlib.Path) -> Repository:
    """Downloads a policy into a new directory; returns its repository at the commit.

    Files are collected beside it, in a hidden directory that a later call continues, and the
    complete directory gets its name, with a note of the commit.

    Args:
      address: hf://owner/name[@revision].
      directory: The directory to create.

    Raises:
      UserError: The directory exists or cannot be written, its disk has no room, or another process
        pulls into it.
      DataError: It is no run, or cannot be downloaded.
    """
    repository = parse_policy(address)
    _check_is_new(directory)
    hub = open_hub()
    pinned = hub.resolve(repository)
    files = [file for file in hub.list_files(pinned) if file.path not in _NOT_OF_THE_RUN]
    steps = check_run(pinned, files)
    unfinished = directory.with_name(f".{directory.name}.{str(pinned.revision)[:12]}.pull")
    _report_others(directory, unfinished)
    missing = sum(file.num_bytes - bytes_there(file, unfinished) for file in files)
    check_disk_space(directory, missing, "Free space, or name a directory on another disk.")
    with writing(unfinished):
        unfinished.mkdir(parents=True, exist_ok=True)
    with locked(unfinished / LOCK_NAME, _in_use(directory)):
        with _kept(unfinished):
            download_all(pinned, files, unfinished)
        note_pull(unfinished, pinned, steps)
        _check_is_new(directory)
        with writing(directory):
            unfinished.rename(directory)
            sync(directory.parent)
    return pinned


def _report_others(directory: pathlib.Path, unfinished: pathlib.Path) -> None:
    """Reports pulls of other commits into a directory that were ended, which nothing resumes."""
    for path in sorted(directory.parent.glob(f".{glob.escape(directory.name)}.*.pull")):
        if path != unfinished and _UNFINISHED.search(path.name):
            _log.warning("%s: of a pull of another commit, which was ended; delete it", path)


@contextlib.contextmanager
def _kept(unfinished: pathlib.Path) -> Iterator[None]:
    """Reports what stays of a pull that does not end in the block."""
    try:
        yield
    except BaseException:
        _log.warning(
            "%s: kept, for the same command to resume; delete it if you do not need it", unfinished
        )
        raise


def _check_is_new(directory: pathlib.Path) -> None:
    if os.path.lexists(directory):
        raise UserError(
            where=str(directory),
            expected="a new directory",
            found="a directory" if directory.is_dir() else "a file",
            remedy="Name another one, or move it away.",
        )


def _in_use(directory: pathlib.Path) -> UserError:
    return UserError(
        where=str(directory),
        expected="no other process that pulls into it",
        found="one",
        remedy="Wait for it or stop it, or name another directory.",
    )


if __name__ == "__main__":
    main()
