"""Formats summaries as tables of text."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.data.schema import ACTION
from pipeline.data.token_provenance import TokenOrigin
from pipeline.files import to_json_values
from pipeline.inspection.dataset_summary import (
    MOMENTS,
    ColumnSummary,
    FeatureSummary,
    LengthSummary,
    Summary,
    TaskSummary,
)
from pipeline.inspection.depth_ranges import DepthRange
from pipeline.inspection.episode_summary import RANGES, EpisodeSummary, EpisodeTask, RecordRange
from pipeline.terminal import count, escaped_fields

_UNLIMITED = 10_000
"""A line width, in characters, that no table exceeds."""


def to_lines(parts: Sequence[RenderableType], console: Console) -> str:
    """Prints the parts below each other, and folds lines that are wider than the console.

    In a table that has room for its longest words, only the last column is folded.
    """
    for part in parts:
        if isinstance(part, Table) and fits(part, console):
            # The last column has the long texts.
            for column in part.columns[:-1]:
                column.no_wrap = True
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def fits(table: Table, console: Console) -> bool:
    """Whether the console has room for the longest word of every column."""
    # Without a limit the measurement is that of the longest words alone.
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


T = TypeVar("T")
_MB = 1e6
_MAX_DIM_ROWS = 32
"""Maximum number of dimensions per feature in the text; JSON has all of them."""
_MAX_ROWS = 100
"""Maximum number of rows of any other table in the text; JSON has all of them."""
_TYPE_HEADINGS = ("at\nrest", "in\nbatch", "shape", "bytes/\nstep:>")
_SMALLEST, _LARGEST = 1e-3, 1e6
"""Numbers in this range are written without an exponent."""


def to_text(summary: Summary | EpisodeSummary, console: Console) -> str:
    """Formats a summary as tables for a console; folds cells that are too long."""
    summary = escaped_fields(summary)  # names and instructions are whatever the source has
    if isinstance(summary, Summary):
        return to_lines(_dataset_parts(summary, console), console)
    return to_lines(_episode_parts(summary, console), console)


def _dataset_parts(summary: Summary, console: Console) -> list[RenderableType]:
    lengths = summary.lengths
    num_bytes = sum(column.num_bytes for column in summary.columns)
    about = {
        "format version": str(summary.format_version),
        "schema hash": summary.schema_hash,
        **{_words(name): text for name, text in summary.provenance.items()},
    }
    numbers = (lengths.episodes, lengths.total, len(summary.tasks))
    counts = ", ".join(map(count, numbers, ("episode", "step", "task")))
    hz = summary.conventions.control_frequency_hz
    return [
        *title(summary.name, f"{counts}, {_short_number(num_bytes / _MB)} MB in {summary.path}"),
        pairs(about),
        *section("Columns", *_columns(summary.columns, console)),
        *section("Features", *_features(summary.features, console)),
        *_computed(summary.features),
        *section("Tasks", *_first_rows(_task_table, summary.tasks)),
        *section("Episode lengths", _length_table(lengths, hz)),
        *section(
            f"Statistics over {lengths.total:,} steps",
            *_dims(MOMENTS, summary.statistics, console),
        ),
        *_depth(summary.depth),
        *section("Conventions", pairs(_convention_words(summary))),
    ]


def _episode_parts(summary: EpisodeSummary, console: Console) -> list[RenderableType]:
    about = {
        "source id": summary.source_id or "not known",
        "length": f"{summary.steps:,} steps, {summary.duration_s:.1f} s",
        "steps of the dataset": f"{summary.first_step} to {summary.first_step + summary.steps - 1}",
        **summary.texts,
    }
    return [
        *title(f"{summary.name}, episode {summary.episode}", f"of {summary.episodes:,} episodes"),
        pairs(about),
        *section("Tasks", *_first_rows(_episode_task_table, summary.tasks)),
        *section("Records", *_first_rows(_record_table, summary.records)),
        *section("Values", *_dims(RANGES, summary.values, console)),
        *_depth(summary.depth),
    ]


def _depth(ranges: Mapping[str, DepthRange]) -> list[RenderableType]:
    """Returns the section on depth images; none without any."""
    words = {
        key: f"{found.min_m:.3f} to {found.max_m:.3f} m, readings at {found.readings:.1%} of the "
        f"pixels of {found.steps} steps"
        for key, found in ranges.items()
    }
    return section("Depth", pairs(words)) if words else []


def _first_rows(
    make_table: Callable[[Sequence[T]], Table], items: Sequence[T]
) -> list[RenderableType]:
    """Returns a table of the first items, and a note on how many more there are."""
    more = len(items) - _MAX_ROWS
    note = [Text(f" and {more:,} more with --json", "dim")] if more > 0 else []
    return [make_table(items[:_MAX_ROWS]), *note]


def _columns(columns: Sequence[ColumnSummary], console: Console) -> list[RenderableType]:
    wide = _column_table(columns, has_licence=True)
    if fits(wide, console):
        return [wide]
    licences = stacked((c.name, c.licence or "not known") for c in columns)
    return [_column_table(columns, has_licence=False), Text(), Text(" licence", "dim"), *licences]


def _column_table(columns: Iterable[ColumnSummary], *, has_licence: bool) -> Table:
    headings = ["column", "per", "records:>", "shards:>", "MB:>", "bytes/\nstep:>"]
    rows = table(*headings, *(["licence"] if has_licence else []))
    for c in columns:
        cells = [
            Text(c.name),
            c.per,
            f"{c.records:,}",
            f"{c.shards:,}",
            _short_number(c.num_bytes / _MB),
            f"{c.bytes_per_step:,.0f}",
        ]
        rows.add_row(*cells, *([Text(c.licence or "not known")] if has_licence else []))
    return rows


def _features(features: Sequence[FeatureSummary], console: Console) -> list[RenderableType]:
    wide = _feature_table(features)
    if fits(wide, console):
        return [wide]
    short = _short_feature_table(features)
    if not fits(short, console):
        headings = Text(" column, at rest, in batch, shape, bytes per step, dims", "dim")
        cells = ((f.key, " ".join([f.column, *_type_cells(f), *f.dims])) for f in features)
        return [headings, *stacked(cells)]
    dims = stacked((f.key, " ".join(f.dims)) for f in features if f.dims)
    return [short, Text(), Text(" dims", "dim"), *dims]


def _feature_table(features: Iterable[FeatureSummary]) -> Table:
    rows = table("feature", "column", *_TYPE_HEADINGS, "dims")
    for f in features:
        rows.add_row(Text(f.key), Text(f.column), *_type_cells(f), Text(" ".join(f.dims)))
    return rows


def _short_feature_table(features: Iterable[FeatureSummary]) -> Table:
    """Returns a narrower table, with column names above their features and without dims."""
    rows = table("feature", *_TYPE_HEADINGS)
    for column, members in itertools.groupby(features, lambda f: f.column):
        rows.add_row(Text(column, "dim"))
        for f in members:
            rows.add_row(indented(f.key), *_type_cells(f))
    return rows


def _type_cells(feature: FeatureSummary) -> list[str]:
    """Returns the cells below `_TYPE_HEADINGS`."""
    num_bytes = feature.bytes_per_step
    return [
        "encoded" if feature.kind in ("image", "depth") else feature.dtype,
        feature.batch_dtype or "never",
        " ".join(map(str, feature.shape)) or "scalar",
        "varies" if num_bytes is None else f"{num_bytes:,}",
    ]


def _computed(features: Sequence[FeatureSummary]) -> list[RenderableType]:
    """Returns a section on computed features; nothing if there are none."""
    computed = {f.key: _origin(f.origin) for f in features if f.origin is not None}
    return [*section("Computed", *stacked(computed.items()))] if computed else []


def _origin(origin: TokenOrigin) -> str:
    encoder = origin.encoder
    height, width = encoder.image_size
    views = "alone" if encoder.views == "single" else f"of {' and '.join(encoder.cameras)}"
    lost = f", {origin.reduction_error:.2g} of it lost before" if origin.reduction_error else ""
    return (
        f"{encoder.weights} ({encoder.weights_digest[:8]}), layer {origin.layer}, {origin.camera} "
        f"{views} at {height}x{width} {encoder.resize}, {origin.keep} as {origin.store} "
        f"(error {origin.storage_error:.1e}{lost})"
    )


def _task_table(tasks: Sequence[TaskSummary]) -> Table:
    removed = ["no-ops removed:>"] if any(task.removed_steps for task in tasks) else []
    rows = table("task:>", "episodes:>", "steps:>", *removed, "instruction")
    for t in tasks:
        left_out = [f"{t.removed_steps:,}"] if removed else []
        rows.add_row(
            str(t.index), f"{t.episodes:,}", f"{t.steps:,}", *left_out, _instruction(t.text)
        )
    return rows


def _instruction(text: str) -> Text:
    return Text(text) if text else Text("none", "dim")


def _length_table(lengths: LengthSummary, hz: float) -> Table:
    rows = table("", "min:>", "median:>", "max:>", "total:>")
    values = (lengths.min, lengths.median, lengths.max, lengths.total)
    rows.add_row("steps", *(f"{value:,.10g}" for value in values))
    rows.add_row("seconds", *(f"{value / hz:,.1f}" for value in values))
    return rows


def _episode_task_table(tasks: Iterable[EpisodeTask]) -> Table:
    rows = table("from step:>", "task:>", "instruction")
    for task in tasks:
        rows.add_row(str(task.step), str(task.index), _instruction(task.text))
    return rows


def _record_table(records: Iterable[RecordRange]) -> Table:
    rows = table("column", "file", "first\nrecord:>", "last\nrecord:>")
    for place in records:
        rows.add_row(Text(place.column), Text(place.file), str(place.first), str(place.last))
    return rows


def _dims(
    names: Sequence[str], features: Mapping[str, Sequence[Any]], console: Console
) -> list[RenderableType]:
    """Returns tables with one line per dimension of every feature."""
    rows = {key: _dim_rows(names, dims) for key, dims in features.items()}
    return _number_tables(names, rows, console)


def _number_tables(
    names: Sequence[str], features: Mapping[str, Sequence[Sequence[str]]], console: Console
) -> list[RenderableType]:
    """Returns one table, or several with fewer columns if the console is too narrow."""
    wide = _number_table(names, features)
    if fits(wide, console):
        return [wide]
    heading, *parts = _short_number_tables(names, features)
    # One column cannot be divided further.
    if fits(heading, console) or len(names) == 1:
        return [heading, *parts]
    half = (len(names) + 1) // 2
    first = {key: [row[: 1 + half] for row in rows] for key, rows in features.items()}
    rest = {key: [[row[0], *row[1 + half :]] for row in rows] for key, rows in features.items()}
    return [
        *_number_tables(names[:half], first, console),
        Text(),
        *_number_tables(names[half:], rest, console),
    ]


def _number_table(names: Sequence[str], features: Mapping[str, Sequence[Sequence[str]]]) -> Table:
    """Returns a table with each feature's name above its dimensions; a scalar has one line."""
    numbers = table("feature", *(f"{name}:>" for name in names))
    for key, rows in features.items():
        if len(rows) == 1 and not rows[0][0]:
            numbers.add_row(Text(key, "bold"), *rows[0][1:])
            continue
        numbers.add_row(Text(key, "bold"))
        for label, *cells in rows:
            numbers.add_row(indented(label), *cells)
    return numbers


