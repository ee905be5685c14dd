"""Finds the files that belong to a dataset: those that its manifest or a job's notes list.

Nothing else is ever deleted, whatever its name is, and nothing that lies behind a link to a folder.
Files that are about to leave the manifest are noted before (`.conversion/gone.json`), so that a job
that is killed in between still knows them.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from pipeline.data.manifest import (
    FILE_NAME,
    STATISTICS_NAME,
    TRANSFORMED_NAME,
    WORK,
    is_column_name,
    is_inside,
    is_statistics_name,
    statistics_name,
)
from pipeline.data.schema import EPISODES
from pipeline.errors import UserError
from pipeline.files import dump_json, temporary_of, write_text_atomically
from pipeline.sharing.pulled_note import NOTE_NAME

PLAN = "plan.json"
"""Name of the file in `WORK` that says what is converted, and how."""
PART_SUFFIX = ".part.json"
"""Suffix of the files there that mark a shard of a conversion as done."""
NOTE_SUFFIX = ".column.json"
"""Suffix of the file there that says which column is being added, and how."""
GONE = "gone.json"
"""Name of the file there with what is to be deleted unless the manifest lists it."""


@dataclasses.dataclass(frozen=True)
class Owned:
    """The files of a dataset and of its unfinished jobs."""

    files: frozenset[str]
    """Relative to the directory, such as `steps/00000-of-00002.arrayrecord`."""
    jobs: frozenset[tuple[str, str]]
    """Column and digest of each unfinished column, which is in the names of its files."""

    def has(self, file: pathlib.PurePath) -> bool:
        """Whether a file, relative to the directory, is one of them or was becoming one."""
        # A temporary file belongs to whom its final name belongs to.
        whole = file.with_name(temporary_of(file.name) or file.name)
        if whole.as_posix() in self.files:
            return True
        return any(_is_of_job(whole, column, digest) for column, digest in self.jobs)


def owned(directory: epath.Path) -> Owned:
    """What the manifest of a directory and the notes of its jobs name; missing ones name nothing.

    A manifest that cannot be opened still names its files, as long as it is JSON.
    """
    work = directory / WORK
    files = {WORK, *_gone(directory)}
    # Elsewhere a file of such a name, say statistics.json, is somebody else's.
    if children(work) or _is_manifest(directory / FILE_NAME):
        # Listed even where they are missing: their names are reserved in a dataset.
        files |= {FILE_NAME, STATISTICS_NAME, TRANSFORMED_NAME, NOTE_NAME}
        files |= set(listed(_read(directory / FILE_NAME)))
    # Files that a conversion would write, whether it got that far or not.
    files |= set(_planned(_read(work / PLAN)))
    jobs = set()
    for path in children(work):
        if path.name.endswith(PART_SUFFIX):
            files |= set(listed({"shards": {"": _part_shards(_read(path))}}))
        elif path.name.endswith(NOTE_SUFFIX):
            jobs.add((path.name.removesuffix(NOTE_SUFFIX), plan_digest(path.read_text())))
    return Owned(frozenset(files), frozenset(jobs))


def plan_digest(plan: str) -> str:
    """8 hex digits of the plan of a column, which are in the name of every file that it writes."""
    # 8 digits keep file names short; a clash also needs the same column.
    return hashlib.sha256(plan.encode()).hexdigest()[:8]


def listed(manifest: Any) -> Iterator[str]:
    """Yields the files that the JSON of a manifest lists inside its directory.

    They are its shards, its projections, and statistics that leave out episodes.
    """
    parts = [part for part in _values(_values(manifest, "shards")) if isinstance(part, list)]
    files = [_values(shard, "file") for part in parts for shard in part]
    files += [_values(origin, "projection") for origin in _values(_values(manifest, "encoders"))]
    # A corrupt manifest may list `../../home`; what is outside is never touched.
    yield from (file for file in files if isinstance(file, str) and is_inside(file))
    checksum = _values(manifest, "statistics_checksum")
    if _values(manifest, "excluded_episodes") and isinstance(checksum, str):
        file = statistics_name(checksum, is_of_all=False)
        yield from [file] if is_statistics_name(file) else []
    elif checksum:
        yield STATISTICS_NAME


def note_gone(directory: epath.Path, files: Iterable[str]) -> None:
    """Notes files that `delete_gone` deletes once the manifest no longer lists them."""
    # Added to the earlier ones, which a killed job may not have deleted yet.
    noted = sorted({*_gone(directory), *files})
    write_text_atomically(directory / WORK / GONE, dump_json(noted))


def delete_gone(directory: epath.Path) -> int:
    """Deletes the noted files that the manifest does not list, and then the note.

    Those in a folder that is a link stay: they may be those of another dataset. Such a link is
    removed where the manifest lists nothing in it.

    Returns:
      Bytes that were freed.
    """
    # Read again: a file that the manifest lists now is never deleted, even if it was noted.
    kept = set(listed(_read(directory / FILE_NAME)))
    gone = [file for file in _gone(directory) if file not in kept]
    num_bytes = sum(delete(directory / file) for file in gone if not _is_linked(directory, file))
    used = {file.partition("/")[0] for file in kept}
    for folder in {file.partition("/")[0] for file in gone if "/" in file} - used:
        remove_folder(directory / folder)
    # Last, so that a kill before it repeats the deletion.
    (directory / WORK / GONE).unlink(missing_ok=True)
    return num_bytes


def delete_job(directory: epath.Path, column: str, digest: str) -> int:
    """Deletes the files of an unfinished column that the manifest does not list; their bytes."""
    kept = set(listed(_read(directory / FILE_NAME)))
    paths = [path for path in children(directory / column) if not path.is_dir()]
    own = [p for p in paths if _is_of_job(pathlib.PurePath(column, p.name), column, digest)]
    num_bytes = sum(delete(path) for path in own if f"{column}/{path.name}" not in kept)
    # Files that a killed worker was writing.
    for path in paths:
        whole = temporary_of(path.name)
        if whole and _is_of_job(pathlib.PurePath(column, whole), column, digest):
            delete(path)
    return num_bytes


def delete(path: epath.Path) -> int:
    """Deletes a file, or a link to one, that may be missing; the bytes that it had."""
    num_bytes = int(path.stat().length) if path.exists() else 0
    path.unlink(missing_ok=True)
    return num_bytes


def remove_folder(folder: epath.Path) -> None:
    """Removes a folder that is empty, or a link to one; any other stays."""
    # A folder with other files in it raises `OSError`, and stays.
    with contextlib.suppress(OSError):
        if is_link(folder):
            # The link goes, not what it leads to.
            folder.unlink()
        else:
            pathlib.Path(folder).rmdir()


def check_no_links(directory: epath.Path, names: Iterable[str]) -> None:
    """Refuses folders that are links: what lies there would have to be deleted.

    Raises:
      UserError: Where any of the names is one.
    """
    links = [name for name in names if is_link(directory / name)]
    if links:
        places = ", ".join(
            f"{name} -> {pathlib.Path(directory / name).resolve()}" for name in links
        )
        raise UserError(
            where=str(directory),
            expected="folders of its own, as their files would be deleted",
            found=f"a link to another place: {places}",
            remedy="Remove the link, and what it leads to if nothing else needs it, or name "
            "another destination.",
        )


def is_link(path: epath.Path) -> bool:
    """Whether a path on a disk is a symbolic link."""
    return "://" not in str(path) and pathlib.Path(path).is_symlink()


def children(directory: epath.Path) -> list[epath.Path]:
    """What lies in a directory; nothing where it is missing, as an empty one of a store is."""
    return sorted(directory.iterdir()) if directory.exists() else []


def _is_linked(directory: epath.Path, file: str) -> bool:
    folder, _, name = file.partition("/")
    return bool(name) and is_link(directory / folder)


def _is_of_job(file: pathlib.PurePath, column: str, digest: str) -> bool:
    # A shard, or the projection of a token column.
    name = rf"(\d{{5}}-of-\d{{5}}-{digest}\.arrayrecord|.*-{digest}\.npy)"
    return file.parent.as_posix() == column and re.fullmatch(name, file.name) is not None


def _gone(directory: epath.Path) -> list[str]:
    noted = _read(directory / WORK / GONE)
    # Those without a folder may be noted by `_clear`.
    files = noted if isinstance(noted, list) else []
    return [f for f in files if isinstance(f, str) and (_is_own(f) or is_inside(f))]


def _is_manifest(path: epath.Path) -> bool:
    """Whether a file is the manifest of a dataset, be it one that is truncated or corrupt."""
    content = path.read_bytes() if path.exists() and not path.is_dir() else b""
    return all(field in content for field in (b'"format_version"', b'"schema"'))


def _is_own(file: str) -> bool:
    """Whether it is a file of a dataset that is in no folder."""
    return file in (FILE_NAME, TRANSFORMED_NAME, NOTE_NAME) or is_statistics_name(file)


def _planned(plan: Any) -> Iterator[str]:
    """Yields the shards that a conversion of a plan writes."""
    shards = _values(plan, "shards")
    features = _values(_values(plan, "mapping"), "features")
    if isinstance(shards, list) and isinstance(features, list):
        count = len(shards)
        columns = [EPISODES, *(_values(feature, "column") for feature in features)]
        # A plan on disk may be corrupt, and its names become paths.
        for column in filter(is_column_name, (c for c in columns if isinstance(c, str))):
            for number in range(count):
                yield f"{column}/{number:05d}-of-{count:05d}.arrayrecord"


def _part_shards(part: Any) -> list[Any]:
    return list(_values(_values(part, "shards")))


def _values(content: Any, name: str | None = None) -> Any:
    """A field of a JSON object, or all its values; an empty list where it is none."""
    if not isinstance(content, dict):
        return []
    return list(content.values()) if name is None else content.get(name, [])


def _read(path: epath.Path) -> Any:
    """JSON that may be missing or corrupt; None then."""
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError, RecursionError):
        # What cannot be read owns no file, so nothing is deleted on its word.
        return None
