"""HTML whose text is escaped unless it says that it is HTML already."""

import base64
import html
from collections.abc import Iterable

_VOID = {"img", "meta", "source", "wbr"}
"""Elements without content or an end."""


class Html(str):
    """Text that is HTML and goes into a page as it is."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | int | None) -> Html:
    """An element around its children.

    Args:
      name: Of the element.
      children: `Html` goes in as it is; any other text is escaped.
      attributes: By name; `class_` stands for `class`, `data_x` for `data-x`. None: left out;
        an empty text: the name alone.
    """
    given = [_attribute(key, value) for key, value in attributes.items() if value is not None]
    start = f"<{' '.join([name, *given])}>"
    return Html(start if name in _VOID else f"{start}{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """The parts one after the other, escaped unless they are `Html`."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def data_uri(content: bytes, media_type: str) -> str:
    """An address that is the file itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _attribute(name: str, value: str | int) -> str:
    shown = name.rstrip("_").replace("_", "-")
    return shown if value == "" else f'{shown}="{html.escape(str(value))}"'
