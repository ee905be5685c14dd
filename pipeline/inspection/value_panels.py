"""Reads the values of a figure: for each dimension an episode's curve and a histogram."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.schema import ACTION, EPISODES, Feature
from pipeline.data.statistics import FeatureStatistics
from pipeline.inspection.feature_names import dim_names, short_name
from pipeline.inspection.image_strips import spread

MAX_EPISODES = 512
"""Maximum number of episodes in the histograms, spread evenly over the dataset."""
MAX_PANELS = 16
"""Maximum number of dimensions that are drawn of a feature."""
NUM_BINS = 40
_NUM_OTHERS = 16
"""Number of other episodes that are drawn behind the curve."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The episodes whose values are drawn."""

    shown: int
    """The episode of the main curve."""
    behind: tuple[int, ...]
    """Episodes of the curves behind it."""
    counted: tuple[int, ...]
    """Episodes in the histograms."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """The values of one dimension."""

    name: str
    """Name of the dimension with its unit, such as `x_m`."""
    min: float
    """Minimum over the dataset; the next three cover the dataset as well."""
    max: float
    p01: float
    p99: float
    limits: tuple[float, float]
    """Limits of the axis, from `axis_limits`."""
    shares: np.ndarray
    """float64 (NUM_BINS): shares in bins of equal width between the limits, relative to all counted
    values, including those beyond the limits."""
    curve: np.ndarray
    """float64 (t): values of the episode that is shown."""
    others: tuple[np.ndarray, ...]
    """float64 (t): values of other episodes, each with its own length."""


@dataclasses.dataclass(frozen=True)
class PanelGroup:
    """The dimensions of one feature."""

    key: str
    note: str
    """Says which dimensions are left out; empty if none are."""
    panels: tuple[Panel, ...]


def select_episodes(num_episodes: int, shown: int) -> Selection:
    """Selects all episodes, or a sample, for the histograms and the curves behind `shown`."""
    counted = spread(num_episodes, MAX_EPISODES)
    behind = [counted[place] for place in spread(len(counted), _NUM_OTHERS)]
    return Selection(shown, tuple(n for n in behind if n != shown), tuple(counted))


def axis_limits(low: float, high: float, p01: float, p99: float) -> tuple[float, float]:
    """Returns the range of an axis, (low, high), without outliers and never empty.

    Values further beyond p01 or p99 than p99 - p01 are outliers.
    """
    span = p99 - p01
    if span > 0:
        # A single outlier would flatten everything else.
        low, high = max(low, p01 - span), min(high, p99 + span)
    # A constant dimension still gets an axis.
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def read_panels(dataset: Dataset, selection: Selection) -> tuple[PanelGroup, ...]:
    """Reads the values of the action and of the observations that have statistics.

    Raises:
      DataError: A record is corrupt.
    """
    features = _drawn_features(dataset)
    if not features:
        return ()
    values: dict[str, dict[int, np.ndarray]] = {feature.key: {} for feature in features}
    # A set: the shown episode may be one of the counted.
    for episode in {selection.shown, *selection.counted}:
        record = dataset.columns[EPISODES].read(episode)
        for key, episodes in values.items():
            episodes[episode] = _flat(record[key])
    return tuple(_group(f, dataset.statistics[f.key], values[f.key], selection) for f in features)


def _drawn_features(dataset: Dataset) -> list[Feature]:
    return [
        feature
        for column, feature in dataset.manifest.schema.features()
        if column.name == EPISODES
        and feature.key in dataset.statistics
        and (feature.key == ACTION or feature.key.startswith("observation/"))
    ]


def _flat(values: Any) -> np.ndarray:
    """Copies the first dimensions of a trajectory (t, *shape) to float64 (t, d)."""
    # A copy: a view would keep the whole record in memory.
    return values.reshape(len(values), -1)[:, :MAX_PANELS].astype(np.float64)


def _group(
    feature: Feature,
    statistics: FeatureStatistics,
    values: Mapping[int, np.ndarray],
    selection: Selection,
) -> PanelGroup:
    names = dim_names(feature)
    fields = (statistics.min, statistics.max, statistics.p01, statistics.p99)
    rows = zip(names[:MAX_PANELS], *(np.ravel(field).tolist() for field in fields), strict=False)
    panels = []
    for dim, (name, *bounds) in enumerate(rows):
        limits = axis_limits(*bounds)
        counted = np.concatenate([values[episode][:, dim] for episode in selection.counted])
        panels.append(
            Panel(
                name or short_name(feature.key),
                *bounds,
                limits=limits,
                # Divided by all values, also those beyond the limits.
                shares=np.histogram(counted, NUM_BINS, limits)[0] / len(counted),
                curve=values[selection.shown][:, dim],
                others=tuple(values[episode][:, dim] for episode in selection.behind),
            )
        )
    is_cut = len(panels) < len(names)
    note = f"the first {len(panels)} of {len(names)} dimensions" if is_cut else ""
    return PanelGroup(feature.key, note, tuple(panels))
