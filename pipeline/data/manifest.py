"""`dataset.json`: the human-readable manifest of a dataset directory, shard by shard."""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from pipeline.added_fields import LATER
from pipeline.checksums import check_checksum
from pipeline.data.conventions import Conventions
from pipeline.data.schema import ACTION, EPISODES, Column, Schema
from pipeline.data.token_provenance import TokenOrigin, token_identity
from pipeline.errors import DataError
from pipeline.files import (
    dump_json,
    from_json_text,
    json_checksum,
    parse_json,
    read_text,
    to_json_values,
)
from pipeline.terminal import first_few

FORMAT_VERSION = 1
FILE_NAME = "dataset.json"
_SHOWN_DATASETS = 4
STATISTICS_NAME = "statistics.json"
TRANSFORMED_NAME = "transformed_statistics.json"
"""Where a loader keeps the statistics of what its transforms change; it may be deleted."""
WORK = ".conversion"
"""Folder with the state of a running conversion; removed at its end."""
PULL_WORK = ".pull"
"""Folder with what a running pull from the hub has fetched; removed at its end."""
EDIT = "octograin edit"
"""The command that changes what the manifest says, and writes checksums."""
NUM_HASH_DIGITS = 16
"""Hex digits of the hash of an episode's actions."""
_CONVERT_AGAIN = "Convert the dataset again."


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file of a column."""

    file: str
    """Path relative to the dataset directory."""
    records: int
    """Number of records that it must hold."""
    num_bytes: int
    """Size of the file."""
    digest: str
    """XXH3-128 over the bytes of its records in order, as 32 hex digits."""


@dataclasses.dataclass(frozen=True)
class TaskChange:
    """A new instruction inside an episode."""

    episode: int
    """Index of the episode."""
    step: int
    """First step of the episode with the new instruction; at least 1."""
    task: int
    """Index into `Manifest.tasks`."""


@dataclasses.dataclass(frozen=True)
class SkippedEpisode:
    """An unusable episode of the source that the conversion skipped."""

    file: str
    """Name of the source file."""
    episode: int
    """Index of the episode in that file."""
    reason: str
    """What is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything about a dataset except its arrays."""

    format_version: int
    """Version of the layout of directory, manifest and records."""
    name: str
    """Name of the dataset in the source."""
    schema: Schema
    """Columns and features."""
    schema_hash: str
    """`Schema.hash` of it, for programs that compare; a schema edited by hand is rejected."""
    shards: Mapping[str, tuple[Shard, ...]]
    """Shards of each column, in the order of their records."""
    episode_lengths: tuple[int, ...]
    """Number of steps of each episode, in the order of the episodes."""
    episode_tasks: tuple[int, ...]
    """Index into `tasks` of each episode's first step."""
    task_changes: tuple[TaskChange, ...]
    """Changes of instruction within an episode, in the order of the steps."""
    tasks: tuple[str, ...]
    """The instructions; their text is stored only here."""
    task_source: str
    """Key of the instructions in the source, such as `steps/language_instruction`."""
    removed_steps: tuple[int, ...]
    """Number of steps without motion that the conversion removed, by task."""
    conventions: Conventions
    """Signs, frames and rates of the values."""
    licences: Mapping[str, str]
    """Licence of each column, as an SPDX identifier or in words."""
    provenance: Mapping[str, str]
    """Origin of the data: its source and version, and later edits, by name."""
    encoders: Mapping[str, TokenOrigin] = dataclasses.field(default_factory=dict, metadata=LATER)
    """How each feature that is not in the source was computed, by key."""
    skipped_episodes: tuple[SkippedEpisode, ...] = dataclasses.field(default=(), metadata=LATER)
    """Episodes of the source that were skipped, in the order of the source."""
    mapping: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata=LATER)
    """The mapping of the conversion, where it computed values or selected steps; else empty."""
    statistics_checksum: str = dataclasses.field(default="", metadata=LATER)
    """`json_checksum` of the statistics; empty if neither file has a checksum yet."""
    checksum: str = dataclasses.field(default="", compare=False, metadata=LATER)
    """`json_checksum` of all other fields, as read from the file; `dumps` computes a new one."""
    excluded_episodes: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)
    """Episodes that are not used, ascending; their records stay. `octograin edit` changes them."""
    failed_episodes: tuple[int, ...] | None = dataclasses.field(default=None, metadata=LATER)
    """Episodes declared as failed, ascending, while all others succeeded; None: not declared."""
    action_hashes: tuple[str, ...] = dataclasses.field(default=(), metadata=LATER)
    """XXH3-64 of each episode's actions as 16 hex digits, one text per shard of EPISODES; empty in
    datasets of before 0.9.0, until `octograin edit` adds them."""

    @property
    def statistics_name(self) -> str:
        """Name of the file with the statistics, which leave out the excluded episodes.

        Other episodes have another file, so that replacing `dataset.json` changes both at once.
        """
        return statistics_name(self.statistics_checksum, is_of_all=not self.excluded_episodes)

    def digest(self, columns: Collection[str] | None = None) -> str:
        """Checksum of the data in some or all columns and of its meaning, 16 hex digits.

        It covers what `data_digest` covers, the conventions, how the columns' tokens were computed,
        and which episodes are excluded.
        """
        taken = self._taken(columns)
        keys = [feature.key for column in taken for feature in column.features]
        return _short_digest(
            {
                "data": self.data_digest(columns),
                "conventions": to_json_values(self.conventions),
                "encoders": {
                    key: token_identity(self.encoders[key]) for key in keys if key in self.encoders
                },
                # Absent if empty, so that digests from before there were any stay.
                **({"excluded": self.excluded_episodes} if self.excluded_episodes else {}),
            }
        )

    def data_digest(self, columns: Collection[str] | None = None) -> str:
        """Checksum of the data in some or all columns, 16 hex digits.

        It covers the columns' features and shards, and the episodes' lengths and tasks. Adding or
        dropping other columns does not change it. Tokens depend on nothing else, so plans of
        column jobs store it. Old checkpoints store it instead of `digest`.
        """
        taken = self._taken(columns)
        changes = [[change.episode, change.step, change.task] for change in self.task_changes]
        covered = {
            "schema_hash": Schema(taken).hash(),
            "digests": [s.digest for column in taken for s in self.shards[column.name]],
            "episode_lengths": self.episode_lengths,
            "episode_tasks": self.episode_tasks,
            "task_changes": changes,
            "tasks": self.tasks,
        }
        return _short_digest(covered)

    def _taken(self, columns: Collection[str] | None) -> tuple[Column, ...]:
        return tuple(c for c in self.schema.columns if columns is None or c.name in columns)

    def dumps(self) -> str:
        """Formats the text of `dataset.json`, and computes its checksum.

        If the statistics have no checksum, the manifest gets none either.
        """
        # Without a checksum of its own in the text that is hashed.
        values = to_json_values(dataclasses.replace(self, checksum=""))
        if self.statistics_checksum:
            values["checksum"] = json_checksum(values)
        return dump_json(values)


