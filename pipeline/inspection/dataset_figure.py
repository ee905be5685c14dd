"""Draws a dataset or an episode: strips of camera images, then a panel for each dimension."""

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.data.dataset import Dataset, excluded_note
from pipeline.data.schema import EPISODES
from pipeline.inspection.dataset_summary import (
    episode_tasks,
    plotted_features,
    read_images,
    spread,
)
from pipeline.inspection.feature_names import dim_names, short_name, split_unit
from pipeline.terminal import count

MAX_EPISODES = 512
"""Maximum number of episodes in the histograms, spread evenly over the dataset."""
MAX_PANELS = 16
"""Maximum number of dimensions that are drawn of a feature."""
MAX_TASKS = 6
"""Maximum number of tasks with images, spread evenly over all tasks."""
_MAX_BEHIND = 16
"""Maximum number of episodes that are drawn behind the curve."""
_NUM_BINS = 40
_PANELS_PER_ROW = 4
_WIDTH, _MARGIN, _GAP = 14.0, 0.4, 0.55
"""Width of the figure, its margin, and the gap between axes for the labels of the right one, in
inches."""
_INK, _GREY, _PALE = "#1f2630", "#6b7480", "#ccd2da"
_CURVE, _BARS, _MARK = "#20639b", "#9dbad5", "#b8572a"
_DEPTH_COLOURS = colormaps["viridis"].with_extremes(bad="white")
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 7.5,
    "text.color": _INK,
    "text.usetex": False,
    "text.parse_math": False,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlepad": 4.0,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
}
_UNDRAWABLE = r"Glyph \d+ .* missing from|Matplotlib currently does not support"
"""Warnings about characters that the font lacks; each is drawn as a box."""
_ORIENTATIONS = {
    "upright": "as the camera sees the world",
    "flipped_vertically": "upside down",
    "rotated_180": "upright, but mirrored left to right against the world",
}


class Row(NamedTuple):
    """Axes of equal width beside each other, with room for their titles and labels, in inches."""

    above: float
    height: float
    below: float
    draws: Sequence[Callable[[Axes], object] | None]
    """Functions that draw into one of the axes each; None leaves an empty place."""


class Panel(NamedTuple):
    """The values of one dimension."""

    name: str
    """Name of the dimension with its unit, such as `x_m`."""
    bounds: tuple[float, float, float, float]
    """Minimum, maximum, 1st and 99th percentile over the dataset."""
    counted: np.ndarray
    """float64 (n): values in the histogram."""
    curves: Sequence[np.ndarray]
    """float64 (t): values of other episodes, then of the episode that is shown."""
    step_s: float
    changes: Sequence[int]
    """Steps at which the instruction changes."""
    is_lowest: bool
    """Whether no panel is below it."""


def draw_figure(dataset: Dataset, episode: int | None) -> bytes:
    """Draws `make_figure` as a PNG, 1680 pixels wide."""
    buffer = io.BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", _UNDRAWABLE, UserWarning)
        make_figure(dataset, episode).savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def make_figure(dataset: Dataset, episode: int | None) -> Figure:
    """Makes a figure from at most 512 episode records and a few dozen images.

    Args:
      dataset: The opened directory.
      episode: Index of the episode to show. None: images of several tasks, and the curves of an
        episode of median length.

    Raises:
      DataError: A record or image is corrupt.
    """
    rows = [_title(dataset, episode), *_cameras(dataset, episode), *_panels(dataset, episode)]
    # Known heights, not a constrained layout: its solver, kiwi 1.5.1, aborts the process for rows
    # of very different heights, and takes a third of the time.
    heights = [size for row in rows for size in (row.above, row.height, row.below)]
    height = sum(heights) + 2 * _MARGIN
    figure = Figure(figsize=(_WIDTH, height), dpi=120)
    x, y = _MARGIN / _WIDTH, _MARGIN / height
    sides: dict[str, Any] = {"left": x + _GAP / _WIDTH, "right": 1 - x, "bottom": y, "top": 1 - y}
    grid = figure.add_gridspec(len(heights), height_ratios=heights, hspace=0, **sides)
    for number, row in enumerate(rows):
        places = len(row.draws)
        cells = grid[3 * number + 1].subgridspec(1, places, wspace=_GAP / _width(places))
        for place, draw in enumerate(row.draws):
            if draw is not None:
                draw(figure.add_subplot(cells[place]))
    return figure


