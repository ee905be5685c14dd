"""Draws a page from top to bottom, and its blocks of text.

All lengths are inches from the top left corner.
"""

import dataclasses
import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
        return placed.get_window_extent().width / DPI

    def line(self, y: float) -> None:
        """Draws a hairline across the whole width."""
        ends = [MARGIN / WIDTH, 1 - MARGIN / WIDTH]
        height = [1 - y / self._height] * 2
        self._figure.add_artist(Line2D(ends, height, color=PALE, linewidth=0.8))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Adds axes with their upper left corner at (x, y)."""
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
