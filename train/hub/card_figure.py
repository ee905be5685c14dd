"""Draws the figure of a model card: how the run learned, and predicted against recorded actions."""

import io
import math
from collections.abc import Callable

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from pipeline.inspection.dataset_figure import STYLE
from pipeline.inspection.feature_names import split_unit
from train.metrics.validation_files import EpisodePrediction
from train.report.charts import smooth
from train.report.html_page import short
from train.report.report_inputs import RunFiles
from train.report.report_page import chunk_interval

_TRAINED, _VALIDATED, _PALE, _RECORDED = "#20639b", "#b8572a", "#ccd2da", "#1f2630"
_PANELS_PER_ROW, _MAX_DIMS = 4, 16
_WIDTH, _HEIGHT = 11.0, 2.1
"""Width of the figure, and height of one of its rows, in inches."""
_LOG_RATIO = 8.0
"""Ratio of the largest to the smallest loss beyond which the axis is logarithmic."""
_MARGIN, _BETWEEN = 0.55, 0.65
"""Room around the axes and between them, for ticks and titles, in inches."""

Draw = Callable[[Axes], object]


def draw_card_figure(run: RunFiles) -> bytes | None:
    """Returns the figure as a PNG, 1100 pixels wide; None if the run has nothing to draw.

    Loss and action error are over training steps; below them are, for at most 16 dimensions, the
    recorded actions of an episode and the chunks that the policy predicts along it.
    """
    rows = [one for one in (_training(run), *_episode(run.episode)) if one]
    if not rows:
        return None
    height = len(rows) * (_HEIGHT + _BETWEEN) + _MARGIN
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height), dpi=100)
        sides = {"left": _MARGIN / _WIDTH, "right": 1 - 0.15 / _WIDTH}
        bottom, top = _MARGIN / height, 1 - 0.35 / height
        grid = figure.add_gridspec(
            len(rows), 1, hspace=_BETWEEN / _HEIGHT, bottom=bottom, top=top, **sides
        )
        for number, row in enumerate(rows):
            places = len(row) if number == 0 and run.metrics else _PANELS_PER_ROW
            cells = grid[number].subgridspec(1, places, wspace=0.25 if places > 2 else 0.15)
            for place, draw in enumerate(row):
                draw(figure.add_subplot(cells[place]))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _training(run: RunFiles) -> list[Draw]:
    panels: list[Draw] = [lambda axes: _draw_loss(axes, run)] if run.metrics else []
    return [*panels, *([lambda axes: _draw_error(axes, run)] if run.validation else [])]


def _draw_loss(axes: Axes, run: RunFiles) -> None:
    steps = np.array([one.step for one in run.metrics], np.float64)
    loss = np.array([one.loss for one in run.metrics], np.float64)
    # A skipped update has no finite loss.
    steps, loss = steps[np.isfinite(loss)], loss[np.isfinite(loss)]
    axes.plot(steps, loss, color=_PALE, linewidth=0.7)
    axes.plot(steps, smooth(loss), color=_TRAINED, linewidth=1.3, label="training")
    if run.validation:
        found = [(one.step, one.loss) for one in run.validation]
        axes.plot(*zip(*found, strict=True), "o-", color=_VALIDATED, markersize=4, label=_of(run))
    if len(loss) and 0 < _LOG_RATIO * loss.min() < loss.max():
        axes.set_yscale("log")
        # As plain text: the labels of a logarithmic axis would be formulas.
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _finish(axes, "Loss", "training step")


def _draw_error(axes: Axes, run: RunFiles) -> None:
    steps = [one.step for one in run.validation]
    errors = [one.action_error for one in run.validation]
    axes.plot(steps, errors, "o-", color=_VALIDATED, markersize=4, label=_of(run))
    constant = run.validation[-1].constant_error
    if not math.isnan(constant):
        axes.axhline(constant, color=_RECORDED, linestyle="--", linewidth=1, label="best constant")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1.03 * max(steps))
    _finish(axes, "Error of normalised actions", "training step")


def _of(run: RunFiles) -> str:
    return "held-out episodes" if run.holds_out else "validation"


def _episode(episode: EpisodePrediction | None) -> list[list[Draw]]:
    """Returns rows of panels, one for each dimension of the actions."""
    if episode is None:
        return []
    of = episode
    panels: list[Draw] = [
        lambda axes, dim=dim: _draw_dim(axes, of, dim) for dim in range(len(of.dims))[:_MAX_DIMS]
    ]
    starts = range(0, len(panels), _PANELS_PER_ROW)
    return [panels[start : start + _PANELS_PER_ROW] for start in starts]


def _draw_dim(axes: Axes, episode: EpisodePrediction, dim: int) -> None:
    num_steps, horizon, _ = episode.chunks.shape
    axes.plot(episode.actions[:, dim], color=_RECORDED, linewidth=0.9, label="recorded")
    for start in range(0, num_steps, chunk_interval(num_steps, horizon)):
        steps = np.arange(start, min(start + horizon, num_steps))
        values = episode.chunks[start, : len(steps), dim]
        label = "predicted" if start == 0 else None
        axes.plot(steps, values, ".-", color=_VALIDATED, markersize=3, linewidth=1, label=label)
    label, unit = split_unit(episode.dims[dim])
    legend = dim == 0
    _finish(axes, f"{label}, {unit}" if unit else label, "step of an episode", legend=legend)


def _finish(axes: Axes, title: str, x_label: str, *, legend: bool = True) -> None:
    axes.set_title(title, loc="left", fontsize=8.5)
    axes.set_xlabel(x_label)
    if legend:
        axes.legend(frameon=False)
