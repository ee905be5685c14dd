"""Adding a column to a finished dataset, and removing one; the other columns stay as they are.

A job writes the new shards into the column's folder, under names that no other job uses, and then
replaces `dataset.json`. Until then the dataset is what it was, and training reads it. Meanwhile
`.conversion/` beside `dataset.json` holds the lock, the plan (`NAME.column.json`), what was
measured of the column (`NAME.column-encoders.json`) and a file for each shard that is done
(`NAME.00000.column-part.json`).
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from etils import epath

from converters.job.column_parts import (
    START_LOCK,
    claim_files,
    describe_at_work,
    starting,
)
from converters.job.file_ownership import (
    NOTE_SUFFIX,
    check_no_links,
    children,
    delete_gone,
    delete_job,
    is_link,
    listed,
    note_gone,
    plan_digest,
    remove_folder,
)
from converters.job.output_directory import LOCK, lock, set_aside
from pipeline.data.manifest import (
    FILE_NAME,
    WORK,
    Manifest,
    Shard,
    check_consistency,
    is_column_name,
    is_statistics_name,
    load_manifest,
)
from pipeline.data.schema import EPISODES, Column, Schema
from pipeline.data.token_provenance import TokenOrigin
from pipeline.errors import UserError
from pipeline.files import temporary_of, to_json_values, write_text_atomically, writing

DONE_SUFFIX = ".column-part.json"
"""Suffix of the files in `WORK` that mark a shard as done."""
ENCODERS_SUFFIX = ".column-encoders.json"
"""Suffix of the file there that says what was measured of the column."""
_EXPECTED = "a dataset that no other job is changing"
_MOMENT_S = 1.0
"""A part waits this long for the lock: one that had nothing to do holds it alone as it ends."""
_RETRY_S = 0.02


@contextlib.contextmanager
def claimed(directory: epath.Path) -> Iterator[Manifest]:
    """Holds a dataset for one job, which gets its manifest as it is then.

    Raises:
      UserError: Where another job holds it.
      DataError: Where it is no dataset.
    """
    with contextlib.ExitStack() as stack:
        try:
            _hold(directory, stack, shared=False)
        except UserError as error:
            if parts := describe_at_work(directory):
                raise UserError(
                    where=error.where,
                    expected=error.expected,
                    found=f"at work: {parts}",
                    remedy=error.remedy,
                ) from error
            raise
        with writing(directory):
            # No other job is at work, so all of them are of killed ones.
            remove_temporaries(directory / WORK, lambda whole: True)
            _clean(directory)
        # Registered after the lock, so it runs while the lock is still held.
        stack.callback(_release, directory)
        # Read under the lock: it may have changed while this job waited to start.
        yield load_manifest(directory)


@contextlib.contextmanager
def joined(directory: epath.Path) -> Iterator[Manifest]:
    """Holds a dataset together with other parts of a column; other jobs are refused.

    Raises:
      UserError: Where another job holds it.
      DataError: Where it is no dataset.
    """
    try:
        with contextlib.ExitStack() as stack:
            _hold(directory, stack, shared=True)
            with starting(directory), writing(directory):
                _clean(directory)
            yield load_manifest(directory)
    finally:
        # A part that was refused before it noted anything; one that began left more than locks.
        if (directory / WORK).exists() and _is_unused(directory):
            # Refused where another job holds the dataset, which then does the same at its end.
            with contextlib.suppress(UserError), lock(directory, _EXPECTED):
                _release(directory)


def _hold(directory: epath.Path, stack: contextlib.ExitStack, *, shared: bool) -> None:
    """Leaves the lock of a dataset held until the end of `stack`."""
    # Before the lock's folder is made in it: a folder that is no dataset is left as it is.
    load_manifest(directory)
    last = time.monotonic() + (_MOMENT_S if shared else 0)
    with writing(directory):
        check_no_links(directory, [WORK])
        while True:
            # Made again each time: who held the lock may have removed it.
            (directory / WORK).mkdir(exist_ok=True)
            try:
                stack.enter_context(lock(directory, _EXPECTED, shared=shared))
            except UserError:
                if time.monotonic() >= last:
                    raise
                time.sleep(_RETRY_S)
            else:
                return


def _clean(directory: epath.Path) -> None:
    """Deletes what jobs left that were killed while they replaced `dataset.json`."""
    # Not those of other names: a loader may be writing one.
    for path in children(directory):
        whole = temporary_of(path.name) or ""
        if whole == FILE_NAME or is_statistics_name(whole):
            path.unlink()
    # Of a job that was killed between the manifest and the deletion.
    delete_gone(directory)


def _release(directory: epath.Path) -> None:
    """Removes the lock's folder, unless it holds what another job resumes from."""
    if _is_unused(directory):
        aside = set_aside(directory)
        with contextlib.suppress(OSError):
            aside.rmtree()


