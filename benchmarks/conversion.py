"""What a conversion costs over reading the source and writing the same bytes plainly.

    python -m benchmarks.conversion SRC [--rounds 5]

The floor reads every TFRecord with its checksums and writes the records as they are, one file a
shard. Floor and conversion take turns, each in a process of its own that works once to warm up,
then three times into new directories. CPU seconds of all threads; imports and the removal of the
directories are not counted.
"""

import dataclasses
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Literal

import tyro

from benchmarks import measuring
from converters.job.convert import convert
from converters.mapping.mapping_registry import find_mapping
from converters.rlds.tfrecord import read_records
from converters.sources.open_source import open_source
from converters.sources.source import Source
from pipeline.errors import user_errors_exit
from pipeline.memory import keep_freed_memory

_NUM_MEASURED = 3


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures a conversion by one worker against its floor."""

    src: tyro.conf.Positional[str]
    """RLDS directory that has a built-in mapping."""
    rounds: int = 5
    """Processes of each."""
    directory: pathlib.Path | None = None
    """Where both write; a file system in memory, such as /dev/shm, keeps the disk's noise out."""
    only: Literal["floor", "convert"] | None = None
    """Measure one of them in this process; prints its CPU seconds."""


def main() -> None:
    """Parses the command line and prints one JSON object."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.conversion", use_underscores=True)
        _run(args)


def _run(args: Args) -> None:
    source = open_source(args.src)
    if args.only == "floor":
        result: object = _measure(lambda directory: _copy(source, directory), args.directory)
    elif args.only == "convert":
        keep_freed_memory()  # as the command line does
        mapping = find_mapping(source)
        result = _measure(lambda directory: convert(source, directory, mapping), args.directory)
    else:
        result = _compare(source, args)
    measuring.print_figures(result)


def _compare(source: Source, args: Args) -> dict[str, str | float]:
    """Floor and conversion in turns, as CPU nanoseconds for a byte of the source."""
    num_bytes = sum(path.stat().length for shard in source.shards for path in shard.paths)
    pairs = [
        (_in_a_process(args, "floor"), _in_a_process(args, "convert")) for _ in range(args.rounds)
    ]
    floors, conversions = zip(*pairs, strict=True)
    return {
        "source": source.name,
        "source_mb": round(num_bytes / 1e6, 3),
        "floor_cpu_ns_per_byte": round(statistics.median(floors) / num_bytes * 1e9, 3),
        "convert_cpu_ns_per_byte": round(statistics.median(conversions) / num_bytes * 1e9, 3),
        **measuring.ratios(conversions, floors),
    }


def _in_a_process(args: Args, only: str) -> float:
    place = ["--directory", str(args.directory)] if args.directory else []
    command = measuring.module("benchmarks.conversion", args.src, "--only", only, *place)
    return measuring.in_a_process(command)


def _measure(work: Callable[[pathlib.Path], object], parent: pathlib.Path | None) -> float:
    """Median CPU seconds, after one time that is not counted."""
    cpu_s = []
    for _ in range(1 + _NUM_MEASURED):
        with tempfile.TemporaryDirectory(dir=parent) as directory:
            out = pathlib.Path(directory) / "out"
            cpu_s.append(measuring.timed(work, out)[1])
    return statistics.median(cpu_s[1:])


def _copy(source: Source, directory: pathlib.Path) -> None:
    """Reads every record with its checksums and writes it as it is."""
    directory.mkdir()
    for shard in source.shards:
        with (directory / shard.name).open("wb") as file:
            for record in read_records(shard.paths[0]):
                file.write(record)


if __name__ == "__main__":
    main()
