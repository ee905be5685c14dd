"""Claiming the directory that a job writes: one job at a time, and never over what is not its own.

While the job runs, `.conversion/` in it holds the lock, the plan (what is converted, and how) and
one file for each shard that is done. A rerun of the same plan resumes from there; another plan is
refused. On an object store there is no lock; there the plan alone keeps jobs apart.
"""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from converters.job.file_ownership import (
    GONE,
    PART_SUFFIX,
    PLAN,
    Owned,
    check_no_links,
    children,
    delete,
    delete_gone,
    note_gone,
    owned,
    remove_folder,
)
from converters.sources.image_encoding import QUALITY_NOTE
from pipeline.data.manifest import FILE_NAME, WORK, load_manifest
from pipeline.errors import UserError
from pipeline.files import (
    UNPARSABLE,
    is_remote,
    locked,
    matching,
    temporary_of,
    temporary_path,
    write_text_atomically,
    writing,
)

_log = logging.getLogger(__name__)

LOCK = "lock"
_EMPTY = "an empty or new directory"
_MB = 1e6

_WORDS = {
    "format_version": "another format",
    "source": "another source",
    "shards": "other shards or episodes of it",
    "schema_hash": "other types",
    "mapping": "another mapping",
    "check_images": "another --check_images",
    QUALITY_NOTE: "another --image_quality",
    "computation": "other computations in the mapping",
    "step_ranges": "other step ranges",
}
"""Descriptions of the fields of a plan."""


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
    with contextlib.ExitStack() as stack:
        # Errors of the disk in the preparation alone: those of the job name their own files.
        with writing(destination):
            _prepare(destination, plan, stack, overwrite=overwrite)
        try:
            yield
        finally:
            # Also after an error: the shards that are done stay, what was being written goes.
            _remove_temporaries(destination)
        # At a normal end only; after an error the plan stays for the next run.
        done = set_aside(destination)
    # Outside the lock, which went away with the folder.
    with contextlib.suppress(OSError):  # the dataset is complete; what is left of this is harmless
        done.rmtree()


def _prepare(
    destination: epath.Path, plan: str, stack: contextlib.ExitStack, *, overwrite: bool
) -> None:
    """Leaves the lock held until the end of `stack`, and the plan noted."""
    # Before anything is created: a foreign directory is left as it was found.
    _check_own(destination)
    # Their files will be deleted, which must not happen behind a link.
    if overwrite or not _resumes(destination, plan):
        check_no_links(destination, _folders(owned(destination)))
    (destination / WORK).mkdir(parents=True, exist_ok=True)
    # File locks do not exist in object stores; there the plan alone keeps jobs apart.
    if not is_remote(destination):
        stack.enter_context(lock(destination))
    # Asked again under the lock: another job may have ended in between.
    if overwrite or not _resumes(destination, plan):
        _clear(destination)
    # Now the plan is noted, and a kill after this line can be resumed.
    write_text_atomically(destination / WORK / PLAN, plan)
    _remove_temporaries(destination)


def _check_own(destination: epath.Path) -> None:
    """Refuses a destination that holds what no conversion wrote, before anything is deleted.

    And one whose name is not text, which no record writer opens.
    """
    try:
        str(destination).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            where=str(destination),
            expected="a destination whose name is UTF-8",
            found="other bytes",
            remedy="Name another destination.",
        ) from error
    # A file at this path would make `mkdir` fail with a less helpful error.
    if destination.exists() and not destination.is_dir():
        raise _in_use(destination, "a file", "Name another destination.")
    own = owned(destination)
    for path in _files(destination):
        # Anything that is not ours is a reason to stop, be it one file.
        if not own.has(path):
            raise _in_use(destination, f"other files: {path}", "Name another destination.")
    check_no_links(destination, [WORK])


def _folders(own: Owned) -> set[str]:
    """Returns the folders of the columns that have files, or are about to."""
    columns = {column for column, _ in own.jobs}
    return columns | {file.partition("/")[0] for file in own.files if "/" in file}


def _resumes(destination: epath.Path, plan: str) -> bool:
    """Whether an unfinished conversion of this plan lies there.

    Raises:
      UserError: Where a dataset does, or the unfinished conversion of another plan.
    """
    started = destination / WORK / PLAN
    # The plan is compared as text: `dump_json` formats equal values equally.
    if started.exists() and started.read_text() == plan:
        return True
    if (destination / FILE_NAME).exists():
        is_edited = b'"edit_1":' in (destination / FILE_NAME).read_bytes()
        lost = ["what `octograin edit` changed in it"] if is_edited else []
        lost += [f"its computed {name}" for name in _computed(destination)]
        loss = f", which loses {' and '.join(lost)}" if lost else ""
        raise _in_use(destination, "a dataset", f"Replace it with --overwrite{loss}.")
    # A plan without any shard holds nothing that a new plan would lose.
    is_begun = bool(matching(destination / WORK, f"[0-9]*{PART_SUFFIX}"))
    # In an object store another job may be running right now, before its first shard.
    if started.exists() and (is_begun or is_remote(destination)):
        raise _in_use(
            destination,
            f"an unfinished conversion with {_difference(started.read_text(), plan)}",
            f"See {started}: finish that one, or start over with --overwrite.",
        )
    return False


