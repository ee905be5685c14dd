"""Draws charts with matplotlib as SVG; titles and legends are in the page."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from train.report.curve_series import finite, has_log_scale, smooth, thin
from train.report.markup import short
from train.report.styles import BLUE, FONTS, GREY, INK, ORANGE, PALE, PALE_BLUE, named

_POINTS_A_PIXEL = 0.75
_INCHES_A_PIXEL = 1 / 96
_FONT_PX = 11.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 22, 10, 36
"""Margins around the axes, in pixels."""
_MAX_MARKED = 30
"""Largest number of points for which a line gets markers."""
_PIXELS_A_TICK = 85
_PIXELS_A_BIN = 2
"""Pixels per bin of a thinned curve; a bin keeps its lowest and highest point."""
_MARK_HEIGHT = 0.03
"""Height of marks above the bottom of the axes, as a fraction of the axes."""
_SHORT_LOG = 1e3
"""Largest ratio of values for which a logarithmic axis gets ticks between powers of ten."""
_LOG_TICKS = {False: (1.0,), True: (1.0, 2.0, 5.0)}
"""Multiples of powers of ten that get a tick, by whether the axis is short."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": ["DejaVu Sans"],
    "font.size": _FONT_PX * _POINTS_A_PIXEL,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.labelcolor": GREY,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Width and height of a chart, in CSS pixels."""

    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Line:
    """The points of a curve by training step."""

    steps: np.ndarray
    """Training steps (n), ascending."""
    values: np.ndarray
    """Values (n); points that are not finite are not drawn."""
    color: str = BLUE
    """Colour of the line."""


def draw_loss(
    train: Line, validation: Line, skipped: np.ndarray, size: Size, last_step: int
) -> str:
    """Draws the loss of every training step, smoothed too, of validations, and skipped updates.

    Args:
      train: The loss of every training step.
      validation: The loss of every validation; may be empty.
      skipped: The training steps whose update was skipped.
      size: The size of the chart.
      last_step: The training step at which the axis ends.
    """
    # Without NaN, which smoothing would spread over its window.
    steps, values = finite(train.steps, train.values)

    def paint(axes: Axes) -> None:
        _plot(axes, Line(steps, values, PALE_BLUE), width=0.8)
        _plot(axes, Line(steps, smooth(values)), width=1.8)
        _plot(axes, validation, width=1.5)
        if len(skipped):
            # x in steps, y as a fraction of the axes: marks stay at the bottom at any scale.
            foot = axes.get_xaxis_transform()
            marks = np.full(len(skipped), _MARK_HEIGHT)
            axes.plot(skipped, marks, "|", color=INK, ms=7, mew=1.2, transform=foot)
        _scale(axes, np.concatenate([values, finite(validation.steps, validation.values)[1]]))

    return _draw(paint, size, last_step)


def draw_curve(
    line: Line, size: Size, last_step: int, *, smoothed: bool = False, from_zero: bool = False
) -> str:
    """Draws one curve.

    Args:
      line: The curve.
      size: The size of the chart.
      last_step: The training step at which the axis ends.
      smoothed: Whether to draw the points pale, and their smoothed curve over them.
      from_zero: Whether to draw a linear axis that starts at 0.
    """
    steps, values = finite(line.steps, line.values)

    def paint(axes: Axes) -> None:
        if smoothed:
            _plot(axes, Line(steps, values, PALE_BLUE), width=0.8)
        _plot(axes, Line(steps, smooth(values) if smoothed else values, line.color), width=1.5)
        if from_zero:
            # An axis from 0 to 0 is none.
            axes.set_ylim(0, 1.08 * values.max(initial=0.0) or 1.0)
            _number_ticks(axes)
        else:
            _scale(axes, values)

    return _draw(paint, size, last_step)


