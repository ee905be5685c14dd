"""Finds out what a pull has to fetch into a directory, and whether it may."""

import dataclasses
import pathlib
from collections.abc import Collection

from etils import epath

from pipeline.data.manifest import (
    FILE_NAME,
    PULL_WORK,
    Manifest,
    check_consistency,
    load_manifest,
)
from pipeline.data.schema import EPISODES, Schema
from pipeline.errors import DataError, UserError
from pipeline.files import writing
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_client import RemoteFile, open_hub
from pipeline.hub.hub_transfer import bytes_there
from pipeline.sharing.pulled_note import NOTE_NAME, read_note
from pipeline.sharing.remote_dataset import RemoteDataset

_NAME_ANOTHER = "Name another directory; nothing was changed."


@dataclasses.dataclass(frozen=True)
class PullPlan:
    """What a pull has to do."""

    dataset: RemoteDataset
    """The dataset on the hub."""
    directory: pathlib.Path
    """The directory, whether it exists or not."""
    columns: tuple[str, ...]
    """Columns that are pulled."""
    manifest: Manifest
    """Content of the directory's `dataset.json` in the end."""
    files: tuple[RemoteFile, ...]
    """Files to fetch; those that were fetched before are left out."""
    before: str
    """Text of the directory's `dataset.json` when this was planned; empty if there was none."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the files to fetch, those that a killed pull has included."""
        return sum(file.num_bytes for file in self.files)

    @property
    def num_done(self) -> int:
        """Bytes of them that a killed pull has."""
        return sum(bytes_there(file, self.directory / PULL_WORK) for file in self.files)


def plan_pull(
    dataset: RemoteDataset,
    directory: pathlib.Path,
    names: Collection[str] | None = None,
    *,
    lists_all: bool = False,
) -> PullPlan:
    """Finds out what a pull would fetch, and changes nothing.

    Args:
      dataset: The dataset on the hub.
      directory: Where it is to be.
      names: Columns or features to pull, beside the episodes; None: all.
      lists_all: Whether the directory's `dataset.json` is that of the hub, which lists all columns,
        fetched or not. Such a directory can be read by who knows which were.

    Raises:
      UserError: The directory is not one that may be pulled into, there is no such column, or the
        hub refuses or lacks a file.
    """
    columns = dataset.columns(names)
    _check_directory(directory, dataset.repository)
    before, manifest = manifest_text(directory), dataset.manifest
    if not lists_all:
        is_there = (directory / FILE_NAME).exists()
        here = load_manifest(epath.Path(directory)) if is_there else None
        manifest = extended(here, dataset, columns, str(directory))
    expected = {
        shard.file: shard.num_bytes
        for column in columns
        for shard in dataset.manifest.shards[column]
    }
    for key, origin in dataset.manifest.encoders.items():
        if origin.projection and dataset.note.column_of(key) in columns:
            expected[origin.projection] = -1
    missing = {file for file, length in expected.items() if not _is_there(directory, file, length)}
    files = _listed(dataset, missing, expected) if missing else ()
    return PullPlan(dataset, directory, columns, manifest, files, before)


def manifest_text(directory: pathlib.Path) -> str:
    """Returns the text of a directory's `dataset.json`; empty if there is none."""
    path = directory / FILE_NAME
    return path.read_text() if path.exists() else ""


def is_complete(directory: pathlib.Path, names: Collection[str] | None) -> bool:
    """Whether a directory was pulled with these columns or features, all of them on the disk.

    Args:
      directory: The directory, whether it exists or not.
      names: Columns or features; None: all that the repository has.
    """
    note = read_note(epath.Path(directory))
    if note is None or not (directory / FILE_NAME).exists():
        return False
    manifest = load_manifest(epath.Path(directory))
    wanted = {*note.columns} if names is None else {EPISODES, *map(note.column_of, names)}
    # A name that the repository lacks is an error of what opens the dataset.
    columns = [name for name in wanted if name is not None]
    return all(
        column in manifest.shards
        and all(_is_there(directory, s.file, s.num_bytes) for s in manifest.shards[column])
        for column in columns
    )