def _computed(destination: epath.Path) -> list[str]:
    """The columns of a dataset that no conversion makes, such as `column vggt_tokens (24.1 MB)`."""
    with contextlib.suppress(UserError):  # no dataset, or one that is corrupt
        manifest = load_manifest(destination)
        return [
            f"column {column.name} ({sum(s.num_bytes for s in shards) / _MB:,.1f} MB)"
            for column in manifest.schema.columns
            for shards in [manifest.shards[column.name]]
            if not any(feature.source for feature in column.features)
        ]
    return []


def _difference(noted: str, plan: str) -> str:
    """What the plan that was noted does not share with this one, such as `another mapping`."""
    try:
        theirs: dict[str, Any] = dict(json.loads(noted))
    except (*UNPARSABLE, TypeError):
        # Valid JSON that is no object makes no dictionary.
        return "a plan that is corrupt"
    ours: dict[str, Any] = json.loads(plan)
    different = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return " and ".join(_WORDS.get(key, key) for key in different)


def _clear(destination: epath.Path) -> None:
    """Deletes a dataset or what jobs left of one; it stops being one before any shard is touched.

    All that goes is noted first, so that a rerun after a kill knows it as its own.
    """
    _remove_temporaries(destination)
    own = owned(destination)
    if lost := _computed(destination):
        _log.warning(
            "%s: --overwrite also removes the computed %s; `octograin tokens` computes it again",
            destination,
            " and ".join(lost),
        )
    paths = [str(path) for path in _files(destination)]
    if paths:
        # Before the first file goes.
        note_gone(destination, paths)
    # First the manifest: from here on the directory is no dataset, whatever happens next.
    delete(destination / FILE_NAME)
    for path in children(destination / WORK):
        # The lock is held, and the note is still needed.
        if path.name not in (LOCK, GONE):
            path.unlink()
    delete_gone(destination)
    for folder in _folders(own):
        # Columns' folders, if they are empty now.
        remove_folder(destination / folder)


def set_aside(destination: epath.Path) -> epath.Path:
    """Moves what the job knew to a name that no other job uses, with the lock still held."""
    work = destination / WORK
    if is_remote(destination):
        return work
    # Renamed while the lock is held, because removing takes several steps: another job that
    # starts in between must find either all of it or nothing.
    aside = epath.Path(temporary_path(pathlib.Path(work)))
    work.rename(aside)
    return aside


def _remove_temporaries(destination: epath.Path) -> None:
    """Removes what killed jobs and workers were writing."""
    own = owned(destination)
    folders = [destination / WORK, *(destination / folder for folder in _folders(own))]
    for path in (path for folder in (destination, *folders) for path in children(folder)):
        inside = pathlib.PurePath(path.relative_to(destination))
        is_note = inside.parts[0] == WORK
        # Only names that `temporary_path` makes, of files that are ours.
        if temporary_of(path.name) and (is_note or own.has(inside)):
            path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


def _files(destination: epath.Path) -> Iterator[pathlib.PurePath]:
    """Yields the files, relative to the destination, but for those of the job itself."""
    pending = [destination]
    # A loop, not a recursion: the depth of a foreign directory is not known.
    while pending:
        for path in children(pending.pop()):
            # The job's own notes, also where they were set aside.
            if WORK in (path.name, temporary_of(path.name)):
                continue
            if path.is_dir():
                pending.append(path)
            else:
                yield pathlib.PurePath(path.relative_to(destination))


@contextlib.contextmanager
def lock(
    destination: epath.Path, expected: str = _EMPTY, *, shared: bool = False
) -> Iterator[None]:
    """Holds the lock; the system frees it when the process ends, however that happens.

    Args:
      destination: Has the folder `WORK`.
      expected: What it has to be, for the error.
      shared: Whether others may hold it too, as long as they share it.

    Raises:
      UserError: Where another job holds it.
    """
    path = pathlib.Path(destination) / WORK / LOCK
    refused = _in_use(
        destination,
        "another conversion at work in it",
        "Wait for its end, or stop it.",
        expected,
    )
    with locked(path, refused, shared=shared) as descriptor:
        # The file may have been moved away between opening and locking it: then the lock is held on
        # a file that nobody else will find, and protects nothing.
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise _in_use(
                destination,
                "a conversion that ended just now",
                "Run the same command again.",
                expected,
            )
        yield


def _in_use(destination: epath.Path, found: str, remedy: str, expected: str = _EMPTY) -> UserError:
    return UserError(
        where=str(destination),
        expected=expected,
        found=found,
        remedy=remedy,
    )
