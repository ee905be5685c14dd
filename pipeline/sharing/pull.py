"""Pulls a dataset, or some of its columns, from the hub into a directory.

The directory is a dataset, with a `dataset.json` that lists what was pulled, or it is none: that
file is put in place last. What a killed pull has is in `.pull`, and is not fetched again.
"""

import pathlib
import shutil
from collections.abc import Iterator

import xxhash
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  (an extension)
)
from etils import epath

from pipeline.data.manifest import FILE_NAME, PULL_WORK, Shard
from pipeline.errors import DataError, UserError
from pipeline.files import locked, sync, write_text_atomically, writing
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_client import RemoteFile
from pipeline.hub.hub_transfer import check_disk_space, download_all
from pipeline.sharing.pull_plan import PullPlan, manifest_text
from pipeline.sharing.pulled_note import write_note

_RECORDS_AT_ONCE = 256


def pull(plan: PullPlan) -> None:
    """Fetches the files of a plan, checks them, and makes the directory a dataset.

    A pull that was killed resumes where it stopped when it is planned and called again.

    Raises:
      DataError: A file is not what the hub or the manifest declares, or cannot be fetched.
      UserError: The disk has no room or refuses, another process pulls into the directory, or its
        `dataset.json` was changed since the plan was made.
    """
    directory, work = epath.Path(plan.directory), plan.directory / PULL_WORK
    check_room(plan)
    with writing(plan.directory):
        work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", _in_use(plan.directory)), writing(plan.directory):
        write_note(epath.Path(work), plan.dataset.note)
        _fetch_all(plan)
        _check_unchanged(plan)
        write_text_atomically(directory / plan.manifest.statistics_name, _statistics(plan))
        write_note(directory, plan.dataset.note)
        is_same = plan.manifest == plan.dataset.manifest
        # The last file: with it the directory is a dataset.
        write_text_atomically(
            directory / FILE_NAME, plan.dataset.text if is_same else plan.manifest.dumps()
        )
        shutil.rmtree(work)


def check_room(plan: PullPlan) -> None:
    """Raises a `UserError` if the disk has no room for what a plan fetches."""
    check_disk_space(
        plan.directory,
        plan.num_bytes - plan.num_done,
        "Free space, pull fewer --columns, or name a directory on another disk.",
    )


def _in_use(directory: pathlib.Path) -> UserError:
    return UserError(
        where=str(directory),
        expected="no other process that pulls into it",
        found="one that does",
        remedy="Wait for its end.",
    )


def _check_unchanged(plan: PullPlan) -> None:
    """Checks that no edit and no other pull changed the directory meanwhile; it would be lost."""
    if manifest_text(plan.directory) != plan.before:
        raise UserError(
            where=str(plan.directory / FILE_NAME),
            expected="the file as it was when the pull began",
            found="one that was changed since",
            remedy="Run the same again: what was fetched is kept.",
        )


def _statistics(plan: PullPlan) -> str:
    """The text of the statistics; that of the directory where it has one."""
    path = plan.directory / plan.manifest.statistics_name
    is_kept = (plan.directory / FILE_NAME).exists() and path.exists()
    return path.read_text() if is_kept else plan.dataset.statistics


def _fetch_all(plan: PullPlan) -> None:
    """Fetches the files, checks each, and moves it to its place."""
    shards = {s.file: s for column in plan.columns for s in plan.dataset.manifest.shards[column]}
    work = plan.directory / PULL_WORK

    def put(file: RemoteFile) -> None:
        fetched, target = work / file.path, plan.directory / file.path
        if file.path in shards:
            _check_fetched(fetched, shards[file.path], plan.dataset.repository)
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            fetched.replace(target)
            sync(target.parent)

    download_all(plan.dataset.repository, plan.files, work, put)


def _check_fetched(path: pathlib.Path, shard: Shard, repository: Repository) -> None:
    """Checks the records of a fetched shard; a wrong one is removed."""
    problem = check_records(path, shard)
    if problem is None:
        return
    path.unlink()
    raise DataError(
        where=f"{repository}, {shard.file}",
        expected=f"{problem[0]}, by {FILE_NAME}",
        found=problem[1],
        remedy="The file on the hub is corrupt, or of another dataset: ask its owner to push the "
        "dataset again, or name another revision.",
    )


def check_records(path: pathlib.Path, shard: Shard) -> tuple[str, str] | None:
    """Compares the records of a shard with the manifest; None, or (expected, found) in words."""
    expected = f"{shard.records} records with the checksum {shard.digest}"
    digest, count = xxhash.xxh3_128(), 0
    try:
        for record in _records(path):
            digest.update(record)
            count += 1
    except (RuntimeError, ValueError, IndexError) as error:
        return expected, str(error).split(" (")[0].split(";")[0]  # without hashes and offsets
    found = f"{count} records with the checksum {digest.hexdigest()}"
    return None if found == expected else (expected, found)


def _records(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a shard; none of a file that is no shard."""
    reader = array_record_module.ArrayRecordReader(str(path))
    total = reader.num_records() if reader.ok() else 0
    for start in range(0, total, _RECORDS_AT_ONCE):
        yield from reader.read(start, min(start + _RECORDS_AT_ONCE, total))
    if reader.ok():
        reader.close()