def _width(places: int) -> float:
    """Returns the width in inches of each of the axes of a row."""
    return (_WIDTH - 2 * _MARGIN) / places - _GAP


def _text_row(texts: Sequence[tuple[str, str]], size: int, *, rule: bool = False) -> Row:
    """Makes a row of bold texts, each above a grey note; `rule` draws a line between them."""
    width = _width(len(texts))
    titles = ["\n".join(_wrap(line, width, size) for line in t.split("\n")) for t, _ in texts]
    notes = [_wrap(note, width, 8) for _, note in texts]
    draws = [
        partial(_draw_text, title=title, note=note, size=size, rule=rule)
        for title, note in zip(titles, notes, strict=True)
    ]
    above = 1.4 * size * max(1 + title.count("\n") for title in titles) + 16 * rule
    below = 6 + 11 * any(notes) * max(1 + note.count("\n") for note in notes)
    return Row(above / 72, 0.01, below / 72, draws)


def _wrap(text: str, width: float, size: int) -> str:
    """Wraps text to `width` inches at `size` points."""
    # 72 points are an inch. A Latin character is at most 0.6 em wide, others are at most 1 em.
    return textwrap.fill(text, int(width * 72 / size / (0.6 if text.isascii() else 1.0)))


def _draw_text(axes: Axes, *, title: str, note: str, size: int, rule: bool) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=rule, color=_PALE)
    axes.set_title(title, loc="left", size=size, weight="bold")
    axes.set_xlabel(note, size=8, loc="left")


def _title(dataset: Dataset, episode: int | None) -> Row:
    """Makes a row with the name of the dataset or the episode's instructions, and its size."""
    manifest = dataset.manifest
    hz = manifest.conventions.control_frequency_hz
    if episode is None:
        numbers = (dataset.num_episodes, dataset.num_steps, len(manifest.tasks))
        counts = ", ".join(map(count, numbers, ("episode", "step", "task")))
        counts += excluded_note(manifest)
        return _text_row([(manifest.name, f"{counts}, {hz:g} Hz")], 15)
    first, *others = episode_tasks(dataset, episode)
    title = "\n".join([first["text"], *(f"from step {t['step']}: {t['text']}" for t in others)])
    steps = manifest.episode_lengths[episode]
    note = f"{manifest.name}, episode {episode}: {steps:,} steps, {steps / hz:.1f} s"
    return _text_row([(title, note)], 15 if len(title) < 200 else 11)


