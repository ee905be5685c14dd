"""`dataset.json`: what a dataset directory holds, shard by shard, readable by a person."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping

from etils import epath

from pipeline.conventions import Conventions
from pipeline.errors import DataError
from pipeline.files import dump_json, from_json_text, to_json_values
from pipeline.schema import Schema

FORMAT_VERSION = 1
FILE_NAME = "dataset.json"
STATISTICS_NAME = "statistics.json"
WORK = ".conversion"
"""Folder of what a conversion knows while it runs; gone at its end."""
_CONVERT_AGAIN = "Convert the dataset again."


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file of a column."""

    file: str
    """Relative to the dataset directory."""
    records: int
    """Records that it must hold."""
    num_bytes: int
    """Size of the file."""
    digest: str
    """XXH3 of 128 bits over the bytes of its records, one after the other, as 32 hex digits."""


@dataclasses.dataclass(frozen=True)
class TaskChange:
    """A new instruction inside an episode."""

    episode: int
    """Its place among the episodes."""
    step: int
    """The first step of the episode that has it; 1 or more."""
    task: int
    """Index into `Manifest.tasks`."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything about a dataset but its arrays."""

    format_version: int
    """Of the layout of directory, manifest and records."""
    name: str
    """Of the dataset, as the source calls it."""
    schema: Schema
    """Columns and features."""
    schema_hash: str
    """`Schema.hash` of it, for programs that compare; a schema edited by hand is refused."""
    shards: Mapping[str, tuple[Shard, ...]]
    """Per column, in the order of their records."""
    episode_lengths: tuple[int, ...]
    """Steps of each episode, in the order of their records."""
    episode_tasks: tuple[int, ...]
    """Index into `tasks` of each episode's first step."""
    task_changes: tuple[TaskChange, ...]
    """The instructions that begin later than their episode, in the order of the steps."""
    tasks: tuple[str, ...]
    """The instructions: text is stored here and nowhere else."""
    task_source: str
    """The key that they have in the source, such as `steps/language_instruction`."""
    removed_steps: tuple[int, ...]
    """Steps without motion that the conversion left out, by task."""
    conventions: Conventions
    """What the numbers mean."""
    licences: Mapping[str, str]
    """Of each column, as an SPDX identifier or in words."""
    provenance: Mapping[str, str]
    """Where the data came from."""

    def digest(self, columns: Collection[str] | None = None) -> str:
        """16 hex digits: the identity of the data in some columns, or in all of them.

        They cover the columns' features and shards, and the episodes' lengths and tasks; a column
        that is added or dropped beside them does not change them.
        """
        taken = tuple(c for c in self.schema.columns if columns is None or c.name in columns)
        lines = [Schema(taken).hash(), *self.tasks, str(self.episode_lengths)]
        lines += [str(self.episode_tasks), str(self.task_changes)]
        lines += [shard.digest for column in taken for shard in self.shards[column.name]]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def dumps(self) -> str:
        """As the text of `dataset.json`."""
        return dump_json(to_json_values(self))


def load_manifest(directory: epath.Path) -> Manifest:
    """Reads the manifest of a dataset directory.

    Raises:
      DataError: Where it is missing, of another version, or not what the converter writes.
      SchemaError: Where it declares a type that the dtype law refuses.
    """
    path = directory / FILE_NAME
    text = _read(path)
    _check_version(text, path)
    manifest = from_json_text(Manifest, text, where=str(path), remedy=_CONVERT_AGAIN)
    manifest.schema.check(str(path))
    _check_schema_hash(manifest, path)
    _check_counts(manifest, path)
    _check_episodes(manifest, path)
    return manifest


def _read(path: epath.Path) -> str:
    if path.exists():
        return path.read_text()
    if (path.parent / WORK).exists():
        raise DataError(
            where=str(path.parent),
            expected=f"a dataset directory with a {FILE_NAME}",
            found="an unfinished conversion",
            remedy="Run the same `python -m converters.rlds` again: it goes on where it stopped.",
        )
    raise DataError(
        where=str(path.parent),
        expected=f"a dataset directory with a {FILE_NAME}",
        found="none in it" if path.parent.exists() else "no such directory",
        remedy=f"Convert an RLDS directory: python -m converters.rlds SRC {path.parent}",
    )


def _check_version(text: str, path: epath.Path) -> None:
    """The version first: another format's fields would only confuse."""
    try:
        version = json.loads(text).get("format_version")
    except (ValueError, AttributeError) as error:
        raise DataError(
            where=str(path), expected="a JSON object", found=str(error), remedy=_CONVERT_AGAIN
        ) from error
    if version != FORMAT_VERSION:
        raise DataError(
            where=str(path),
            expected=f"format version {FORMAT_VERSION}",
            found=f"version {version}",
            remedy="Read it with the release that wrote it, or convert the source again.",
        )


def _check_schema_hash(manifest: Manifest, path: epath.Path) -> None:
    found = manifest.schema.hash()
    if found != manifest.schema_hash:
        raise DataError(
            where=f"{path}, schema",
            expected=f"the hash {manifest.schema_hash} that was written with it",
            found=f"{found}: the schema was changed",
            remedy=_CONVERT_AGAIN,
        )


def _check_episodes(manifest: Manifest, path: epath.Path) -> None:
    """Every episode must have steps and a task."""
    tasks, lengths = manifest.episode_tasks, manifest.episode_lengths
    rows = range(len(manifest.tasks))
    used = {*tasks, *(change.task for change in manifest.task_changes)}
    if len(tasks) != len(lengths) or min(lengths, default=0) < 1 or not used <= set(rows):
        raise DataError(
            where=str(path),
            expected="episodes of at least one step, each with one of the tasks",
            found=f"{len(lengths)} lengths, {len(tasks)} tasks of episodes, {rows.stop} tasks",
            remedy=_CONVERT_AGAIN,
        )
    places = [(change.episode, change.step) for change in manifest.task_changes]
    inside = all(0 <= e < len(lengths) and 1 <= step < lengths[e] for e, step in places)
    if not inside or places != sorted(set(places)):
        raise DataError(
            where=f"{path}, task_changes",
            expected="steps inside their episodes, in their order",
            found=str(places),
            remedy=_CONVERT_AGAIN,
        )


def _check_counts(manifest: Manifest, path: epath.Path) -> None:
    """Every column must hold as many records as there are steps or episodes."""
    counts = {"episode": len(manifest.episode_lengths), "step": sum(manifest.episode_lengths)}
    for column in manifest.schema.columns:
        found = sum(shard.records for shard in manifest.shards.get(column.name, ()))
        if found != counts[column.per]:
            raise DataError(
                where=f"{path}, column {column.name}",
                expected=f"{counts[column.per]} records, one a {column.per}",
                found=str(found),
                remedy=_CONVERT_AGAIN,
            )
