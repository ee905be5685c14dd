"""The conversion job: a source becomes a dataset directory."""

import contextlib
import dataclasses
import logging
import numbers
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import get_args

import numpy as np
from etils import epath

from converters.job import workers
from converters.job.bad_episodes import DEFAULT_CHECKS, BadEpisodes, Checks, refused
from converters.job.output_directory import claim
from converters.job.shard_conversion import Part, ShardJob
from converters.mapping.computed_source import compute_source
from converters.mapping.conversion_warnings import Doubts, report_cameras, report_tasks
from converters.mapping.mapping_registry import find_mapping, read_mapping
from converters.mapping.standardize import SourceMapping
from converters.sources.image_encoding import encode_source
from converters.sources.open_source import open_source
from converters.sources.source import Source
from pipeline.data import statistics as stats
from pipeline.data.action_hashes import has_actions, hash_actions, to_texts
from pipeline.data.column_reader import ColumnReader
from pipeline.data.dataset_writer import write_manifest
from pipeline.data.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    Manifest,
    TaskChange,
    check_consistency,
    load_manifest,
)
from pipeline.data.record import RecordLayout
from pipeline.data.schema import ACTION, EPISODES, Schema
from pipeline.errors import DataError, SchemaError, UserError
from pipeline.files import is_remote, open_path, to_json_values, writing


