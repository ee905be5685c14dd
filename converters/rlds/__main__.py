"""`python -m converters.rlds SRC DST`: converts an RLDS directory to a dataset directory."""

import dataclasses
import pathlib
import sys
import time
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from converters import mappings
from converters.convert import convert
from converters.rlds.source import RldsSource, open_source
from pipeline.errors import UserError, user_errors_exit
from pipeline.manifest import Manifest

_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Args:
    """Converts a TFDS/RLDS directory to typed ArrayRecord shards, without TensorFlow."""

    src: tyro.conf.Positional[str]
    """RLDS directory: the folder with features.json, or its parent."""
    dst: tyro.conf.Positional[pathlib.Path | None] = None
    """Dataset directory to write; not needed with --describe."""
    split: str = "train"
    """Split of the source."""
    mapping: pathlib.Path | None = None
    """TOML file that maps source keys to features; LIBERO's is built in."""
    describe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a mapping for SRC to start from, and write nothing."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the dataset at DST."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and runs the job."""
    args = tyro.cli(Args, prog="python -m converters.rlds")
    with user_errors_exit(debug=args.debug):
        source = open_source(args.src, args.split)
        if args.describe:
            sys.stdout.write(mappings.describe(source))
        else:
            _convert(source, args)


def _convert(source: RldsSource, args: Args) -> None:
    if args.dst is None:
        raise UserError(
            where="command line",
            expected="a destination",
            found="only SRC",
            remedy="Add one: `python -m converters.rlds SRC DST`.",
        )
    mapping = mappings.read_mapping(args.mapping) if args.mapping else mappings.find_mapping(source)
    console = Console(stderr=True)
    started = time.perf_counter()
    num_episodes = sum(shard.num_episodes for shard in source.shards)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,  # in a log an error stays the only line
    ) as progress:
        task = progress.add_task(source.name, total=num_episodes)
        manifest = convert(
            source,
            args.dst,
            mapping,
            overwrite=args.overwrite,
            on_episode=lambda _: progress.advance(task),
        )
    _summarize(manifest, args.dst, time.perf_counter() - started)


def _summarize(manifest: Manifest, destination: pathlib.Path, seconds: float) -> None:
    """Prints what a person wants to know: how much, of what, and where."""
    lines = [
        f"{len(manifest.episode_lengths)} episodes, {sum(manifest.episode_lengths)} steps, "
        f"{len(manifest.tasks)} tasks in {seconds:.1f} s"
    ]
    for column in manifest.schema.columns:
        num_bytes = sum(shard.num_bytes for shard in manifest.shards[column.name])
        lines.append(f"{column.name}: {num_bytes / _MB:.1f} MB, one record per {column.per}")
        lines += [f"  {f.key:26} {f.dtype}{list(f.shape)}" for f in column.features]
    lines.append(f"dataset: {destination}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
