"""The colours and fonts of the page and its charts, for light and dark screens."""

from collections.abc import Mapping

PAPER = "#ffffff"
"""Background colour."""
INK = "#1f2630"
"""Colour of text and of recorded values."""
GREY = "#5d6673"
"""Colour of secondary text; its contrast is 5.8:1 on white."""
PALE = "#dde2e8"
"""Colour of thin lines."""
WASH = "#f5f7f9"
"""Background colour of groups."""
BLUE = "#20639b"
"""Colour of training."""
PALE_BLUE = "#b9cfe3"
"""Colour of single training steps."""
ORANGE = "#b8572a"
"""Colour of validation and predictions."""
PALE_ORANGE = "#e8c4b0"
"""Colour of validation bars."""
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
"""The system's own fonts, for the page and for text in charts."""

_NAMES: Mapping[str, tuple[str, str]] = {
    PAPER: ("paper", "#14181d"),
    INK: ("ink", "#e4e9ef"),
    GREY: ("grey", "#a1acb8"),
    PALE: ("pale", "#38414b"),
    WASH: ("wash", "#1e242b"),
    BLUE: ("blue", "#6fb1e8"),
    PALE_BLUE: ("pale-blue", "#2f506d"),
    ORANGE: ("orange", "#e8905f"),
    PALE_ORANGE: ("pale-orange", "#6a4632"),
}
"""Name in style sheets of each colour, and its replacement on a dark screen."""


def _variables(place: int) -> str:
    values = ((pair[0], (light, pair[1])[place]) for light, pair in _NAMES.items())
    return " ".join(f"--{name}: {color};" for name, color in values)


VARIABLES = f"""
:root {{ color-scheme: light dark; {_variables(0)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}
"""
"""CSS variables of the colours, by the reader's preferred scheme; print stays light."""


def named(svg: str) -> str:
    """Replaces a chart's colours by CSS variables, each with the colour itself as fallback.

    Args:
      svg: A chart in the colours above.
    """
    for color, (name, _) in _NAMES.items():
        svg = svg.replace(color, f"var(--{name}, {color})")
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}<style>{VARIABLES}</style>{svg[start:]}"
