"""Charts of a page: curves in a plot that the page stretches to any width.

A chart is drawn once. Its curves are paths over a square of 10,000 units, and its labels are text
of the page, so no width of a screen changes the size of a font or the width of a line.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, MaxNLocator

from train.report.html_page import short

_UNITS = 10_000
_SIMPLIFIED = 20.0
"""Distance in those units within which points are left out: two pixels of the widest plot."""
_MAX_DOTTED = 30
"""Largest number of points for which a curve gets dots."""
_LOG_RATIO, _LONG_LOG_RATIO = 8.0, 1e3
"""Ratios of largest to smallest value beyond which an axis is logarithmic, and beyond which such an
axis has ticks only at powers of ten."""

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

    def round_values(self, most: int, *, integer: bool = False) -> np.ndarray:
        """Returns the round values in the range that divide it into about `most` parts."""
        locator = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10], integer=integer)
        if self.is_log:
            subs = (1.0,) if self.high > _LONG_LOG_RATIO * self.low else (1.0, 2.0, 5.0)
            locator = LogLocator(subs=subs, numticks=2 * most)
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
    """Values (n); where one is NaN, a line has a gap, and there is no dot."""
    mark: str = "line"
    """What is drawn: a "line" through the points, "dots", or a "tick" at the foot of the plot."""

    def path(self, x_axis: Axis, y_axis: Axis) -> str:
        """Returns the curve as the path data of an SVG."""
        x = _UNITS * x_axis.place(self.x)
        if self.mark == "tick":
            return "".join(f"M{a:.0f} {_UNITS}v-400" for a in x)
        y = _UNITS * (1 - y_axis.place(self.y))
        if self.mark == "dots":
            # Lines of almost no length: their round ends are the dots.
            places = [place for place in zip(x, y, strict=True) if np.isfinite(place).all()]
            return "".join(f"M{a:.0f} {b:.0f}h1" for a, b in places)
        points = Path(np.stack([x, y], axis=1))
        # A run of 50,000 steps would be megabytes; extremes stay, so spikes do too.
        points.simplify_threshold = _SIMPLIFIED
        letters = {int(Path.MOVETO): "M", int(Path.LINETO): "L"}
        found = points.iter_segments(simplify=True)
        return "".join(f"{letters[int(code)]}{a:.0f} {b:.0f}" for (a, b), code in found)


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
    num_parts: int = 4,
) -> Chart:
    """Draws curves over steps.

    Args:
      words: Title, detail and description of the chart.
      curves: The curves.
      last_step: The step at which the axis ends.
      from_zero: Whether the vertical axis is linear and starts at 0.
      num_parts: Number of parts, about, into which ticks divide the steps.
    """
    values = np.concatenate([curve.y for curve in curves if curve.mark != "tick"])
    x_axis = Axis(0.0, float(max(last_step, 1)))
    y_axis = _fitting(values[np.isfinite(values)], from_zero=from_zero)
    steps, rounded = x_axis.round_values(num_parts, integer=True), y_axis.round_values(4)
    return Chart(
        *words,
        x_ticks=x_axis.ticks(steps, [f"{step:,.0f}" for step in steps]),
        y_ticks=y_axis.ticks(rounded, [short(value) for value in rounded.tolist()]),
        paths=[(one.kind, one.mark, one.path(x_axis, y_axis)) for one in curves],
    )


def curves(
    kind: str, steps: np.ndarray, values: np.ndarray, *, smoothed: bool = False
) -> list[Curve]:
    """Returns a curve of the finite values, or the smoothed one over a pale one; dots if few."""
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    found = [Curve(kind, steps, values)]
    if smoothed:
        found = [Curve("raw", steps, values), Curve(kind, steps, smooth(values))]
    is_dotted = len(steps) <= _MAX_DOTTED
    return found + [dataclasses.replace(one, mark="dots") for one in found if is_dotted]


def _fitting(values: np.ndarray, *, from_zero: bool) -> Axis:
    """Returns an axis on which the finite values are easy to read."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if from_zero:
        # An axis from 0 to 0 is none.
        return Axis(0.0, 1.08 * high or 1.0)
    if low > 0 and high > _LOG_RATIO * low:
        return Axis(low / 1.15, high * 1.15, is_log=True)
    size = max(-low, high)
    # Labels of four parts of a smaller range would be equal: the curve is constant to the eye.
    is_constant = high - low <= 0.005 * size
    room = (0.1 * size or 0.5) if is_constant else 0.06 * (high - low)
    return Axis(low - room, high + room)


def smoothing_window(num_points: int) -> int:
    """Returns how many points one smoothed point averages: odd, 2 % of all, 5 at least."""
    return 2 * max(num_points // 100, 2) + 1


def smooth(values: np.ndarray) -> np.ndarray:
    """Averages the `smoothing_window` points around each, fewer at the ends; (n), finite."""
    half = smoothing_window(len(values)) // 2
    # Running sums cost the same for any window; of distances from a value, they keep a constant.
    sums = np.concatenate([[0.0], np.cumsum(values - values[:1])])
    places = np.arange(len(values))
    starts, stops = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return values[:1] + (sums[stops] - sums[starts]) / (stops - starts)
