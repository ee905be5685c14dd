"""Measures a loader and its floor on the same samples, in one process."""

import dataclasses
import itertools
import re
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.benchmark.floor import Floor, Read
from pipeline.data.dataset import open_dataset
from pipeline.loading.data_config import DataConfig
from pipeline.loading.loader import LoadedBatch, Loader
from pipeline.loading.window_reader import WindowReader

# Seconds of one look at the CPU time.
_IDLE_S = 0.05
# Below this share of one core the loader is idle.
_IDLE_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Time and memory of a loader. CPU times count all threads."""

    samples_per_s: float
    """Samples per second of wall time, with no training in between."""
    cpu_ms_per_sample: float
    """CPU time of all transforms, median of the rounds."""
    floor_cpu_ms_per_sample: float
    """CPU time of reading and decoding the same records, on one thread, median of the rounds."""
    ratio: float
    """Ratio of the two, median of the rounds."""
    ratio_min: float
    """Smallest ratio of a round."""
    ratio_max: float
    """Largest ratio of a round."""
    first_batch_s: float
    """Time from opening the dataset to the first batch."""
    peak_rss_mb: float
    """Largest resident set of the process, with all batches prefetched."""
    predicted_rss_mb: float
    """Prediction before the first read: the libraries plus the loader's maximum."""
    stages: dict[str, float]
    """CPU milliseconds per sample of each transform, on one thread; `read` and `decode` are the two
    parts of the floor."""


def measure(
    config: DataConfig, batch_size: int, num_batches: int, rounds: int
) -> tuple[Measurement, Loader]:
    """Measures a loader, and returns it with the figures.

    Loader and floor take turns, so that a machine that slows down slows both.

    Raises:
      UserError: `open_dataset` or `Loader` rejects the config or the data.
    """
    before_mb = _peak_rss_mb()
    started = time.perf_counter()
    datasets = [open_dataset(part.path, config.keys) for part in config.datasets]
    loader = Loader(config, batch_size, datasets, _no_ids)
    batches = loader.batches()
    try:
        held = next(batches)
        first_batch_s = time.perf_counter() - started
        held = (held, next(batches))  # as a run does: one in use, one on its way to the device
        _settle()
        peak_mb = _peak_rss_mb()
        del held
        timed = [_round(loader, batches, num_batches) for _ in range(rounds)]
    finally:
        batches.close()
    # (rounds, 3) becomes three lists.
    walls, cpus, floors = np.array(timed).T.tolist()
    ratios = [cpu / floor for cpu, floor in zip(cpus, floors, strict=True)]
    num_samples = num_batches * batch_size
    to_ms = 1e3 / num_samples
    measurement = Measurement(
        samples_per_s=num_samples / statistics.median(walls),
        cpu_ms_per_sample=statistics.median(cpus) * to_ms,
        floor_cpu_ms_per_sample=statistics.median(floors) * to_ms,
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        first_batch_s=first_batch_s,
        peak_rss_mb=peak_mb,
        predicted_rss_mb=before_mb + loader.memory.num_bytes / 1e6,
        stages=_stages(loader, num_batches),
    )
    return measurement, loader


def _no_ids(text: str) -> list[int]:
    """The ids are looked up, one row per task: their values do not affect the speed."""
    del text
    return []


def _settle() -> None:
    """Waits until the loader has prefetched all batches."""
    # Busy at first, so that one interval is always measured.
    share = 1.0
    while share > _IDLE_SHARE:
        before = time.process_time()
        # A wait that uses no CPU itself.
        threading.Event().wait(_IDLE_S)
        share = (time.process_time() - before) / _IDLE_S


def _round(
    loader: Loader, batches: Iterator[LoadedBatch], num_batches: int
) -> tuple[float, float, float]:
    """Measures (wall seconds, CPU seconds, CPU seconds of the floor) of a number of batches.

    CPU time is counted between two moments when all batches are prefetched, so that it belongs to
    exactly these batches; wall time leaves out the batches that were prefetched before.
    """
    ahead = next(batches)
    # Without threads nothing is made ahead.
    num_ready = loader.config.prefetch_batches if loader.config.num_threads else 0
    first = ahead.position + 1 + num_ready
    floor, plans = _plan(loader, range(first, first + num_batches))  # warms the page cache too
    _settle()
    cpu = time.process_time()
    for _ in itertools.islice(batches, num_ready):
        pass
    wall = time.perf_counter()
    for _ in itertools.islice(batches, num_batches - num_ready):
        pass
    # Scaled up: the batches that were ready took no time.
    wall = (time.perf_counter() - wall) * num_batches / (num_batches - num_ready)
    _settle()
    cpu = time.process_time() - cpu
    return wall, cpu, _time_floor(floor, plans)


def _plan(loader: Loader, positions: Sequence[int]) -> tuple[Floor, list[list[Read]]]:
    order, floor = loader.order(), Floor(_window_reader(loader))
    return floor, [floor.plan(order[position]) for position in positions]


def _time_floor(floor: Floor, plans: list[list[Read]], *, decode: bool = True) -> float:
    """Measures the CPU seconds of reading and decoding the samples of some batches."""
    started = time.process_time()
    for plan in plans:
        floor.run(plan, decode=decode)
    return time.process_time() - started


def _window_reader(loader: Loader) -> WindowReader:
    (window_reader,) = (t for t in loader.transforms() if isinstance(t, WindowReader))
    return window_reader


def _stages(loader: Loader, num_batches: int) -> dict[str, float]:
    order, transforms = loader.order(), loader.transforms()
    to_ms = 1e3 / (num_batches * loader.batch_size)
    positions = range(num_batches)
    floor, plans = _plan(loader, positions)
    read = _time_floor(floor, plans, decode=False)
    # Noise may make the difference of two measurements negative.
    decode = max(_time_floor(floor, plans) - read, 0.0)
    seconds = {"read": read, "decode": decode, "order": 0.0}
    for position in positions:
        batch, spent = _timed(order.__getitem__, position)
        seconds["order"] += spent
        for transform in transforms:
            batch, spent = _timed(transform, batch)
            name = _name(transform)
            seconds[name] = seconds.get(name, 0.0) + spent
    return {name: value * to_ms for name, value in seconds.items()}


def _timed(function: Callable[[Any], Any], argument: Any) -> tuple[Any, float]:
    # Of this thread alone: others may still prefetch.
    started = time.thread_time()
    result = function(argument)
    return result, time.thread_time() - started


def _name(transform: object) -> str:
    """Returns a transform's name in snake case, such as `standardize_gripper`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(transform).__name__).lower()


def _peak_rss_mb() -> float:
    """Returns the largest resident set of this process so far."""
    # macOS counts in bytes, Linux in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
