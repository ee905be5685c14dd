"""Computes a column of tokens in parts, on several hosts that share the dataset's directory.

Each part writes its shards; the finishing step puts the column into the dataset. In between lies
what a single job leaves that was killed, so that parts and single jobs resume each other.
"""

import dataclasses
import time
from collections.abc import Callable

from etils import epath

from converters.job.column_job import ColumnJob, noted_encoders, plan_difference
from converters.job.column_parts import Part, at_work, last_count, shares, starting
from converters.job.columns import (
    claimed,
    clear_up,
    count_done,
    is_unfinished,
    joined,
    unfinished,
)
from converters.vggt.token_job import (
    OnProgress,
    TokenJob,
    TokenSettings,
    column_licence,
    column_of,
    write_shards,
)
from pipeline.data.manifest import Manifest
from pipeline.data.token_provenance import TokenOrigin
from pipeline.errors import UserError
from pipeline.terminal import ranges
from pipeline.vggt.weight_sources import config_of

_MOST_PARTS = 3
"""Parts that an error lists."""
_INTERVAL_S = 5.0


@dataclasses.dataclass(frozen=True)
class PartOutcome:
    """What a part has done, and what is left of the column."""

    num_parts: int
    """Number of parts."""
    num_shards: int
    """Shards of the part, which are all done."""
    num_bytes: int
    """Size of their files."""
    total: int
    """Shards of the column."""
    left: dict[Part, list[int]]
    """Shards of other parts that are not done."""
    working: set[Part]
    """Those of these parts that are at work."""


def num_frames(job: TokenJob, part: Part) -> int:
    """The images of a part."""
    columns, _ = job.column_job(job.dataset.manifest)
    num_steps = sum(columns.num_steps[number] for number in part.shards(columns.num_steps))
    return num_steps * len(job.settings.cameras)


def add_part(
    job: TokenJob,
    part: Part,
    *,
    overwrite: bool = False,
    on_progress: OnProgress = lambda num_frames, num_bytes: None,
) -> PartOutcome | None:
    """Computes one part of a column; other parts may do so at the same time.

    A part that was killed resumes where it stopped when it is called again.

    Args:
      job: What is computed.
      part: Which of the shards.
      overwrite: Whether a computed column of that name gives way, once `finish_tokens` puts this
        one in its place, or an unfinished one of other settings.
      on_progress: As of `add_tokens`, with the images of the part.

    Returns:
      What is done and left; None where the dataset has this very column already.

    Raises:
      UserError: Where the name is taken, the disk has no room, this part or another job is at work
        in the dataset, or tokens cannot be stored.
    """
    with joined(epath.Path(job.dataset.path)) as manifest:
        columns, _ = job.column_job(manifest)
        # `finish_tokens` clears up what is left of a finished one.
        if columns.is_published() and (overwrite or columns.is_begun()):
            return None
        with columns.begun_part(part, overwrite=overwrite) as numbers:
            write_shards(job, columns, numbers, on_progress)
            return _outcome(columns, part, numbers)


def _outcome(columns: ColumnJob, part: Part, own: list[int]) -> PartOutcome:
    left = _left(columns, part.count)
    with starting(columns.directory):
        working = at_work(columns.directory, columns.column.name, left)
    num_bytes = sum(int((columns.directory / columns.file(n)).stat().length) for n in own)
    return PartOutcome(part.count, len(own), num_bytes, len(columns.steps), left, working)


def _left(columns: ColumnJob, num_parts: int) -> dict[Part, list[int]]:
    """The shards that are not done, by part."""
    pending = set(columns.pending())
    found = enumerate(shares(columns.num_steps, num_parts), start=1)
    return {
        Part(number, num_parts): left
        for number, numbers in found
        if (left := [n for n in numbers if n in pending])
    }


def shards_done(directory: epath.Path, name: str, total: int) -> Callable[[int], str]:
    """Returns a function that says how many shards of the column all parts together have done.

    Its argument is the number of images since the last call; 0 at the start, and where the part
    has written a shard.
    """
    last_s, text = 0.0, ""

    def describe(num_frames: int) -> str:
        nonlocal last_s, text
        # A folder on another host is not listed at every batch.
        if not num_frames or time.monotonic() - last_s > _INTERVAL_S:
            done = count_done(directory, name)
            last_s, text = time.monotonic(), f"; all parts: {done}/{total} shards"
        return text

    return describe


