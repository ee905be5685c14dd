"""Summaries as tables for a person."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.files import to_json_values
from pipeline.inspect.episode import RANGES, EpisodeSummary, EpisodeTask, RecordRange
from pipeline.inspect.summary import (
    MOMENTS,
    ColumnSummary,
    FeatureSummary,
    LengthSummary,
    Summary,
    TaskSummary,
)
from pipeline.schema import ACTION

_MB = 1e6
_MAX_DIM_ROWS = 32
"""Dimensions of a feature that the text shows; JSON has all of them."""
_UNLIMITED = 10_000
"""Characters of a line that no table needs."""
_SMALLEST, _LARGEST = 1e-3, 1e6
"""Numbers in between are written without an exponent."""


def to_text(summary: Summary | EpisodeSummary, console: Console) -> str:
    """Tables as wide as the console and in its colours; a cell that is too long is folded."""
    parts = _dataset_parts(summary) if isinstance(summary, Summary) else _episode_parts(summary)
    for table in parts:
        if isinstance(table, Table):
            table.columns[0].no_wrap = _fits(table, console)
    with console.capture() as capture:
        console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _fits(table: Table, console: Console) -> bool:
    """Whether the console has room for the longest word of every column."""
    unlimited = console.options.update_width(_UNLIMITED)
    return Measurement.get(console, unlimited, table).minimum <= console.width


def _dataset_parts(summary: Summary) -> list[RenderableType]:
    lengths = summary.lengths
    num_bytes = sum(column.num_bytes for column in summary.columns)
    about = {
        "format version": str(summary.format_version),
        "schema hash": summary.schema_hash,
        **{_words(name): text for name, text in summary.provenance.items()},
    }
    counts = f"{lengths.episodes:,} episodes, {lengths.total:,} steps, {len(summary.tasks)} tasks"
    hz = summary.conventions.control_frequency_hz
    return [
        *_title(summary.name, f"{counts}, {_short_number(num_bytes / _MB)} MB in {summary.path}"),
        _pairs(about),
        *_section("Columns", _column_table(summary.columns)),
        *_section("Features", _feature_table(summary.features)),
        *_section("Tasks", _task_table(summary.tasks)),
        *_section("Episode lengths", _length_table(lengths, hz)),
        *_section(
            f"Statistics over {lengths.total:,} steps", _dims_table(MOMENTS, summary.statistics)
        ),
        *_section("Conventions", _pairs(_convention_words(summary))),
    ]


def _episode_parts(summary: EpisodeSummary) -> list[RenderableType]:
    about = {
        "source id": summary.source_id or "not known",
        "length": f"{summary.steps:,} steps, {summary.duration_s:.1f} s",
        "steps of the dataset": f"{summary.first_step} to {summary.first_step + summary.steps - 1}",
        **summary.texts,
    }
    return [
        *_title(f"{summary.name}, episode {summary.episode}", f"of {summary.episodes:,} episodes"),
        _pairs(about),
        *_section("Tasks", _episode_task_table(summary.tasks)),
        *_section("Records", _record_table(summary.records)),
        *_section("Values", _dims_table(RANGES, summary.values)),
    ]


def _title(name: str, below: str) -> list[RenderableType]:
    return [Text(name, "bold"), Text(below), Text()]


def _section(heading: str, content: RenderableType) -> list[RenderableType]:
    return [Text(), Text(heading, "bold cyan"), content]


def _pairs(rows: Mapping[str, str]) -> RenderableType:
    """Names and what they are, without a heading."""
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim", overflow="fold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(text))
    return Padding(table, (0, 0, 0, 1))


def _table(*headings: str) -> Table:
    """A table with a line below its headings; `:>` behind one puts its column to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), header_style="dim")
    for heading in headings:
        name, _, right = heading.partition(":")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


def _column_table(columns: Iterable[ColumnSummary]) -> Table:
    table = _table("column", "per", "records:>", "shards:>", "MB:>", "bytes a step:>", "licence")
    for c in columns:
        table.add_row(
            Text(c.name),
            c.per,
            f"{c.records:,}",
            f"{c.shards:,}",
            _short_number(c.num_bytes / _MB),
            f"{c.bytes_per_step:,.0f}",
            Text(c.licence or "not known"),
        )
    return table


