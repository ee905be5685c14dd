"""Draws a figure with matplotlib: strips of images, then a panel for each dimension."""

import dataclasses
import io
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.inspection.feature_names import split_unit
from pipeline.inspection.figure_contents import FigureContents
from pipeline.inspection.image_strips import Strip
from pipeline.inspection.value_panels import NUM_BINS, Panel, PanelGroup

DPI = 120
WIDTH = 14.0
MARGIN = 0.5
INNER_WIDTH = WIDTH - 2 * MARGIN
INK, GREY, PALE = "#1f2630", "#6b7480", "#ccd2da"
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "text.usetex": False,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.labelcolor": GREY,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.facecolor": "white",
    **{f"{axis}tick.color": GREY for axis in "xy"},
    **{f"{axis}tick.labelsize": 7.5 for axis in "xy"},
    **{f"{axis}tick.major.size": 2.5 for axis in "xy"},
    **{f"{axis}tick.major.width": 0.6 for axis in "xy"},
}
_DEPTH_COLOURS = colormaps["viridis"].with_extremes(bad="white")
_UNDRAWABLE = r"Glyph \d+ .* missing from|Matplotlib currently does not support"
"""Warnings about characters that the font lacks; each is drawn as a box."""
_LONG_TITLE = 200
"""Titles with at least this many characters are set smaller."""


class Page:
    """A figure whose coordinates are inches from its top left corner."""

    def __init__(self, figure: Figure, height: float) -> None:
        self._figure = figure
        self._height = height

    def text(self, x: float, y: float, text: str, **style: Any) -> float:
        """Places text with its upper left corner at (x, y); returns its width."""
        style = {"va": "top", "linespacing": 1.3} | style
        placed = self._figure.text(x / WIDTH, 1 - y / self._height, text, **style)
        # The width in pixels, which only the drawn text knows.
        return placed.get_window_extent().width / DPI

    def line(self, y: float) -> None:
        """Draws a hairline across the whole width."""
        ends = [MARGIN / WIDTH, 1 - MARGIN / WIDTH]
        height = [1 - y / self._height] * 2
        self._figure.add_artist(Line2D(ends, height, color=PALE, linewidth=0.8))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Adds axes with their upper left corner at (x, y)."""
        # matplotlib counts from the bottom, this page from the top.
        bottom = 1 - (y + height) / self._height
        return self._figure.add_axes((x / WIDTH, bottom, width / WIDTH, height / self._height))


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of the page, as wide as the page; blocks are drawn below each other."""

    height: float
    draw: Callable[[Page, float], None]
    """Called with the page and the block's upper edge."""


def draw_page(blocks: Sequence[Block]) -> bytes:
    """Draws blocks as a PNG, 1680 pixels wide."""
    height = sum(block.height for block in blocks) + 2 * MARGIN
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", _UNDRAWABLE, UserWarning)
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        # A canvas of its own, without pyplot's global state.
        FigureCanvasAgg(figure)
        page, top = Page(figure, height), MARGIN
        for block in blocks:
            block.draw(page, top)
            top += block.height
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def wrap(text: str, width: float, size: float) -> list[str]:
    """Wraps text to `width` inches at `size` points, with at most 0.6 em per character."""
    # 72 points are an inch.
    return textwrap.wrap(text, max(8, int(width * 72 / (0.6 * size)))) or [""]


def title_block(title: Sequence[str], subtitle: str) -> Block:
    """Makes the page's title, with one paragraph per text."""
    size = 15.0 if len(" ".join(title)) < _LONG_TITLE else 11.0
    lines = [line for text in title for line in wrap(text, INNER_WIDTH, size)]
    title_height = 1.4 * size / 72 * len(lines)

    def draw(page: Page, top: float) -> None:
        page.text(MARGIN, top, "\n".join(lines), size=size, weight="bold")
        page.text(MARGIN, top + title_height + 0.05, subtitle, size=10, color=GREY)

    return Block(title_height + 0.35, draw)


def heading_block(heading: str, note: str) -> Block:
    """Makes a line across the page with a heading and a note below it."""
    lines = wrap(note, INNER_WIDTH, 7.5)

    def draw(page: Page, top: float) -> None:
        page.line(top + 0.1)
        page.text(MARGIN, top + 0.2, heading, size=11, weight="bold")
        page.text(MARGIN, top + 0.43, "\n".join(lines), size=8, color=GREY)

    return Block(0.45 + (0.15 * len(lines) + 0.08 if note else 0.0), draw)


_CURVE, _BARS, _MARK = "#20639b", "#9dbad5", "#b8572a"

