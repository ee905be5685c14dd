"""Builds the whole page, from title to sections, and writes it."""

import pathlib
from collections.abc import Mapping, Sequence

from pipeline.files import write_text_atomically, writing
from pipeline.terminal import count
from train.checkpoints.run_directory import REPORT_NAME
from train.report.episode_section import episode_section, views_section
from train.report.markup import Html, duration, tag, three_digits
from train.report.provenance_section import (
    config_section,
    datasets_section,
    environment_section,
    weights_section,
)
from train.report.quality_section import error_section, task_section
from train.report.report_inputs import RunFiles, read_run
from train.report.run_summary import NUM_LAST_STEPS, Summary, summarize
from train.report.styles import STYLES
from train.report.training_section import loss_section, optimizer_section, pace_section

_UNKNOWN = "\N{EN DASH}"
_CONTENTS = {
    "loss": "Loss",
    "error": "Action error",
    "tasks": "Tasks",
    "episode": "Episode",
    "views": "Step 0",
    "updates": "Updates",
    "pace": "Pace",
    "weights": "Weights",
    "datasets": "Datasets",
    "environment": "Environment",
    "config": "Config",
}
"""Section titles in order, by anchor."""


def write_report(run_directory: pathlib.Path) -> pathlib.Path:
    """Writes `report.html` into a run directory, replacing an earlier one; returns its path.

    The page loads no other files. A missing file of the run is not an error; its section states the
    reason.

    Raises:
      UserError: The directory does not exist, holds no run, or cannot be written.
      DataError: A file of the run is corrupt.
    """
    path = run_directory / REPORT_NAME
    page = to_page(read_run(run_directory))
    with writing(path):
        write_text_atomically(path, page)
    return path


def to_page(run: RunFiles) -> str:
    """Returns the page of a run as HTML."""
    summary = summarize(run)
    sections = [
        loss_section(run, summary),
        error_section(run),
        task_section(run),
        episode_section(run),
        views_section(run),
        optimizer_section(run),
        pace_section(run),
        weights_section(run),
        datasets_section(run),
        environment_section(run),
        config_section(run),
    ]
    body = tag("body", _header(run, summary), tag("main", *sections))
    return to_document(f"{run.name}: training report", body)


def to_document(title: str, body: Html) -> str:
    """A page that stands alone, with the report's styles."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLES)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def header(
    kind: str,
    name: str,
    origin: str,
    figures: Sequence[tuple[str, str, str]],
    contents: Mapping[str, str],
) -> Html:
    """Builds the top of a page.

    Args:
      kind: The kind of page, such as training report.
      name: The title.
      origin: A sentence about the content.
      figures: Numbers at the top, as (name, value, detail).
      contents: Titles of sections by anchor.
    """
    links = [tag("a", title, href=f"#{anchor}") for anchor, title in contents.items()]
    return tag(
        "header",
        tag("p", kind, class_="kind"),
        tag("h1", name),
        tag("p", origin, class_="origin"),
        tag("dl", *(_figure(*parts) for parts in figures), class_="figures"),
        tag("nav", *links, aria_label="Contents"),
    )


def _header(run: RunFiles, summary: Summary) -> Html:
    figures = _figures(run, summary)
    return header("Training report", run.name, _origin(run), figures, _CONTENTS)


def _origin(run: RunFiles) -> str:
    """Describes in a sentence what was trained, and on what."""
    source = run.setting("pretrained_path")
    begun = f"Octo finetuned from {source}" if source else "Octo trained from random weights"
    begun = begun if run.config else "Octo"
    names = [str(values.get("name", path)) for path, values in run.datasets.items()]
    data = f" on {', '.join(names)}" if names else ""
    batch_size = run.setting("batch_size")
    batch = f"; {count(batch_size, 'sample')} per step" if batch_size else ""
    names = f"tokens of {', '.join(run.untrained)} by untrained weights" if run.untrained else ""
    return f"{begun}{data}{batch}{names and f'; {names}'}."


def _figure(name: str, value: str, detail: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", detail)))


def _figures(run: RunFiles, summary: Summary) -> list[tuple[str, str, str]]:
    """Returns (name, value, detail) of the numbers at the top."""
    planned = run.setting("num_steps")
    validated = f"step {run.validation[-1].step:,}" if run.validation else "not validated"
    constant = (
        ""
        if summary.constant_error is None
        else (f"a constant: {three_digits(summary.constant_error)}")
    )
    fast = ("samples/s", summary.samples_per_s)
    if summary.samples_per_s is None:
        fast = ("steps/s", summary.steps_per_s)
    wait = summary.wait_share
    return [
        ("Steps", _whole(summary.steps), f"of {planned:,}" if planned else ""),
        ("Final loss", _short(summary.loss), f"last {NUM_LAST_STEPS} steps"),
        ("Validation loss", _short(summary.validation_loss), validated),
        ("Action error", _short(summary.action_error), constant or validated),
        (
            "Wall time",
            _UNKNOWN if summary.wall_s is None else duration(summary.wall_s),
            "sum over steps",
        ),
        (fast[0].capitalize(), _short(fast[1]), "over all steps"),
        ("Wait share", _UNKNOWN if wait is None else f"{100 * wait:.1f} %", "waiting for data"),
        ("Skipped", _whole(summary.skipped), "updates"),
    ]


def _short(value: float | None) -> str:
    return _UNKNOWN if value is None else three_digits(value)


def _whole(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"