def _feature_table(features: Iterable[FeatureSummary]) -> Table:
    table = _table("feature", "column", "at\nrest", "in\nbatch", "shape", "bytes\na step:>", "dims")
    for f in features:
        table.add_row(
            Text(f.key),
            Text(f.column),
            "encoded" if f.kind == "image" else f.dtype,
            f.batch_dtype or "never",
            " ".join(map(str, f.shape)) or "scalar",
            "varies" if f.bytes_per_step is None else f"{f.bytes_per_step:,}",
            Text(" ".join(f.dims)),
        )
    return table


def _task_table(tasks: Sequence[TaskSummary]) -> Table:
    removed = ["no-ops removed:>"] if any(task.removed_steps for task in tasks) else []
    table = _table("task:>", "episodes:>", "steps:>", *removed, "instruction")
    for t in tasks:
        left_out = [f"{t.removed_steps:,}"] if removed else []
        table.add_row(str(t.index), f"{t.episodes:,}", f"{t.steps:,}", *left_out, Text(t.text))
    return table


def _length_table(lengths: LengthSummary, hz: float) -> Table:
    table = _table("", "min:>", "median:>", "max:>", "total:>")
    values = (lengths.min, lengths.median, lengths.max, lengths.total)
    table.add_row("steps", *(f"{value:,.10g}" for value in values))
    table.add_row("seconds", *(f"{value / hz:,.1f}" for value in values))
    return table


def _episode_task_table(tasks: Iterable[EpisodeTask]) -> Table:
    table = _table("from step:>", "task:>", "instruction")
    for task in tasks:
        table.add_row(str(task.step), str(task.index), Text(task.text))
    return table


def _record_table(records: Iterable[RecordRange]) -> Table:
    table = _table("column", "file", "first record:>", "last record:>")
    for place in records:
        table.add_row(Text(place.column), Text(place.file), str(place.first), str(place.last))
    return table


def _dims_table(names: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> Table:
    """Every feature with a line for each of its dimensions, the numbers under their names."""
    table = _table("feature", *(f"{name}:>" for name in names))
    for key, dims in rows.items():
        numbers = [_row_numbers([getattr(dim, name) for name in names]) for dim in dims]
        if len(dims) == 1 and not dims[0].dim:
            table.add_row(Text(key, "bold"), *numbers[0])
            continue
        table.add_row(Text(key, "bold"))
        for dim, row in zip(dims[:_MAX_DIM_ROWS], numbers, strict=False):
            table.add_row(Text(f"  {dim.dim}"), *row)
        if len(dims) > _MAX_DIM_ROWS:
            table.add_row(f"  and {len(dims) - _MAX_DIM_ROWS} more with --json")
    return table


def _convention_words(summary: Summary) -> dict[str, str]:
    """The conventions by their names in words, without those that say nothing."""
    values: dict[str, Any] = to_json_values(summary.conventions)
    dim = values["gripper_dim"]
    names = next((f.dims for f in summary.features if f.key == ACTION), ())
    if dim is None:
        values |= {"gripper_dim": "none", "gripper_open": None, "gripper_close": None}
    elif dim < len(names):
        values["gripper_dim"] = f"{dim} ({names[dim]})"
    return {_words(name): _value(name, v) for name, v in values.items() if v is not None}


def _words(name: str) -> str:
    return name.removesuffix("_hz").replace("_", " ")


def _value(name: str, value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{text} Hz" if name.endswith("_hz") else text


def _short_number(value: float) -> str:
    """With one decimal below 100, with none above."""
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _row_numbers(values: Sequence[float | int | bool]) -> list[str]:
    """The values of a row with four decimals, or an exponent for a row that has no such size.

    Whole numbers stay whole; true and false are words.
    """
    if not any(isinstance(value, float) for value in values):
        return [str(value).lower() for value in values]
    size = max(abs(value) for value in values)
    is_plain = size == 0 or _SMALLEST <= size < _LARGEST
    return [f"{value:.4f}" if is_plain else f"{value:.3e}" for value in values]
