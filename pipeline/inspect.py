"""`python -m pipeline.inspect DST`: what a dataset directory holds, as text, JSON or a picture."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pydantic
import tyro
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline import picture
from pipeline.conventions import Conventions
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import dump_json, to_json_values
from pipeline.manifest import Manifest, Shard
from pipeline.schema import EPISODES, SOURCE_ID, Column
from pipeline.statistics import FeatureStatistics

_MB = 1e6
_PLAIN_WIDTH = 120
"""Characters of a line where stdout is no terminal."""
_MAX_DIM_ROWS = 32
"""Dimensions of a feature that the text shows; JSON has all of them."""
_MOMENTS = ("mean", "std", "min", "p01", "p99", "max")
_SMALLEST, _LARGEST = 1e-3, 1e6
"""Numbers in between are written without an exponent."""


@dataclasses.dataclass(frozen=True)
class ColumnSummary:
    """One column on disk."""

    name: str
    per: str
    """`step` or `episode`: what a record stands for."""
    records: int
    shards: int
    num_bytes: int
    """Of all its files."""
    bytes_per_step: float
    """Of all its files, over the steps of the dataset."""
    licence: str
    """Empty where the manifest names none."""


@dataclasses.dataclass(frozen=True)
class FeatureSummary:
    """One feature as the schema declares it."""

    key: str
    column: str
    kind: str
    """`tensor`, `image` or `text`."""
    dtype: str
    """At rest."""
    batch_dtype: str | None
    """None for a text, which never enters a batch."""
    shape: tuple[int, ...]
    """Of one step."""
    dims: tuple[str, ...]
    """Names of the last axis; empty where not given."""
    bytes_per_step: int | None
    """At rest; None for images and texts, whose bytes vary."""


@dataclasses.dataclass(frozen=True)
class TaskSummary:
    """One instruction."""

    index: int
    """`task_index` of its steps."""
    text: str
    episodes: int
    """That have it in at least one step."""
    steps: int
    removed_steps: int
    """Steps without motion that the conversion left out."""


@dataclasses.dataclass(frozen=True)
class LengthSummary:
    """Steps of the episodes."""

    episodes: int
    min: int
    median: float
    max: int
    total: int


@dataclasses.dataclass(frozen=True)
class DimSummary:
    """Statistics of one dimension over every step."""

    dim: str
    """Its name, or its place such as `[3]`; empty for a scalar."""
    mean: float
    std: float
    min: float
    p01: float
    p99: float
    max: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Everything about a dataset that fits on a page."""

    path: str
    name: str
    format_version: int
    schema_hash: str
    provenance: Mapping[str, str]
    conventions: Conventions
    lengths: LengthSummary
    columns: tuple[ColumnSummary, ...]
    features: tuple[FeatureSummary, ...]
    tasks: tuple[TaskSummary, ...]
    statistics: Mapping[str, tuple[DimSummary, ...]]
    """By feature key."""


@dataclasses.dataclass(frozen=True)
class EpisodeTask:
    """An instruction inside an episode."""

    step: int
    """The first step that has it."""
    index: int
    """Its `task_index`."""
    text: str


@dataclasses.dataclass(frozen=True)
class RecordRange:
    """Records of an episode that lie in one shard, one after the other."""

    column: str
    file: str
    """Relative to the dataset directory."""
    first: int
    """Place in the file."""
    last: int
    """Place in the file, included."""


@dataclasses.dataclass(frozen=True)
class DimRange:
    """Values of one dimension over an episode; whole or true and false where the feature is."""

    dim: str
    """As in `DimSummary`."""
    first: float | int | bool
    last: float | int | bool
    min: float | int | bool
    max: float | int | bool


@dataclasses.dataclass(frozen=True)
class EpisodeSummary:
    """Everything about one episode that fits on a page."""

    path: str
    """Of the dataset directory."""
    name: str
    """Of the dataset."""
    episode: int
    """Counted from 0."""
    episodes: int
    """Of the dataset."""
    source_id: str | None
    """What the source calls it; None where the source has no name for it."""
    steps: int
    duration_s: float
    """Steps over the control frequency."""
    first_step: int
    """Its first step, counted over the whole dataset."""
    tasks: tuple[EpisodeTask, ...]
    records: tuple[RecordRange, ...]
    texts: Mapping[str, str]
    """Other texts of the source, by feature key."""
    values: Mapping[str, tuple[DimRange, ...]]
    """By feature key, of the trajectories in the episode column."""


