"""Formats the tables that are printed at the end of an evaluation."""

from train.evaluate.compare import Comparison
from train.evaluate.results import Results
from train.evaluate.success_rates import Paired, Rate

Row = tuple[str, ...]


def percent(share: float) -> str:
    """Formats a fraction like `97.4 %`."""
    return f"{100 * share:.1f} %"


def interval(rate: Rate) -> str:
    """Formats an interval like `86.5 to 98.9 %`."""
    low, high = rate.interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def success_table(results: Results) -> str:
    """Formats one line per task, and one for all tasks."""
    header = ("task", "success", "rate", "95 % interval", "steps", "instruction")
    rows = [
        _success_row(results, task, str(task), instruction)
        for task, instruction in results.tasks.items()
    ]
    rows.append(_success_row(results, None, "all", ""))
    lines = aligned([header, *rows])
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


def paired_table(comparison: Comparison) -> str:
    """Formats one line per task, one for all tasks, and the test."""
    header = ("task", "pairs", "both", "only first", "only second", "neither")
    rows = [_paired_row(str(task), paired) for task, paired in comparison.tasks.items()]
    rows.append(_paired_row("all", comparison.total))
    return "\n".join([*aligned([header, *rows]), verdict(comparison)])


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


def _success_row(results: Results, task: int | None, name: str, instruction: str) -> Row:
    rate, steps = results.rate(task), results.mean_steps(task)
    shown = "-" if steps is None else f"{steps:.0f}"
    counts = f"{rate.num_successes} of {rate.num_trials}"
    return name, counts, percent(rate.value), interval(rate), shown, instruction


def _paired_row(name: str, paired: Paired) -> Row:
    counts = (paired.num_trials, paired.both, paired.only_first, paired.only_second, paired.neither)
    return name, *map(str, counts)
