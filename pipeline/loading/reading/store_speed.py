"""Measures a few reads of a loader's stores, and predicts what keeps up with a training step."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.loading.data_config import MAX_BATCHES, MAX_THREADS
from pipeline.loading.samples.sampling import Samples
from pipeline.loading.window_reader import WindowReader
from pipeline.memory import LoaderMemory

if TYPE_CHECKING:
    from pipeline.loading.loader import Loader

_MOST_SAMPLES, _FEWEST_SAMPLES = 16, 2
_MOST_S = 1.0
"""Seconds after which no further sample is measured."""
_CPU_SAMPLES = 3
"""Samples that the CPU time is measured over."""
_MARGIN = 1.5
"""Threads for one that is busy all the time: some reads take longer than most."""
_READY = 2
"""Batches ahead that are ready, besides those being made."""
_STALL_S = 1.0
"""Seconds for which the predicted batches ahead last while a store or a machine stalls."""


@dataclasses.dataclass(frozen=True)
class ColumnReads:
    """The reads of one column."""

    column: str
    per_sample: float
    """Records that a sample reads, on average."""
    read_s: float
    """Seconds of a read; the median."""

    def __str__(self) -> str:
        """Such as `steps 2 x 20.3 ms`."""
        times = f"{self.per_sample:.3g} x " if round(self.per_sample, 2) != 1 else ""
        return f"{self.column} {times}{self.read_s * 1e3:.3g} ms"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a loader that keep up with a training step."""

    num_threads: int
    prefetch_batches: int
    memory: LoaderMemory

    def __str__(self) -> str:
        """Such as `data.num_threads=48 and data.prefetch_batches=4 (memory ...)`."""
        settings = f"num_threads={self.num_threads} and data.prefetch_batches"
        return f"data.{settings}={self.prefetch_batches} (memory {self.memory})"


@dataclasses.dataclass(frozen=True)
class StoreSpeed:
    """How long a thread takes to make a sample, measured on a few of them."""

    columns: tuple[ColumnReads, ...]
    """Columns of all datasets by name, over the samples that were measured."""
    cpu_s: float
    """CPU seconds of a sample, over all transforms."""
    batch_size: int
    """Samples of a batch that this process makes."""
    memory: LoaderMemory
    """Memory of the loader with the settings of its config."""

    @property
    def sample_s(self) -> float:
        """Seconds that a thread takes for a sample: its reads, one after the other, and CPU."""
        return sum(one.per_sample * one.read_s for one in self.columns) + self.cpu_s

    def settings(self, step_s: float) -> Settings:
        """Predicts the settings with which training waits for less than 2 % of the time.

        With the most threads or batches ahead that there can be, it may wait for longer.

        Args:
          step_s: Seconds of a training step.
        """
        wanted = math.ceil(self._threads_step_s(1) / step_s)
        num_threads = min(max(wanted, 1), MAX_THREADS)
        wanted = math.ceil((self._batch_s(num_threads) + _STALL_S) / step_s) + _READY
        prefetch = min(wanted, MAX_BATCHES)
        return Settings(num_threads, prefetch, self.memory.with_settings(num_threads, prefetch))

    def shortest_step_s(self, num_threads: int, prefetch_batches: int) -> float:
        """Predicts the shortest training step that some settings keep up with, in seconds.

        Args:
          num_threads: Threads that read samples, at least 1.
          prefetch_batches: Batches made ahead.
        """
        by_threads = self._threads_step_s(num_threads)
        by_batches = self._batch_s(num_threads) / max(prefetch_batches - _READY, 1)
        return max(by_threads, by_batches, self.cpu_step_s)

    @property
    def cpu_step_s(self) -> float:
        """Seconds in which all cores of this process make a batch, however fast the store is."""
        return self.batch_size * self.cpu_s / num_cores()

    def advice(self, num_threads: int, prefetch_batches: int, step_s: float) -> tuple[bool, str]:
        """Returns whether settings keep up with a training step, and that in words.

        Args:
          num_threads: Threads that read samples; 0: none.
          prefetch_batches: Batches made ahead.
          step_s: Seconds of the training step.
        """
        if num_threads:
            shortest_s = self.shortest_step_s(num_threads, prefetch_batches)
            ahead = f"{num_threads} threads and {prefetch_batches} batches ahead"
            found = f"{ahead} keep up with training steps of {shortest_s:.2g} s or longer"
        else:
            shortest_s = math.inf
            found = f"every training step waits {self.batch_size * self.sample_s:.2g} s for it"
        if shortest_s <= step_s:
            return True, f"{self}; {found}"
        least = ""
        if self.cpu_step_s > step_s:
            least = f". The {num_cores()} cores make a batch in {self.cpu_step_s:.2g} s at best"
        elif self._threads_step_s(MAX_THREADS) > step_s:
            least_s = self._threads_step_s(MAX_THREADS)
            least = f". More threads are not possible; these keep up with steps of {least_s:.2g} s"
        return (
            False,
            f"{self}; {found}. For steps of {step_s:g} s set {self.settings(step_s)}{least}",
        )

    def _threads_step_s(self, num_threads: int) -> float:
        """Seconds of a training step that threads keep up with, if there are batches for them."""
        return self.batch_size * self.sample_s * _MARGIN / num_threads

    def _batch_s(self, num_threads: int) -> float:
        """Seconds in which threads read a batch: all samples at once, or as many as threads."""
        return self.sample_s * max(self.batch_size / num_threads, 1)

    def __str__(self) -> str:
        """Such as `a sample takes 62 ms: episodes 20 ms, steps 2 x 20 ms, 1.2 ms of CPU`."""
        columns = ", ".join(map(str, self.columns))
        total = f"a sample takes {self.sample_s * 1e3:.3g} ms"
        return f"{total}: {columns}, {self.cpu_s * 1e3:.2g} ms of CPU"