def statistics_name(checksum: str, *, is_of_all: bool) -> str:
    """Name of the statistics of all episodes, or of those that are left of them.

    Args:
      checksum: `json_checksum` of the statistics.
      is_of_all: Whether no episode is excluded.
    """
    return STATISTICS_NAME if is_of_all else f"statistics-{checksum[:8]}.json"


def is_statistics_name(file: str) -> bool:
    """Whether a file in a dataset directory has a name of statistics."""
    return (
        file == STATISTICS_NAME or re.fullmatch(r"statistics-[0-9a-f]{8}\.json", file) is not None
    )


def _short_digest(covered: Any) -> str:
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_manifest(directory: epath.Path) -> Manifest:
    """Reads the manifest of a dataset directory.

    Raises:
      DataError: The manifest is missing, of another version, or malformed.
      SchemaError: The manifest declares a type that the dtype law forbids.
    """
    path = directory / FILE_NAME
    text = _read(path)
    values = _parse(text, path)
    _check_version(values, path)
    # Before the fields are read: a corrupt byte may still give a valid field.
    _check_checksum(values, path)
    manifest = from_json_text(Manifest, text, where=str(path), remedy=_CONVERT_AGAIN)
    manifest.schema.check(str(path))
    _check_schema_hash(manifest, path)
    check_consistency(manifest, str(path))
    return manifest


