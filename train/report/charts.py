"""Charts of a page: curves in a plot that the page stretches to any width.

A chart is drawn once. Its curves are paths over a square of 10,000 units, and its labels are text
of the page, so no width of a screen changes the size of a font or the width of a line.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from train.report.html_page import short

WIDE_BINS, BINS = 560, 180
"""Most bins of a curve in a chart as wide as the page, and in one among others."""
_UNITS = 10_000
_LOG_RATIO, _LONG_LOG_RATIO = 8.0, 1e3
"""Ratios of largest to smallest value beyond which an axis is logarithmic, and beyond which such an
axis has ticks only at powers of ten."""
_MAX_DOTTED = 30
"""Largest number of points for which a curve gets dots."""
_SMOOTHED_SHARE, _LEAST_HALF = 0.02, 2
"""Fraction of a curve's points that one smoothed point averages, and the fewest on either side."""

Tick = tuple[float, str]
"""Place in percent from the left or from the bottom, and label."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """The range of values along one side of a plot; `low` may be the larger one."""

    low: float
    high: float
    is_log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Returns where values lie, from 0 at `low` to 1 at `high`."""
        scale = np.log10 if self.is_log else np.asarray
        low, high = scale(self.low), scale(self.high)
        return (scale(values) - low) / (high - low)

    def round_values(self, most: int) -> np.ndarray:
        """Returns at most about that many round values of the axis."""
        locator = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10])
        if self.is_log:
            subs = (1.0,) if self.high > _LONG_LOG_RATIO * self.low else (1.0, 2.0, 5.0)
            locator = LogLocator(subs=subs, numticks=8)
        found = np.asarray(locator.tick_values(self.low, self.high))
        return found[(self.low <= found) & (found <= self.high)]

    def ticks(self, values: np.ndarray, labels: Sequence[str]) -> list[Tick]:
        """Returns a tick for each value."""
        return list(zip((100 * self.place(values)).round(2).tolist(), labels, strict=True))


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of a chart."""

    kind: str
    """Kind of the curve, to which the style sheet gives a colour."""
    x: np.ndarray
    """Positions (n)."""
    y: np.ndarray
    """Values (n); lines leave a gap where one is NaN."""
    mark: str = "line"
    """What is drawn: a line through the points, or "dots", or a "tick" at the foot of the plot."""

    def path(self, x_axis: Axis, y_axis: Axis) -> str:
        """Returns the curve as the path data of an SVG."""
        shown = np.isfinite(self.y)
        x = np.rint(_UNITS * x_axis.place(self.x[shown])).astype(int).tolist()
        if self.mark == "tick":
            return "".join(f"M{a} {_UNITS}v-400" for a in x)
        y = np.rint(_UNITS * (1 - y_axis.place(self.y[shown]))).astype(int).tolist()
        if self.mark == "dots":
            # Lines of almost no length: their round ends are the dots.
            return "".join(f"M{a} {b}h1" for a, b in zip(x, y, strict=True))
        follows = np.append(False, shown[:-1])[shown]
        letters = np.where(follows, "L", "M").tolist()
        return "".join(f"{c}{a} {b}" for c, a, b in zip(letters, x, y, strict=True))


@dataclasses.dataclass(frozen=True)
class Chart:
    """What the page shows of a chart."""

    title: str
    detail: str
    """Unit or explanation, after the title."""
    alt: str
    """Description for readers who cannot see the chart."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    paths: list[tuple[str, str, str]]
    """Kind, mark and path data of each curve."""
    x_label: str = "step"
    height: int | None = None
    """Height in pixels, if it depends on the content."""


def draw(
    words: tuple[str, str, str],
    curves: Sequence[Curve],
    last_step: int,
    *,
    from_zero: bool = False,
    max_ticks: int = 4,
) -> Chart:
    """Draws curves over steps.

    Args:
      words: Title, detail and description of the chart.
      curves: The curves.
      last_step: The step at which the axis ends.
      from_zero: Whether the vertical axis is linear and starts at 0.
      max_ticks: Most intervals between labelled steps.
    """
    values = np.concatenate([curve.y for curve in curves if curve.mark != "tick"])
    y_axis = _fitting(values[np.isfinite(values)], from_zero=from_zero)
    x_axis = Axis(0.0, float(max(last_step, 1)))
    steps = np.unique(np.rint(x_axis.round_values(max_ticks)))
    y_values = y_axis.round_values(4)
    return Chart(
        *words,
        x_ticks=x_axis.ticks(steps, [f"{step:,.0f}" for step in steps]),
        y_ticks=y_axis.ticks(y_values, [short(value) for value in y_values.tolist()]),
        paths=[(one.kind, one.mark, one.path(x_axis, y_axis)) for one in curves],
    )


def curves(
    kind: str,
    steps: np.ndarray,
    values: np.ndarray,
    max_bins: int = BINS,
    *,
    smoothed: bool = False,
) -> list[Curve]:
    """Returns the curve of the finite values: thinned; smoothed over a pale one; dots if few."""
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    drawn = {"raw": values, kind: smooth(values)} if smoothed else {kind: values}
    # Few points per pixel: a run of 50,000 steps would be megabytes.
    found = [Curve(name, *thin(steps, y, max_bins)) for name, y in drawn.items()]
    if len(steps) <= _MAX_DOTTED:
        found += [dataclasses.replace(one, mark="dots") for one in found]
    return found


def _fitting(values: np.ndarray, *, from_zero: bool) -> Axis:
    """Returns an axis on which the values are easy to read."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if from_zero:
        # An axis from 0 to 0 is none.
        return Axis(0.0, 1.08 * high or 1.0)
    if low > 0 and high > _LOG_RATIO * low:
        return Axis(low / 1.15, high * 1.15, is_log=True)
    # A constant curve still gets an axis.
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    return Axis(low - room, high + room)


def thin(steps: np.ndarray, values: np.ndarray, max_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and highest point of each of `max_bins` bins, in order; spikes stay.

    steps 1 2 3 4, values 5 9 7 6, 1 bin    steps 1 2, values 5 9

    A curve of at most two points per bin is returned whole. Steps (n) ascend; no value (n) is NaN.
    """
    if len(values) <= 2 * max_bins:
        return steps, values
    # Bins by number of points, not by step: steps may be missing after a resume.
    bins = np.array_split(np.arange(len(values)), max_bins)
    kept = {int(b[part(values[b])]) for b in bins for part in (np.argmin, np.argmax)}
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
    starts, stops = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[stops] - sums[starts]) / (stops - starts)
