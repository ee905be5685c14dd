"""Formats summaries as tables of text."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.data.schema import ACTION
from pipeline.data.token_provenance import TokenOrigin
from pipeline.hub.hub_address import is_dataset_address
from pipeline.inspection.feature_names import short_name
from pipeline.terminal import count, escaped, ranges, shortened

Rows = list[list[str]]
"""The headings of a table, then its rows; `:>` after a heading right-aligns its column."""
_MAX_DIMS = 32
"""Maximum number of dimensions per feature in the text; JSON has all of them."""
_MAX_ROWS = 100
"""Maximum number of tasks or records in the text; JSON has all of them."""
_MAX_NOTE = 300
"""Maximum number of characters of a note in the provenance; JSON has all of them."""
_SMALLEST, _LARGEST = 1e-3, 1e6
"""Numbers in this range are written without an exponent."""


def to_text(summary: Mapping[str, Any], console: Console) -> str:
    """Formats a summary of a dataset or of an episode, in lines that fit the console."""
    title, subtitle, sections = (_episode if "episode" in summary else _dataset)(summary)
    with console.capture() as capture:
        console.print(_cell(title, "bold"), _cell(subtitle), sep="\n")
        for heading, content in sections.items():
            if content:
                console.print(Text(f"\n{heading}" if heading else "", "bold cyan"))
                for part in _parts(content, console):
                    console.print(Padding(part, (0, 0, 0, 1)))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _cell(text: str, style: str = "") -> Text:
    # Names and instructions are whatever the source has.
    return Text(escaped(text), style)


def _parts(content: Mapping[str, str] | Rows, console: Console) -> Iterator[RenderableType]:
    """Yields names and their values in two columns without headings, or a table.

    Columns of a table for which the console is too narrow follow in further tables, which repeat
    the first column.
    """
    if isinstance(content, Mapping):
        grid = Table.grid(padding=(0, 3, 0, 0))
        grid.add_column(style="dim", overflow="fold")
        grid.add_column(overflow="fold")
        for row in content.items():
            grid.add_row(*map(_cell, row))
        yield grid
        return
    width = len(content[0])
    while True:
        table, fits = _table([row[:width] for row in content], console)
        if fits or width <= 2:
            break
        width -= 1
    yield table
    rest = [[*row[:1], *row[width:]] for row in content]
    rest = [row for row in rest if len(row) == 1 or any(row[1:])]
    if width < len(content[0]) and len(rest) > 1:
        yield Text()
        yield from _parts(rest, console)


def _table(content: Rows, console: Console) -> tuple[Table, bool]:
    """Returns a table, and whether the console has room for it if its last column is folded."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    headings = [heading.removesuffix(":>") for heading in content[0]]
    for name, heading in zip(headings, content[0], strict=True):
        table.add_column(name, justify="left" if name == heading else "right", overflow="fold")
    for row in content[1:]:
        # A single cell is a heading of the rows below it.
        table.add_row(*(_cell(text, "bold" if len(row) == 1 else "") for text in row))
    last = [headings[-1], *(row[-1] for row in content[1:] if len(row) == len(headings))]
    unlimited = console.options.update_width(sys.maxsize)
    whole, folded = (Measurement.get(console, unlimited, x) for x in (table, Text("\n".join(last))))
    # Where the longest word of the last column has room, nothing else is folded.
    fits = whole.maximum - folded.maximum + folded.minimum < console.width
    for column in table.columns[:-1] if fits else ():
        column.no_wrap = True
    return table, fits


def _dataset(summary: Mapping[str, Any]) -> tuple[str, str, dict[str, Mapping[str, str] | Rows]]:
    """Returns the title, the line below it, and what each section has below its heading."""
    lengths, features, tasks = summary["lengths"], summary["features"], summary["tasks"]
    num_bytes = sum(column["num_bytes"] for column in summary["columns"])
    numbers = (lengths["episodes"], lengths["total"], len(tasks))
    counts = ", ".join(map(count, numbers, ("episode", "step", "task")))
    ends = [lengths[name] for name in ("min", "median", "max", "total")]
    hz = summary["conventions"].control_frequency_hz
    sections = {
        "": {
            "format version": str(summary["format_version"]),
            "schema hash": summary["schema_hash"],
            **_choice(summary),
            **({"pulled from": summary["hub"]["address"]} if summary["hub"] else {}),
            **provenance_text(summary, _MAX_NOTE),
        },
        "Columns": [
            ["column", "per", "records:>", "shards:>", "MB:>", "bytes/\nstep:>", "licence"],
            *map(_column, summary["columns"]),
        ],
        "Left on the hub": _left(summary),
        "Features": [
            ["feature", "column", "at\nrest", "in\nbatch", "shape", "bytes/\nstep:>", "dims"],
            *map(_feature, features),
        ],
        "Computed": {f["key"]: origin_text(f["origin"]) for f in features if f["origin"]},
        "Tasks, by their number of episodes" if len(tasks) > _MAX_ROWS else "Tasks": _tasks(tasks),
        "Episode lengths": [
            ["", "min:>", "median:>", "max:>", "total:>"],
            ["steps", *(f"{value:,.10g}" for value in ends)],
            ["seconds", *(f"{value / hz:,.1f}" for value in ends)],
        ],
        f"Statistics over {summary['kept_steps']:,} steps": _dims(summary["statistics"]),
        "Depth": _depth(summary["depth"]),
        "Conventions": conventions_text(summary),
    }
    return summary["name"], f"{counts}, {_megabytes(num_bytes)} MB in {summary['path']}", sections