def _short_number_tables(
    names: Sequence[str], features: Mapping[str, Sequence[Sequence[str]]]
) -> list[Any]:
    """Returns a table of the headings, then each feature's name above a table of its own."""
    # Widths over all features, so that their tables line up.
    every = [["", *names], *(row for rows in features.values() for row in rows)]
    widths = [max(map(len, cells)) for cells in itertools.zip_longest(*every, fillvalue="")]
    parts: list[Any] = [_of_widths(names, widths)]
    for key, rows in features.items():
        numbers = _of_widths(names, widths)
        numbers.show_header = False
        for label, *cells in rows:
            numbers.add_row(Text(label), *cells)
        parts += [Text(key, "bold"), numbers]
    return parts


def _of_widths(names: Sequence[str], widths: Sequence[int]) -> Table:
    empty = table("", *(f"{name}:>" for name in names))
    for column, width in zip(empty.columns, widths, strict=True):
        column.min_width = width
    return empty


def _dim_rows(names: Sequence[str], dims: Sequence[Any]) -> list[list[str]]:
    """Returns the name and numbers of each dimension, up to the maximum."""
    rows = [
        [dim.dim, *_row_numbers([getattr(dim, name) for name in names])]
        for dim in dims[:_MAX_DIM_ROWS]
    ]
    more = len(dims) - _MAX_DIM_ROWS
    return [*rows, [f"and {more} more with --json"]] if more > 0 else rows


