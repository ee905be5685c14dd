"""How long a policy takes to answer."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@dataclasses.dataclass(frozen=True)
class Latency:
    """Of calls of `Policy.infer`, compiling excluded; NaN before the first."""

    num_calls: int
    """Calls measured."""
    mean_ms: float
    """Mean."""
    p50_ms: float
    """Median."""
    p95_ms: float
    """95th percentile."""

    def __str__(self) -> str:
        """Such as `12 calls: 8.1 ms on average, 7.9 at the median, 9.6 at 95 %`."""
        return (
            f"{self.num_calls} calls: {self.mean_ms:.1f} ms on average, "
            f"{self.p50_ms:.1f} at the median, {self.p95_ms:.1f} at 95 %"
        )


class Stopwatch:
    """Measures blocks and remembers the last of them."""

    def __init__(self, num_kept: int = 100_000) -> None:
        self._num_kept = num_kept
        self._times_ms: list[float] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """A block that is measured, unless it fails."""
        started = time.perf_counter()
        yield
        self._times_ms.append(1000 * (time.perf_counter() - started))
        del self._times_ms[: -self._num_kept]

    @property
    def latency(self) -> Latency:
        """Of the blocks so far."""
        if not self._times_ms:
            return Latency(0, *[float("nan")] * 3)
        p50, p95 = np.percentile(self._times_ms, [50, 95])
        mean = np.mean(self._times_ms)
        return Latency(len(self._times_ms), float(mean), float(p50), float(p95))