def summarize(dataset: Dataset) -> Summary:
    """The summary of an opened dataset; no record is read."""
    manifest = dataset.manifest
    return Summary(
        path=dataset.path,
        name=manifest.name,
        format_version=manifest.format_version,
        schema_hash=manifest.schema_hash,
        provenance=manifest.provenance,
        conventions=manifest.conventions,
        lengths=_lengths(manifest.episode_lengths),
        columns=tuple(_column(c, manifest) for c in manifest.schema.columns),
        features=_features(manifest),
        tasks=_tasks(dataset),
        statistics={k: _dims(k, s, manifest) for k, s in dataset.statistics.items()},
    )


def summarize_episode(dataset: Dataset, episode: int) -> EpisodeSummary:
    """The summary of one episode; reads its record in the episode column.

    Args:
      dataset: The opened directory.
      episode: From 0 to before `num_episodes`.

    Raises:
      DataError: Where its record is damaged.
      UserError: Where there is no such episode.
    """
    _check_episode(dataset, episode)
    manifest = dataset.manifest
    values = dataset.columns[EPISODES].read(episode)
    texts = {key: value.decode() for key, value in values.items() if isinstance(value, bytes)}
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    steps = manifest.episode_lengths[episode]
    return EpisodeSummary(
        path=dataset.path,
        name=manifest.name,
        episode=episode,
        episodes=dataset.num_episodes,
        source_id=texts.pop(SOURCE_ID, None),
        steps=steps,
        duration_s=steps / manifest.conventions.control_frequency_hz,
        first_step=int(dataset.episode_starts[episode]),
        tasks=_episode_tasks(manifest, episode),
        records=_records(dataset, episode),
        texts=texts,
        values={key: _ranges(key, value, manifest) for key, value in arrays.items()},
    )


def locate_records(shards: Sequence[Shard], first: int, count: int) -> list[tuple[str, int, int]]:
    """(file, first record, last record) of each shard that holds some of the records.

        shards of 4, 5 and 5 records, first = 3, count = 7
        [(shard 0, 3, 3), (shard 1, 0, 4), (shard 2, 0, 0)]

    Args:
      shards: Of a column, in their order.
      first: A record, counted over the whole column.
      count: Records from there on, at least 1.
    """
    places, start = [], 0
    for shard in shards:
        low, high = max(first - start, 0), min(first + count - start, shard.records)
        if low < high:
            places.append((shard.file, low, high - 1))
        start += shard.records
    return places


def to_json(summary: Summary | EpisodeSummary) -> str:
    """One JSON object with the summary's fields as keys; a number that is not finite is null."""
    values = pydantic.TypeAdapter(type(summary)).dump_json(summary)
    return dump_json(json.loads(values))


def to_text(summary: Summary | EpisodeSummary, console: Console) -> str:
    """Tables for a person, as wide as the console and in its colours; no cell is cut off."""
    parts = _dataset_parts(summary) if isinstance(summary, Summary) else _episode_parts(summary)
    with console.capture() as capture:
        console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _check_episode(dataset: Dataset, episode: int) -> None:
    if not 0 <= episode < dataset.num_episodes:
        raise UserError(
            where="--episode",
            expected=f"a whole number from 0 to {dataset.num_episodes - 1}",
            found=str(episode),
            remedy=f"{dataset.path} has {dataset.num_episodes} episodes, counted from 0.",
        )


def _lengths(lengths: tuple[int, ...]) -> LengthSummary:
    if not lengths:
        return LengthSummary(0, 0, 0.0, 0, 0)
    return LengthSummary(
        len(lengths), min(lengths), float(np.median(lengths)), max(lengths), sum(lengths)
    )


def _column(column: Column, manifest: Manifest) -> ColumnSummary:
    shards = manifest.shards[column.name]
    num_bytes = sum(shard.num_bytes for shard in shards)
    return ColumnSummary(
        name=column.name,
        per=column.per,
        records=sum(shard.records for shard in shards),
        shards=len(shards),
        num_bytes=num_bytes,
        bytes_per_step=num_bytes / max(sum(manifest.episode_lengths), 1),
        licence=manifest.licences.get(column.name, ""),
    )