_STRIP_GAP, _CAMERA_GAP, _IMAGE_GAP = 0.4, 0.15, 0.05
_NOTE_WIDTH = 0.75
_MIN_IMAGES = 6
"""A strip with fewer images draws them at the size that this many would have."""

_PANELS_PER_ROW = 4
_PANEL_WIDTH, _PANEL_HEIGHT = INNER_WIDTH / _PANELS_PER_ROW, 1.62
_AXES_LEFT, _AXES_TOP, _AXES_HEIGHT = 0.58, 0.22, 1.05
_HISTOGRAM_GAP, _HISTOGRAM_WIDTH = 0.08, 0.5
_CURVE_WIDTH = _PANEL_WIDTH - _AXES_LEFT - _HISTOGRAM_GAP - _HISTOGRAM_WIDTH


def draw_figure(contents: FigureContents) -> bytes:
    """Draws the figure as a PNG, 1680 pixels wide."""
    blocks = [title_block(contents.title, contents.subtitle)]
    if contents.strips:
        blocks += [heading_block("Cameras", contents.images_note), *_strip_blocks(contents.strips)]
    for number, group in enumerate(contents.groups):
        notes = [f"Drawn: {group.note}."] if group.note else []
        notes += [contents.panels_note] if number == 0 else []
        blocks += [heading_block(group.key, " ".join(notes)), _panels_block(group, contents)]
    return draw_page(blocks)


def _strip_blocks(strips: Sequence[Strip]) -> list[Block]:
    """Places strips of tasks in two columns, and strips of cameras in one."""
    beside = 2 if len(strips) > 1 and strips[0].heading else 1
    return [
        _strip_block(strips[start : start + beside], beside)
        for start in range(0, len(strips), beside)
    ]


def _strip_block(strips: Sequence[Strip], beside: int) -> Block:
    width = (INNER_WIDTH - _STRIP_GAP * (beside - 1)) / beside
    headings = [wrap(strip.heading, width - _NOTE_WIDTH, 9.0) for strip in strips]
    heading_height = 0.17 * max(len(h) for h in headings) if strips[0].heading else 0.0
    image_height = max(_image_height(strip, width) for strip in strips)

    def draw(page: Page, top: float) -> None:
        for place, (strip, heading) in enumerate(zip(strips, headings, strict=True)):
            left = MARGIN + place * (width + _STRIP_GAP)
            page.text(left, top, "\n".join(heading), size=9, weight="bold")
            page.text(left + width, top, strip.note, size=7.5, color=GREY, ha="right")
            _draw_images(page, strip, (left, top + heading_height), width)

    return Block(heading_height + image_height + 0.5, draw)


def _image_width(strip: Strip, width: float) -> float:
    num_cameras, num_images = len(strip.cameras), sum(map(len, strip.cameras.values()))
    gaps = _IMAGE_GAP * (num_images - num_cameras) + _CAMERA_GAP * (num_cameras - 1)
    return (width - gaps) / max(num_images, _MIN_IMAGES)


def _image_height(strip: Strip, width: float) -> float:
    shapes = [image.shape for images in strip.cameras.values() for image in images.values()]
    return _image_width(strip, width) * max(shape[0] / shape[1] for shape in shapes)


def _draw_images(page: Page, strip: Strip, corner: tuple[float, float], width: float) -> None:
    """Draws each camera's name above its images, and the captions below."""
    left, top = corner
    size = _image_width(strip, width)
    for name, images in strip.cameras.items():
        depth = _depth_scale(images.values())
        label = f"{name}, {depth[0]:.2f} to {depth[1]:.2f} m" if depth else name
        page.text(left, top + 0.02, label, size=7.5, color=GREY)
        for step, image in images.items():
            height = size * image.shape[0] / image.shape[1]
            axes = page.axes(left, top + 0.19, size, height)
            _show_image(axes, image, depth)
            axes.set_axis_off()
            page.text(left, top + 0.19 + height + 0.03, f"step {step}", size=7, color=GREY)
            left += size + _IMAGE_GAP
        left += _CAMERA_GAP - _IMAGE_GAP


def _depth_scale(images: Iterable[np.ndarray]) -> tuple[float, float] | None:
    """Returns the least and the greatest reading of depth images in m; None for a camera's."""
    depth = [image[image > 0] for image in images if image.dtype == np.float32]
    if not depth:
        return None
    readings = np.concatenate(depth)
    return (float(readings.min()), float(readings.max())) if readings.size else (0.0, 0.0)