# --- the finishing step


def finish_tokens(
    directory: epath.Path, name: str, asked: tuple[TokenSettings, str] | None = None
) -> Manifest:
    """Puts a column whose parts are done into the dataset; computes nothing and reads no weights.

    Args:
      directory: The dataset.
      name: Name of the column.
      asked: Settings and source of weights that the parts should have had; None: any.

    Returns:
      The manifest, which was written, unless the dataset has the column already.

    Raises:
      UserError: Where a part is at work, a shard is not done, or the settings were others.
    """
    with claimed(directory) as manifest:
        # Killed after it had cleared up, or asked for once more.
        is_there = not is_unfinished(directory, name)
        origins = _published(manifest, name) if is_there else noted_encoders(directory, name)
        if not origins:
            raise _nothing_to_finish(directory, name)
        columns = column_of(directory, manifest, name, origins)
        if asked is not None:
            _check_asked(columns, asked, origins)
        if is_there:
            return manifest
        remedy = "The dataset was replaced: start over with --overwrite."
        columns.check_plan(overwrite=False, remedy=remedy)
        if columns.is_published():
            # Killed before it cleared up.
            clear_up(directory, name)
            return manifest
        _check_done(columns)
        of_weights = next(iter(origins.values())).encoder.licence
        return columns.finish(column_licence(of_weights, manifest, columns.reads), origins)


def _published(manifest: Manifest, name: str) -> dict[str, TokenOrigin]:
    keys = [feature.key for column, feature in manifest.schema.features() if column.name == name]
    return {key: manifest.encoders[key] for key in keys if key in manifest.encoders}


def _check_asked(
    columns: ColumnJob, asked: tuple[TokenSettings, str], origins: dict[str, TokenOrigin]
) -> None:
    """Refuses settings that are not those of the column; the weights themselves are not read."""
    settings, source = asked
    known = next(iter(origins.values())).encoder
    # Their checksum is taken as noted: to compare it, gigabytes would have to be read. So are the
    # sizes of a file that is not on this host, or does not state them.
    weights = (known.weights, known.weights_digest, known.licence)
    wanted = settings.origins(settings.spec(config_of(source, known.model), weights))
    name = columns.column.name
    plan = column_of(columns.directory, columns.manifest, name, wanted).plan
    if plan != columns.plan:
        raise UserError(
            where=f"{columns.directory}, column {name}",
            expected="the settings of this command",
            found=plan_difference(columns.plan, plan),
            remedy="Give --finish the settings of the parts, or --name alone.",
        )


def _check_done(columns: ColumnJob) -> None:
    """Raises `UserError` where a shard is not done, with the parts to run."""
    num_parts = last_count(columns.directory, columns.column.name)
    left = _left(columns, num_parts or 1)
    if not left:
        return
    missing = sorted(number for numbers in left.values() for number in numbers)
    flags = [f"--part {part}" for part in left]
    more = [f"{len(flags) - _MOST_PARTS} more"] if len(flags) > _MOST_PARTS else []
    again = f"Run these parts again: {', '.join(flags[:_MOST_PARTS] + more)}. Or run"
    raise UserError(
        where=f"{columns.directory}, column {columns.column.name}",
        expected=f"all {len(columns.steps)} shards",
        found=f"{len(missing)} missing, by number {ranges(missing)}",
        remedy=f"{again if num_parts else 'Run'} the command that computes the column without "
        "--part, which does all that is missing.",
    )


def _nothing_to_finish(directory: epath.Path, name: str) -> UserError:
    others = ", ".join(unfinished(directory))
    found = f"{others} instead" if others else "none"
    if is_unfinished(directory, name):
        found = "one that has not measured a sample yet"
    return UserError(
        where=f"{directory}, column {name}",
        expected="an unfinished column of that name",
        found=found,
        remedy="Name another with --name, or compute it: without --finish, or with --part I/N.",
    )
