"""`octograin convert SRC DST`: converts a source to a dataset directory."""

import dataclasses
import logging
import os
import pathlib
import re
import sys
import time
from typing import Annotated, Literal, assert_never

import tyro

from converters.job import job_progress
from converters.job.bad_episodes import Checks, listed
from converters.job.convert import LocalRunner, Runner, convert
from converters.job.runners.spark_runner import SparkRunner
from converters.mapping import mapping_proposal, mapping_registry
from converters.mapping.mapping_table import mapping_table
from converters.sources.open_source import open_source
from converters.sources.source import Source
from pipeline.data.manifest import FILE_NAME, Manifest
from pipeline.errors import UserError, install_extra, user_errors_exit
from pipeline.files import is_remote
from pipeline.flag_help import joined_help
from pipeline.memory import keep_freed_memory
from pipeline.terminal import count, log_to_stderr, program, show

_MB = 1e6
_MAX_TASKS = 100
"""Maximum number of tasks whose removed steps are listed."""
_INTERRUPTED = "interrupted; run the same command again to resume"
_BYTES_A_WORKER = 256e6
"""A process takes 2 s to start, in which another one converts this much."""
_VIDEO_WORK = 60
"""A byte of video takes as long as so many of RLDS: 2 MB of AV1 a second, decoded and encoded."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Converts robot episodes to typed ArrayRecord shards, without TensorFlow and torch.

    A job that was killed resumes where it stopped when the same command is run again.
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """What to convert: an RLDS folder (with features.json, or its parent; may be gs:// or s3://), a
    LeRobot folder (with meta/info.json), or HDF5 files of LIBERO, robomimic or your own."""
    dst: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DST]", help_behavior_hint="")
    ] = None
    """Dataset directory to write; may be gs:// or s3://. Not needed with --describe."""
    split: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Split of the source, where its format has splits; train by default."""
    episodes: Annotated[str | None, tyro.conf.arg(metavar="A:B", help_behavior_hint="")] = None
    """Range A:B of episodes to convert, from A to before B; all by default."""
    mapping: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """TOML file that maps source keys to features, or a name that --list prints; by default the one
    that has the dataset's name."""
    bad_episodes: Literal["stop", "skip"] = "stop"
    """What to do about episodes that cannot be used, such as empty ones or values that are not
    finite: list all of them and write no dataset, or leave them out and note them in it."""
    check_images: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Decode every image, not its header alone: finds those that were cut or overwritten."""
    image_quality: Annotated[
        int | None, tyro.conf.arg(metavar="N", constructor=int, help_behavior_hint="")
    ] = None
    """Quality of JPEG from 1 to 100 for frames of videos and pixels of HDF5, 95 by default; images
    that are encoded at the source are stored as they are."""
    instruction: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """The instruction of every episode, in place of those of the source."""
    describe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a mapping for SRC to start from, and write nothing."""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the datasets that a mapping is built in for, and nothing else; needs no SRC."""
    workers: Annotated[
        int | None, tyro.conf.arg(metavar="N", constructor=int, help_behavior_hint="")
    ] = None
    """Processes, each with a shard at a time; by default a core for every 256 MB of the source."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace what stands at DST: a dataset, or an unfinished conversion."""
    runner: Literal["local", "beam", "spark"] = "local"
    """Runner that converts the shards; beam and spark need the extra of that name, and take flags
    of Beam or of spark-submit after `--`."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and runs the job."""
    # Beam and Spark parse their own flags, so they are cut off before tyro sees them.
    own, runner_flags = _split(sys.argv[1:])
    with user_errors_exit(interrupted=_INTERRUPTED):
        if "--list" in own:
            show(mapping_registry.registry_list())
            return
        args = tyro.cli(
            joined_help(Args), prog=program("converters.rlds"), args=own, use_underscores=True
        )
        log_to_stderr()
        logging.getLogger("converters").setLevel(logging.INFO)
        if args.runner != "local":
            # Workers elsewhere have another current directory.
            dst = args.dst and _absolute(args.dst)
            args = dataclasses.replace(args, src=_absolute(args.src), dst=dst)
        source = open_source(args.src, args.split, args.image_quality)
        if args.describe:
            show(mapping_proposal.describe(source))
        else:
            selected = source if args.episodes is None else _select(source, args.episodes)
            # Before the mapping is looked for: missing files are the more basic problem.
            selected.check_files()
            _convert(selected, args, _runner(selected, args, runner_flags))


def _split(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The arguments before and after a lone `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], tuple(arguments[end + 1 :])


def _absolute(path: str) -> str:
    """A local path from the root; an address as it is."""
    return path if is_remote(path) else str(pathlib.Path(path).absolute())


def _select(source: Source, episodes: str) -> Source:
    # At most 18 digits, which fit in 64 bits.
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", episodes)
    if match is None:
        raise UserError(
            where="--episodes",
            expected="a range A:B of whole numbers, such as 0:100",
            found=episodes,
            remedy="B is the first episode that is not converted any more.",
        )
    return source.select(int(match[1]), int(match[2]))


def _convert(source: Source, args: Args, runner: Runner) -> None:
    if not args.dst:
        raise UserError(
            where="command line",
            expected="a destination",
            found="only SRC",
            remedy="Add one: `octograin convert SRC DST`.",
        )
    mapping = (
        mapping_registry.read_mapping(args.mapping)
        if args.mapping
        else mapping_registry.find_mapping(source)
    )
    if args.instruction is not None:
        mapping = mapping.with_instruction(args.instruction)
    show(mapping_table(source, mapping) + "\n")
    keep_freed_memory()
    started = time.perf_counter()
    num_episodes = sum(shard.num_episodes for shard in source.shards)
    with job_progress.shown(source.name, num_episodes) as on_progress:
        manifest = convert(
            source,
            args.dst,
            mapping,
            overwrite=args.overwrite,
            checks=Checks(args.bad_episodes, args.check_images),
            runner=runner,
            on_progress=on_progress,
        )
    _summarize(manifest, source, args, time.perf_counter() - started)


def _runner(source: Source, args: Args, flags: tuple[str, ...]) -> Runner:
    match args.runner:
        case "local":
            if flags:
                raise _misused(f"no flags after -- with --runner {args.runner}", flags[0])
            if args.workers is not None and args.workers < 1:
                raise _misused("at least 1 with --workers", str(args.workers))
            return LocalRunner(_num_workers(source) if args.workers is None else args.workers)
        case "beam":
            if args.workers is not None:
                raise _misused("a flag of Beam's own runner after --", "--workers")
            return _beam_runner(flags)
        case "spark":
            if args.workers is not None:
                raise _misused("a flag of spark-submit after --", "--workers")
            return SparkRunner(flags)
        case _:
            assert_never(args.runner)


def _beam_runner(flags: tuple[str, ...]) -> Runner:
    try:
        # Set before the import, which prints the warnings.
        logging.disable(logging.WARNING)  # Beam warns of each client of a service that it lacks
        from converters.job.runners.beam_runner import BeamRunner  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise UserError(
            where="--runner beam",
            expected="Apache Beam",
            found=str(error),
            remedy=f"{install_extra('beam')}.",
        ) from error
    finally:
        # In any case, or the conversion's own warnings would be lost.
        logging.disable(logging.NOTSET)
    return BeamRunner(flags)


def _misused(expected: str, found: str) -> UserError:
    remedy = f"See `{program('converters.rlds')} --help`."
    return UserError(where="command line", expected=expected, found=found, remedy=remedy)


def _num_workers(source: Source) -> int:
    """Returns the number of cores, less those that would only start and end."""
    files = {path for shard in source.shards for path in shard.paths}
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it, and counts what is allowed
    num_cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    # Files were checked, so those that are not there are fetched when a worker reads them.
    if not all(path.exists() for path in files):
        return num_cores
    sizes = {path: path.stat().length for path in files}
    work = sum(size * (_VIDEO_WORK if path.suffix == ".mp4" else 1) for path, size in sizes.items())
    # A process that starts in 2 s has to have more than 2 s of work.
    return max(1, min(num_cores, int(work // _BYTES_A_WORKER)))


def _removed(manifest: Manifest) -> list[str]:
    """Returns a line for each task that lost steps; of too many those that lost the most."""
    pairs = list(zip(manifest.removed_steps, manifest.tasks, strict=True))
    more = len(pairs) - _MAX_TASKS
    if more > 0:
        pairs = sorted(pairs, key=lambda pair: -pair[0])[:_MAX_TASKS]
    lines = [f"  {steps:6,} of {text!r}" for steps, text in pairs]
    return [*lines, f"  and of {count(more, 'more task')}"] if more > 0 else lines


def _summarize(manifest: Manifest, source: Source, args: Args, seconds: float) -> None:
    """Prints what a person wants to know: how much, of what, and where."""
    lines = [
        f"{count(len(manifest.episode_lengths), 'episode')}, "
        f"{count(sum(manifest.episode_lengths), 'step')}, "
        f"{count(len(manifest.tasks), 'task')} in {seconds:.1f} s"
    ]
    if any(feature.kind in ("image", "depth") for _, feature in manifest.schema.features()):
        alone = "by their headers alone; --check_images decodes them all"
        lines.append(f"images checked: {'to their ends' if args.check_images else alone}")
    if any(manifest.removed_steps):
        lines.append(f"no-ops removed: {count(sum(manifest.removed_steps), 'step')}")
        lines += _removed(manifest)
    for column in manifest.schema.columns:
        num_bytes = sum(shard.num_bytes for shard in manifest.shards[column.name])
        lines.append(f"{column.name}: {num_bytes / _MB:.1f} MB, one record per {column.per}")
        lines += [f"  {f.key:26} {f.dtype}{list(f.shape)}" for f in column.features]
    if manifest.skipped_episodes:
        num_skipped = len(manifest.skipped_episodes)
        lines.append(f"skipped: {num_skipped:,} of the source, listed in {FILE_NAME}")
        lines += [f"  {line}" for line in listed(manifest.skipped_episodes)]
    lines.append(f"source: {args.src}, {source.format}")
    lines.append(f"dataset: {args.dst}")
    show("\n".join(lines) + "\n")
