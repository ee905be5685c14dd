"""`octograin benchmark DST`: compares the loader with reading and decoding alone."""

import dataclasses
import json
import sys
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from pipeline.benchmark import tfdata
from pipeline.benchmark.measure import Measurement, measure
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.memory import keep_freed_memory
from pipeline.terminal import escaped, program

_DIGITS = 4
_BELOW = "observation/"


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
    """Threads that make batches."""
    prefetch_batches: int = 4
    """Batches to prefetch."""
    num_batches: int = 20
    """Number of batches per round."""
    rounds: int = 5
    """Number of times that loader and floor are measured."""
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
    measurement, loader = measure(config, args.batch_size, args.num_batches, args.rounds)
    figures = dataclasses.asdict(measurement)
    compared = None
    if args.rlds is not None and args.compare is not None:
        compared = tfdata.measure(args.rlds, loader, args.num_batches)
        figures[args.compare] = dataclasses.asdict(compared)
    _print(measurement, compared, config, args)
    if args.json:
        sys.stdout.write(json.dumps(_rounded(figures)) + "\n")


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
    names = args.observations or _default_observations(open_dataset(args.dst))
    return DataConfig(
        datasets=(DatasetConfig(args.dst),),
        vocabulary="",
        observations=names,
        current_only=args.current_only,
        window_size=args.window_size,
        action_horizon=args.action_horizon,
        num_threads=args.num_threads,
        prefetch_batches=args.prefetch_batches,
    )


def _default_observations(dataset: Dataset) -> tuple[str, ...]:
    """Returns every observation of the dataset that the loader can read."""
    return tuple(
        feature.key.removeprefix(_BELOW)
        for column, feature in dataset.manifest.schema.features()
        if feature.key.startswith(_BELOW)
        and (column.per == "step" or (column.is_lowdim(feature) and _varies(dataset, feature.key)))
    )


def _varies(dataset: Dataset, key: str) -> bool:
    """Whether a feature can be normalised: all of its dimensions vary."""
    statistics = dataset.statistics.get(key)
    return statistics is not None and bool((statistics.std > 0).all())


def _print(
    measurement: Measurement, compared: tfdata.Comparison | None, config: DataConfig, args: Args
) -> None:
    stream = sys.stderr if args.json else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else 100)
    console.print(
        escaped(
            f"{args.dst}: {', '.join(config.observations)}; window {config.window_size}, horizon "
            f"{config.action_horizon}, batch {args.batch_size}, {config.num_threads} threads"
        ),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    m = measurement
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("samples per second", f"{m.samples_per_s:,.0f}", "wall time")
    table.add_row("CPU ms per sample", f"{m.cpu_ms_per_sample:.3f}", "all threads")
    table.add_row("floor", f"{m.floor_cpu_ms_per_sample:.3f}", "reading and decoding alone")
    spread = f"{m.ratio_min:.2f} to {m.ratio_max:.2f} in {args.rounds} rounds"
    table.add_row("times the floor", f"{m.ratio:.2f}", spread)
    table.add_row("first batch", f"{m.first_batch_s:.2f} s", "from opening the dataset")
    table.add_row("peak memory", f"{m.peak_rss_mb:.0f} MB", f"predicted {m.predicted_rss_mb:.0f}")
    for name, value in m.stages.items():
        table.add_row(f"  {name}", f"{value:.3f}", "CPU ms per sample, one thread")
    if compared is not None:
        table.add_row("tf.data: CPU ms per sample", f"{compared.cpu_ms_per_sample:.3f}", "")
        table.add_row("tf.data: samples per second", f"{compared.samples_per_s:,.0f}", "")
        table.add_row("tf.data: first batch", f"{compared.first_batch_s:.2f} s", "")
    console.print(table)


def _rounded(figures: object) -> object:
    if isinstance(figures, dict):
        return {key: _rounded(value) for key, value in figures.items()}
    return round(figures, _DIGITS) if isinstance(figures, float) else figures


if __name__ == "__main__":
    main()
