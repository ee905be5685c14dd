"""Mean, spread and range of every low-dimensional feature, computed while converting.

Source: `get_dataset_statistics` of the original Octo (mean, std with ddof 0, min, max and the
linearly interpolated 1st and 99th percentile), but accumulated in float64.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from pipeline.errors import DataError
from pipeline.files import dump_json


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of one feature over every step of a dataset; arrays are float32 (d)."""

    mean: np.ndarray
    std: np.ndarray
    """Of the population (ddof 0)."""
    min: np.ndarray
    max: np.ndarray
    p01: np.ndarray
    """1st percentile, linearly interpolated."""
    p99: np.ndarray
    count: int
    """Steps counted."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values; float32 survives the decimal text exactly."""
        return {
            field.name: _listed(getattr(self, field.name)) for field in dataclasses.fields(self)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FeatureStatistics":
        """The inverse of `to_json`."""
        arrays = {k: np.asarray(v, np.float32) for k, v in values.items() if k != "count"}
        return cls(**arrays, count=int(values["count"]))


def compute(values: np.ndarray) -> FeatureStatistics:
    """Statistics of `values` (t, d), t at least 1, computed in float64."""
    exact = values.astype(np.float64)
    p01, p99 = np.quantile(exact, [0.01, 0.99], axis=0)
    moments = {
        "mean": exact.mean(0),
        "std": exact.std(0),
        "min": exact.min(0),
        "max": exact.max(0),
        "p01": p01,
        "p99": p99,
    }
    return FeatureStatistics(
        **{name: value.astype(np.float32) for name, value in moments.items()}, count=len(values)
    )


def dumps(statistics: Mapping[str, FeatureStatistics]) -> str:
    """Statistics by feature key, as the text of `statistics.json`."""
    return dump_json({key: value.to_json() for key, value in statistics.items()})


def load(path: epath.Path) -> dict[str, FeatureStatistics]:
    """Reads a `statistics.json`.

    Raises:
      DataError: Where it is missing or not what `dumps` writes.
    """
    try:
        return {k: FeatureStatistics.from_json(v) for k, v in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            where=str(path),
            expected="statistics as the converter writes them",
            found=f"{type(error).__name__}: {error}",
            remedy="Convert the dataset again.",
        ) from error


def _listed(value: np.ndarray | int) -> list[float] | int:
    return value if isinstance(value, int) else [float(x) for x in value.ravel()]