def _read(path: epath.Path) -> str:
    try:
        is_there = path.exists()
    except OSError:  # a folder that may not be entered
        # Then opening it gives the system's own error.
        is_there = True
    if is_there:
        remedy = "Allow reading it, or convert the dataset again."
        return read_text(path, expected="a JSON object", remedy=remedy)
    # The folder of a job without a manifest: its last file was not written.
    if (path.parent / WORK).exists():
        raise DataError(
            where=str(path.parent),
            expected=f"a dataset directory with a {FILE_NAME}",
            found="an unfinished conversion",
            remedy="Run the same `octograin convert` again: it resumes where it stopped.",
        )
    if (path.parent / PULL_WORK).exists():
        raise DataError(
            where=str(path.parent),
            expected=f"a dataset directory with a {FILE_NAME}",
            found="an unfinished pull",
            remedy="Run the same `octograin pull` again: it resumes where it stopped.",
        )
    if _is_rlds(path.parent):
        raise DataError(
            where=str(path.parent),
            expected=f"a dataset directory with a {FILE_NAME}",
            found="an RLDS directory",
            remedy=f"Convert it: octograin convert {path.parent} DST; "
            f"compare the two: octograin verify {path.parent} DST",
        )
    if (path.parent / "config.json").exists() and (path.parent / "metrics.jsonl").exists():
        raise DataError(
            where=str(path.parent),
            expected=f"a dataset directory with a {FILE_NAME}",
            found="the directory of a run",
            remedy="Its datasets.json lists its datasets; Policy.from_run opens its policy.",
        )
    if path.parent.exists():
        raise DataError(
            where=str(path.parent),
            expected=f"a dataset directory with a {FILE_NAME}",
            found="none in it",
            remedy=_datasets_in(path.parent)
            or f"If it is a source, convert it: octograin convert {path.parent} DST",
        )
    raise DataError(
        where=str(path.parent),
        expected=f"a dataset directory with a {FILE_NAME}",
        found="no such directory",
        remedy=f"Convert a source: octograin convert SRC {path.parent}",
    )


def _datasets_in(directory: epath.Path) -> str:
    """Says which folders of a directory are datasets; empty if none is."""
    try:
        found = sorted(str(p) for p in directory.iterdir() if (p / FILE_NAME).exists())
    except OSError:  # missing, a file or not readable, so it shows no datasets
        return ""
    return f"Datasets in it: {', '.join(found[:_SHOWN_DATASETS])}." if found else ""


def _is_rlds(directory: epath.Path) -> bool:
    """Whether a directory is an RLDS directory, or the folder of its versions."""
    try:
        folders = [directory, *directory.iterdir()]
    except OSError:  # missing, a file or not readable, so nothing shows that it is RLDS
        return False
    return any((folder / "features.json").exists() for folder in folders)


def _parse(text: str, path: epath.Path) -> dict[str, Any]:
    expected = "a JSON object"
    values = parse_json(text, where=str(path), expected=expected, remedy=_CONVERT_AGAIN)
    if not isinstance(values, dict):
        found = f"{type(values).__name__}, not an object"
        raise DataError(where=str(path), expected=expected, found=found, remedy=_CONVERT_AGAIN)
    return values


def _check_version(values: Mapping[str, Any], path: epath.Path) -> None:
    """Checks the version first, as errors about another version's fields would mislead."""
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            where=str(path),
            expected=f"format version {FORMAT_VERSION}",
            found=f"version {version}",
            remedy="Read it with the release that wrote it, or convert the source again.",
        )


def _check_checksum(values: Mapping[str, Any], path: epath.Path) -> None:
    """Rejects a manifest that was changed after writing; old manifests have no checksum."""
    # Datasets of the first releases; opening them warns once.
    if not values.get("checksum") and not values.get("statistics_checksum"):
        return
    content = {name: value for name, value in values.items() if name != "checksum"}
    remedy = (
        f"Copy it again, undo the edit and make it with `{EDIT} {path.parent}`, or convert the "
        "dataset again."
    )
    check_checksum(values.get("checksum"), content, where=str(path), remedy=remedy)


def _check_schema_hash(manifest: Manifest, path: epath.Path) -> None:
    found = manifest.schema.hash()
    if found != manifest.schema_hash:
        raise DataError(
            where=f"{path}, schema",
            expected=f"the hash {manifest.schema_hash} that was written with it",
            found=f"{found}: the schema was changed",
            remedy=_CONVERT_AGAIN,
        )


