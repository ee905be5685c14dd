"""The building blocks of the page's sections."""

from collections.abc import Callable, Sequence

from train.report.charts import Size
from train.report.markup import Html, data_uri, tag

WIDE, MEDIUM, NARROW = Size(1120, 300), Size(720, 280), Size(368, 230)
"""Sizes of a chart as wide as the page: on a screen; in print or a small screen; on a phone."""
PANEL = Size(352, 190)
"""Size of a chart among others."""
SMALL_PANEL = Size(262, 170)
"""Size of a chart among many others."""
_TELEPHONE, _PRINT = 520, 900
"""Largest page widths, in CSS pixels, for which a chart is drawn separately."""


def section(title: str, *content: str, anchor: str) -> Html:
    """Builds a heading with its content."""
    heading = tag("h2", title, id=f"{anchor}-heading")
    return tag("section", heading, *content, id=anchor, aria_labelledby=f"{anchor}-heading")


def note(*text: str) -> Html:
    """Builds a paragraph of secondary text that explains what follows."""
    return tag("p", *text, class_="note")


def absent(reason: str) -> Html:
    """Builds the one line of a section that has nothing to show."""
    return tag("p", reason, class_="absent")


def key(kind: str, text: str) -> Html:
    """Builds an entry of a legend: a mark, and what it means.

    Args:
      kind: Kind of the mark, for the class `key-KIND` in the style sheet.
      text: The meaning of the mark.
    """
    mark = tag("span", class_=f"key key-{kind}", aria_hidden="true")
    return tag("span", mark, text, class_="entry")


def wide_chart(draw: Callable[[Size], str], alt: str, *caption: str) -> Html:
    """Builds a chart as wide as the page, drawn for three widths.

    Args:
      draw: Returns the chart of a given size as SVG.
      alt: Description of the chart, for readers who cannot see it.
      caption: Name, unit and legend, above the chart.
    """
    # The first source whose width fits is taken, so the narrowest comes first.
    sources = [_source(_TELEPHONE, draw(NARROW)), _source(_PRINT, draw(MEDIUM))]
    image = _image(draw(WIDE), WIDE, alt)
    return tag("figure", tag("figcaption", *caption), tag("picture", *sources, image))


def panel(
    draw: Callable[[Size], str], alt: str, title: str, detail: str, size: Size = PANEL
) -> Html:
    """Builds a chart with title and unit above it, for use in `panels`."""
    caption = tag("figcaption", tag("strong", title), " ", detail)
    image = _image(draw(size), size, alt)
    if size == SMALL_PANEL:
        image = tag("picture", _source(_TELEPHONE, draw(PANEL)), image)
    return tag("figure", caption, image)


def panels(*figures: str, size: Size = PANEL) -> Html:
    """Places charts of one size side by side, as many as fit on the page."""
    return tag("div", *figures, class_="panels" if size == PANEL else "panels small")


def legend(*entries: str) -> Html:
    """Builds the legend of a chart from its `key` entries."""
    return tag("p", *entries, class_="legend")


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, is_wide: bool = False
) -> Html:
    """Builds a table that scrolls if it is too wide for the page.

    Args:
      headings: Column headings; a leading `>` aligns a column to the right.
      rows: Cells of each row; the first cell is its name.
      caption: The caption of the table.
      is_wide: Whether to scroll instead of wrapping the texts in the cells.
    """
    sides = ["number" if heading.startswith(">") else None for heading in headings]
    head = [
        tag("th", heading.removeprefix(">"), scope="col", class_=side)
        for heading, side in zip(headings, sides, strict=True)
    ]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=sides[0]),
            *(tag("td", c, class_=side) for c, side in zip(row[1:], sides[1:], strict=True)),
        )
        for row in rows
    ]
    inner = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
    )
    kind = "scroll wide" if is_wide else "scroll"
    return tag("div", inner, class_=kind, tabindex=0, role="region", aria_label=caption)


def bar(share: float, marked: float | None = None) -> Html:
    """Builds a bar for a fraction of the available width, and a tick at another fraction."""
    parts = [tag("span", class_="fill", style=f"width:{100 * share:.1f}%")]
    if marked is not None:
        parts.append(tag("span", class_="tick", style=f"left:{100 * marked:.1f}%"))
    return tag("span", *parts, class_="bar", aria_hidden="true")


def folded(summary: str, *content: str) -> Html:
    """Builds content that is shown on demand."""
    return tag("details", tag("summary", summary), *content)


def _source(max_width: int, svg: str) -> Html:
    """Builds the replacement of an image for narrower pages."""
    return tag("source", media=f"(max-width: {max_width}px)", srcset=_svg_uri(svg))


def _image(svg: str, size: Size, alt: str) -> Html:
    return tag("img", src=_svg_uri(svg), width=size.width, height=size.height, alt=alt)


def _svg_uri(svg: str) -> str:
    return data_uri(svg.encode(), "image/svg+xml")