def _features(manifest: Manifest) -> tuple[FeatureSummary, ...]:
    return tuple(
        FeatureSummary(
            key=feature.key,
            column=column.name,
            kind=feature.kind,
            dtype=feature.dtype,
            batch_dtype=feature.batch_dtype,
            shape=feature.shape,
            dims=feature.dims,
            bytes_per_step=feature.nbytes if feature.kind == "tensor" else None,
        )
        for column, feature in manifest.schema.features()
    )


def _tasks(dataset: Dataset) -> tuple[TaskSummary, ...]:
    """Counts by task; a step belongs to the instruction that holds at it."""
    manifest = dataset.manifest
    episodes, steps = ([0] * len(manifest.tasks) for _ in range(2))
    changing = {change.episode for change in manifest.task_changes}
    pairs = zip(manifest.episode_lengths, manifest.episode_tasks, strict=True)
    for number, (length, task) in enumerate(pairs):
        held = [(length, task)]
        if number in changing:
            parts = _episode_tasks(manifest, number)
            ends = [*(part.step for part in parts[1:]), length]
            held = [(end - p.step, p.index) for p, end in zip(parts, ends, strict=True)]
        for index in {index for _, index in held}:
            episodes[index] += 1
        for count, index in held:
            steps[index] += count
    removed = manifest.removed_steps or (0,) * len(manifest.tasks)
    rows = zip(manifest.tasks, episodes, steps, removed, strict=True)
    return tuple(TaskSummary(index, *row) for index, row in enumerate(rows))


def _episode_tasks(manifest: Manifest, episode: int) -> tuple[EpisodeTask, ...]:
    places = [(0, manifest.episode_tasks[episode])]
    places += [(c.step, c.task) for c in manifest.task_changes if c.episode == episode]
    return tuple(EpisodeTask(step, index, manifest.tasks[index]) for step, index in places)


def _records(dataset: Dataset, episode: int) -> tuple[RecordRange, ...]:
    manifest = dataset.manifest
    steps = int(dataset.episode_starts[episode]), manifest.episode_lengths[episode]
    return tuple(
        RecordRange(column.name, *place)
        for column in manifest.schema.columns
        for place in locate_records(
            manifest.shards[column.name], *(steps if column.per == "step" else (episode, 1))
        )
    )


def _dims(key: str, statistics: FeatureStatistics, manifest: Manifest) -> tuple[DimSummary, ...]:
    columns = [np.ravel(getattr(statistics, name)).tolist() for name in _MOMENTS]
    names = picture.dim_names(manifest.schema.find(key, manifest.name)[1])
    return tuple(DimSummary(*row) for row in zip(names, *columns, strict=True))


def _ranges(key: str, values: np.ndarray, manifest: Manifest) -> tuple[DimRange, ...]:
    flat = values.reshape(len(values), -1)
    if flat.dtype not in (np.bool_, np.int32, np.uint8):
        flat = flat.astype(np.float64)
    names = picture.dim_names(manifest.schema.find(key, manifest.name)[1])
    columns = (part.tolist() for part in (flat[0], flat[-1], flat.min(0), flat.max(0)))
    return tuple(DimRange(*row) for row in zip(names, *columns, strict=True))