def _is_unused(directory: epath.Path) -> bool:
    """Whether the lock's folder holds nothing but locks: no job is to be resumed."""
    locks = {LOCK, START_LOCK, *(path.name for path in claim_files(directory))}
    return {path.name for path in children(directory / WORK)} <= locks


def check_free(
    manifest: Manifest, name: str, keys: Iterable[str], where: str, *, overwrite: bool
) -> None:
    """Checks that a column can be added under its name and its features' keys.

    Args:
      manifest: Manifest of the dataset.
      name: Name of the column.
      keys: Keys of its features.
      where: The dataset directory.
      overwrite: Whether it may take the place of a computed column of that name.

    Raises:
      UserError: Where it can not.
    """
    check_name(name)
    # A folder with foreign files, even if no column has its name.
    _check_folder(epath.Path(where), name, is_column=name in manifest.shards)
    others = {f.key: c.name for c, f in manifest.schema.features() if c.name != name}
    for key in keys:
        if key in others:
            raise UserError(
                where=f"{where}, {key}",
                expected="a new feature",
                found=f"one of the column {others[key]}",
                remedy="Take another --name.",
            )
    if name not in manifest.shards:
        return
    held = [f for c, f in manifest.schema.features() if c.name == name]
    # A feature with a source was converted; only computed columns can be replaced.
    if any(feature.source for feature in held):
        found = "one of the source, which --overwrite does not replace"
        raise _is_there(where, name, found, "Take another --name.")
    if not overwrite:
        remedy = "Replace it with --overwrite, or take another --name."
        raise _is_there(where, name, "one that was computed before", remedy)


def _check_folder(directory: epath.Path, name: str, *, is_column: bool) -> None:
    """Refuses a folder that is not the dataset's, and a column behind a link that would go."""
    if is_column:
        check_no_links(directory, [name])
    elif not is_unfinished(directory, name):
        held = [path.name for path in children(directory / name)]
        if held:
            found = f"other files: {name}/{held[0]}" + (", and others" if held[1:] else "")
            raise UserError(
                where=f"{directory}, column {name}",
                expected="a new folder, or an empty one",
                found=found,
                remedy="Take another --name, or move them elsewhere.",
            )


def check_name(name: str) -> None:
    """Raises `UserError` where a name cannot be that of a column, which is a folder."""
    if not is_column_name(name):
        raise UserError(
            where="command line",
            expected="a name of letters, digits, underscores, dots and hyphens",
            found=repr(name),
            remedy="Name the column otherwise.",
        )


def _is_there(where: str, name: str, found: str, remedy: str) -> UserError:
    return UserError(
        where=f"{where}, column {name}", expected="a new column", found=found, remedy=remedy
    )


def remove_column(directory: epath.Path, name: str) -> int:
    """Takes a column out of a dataset, then deletes its files; also what an unfinished job left.

    Returns:
      Bytes that were freed.

    Raises:
      UserError: Where there is no such column, it is `episodes` or has images, or another job is at
        work.
    """
    check_name(name)
    with claimed(directory) as manifest, writing(directory):
        where = f"{directory}, column {name}"
        is_column = name in manifest.shards
        if not is_column and not _notes(directory, name):
            raise UserError(
                where=where,
                expected=f"one of {', '.join(manifest.shards)}",
                found="no such column",
                remedy="Name a column that is there.",
            )
        # Without trajectories or images the dataset would no longer open for training.
        is_seen = any(c.is_camera(f) for c, f in manifest.schema.features() if c.name == name)
        if name == EPISODES or is_seen:
            raise UserError(
                where=where,
                expected="a column that training can do without",
                found="the trajectories" if name == EPISODES else "the images",
                remedy="Convert the source again to another dataset.",
            )
        if is_column:
            kept = without_column(manifest, name)
            # Checked before it is written: from then on the files are gone.
            check_consistency(kept, str(directory / FILE_NAME))
            replace_manifest(directory, manifest, kept)
        # Files go after the manifest: a kill in between leaves a whole dataset.
        return clear_up(directory, name)


