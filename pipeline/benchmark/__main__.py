"""`octograin benchmark DST`: compares the loader with reading and decoding alone."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from pipeline.benchmark import tfdata
from pipeline.benchmark.measure import measure
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.memory import keep_freed_memory
from pipeline.terminal import escaped, program

_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures loading a dataset, and compares it with reading and decoding alone."""

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Dataset directory: the folder with dataset.json."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on a line of its own; the table goes to stderr."""
    observations: tuple[str, ...] = ()
    """Features below observation/ that a batch holds. By default all cameras, token columns and
    float32 vectors of the trajectories that the dataset has."""
    current_only: tuple[str, ...] = ()
    """Observations that are read for the current step only."""
    batch_size: int = 16
    """Samples per batch."""
    window_size: int = 2
    """Steps of history, the current one included."""
    action_horizon: int = 4
    """Number of actions in a chunk."""
    num_threads: int = 2
    """Threads that each read one sample at a time."""
    prefetch_batches: int = 4
    """Batches to prefetch."""
    num_batches: int = 20
    """Number of batches per round."""
    rounds: int = 5
    """Number of times that loader and floor are measured."""
    step_s: float = 0.1
    """Seconds of a training step, for the threads that are predicted to keep up with it."""
    compare: Annotated[
        Literal["tfds"] | None, tyro.conf.arg(metavar="tfds", help_behavior_hint="")
    ] = None
    """Measure plain tf.data as well, on the RLDS directory of --rlds; needs TensorFlow."""
    rlds: Annotated[str | None, tyro.conf.arg(metavar="SRC", help_behavior_hint="")] = None
    """RLDS directory that the dataset was converted from."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line, measures and prints."""
    keep_freed_memory()  # as a run does
    with user_errors_exit():
        args = tyro.cli(joined_help(Args), prog=program("pipeline.benchmark"), use_underscores=True)
        _benchmark(args)


def _benchmark(args: Args) -> None:
    if args.compare is not None or args.rlds is not None:
        tfdata.check(args.compare, args.rlds)
    config = _config(args)
    measurement, loader = measure(
        config, args.batch_size, args.num_batches, args.rounds, args.step_s
    )
    figures: dict[str, Any] = dataclasses.asdict(measurement)
    if args.rlds is not None and args.compare is not None:
        figures[args.compare] = tfdata.measure(args.rlds, loader, args.num_batches)
    stream = sys.stderr if args.json else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else 100)
    text = (
        f"{args.dst}: {', '.join(config.observations)}; window {config.window_size}, horizon "
        f"{config.action_horizon}, batch {args.batch_size}, {config.num_threads} threads"
    )
    console.print(escaped(text), highlight=False, markup=False, soft_wrap=True)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in _rows(figures, args):
        table.add_row(*row)
    console.print(table)
    if args.json:
        rounded = json.loads(json.dumps(figures), parse_float=lambda x: round(float(x), _DIGITS))
        sys.stdout.write(json.dumps(rounded) + "\n")


def _rows(figures: dict[str, Any], args: Args) -> Iterator[tuple[str, str, str]]:
    """Yields what is measured, its value, and what it covers."""
    spread = f"{figures['ratio_min']:.2f} to {figures['ratio_max']:.2f} in {args.rounds} rounds"
    yield "samples per second", f"{figures['samples_per_s']:,.0f}", "wall time"
    yield "CPU ms per sample", f"{figures['cpu_ms_per_sample']:.3f}", "all threads"
    yield "floor", f"{figures['floor_cpu_ms_per_sample']:.3f}", "reading and decoding alone"
    yield "times the floor", f"{figures['ratio']:.2f}", spread
    yield "first batch", f"{figures['first_batch_s']:.2f} s", "from opening the dataset"
    predicted = f"predicted {figures['predicted_rss_mb']:.0f}"
    yield "peak memory", f"{figures['peak_rss_mb']:.0f} MB", predicted
    ahead = f"and {figures['prefetch_batches']} batches ahead keep up with {args.step_s:g} s steps"
    yield "one sample", f"{figures['sample_ms']:.3g} ms", "reads and CPU of one thread"
    yield "threads", f"{figures['num_threads']}", ahead
    for name, value in figures["stages"].items():
        yield f"  {name}", f"{value:.3f}", "CPU ms per sample, one thread"
    if args.compare is not None:
        compared = figures[args.compare]
        yield "tf.data: CPU ms per sample", f"{compared['cpu_ms_per_sample']:.3f}", ""
        yield "tf.data: samples per second", f"{compared['samples_per_s']:,.0f}", ""
        yield "tf.data: first batch", f"{compared['first_batch_s']:.2f} s", ""


def _config(args: Args) -> DataConfig:
    if args.num_batches <= args.prefetch_batches or min(args.rounds, args.batch_size) < 1:
        raise UserError(
            where="command line",
            expected=f"rounds, each of more than the {args.prefetch_batches} batches made ahead, "
            "and samples in a batch",
            found=f"--num_batches {args.num_batches}, --rounds {args.rounds}, "
            f"--batch_size {args.batch_size}",
            remedy="Raise them.",
        )
    if not 0 < args.step_s < math.inf:
        raise UserError(
            where="--step_s",
            expected="a finite number of seconds above 0",
            found=str(args.step_s),
            remedy="Give the time of a training step, such as 0.1.",
        )
    return DataConfig(
        datasets=(DatasetConfig(args.dst),),
        vocabulary="",
        observations=args.observations or _default_observations(open_dataset(args.dst)),
        current_only=args.current_only,
        window_size=args.window_size,
        action_horizon=args.action_horizon,
        num_threads=args.num_threads,
        prefetch_batches=args.prefetch_batches,
    )


def _default_observations(dataset: Dataset) -> tuple[str, ...]:
    """Returns every observation of the dataset that the loader can read."""
    statistics = dataset.statistics
    return tuple(
        feature.key.removeprefix("observation/")
        for column, feature in dataset.manifest.schema.features()
        if feature.key.startswith("observation/")
        # A vector is normalised, so all of its dimensions have to vary.
        and (
            column.per == "step"
            or (column.is_lowdim(feature) and bool((statistics[feature.key].std > 0).all()))
        )
    )


if __name__ == "__main__":
    main()