def _convention_words(summary: Summary) -> dict[str, str]:
    """Formats the conventions by their names in words, without empty ones."""
    values: dict[str, Any] = to_json_values(summary.conventions)
    conventions = summary.conventions
    names = next((f.dims for f in summary.features if f.key == ACTION), ())
    shown = [
        f"{g.dim} ({names[g.dim]})" if g.dim < len(names) else str(g.dim)
        for g in conventions.all_grippers
    ]
    if conventions.gripper_dim is not None:
        values["gripper_dim"] = shown[0]
    else:
        values |= {"gripper_dim": ", ".join(shown) or "none"}
        values |= {"gripper_open": None, "gripper_close": None}
    if conventions.grippers:
        values["grippers"] = "; ".join(
            f"{g.dim} {g.kind}, open {g.open:g}, close {g.close:g}" for g in conventions.grippers
        )
    if conventions.rotations:
        values["rotations"] = "; ".join(map(str, conventions.rotations))
    return {_words(name): _value(name, v) for name, v in values.items() if v is not None}


def _words(name: str) -> str:
    return name.removesuffix("_hz").replace("_", " ")


def _value(name: str, value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{text} Hz" if name.endswith("_hz") else text


def _short_number(value: float) -> str:
    """Formats a number with one decimal below 100, and with none above."""
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _row_numbers(values: Sequence[float | int | bool]) -> list[str]:
    """Formats a row with four decimals, or with exponents if the row is very large or small.

    Integers stay integers; true and false are words.
    """
    if not any(isinstance(value, float) for value in values):
        return [str(value).lower() for value in values]
    size = max(abs(value) for value in values)
    is_plain = size == 0 or _SMALLEST <= size < _LARGEST
    # A sum with 0.0 has no sign where it is zero.
    return [f"{round(value, 4) + 0.0:.4f}" if is_plain else f"{value:.3e}" for value in values]
