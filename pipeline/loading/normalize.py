"""Normalises arrays by the statistics of their dataset, and undoes it."""

import dataclasses
from collections.abc import Sequence
from typing import assert_never

import numpy as np

from pipeline.data.statistics import FeatureStatistics
from pipeline.loading.data_config import Normalization

_EPSILON = 1e-8
_QUANTILE_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """One affine map per dataset of the mixture; arrays are float32.

    `normal` is (x - mean) / (std + 1e-8); `bounds` is 2 (x - p01) / (p99 - p01 + 1e-8) - 1, clipped
    to [-1, 1]; `quantile` is the same with 1e-6 and without the clip, so it is invertible.

    Source: `normal` and `bounds` are Octo's `normalize_action_and_proprio`; `quantile` is openpi's
    `Normalize` with `use_quantiles`.
    """

    offset: np.ndarray
    """(datasets, d): the value that becomes 0."""
    scale: np.ndarray
    """(datasets, d): the distance from `offset` to the value that becomes 1."""
    mask: np.ndarray
    """bool (datasets, d): False where a dimension is left as it is."""
    clip: bool
    """Whether normalised values are clipped to [-1, 1]."""

    @classmethod
    def create(
        cls,
        statistics: Sequence[FeatureStatistics],
        masks: Sequence[np.ndarray],
        kind: Normalization,
    ) -> "Normalizer":
        """Builds it from each dataset's statistics and the dimensions to normalise."""
        match kind:
            case "normal":
                offset = [s.mean for s in statistics]
                scale = [s.std + np.float32(_EPSILON) for s in statistics]
            case "bounds" | "quantile":
                # In float32 the epsilon would vanish beside the bound of a constant dimension.
                epsilon = _EPSILON if kind == "bounds" else _QUANTILE_EPSILON
                low = [s.p01.astype(np.float64) for s in statistics]
                scale = [
                    (s.p99 - p01 + epsilon) / 2 for s, p01 in zip(statistics, low, strict=True)
                ]
                offset = [p01 + half for p01, half in zip(low, scale, strict=True)]
            case _:
                assert_never(kind)
        return cls(np.stack(offset), np.stack(scale), np.stack(masks), kind == "bounds")

    def normalize(self, values: np.ndarray, dataset: np.ndarray) -> np.ndarray:
        """Returns the normalised values, float32 (b ... d).

        Args:
          values: float32 (b ... d).
          dataset: int (b), index of each sample's dataset in the mixture.
        """
        offset, scale, mask = self._rows(values.ndim, dataset)
        normalized = (values - offset) / scale
        if self.clip:
            normalized = np.clip(normalized, -1, 1)
        return np.where(mask, normalized, values).astype(np.float32, copy=False)

    def unnormalize(self, values: np.ndarray, dataset: np.ndarray) -> np.ndarray:
        """Inverts `normalize`, except for clipped values."""
        offset, scale, mask = self._rows(values.ndim, dataset)
        return np.where(mask, values * scale + offset, values).astype(np.float32, copy=False)

    def _rows(self, ndim: int, dataset: np.ndarray) -> list[np.ndarray]:
        """Offset, scale and mask of each sample, (b 1 ... d)."""
        shape = (len(dataset), *[1] * (ndim - 2), self.offset.shape[-1])
        return [table[dataset].reshape(shape) for table in (self.offset, self.scale, self.mask)]
