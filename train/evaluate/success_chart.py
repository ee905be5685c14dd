"""Draws success rates with their intervals, one row per task."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from train.evaluate.success_rates import Rate
from train.report.charts import Size, draw_axes
from train.report.styles import BLUE, INK, ORANGE

_ROW, _AROUND = 30, 56
"""Height in pixels of a row, and of the margins above and below all rows."""
_COLORS = (BLUE, ORANGE)
_APART = 0.26
"""Vertical distance between the policies of a comparison, as a fraction of a row."""


def chart_size(width: int, num_rows: int) -> Size:
    """Returns the size of a chart with so many rows."""
    return Size(width, _AROUND + _ROW * num_rows)


def draw_rates(names: Sequence[str], rates: Sequence[Sequence[Rate]], size: Size) -> str:
    """Draws a dot for each rate, and a line over its 95 % interval.

    Args:
      names: Names of the rows, from the top.
      rates: For each policy, one rate per row.
      size: The size of the chart.
    """

    def paint(axes: Axes) -> None:
        middle = (len(rates) - 1) / 2
        for number, (of_policy, color) in enumerate(zip(rates, _COLORS, strict=False)):
            for row, rate in enumerate(of_policy):
                # Policies of a comparison lie side by side within the row.
                y = row + _APART * (number - middle)
                low, high = rate.interval
                axes.plot([100 * low, 100 * high], [y, y], color=color, linewidth=1.6)
                axes.plot([100 * rate.value], [y], "o", color=color, ms=5, clip_on=False)
        axes.set_xlim(0, 100)
        # Upside down: the first row is at the top.
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names, color=INK)
        axes.tick_params(axis="y", pad=6)  # otherwise a dot at 0 touches them
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_xlabel("success", labelpad=2)

    return draw_axes(paint, size)