def num_cores() -> int:
    """Returns how many cores this process may use."""
    # Linux alone has an affinity, which `cpu_count` ignores.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure_store(loader: "Loader") -> StoreSpeed:
    """Reads a few samples of a loader, at random places of its order, in about a second.

    They are others at every call, so that in a large dataset they are not in the system's memory.
    Shards are opened before their reads are measured: a run opens each once.

    Raises:
      RecordError: A record or image is corrupt.
      DataError: A shard is corrupt.
    """
    transforms = loader.transforms(_CPU_SAMPLES)
    (reader,) = (one for one in transforms if isinstance(one, WindowReader))
    samples = _random_samples(loader)
    columns = _read_columns(reader, samples)
    chosen = _first_samples(samples, _CPU_SAMPLES)
    # The first time counts once in a run, too.
    cpu_s = [_cpu_seconds(transforms, chosen) for _ in range(2)][-1] / _CPU_SAMPLES
    num_rows = len(loader.shard.rows(loader.batch_size))
    return StoreSpeed(columns, cpu_s, num_rows, loader.memory)


def _cpu_seconds(transforms: Sequence[Callable[[Any], Any]], batch: Any) -> float:
    started = time.thread_time()
    for transform in transforms:
        batch = transform(batch)
    return time.thread_time() - started


def _random_samples(loader: "Loader") -> Samples:
    """The first samples of some batches of the first epoch."""
    order, num_batches = loader.order(), max(loader.num_steps // loader.batch_size, 1)
    # Without a seed: others at every call.
    positions = np.random.default_rng().integers(num_batches, size=_MOST_SAMPLES)
    return _joined([_first_samples(order[position], 1) for position in positions.tolist()])


def _first_samples(samples: Samples, count: int) -> Samples:
    return Samples(**{name: array[:count] for name, array in vars(samples).items()})


def _joined(parts: list[Samples]) -> Samples:
    names = [field.name for field in dataclasses.fields(Samples)]
    return Samples(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def _read_columns(reader: WindowReader, samples: Samples) -> tuple[ColumnReads, ...]:
    """Measures each read of the samples, until a second has passed."""
    windows = reader.locate(samples)
    seconds: dict[str, list[float]] = {}
    started, num_samples = time.perf_counter(), 0
    for sample, place in enumerate(samples.dataset.tolist()):
        if num_samples >= _FEWEST_SAMPLES and time.perf_counter() - started > _MOST_S:
            break
        for column, index in reader.records(windows, sample):
            column_reader = reader.datasets[place].columns[column]
            column_reader.raw(index)  # opens its shard
            before = time.perf_counter()
            column_reader.read(index)
            seconds.setdefault(column, []).append(time.perf_counter() - before)
        num_samples += 1
    return tuple(
        ColumnReads(column, len(of_column) / num_samples, float(np.median(of_column)))
        for column, of_column in seconds.items()
    )
