"""The one palette of the page and its charts, for light and dark screens, and its fonts."""

from collections.abc import Mapping

PAPER = "#ffffff"
"""Background."""
INK = "#1f2630"
"""Text, and what was recorded."""
GREY = "#5d6673"
"""Words of less weight; 5.8:1 on white."""
PALE = "#dde2e8"
"""Hairlines."""
WASH = "#f5f7f9"
"""Behind what belongs together."""
BLUE = "#20639b"
"""Training."""
PALE_BLUE = "#b9cfe3"
"""Training, step by step."""
ORANGE = "#b8572a"
"""Validation, and what the model predicts."""
PALE_ORANGE = "#e8c4b0"
"""Bars of validation."""
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
"""The system's own, for the page and for text in charts."""

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
"""Name of each colour in style sheets, and what stands for it on a dark screen."""


def _variables(place: int) -> str:
    values = ((pair[0], (light, pair[1])[place]) for light, pair in _NAMES.items())
    return " ".join(f"--{name}: {color};" for name, color in values)


VARIABLES = f"""
:root {{ color-scheme: light dark; {_variables(0)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}
"""
"""CSS that gives each colour its name, by what the reader's system prefers; paper stays light."""


def named(svg: str) -> str:
    """A chart whose colours follow the reader's system: by name, each with itself to fall back on.

    Args:
      svg: Its colours are those above.
    """
    for color, (name, _) in _NAMES.items():
        svg = svg.replace(color, f"var(--{name}, {color})")
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}<style>{VARIABLES}</style>{svg[start:]}"
