"""Lays out a page of text from sections, tables, and names above their texts."""

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_UNLIMITED = 10_000
"""A line width, in characters, that no table exceeds."""


def to_lines(parts: Sequence[RenderableType], console: Console) -> str:
    """Prints the parts below each other, and folds lines that are wider than the console.

    In a table that has room for its longest words, only the last column is folded.
    """
    for part in parts:
        if isinstance(part, Table) and fits(part, console):
            for column in part.columns[:-1]:
                column.no_wrap = True
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def fits(table: Table, console: Console) -> bool:
    """Whether the console has room for the longest word of every column."""
    unlimited = console.options.update_width(_UNLIMITED)
    return Measurement.get(console, unlimited, table).minimum <= console.width


def title(name: str, below: str) -> list[RenderableType]:
    """Returns the first lines of a page."""
    return [Text(name, "bold"), Text(below), Text()]


def section(heading: str, *content: RenderableType) -> list[RenderableType]:
    """Returns content below a heading."""
    return [Text(), Text(heading, "bold cyan"), *content]


def pairs(rows: Mapping[str, str]) -> RenderableType:
    """Returns names and their values in two columns, without a heading."""
    grid = Table.grid(padding=(0, 3))
    grid.add_column(style="dim", overflow="fold")
    grid.add_column(overflow="fold")
    for name, text in rows.items():
        grid.add_row(name, Text(text))
    return Padding(grid, (0, 0, 0, 1))


def table(*headings: str) -> Table:
    """Returns a table with a line below its headings; `:>` after one right-aligns its column."""
    empty = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), header_style="dim")
    for heading in headings:
        name, _, right = heading.partition(":")
        empty.add_column(name, justify="right" if right else "left", overflow="fold")
    return empty


def indented(text: str) -> RenderableType:
    """Returns an indented cell, which belongs to the one above it."""
    return Padding(Text(text), (0, 0, 0, 2))


def stacked(rows: Iterable[tuple[str, str]]) -> list[RenderableType]:
    """Places each text below its name, for a console too narrow for both on one line."""
    lines: list[RenderableType] = []
    for name, text in rows:
        lines += [Padding(Text(name), (0, 0, 0, 1)), Padding(Text(text, "dim"), (0, 0, 0, 3))]
    return lines
