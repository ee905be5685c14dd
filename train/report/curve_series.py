"""Thins, smooths and bins a run's curves until a page can hold them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from train.metrics.step_metrics import StepMetrics

_LOG_RATIO = 8.0
"""Ratio of largest to smallest value beyond which an axis is logarithmic."""
_SMOOTHED_SHARE = 0.02
"""Fraction of a curve's points that one smoothed point averages."""
_LEAST_HALF = 2
"""Smallest number of points averaged on either side of a smoothed one."""


def to_columns(metrics: Sequence[StepMetrics]) -> dict[str, np.ndarray]:
    """Returns every numeric field as float64 (steps), by name."""
    names = [f.name for f in dataclasses.fields(StepMetrics) if f.name != "batch_fingerprint"]
    return {name: np.array([getattr(one, name) for one in metrics], np.float64) for name in names}


def finite(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both arrays without the points whose value is not finite."""
    kept = np.isfinite(values)
    return steps[kept], values[kept]


def thin(steps: np.ndarray, values: np.ndarray, max_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and highest point of each of `max_bins` bins, in order; spikes stay.

    steps 1 2 3 4, values 5 9 7 6, 1 bin    steps 1 2, values 5 9

    A curve of at most two points per bin is returned whole.

    Args:
      steps: Training steps (n), ascending.
      values: Values (n), finite.
      max_bins: Number of bins, at least 1.
    """
    if len(values) <= 2 * max_bins:
        return steps, values
    # Borders by number of points, not by step: steps may be missing after a resume.
    borders = np.linspace(0, len(values), max_bins + 1).astype(int)
    kept = set[int]()
    for start, stop in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        part = values[start:stop]
        # Both extremes, so that a spike of one step stays visible.
        kept |= {start + int(part.argmin()), start + int(part.argmax())}
    chosen = np.array(sorted(kept))
    return steps[chosen], values[chosen]


def smoothing_window(num_points: int) -> int:
    """Returns how many points one smoothed point averages: odd, 2 % of all, 5 at least."""
    return 2 * max(int(num_points * _SMOOTHED_SHARE) // 2, _LEAST_HALF) + 1


def smooth(values: np.ndarray) -> np.ndarray:
    """Averages the `smoothing_window` points around each, fewer at the ends; (n), finite."""
    half = smoothing_window(len(values)) // 2
    # Differences of running sums: the cost does not depend on the window.
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    starts = np.maximum(places - half, 0)
    stops = np.minimum(places + half + 1, len(values))
    return (sums[stops] - sums[starts]) / (stops - starts)


def binned_ratio(
    steps: np.ndarray, above: np.ndarray, below: np.ndarray, max_bins: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (middle step, sum of `above` / sum of `below`) of each of at most `max_bins` bins.

    Bins whose `below` sums to zero are left out.

    Args:
      steps: Training steps (n), ascending.
      above: Values (n), finite.
      below: Values (n), finite, at least 0.
      max_bins: Number of bins, at least 1.
    """
    if not len(steps):
        return steps, above
    # `reduceat` wants the start of each bin.
    borders = np.linspace(0, len(steps), min(max_bins, len(steps)) + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.stack([steps, np.ones(len(steps)), above, below]), borders, axis=1)
    step, count, top, bottom = sums[:, sums[3] > 0]
    return step / count, top / bottom


def has_log_scale(values: np.ndarray) -> bool:
    """Returns whether a curve of these values is easier to read on a logarithmic axis."""
    return bool(len(values) and values.min() > 0 and values.max() > _LOG_RATIO * values.min())