def _cameras(dataset: Dataset, episode: int | None) -> list[Row]:
    """Makes a row for each camera of an episode, or rows of tasks in up to two columns.

    A task is shown by the first episode that begins with it.
    """
    manifest = dataset.manifest
    features = manifest.schema.features()
    keys = [f.key for column, f in features if column.is_camera(f) or f.kind == "depth"]
    if not keys:
        return []
    orientation = manifest.conventions.image_orientation
    note = f"Pixels as stored; {orientation}: {_ORIENTATIONS[orientation]} (docs/format.md)."
    if episode is not None:
        strips = [_strip_row(dataset, [(key, episode)], 8) for key in keys]
        return [_text_row([("Cameras", note)], 11, rule=True), *strips]
    kept = dataset.kept_episodes
    begun, places = np.unique(np.array(manifest.episode_tasks)[kept], return_index=True)
    some = spread(len(begun), MAX_TASKS)
    tasks = begun[some].tolist()
    first = dict(zip(tasks, kept[places[some]].tolist(), strict=True))
    if len(tasks) < len(manifest.tasks):
        note = f"{len(tasks)} of {len(manifest.tasks):,} tasks, evenly spread. {note}"
    rows = [_text_row([("Cameras", note)], 11, rule=True)]
    # More than three cameras need the whole width.
    beside = 2 if len(keys) <= 3 and len(tasks) > 1 else 1
    for place in range(0, len(tasks), beside):
        shown = [(task, first[task]) for task in tasks[place : place + beside]]
        titles = [(f"{manifest.tasks[task]} (episode {number})", "") for task, number in shown]
        titles += [("", "")] * (beside - len(shown))
        strips = [(key, number) for _, number in shown for key in keys]
        row = _strip_row(dataset, strips, max(1, 12 // beside // len(keys)), beside * len(keys))
        rows += [_text_row(titles, 9), row]
    return rows


def _strip_row(
    dataset: Dataset, strips: Sequence[tuple[str, int]], num_images: int, places: int = 1
) -> Row:
    """Reads strips of up to `num_images` images, each of a camera's feature in an episode."""
    draws: list[Any] = [None] * places
    height = 0.0
    for place, (key, episode) in enumerate(strips):
        steps = spread(dataset.manifest.episode_lengths[episode], num_images)
        start = int(dataset.episode_starts[episode])
        images = read_images(dataset, key, [start + step for step in steps])
        strip = partial(_draw_strip, images=images, steps=steps, num_images=num_images)
        draws[place] = partial(strip, name=short_name(key))
        width = _width(places) / num_images
        height = max(height, width * images.shape[1] / images.shape[2])
    return Row(0.2, height, 0.25, draws)


def _draw_strip(
    axes: Axes, *, name: str, images: np.ndarray, steps: Sequence[int], num_images: int
) -> None:
    """Draws images (n h w c) beside each other; depth in colours, white without a reading."""
    is_depth = images.dtype == np.float32
    gap = max(1, images.shape[2] // 25)
    spaces = [(0, 0), (0, 0), (0, gap), (0, 0)]
    strip = np.hstack([*np.pad(images, spaces, constant_values=0 if is_depth else 255)])
    if is_depth:
        readings = images[images > 0]
        low, high = (readings.min(), readings.max()) if readings.size else (0.0, 0.0)
        name = f"{name}, {low:.2f} to {high:.2f} m"
        plane = np.ma.masked_equal(strip[:, :, 0], 0.0)
        # Nearest: colours between near and far would show surfaces that are not there.
        axes.imshow(plane, _DEPTH_COLOURS, vmin=low, vmax=high, interpolation="nearest")
    else:
        axes.imshow(strip, interpolation="antialiased")
    axes.set_title(name, loc="left", size=7.5, color=_GREY)
    lefts = (images.shape[2] + gap) * np.arange(num_images + 1) - 0.5
    axes.set(yticks=[], anchor="NW", xlim=(lefts[0], lefts[-1] - gap))
    axes.set_xticks(lefts[: len(steps)], [f"step {step}" for step in steps], ha="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def select_episodes(kept: np.ndarray, shown: int) -> tuple[list[int], list[int]]:
    """Selects all episodes, or a sample, for the histograms, and those drawn behind `shown`.

    Args:
      kept: int64 (n): episodes that are not excluded.
      shown: The episode that is drawn in front.
    """
    counted = kept[spread(len(kept), MAX_EPISODES)].tolist()
    behind = [counted[place] for place in spread(len(counted), _MAX_BEHIND)]
    return counted, [episode for episode in behind if episode != shown]


def _panels(dataset: Dataset, episode: int | None) -> list[Row]:
    """Makes rows of panels under the name of their feature."""
    lengths, kept = np.diff(dataset.episode_starts), dataset.kept_episodes
    if episode is None:
        # An episode that exists, where the median of lengths may lie between two.
        order = np.argsort(lengths[kept], kind="stable")
        episode = int(kept[order[len(kept) // 2]])
    counted, behind = select_episodes(kept, episode)
    steps = int(lengths[counted].sum())
    over = f"all {steps:,} steps"
    if len(counted) < len(kept):
        of_all = f"{len(counted)} of {len(kept):,} episodes"
        over = f"a sample: {steps:,} steps of {of_all}, evenly spread"
    others = f"; grey: {len(behind)} other episodes" if behind else ""
    note = (
        f"Blue: episode {episode}{others}. Bars: {over}, with the share of the longest one. "
        "Dashed: 1st and 99th percentile of the dataset."
    )
    if len(episode_tasks(dataset, episode)) > 1:
        note += " Dotted: a new instruction."
    rows = []
    for key, panels in read_panels(dataset, episode).items():
        num_dims = len(dim_names(dataset.feature(key)))
        if num_dims > len(panels):
            note = f"Drawn: the first {len(panels)} of {num_dims} dimensions. {note}"
        rows.append(_text_row([(key, note.strip())], 11, rule=True))
        note = ""
        for start in range(0, len(panels), _PANELS_PER_ROW):
            some = panels[start : start + _PANELS_PER_ROW]
            draws: list[Any] = [partial(draw_panel, panel=panel) for panel in some]
            draws += [None] * (_PANELS_PER_ROW - len(some))
            below = 0.42 if any(panel.is_lowest for panel in some) else 0.22
            rows.append(Row(0.2, 1.0, below, draws))
    return rows


def read_panels(dataset: Dataset, shown: int) -> dict[str, list[Panel]]:
    """Reads the values of the action and of the observations that have statistics, by feature key.

    Raises:
      DataError: A record is corrupt.
    """
    counted, behind = select_episodes(dataset.kept_episodes, shown)
    values: dict[str, dict[int, np.ndarray]] = {
        feature.key: {} for feature in plotted_features(dataset)
    }
    for episode in {shown, *counted} if values else ():
        record: Any = dataset.columns[EPISODES].read(episode)
        for key, episodes in values.items():
            # A copy: a view would keep the whole record in memory.
            flat = record[key].reshape(len(record[key]), -1)[:, :MAX_PANELS]
            episodes[episode] = flat.astype(np.float64)
    panels = {}
    for key, episodes in values.items():
        moments = dataset.statistics[key]
        fields = (moments.min, moments.max, moments.p01, moments.p99)
        names = dim_names(dataset.feature(key))[:MAX_PANELS]
        bounds = np.stack([np.ravel(field) for field in fields], 1).tolist()
        together = np.concatenate([episodes[n] for n in counted])
        panels[key] = [
            Panel(
                name=name or short_name(key),
                bounds=tuple(bounds[dim]),
                counted=together[:, dim],
                curves=[episodes[n][:, dim] for n in (*behind, shown)],
                step_s=1 / dataset.manifest.conventions.control_frequency_hz,
                changes=[task["step"] for task in episode_tasks(dataset, shown)[1:]],
                is_lowest=dim + _PANELS_PER_ROW >= len(names),
            )
            for dim, name in enumerate(names)
        ]
    return panels


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


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Draws curves over time, and beside them a histogram on the same y axis."""
    low, high = axis_limits(*panel.bounds)
    least, most, *percentiles = panel.bounds
    *others, curve = panel.curves
    seconds = np.arange(len(curve)) * panel.step_s
    axes.plot(seconds, curve, color=_CURVE, linewidth=1.2, zorder=4)
    # Cut to the curve's length, and NaN after each, so that one line draws all.
    cut = [np.append(other[: len(curve)], np.nan) for other in others]
    times = [np.arange(len(other)) * panel.step_s for other in cut]
    axes.plot(
        *(np.concatenate([[], *x]) for x in (times, cut)), color=_PALE, linewidth=0.6, zorder=1
    )
    for step in panel.changes:
        axes.axvline(step * panel.step_s, color=_INK, linewidth=0.7, dashes=(1, 1))
    end = max(float(seconds[-1]), panel.step_s)
    # Divided by all values, also those beyond the limits.
    shares = np.histogram(panel.counted, _NUM_BINS, (low, high))[0] / len(panel.counted)
    peak = max(float(shares.max()), 1e-9)
    edges = np.linspace(low, high, _NUM_BINS + 1)
    # The histogram has the part of the axes behind the end of the curve.
    bars = end * (1.05 + 0.2 * shares / peak)
    axes.stairs(
        bars,
        edges,
        baseline=1.05 * end,
        orientation="horizontal",
        fill=True,
        color=_BARS,
        linewidth=0,
    )
    for percentile in percentiles:
        axes.axhline(percentile, color=_MARK, linewidth=0.7, dashes=(4, 2), zorder=1.5)
    # Wide enough for the whole curve, which may have outliers.
    bottom, top = min(low, float(curve.min())), max(high, float(curve.max()))
    room = 0.06 * (top - bottom)
    axes.set(xlim=(0, 1.25 * end), ylim=(bottom - room, top + room))
    axes.locator_params(axis="y", nbins=4)
    axes.set_xticks(
        [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, end) if tick <= end]
    )
    axes.spines["bottom"].set_bounds(0, end)
    axes.tick_params(labelbottom=panel.is_lowest)
    axes.set_xlabel("time (s)" if panel.is_lowest else "", labelpad=1, loc="left")
    label, unit = split_unit(panel.name)
    title = f"{label} ({unit})" if unit else label
    axes.set_title(title, loc="left", size=8.5, weight="bold")
    beyond = [f"min {least:.3g}"] * (least < low) + [f"max {most:.3g}"] * (most > high)
    corner: dict[str, Any] = {"transform": axes.transAxes, "size": 7, "ha": "right"}
    axes.text(1, 1.04, "   ".join(beyond), color=_MARK, **corner)
    axes.text(1, -0.05, f"{100 * peak:.0f} %", color=_GREY, va="top", **corner)
