"""Measures how long a policy takes to respond."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@dataclasses.dataclass(frozen=True)
class Latency:
    """The latency of `Policy.infer`, without compiling; NaN before the first call."""

    num_calls: int
    """Number of calls measured."""
    mean_ms: float
    """Mean latency in milliseconds."""
    p50_ms: float
    """Median latency in milliseconds."""
    p95_ms: float
    """95th percentile of the latency in milliseconds."""

    def __str__(self) -> str:
        """Returns e.g. `12 calls: 8.1 ms on average, 7.9 at the median, 9.6 at 95 %`."""
        return (
            f"{self.num_calls} calls: {self.mean_ms:.1f} ms on average, "
            f"{self.p50_ms:.1f} at the median, {self.p95_ms:.1f} at 95 %"
        )


@dataclasses.dataclass(frozen=True)
class Timing:
    """Where the time of one call went, in milliseconds; 0 for what it did not do."""

    tokens_ms: float = 0.0
    """Computing tokens from images."""
    instruction_ms: float = 0.0
    """Embedding instructions; a known one takes a fraction of a millisecond."""
    model_ms: float = 0.0
    """Running the model, until its actions are on the host."""


class StageClock:
    """Adds up the times of a call's stages, which are the fields of `Timing`, in each thread."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    @property
    def _times_ms(self) -> dict[str, float]:
        return self._of_thread.__dict__.setdefault("times_ms", {})

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Adds the block to the time of a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            taken_ms = 1000 * (time.perf_counter() - started)
            self._times_ms[stage] = self._times_ms.get(stage, 0.0) + taken_ms

    def restart(self) -> None:
        """Starts a call."""
        self._times_ms.clear()

    @property
    def timing(self) -> Timing:
        """Returns the times since the start of the call."""
        return Timing(**self._times_ms)


class Stopwatch:
    """Measures blocks of code and remembers the most recent ones."""

    def __init__(self, num_kept: int = 100_000) -> None:
        self._num_kept = num_kept
        self._times_ms: list[float] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measures the block, unless it fails."""
        started = time.perf_counter()
        # Without `finally`: a prediction that failed is no measurement.
        yield
        self._times_ms.append(1000 * (time.perf_counter() - started))
        # Bounded, because a server runs for weeks.
        del self._times_ms[: -self._num_kept]

    @property
    def latency(self) -> Latency:
        """Returns the latency of the blocks measured so far."""
        if not self._times_ms:
            # NaN for the mean and both percentiles.
            return Latency(0, *[float("nan")] * 3)
        p50, p95 = np.percentile(self._times_ms, [50, 95])
        mean = np.mean(self._times_ms)
        return Latency(len(self._times_ms), float(mean), float(p50), float(p95))