def extended(
    here: Manifest | None, dataset: RemoteDataset, columns: Collection[str], where: str
) -> Manifest:
    """Returns the manifest of a directory with more columns of the same dataset.

    Args:
      here: The manifest that it has; None: none yet.
      dataset: The dataset on the hub.
      columns: Columns of it that are wanted.
      where: The directory, for the error.

    Raises:
      DataError: The directory has other episodes, or another column of the same name.
    """
    remote = dataset.manifest
    if here is None:
        base, kept = remote, frozenset[str]()
    else:
        base, kept = here, frozenset(column.name for column in here.schema.columns)
        changed = _changed(here, remote)
        if changed:
            raise DataError(
                where=where,
                expected=f"the data of {dataset.repository}",
                found=f"other data in {', '.join(changed)}",
                remedy="It was changed after it was pulled: name another directory.",
            )
    pulled = [c for c in remote.schema.columns if c.name in {*columns, *kept}]
    own = [c for c in base.schema.columns if c.name in kept and c.name not in remote.shards]
    schema = Schema((*pulled, *own))
    names = {column.name for column in schema.columns}
    keys = {feature.key for _, feature in schema.features()}
    manifest = dataclasses.replace(
        base,
        schema=schema,
        schema_hash=schema.hash(),
        shards=_part({**remote.shards, **base.shards}, names),
        licences=_part({**remote.licences, **base.licences}, names),
        encoders=_part({**remote.encoders, **base.encoders}, keys),
    )
    check_consistency(manifest, where)
    return manifest


def _part(values: dict, names: Collection[str]) -> dict:
    return {name: value for name, value in values.items() if name in names}


def _changed(here: Manifest, remote: Manifest) -> list[str]:
    """Columns of both manifests whose data differ."""
    if here.episode_lengths != remote.episode_lengths:
        return [EPISODES]
    # Not the instructions, which `octograin edit` corrects without a change of the shards.
    common = [c for c in here.schema.columns if c.name in remote.shards]
    there = {column.name: column for column in remote.schema.columns}
    return [
        c.name
        for c in common
        if c != there[c.name]
        or [s.digest for s in here.shards[c.name]] != [s.digest for s in remote.shards[c.name]]
    ]


def _check_directory(directory: pathlib.Path, repository: Repository) -> None:
    """Checks that a directory is missing, empty, or pulled from this commit.

    Raises:
      UserError: It is something else, which a pull must not touch.
    """
    if not directory.exists() and not directory.is_symlink():
        return
    if not directory.is_dir():
        raise _other(directory, repository, "a file or a broken link")
    with writing(directory):
        entries = sorted(path.name for path in directory.iterdir())
    if not entries:
        return
    work = directory / PULL_WORK
    note = read_note(epath.Path(directory)) or read_note(epath.Path(work))
    if note is None and entries == [PULL_WORK]:  # killed before its first file
        return
    if note is not None and note.address == str(repository):
        return
    remedy = _NAME_ANOTHER
    if note is not None:
        begun = "" if (directory / NOTE_NAME).exists() else "a begun pull of "
        found = begun + note.address
        if begun:
            remedy = f"To complete that one: octograin pull {note.address} {directory}"
    elif FILE_NAME in entries:
        found = "a dataset that was not pulled from the hub"
    else:
        found = f"other files, such as {next(name for name in entries if name != PULL_WORK)}"
    raise _other(directory, repository, found, remedy)


def _other(
    directory: pathlib.Path,
    repository: Repository,
    found: str,
    remedy: str = _NAME_ANOTHER,
) -> UserError:
    return UserError(
        where=str(directory),
        expected=f"a missing or empty directory, or one pulled from {repository}",
        found=found,
        remedy=remedy,
    )


def _is_there(directory: pathlib.Path, file: str, num_bytes: int) -> bool:
    """Whether a file was pulled; what lies there was checked before it was moved there."""
    path = directory / file
    return path.is_file() and num_bytes in (-1, path.stat().st_size)


def _listed(
    dataset: RemoteDataset, missing: Collection[str], expected: dict[str, int]
) -> tuple[RemoteFile, ...]:
    """Returns the wanted files with the hub's checksums.

    Raises:
      DataError: The hub lacks some, or has others; or it refuses.
    """
    hub, repository = open_hub(), dataset.repository
    listed = {
        file.path: file
        for folder in sorted({file.split("/")[0] for file in missing})
        for file in hub.list_files(repository, folder)
    }
    problems = [f"no {file}" for file in sorted(missing) if file not in listed]
    problems += [
        f"{file} of {listed[file].num_bytes} bytes, not {expected[file]}"
        for file in sorted(missing & listed.keys())
        if expected[file] not in (-1, listed[file].num_bytes)
    ]
    if problems:
        more = f", and {len(problems) - 3:,} more" if len(problems) > 3 else ""
        raise DataError(
            where=str(repository),
            expected=f"every file that its {FILE_NAME} lists",
            found=", ".join(problems[:3]) + more,
            remedy="Name another revision, or ask its owner to push the dataset again.",
        )
    return tuple(listed[file] for file in sorted(missing))
