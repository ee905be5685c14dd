"""Draws a figure with matplotlib: strips of images, then a panel for each dimension."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from pipeline.inspection.feature_names import split_unit
from pipeline.inspection.figure_contents import Picture
from pipeline.inspection.figure_page import (
    GREY,
    INK,
    INNER_WIDTH,
    MARGIN,
    PALE,
    Block,
    Page,
    draw_page,
    heading_block,
    title_block,
    wrap,
)
from pipeline.inspection.image_strips import Strip
from pipeline.inspection.value_panels import NUM_BINS, Panel, PanelGroup

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


def draw_picture(picture: Picture) -> bytes:
    """Draws the figure as a PNG, 1680 pixels wide."""
    blocks = [title_block(picture.title, picture.subtitle)]
    if picture.strips:
        blocks += [heading_block("Cameras", picture.images_note), *_strip_blocks(picture.strips)]
    for number, group in enumerate(picture.groups):
        notes = [f"Drawn: {group.note}."] if group.note else []
        notes += [picture.panels_note] if number == 0 else []
        blocks += [heading_block(group.key, " ".join(notes)), _panels_block(group, picture)]
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
        page.text(left, top + 0.02, name, size=7.5, color=GREY)
        for step, image in images.items():
            height = size * image.shape[0] / image.shape[1]
            axes = page.axes(left, top + 0.19, size, height)
            axes.imshow(image, aspect="auto", interpolation="antialiased")
            axes.set_axis_off()
            page.text(left, top + 0.19 + height + 0.03, f"step {step}", size=7, color=GREY)
            left += size + _IMAGE_GAP
        left += _CAMERA_GAP - _IMAGE_GAP


def _panels_block(group: PanelGroup, picture: Picture) -> Block:
    def draw(page: Page, top: float) -> None:
        for number, panel in enumerate(group.panels):
            row, column = divmod(number, _PANELS_PER_ROW)
            corner = MARGIN + column * _PANEL_WIDTH, top + row * _PANEL_HEIGHT
            curve = _draw_panel(page, panel, picture, corner)
            if number + _PANELS_PER_ROW >= len(group.panels):
                curve.set_xlabel("time (s)", size=7.5, labelpad=1)

    rows = -(-len(group.panels) // _PANELS_PER_ROW)
    return Block(rows * _PANEL_HEIGHT + 0.15, draw)


def _draw_panel(page: Page, panel: Panel, picture: Picture, corner: tuple[float, float]) -> Axes:
    """Draws a curve over time and its histogram on the same y axis; returns the curve's axes."""
    left, top = corner[0] + _AXES_LEFT, corner[1] + _AXES_TOP
    _draw_label(page, panel, corner)
    curve = page.axes(left, top, _CURVE_WIDTH, _AXES_HEIGHT)
    _draw_curve(curve, panel, picture)
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


def _draw_curve(axes: Axes, panel: Panel, picture: Picture) -> None:
    for other in panel.others:
        seconds = np.arange(len(other)) * picture.step_s
        axes.plot(seconds, other, color=PALE, linewidth=0.6, zorder=1)
    seconds = np.arange(len(panel.curve)) * picture.step_s
    axes.plot(seconds, panel.curve, color=_CURVE, linewidth=1.2, zorder=4)
    for step in picture.changes:
        axes.axvline(step * picture.step_s, color=INK, linewidth=0.7, dashes=(1, 1))
    axes.set_xlim(0, max(seconds[-1], picture.step_s))
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
