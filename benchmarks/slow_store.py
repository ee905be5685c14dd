"""Feeds a training step from a store whose reads are delayed, with the settings that are predicted.

    python -m benchmarks.slow_store data/libero_mini

For each delay, batch size and length of a step it measures a few reads, as the dry run does, sets
the threads and batches ahead that these predict, and prints for which share of the time a loop of
such steps waits for its batches. A step is a sleep: it leaves the cores to the loader, as a step on
an accelerator does. Each read of a record is delayed once and each first read of a shard twice
more, as many requests as ArrayRecord makes.
"""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import tyro

from benchmarks.measuring import print_figures
from pipeline.data.column_reader import ColumnReader
from pipeline.data.dataset import check_sizes, open_dataset
from pipeline.data.schema import EPISODES
from pipeline.errors import user_errors_exit
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.reading.store_speed import measure_store
from pipeline.memory import keep_freed_memory

_OPENING_REQUESTS = 2
"""Opening the file, and reading its end, where the index is."""
_WARM_UP_STEPS = 5
_FEWEST_STEPS = 12


@dataclasses.dataclass(frozen=True)
class Args:
    """Feeds a training step from a store whose reads are delayed."""

    dst: tyro.conf.Positional[str]
    """Dataset directory on a fast disk."""
    delays_ms: tuple[float, ...] = (5, 20, 100)
    """Delay of each request, in milliseconds."""
    batch_sizes: tuple[int, ...] = (16, 64)
    """Samples of a batch."""
    steps_s: tuple[float, ...] = (0.1, 1.0)
    """Seconds of a training step."""
    observations: tuple[str, ...] = ("image_primary", "proprio")
    """Features below observation/ that a batch holds."""
    seconds: float = 10
    """Seconds that each loop is measured for, at least 12 steps."""
    num_shards: int = 1000
    """Shards whose sizes are checked when a dataset is opened."""


class _Delayed:
    """An ArrayRecord file in a slow store."""

    def __init__(self, reader: Any, delay_s: float) -> None:
        self._reader, self._delay_s = reader, delay_s

    def read(self, first: int, end: int) -> list[bytes]:
        """Reads a record after the delay."""
        time.sleep(self._delay_s)
        return self._reader.read(first, end)

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()


def main() -> None:
    """Parses the command line, measures and prints."""
    keep_freed_memory()  # as a run does
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.slow_store", use_underscores=True)
        for delay_ms in args.delays_ms:
            print_figures({"delay_ms": delay_ms, **_opening(args, delay_ms / 1e3)})
            for batch_size, step_s in itertools.product(args.batch_sizes, args.steps_s):
                with delayed_reads(delay_ms / 1e3):
                    figures = _feed(args, batch_size, step_s)
                print_figures({"delay_ms": delay_ms, **figures})


def delayed_reads(delay_s: float) -> Any:
    """Delays every request for records that the loader makes within a `with` block."""
    opened: Callable[..., Any] = vars(ColumnReader)["_open"]

    def open_later(reader: ColumnReader, shard: Any) -> _Delayed:
        time.sleep(_OPENING_REQUESTS * delay_s)
        return _Delayed(opened(reader, shard), delay_s)

    return mock.patch.object(ColumnReader, "_open", open_later)


def _opening(args: Args, delay_s: float) -> dict[str, float]:
    """Seconds of checking the sizes of many shards, all of them the same file."""
    dataset = open_dataset(args.dst)
    shards = {EPISODES: dataset.manifest.shards[EPISODES][:1] * args.num_shards}
    found = os.stat

    def stat_later(path: Any) -> os.stat_result:
        time.sleep(delay_s)
        return found(path)

    started = time.perf_counter()
    with mock.patch.object(os, "stat", stat_later):
        check_sizes(dataset.directory, shards)
    return {"shards": args.num_shards, "open_s": round(time.perf_counter() - started, 2)}


def _loader(args: Args, batch_size: int, num_threads: int = 2, prefetch_batches: int = 4) -> Loader:
    config = DataConfig(
        (DatasetConfig(args.dst),),
        "",
        args.observations,
        num_threads=num_threads,
        prefetch_batches=prefetch_batches,
    )
    return Loader(config, batch_size, [open_dataset(args.dst, config.keys)], lambda text: [])


def _feed(args: Args, batch_size: int, step_s: float) -> dict[str, Any]:
    """Predicts the settings, and measures what share of the time a loop waits with them."""
    usual = _loader(args, batch_size)
    speed = measure_store(usual)
    found = speed.settings(step_s)
    settings = {"num_threads": found.num_threads, "prefetch_batches": found.prefetch_batches}
    config = usual.config
    defaults_s = speed.shortest_step_s(config.num_threads, config.prefetch_batches)
    return {
        "batch": batch_size,
        "step_s": step_s,
        "sample_ms": round(speed.sample_s * 1e3, 1),
        "cpu_ms": round(speed.cpu_s * 1e3, 2),
        "defaults_keep_up_from_s": round(defaults_s, 2),
        **settings,
        "memory_mb": round(found.memory.num_bytes / 1e6),
        **_waits(_loader(args, batch_size, **settings), step_s, args.seconds),
    }


def _waits(loader: Loader, step_s: float, seconds: float) -> dict[str, float]:
    """Share of the time, in per cent, that a loop of steps waits for its batches."""
    num_steps = max(int(seconds / step_s), _FEWEST_STEPS)
    started = time.perf_counter()
    batches = loader.batches()
    waits = []
    try:
        next(batches)
        first_batch_s = time.perf_counter() - started
        cpu = time.process_time()
        for batch in range(_WARM_UP_STEPS + num_steps):
            if batch == _WARM_UP_STEPS:
                started, cpu = time.perf_counter(), time.process_time()
            before = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - before)
            time.sleep(step_s)
        taken, cpu = time.perf_counter() - started, time.process_time() - cpu
    finally:
        batches.close()
    return {
        "wait_percent": round(sum(waits[_WARM_UP_STEPS:]) / taken * 100, 2),
        "longest_wait_s": round(max(waits[_WARM_UP_STEPS:]), 2),
        "first_batch_s": round(first_batch_s, 2),
        "cores": round(cpu / taken, 2),
    }


if __name__ == "__main__":
    main()