def convert_dataset(  # noqa: PLR0913  (the flags of `octograin convert`)
    source: str | Source,
    destination: str,
    mapping: str | None = None,
    *,
    split: str | None = None,
    episodes: tuple[int, int] | None = None,
    instruction: str | None = None,
    bad_episodes: BadEpisodes = "stop",
    check_images: bool = False,
    image_quality: int | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Converts a source to a dataset directory.

    A job that was killed resumes where it stopped when it is called again. `octograin convert` has
    the same options, and a progress bar.

    Args:
      source: Its directory or file, as `octograin convert` takes it; or an object that has the
        methods of `Source`, for a format of your own.
      destination: The dataset directory to write.
      mapping: TOML file that maps source keys to features, or a name that `octograin convert
        --list` prints; None: the one that has the dataset's name.
      split: Split of the source, where it is a path; None: `train` where its format has splits.
      episodes: Range (a, b) of episodes, from a to before b; None: all.
      instruction: The instruction of every episode, in place of those of the source.
      bad_episodes: What is done about episodes that cannot be used: `stop` lists all of them in an
        error and writes no dataset, `skip` leaves them out and notes them in it.
      check_images: Whether every image is decoded; else its header alone is read.
      image_quality: Quality of JPEG, 1 to 100, for frames of videos and pixels of HDF5, where the
        source is a path; None: 95.
      workers: Processes. With more than one, a script calls this below `if __name__ ==
        "__main__":`, and the class of an own source has to be importable.
      overwrite: Whether what stands at the destination is replaced.

    Raises:
      UserError: The source or its mapping has problems, or the destination is in use.
    """
    if bad_episodes not in get_args(BadEpisodes):
        raise _misused("stop or skip as bad_episodes", repr(bad_episodes))
    if not isinstance(workers, numbers.Integral) or workers < 1:
        raise _misused("a whole number of at least 1 as workers", repr(workers))
    if episodes is not None and not _is_range(episodes):
        raise _misused("two whole numbers, such as (0, 2), as episodes", repr(episodes))
    if not isinstance(mapping, str | os.PathLike | None):
        raise _misused("a file or the name of a mapping as mapping", repr(mapping))
    if isinstance(source, str):
        source = open_source(source, split, image_quality)
    elif split is not None or image_quality is not None:
        raise _misused("split and image_quality with a path alone", f"a {type(source).__name__}")
    if episodes is not None:
        source = source.select(*episodes)
    chosen = find_mapping(source) if mapping is None else read_mapping(mapping)
    if instruction is not None:
        chosen = chosen.with_instruction(instruction)
    checks = Checks(bad_episodes, check_images)
    convert(
        source,
        destination,
        chosen,
        overwrite=overwrite,
        checks=checks,
        runner=LocalRunner(workers),
    )


def _is_range(episodes: object) -> bool:
    match episodes:
        case (numbers.Integral(), numbers.Integral()):
            return True
    return False


def _misused(expected: str, found: str) -> UserError:
    remedy = "See help(octograin.convert_dataset)."
    return UserError(where="convert_dataset", expected=expected, found=found, remedy=remedy)


_log = logging.getLogger(__name__)

Runner = Callable[[ShardJob, Sequence[int], workers.OnProgress], None]
"""Converts the shards of these numbers, in any order, anywhere."""


@dataclasses.dataclass(frozen=True)
class LocalRunner:
    """Converts on this machine."""

    num_workers: int = 1
    """Processes; 1 is this one."""

    def __call__(
        self, job: ShardJob, numbers: Sequence[int], on_progress: workers.OnProgress
    ) -> None:
        """Converts the shards, or raises the first `UserError` of one."""
        workers.run(job.convert, numbers, min(self.num_workers, len(numbers)) or 1, on_progress)


def convert(  # noqa: PLR0913  (all but the first three have a default)
    source: Source,
    destination: epath.PathLike,
    mapping: SourceMapping,
    *,
    overwrite: bool = False,
    checks: Checks = DEFAULT_CHECKS,
    runner: Runner = LocalRunner(),
    on_progress: workers.OnProgress = lambda num_episodes, num_bytes: None,
) -> Manifest:
    """Writes every episode of `source` as a dataset directory.

    A job that was killed resumes where it stopped when it is called again.

    Args:
      source: What is read; each of its shards becomes one shard of every column.
      destination: The dataset directory. Until its last file is written it does not open.
      mapping: Which source key becomes which feature.
      overwrite: Whether what stands there is replaced, a dataset or an unfinished conversion.
      checks: Whether images are decoded, and whether episodes that cannot be used end the job once
        all were read, or are left out of the dataset and listed in it.
      runner: Where the shards are converted.
      on_progress: Called with episodes and bytes of the source as they are done.

    Returns:
      The manifest that was written.

    Raises:
      UserError: Where the destination is in use, files of the source are missing, or it is not
        what it declares.
    """
    destination = open_path(destination)
    _check_apart(source, destination)
    # Before anything is written: missing shards would otherwise show in the middle of the job.
    source.check_files()
    # What the mapping computes is a key of the source from here on.
    source, plain = compute_source(source, mapping)
    source = encode_source(source)
    plain = plain.fitted(source)
    schema = plain.schema(source)
    _check_trains(schema, source)
    computation = mapping if mapping.is_computed else None
    job = ShardJob(source, plain, schema, destination, checks, computation)
    # Holding the claim keeps a second job out of this directory until the manifest is written.
    with claim(destination, job.plan, overwrite=overwrite):
        if (destination / FILE_NAME).exists():  # killed after its last file
            # The manifest is written last, so all that it lists is complete.
            return load_manifest(destination)
        numbers = range(len(source.shards))
        # A shard is a function of its source shard alone, so finished ones are kept after a kill.
        pending = [number for number in numbers if not _is_settled(job, number)]
        done = set(numbers) - set(pending)
        # Zero bytes: what earlier runs read must not raise the reported rate.
        on_progress(sum(source.shards[number].num_episodes for number in done), 0)
        runner(job, pending, on_progress)
        # Read back from disk: the shards may come from other processes, machines or earlier runs.
        parts = [job.part(number) for number in numbers]
        if checks.check_images:
            num_images = sum(part.num_images for part in parts)
            seconds = sum(part.image_seconds for part in parts)
            _log.info(f"images: {num_images:,} decoded in {seconds:.1f} s of CPU")
        # Only now, so that one run lists the bad episodes of every shard.
        _check_usable(job, parts)
        manifest = _manifest(job, parts)
        check_consistency(manifest, str(destination))
        report_cameras(source, schema)
        report_tasks(manifest.tasks, manifest.task_source)
        statistics, hashes = _read_back(job, manifest)
        manifest = dataclasses.replace(manifest, action_hashes=hashes)
        # Errors of the disk are reported as a `UserError` with this directory.
        with writing(destination):
            return write_manifest(destination, manifest, statistics)


def _check_apart(source: Source, destination: epath.Path) -> None:
    """Refuses to write into the source."""
    # Resolved, so that a link into the source counts as the source.
    if destination.resolve().is_relative_to(source.directory.resolve()):
        raise UserError(
            where=str(destination),
            expected="a destination outside the source",
            found=f"one inside {source.directory}",
            remedy="Name another destination.",
        )


def _check_trains(schema: Schema, source: Source) -> None:
    """Refuses a dataset that nothing can be trained on: without an action."""
    features = [feature for _, feature in schema.features()]
    if ACTION in [feature.key for feature in features]:
        return
    raise SchemaError(
        where=source.declaration,
        expected=f"a mapping with a feature {ACTION}, which a policy learns",
        found=f"only {', '.join(feature.key for feature in features) or 'none'}",
        remedy=f'Give the feature of the commands key = "{ACTION}"; `from` joins several keys.',
    )


def _is_settled(job: ShardJob, number: int) -> bool:
    """Whether a shard need not be converted; one with bad episodes may be fixed since."""
    # With "skip" a known bad episode stays skipped, so its shard counts as settled.
    return job.is_done(number) and not (job.checks.bad_episodes == "stop" and job.part(number).bad)


def _check_usable(job: ShardJob, parts: Sequence[Part]) -> None:
    """Refuses episodes that cannot be used, unless they are to be skipped and others are left."""
    bad = [
        (shard, episode)
        for shard, part in zip(job.source.shards, parts, strict=True)
        for episode in part.bad
    ]
    num_episodes = sum(shard.num_episodes for shard in job.source.shards)
    is_any_left = len(bad) < num_episodes
    if bad and (job.checks.bad_episodes == "stop" or not is_any_left):
        raise refused(job.source, bad, can_skip=is_any_left)
    if job.computation is not None and not any(part.episode_lengths for part in parts):
        raise DataError(
            where=f"{job.source.directory}, mapping",
            expected="episodes with steps that the mapping keeps",
            found=f"none of {num_episodes:,}",
            remedy="Correct its [steps] and [[episodes]], or what looks further ahead than episodes"
            " are long.",
        )


def _manifest(job: ShardJob, parts: Sequence[Part]) -> Manifest:
    """What has been written, described."""
    # Tasks are numbered here and not in records: a worker does not know the tasks of other shards.
    # A dict keeps the order of first occurrence, whatever order the shards finished in.
    texts = tuple(dict.fromkeys(text for part in parts for text in part.tasks))
    indices = {text: index for index, text in enumerate(texts)}
    # Each part counts its own episodes and tasks; here they are counted over the dataset.
    episode_tasks: list[int] = []
    changes: list[TaskChange] = []
    removed = [0] * len(texts)
    for part in parts:
        local = [indices[text] for text in part.tasks]
        # Index of the part's first episode in the dataset.
        first = len(episode_tasks)
        episode_tasks += [local[task] for task in part.episode_tasks]
        changes += [TaskChange(first + c.episode, c.step, local[c.task]) for c in part.task_changes]
        for task, count in zip(local, part.removed_steps, strict=True):
            removed[task] += count
    _check_tasks(job, texts, {*episode_tasks, *(change.task for change in changes)}, removed)
    return Manifest(
        format_version=FORMAT_VERSION,
        name=job.source.name,
        schema=job.schema,
        schema_hash=job.schema.hash(),
        shards={
            column.name: tuple(part.shards[column.name] for part in parts)
            for column in job.schema.columns
        },
        episode_lengths=tuple(length for part in parts for length in part.episode_lengths),
        episode_tasks=tuple(episode_tasks),
        task_changes=tuple(changes),
        tasks=texts,
        task_source=job.mapping.task_key,
        removed_steps=tuple(removed),
        conventions=job.mapping.conventions,
        licences={
            column.name: job.mapping.column_licences.get(column.name, job.mapping.licence)
            for column in job.schema.columns
        },
        provenance=_provenance(job.source),
        mapping={} if job.computation is None else to_json_values(job.computation),
        skipped_episodes=tuple(
            episode.skipped(shard, job.source)
            for shard, part in zip(job.source.shards, parts, strict=True)
            for episode in part.bad
        ),
    )


def _provenance(source: Source) -> dict[str, str]:
    known = {"source": source.name, "version": source.version, "split": source.split}
    known = {name: text for name, text in known.items() if text}
    selection = {"episodes": source.selection} if source.selection else {}
    # Later keys win: the source's own notes cannot replace its name, version or split.
    return {**source.notes, **known, **selection}


def _check_tasks(
    job: ShardJob, texts: Sequence[str], used: Iterable[int], removed: Sequence[int]
) -> None:
    """Refuses a task that the no-op filter left without a step."""
    # A task whose steps were all no-ops would be in the vocabulary and never in a batch.
    kept = set(used)
    emptied = [index for index in range(len(texts)) if index not in kept]
    if emptied:
        threshold = job.mapping.conventions.no_op_threshold
        raise DataError(
            where=f"{job.source.directory}, no-op filter",
            expected=f"steps of every task whose action is above the threshold {threshold}",
            found="; ".join(f"all {removed[i]} steps of {texts[i]!r} below it" for i in emptied),
            remedy="Lower conventions.no_op_threshold in the mapping, or keep the no-ops.",
        )


def _read_back(
    job: ShardJob, manifest: Manifest
) -> tuple[dict[str, stats.FeatureStatistics], tuple[str, ...]]:
    """Reads every trajectory, in the order of the episodes.

    Returns:
      Statistics of every float32 trajectory, and the hashes of the actions for the manifest.

    Raises:
      SchemaError: Where the values contradict the mapping's conventions.
    """
    column = next(column for column in job.schema.columns if column.name == EPISODES)
    # Other dtypes are never normalised and have no statistics.
    keys = [feature.key for feature in column.features if feature.dtype == "float32"]
    accumulators = {key: stats.Accumulator() for key in keys}
    doubts = Doubts(job.schema, job.mapping.conventions)
    shards = manifest.shards[EPISODES]
    # Here and not with the shards: unfinished jobs of earlier releases have parts without hashes.
    hashes: list[int] = []
    # Shard after shard: a remote dataset needs room for one copy, not for all.
    first = 0
    for shard in shards:
        # ArrayRecord reads local files only.
        with _at_hand(job.destination, shard.file) as directory:
            reader = ColumnReader(str(directory), directory, RecordLayout(column), shards)
            for index in range(first, first + shard.records):
                episode = reader.read(index)
                doubts.add(episode)
                if has_actions(job.schema):
                    hashes.append(hash_actions(np.asarray(episode[ACTION])))
                for key, accumulator in accumulators.items():
                    accumulator.add(np.asarray(episode[key]))
            reader.close()
        first += shard.records
    doubts.report(str(job.source.directory))
    statistics = {key: accumulator.finish() for key, accumulator in accumulators.items()}
    return statistics, to_texts(hashes, shards) if has_actions(job.schema) else ()


@contextlib.contextmanager
def _at_hand(directory: epath.Path, file: str) -> Iterator[epath.Path]:
    """A directory on this machine that holds a file: the same, or one with a copy."""
    if not is_remote(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = epath.Path(temporary) / file
        copy.parent.mkdir(parents=True)
        (directory / file).copy(copy)
        yield epath.Path(temporary)