def check_consistency(manifest: Manifest, where: str) -> None:
    """Raises a `DataError` that lists all contradictions within a manifest."""
    problems = [
        *_column_problems(manifest),
        *_feature_problems(manifest),
        *_convention_problems(manifest),
        *_episode_problems(manifest),
        *_choice_problems(manifest),
        *_encoder_problems(manifest),
        *_hash_problems(manifest),
    ]
    if problems:
        raise DataError(
            where=where,
            expected="a manifest that agrees with itself",
            found="; ".join(problems),
            remedy=_CONVERT_AGAIN,
        )


def _column_problems(manifest: Manifest) -> Iterator[str]:
    """Checks that each column has its own folder, and that all shards cover the same episodes."""
    names = [column.name for column in manifest.schema.columns]
    if set(manifest.licences) != set(names):
        yield f"licences: expected one of each column; found {sorted(manifest.licences)}"
    if sorted(manifest.shards) != sorted(names) or EPISODES not in names:
        found = f"{names}, shards of {sorted(manifest.shards)}"
        yield f"columns: expected {EPISODES}, and shards of each; found {found}"
        # The other checks need one entry per column.
        return
    counts = {"episode": len(manifest.episode_lengths), "step": sum(manifest.episode_lengths)}
    borders = _borders(manifest)
    for column in manifest.schema.columns:
        place = f"column {column.name}"
        shards = manifest.shards[column.name]
        if not all(_is_inside(shard.file, column.name) for shard in shards):
            others = [s.file for s in shards if not _is_inside(s.file, column.name)]
            yield f"{place}: expected files in its folder; found {_few(others)}"
        found = [shard.records for shard in shards]
        if sum(found) != counts[column.per] or min(found, default=0) < 0:
            expected = f"{counts[column.per]} records, one per {column.per}"
            yield f"{place}: expected {expected}; found {sum(found)} in shards of {_few(found)}"
        elif found != borders[column.per]:
            # All columns have the same shards, so a shard of any column covers the same episodes.
            expected = f"the episodes' shards, of {_few(borders[column.per])} records"
            yield f"{place}: expected {expected}; found {_few(found)}"


def is_column_name(name: str) -> bool:
    """Whether a column may have that name, which is also the name of its folder."""
    # A letter, digit or underscore first: no hidden folder, no "..".
    return re.fullmatch(r"\w[\w.-]*", name) is not None


def is_inside(file: str) -> bool:
    """Whether a file is directly in the folder of some column."""
    return _is_inside(file, file.partition("/")[0])


def _is_inside(file: str, column: str) -> bool:
    return is_column_name(column) and (
        re.fullmatch(rf"{re.escape(column)}/\w[\w.-]*", file) is not None
    )


def _borders(manifest: Manifest) -> dict[str, list[int]]:
    """Returns the number of episodes in each shard, and of their steps."""
    first = 0
    episodes = [shard.records for shard in manifest.shards[EPISODES]]
    steps = []
    for records in episodes:
        steps.append(sum(manifest.episode_lengths[first : first + records]))
        first += records
    return {"episode": episodes, "step": steps}


def _feature_problems(manifest: Manifest) -> Iterator[str]:
    """Checks that every key is unique, and that a feature's sizes and names agree."""
    features = [feature for _, feature in manifest.schema.features()]
    keys = [feature.key for feature in features]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield f"feature {key}: expected once; found {keys.count(key)} times"
    for feature in features:
        if min(feature.shape, default=1) < 1:
            yield f"feature {feature.key}: expected sizes above 0; found {list(feature.shape)}"
        if feature.dims and feature.shape[-1:] != (len(feature.dims),):
            found = f"{len(feature.dims)} names for {list(feature.shape)}"
            yield f"feature {feature.key}: expected dims of its last axis; found {found}"


def _convention_problems(manifest: Manifest) -> Iterator[str]:
    """Checks that the dimensions of grippers and rotations are those of their features."""
    conventions = manifest.conventions
    shapes = {feature.key: feature.shape for _, feature in manifest.schema.features()}
    for gripper in conventions.all_grippers:
        # A tuple of one, because a scalar's shape has no last axis to index.
        if ACTION in shapes and (gripper.dim,) >= shapes[ACTION][-1:]:
            found = f"{list(shapes[ACTION])}; found {gripper.dim}"
            yield f"{conventions.gripper_field}: expected a dimension of {found}"
    for pose in conventions.rotations:
        shape = shapes.get(pose.feature)
        if shape is None or len(shape) != 1 or pose.dims.stop > shape[0]:
            held = "no such feature" if shape is None else list(shape)
            yield f"rotations: expected {pose} inside a vector; found {held}"


