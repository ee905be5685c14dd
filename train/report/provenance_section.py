"""Sections on the inputs of a run: pretrained weights, datasets, config, environment."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pipeline.data.conventions import Gripper, grippers_of
from pipeline.files import dump_json
from pipeline.terminal import count
from train.octo.released.weights_report import LoadRow, Shape, Status
from train.report.markup import Html, join, percent, short, tag, three_digits
from train.report.page_parts import absent, folded, key, note, section, table
from train.report.report_inputs import (
    CONFIG_NAME,
    DATASETS_NAME,
    ENVIRONMENT_NAME,
    LOAD_REPORT_NAME,
    RunFiles,
)

_ORDER: Mapping[Status, int] = {
    "mismatched shape": 0,
    "new": 1,
    "unused": 2,
    "resized": 3,
    "loaded": 4,
}
"""Order of the statuses: those that need attention come first."""
_MEANINGS: Mapping[Status, str] = {
    "loaded": "taken from the checkpoint",
    "resized": "taken from the checkpoint, resized to the model's shape",
    "new": "only the model has them: fresh values",
    "unused": "only the checkpoint has them: left out",
    "mismatched shape": "other shape in the checkpoint: fresh values",
}
_MOMENTS = ("mean", "std", "min", "p01", "p99", "max")
_MAX_DIMS = 32
"""Largest number of dimensions of a feature whose statistics are shown."""
_DIGEST_LENGTH = 12


def weights_section(run: RunFiles) -> Html:
    """Shows how every tensor of the model and of the checkpoint was used."""
    title = "Pretrained weights"
    if run.load_report is None:
        return section(title, absent(_why_no_report(run)), anchor="weights")
    rows = sorted(run.load_report.rows, key=lambda row: (_ORDER[row.status], row.path))
    source = run.setting("pretrained_path")
    about = [note(f"Of {source}.")] if source else []
    tensors = table(
        ["tensor", "status", "in the model", "in the checkpoint", "how"],
        [
            [
                _breakable(row.path),
                row.status,
                _shape(row.target_shape),
                _shape(row.checkpoint_shape),
                row.how,
            ]
            for row in rows
        ],
        "Tensors; those that were not loaded come first",
        is_wide=True,
    )
    return section(
        title,
        *about,
        _status_bar(rows),
        _status_table(rows),
        folded(f"All {count(len(rows), 'tensor')}", tensors),
        anchor="weights",
    )


def datasets_section(run: RunFiles) -> Html:
    """Shows the datasets, the meaning of their values, and their statistics."""
    if not run.datasets:
        reason = f"The datasets were not described: {DATASETS_NAME} is missing."
        return section("Datasets", absent(reason), anchor="datasets")
    headings = ["dataset", ">steps", ">Hz", "images", "rotation", "no-ops", "gripper"]
    headings += ["licence", "checksum"]
    rows = [_dataset_row(values) for values in run.datasets.values()]
    folds = [
        folded(
            f"Statistics of {values.get('name', path)}",
            note(f"{path}, schema {values.get('schema_hash', 'not known')}"),
            *_statistics(values, _action_dims(run)),
        )
        for path, values in run.datasets.items()
    ]
    normalization = ", ".join(
        sorted({str(v.get("normalization", "not known")) for v in run.datasets.values()})
    )
    caption = f"By name; normalisation: {normalization}"
    tables = [table(headings, rows, caption, is_wide=True), *_encoder_tables(run)]
    return section("Datasets", *tables, *folds, anchor="datasets")


def environment_section(run: RunFiles) -> Html:
    """Shows what the run was computed with."""
    title, found = "Environment", run.environment
    if not found:
        reason = f"The environment is not known: {ENVIRONMENT_NAME} is missing."
        return section(title, absent(reason), anchor="environment")
    rows = [
        ["devices", str(found.get("devices", ""))],
        ["commit", tag("code", found.get("commit") or "not a checkout")],
        ["Python", str(found.get("python", ""))],
    ]
    rows += [
        [name, version]
        for name, version in found.get("packages", {}).items()
        if version is not None
    ]
    caption = "Of the last start of the run"
    return section(title, table(["what", "version"], rows, caption), anchor="environment")


def _encoder_tables(run: RunFiles) -> list[Html]:
    """Builds a table of the token columns and the weights that made them, if there are any."""
    rows = [
        [
            str(values.get("name", path)),
            key.removeprefix("observation/"),
            _weights(str(origin.get("encoder", {}).get("weights", ""))),
            str(origin.get("encoder", {}).get("licence", "")),
        ]
        for path, values in run.datasets.items()
        for key, origin in values.get("encoders", {}).items()
    ]
    if not rows:
        return []
    return [table(["dataset", "tokens", "weights", "licence"], rows, "Geometry tokens")]


def _weights(source: str) -> str:
    return f"{source}, untrained" if source.startswith("random:") else source


def config_section(run: RunFiles) -> Html:
    """Shows the whole config."""
    if not run.config:
        reason = f"The config is not known: {CONFIG_NAME} is missing."
        return section("Config", absent(reason), anchor="config")
    text = tag("pre", dump_json(run.config).rstrip(), tabindex=0)
    return section("Config", folded(CONFIG_NAME, text), anchor="config")


def _why_no_report(run: RunFiles) -> str:
    if run.config and run.setting("pretrained_path") is None:
        return "The run started from random weights: pretrained_path is not set."
    return f"What was loaded is not known: {LOAD_REPORT_NAME} is missing."


def _numbers_by_status(rows: Sequence[LoadRow]) -> collections.Counter[Status]:
    """Counts the parameters in the tensors of each status."""
    numbers = collections.Counter[Status]()
    for row in rows:
        numbers[row.status] += math.prod(row.target_shape or row.checkpoint_shape or ())
    return numbers


def _status_bar(rows: Sequence[LoadRow]) -> Html:
    """Builds a stacked bar of the statuses' shares of the parameters."""
    numbers = _numbers_by_status(rows)
    parts = [
        tag("span", class_=f"key-{_css(status)}", style=f"flex-grow:{numbers[status]}")
        for status in get_args(Status)
        if numbers[status]
    ]
    return tag("div", *parts, class_="stack", aria_hidden="true")


