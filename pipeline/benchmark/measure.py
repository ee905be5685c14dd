"""Measures a loader and its floor on the same samples, in one process.

The floor is the least work that makes the samples: it reads each of their records once, decodes
the images into one buffer per size, and does nothing else.
"""

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

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.images import decode_depth, decode_image, decode_jpeg, image_format
from pipeline.loading.data_config import DataConfig
from pipeline.loading.loader import LoadedBatch, Loader
from pipeline.loading.reading.store_speed import measure_store
from pipeline.loading.samples.sampling import Samples
from pipeline.loading.transforms.batch_transforms import name_of
from pipeline.loading.window_reader import WindowReader

_IDLE_S = 0.05
"""Seconds of one look at the CPU time."""
_IDLE_SHARE = 0.1
"""Share of one core below which the loader is idle."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Time and memory of a loader. CPU times count all threads; medians of the rounds."""

    samples_per_s: float
    """Samples per second of wall time, with no training in between."""
    cpu_ms_per_sample: float
    """CPU time of all transforms."""
    floor_cpu_ms_per_sample: float
    """CPU time of reading and decoding the same records, on one thread."""
    ratio: float
    """Ratio of the two."""
    ratio_min: float
    ratio_max: float
    first_batch_s: float
    """Time from opening the dataset to the first batch."""
    peak_rss_mb: float
    """Largest resident set of the process, with all batches prefetched."""
    predicted_rss_mb: float
    """Prediction before the first read: the libraries plus the loader's maximum."""
    stages: dict[str, float]
    """CPU milliseconds per sample of each transform, on one thread; `read` and `decode` are the two
    parts of the floor."""
    sample_ms: float
    """Time that one thread takes for a sample: its reads, measured on a few, and its CPU time."""
    num_threads: int
    prefetch_batches: int
    """Settings that are predicted to keep up with a training step."""


def measure(
    config: DataConfig, batch_size: int, num_batches: int, rounds: int, step_s: float = 0.1
) -> tuple[Measurement, Loader]:
    """Measures a loader, and returns it with the figures.

    Loader and floor take turns, so that a machine that slows down slows both.

    Args:
      config: Config of the loader.
      batch_size: Samples of a batch.
      num_batches: Batches of a round.
      rounds: Number of times that loader and floor are measured.
      step_s: Seconds of the training step that settings are predicted for.

    Raises:
      UserError: `open_dataset` or `Loader` rejects the config or the data.
    """
    before_mb = _peak_rss_mb()
    started = time.perf_counter()
    datasets = [open_dataset(part.path, config.keys) for part in config.datasets]
    # Ids of instructions are looked up, one row per task: their values do not affect the speed.
    loader = Loader(config, batch_size, datasets, lambda text: [])
    opened_s = time.perf_counter() - started
    # Before the batches, whose threads would compete with these reads.
    store = measure_store(loader)
    settings = store.settings(step_s)
    started = time.perf_counter()
    batches = loader.batches()
    try:
        held = [next(batches)]
        first_batch_s = opened_s + time.perf_counter() - started
        held.append(next(batches))  # as a run: one in use, one on its way to the device
        _settle()
        peak_mb = _peak_rss_mb()
        del held
        timed = [_round(loader, batches, num_batches) for _ in range(rounds)]
    finally:
        batches.close()
    walls, cpus, floors = zip(*timed, strict=True)
    ratios = [cpu / floor for cpu, floor in zip(cpus, floors, strict=True)]
    num_samples = num_batches * batch_size
    measurement = Measurement(
        samples_per_s=num_samples / statistics.median(walls),
        cpu_ms_per_sample=statistics.median(cpus) / num_samples * 1e3,
        floor_cpu_ms_per_sample=statistics.median(floors) / num_samples * 1e3,
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        first_batch_s=first_batch_s,
        peak_rss_mb=peak_mb,
        predicted_rss_mb=before_mb + loader.memory.num_bytes / 1e6,
        stages=_stages(loader, num_batches),
        sample_ms=store.sample_s * 1e3,
        num_threads=settings.num_threads,
        prefetch_batches=settings.prefetch_batches,
    )
    return measurement, loader


