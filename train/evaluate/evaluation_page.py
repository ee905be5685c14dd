"""Writes the HTML report of an evaluation: success by task, its uncertainty, and the settings."""

import os
import pathlib
from collections.abc import Sequence

from pipeline.files import to_json_values, write_text_atomically, writing
from pipeline.terminal import count
from train.checkpoints.run_directory import REPORT_NAME
from train.evaluate.compare import Comparison
from train.evaluate.result_tables import demonstrated, interval, percent, verdict
from train.evaluate.results import Results, TrialResult
from train.evaluate.success_chart import chart_size, draw_rates
from train.evaluate.success_rates import Paired
from train.report.charts import Size
from train.report.markup import Html, duration, tag
from train.report.page_parts import folded, key, legend, note, section, table, wide_chart
from train.report.report_page import header, to_document

_KEYS = ("train", "validation")
"""Legend keys of the first and the second policy, with the colours of the chart."""
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
    first = results[0]
    sections = {"tasks": ("Tasks", _tasks_section(results))}
    if comparison is not None:
        sections["comparison"] = ("Comparison", _comparison_section(comparison))
    sections["trials"] = ("Trials", _trials_section(policies))
    sections["settings"] = ("Settings", _settings_section(results))
    top = header(
        "Evaluation",
        f"{first.run}, {first.settings.suite}",
        _origin(results),
        _figures(first),
        {anchor: title for anchor, (title, _) in sections.items()},
    )
    main = tag("main", *(content for _, content in sections.values()))
    return to_document(f"{first.run}: {first.settings.suite}", tag("body", top, main))


def _origin(results: Sequence[Results]) -> str:
    """Describes in a sentence what was evaluated, and how."""
    first = results[0]
    compared = f", compared with {_name(results[1])}" if len(results) > 1 else ""
    trials = count(len(first.trials), "trial")
    tasks = count(len(first.tasks), "task")
    return f"Rollouts of {_name(first)} in the LIBERO simulator: {trials} of {tasks}{compared}."


def _name(results: Results) -> str:
    return f"{results.run}, step {results.settings.step:,}"


def _figures(results: Results) -> list[tuple[str, str, str]]:
    """Returns (name, value, detail) of the numbers at the top."""
    rate, steps, inference = results.rate(), results.mean_steps(), results.inference
    seconds = sum(trial.seconds for trial in results.trials)
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
        ("Time", duration(seconds), "sum over trials"),
    ]


def _tasks_section(results: Sequence[Results]) -> Html:
    """Shows the success of each task and in total, as a chart and one table per policy."""
    tasks = {task: None for of_policy in results for task in of_policy.tasks}
    # All tasks together first.
    rows: list[int | None] = [None, *sorted(tasks)]
    names = ["all" if task is None else f"task {task}" for task in rows]
    rates = [[of_policy.rate(task) for task in rows] for of_policy in results]

    def draw(size: Size) -> str:
        return draw_rates(names, rates, chart_size(size.width, len(rows)))

    keys = [key(kind, _name(r)) for kind, r in zip(_KEYS, results, strict=False)]
    rate = results[0].rate()
    alt = f"Success by task; {percent(rate.value)} of all trials, {interval(rate)} at 95 %."
    return section(
        "Success by task",
        note(
            "A trial succeeds if its goal is reached within the suite's limit of steps. Lines are "
            "Wilson's 95 % intervals. A trial that ended with an error counts as a failure."
        ),
        *(
            note(f"{_name(of_policy)}, not held out: {demonstrated(of_policy)}")
            for of_policy in results
            if of_policy.num_demonstrated
        ),
        wide_chart(draw, alt, legend(*keys)),
        *(_tasks_table(of_policy) for of_policy in results),
        anchor="tasks",
    )


def _tasks_table(results: Results) -> Html:
    headings = ("Task", ">Success", ">Rate", ">95 % interval", ">Steps", "Instruction")
    rows = []
    for task, instruction in (*results.tasks.items(), (None, "")):
        rate, steps = results.rate(task), results.mean_steps(task)
        name = "all" if task is None else str(task)
        shown = _UNKNOWN if steps is None else f"{steps:.0f}"
        counts = f"{rate.num_successes} of {rate.num_trials}"
        rows.append((name, counts, percent(rate.value), interval(rate), shown, instruction))
    return table(headings, rows, f"{_name(results)}; steps are the mean of successes.")


def _comparison_section(comparison: Comparison) -> Html:
    headings = ("Task", ">Pairs", ">Both", ">Only first", ">Only second", ">Neither")
    rows = [_paired_row(str(task), paired) for task, paired in comparison.tasks.items()]
    rows.append(_paired_row("all", comparison.total))
    about = (
        f"First: {comparison.first}, step {comparison.first_step:,}. Second: {comparison.second}, "
        f"step {comparison.second_step:,}. Both from the same initial states; "
        f"{count(comparison.num_unpaired, 'trial')} without a pair."
    )
    said = tag("p", tag("strong", verdict(comparison)))
    pairs = table(headings, rows, "Trials by which policy succeeded.")
    return section("Comparison", note(about), pairs, said, anchor="comparison")


def _paired_row(name: str, paired: Paired) -> tuple[str, ...]:
    counts = (paired.num_trials, paired.both, paired.only_first, paired.only_second, paired.neither)
    return name, *map(str, counts)


def _trials_section(policies: Sequence[Evaluated]) -> Html:
    home = policies[0][0]
    tables = []
    for folder, results in policies:
        headings = ("Trial", "Outcome", ">Steps", ">Seconds", "Video")
        rows = [_trial_row(trial, folder, home) for trial in results.trials]
        shown = table(headings, rows, "Steps executed, and wall time.")
        tables.append(folded(f"{_name(results)}: {count(len(rows), 'trial')}", shown))
    return section("Trials", *tables, anchor="trials")


def _trial_row(trial: TrialResult, folder: pathlib.Path, home: pathlib.Path) -> tuple[str, ...]:
    name = f"task {trial.task}, state {trial.init}"
    numbers = f"{trial.steps}", f"{trial.seconds:.1f}"
    return name, _outcome(trial), *numbers, _video(trial, folder, home)


def _outcome(trial: TrialResult) -> str:
    if trial.error is not None:
        return f"error: {trial.error}"
    return "success" if trial.success else "failure"


def _video(trial: TrialResult, folder: pathlib.Path, home: pathlib.Path) -> str:
    """Returns a link to a file beside the page."""
    if trial.video is None:
        return _UNKNOWN
    # Relative to the page, so that the folder can be moved.
    path = os.path.relpath(folder / trial.video, home)
    return tag("a", pathlib.Path(path).name, href=path)


def _settings_section(results: Sequence[Results]) -> Html:
    """Lists the settings that determine the results."""
    columns = [_settings(of_policy) for of_policy in results]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    headings = ("Setting", *(of_policy.run for of_policy in results))
    return section("Settings", table(headings, rows, "What was evaluated."), anchor="settings")


def _settings(results: Results) -> dict[str, str]:
    settings = to_json_values(results.settings)
    values = {name: _UNKNOWN if value is None else str(value) for name, value in settings.items()}
    inference = results.inference
    if inference is not None:
        values["inference"] = (
            f"{inference.num_calls:,} batches of {inference.batch_size} on {inference.device}: "
            f"{inference.mean_ms:.1f} ms on average, {inference.p50_ms:.1f} at the median, "
            f"{inference.p95_ms:.1f} at 95 %"
        )
    else:
        values["inference"] = _UNKNOWN
    return values
