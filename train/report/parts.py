"""The parts that sections of the page are made of."""

from collections.abc import Callable, Sequence

from train.report.charts import Size
from train.report.markup import Html, data_uri, tag

WIDE, MEDIUM, NARROW = Size(1120, 300), Size(720, 280), Size(368, 230)
"""A chart over the whole page: on a screen, in print or on a small screen, on a telephone."""
PANEL = Size(352, 190)
"""A chart among others."""
SMALL_PANEL = Size(262, 170)
"""A chart among more of them."""
_TELEPHONE, _PRINT = 520, 900
"""Widest page, in CSS pixels, for which a chart is drawn from scratch."""


def section(title: str, *content: str, anchor: str) -> Html:
    """A heading over what it names."""
    heading = tag("h2", title, id=f"{anchor}-heading")
    return tag("section", heading, *content, id=anchor, aria_labelledby=f"{anchor}-heading")


def note(*text: str) -> Html:
    """A paragraph of less weight that tells how to read what follows."""
    return tag("p", *text, class_="note")


def absent(reason: str) -> Html:
    """The one line of a section that has nothing to show."""
    return tag("p", reason, class_="absent")


def key(kind: str, text: str) -> Html:
    """An entry of a legend: the mark that stands for something, and what.

    Args:
      kind: Of the mark; the style sheet's `key-KIND`.
      text: What it stands for.
    """
    mark = tag("span", class_=f"key key-{kind}", aria_hidden="true")
    return tag("span", mark, text, class_="entry")


def wide_chart(draw: Callable[[Size], str], alt: str, *caption: str) -> Html:
    """A chart over the whole page, drawn for three widths.

    Args:
      draw: Gives the chart of a size as SVG.
      alt: What it shows, for those who cannot see it.
      caption: Its name, unit and legend, above it.
    """
    sources = [_source(_TELEPHONE, draw(NARROW)), _source(_PRINT, draw(MEDIUM))]
    image = _image(draw(WIDE), WIDE, alt)
    return tag("figure", tag("figcaption", *caption), tag("picture", *sources, image))


def panel(
    draw: Callable[[Size], str], alt: str, title: str, detail: str, size: Size = PANEL
) -> Html:
    """A chart with its title and unit above it; stands in `panels`."""
    caption = tag("figcaption", tag("strong", title), " ", detail)
    image = _image(draw(size), size, alt)
    if size == SMALL_PANEL:
        image = tag("picture", _source(_TELEPHONE, draw(PANEL)), image)
    return tag("figure", caption, image)


def panels(*figures: str, size: Size = PANEL) -> Html:
    """Charts of one size beside each other, as many as the page has room for."""
    return tag("div", *figures, class_="panels" if size == PANEL else "panels small")


def legend(*entries: str) -> Html:
    """What each `key` of a chart stands for."""
    return tag("p", *entries, class_="legend")


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, is_wide: bool = False
) -> Html:
    """A table that scrolls by itself where it is too wide for the page.

    Args:
      headings: A `>` before one puts its column to the right.
      rows: Cells of each row; the first one is its name.
      caption: What the table tells.
      is_wide: Whether it rather scrolls than folds the texts in its cells.
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
    """A bar over a share of its place, and a tick at another share."""
    parts = [tag("span", class_="fill", style=f"width:{100 * share:.1f}%")]
    if marked is not None:
        parts.append(tag("span", class_="tick", style=f"left:{100 * marked:.1f}%"))
    return tag("span", *parts, class_="bar", aria_hidden="true")


def folded(summary: str, *content: str) -> Html:
    """What is shown on demand."""
    return tag("details", tag("summary", summary), *content)


def _source(max_width: int, svg: str) -> Html:
    """What stands in for a picture's image on a narrower page."""
    return tag("source", media=f"(max-width: {max_width}px)", srcset=_svg_uri(svg))


def _image(svg: str, size: Size, alt: str) -> Html:
    return tag("img", src=_svg_uri(svg), width=size.width, height=size.height, alt=alt)


def _svg_uri(svg: str) -> str:
    return data_uri(svg.encode(), "image/svg+xml")
