"""Fills the templates of the pages, and formats numbers for people."""

import base64
import functools
import pathlib
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.terminal import count

_LARGE = 1000.0
"""Smallest number whose thousands are separated."""
_SMALLEST_SHARE = 0.0005
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def render(template: str, **values: Any) -> str:
    """Returns a page that loads no other files; every text that is not `Markup` is escaped.

    Args:
      template: Name of a template in this folder, which `page.html.j2` includes.
      values: Its variables, and those of `page.html.j2`.
    """
    page = _environment().get_template("page.html.j2")
    return page.render(content=template, nav=[], **values).lstrip()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    environment.filters |= {"three_digits": three_digits, "percent": percent, "data_uri": data_uri}
    environment.globals["count"] = count
    return environment


def bar(value: float, largest: float = 1.0, **ticks: float | None) -> Markup:
    """Returns a bar for a value, and a tick for each other one, named by its kind of curve."""
    shown = [("fill error", "width", value)]
    shown += [(f"tick {kind}", "left", at) for kind, at in ticks.items() if at is not None]
    part = Markup('<span class="{}" style="{}:{:.1f}%"></span>')
    parts = Markup().join(part.format(kind, side, 100 * at / largest) for kind, side, at in shown)
    return Markup('<span class="bar" aria-hidden="true">{}</span>').format(parts)


def data_uri(content: bytes) -> str:
    """Returns a data URI that contains an image, JPEG or PNG, itself."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def three_digits(value: float) -> str:
    """Formats a number like `0.0412`, `3.50` or `1.20e-5`, with a typographic minus sign."""
    text = f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:#.3g}".rstrip(".")
    return text.replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def short(value: float) -> str:
    """Formats a number like `1`, `0.5` or `3e-5`, with a typographic minus sign."""
    text = f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:g}".replace("e-0", "e-")
    return text.replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Formats seconds in the two largest units, like `2 h 41 min`; below a minute like `8.2 s`."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{int(seconds // _MINUTE_S)} min {int(seconds % _MINUTE_S)} s"
    if seconds < _DAY_S:
        return f"{int(seconds // _HOUR_S)} h {int(seconds % _HOUR_S // _MINUTE_S)} min"
    return f"{int(seconds // _DAY_S)} d {int(seconds % _DAY_S // _HOUR_S)} h"


def percent(share: float) -> str:
    """Formats a fraction like `12.5 %`; as `< 0.1 %` if it would round to zero."""
    return "< 0.1 %" if 0 < share < _SMALLEST_SHARE else f"{100 * share:.1f} %"
