"""Computes mean, deviation, range and percentiles of every low-dimensional feature.

Source: `get_dataset_statistics` of the original Octo (mean, std with ddof 0, min, max and the
linearly interpolated 1st and 99th percentile), but accumulated in float64.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from etils import epath

from pipeline.errors import DataError, SchemaError, did_you_mean
from pipeline.files import dump_json, json_checksum, parse_json, read_text

_CONVERT_AGAIN = "Convert the dataset again."
# 8 MiB hold 300,000 steps of a 7-D action; more are folded into moments and histograms.
_EXACT_BYTES = 8 << 20
# Sign, 8 bits of exponent, 9 of mantissa: an error of at most 2 ** -10.
_BIN_BITS = 18
_MOMENTS = ("mean", "std", "min", "max", "p01", "p99")
_SMALLEST_RANGE = 1e-3
"""Smallest distance from the 1st to the 99th percentile, in standard deviations."""
_KNOT_SHARES = (0.0, 0.01, 0.99, 1.0)
"""Shares of the values that lie below the minimum, the 1st and 99th percentile, and the maximum."""


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of one feature over every step of a dataset; arrays are float32 (d)."""

    mean: np.ndarray
    std: np.ndarray
    """Standard deviation of the population (ddof 0)."""
    min: np.ndarray
    max: np.ndarray
    p01: np.ndarray
    """1st percentile, linearly interpolated."""
    p99: np.ndarray
    count: int
    """Number of steps."""

    def to_json(self) -> dict[str, Any]:
        """Converts it to JSON values, whose decimals restore each float32 exactly."""
        return {
            field.name: _listed(getattr(self, field.name)) for field in dataclasses.fields(self)
        }

    @classmethod
    def from_json(cls, values: Any) -> "FeatureStatistics":
        """Inverts `to_json`.

        Raises:
          ValueError: The values do not have the form that `to_json` returns.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or sorted(values) != sorted(names):
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"expected {', '.join(names)}; found {found}")
        count = values["count"]
        # A bool is an int in Python.
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"count: expected a whole number of steps; found {count!r:.40}")
        # All arrays are checked for one length below.
        arrays = {name: _vector(values[name], name) for name in _MOMENTS}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected lists of one length; found {lengths}")
        return cls(**arrays, count=count)


class StatisticsByKey(dict[str, Any]):
    """A dictionary by feature key, whose error for an unknown key has the nearest known one."""

    def __missing__(self, key: str) -> NoReturn:
        """Raises a `SchemaError` for a key that the dictionary lacks."""
        raise SchemaError(
            where="statistics",
            expected="one of the keys " + ", ".join(self),
            found=repr(key),
            remedy=did_you_mean(str(key), self) + "Only float32 features of trajectories have any.",
        )


def unusable_dims(statistics: FeatureStatistics, mask: np.ndarray) -> dict[int, str]:
    """Describes the dimensions whose statistics cannot normalise an array, by dimension.

    Args:
      statistics: Statistics of the feature.
      mask: bool (d): False where a dimension is not normalised.
    """
    problems: dict[int, str] = {}
    for dim in np.flatnonzero(mask):
        of_dim = {name: float(getattr(statistics, name)[dim]) for name in _MOMENTS}
        bad = [f"{name} {value}" for name, value in of_dim.items() if not math.isfinite(value)]
        # Only finite values can be compared.
        if not bad and of_dim["std"] < 0:
            bad = [f"std {of_dim['std']}"]
        if not bad and of_dim["p99"] < of_dim["p01"]:
            bad = [f"p01 {of_dim['p01']} above p99 {of_dim['p99']}"]
        if bad:
            problems[int(dim)] = ", ".join(bad)
    return problems


def constant_dims(statistics: FeatureStatistics, mask: np.ndarray) -> list[int]:
    """Lists normalised dimensions that never vary: any small deviation would become huge.

    Args:
      statistics: Statistics of the feature.
      mask: bool (d): False where a dimension is not normalised.
    """
    return [int(dim) for dim in np.flatnonzero((statistics.std == 0) & mask)]


def narrow_dims(statistics: FeatureStatistics, mask: np.ndarray) -> list[int]:
    """Lists normalised dimensions that vary, but have nearly the same 1st and 99th percentile.

    Hardly 2 % of their values differ from the others; mapping the percentiles to [-1, 1] would
    make these huge.

    Args:
      statistics: Statistics of the feature.
      mask: bool (d): False where a dimension is not normalised.
    """
    # float64, or a range of float32's largest values would overflow.
    span = statistics.p99.astype(np.float64) - statistics.p01
    narrow = (statistics.std > 0) & (span <= _SMALLEST_RANGE * statistics.std)
    return [int(dim) for dim in np.flatnonzero(narrow & mask)]


def compute(values: np.ndarray) -> FeatureStatistics:
    """Computes the statistics of `values` (t, d), t at least 1, in float64."""
    # float64: sums of a million float32 values lose digits.
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


class Accumulator:
    """Computes statistics of values that arrive in pieces, in bounded memory.

    As long as all values fit into 8 MiB (300,000 steps of a 7-D action), the result is that of
    `compute`. Beyond that, mean and deviation are merged piece by piece in float64, and the
    percentiles come from a histogram over the leading 18 bits of every float32 (sign, exponent, 9
    of 23 bits of the mantissa). Their error is at most 2**-10 (0.1 %) of the larger of the two
    values that a percentile lies between. The result depends on the order of the pieces, so callers
    add them in the order of the episodes.

    Source: Chan, Golub and LeVeque (1979) for merging moments; DDSketch (Masson et al., 2019) for
    quantiles of relative accuracy.
    """

    def __init__(self, exact_bytes: int = _EXACT_BYTES) -> None:
        self._exact_bytes = exact_bytes
        self._held: list[np.ndarray] = []
        self._held_bytes = 0
        self._folded: _Folded | None = None

    def add(self, values: np.ndarray) -> None:
        """Adds a piece, float32 (t, *shape), t at least 1."""
        flat = values.reshape(len(values), -1).copy()  # a view would keep its whole record
        self._held.append(flat)
        self._held_bytes += flat.nbytes
        if self._held_bytes > self._exact_bytes:
            self._fold()

    def finish(self) -> FeatureStatistics:
        """Returns the statistics of all values so far; there must be at least one."""
        if self._folded is None:
            return compute(np.concatenate(self._held))
        # Values that arrived since the last fold.
        self._fold()
        return self._folded.finish()

    def quantiles(self, shares: Sequence[float]) -> np.ndarray:
        """Returns quantiles of all values so far, float32 (shares, d), as `finish` computes p01.

        Args:
          shares: Share of the values below each, such as 0.5 for the median.
        """
        if self._folded is None:
            held = np.concatenate(self._held).astype(np.float64)
            return np.quantile(held, shares, axis=0).astype(np.float32)
        self._fold()
        return np.stack([self._folded.quantile(share) for share in shares])

    def _fold(self) -> None:
        if not self._held:
            return
        # Folded in large pieces: each fold costs a merge per dimension.
        values = np.concatenate(self._held)
        self._held, self._held_bytes = [], 0
        if self._folded is None:
            self._folded = _Folded(values.shape[1])
        self._folded.add(values)


class _Folded:
    """Moments and histograms of values that are not kept."""

    def __init__(self, num_dims: int) -> None:
        self._count = 0
        self._mean = np.zeros(num_dims)
        self._squares = np.zeros(num_dims)
        self._min = np.full(num_dims, np.inf, np.float32)
        self._max = np.full(num_dims, -np.inf, np.float32)
        self._histograms = [_Histogram() for _ in range(num_dims)]

    def add(self, values: np.ndarray) -> None:
        """Adds a piece, float32 (t, d)."""
        exact = values.astype(np.float64)
        mean = exact.mean(0)
        difference = mean - self._mean
        count = self._count + len(values)
        self._squares += ((exact - mean) ** 2).sum(0)
        # Chan et al.: squares around the two means, plus what the means differ by.
        self._squares += difference**2 * (self._count * len(values) / count)
        self._mean += difference * (len(values) / count)
        self._count = count
        self._min = np.minimum(self._min, values.min(0))
        self._max = np.maximum(self._max, values.max(0))
        # One histogram per dimension: (t, d) transposed.
        for histogram, column in zip(self._histograms, values.T, strict=True):
            histogram.add(column)

    def finish(self) -> FeatureStatistics:
        """Returns the statistics; percentiles interpolate between the bins of the nearest ranks."""
        return FeatureStatistics(
            mean=self._mean.astype(np.float32),
            std=np.sqrt(self._squares / self._count).astype(np.float32),
            min=self._min,
            max=self._max,
            p01=self.quantile(0.01),
            p99=self.quantile(0.99),
            count=self._count,
        )

    def quantile(self, q: float) -> np.ndarray:
        """Returns the quantile of all values so far, float32 (d)."""
        # Ranks from 0, as NumPy's linear interpolation counts.
        rank = q * (self._count - 1)
        low = int(rank)
        ranks = np.array([low, min(low + 1, self._count - 1)])
        bins = np.array([histogram.bins_of(ranks) for histogram in self._histograms])
        below, above = _centers(bins).T
        value = below + (rank - low) * (above - below)
        # A bin's center may lie beyond the extreme values.
        return np.clip(value.astype(np.float32), self._min, self._max)


class _Histogram:
    """Counts of the values of one dimension in each non-empty bin."""

    def __init__(self) -> None:
        self._bins = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Adds values, float32 (t)."""
        bins, counts = np.unique(_bins(values), return_counts=True)
        # Only non-empty bins are kept: 2 ** 18 for each dimension would be 2 MB.
        bins, places = np.unique(np.concatenate([self._bins, bins]), return_inverse=True)
        merged = np.zeros(len(bins), np.int64)
        # `add.at` adds up repeated places, where indexing would keep the last.
        np.add.at(merged, places, np.concatenate([self._counts, counts]))
        self._bins, self._counts = bins, merged

    def bins_of(self, ranks: np.ndarray) -> np.ndarray:
        """Returns the bins of the values at `ranks`, int (n), in ascending order from 0."""
        return self._bins[np.searchsorted(np.cumsum(self._counts), ranks, side="right")]


