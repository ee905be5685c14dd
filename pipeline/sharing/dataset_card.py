"""Writes the card of a dataset: the README.md that the hub shows, with what it searches by."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.dataset import Dataset
from pipeline.hub.card_text import code, header, plain, signed, table
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_push import CARD_NAME
from pipeline.hub.hub_transfer import size
from pipeline.inspection.dataset_summary import summarize
from pipeline.inspection.summary_tables import conventions_text, origin_text, provenance_text
from pipeline.terminal import count, escaped, ranges

FIGURE_NAME = "figure.png"
_MAX_TASKS = 50
_MAX_NOTE = 1000
"""Maximum number of characters of a note in the provenance; dataset.json has all of them."""
_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "odc-by", "pddl", "odbl"),
    *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)
"""SPDX identifiers as the hub writes them, in lower case."""
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
"""The hub's size categories, by the number of steps below which each counts."""


def write_card(dataset: Dataset, repository: Repository) -> str:
    """Returns the text of a dataset's card: a YAML header, then Markdown, with its checksum.

    Args:
      dataset: The opened dataset.
      repository: Where it will be; a revision of it is left out.

    Raises:
      DataError: A depth image is corrupt.
    """
    summary = summarize(dataset)
    tokens = {f["key"]: origin_text(f["origin"]) for f in summary["features"] if f["origin"]}
    parts = {
        "Features": _features(summary["features"]),
        "Conventions": _list(conventions_text(summary)),
        "Columns and licences": _columns(summary["columns"]),
        "Computed features": _list(tokens),
        "Instructions": _tasks(summary["tasks"]),
        "Provenance": _list(provenance_text(summary, _MAX_NOTE)),
        "Use": _use(str(repository.at_revision(None))),
    }
    figure = f"![Images, actions and observations of the dataset]({FIGURE_NAME})"
    title = f"# {_text(summary['name'])}"
    body = [f"## {name}\n\n{text}" for name, text in parts.items() if text]
    return signed("\n\n".join([_header(summary), title, _counts(summary), figure, *body]) + "\n")


def licence_fields(licences: set[str]) -> dict[str, str]:
    """Returns the fields of the header for the licences of all columns."""
    names = {licence.lower() for licence in licences}
    if len(names) == 1 and names <= {*_LICENCES}:
        return {"license": names.pop()}
    if names <= {"", "unknown"}:
        return {"license": "unknown"}
    # Several, or in words: the card lists them by column.
    return {"license": "other", "license_name": "by-column", "license_link": CARD_NAME}


def _header(summary: Mapping[str, Any]) -> str:
    """The YAML header: what the hub searches by."""
    total = summary["lengths"]["total"]
    fields = {
        **licence_fields({column["licence"] for column in summary["columns"]}),
        "task_categories": ["robotics"],
        "tags": ["octograin", "arrayrecord"],
        "size_categories": [next((name for limit, name in _SIZES if total < limit), "n>1T")],
    }
    # Without this line the hub's viewer would show dataset.json as a table.
    return header(fields).removesuffix("---") + "viewer: false\n---"


def _counts(summary: Mapping[str, Any]) -> str:
    lengths, hz = summary["lengths"], summary["conventions"].control_frequency_hz
    counts = (lengths["episodes"], lengths["total"], len(summary["tasks"]))
    counted = ", ".join(map(count, counts, ("episode", "step", "instruction")))
    excluded = summary["excluded_episodes"]
    note = f" Excluded, and not in the statistics: {ranges(excluded)}." if excluded else ""
    return f"{counted} at {hz:g} Hz; episodes of {lengths['min']} to {lengths['max']} steps.{note}"


def _features(features: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for feature in features:
        is_image = feature["kind"] in ("image", "depth")
        dtype = f"{feature['batch_dtype']}, encoded" if is_image else feature["dtype"]
        shape = ", ".join(map(str, feature["shape"])) or "scalar"
        dims = code(" ".join(feature["dims"]))
        rows.append([code(feature["key"]), code(feature["column"]), dtype, shape, dims])
    return table(["feature", "column", "dtype", "shape", "dimensions"], rows)


def _columns(columns: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            code(column["name"]),
            column["per"],
            f"{column['records']:,}",
            size(column["num_bytes"]),
            _text(column["licence"] or "not known"),
        ]
        for column in columns
    ]
    return table(["column", "one record per", "records", "size", "licence"], rows)


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    more = len(tasks) - _MAX_TASKS
    # Of too many those with the most episodes; `sorted` is stable.
    shown = sorted(tasks, key=lambda task: -task["episodes"])[:_MAX_TASKS] if more > 0 else tasks
    rows = [
        [f"{task['episodes']:,}", f"{task['steps']:,}", _text(task["text"] or "none")]
        for task in shown
    ]
    note = f"\n\nAnd {count(more, 'more instruction')}." if more > 0 else ""
    return table(["episodes", "steps", "instruction"], rows) + note


def _use(address: str) -> str:
    return f"""```sh
octograin pull {address} DIR    # all columns; --columns names some
```

```python
import octograin

dataset = octograin.open_dataset("{address}", keys=["action"])    # fetches its column
dataset.episode(0)["action"]    # float32 (t a)
```

A run reads it with `DatasetConfig("{address}@REVISION")` in its config."""


def _list(values: Mapping[str, str]) -> str:
    return "\n".join(f"- {_text(name)}: {_text(text)}" for name, text in values.items())


def _text(text: str) -> str:
    """A text of the dataset, which comes from strangers, as Markdown shows it unchanged."""
    return plain(escaped(text))
