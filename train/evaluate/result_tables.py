"""Formats the results of an evaluation as rows, for the terminal and the page."""

import dataclasses

from train.evaluate.results import Paired, Rate, Results
from train.report.html_page import percent

COMPARISON_NAME = "comparison.json"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The content of `comparison.json`."""

    first: str
    """Path of the first run, as given."""
    first_step: int
    """Training step of its checkpoint."""
    second: str
    """Path of the second run, as given."""
    second_step: int
    """Training step of its checkpoint."""
    tasks: dict[int, Paired]
    """Paired trials by task, without those that had an error or that only one policy has."""
    total: Paired
    """Paired trials of all tasks."""
    p_value: float
    """P-value of McNemar's exact test over all tasks, two-sided."""
    num_unpaired: int
    """Number of trials that only one policy has, or that had an error."""


def compare(first: Results, second: Results) -> Comparison:
    """Pairs the trials of two policies by task and initial state."""
    ours, theirs = (
        # An error says nothing about a policy.
        {trial.place: trial.success for trial in results.trials if trial.error is None}
        for results in (first, second)
    )
    # All places, also those that only one policy tried.
    places = {trial.place for results in (first, second) for trial in results.trials}
    pairs: dict[int, list[tuple[bool, bool]]] = {}
    for place in sorted(ours.keys() & theirs.keys()):
        pairs.setdefault(place[0], []).append((ours[place], theirs[place]))
    total = Paired.of([pair for of_task in pairs.values() for pair in of_task])
    return Comparison(
        first=first.run,
        first_step=first.settings.step,
        second=second.run,
        second_step=second.settings.step,
        tasks={task: Paired.of(of_task) for task, of_task in pairs.items()},
        total=total,
        p_value=total.p_value,
        num_unpaired=len(places) - total.num_trials,
    )


Row = tuple[str, ...]


def interval(rate: Rate) -> str:
    """Formats an interval like `86.5 to 98.9 %`."""
    low, high = rate.interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def success_rows(results: Results) -> list[Row]:
    """Returns task, successes, rate, interval, mean steps and instruction of each task and all."""
    rows = []
    for task, instruction in (*results.tasks.items(), (None, "")):
        rate, steps = results.rate(task), results.mean_steps(task)
        name = "all" if task is None else str(task)
        shown = "-" if steps is None else f"{steps:.0f}"
        counts = f"{rate.num_successes} of {rate.num_trials}"
        rows.append((name, counts, percent(rate.value), interval(rate), shown, instruction))
    return rows


def success_table(results: Results) -> str:
    """Formats one line per task, and one for all tasks."""
    header = ("task", "success", "rate", "95 % interval", "steps", "instruction")
    lines = aligned([header, *success_rows(results)])
    lines += [
        f"error: {t.suite} task {t.task}, initial state {t.init}, counted as a failure: {t.error}"
        for t in results.errors
    ]
    if results.num_demonstrated:
        lines.append(f"not held out: {demonstrated(results)}")
    return "\n".join(lines)


def demonstrated(results: Results) -> str:
    """Describes in a sentence how many trials do not test generalisation."""
    return (
        f"{results.num_demonstrated} of {len(results.trials)} trials start from an initial state "
        "that a demonstration of the training data started from."
    )


def paired_rows(comparison: Comparison) -> list[Row]:
    """Returns task, pairs, both, only first, only second and neither of each task and of all."""
    return [
        tuple(map(str, (task, p.num_trials, p.both, p.only_first, p.only_second, p.neither)))
        for task, p in (*comparison.tasks.items(), ("all", comparison.total))
    ]


def paired_table(comparison: Comparison) -> str:
    """Formats one line per task, one for all tasks, and the test."""
    header = ("task", "pairs", "both", "only first", "only second", "neither")
    return "\n".join([*aligned([header, *paired_rows(comparison)]), verdict(comparison)])


def verdict(comparison: Comparison) -> str:
    """Describes the test in a sentence."""
    paired = comparison.total
    return (
        f"McNemar's exact test: p = {comparison.p_value:.4g}; only the first policy succeeded "
        f"at {paired.only_first} trials, only the second at {paired.only_second}."
    )


def aligned(rows: list[Row]) -> list[str]:
    """Aligns cells in columns, with two spaces between columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