def _bins(values: np.ndarray) -> np.ndarray:
    """Leading bits of float32 (n) as int64 (n), in the order of the values."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    # Negative floats sort backwards by their bits, so they are inverted; positive ones go above.
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> np.uint32(32 - _BIN_BITS)).astype(np.int64)


def _centers(bins: np.ndarray) -> np.ndarray:
    """Centers of bins as float64; inverts `_bins` up to the width of a bin."""
    width = 1 << (32 - _BIN_BITS)
    # The middle of a bin.
    ordered = (bins * width + width // 2).astype(np.uint32)
    # Undoes `_bins`: the highest bit marks positive values.
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def merge(statistics: Sequence[FeatureStatistics], shares: Sequence[float]) -> FeatureStatistics:
    """Computes the statistics of one feature over a mixture of datasets.

    Mean, deviation and range are exact. For the percentiles, each dataset's distribution is taken
    as linear between its minimum, 1st and 99th percentile and maximum; they are exact if all
    datasets have the same statistics.

    Args:
      statistics: Statistics of each dataset.
      shares: Share of the samples that come from each dataset, on any scale.
    """
    # Weights of a mean, whatever the scale of the shares.
    weights = np.asarray(shares, np.float64) / np.sum(shares)
    stacked = {
        name: np.stack([getattr(s, name) for s in statistics]).astype(np.float64)
        for name in _MOMENTS
    }
    mean = weights @ stacked["mean"]
    # The law of total variance: within the datasets, and between their means.
    variance = weights @ (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)
    # (datasets, d, 4)
    knots = np.stack([stacked[f] for f in ("min", "p01", "p99", "max")], axis=-1)
    # (d, datasets, 4): one mixture per dimension.
    p01, p99 = np.array([_mixed_quantiles(dim, weights) for dim in knots.transpose(1, 0, 2)]).T
    merged = {
        "mean": mean,
        "std": np.sqrt(variance),
        "min": stacked["min"].min(0),
        "max": stacked["max"].max(0),
        "p01": p01,
        "p99": p99,
    }
    return FeatureStatistics(
        **{name: value.astype(np.float32) for name, value in merged.items()},
        count=sum(s.count for s in statistics),
    )


def _mixed_quantiles(knots: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1st and 99th percentile of a mixture of piecewise linear distributions; float64 (2).

    Args:
      knots: float64 (datasets 4): where each distribution is 0, 0.01, 0.99 and 1.
      weights: float64 (datasets): shares that sum to 1.
    """
    # All knots of all datasets: the mixture is linear between them.
    values = np.unique(knots)
    # Where knots coincide the distribution jumps, so both sides of the jump are points.
    above = np.stack([np.interp(values, row, _KNOT_SHARES) for row in knots])
    below = 1 - np.stack([np.interp(-values, -row[::-1], _KNOT_SHARES) for row in knots])
    shares = np.stack([weights @ below, weights @ above], axis=1).ravel()
    # Each value twice, for its share below and above.
    return np.interp(_KNOT_SHARES[1:3], shares, np.repeat(values, 2))


