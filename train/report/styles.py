"""The page's style sheet, and the palette and fonts it shares with the charts."""

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
    # Inside the SVG, because an image does not see the page's style sheet.
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}<style>{VARIABLES}</style>{svg[start:]}"


_FONTS = f":root {{ --fonts: {FONTS}; }}"

_RULES = """
*, *::before, *::after { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: calc(1120px + 2.5rem);
  color: var(--ink); background: var(--paper); font: 1rem/1.5 var(--fonts);
}
h1, h2, h3, p, dl, dd, figure, blockquote, ol, pre { margin: 0; }
a { color: var(--blue); }
img { display: block; max-width: 100%; height: auto; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }

.kind { color: var(--grey); font-size: .875rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
.origin { margin-top: .4rem; max-width: 68ch; color: var(--grey); }

.figures {
  display: grid; grid-template-columns: repeat(2, 1fr); gap: 1.1rem 1.25rem;
  margin-top: 1.75rem; padding: 1.1rem 0; border: solid var(--pale); border-width: 1px 0;
}
.figures dt { color: var(--grey); font-size: .8125rem; }
.figures dd {
  font-size: 1.375rem; font-weight: 600; line-height: 1.35; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; white-space: nowrap;
}
.figures small {
  display: block; color: var(--grey); font-size: .8125rem; font-weight: 400; letter-spacing: 0;
}
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin-top: .9rem; font-size: .875rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }

section { margin-top: 3.25rem; }
h2 { font-size: 1.3125rem; line-height: 1.3; letter-spacing: -.01em; margin-bottom: .5rem; }
h3 { font-size: .9375rem; margin: 1.75rem 0 .6rem; }
.note { max-width: 72ch; color: var(--grey); font-size: .9375rem; }
.note, .origin, blockquote { text-wrap: pretty; overflow-wrap: anywhere; }
.absent {
  max-width: 72ch; padding: .6rem .9rem; background: var(--wash);
  border-left: 3px solid var(--pale); color: var(--grey); font-size: .9375rem;
}
blockquote { max-width: 72ch; margin-bottom: .35rem; font-size: 1.0625rem; font-weight: 500; }
blockquote::before { content: "\\201c"; }
blockquote::after { content: "\\201d"; }

figcaption { color: var(--grey); font-size: .875rem; line-height: 1.4; }
figcaption strong { color: var(--ink); font-weight: 600; }
picture img, .panels img, .split > figure img { width: 100%; }
.panels figure { display: flex; flex-direction: column; justify-content: flex-end; }
.panels {
  display: grid; gap: 1.5rem 2rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr));
}
.panels.small {
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr));
  gap: 1.25rem 1.5rem;
}
.legend {
  display: flex; flex-wrap: wrap; gap: .1rem 1.25rem; margin-top: .5rem;
  color: var(--grey); font-size: .875rem;
}
.entry { display: inline-flex; align-items: start; gap: .45rem; }
.key { flex: none; display: flex; align-items: center; height: 1.5em; }
.key::before { content: ""; width: 1.25rem; height: 3px; background: currentcolor; }
.key-raw { color: var(--pale-blue); }
.key-train { color: var(--blue); }
.key-validation, .key-chunk { color: var(--orange); }
.key-recorded, .key-skipped, .key-tick { color: var(--ink); }
.key-recorded::before { height: 2px; }
.key-skipped::before, .key-tick::before { width: 2px; height: .8rem; }
.key-bar { color: var(--pale-orange); }
.key-bar::before { height: .6rem; }

.split { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.5rem 2rem; margin-top: 1rem; }
.split > figure { max-width: 440px; }
.split .legend { margin: 0 0 .35rem; }
.bar { position: relative; display: block; height: .6rem; min-width: 4rem; }
.bar .fill {
  display: block; height: 100%; min-width: 1px; border-radius: 0 2px 2px 0;
  background: var(--pale-orange);
}
.bar .tick {
  position: absolute; top: -.15rem; width: 2px; height: .9rem; margin-left: -2px;
  background: var(--ink);
}
.bars { margin-top: 1rem; padding: 0; list-style: none; column-gap: 2.5rem; font-size: .9375rem; }
.bars li {
  display: grid; grid-template-columns: 1fr auto; gap: .15rem 1rem; padding: .35rem 0;
  break-inside: avoid; line-height: 1.35;
}
.bars .label { overflow-wrap: anywhere; }
.bars .value { font-variant-numeric: tabular-nums; }
.bars .bar { grid-column: 1 / -1; height: .4rem; }

.frames { display: grid; grid-template-columns: repeat(3, 1fr); gap: .75rem; }
.frames img { width: 100%; margin-bottom: .25rem; border-radius: 3px; background: var(--wash); }
.views { max-width: max(100%, 48rem); border-radius: 3px; }

.scroll { overflow-x: auto; margin-top: .75rem; }
.split .scroll { margin-top: 0; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; }
caption { padding-bottom: .35rem; color: var(--grey); text-align: left; }
th, td { padding: .35rem .75rem .35rem 0; text-align: left; vertical-align: baseline; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--grey); font-weight: 400; vertical-align: bottom; }
tbody th { font-weight: 500; }
thead tr, tbody tr { border-bottom: 1px solid var(--pale); }
td.number { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td:has(.bar) { width: 50%; vertical-align: middle; }
.wide table { min-width: 60rem; }
#weights > .scroll { max-width: 46rem; }
details .wide { font-size: .8125rem; }
details .wide table { font-size: inherit; }
details .scroll:not(.wide) table { table-layout: fixed; min-width: 38rem; max-width: 56rem; }

details .scroll:not(.wide) th:first-child { width: 9.5rem; overflow-wrap: anywhere; }

.stack { display: flex; gap: 2px; height: .75rem; margin-top: .75rem; }
.stack span { min-width: 3px; border-radius: 2px; background: currentcolor; }
tbody .key::before { width: .7rem; height: .7rem; border-radius: 2px; }
.key-loaded { color: var(--blue); }
.key-resized { color: var(--pale-blue); }
.key-new { color: var(--orange); }
.key-unused { color: var(--pale-orange); }
.key-mismatched { color: var(--ink); }
th small { display: block; padding-left: 1.15rem; color: var(--grey); font-weight: 400; }

details { margin-top: .9rem; font-size: .9375rem; }
summary { width: fit-content; color: var(--blue); cursor: pointer; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-size: .8125rem; }
pre {
  margin-top: .6rem; padding: 1rem 1.1rem; overflow-x: auto; background: var(--wash);
  border-radius: 4px; font-size: .8125rem; line-height: 1.45;
}

@media (min-width: 600px) {
  body { padding-left: 2rem; padding-right: 2rem; }
  .figures { grid-template-columns: repeat(4, 1fr); }
  .frames { grid-template-columns: repeat(6, 1fr); }
}
@media (min-width: 800px) {
  .bars { columns: 2; }
  .split { grid-template-columns: minmax(0, 1fr) minmax(0, 2fr); }
  thead th { white-space: nowrap; }
  th, td { padding-right: 1.5rem; }
  .split > :only-child { grid-column: 1 / -1; }
}
@media (min-width: 1080px) {
  .figures { grid-template-columns: repeat(8, auto); justify-content: space-between; }
}
@media print {
  body { padding: 0; max-width: none; font-size: .875rem; }
  nav { display: none; }
  section { margin-top: 2rem; }
  h2, h3, blockquote { break-after: avoid; }
  figure, tr, .stack { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

STYLES = VARIABLES + _FONTS + _RULES
"""CSS; it names no file and no address."""
