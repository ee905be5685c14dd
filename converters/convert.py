"""The conversion job: an RLDS directory becomes a dataset directory."""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Mapping

import numpy as np

from converters.rlds.source import RldsSource
from converters.standardize import SourceMapping, Standardized, standardize
from pipeline import statistics as stats
from pipeline.errors import UserError
from pipeline.manifest import FILE_NAME, FORMAT_VERSION, STATISTICS_NAME, Manifest, Shard
from pipeline.record import RecordLayout, Values
from pipeline.schema import SOURCE_ID, TASK_INDEX, Column, Schema
from pipeline.writer import ShardWriter, write_manifest

_OWN_FILES = {
    1: (FILE_NAME, STATISTICS_NAME, ".*.tmp"),
    2: ("[0-9]*-of-[0-9]*.arrayrecord", ".*.tmp"),
}
"""By depth: a folder of several datasets is not one, and is never cleared."""


def convert(
    source: RldsSource,
    destination: pathlib.Path,
    mapping: SourceMapping,
    *,
    overwrite: bool = False,
    on_episode: Callable[[int], None] = lambda num_steps: None,
) -> Manifest:
    """Writes every episode of `source` as a dataset directory.

    Args:
      source: What is read; each of its shards becomes one shard of every column.
      destination: The dataset directory. Until its last file is written it does not open.
      mapping: Which source key becomes which feature.
      overwrite: Whether a dataset that stands there is replaced.
      on_episode: Called with the number of steps after each episode.

    Returns:
      The manifest that was written.

    Raises:
      UserError: Where the destination is in use, or the source is not what it declares.
    """
    job = _Job(mapping, mapping.schema(source), destination)
    _clear(destination, overwrite=overwrite)
    for number in range(len(source.shards)):
        job.convert_shard(source, number, on_episode)
    manifest = job.manifest(source)
    write_manifest(destination, manifest, job.statistics())
    return manifest


@dataclasses.dataclass
class _Job:
    """A conversion under way: what has been written and seen so far."""

    mapping: SourceMapping
    schema: Schema
    destination: pathlib.Path
    tasks: dict[str, int] = dataclasses.field(default_factory=dict)
    lengths: list[int] = dataclasses.field(default_factory=list)
    episode_tasks: list[int] = dataclasses.field(default_factory=list)
    shards: dict[str, list[Shard]] = dataclasses.field(default_factory=dict)
    trajectories: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def convert_shard(
        self, source: RldsSource, number: int, on_episode: Callable[[int], None]
    ) -> None:
        """Writes one shard of every column from the source's shard of that number."""
        file = f"{number:05d}-of-{len(source.shards):05d}.arrayrecord"
        with contextlib.ExitStack() as stack:
            writers = {
                column.name: stack.enter_context(
                    ShardWriter(self.destination, f"{column.name}/{file}")
                )
                for column in self.schema.columns
            }
            for where, episode in source.episodes(source.shards[number]):
                values = standardize(episode, self.schema, self.tasks, where)
                self._write(values, number, writers)
                self._note(values)
                on_episode(self.lengths[-1])
        for name, writer in writers.items():
            self.shards.setdefault(name, []).append(writer.finished())

    def manifest(self, source: RldsSource) -> Manifest:
        """What has been written, described."""
        return Manifest(
            format_version=FORMAT_VERSION,
            name=source.name,
            schema=self.schema,
            shards={name: tuple(shards) for name, shards in self.shards.items()},
            episode_lengths=tuple(self.lengths),
            episode_tasks=tuple(self.episode_tasks),
            tasks=tuple(self.tasks),
            conventions=self.mapping.conventions,
            provenance={"source": source.name, "version": source.version, "split": source.split},
        )

    def statistics(self) -> dict[str, stats.FeatureStatistics]:
        """Over every float32 trajectory."""
        return {key: stats.compute(np.concatenate(kept)) for key, kept in self.trajectories.items()}

    def _write(
        self,
        values: Standardized,
        shard: int,
        writers: Mapping[str, ShardWriter],
    ) -> None:
        """Appends one episode to every column's shard."""
        num_steps = len(values[TASK_INDEX])
        for column in self.schema.columns:
            layout = RecordLayout(column)
            writer = writers[column.name]
            if column.per == "episode":
                place = (shard, writer.count)
                writer.write(layout.encode(place, num_steps, _whole(values, column)))
                continue
            for t in range(num_steps):
                place = (shard, writer.count)
                writer.write(layout.encode(place, 1, _at(values, column, t)))

    def _note(self, values: Standardized) -> None:
        """Counts an episode and keeps its low-dimensional values for the statistics."""
        task_index = values[TASK_INDEX]
        self.lengths.append(len(task_index))
        self.episode_tasks.append(int(task_index[0]))
        for column, feature in self.schema.features():
            if column.per == "episode" and feature.dtype == "float32":
                flat = np.asarray(values[feature.key]).reshape(len(task_index), -1)
                self.trajectories.setdefault(feature.key, []).append(flat)


def _whole(values: Standardized, column: Column) -> Values:
    """An episode's record: trajectories, and the one text of the source id."""
    return {
        f.key: b"".join(values[f.key]) if f.key == SOURCE_ID else np.asarray(values[f.key])
        for f in column.features
    }


def _at(values: Standardized, column: Column, t: int) -> Values:
    """The record of step `t`."""
    taken: Values = {}
    for feature in column.features:
        value = values[feature.key]
        taken[feature.key] = value[t, ...] if isinstance(value, np.ndarray) else value[t]
    return taken


def _clear(destination: pathlib.Path, *, overwrite: bool) -> None:
    """Makes room: an old dataset stops being one before any of its shards is touched."""
    if destination.exists() and not destination.is_dir():
        raise _in_use(destination, "a file", "Name another destination.")
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _in_use(destination, str(error), "Name another destination.") from error
    files = [path for path in destination.rglob("*") if path.is_file()]
    foreign = [p for p in files if not _is_own(p.relative_to(destination))]
    if foreign:
        found = f"other files: {foreign[0].relative_to(destination)}"
        raise _in_use(destination, found, "Name another destination.")
    manifest = destination / FILE_NAME
    if manifest.exists():
        if not overwrite:
            raise _in_use(destination, "a dataset", "Replace it with --overwrite.")
        manifest.unlink()
    for path in destination.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_own(path: pathlib.PurePath) -> bool:
    """Whether a file, relative to the destination, is one that this job writes."""
    return any(path.match(pattern) for pattern in _OWN_FILES.get(len(path.parts), ()))


def _in_use(destination: pathlib.Path, found: str, remedy: str) -> UserError:
    return UserError(
        where=str(destination),
        expected="an empty or new directory",
        found=found,
        remedy=remedy,
    )
