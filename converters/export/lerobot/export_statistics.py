"""Statistics of an episode and of a whole LeRobot dataset, by feature.

    min, max, mean, std   (d), or (c, 1, 1) of a camera
    q01 ... q99           quantiles of the same shape
    count                 (1): steps, or images that were looked at

Source: `compute_episode_stats` of LeRobot 0.6, which samples and scales images in the same way.
Deliberate difference: quantiles are those of all values. There each episode's come from 5,000 bins,
and a dataset's are the mean of its episodes'.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from converters.export.lerobot.lerobot_columns import ExportedFeature
from pipeline.data.statistics import Accumulator

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_LEVELS = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65536}
_WHITE = 255.0
_FEWEST, _MOST, _POWER = 100, 10_000, 0.75
_LARGE, _SMALL = 300, 150
"""Images at least this wide or high are thinned out to about this many pixels."""

Summary = dict[str, Any]
"""Nested lists of floats by the name of the statistic; `count` is a list of one int."""


class ValueStatistics:
    """Statistics of numbers, (t, d) or (t), or (t, ..., d), whose last axis is kept."""

    def __init__(self) -> None:
        self._values = Accumulator()
        self._count = 0

    def add(self, values: np.ndarray) -> None:
        """Adds the numbers of some steps."""
        flat = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values
        self._values.add(flat.astype(np.float32))
        self._count += len(values)

    def summary(self) -> Summary:
        """Returns the statistics, each (d)."""
        found = self._values.finish()
        quantiles = self._values.quantiles(list(_QUANTILES.values()))
        arrays = {"min": found.min, "max": found.max, "mean": found.mean, "std": found.std}
        arrays |= dict(zip(_QUANTILES, quantiles, strict=True))
        listed = {name: array.astype(np.float64).tolist() for name, array in arrays.items()}
        return {**listed, "count": [self._count]}


class ImageStatistics:
    """Statistics of images per channel, from the number of pixels at each level.

    Colours are scaled to [0, 1]; depth stays in millimetres.
    """

    def __init__(self, num_channels: int, dtype: np.dtype) -> None:
        self.levels = np.zeros((num_channels, _LEVELS[dtype]), np.int64)
        """Pixels at each level, by channel."""
        self.count = 0
        """Images that were added."""
        self._scale = _WHITE if dtype == np.uint8 else 1.0

    def add(self, values: np.ndarray) -> None:
        """Adds one image, (h, w, c)."""
        height, width, channels = values.shape
        step = 1
        if max(height, width) >= _LARGE:
            step = max(height, width) // _SMALL
        thinned = values[::step, ::step].reshape(-1, channels)
        for channel in range(channels):
            found = np.bincount(thinned[:, channel], minlength=self.levels.shape[1])
            self.levels[channel] += found
        self.count += 1

    def merge(self, other: "ImageStatistics") -> None:
        """Adds what another of the same feature has counted."""
        self.levels += other.levels
        self.count += other.count

    def summary(self) -> Summary:
        """Returns the statistics, each (c, 1, 1)."""
        channels = [_of_levels(levels) for levels in self.levels]
        return {
            **{
                name: [[[channel[name] / self._scale]] for channel in channels]
                for name in channels[0]
            },
            "count": [self.count],
        }


def _of_levels(counts: np.ndarray) -> dict[str, float]:
    """Statistics of whole numbers, of which `counts` says how often each from 0 on occurs."""
    total = counts.sum()
    levels = np.arange(len(counts), dtype=np.float64)
    mean = counts @ levels / total
    present = np.flatnonzero(counts)
    upto = np.cumsum(counts)
    found = {
        "min": float(present[0]),
        "max": float(present[-1]),
        "mean": float(mean),
        "std": float(np.sqrt(counts @ (levels - mean) ** 2 / total)),
    }
    for name, share in _QUANTILES.items():
        # Between the two nearest ranks, as NumPy interpolates.
        rank = share * (total - 1)
        low, high = (np.searchsorted(upto, int(r), side="right") for r in (rank, np.ceil(rank)))
        found[name] = float(low + (rank - int(rank)) * (high - low))
    return found


class DatasetStatistics:
    """Statistics of every feature, of each episode and of all of them.

    Args:
      features: The exported features.
    """

    def __init__(self, features: Sequence[ExportedFeature]) -> None:
        self._images = {one.name: _of_images(one) for one in features if one.storage != "values"}
        self._values: dict[str, ValueStatistics] = {}

    def add_values(self, name: str, values: np.ndarray) -> Summary:
        """Adds the numbers of an episode, (t, *shape), and returns their statistics."""
        own = ValueStatistics()
        for statistics in (own, self._values.setdefault(name, ValueStatistics())):
            statistics.add(values)
        return own.summary()

    def add_images(self, one: ExportedFeature, images: Iterable[np.ndarray]) -> Summary:
        """Adds the sampled images of an episode, (h, w, c), and returns their statistics."""
        own = _of_images(one)
        for image in images:
            own.add(image)
        self._images[one.name].merge(own)
        return own.summary()

    def summaries(self) -> dict[str, Summary]:
        """Returns the statistics of all episodes, by the name of the feature."""
        return {name: one.summary() for name, one in {**self._images, **self._values}.items()}


def _of_images(one: ExportedFeature) -> ImageStatistics:
    return ImageStatistics(one.feature.shape[-1], one.feature.numpy_dtype)


def sampled_steps(num_steps: int) -> list[int]:
    """Returns the steps of an episode whose images are looked at, spread over all of them."""
    fewest = min(_FEWEST, num_steps)
    count = max(fewest, min(int(num_steps**_POWER), _MOST))
    return np.round(np.linspace(0, num_steps - 1, count)).astype(int).tolist()