def _episode_problems(manifest: Manifest) -> Iterator[str]:
    """Checks that every episode has steps and tasks."""
    tasks, lengths = manifest.episode_tasks, manifest.episode_lengths
    rows = range(len(manifest.tasks))
    used = {*tasks, *(change.task for change in manifest.task_changes)}
    if len(tasks) != len(lengths) or min(lengths, default=0) < 1 or not used <= set(rows):
        found = f"{len(lengths)} lengths, {len(tasks)} tasks of episodes, {rows.stop} tasks"
        yield f"expected episodes of at least one step, each with one of the tasks; found {found}"
    if len(manifest.removed_steps) != rows.stop:
        yield f"removed_steps: expected one of each task; found {len(manifest.removed_steps)}"
    places = [(change.episode, change.step) for change in manifest.task_changes]
    wrong = [
        (episode, step)
        for episode, step in places
        if not (0 <= episode < len(lengths) and 1 <= step < lengths[episode])
    ]
    # In order and each once, as `task_index` reads them.
    wrong = wrong or _out_of_order(places)
    if wrong:
        yield f"task_changes: expected steps inside their episodes, in order; found {_few(wrong)}"


def _choice_problems(manifest: Manifest) -> Iterator[str]:
    """Checks the lists of episodes, and that some are left."""
    count = len(manifest.episode_lengths)
    rows = range(count)
    lists = {
        "excluded_episodes": manifest.excluded_episodes,
        "failed_episodes": manifest.failed_episodes or (),
    }
    for name, episodes in lists.items():
        wrong = [episode for episode in episodes if episode not in rows]
        wrong = wrong or _out_of_order(episodes)
        if wrong:
            expected = f"expected ascending numbers from 0 to {count - 1}"
            yield f"{name}: {expected}; found {_few(wrong)}"
    if len(manifest.excluded_episodes) == count:
        yield f"excluded_episodes: expected at least one episode that is left; found all {count}"
    if manifest.excluded_episodes and not manifest.statistics_checksum:
        yield "statistics_checksum: expected one, as episodes are excluded; found none"


def _out_of_order(values: Sequence[Any]) -> list[Any]:
    """The neighbours that do not ascend, both of each pair."""
    return [value for pair in itertools.pairwise(values) if not pair[0] < pair[1] for value in pair]


def _few(values: Sequence[object]) -> str:
    """A list whose first elements are shown: there may be a million."""
    return f"[{first_few([*map(repr, values)])}]"


def _encoder_problems(manifest: Manifest) -> Iterator[str]:
    """Checks that every computed feature is declared as its encoder makes it."""
    # A feature without a source was computed, and must say how.
    computed = {f.key: (c, f) for c, f in manifest.schema.features() if not f.source}
    if set(computed) != set(manifest.encoders):
        found = sorted(manifest.encoders)
        yield f"encoders: expected one of each feature without a source; found {found}"
    for key, (column, feature) in computed.items():
        origin = manifest.encoders.get(key)
        if origin is None:
            continue
        if column.per != "step" or feature != origin.feature(key):
            found = f"{feature.kind} of {feature.dtype}{list(feature.shape)} in {column.name}"
            yield f"encoders {key}: expected the feature that it describes; found {found}"
        if origin.projection and not _is_inside(origin.projection, column.name):
            found = origin.projection
            yield f"encoders {key}: expected a projection in the column's folder; found {found}"


def _hash_problems(manifest: Manifest) -> Iterator[str]:
    """Checks that hashes of actions, where there are any, are one for each episode."""
    texts = manifest.action_hashes
    found = [len(text) / NUM_HASH_DIGITS for text in texts]
    records = [shard.records for shard in manifest.shards.get(EPISODES, ())]
    is_hex = all(map(re.compile("[0-9a-f]*").fullmatch, texts))
    if texts and (found != records or not is_hex):
        expected = f"{NUM_HASH_DIGITS} hex digits per episode, one text per shard of {EPISODES}"
        yield f"action_hashes: expected {expected}; found others"