def _status_table(rows: Sequence[LoadRow]) -> Html:
    tensors, numbers = collections.Counter(row.status for row in rows), _numbers_by_status(rows)
    whole = sum(numbers.values()) or 1
    cells = [
        [
            join([key(_css(status), status), tag("small", _MEANINGS[status])]),
            f"{tensors[status]:,}",
            f"{numbers[status]:,}",
            percent(numbers[status] / whole),
        ]
        for status in get_args(Status)
        if tensors[status]
    ]
    headings = ["status", ">tensors", ">numbers", ">share"]
    return table(headings, cells, "Tensors by how they were used")


def _css(status: Status) -> str:
    return status.partition(" ")[0]


def _breakable(path: str) -> Html:
    """Lets a line break after each `/` of a path."""
    first, *rest = path.split("/")
    return join([first, *(piece for part in rest for piece in ("/", tag("wbr"), part))])


def _shape(shape: Shape | None) -> str:
    if shape is None:
        return "\N{EN DASH}"
    return (
        "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}".join(map(str, shape))
        or "scalar"
    )


def _dataset_row(values: Mapping[str, Any]) -> list[str]:
    conventions = values.get("conventions", {})
    steps = values.get("statistics", {}).get("action", {}).get("count")
    hz = conventions.get("control_frequency_hz")
    digest = str(values.get("digest", ""))
    return [
        str(values.get("name", "")),
        "" if steps is None else f"{steps:,}",
        "" if hz is None else f"{hz:g}",
        _words(conventions.get("image_orientation")),
        _words(conventions.get("rotation")),
        _words(conventions.get("no_ops")),
        "; ".join(map(_gripper, grippers_of(conventions))) or "none",
        ", ".join(dict.fromkeys(map(str, values.get("licences", {}).values()))),
        tag("code", digest[:_DIGEST_LENGTH], title=digest),
    ]


def _gripper(gripper: Gripper) -> str:
    kind = "" if gripper.kind == "binary" else f" ({gripper.kind})"
    return (
        f"dimension {gripper.dim}{kind}, open {short(gripper.open)}, close {short(gripper.close)}"
    )


def _words(value: object) -> str:
    return "" if value is None else str(value).replace("_", " ")


def _action_dims(run: RunFiles) -> tuple[str, ...]:
    """Returns the names of the action's dimensions; empty if no file has them."""
    if run.episode is not None:
        return run.episode.dims
    return tuple(run.validation[-1].by_dim) if run.validation else ()


def _statistics(dataset: Mapping[str, Any], action_dims: Sequence[str]) -> list[Html]:
    """One table per feature, one row per dimension."""
    tables = []
    for name, values in dataset.get("statistics", {}).items():
        columns = [values.get(moment, []) for moment in _MOMENTS]
        num_dims = min(map(len, columns))
        known = dataset.get("features", {}).get(name, {}).get("dims", ())
        known = known or (action_dims if name == "action" else ())
        names = known if len(known) == num_dims else range(num_dims)
        rows = [
            [str(names[dim]), *(three_digits(column[dim]) for column in columns)]
            for dim in range(min(num_dims, _MAX_DIMS))
        ]
        more = f", the first {_MAX_DIMS} of {num_dims} dimensions" if num_dims > _MAX_DIMS else ""
        caption = f"{name}, {count(values.get('count', 0), 'step')}{more}"
        tables.append(table(["dimension", *(f">{m}" for m in _MOMENTS)], rows, caption))
    return tables
