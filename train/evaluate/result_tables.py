"""Formats the results of an evaluation as rows, for the terminal and the page."""

from train.evaluate.compare import Comparison
from train.evaluate.results import Results
from train.evaluate.success_rates import Rate

Row = tuple[str, ...]


def percent(share: float) -> str:
    """Formats a fraction like `97.4 %`."""
    return f"{100 * share:.1f} %"


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
