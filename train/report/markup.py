"""Builds HTML, escaping text that is not marked as HTML, and formats numbers."""

import base64
import html
from collections.abc import Iterable

_VOID = {"img", "meta", "source", "wbr"}
"""Elements without content or an end tag."""


class Html(str):
    """Text that is HTML and is not escaped."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | int | None) -> Html:
    """Builds an element around its children.

    Args:
      name: Name of the element.
      children: Children; `Html` is inserted unchanged, any other text is escaped.
      attributes: Attributes by name; `class_` stands for `class`, `data_x` for `data-x`. None
        leaves the attribute out; an empty text leaves its name alone.
    """
    given = [_attribute(key, value) for key, value in attributes.items() if value is not None]
    start = f"<{' '.join([name, *given])}>"
    return Html(start if name in _VOID else f"{start}{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Joins the parts, escaped unless they are `Html`."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def data_uri(content: bytes, media_type: str) -> str:
    """Returns a data URI that contains the file itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _attribute(name: str, value: str | int) -> str:
    # `class_` is "class", `aria_label` is "aria-label".
    shown = name.rstrip("_").replace("_", "-")
    return shown if value == "" else f'{shown}="{html.escape(str(value))}"'


_LARGE = 1000.0
"""Smallest number whose thousands are separated."""
_SMALLEST_SHARE = 0.0005
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def three_digits(value: float) -> str:
    """Formats a number like `0.0412`, `3.50` or `1.20e-5`, with a typographic minus sign."""
    text = f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:#.3g}".rstrip(".")
    return text.replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Formats seconds in the two largest units, like `2 h 41 min`; below a minute like `8.2 s`."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{int(seconds // _MINUTE_S)} min {int(seconds % _MINUTE_S)} s"
    if seconds < _DAY_S:
        return f"{int(seconds // _HOUR_S)} h {int(seconds % _HOUR_S // _MINUTE_S)} min"
    return f"{int(seconds // _DAY_S)} d {int(seconds % _DAY_S // _HOUR_S)} h"


def short(value: float) -> str:
    """Formats a number like `1`, `0.5` or `3e-5`, with a typographic minus sign."""
    text = f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:g}".replace("e-0", "e-")
    return text.replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """Formats a fraction like `12.5 %`; as `< 0.1 %` if it would round to zero."""
    return "< 0.1 %" if 0 < share < _SMALLEST_SHARE else f"{100 * share:.1f} %"