def _dataset_parts(summary: Summary) -> list[RenderableType]:
    lengths, hz = summary.lengths, summary.conventions.control_frequency_hz
    num_bytes = sum(column.num_bytes for column in summary.columns)
    about = {
        "format version": str(summary.format_version),
        "schema hash": summary.schema_hash,
        **{_words(name): text for name, text in summary.provenance.items()},
    }
    counts = f"{lengths.episodes:,} episodes, {lengths.total:,} steps, {len(summary.tasks)} tasks"
    return [
        *_title(summary.name, f"{counts}, {_number(num_bytes / _MB)} MB in {summary.path}"),
        _pairs(about),
        *_section("Columns", _column_table(summary.columns)),
        *_section("Features", _feature_table(summary.features)),
        *_section("Tasks", _task_table(summary.tasks)),
        *_section("Episode lengths", _length_table(lengths, hz)),
        *_section(
            f"Statistics over {lengths.total:,} steps",
            _dims_table(_MOMENTS, summary.statistics),
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
    tasks = _table("from step:>", "task:>", "instruction")
    for task in summary.tasks:
        tasks.add_row(str(task.step), str(task.index), Text(task.text))
    records = _table("column", "file", "first record:>", "last record:>")
    for place in summary.records:
        records.add_row(place.column, place.file, str(place.first), str(place.last))
    return [
        *_title(f"{summary.name}, episode {summary.episode}", f"of {summary.episodes:,} episodes"),
        _pairs(about),
        *_section("Tasks", tasks),
        *_section("Records", records),
        *_section("Values", _dims_table(("first", "last", "min", "max"), summary.values)),
    ]


def _title(name: str, below: str) -> list[RenderableType]:
    return [Text(name, "bold"), Text(below), Text()]


def _section(heading: str, content: RenderableType) -> list[RenderableType]:
    return [Text(), Text(heading, "bold cyan"), content]


def _pairs(rows: Mapping[str, str]) -> RenderableType:
    """Names and what they are, without a heading."""
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(text))
    return Padding(table, (0, 0, 0, 1))


def _table(*headings: str) -> Table:
    """A table with a line below its headings; `:>` behind one puts its column to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True, header_style="dim")
    table.padding = (0, 1)
    for heading in headings:
        name, _, right = heading.partition(":")
        table.add_column(
            name, justify="right" if right else "left", no_wrap=bool(right), overflow="fold"
        )
    table.columns[0].no_wrap = True
    return table


def _column_table(columns: Iterable[ColumnSummary]) -> Table:
    table = _table("column", "per", "records:>", "shards:>", "MB:>", "bytes a step:>", "licence")
    for c in columns:
        table.add_row(
            Text(c.name),
            c.per,
            f"{c.records:,}",
            f"{c.shards:,}",
            _number(c.num_bytes / _MB),
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
            _shape(f.shape),
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


def _dims_table(names: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> Table:
    """Every feature with a line for each of its dimensions, the numbers under their names."""
    table = _table("feature", *(f"{name}:>" for name in names))
    for key, dims in rows.items():
        numbers = [_numbers([getattr(dim, name) for name in names]) for dim in dims]
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
    dim = values.get("gripper_dim")
    if dim is None:
        values = {k: v for k, v in values.items() if not k.startswith("gripper_")}
        values["gripper_dim"] = "none"
    else:
        dims = [f.dims for f in summary.features if f.key == "action"]
        named = dims and dim < len(dims[0])
        values["gripper_dim"] = f"{dim} ({dims[0][dim]})" if named else str(dim)
    return {
        _words(name): _value(name, value) for name, value in values.items() if value is not None
    }


def _words(name: str) -> str:
    return name.removesuffix("_hz").replace("_", " ")


def _value(name: str, value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{text} Hz" if name.endswith("_hz") else text


def _shape(shape: tuple[int, ...]) -> str:
    return " ".join(map(str, shape)) or "scalar"


def _number(value: float) -> str:
    """With one decimal below 100, with none above."""
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _numbers(values: Sequence[float | int | bool]) -> list[str]:
    """The values of a row with four decimals, or an exponent for a row that has no such size.

    Whole numbers stay whole; true and false are words.
    """
    if not any(isinstance(value, float) for value in values):
        return [str(value).lower() for value in values]
    size = max(abs(value) for value in values)
    is_plain = size == 0 or _SMALLEST <= size < _LARGEST
    return [f"{value:.4f}" if is_plain else f"{value:.3e}" for value in values]


@dataclasses.dataclass(frozen=True)
class Args:
    """Shows what a dataset directory holds: columns, features, tasks, statistics, conventions."""

    dst: tyro.conf.Positional[str]
    """Dataset directory: the folder with dataset.json; may be gs:// or s3://."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of tables."""
    episode: int | None = None
    """Show this episode, counted from 0, instead of the whole dataset."""
    plot: str | None = None
    """PNG file to draw: camera images, and the values of actions and observations."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and prints."""
    args = tyro.cli(Args, prog="python -m pipeline.inspect")
    with user_errors_exit(debug=args.debug):
        _inspect(args)


def _inspect(args: Args) -> None:
    target = None if args.plot is None else picture.check_target(args.plot)
    dataset = open_dataset(args.dst)
    if args.episode is None:
        summary = summarize(dataset)
    else:
        summary = summarize_episode(dataset, args.episode)
    if target is not None:
        picture.write(dataset, args.episode, target)
    sys.stdout.write(to_json(summary) if args.json else to_text(summary, _console()))
    if target is not None:
        sys.stderr.write(f"picture: {pathlib.Path(target)}\n")


def _console() -> Console:
    """A terminal as it is; else plain text of a fixed width."""
    is_terminal = sys.stdout.isatty()
    return Console(
        force_terminal=is_terminal,
        width=None if is_terminal else _PLAIN_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


if __name__ == "__main__":
    main()
