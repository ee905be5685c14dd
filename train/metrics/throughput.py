"""Measures how fast a run uses batches, and how long it waits for them."""

import collections

import numpy as np

# Steps: enough for a 99th percentile, few enough to follow a change.
_WINDOW = 200
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Meter:
    """Throughput over a run's last 200 training steps.

    Args:
      samples_per_step: Number of samples in a global batch.
      bytes_per_step: Size of this process's part of a global batch.
    """

    def __init__(self, samples_per_step: int, bytes_per_step: int) -> None:
        self._samples = samples_per_step
        self._bytes = bytes_per_step
        self._steps: collections.deque[tuple[float, float]] = collections.deque(maxlen=_WINDOW)

    def add(self, step_s: float, wait_s: float) -> None:
        """Records one training step: its duration, and the part spent waiting for the batch."""
        self._steps.append((step_s, wait_s))

    @property
    def samples_per_s(self) -> float:
        """Samples per second over all processes."""
        return self._samples * self._steps_per_s

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second of this process's batches."""
        return self._bytes * self._steps_per_s

    @property
    def wait_share(self) -> float:
        """Fraction of the time spent waiting for batches."""
        steps, waits = np.sum(self._steps, axis=0)
        return float(waits / steps)

    @property
    def wait_p99_s(self) -> float:
        """99th percentile of the waiting time of a training step, in seconds."""
        return float(np.quantile([wait for _, wait in self._steps], 0.99))

    def line(self) -> str:
        """Returns a log line such as `812 samples/s, wait 1.2% (p99 4 ms), 640 MB/s`."""
        return (
            f"{self.samples_per_s:.0f} samples/s, wait {self.wait_share:.1%} "
            f"(p99 {self.wait_p99_s * 1e3:.0f} ms), {_rate(self.bytes_per_s)}"
        )

    @property
    def _steps_per_s(self) -> float:
        return len(self._steps) / sum(step for step, _ in self._steps)


def _rate(bytes_per_s: float) -> str:
    """Formats a rate with at most three digits, such as `12.6 MB/s`."""
    # Powers of 1,000; a rate below one byte has a logarithm too.
    power = min(int(np.log10(max(bytes_per_s, 1)) // 3), len(_UNITS) - 1)
    value = bytes_per_s / 1e3**power
    return f"{value:.{1 if value < 100 else 0}f} {_UNITS[power]}/s"