def _left(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns the features of the columns that a pull left on the hub, and how to fetch them."""
    if not summary["hub"] or not summary["hub"]["left"]:
        return {}
    address, left, path = summary["hub"]["address"], summary["hub"]["left"], summary["path"]
    rows = {name: ", ".join(keys) for name, keys in left.items()}
    # One in the cache is fetched when it is read.
    if not is_dataset_address(path):
        rows["to fetch"] = f"octograin pull {address} {path} --columns {' '.join(left)}"
    return rows


def _choice(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns which episodes are excluded and which failed, in words."""
    excluded, failed = summary["excluded_episodes"], summary["failed_episodes"]
    rows = {}
    if excluded:
        steps = summary["lengths"]["total"] - summary["kept_steps"]
        rows["excluded"] = f"{ranges(excluded)}: {count(len(excluded), 'episode')}, "
        rows["excluded"] += f"{count(steps, 'step')}, not used and not in the statistics"
    if failed is not None:
        rows["failed"] = f"{ranges(failed)}: {count(len(failed), 'episode')}" if failed else "none"
    return rows


def _episode(summary: Mapping[str, Any]) -> tuple[str, str, dict[str, Mapping[str, str] | Rows]]:
    """Like `_dataset`."""
    first, steps = summary["first_step"], summary["steps"]
    tasks = [[str(t["step"]), str(t["index"]), t["text"] or "none"] for t in summary["tasks"]]
    records = [[r["column"], f"{r['first']} to {r['last']}", r["file"]] for r in summary["records"]]
    sections = {
        "": {
            "source id": summary["source_id"] or "not known",
            "length": f"{steps:,} steps, {summary['duration_s']:.1f} s",
            **({"excluded": "not used"} if summary["is_excluded"] else {}),
            "steps of the dataset": f"{first} to {first + steps - 1}",
            **summary["texts"],
        },
        "Tasks": [["from step:>", "task:>", "instruction"], *_first(tasks)],
        "Records": [["column", "records:>", "file"], *_first(records)],
        "Values": _dims(summary["values"]),
        "Depth": _depth(summary["depth"]),
    }
    title = f"{summary['name']}, episode {summary['episode']}"
    return title, f"of {summary['episodes']:,} episodes", sections


def _column(column: Mapping[str, Any]) -> list[str]:
    counts = (f"{column[name]:,}" for name in ("records", "shards"))
    sizes = (_megabytes(column["num_bytes"]), f"{column['bytes_per_step']:,.0f}")
    return [column["name"], column["per"], *counts, *sizes, column["licence"] or "not known"]


def _feature(feature: Mapping[str, Any]) -> list[str]:
    num_bytes = feature["bytes_per_step"]
    return [
        feature["key"],
        feature["column"],
        "encoded" if feature["kind"] in ("image", "depth") else feature["dtype"],
        feature["batch_dtype"] or "never",
        " ".join(map(str, feature["shape"])) or "scalar",
        "varies" if num_bytes is None else f"{num_bytes:,}",
        " ".join(feature["dims"]),
    ]


def origin_text(origin: TokenOrigin) -> str:
    """Says in a line how tokens were computed."""
    encoder = origin.encoder
    height, width = encoder.image_size
    views = "alone" if encoder.views == "single" else f"of {' and '.join(encoder.cameras)}"
    lost = f", {origin.reduction_error:.2g} of it lost before" if origin.reduction_error else ""
    return (
        f"{encoder.weights} ({encoder.weights_digest[:8]}), layer {origin.layer}, {origin.camera} "
        f"{views} at {height}x{width} {encoder.resize}, {origin.keep} as {origin.store} "
        f"(error {origin.storage_error:.1e}{lost})"
    )


def provenance_text(summary: Mapping[str, Any], longest: int) -> dict[str, str]:
    """Returns the provenance of a summarized dataset by name, at most `longest` characters each.

    The note of an edit lists all of its episodes, which may be half a million.
    """
    notes = summary["provenance"].items()
    return {name.replace("_", " "): shortened(text, longest) for name, text in notes}


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> Rows:
    """Returns a row for each task; of too many those with the most episodes, and a count."""
    names = ["index", "episodes", "steps"]
    names += ["removed_steps"] * any(task["removed_steps"] for task in tasks)
    headings = {"index": "task", "removed_steps": "no-ops removed"}
    head = [*(f"{headings.get(name, name)}:>" for name in names), "instruction"]
    if len(tasks) > _MAX_ROWS:
        # `sorted` is stable: tasks of as many episodes stay in their order.
        shown = sorted(tasks, key=lambda task: -task["episodes"])[:_MAX_ROWS]
    else:
        shown = tasks
    rows = [[*(f"{t[name]:,}" for name in names), t["text"] or "none"] for t in shown]
    return [head, *rows, *_more(len(tasks) - len(shown), len(head))]


def _first(rows: Rows) -> Rows:
    """Returns the first rows, and one that counts the others if there are too many."""
    more = len(rows) - _MAX_ROWS
    return [*rows[:_MAX_ROWS], *_more(more, len(rows[0]))] if more > 0 else rows


def _more(number: int, num_columns: int) -> Rows:
    """Returns a row that counts those that are not shown; none if all are."""
    if not number:
        return []
    return [[*([""] * (num_columns - 1)), f"and {number:,} more with --json"]]


def _dims(features: Mapping[str, Sequence[Mapping[str, Any]]]) -> Rows:
    """Returns a row for each dimension below a row with the feature's name; one for a scalar."""
    if not features:
        return []
    _, *names = next(iter(features.values()))[0]
    table = [["feature", *(f"{name}:>" for name in names)]]
    for key, dims in features.items():
        rows = [[dim["dim"], *_numbers([dim[name] for name in names])] for dim in dims[:_MAX_DIMS]]
        if len(dims) == 1 and not dims[0]["dim"]:
            table.append([short_name(key), *rows[0][1:]])
            continue
        table += [[short_name(key)], *([f"  {name}", *numbers] for name, *numbers in rows)]
        if len(dims) > _MAX_DIMS:
            note = f"  and {len(dims) - _MAX_DIMS} more with --json"
            table.append([note, *([""] * len(names))])
    return table


def _numbers(values: Sequence[float | int | bool]) -> list[str]:
    """Formats a row with four decimals, or with exponents if the row is very large or small.

    Integers stay integers; true and false are words.
    """
    if not any(isinstance(value, float) for value in values):
        return [str(value).lower() for value in values]
    size = max(abs(value) for value in values)
    is_plain = size == 0 or _SMALLEST <= size < _LARGEST
    # A sum with 0.0 has no sign where it is zero.
    return [f"{round(value, 4) + 0.0:.4f}" if is_plain else f"{value:.3e}" for value in values]


def _depth(ranges: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        key: f"{found['min_m']:.3f} to {found['max_m']:.3f} m, readings at {found['readings']:.1%} "
        f"of the pixels of {found['steps']} steps"
        for key, found in ranges.items()
    }


def conventions_text(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns the conventions of a summarized dataset by name, each in words."""
    conventions = summary["conventions"]
    names = next((f["dims"] for f in summary["features"] if f["key"] == ACTION), ())
    grippers = []
    for gripper in conventions.all_grippers:
        name = f" ({names[gripper.dim]})" if gripper.dim < len(names) else ""
        commands = f"open {gripper.open:g}, close {gripper.close:g}"
        grippers.append(f"{gripper.dim}{name} {gripper.kind}, {commands}")
    threshold = conventions.no_op_threshold
    return {
        "image orientation": conventions.image_orientation,
        **({"action": "target poses"} if conventions.target_poses else {}),
        "rotation": conventions.rotation,
        "control frequency": f"{conventions.control_frequency_hz:g} Hz",
        "no ops": conventions.no_ops + (f", below {threshold:g}" if threshold else ""),
        "gripper": "; ".join(grippers) or "none",
        **({"rotations": "; ".join(map(str, poses))} if (poses := conventions.rotations) else {}),
    }


def _megabytes(num_bytes: int) -> str:
    """Formats a size in MB, with one decimal below 100 and with none above."""
    size = num_bytes / 1e6
    return f"{size:,.1f}" if size < 100 else f"{size:,.0f}"