def _settle() -> None:
    """Waits until the loader has prefetched all batches."""
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
    # Without threads nothing is made ahead.
    num_ready = loader.config.prefetch_batches if loader.config.num_threads else 0
    first = next(batches).position + 1 + num_ready
    floor = Floor(loader)
    plans = floor.plans(range(first, first + num_batches))  # warms the page cache too
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
    return wall, cpu, floor.seconds(plans)


def _stages(loader: Loader, num_batches: int) -> dict[str, float]:
    """CPU milliseconds per sample of the floor's two parts, of the order and of each transform."""
    floor, order = Floor(loader), loader.order()
    plans = floor.plans(range(num_batches))
    read = floor.seconds(plans, decode=False)
    # Noise may make the difference of two measurements negative.
    seconds = {"read": read, "decode": max(floor.seconds(plans) - read, 0.0)}
    stages: list[tuple[str, Callable[[Any], Any]]] = [("order", order.__getitem__)]
    # In snake case, such as `standardize_gripper`.
    stages += [
        (re.sub(r"(?<!^)(?=[A-Z])", "_", name_of(transform)).lower(), transform)
        for transform in loader.transforms()
    ]
    for position in range(num_batches):
        batch: Any = position
        for name, stage in stages:
            # Of this thread alone: others may still prefetch.
            started = time.thread_time()
            batch = stage(batch)
            seconds[name] = seconds.get(name, 0.0) + time.thread_time() - started
    return {k: v / (num_batches * loader.batch_size) * 1e3 for k, v in seconds.items()}


def _peak_rss_mb() -> float:
    """Returns the largest resident set of this process so far."""
    # macOS counts in bytes, Linux in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@dataclasses.dataclass(frozen=True)
class Read:
    """One record that samples need."""

    reader: Any
    """An open ArrayRecord file."""
    index: int
    """Index of the record in the file."""
    images: tuple[tuple[slice, tuple[int, ...]], ...]
    """Where the images to decode are, counted from the record's end, and their shapes (h, w, c)."""


class Floor:
    """The least work that makes a loader's samples."""

    def __init__(self, loader: Loader) -> None:
        (self._windows,) = (t for t in loader.transforms() if isinstance(t, WindowReader))
        self._order = loader.order()
        self._buffers: dict[tuple[int, ...], np.ndarray] = {}

    def plans(self, positions: Sequence[int]) -> list[list[Read]]:
        """Lists the reads of some batches."""
        return [self.plan(self._order[position]) for position in positions]

    def plan(self, samples: Samples) -> list[Read]:
        """Lists all reads of a batch; a record that a window repeats is read once."""
        windows = self._windows.locate(samples)
        reads: list[Read] = []
        for sample, place in enumerate(windows.dataset.tolist()):
            dataset = self._windows.datasets[place]
            for column, index in self._windows.records(windows, sample):
                reads.append(self._read(dataset, column, index))
        return reads

    def _read(self, dataset: Dataset, column: str, index: int) -> Read:
        reader = dataset.columns[column]
        # Images are among the blobs, which are last in a record.
        blobs = [feature for feature in reader.features.values() if feature.kind != "tensor"]
        values = reader.read(index)
        images = []
        start = -sum(len(values[feature.key]) for feature in blobs)
        for feature in blobs:
            end = start + len(values[feature.key])
            if feature.kind in ("image", "depth") and feature in self._windows.features:
                # -0 would be the beginning; None is the end.
                images.append((slice(start, end or None), feature.shape))
            start = end
        return Read(*reader.raw(index), tuple(images))

    def seconds(self, plans: Sequence[Sequence[Read]], *, decode: bool = True) -> float:
        """Measures the CPU seconds of the reads of some batches, with or without decoding."""
        started = time.process_time()
        for read in itertools.chain.from_iterable(plans):
            (record,) = read.reader.read(read.index, read.index + 1)
            for place, shape in read.images if decode else ():
                self._decode(record[place], shape)
        return time.process_time() - started

    def _decode(self, encoded: bytes, shape: tuple[int, ...]) -> None:
        is_depth = shape[-1] == 1
        if shape not in self._buffers:
            self._buffers[shape] = np.empty(shape, np.float32 if is_depth else np.uint8)
        buffer = self._buffers[shape]
        if is_depth:
            decode_depth(encoded, buffer, "floor")
        elif image_format(encoded) == "jpeg":
            decode_jpeg(encoded, buffer)
        else:
            decode_image(encoded, buffer, "floor")