def replace_manifest(directory: epath.Path, before: Manifest, after: Manifest) -> None:
    """Replaces `dataset.json`; the files that it no longer lists are noted, to be deleted next."""
    gone = set(listed(to_json_values(before))) - set(listed(to_json_values(after)))
    if gone:
        # Before the manifest: a file in neither would have no owner after a kill.
        note_gone(directory, gone)
    write_text_atomically(directory / FILE_NAME, after.dumps())


def with_column(
    manifest: Manifest,
    column: Column,
    shards: tuple[Shard, ...],
    licence: str,
    encoders: Mapping[str, TokenOrigin],
) -> Manifest:
    """The manifest with a column at the end, in the place of one of its name."""
    # Removed first, so that a column of this name moves to the end and none is doubled.
    before = without_column(manifest, column.name)
    schema = Schema((*before.schema.columns, column))
    return dataclasses.replace(
        before,
        schema=schema,
        schema_hash=schema.hash(),
        shards={**before.shards, column.name: shards},
        licences={**before.licences, column.name: licence},
        encoders={**before.encoders, **encoders},
    )


def without_column(manifest: Manifest, name: str) -> Manifest:
    """The manifest without a column; the same where it has none of that name."""
    schema = Schema(tuple(c for c in manifest.schema.columns if c.name != name))
    gone = {f.key for c, f in manifest.schema.features() if c.name == name}
    return dataclasses.replace(
        manifest,
        schema=schema,
        schema_hash=schema.hash(),
        shards={c: shards for c, shards in manifest.shards.items() if c != name},
        licences={c: licence for c, licence in manifest.licences.items() if c != name},
        encoders={key: origin for key, origin in manifest.encoders.items() if key not in gone},
    )


def clear_up(directory: epath.Path, name: str, *, locks: bool = True) -> int:
    """Deletes the files that a column no longer has, those of its unfinished job, and its notes.

    Args:
      directory: The dataset.
      name: Name of the column.
      locks: Whether the lock files of its parts go too; no part is at work then.

    Returns:
      Bytes that were freed.
    """
    notes, note = _notes(directory, name), directory / WORK / f"{name}{NOTE_SUFFIX}"
    # Its list was written before the manifest was replaced.
    num_bytes = delete_gone(directory)
    if note.exists():
        num_bytes += delete_job(directory, name, plan_digest(note.read_text()))
    if not is_link(directory / name):
        remove_folder(directory / name)
    # The note last: it is what a rerun after a kill finds the rest by.
    held = claim_files(directory, name) if locks else []
    for path in (*(path for path in notes if path != note), *held, note):
        path.unlink(missing_ok=True)
    return num_bytes


def remove_temporaries(folder: epath.Path, is_own: Callable[[str], bool]) -> None:
    """Deletes what killed jobs were writing in a folder: files whose final name `is_own`."""
    for path in children(folder):
        whole = temporary_of(path.name)
        if whole and is_own(whole):
            path.unlink()


def unfinished(directory: epath.Path) -> list[str]:
    """The columns with a job that has not come to its end."""
    names = [path.name for path in children(directory / WORK)]
    return [name.removesuffix(NOTE_SUFFIX) for name in names if name.endswith(NOTE_SUFFIX)]


def is_unfinished(directory: epath.Path, name: str) -> bool:
    """Whether a job of a column was begun that has not come to its end."""
    return (directory / WORK / f"{name}{NOTE_SUFFIX}").exists()


def count_done(directory: epath.Path, name: str) -> int:
    """Shards that the unfinished job of a column has done, by their marks alone."""
    return sum(path.match(_done(name)) for path in children(directory / WORK))


def _notes(directory: epath.Path, name: str) -> list[epath.Path]:
    names = (f"{name}{NOTE_SUFFIX}", f"{name}{ENCODERS_SUFFIX}", _done(name))
    return [p for p in children(directory / WORK) if any(p.match(pattern) for pattern in names)]


def _done(name: str) -> str:
    return f"{name}.[0-9][0-9][0-9][0-9][0-9]{DONE_SUFFIX}"