def draw_chunks(actions: np.ndarray, chunks: np.ndarray, every: int, size: Size) -> str:
    """Draws recorded values of one dimension as a line, and chunks as segments from dots.

    Args:
      actions: Recorded values (steps).
      chunks: Chunks sampled at each step (steps, horizon); values beyond the episode are not drawn.
      every: Steps between drawn chunks.
      size: The size of the chart.
    """
    num_steps = len(actions)
    starts = np.arange(0, num_steps, every)
    segments = [
        np.stack([np.arange(t, t + len(part)), part], axis=1)
        # The last chunks reach beyond the episode.
        for t, part in ((t, chunks[t, : num_steps - t]) for t in starts.tolist())
    ]

    def paint(axes: Axes) -> None:
        axes.plot(np.arange(num_steps), actions, color=INK, linewidth=1.0)
        axes.add_collection(LineCollection(segments, colors=ORANGE, linewidths=1.6))
        axes.plot(starts, chunks[starts, 0], "o", color=ORANGE, ms=2.6, linestyle="none")
        _pad(axes, np.concatenate([actions, *(segment[:, 1] for segment in segments)]))
        _number_ticks(axes)

    return _draw(paint, size, num_steps - 1)


def _plot(axes: Axes, line: Line, width: float) -> None:
    # Few points per pixel: a run of 50,000 steps would be megabytes of SVG.
    max_bins = round(axes.bbox.width / _POINTS_A_PIXEL / _PIXELS_A_BIN)
    steps, values = thin(*finite(line.steps, line.values), max_bins)
    style: dict[str, Any] = {"color": line.color, "linewidth": width}
    if len(values) <= _MAX_MARKED:
        style |= {"marker": "o", "markersize": 3.5, "clip_on": False}
    axes.plot(steps, values, **style)


def _scale(axes: Axes, values: np.ndarray) -> None:
    """Makes the axis logarithmic if that is easier to read, else linear."""
    if not has_log_scale(values):
        _pad(axes, values)
        _number_ticks(axes)
        return
    axes.set_yscale("log")
    axes.set_ylim(values.min() / 1.15, values.max() * 1.15)
    is_short = values.max() / values.min() < _SHORT_LOG
    axes.yaxis.set_major_locator(LogLocator(subs=_LOG_TICKS[is_short], numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())


def _pad(axes: Axes, values: np.ndarray) -> None:
    """Sets the axis to the range of the values, with some padding, never empty."""
    shown = values[np.isfinite(values)]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    # A constant curve still gets an axis.
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    axes.set_ylim(low - room, high + room)


def _number_ticks(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))


def draw_axes(paint: Callable[[Axes], None], size: Size) -> str:
    """Draws an SVG whose axes leave room for tick labels and one line below."""
    with rc_context(_STYLE):
        inches = size.width * _INCHES_A_PIXEL, size.height * _INCHES_A_PIXEL
        figure = Figure(figsize=inches, dpi=72, facecolor="none")
        FigureCanvasSVG(figure)
        paint(figure.add_axes(_inner(size), facecolor="none"))
        return _save(figure)


def _draw(paint: Callable[[Axes], None], size: Size, last_step: int) -> str:
    """Draws an SVG with training steps along its axis."""

    def paint_over_steps(axes: Axes) -> None:
        paint(axes)
        axes.set_xlim(0, max(last_step, 1))
        ticks = max(2, size.width // _PIXELS_A_TICK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel("step", labelpad=2)

    return draw_axes(paint_over_steps, size)


def _inner(size: Size) -> tuple[float, float, float, float]:
    width, height = size.width - _LEFT - _RIGHT, size.height - _TOP - _BOTTOM
    return (
        _LEFT / size.width,
        _BOTTOM / size.height,
        width / size.width,
        height / size.height,
    )


def _save(figure: Figure) -> str:
    buffer = io.StringIO()
    nothing: Sequence[str] = ("Creator", "Date", "Format", "Type")
    # Without a date, equal runs have equal pages.
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(nothing))
    return named(buffer.getvalue().replace("'DejaVu Sans'", FONTS))
