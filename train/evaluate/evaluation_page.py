"""The page of an evaluation: success by task, its uncertainty, and the settings."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from pipeline.files import to_json_values, write_text_atomically, writing
from pipeline.terminal import count
from train.checkpoints.run_directory import REPORT_NAME
from train.evaluate.result_tables import (
    Comparison,
    demonstrated,
    interval,
    paired_rows,
    success_rows,
    verdict,
)
from train.evaluate.results import Results
from train.report.charts import Axis, Chart, Curve
from train.report.html_page import duration, percent, render

_KINDS = ("train", "validation")
"""Kinds of curves, with their colours, of the first and the second policy."""
_APART = 0.26
"""Vertical distance between the policies of a comparison, as a fraction of a row."""
_UNKNOWN = "\N{EN DASH}"

Evaluated = tuple[pathlib.Path, Results]
"""The folder of a policy's results, and the results."""


def write_report(policies: Sequence[Evaluated], comparison: Comparison | None) -> pathlib.Path:
    """Writes `report.html` into the folder of the first policy; returns its path.

    Args:
      policies: One policy, or the two that were compared.
      comparison: The comparison of two policies; None for one.

    Raises:
      UserError: The file cannot be written.
    """
    path = policies[0][0] / REPORT_NAME
    with writing(path):
        write_text_atomically(path, to_page(policies, comparison))
    return path


def to_page(policies: Sequence[Evaluated], comparison: Comparison | None) -> str:
    """Returns the page as HTML; the arguments are those of `write_report`."""
    results = [of_policy for _, of_policy in policies]
    names = [f"{one.run}, step {one.settings.step:,}" for one in results]
    first = results[0]
    trials, tasks = count(len(first.trials), "trial"), count(len(first.tasks), "task")
    compared = f", compared with {names[1]}" if len(names) > 1 else ""
    columns = [_settings(one) for one in results]
    return render(
        "evaluation.html.j2",
        title=f"{first.run}: {first.settings.conditions}",
        kind="Evaluation",
        name=f"{first.run}, {first.settings.conditions}",
        origin=f"Rollouts of {names[0]} in the LIBERO simulator: {trials} of {tasks}{compared}.",
        figures=_figures(first),
        names=names,
        legend_entries=list(zip(_KINDS, names, strict=False)),
        notes=[
            f"{name}, not held out: {demonstrated(one)}"
            for name, one in zip(names, results, strict=True)
            if one.num_demonstrated
        ],
        rates=_rates(results),
        successes=[success_rows(one) for one in results],
        comparison=comparison,
        pairs=comparison and paired_rows(comparison),
        verdict=comparison and verdict(comparison),
        trials=[_trials(one, folder, policies[0][0]) for folder, one in policies],
        runs=[one.run for one in results],
        settings=[(name, *(column[name] for column in columns)) for name in columns[0]],
    )


def _figures(results: Results) -> list[tuple[str, str, str]]:
    """Returns (name, value, detail) of the numbers at the top."""
    rate, steps, inference = results.rate(), results.mean_steps(), results.inference
    latency = ("Inference", _UNKNOWN, "not measured")
    if inference is not None:
        batch = count(inference.batch_size, "environment")
        latency = ("Inference", f"{inference.p50_ms:.1f} ms", f"median, batch of {batch}")
    return [
        ("Success", percent(rate.value), f"{rate.num_successes} of {rate.num_trials}"),
        ("95 % interval", interval(rate), "Wilson"),
        ("Tasks", f"{len(results.tasks)}", results.settings.suite),
        ("Steps", _UNKNOWN if steps is None else f"{steps:.0f}", "of a success, mean"),
        ("Errors", f"{len(results.errors)}", "trials without an end"),
        latency,
        ("Time", duration(sum(trial.seconds for trial in results.trials)), "sum over trials"),
    ]


def _rates(results: Sequence[Results]) -> Chart:
    """Draws a dot for the rate of each task and of all, and a line over its 95 % interval."""
    # All tasks together first.
    tasks = [None, *sorted({task for of_policy in results for task in of_policy.tasks})]
    names = ["all" if task is None else f"task {task}" for task in tasks]
    x_axis, y_axis = Axis(0.0, 100.0), Axis(len(tasks) - 0.5, -0.5)
    paths = []
    for number, (kind, of_policy) in enumerate(zip(_KINDS, results, strict=False)):
        rates = [of_policy.rate(task) for task in tasks]
        # Policies of a comparison lie side by side within the row.
        y = np.arange(len(tasks)) + _APART * (number - (len(results) - 1) / 2)
        # A gap after each interval.
        ends = 100 * np.array([[*rate.interval, np.nan] for rate in rates])
        lines = Curve(kind, ends.ravel(), np.where(np.isnan(ends), np.nan, y[:, None]).ravel())
        dots = Curve(kind, 100 * np.array([rate.value for rate in rates]), y, mark="dots")
        paths += [(one.kind, one.mark, one.path(x_axis, y_axis)) for one in (lines, dots)]
    rate, percents = results[0].rate(), np.arange(0, 101, 20)
    alt = f"Success by task; {percent(rate.value)} of all trials, {interval(rate)} at 95 %."
    return Chart(
        *("", "", alt),
        x_ticks=x_axis.ticks(percents, [f"{value} %" for value in percents]),
        y_ticks=y_axis.ticks(np.arange(len(tasks)), names),
        paths=paths,
        x_label="success",
        height=56 + 30 * len(tasks),
    )


def _trials(results: Results, folder: pathlib.Path, home: pathlib.Path) -> list[tuple[str, ...]]:
    """Returns a row per trial, with a link to its video that is relative to the page."""
    rows = []
    for trial in results.trials:
        outcome = "success" if trial.success else "failure"
        outcome = outcome if trial.error is None else f"error: {trial.error}"
        link = _UNKNOWN
        if trial.video is not None:
            # Relative, so that the folder can be moved.
            path = os.path.relpath(folder / trial.video, home)
            link = Markup('<a href="{}">{}</a>').format(path, pathlib.Path(path).name)
        name = f"task {trial.task}, state {trial.init}"
        rows.append((name, outcome, f"{trial.steps}", f"{trial.seconds:.1f}", link))
    return rows


def _settings(results: Results) -> dict[str, str]:
    """Returns the settings that determine the results, and the latency, by name."""
    workers = sorted({trial.num_workers for trial in results.trials if trial.num_workers})
    values = {
        **to_json_values(results.settings),
        # Not a setting of all trials: a resumed evaluation may have others.
        "num_workers": ", ".join(map(str, workers)) or None,
        "perturbations": str(results.settings.perturbations),
        "inference": None,
    }
    inference = results.inference
    if inference is not None:
        values["inference"] = (
            f"{inference.num_calls:,} batches of {inference.batch_size} on {inference.device}: "
            f"{inference.mean_ms:.1f} ms on average, {inference.p50_ms:.1f} at the median, "
            f"{inference.p95_ms:.1f} at 95 %"
        )
    return {name: _UNKNOWN if value is None else str(value) for name, value in values.items()}