def dumps(statistics: Mapping[str, FeatureStatistics]) -> str:
    """Formats statistics by feature key as the text of `statistics.json`."""
    return dump_json({key: value.to_json() for key, value in statistics.items()})


def load(path: epath.Path, checksum: str = "") -> dict[str, FeatureStatistics]:
    """Reads a `statistics.json`.

    Args:
      path: The file.
      checksum: `json_checksum` of its content; empty: the dataset was written without one.

    Raises:
      DataError: The file is missing, malformed, or does not match the checksum.
    """
    expected = "statistics as the converter writes them"
    text = read_text(path, expected=expected, remedy=_CONVERT_AGAIN)
    values = parse_json(text, where=str(path), expected=expected, remedy=_CONVERT_AGAIN)
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise _unlike(path, f"TypeError: expected an object by feature key; found {kind}")
    if checksum and json_checksum(values) != checksum:
        raise DataError(
            where=str(path),
            expected=f"content with the checksum {checksum}, as dataset.json says",
            found=f"{json_checksum(values)}: the file is corrupt, was edited, or is of another "
            "dataset",
            remedy="Copy it again, undo the edit, or convert the dataset again.",
        )
    problems: list[str] = []
    found: dict[str, FeatureStatistics] = {}
    for key, stored in values.items():
        try:
            found[key] = FeatureStatistics.from_json(stored)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise _unlike(path, "; ".join(problems))
    return found


def _unlike(path: epath.Path, found: str) -> DataError:
    return DataError(
        where=str(path),
        expected="statistics as the converter writes them",
        found=found,
        remedy=_CONVERT_AGAIN,
    )


def _vector(values: Any, name: str) -> np.ndarray:
    """Converts a list of numbers to float32 (d); values beyond its range become infinite."""
    # A value that is no list fails the test below with its own message.
    listed = values if isinstance(values, list) else [values, None]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in listed):
        raise ValueError(f"{name}: expected a list of numbers; found {values!r:.40}")
    try:
        # Values beyond float32 become infinite, and `unusable_dims` reports them.
        with np.errstate(over="ignore"):
            return np.asarray(listed, np.float64).astype(np.float32)
    except OverflowError as error:
        raise ValueError(f"{name}: {error}") from error


def _listed(value: np.ndarray | int) -> list[float] | int:
    return value if isinstance(value, int) else [float(x) for x in value.ravel()]
