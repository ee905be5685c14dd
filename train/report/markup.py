"""Builds HTML; text is escaped unless it is marked as HTML."""

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
    shown = name.rstrip("_").replace("_", "-")
    return shown if value == "" else f'{shown}="{html.escape(str(value))}"'