def _show_image(axes: Axes, image: np.ndarray, depth: tuple[float, float] | None) -> None:
    """Draws an image; depth by colours, from near to far, and white where there is no reading."""
    if depth is None:
        axes.imshow(image, aspect="auto", interpolation="antialiased")
        return
    plane = np.ma.masked_equal(image[:, :, 0], 0.0)
    # Nearest: colours between near and far would show surfaces that are not there.
    axes.imshow(
        plane,
        cmap=_DEPTH_COLOURS,
        vmin=depth[0],
        vmax=depth[1],
        aspect="auto",
        interpolation="nearest",
    )


def _panels_block(group: PanelGroup, contents: FigureContents) -> Block:
    def draw(page: Page, top: float) -> None:
        for number, panel in enumerate(group.panels):
            row, column = divmod(number, _PANELS_PER_ROW)
            corner = MARGIN + column * _PANEL_WIDTH, top + row * _PANEL_HEIGHT
            curve = _draw_panel(page, panel, contents, corner)
            if number + _PANELS_PER_ROW >= len(group.panels):
                curve.set_xlabel("time (s)", size=7.5, labelpad=1)

    rows = -(-len(group.panels) // _PANELS_PER_ROW)
    return Block(rows * _PANEL_HEIGHT + 0.15, draw)


def _draw_panel(
    page: Page, panel: Panel, contents: FigureContents, corner: tuple[float, float]
) -> Axes:
    """Draws a curve over time and its histogram on the same y axis; returns the curve's axes."""
    left, top = corner[0] + _AXES_LEFT, corner[1] + _AXES_TOP
    _draw_label(page, panel, corner)
    curve = page.axes(left, top, _CURVE_WIDTH, _AXES_HEIGHT)
    _draw_curve(curve, panel, contents)
    left += _CURVE_WIDTH + _HISTOGRAM_GAP
    histogram = page.axes(left, top, _HISTOGRAM_WIDTH, _AXES_HEIGHT)
    _draw_histogram(histogram, panel)
    for axes in (curve, histogram):
        axes.set_ylim(*_padded(panel))
        for percentile in (panel.p01, panel.p99):
            axes.axhline(percentile, color=_MARK, linewidth=0.7, dashes=(4, 2), zorder=1.5)
    return curve


def _draw_label(page: Page, panel: Panel, corner: tuple[float, float]) -> None:
    left, top = corner[0] + _AXES_LEFT, corner[1]
    label, unit = split_unit(panel.name)
    width = page.text(left, top + 0.01, label, size=8.5, weight="bold")
    page.text(left + width + 0.06, top + 0.018, unit and f"({unit})", size=7.5, color=GREY)
    right = corner[0] + _PANEL_WIDTH
    page.text(right, top + 0.02, _beyond(panel), size=7, color=_MARK, ha="right")


def _beyond(panel: Panel) -> str:
    """Formats the extremes of the dataset that are beyond the axis."""
    low, high = panel.limits
    words = [f"min {panel.min:.3g}"] if panel.min < low else []
    return "   ".join([*words, f"max {panel.max:.3g}"] if panel.max > high else words)


def _padded(panel: Panel) -> tuple[float, float]:
    """Widens the limits to the whole curve, with a small margin."""
    low = min(panel.limits[0], float(panel.curve.min()))
    high = max(panel.limits[1], float(panel.curve.max()))
    room = 0.06 * (high - low)
    return low - room, high + room


def _draw_curve(axes: Axes, panel: Panel, contents: FigureContents) -> None:
    for other in panel.others:
        seconds = np.arange(len(other)) * contents.step_s
        axes.plot(seconds, other, color=PALE, linewidth=0.6, zorder=1)
    seconds = np.arange(len(panel.curve)) * contents.step_s
    axes.plot(seconds, panel.curve, color=_CURVE, linewidth=1.2, zorder=4)
    for step in contents.changes:
        axes.axvline(step * contents.step_s, color=INK, linewidth=0.7, dashes=(1, 1))
    axes.set_xlim(0, max(seconds[-1], contents.step_s))
    axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", nbins=5)


def _draw_histogram(axes: Axes, panel: Panel) -> None:
    low, high = panel.limits
    height = (high - low) / NUM_BINS
    centers = low + height * (np.arange(NUM_BINS) + 0.5)
    axes.barh(centers, panel.shares, height=height, color=_BARS, linewidth=0, zorder=2)
    peak = max(float(panel.shares.max()), 1e-9)
    axes.set_xlim(0, peak * 1.05)
    axes.set_xticks([peak], [f"{100 * peak:.0f} %"], ha="right")
    axes.tick_params(axis="y", left=False, labelleft=False)
