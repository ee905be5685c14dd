"""`python -m benchmarks.policy_trials`: the tables of docs/results.md, from all trials behind them.

`policy_trials.csv` has one line per trial, so that every rate and every comparison can be computed
again. To add the trials of an evaluation, name the policy, the condition, and the folders that hold
its `results.json`:

    python -m benchmarks.policy_trials se3 camera=10 runs/a/evaluation/libero_spatial-7000-camera10

Without arguments it prints the tables.
"""

import csv
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from train.evaluate.results import Paired, Rate, read_results

TRIALS = pathlib.Path(__file__).with_suffix(".csv")

EARLIER = ", earlier expert"
"""Ends the names of policies that were trained on episodes of the expert before decision 48."""
COMPARED = (
    (f"default{EARLIER}", "default"),
    ("default", "se3"),
    ("default", "lerobot_av1"),
    ("default", "diffusion"),
    (f"default{EARLIER}", f"augmented{EARLIER}"),
)
"""Policies whose trials are paired, where both have trials of a condition."""
WHOLE, HALF = "whole chunks", "half of each chunk"
"""The conditions in which nothing was changed, by how much of each chunk is executed."""
_DELAY = "delay="
"""Begins the conditions with a delay, in which half of each chunk is executed."""

_T = TypeVar("_T")

Place = tuple[str, int, int]
"""(suite, task, initial state)."""


class Row(NamedTuple):
    """One trial of one policy under one condition."""

    policy: str
    """Variant of `configs/libero_expert.py`, with `EARLIER` behind it where it applies."""
    condition: str
    """What was changed in the scene or in the execution; `WHOLE` or `HALF`: nothing."""
    suite: str
    """Suite, such as `libero_spatial`."""
    task: int
    """Index of the task in the suite."""
    init: int
    """Index of the initial state."""
    success: int
    """1 if the goal was reached within the suite's limit; 0 otherwise."""
    steps: int
    """Number of executed actions."""

    @property
    def place(self) -> Place:
        """Returns what a trial is paired by."""
        return self.suite, self.task, self.init


def read_rows(path: pathlib.Path = TRIALS) -> list[Row]:
    """Returns all trials, in the order of the file."""
    with path.open(newline="") as file:
        _, *lines = csv.reader(file)
    return [Row(p, c, s, *map(int, numbers)) for p, c, s, *numbers in lines]


def write_rows(rows: Iterable[Row], path: pathlib.Path = TRIALS) -> None:
    """Replaces all trials."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)


def evaluated(policy: str, condition: str, folders: Iterable[pathlib.Path]) -> list[Row]:
    """Returns the trials in folders of evaluations.

    Raises:
      ValueError: A trial had an error, or a training demonstration began where it did.
    """
    rows = []
    for folder in folders:
        for trial in read_results(folder).trials:
            if trial.error is not None or trial.is_demonstrated is not False:
                raise ValueError(f"{folder}: {trial} is no held-out trial that ended")
            result = (int(trial.success), trial.steps)
            rows.append(Row(policy, condition, trial.suite, *trial.place, *result))
    return rows


def rate_table(rows: Sequence[Row]) -> list[str]:
    """Returns the lines of a Markdown table: successes by task, of each policy and condition."""
    tasks = sorted({(row.suite, row.task) for row in rows})
    header = ("policy", "condition", *(f"{suite} {task}" for suite, task in tasks))
    lines = _header((*header, "all", "95 % interval"))
    for policy, condition in _in_order((row.policy, row.condition) for row in rows):
        chosen = [r for r in rows if (r.policy, r.condition) == (policy, condition)]
        by_task = [_rate(r for r in chosen if (r.suite, r.task) == task) for task in tasks]
        cells = [_counts(rate) if rate.num_trials else "" for rate in by_task]
        low, high = _rate(chosen).interval
        interval = f"{100 * low:.0f} to {100 * high:.0f} %"
        lines.append(_line((policy, condition, *cells, _counts(_rate(chosen)), interval)))
    return lines


def paired_table(rows: Sequence[Row], first: str, second: str) -> list[str]:
    """Returns the lines of a Markdown table: two policies on the same trials, by condition."""
    lines = _header(
        ("condition", "pairs", "both", f"only {first}", f"only {second}", "neither", "p")
    )
    for condition in _in_order(row.condition for row in rows):
        pairs = _paired(rows, (first, condition), (second, condition))
        if pairs.num_trials:
            lines.append(_line((condition, *_cells(pairs))))
    return lines


def delay_table(rows: Sequence[Row]) -> list[str]:
    """Returns the lines of a Markdown table: each policy with a delay beside itself without."""
    lines = _header(
        ("policy", "delay", "pairs", "both", "only without", "only with", "neither", "p")
    )
    for policy, condition in _in_order((row.policy, row.condition) for row in rows):
        if condition.startswith(_DELAY):
            pairs = _paired(rows, (policy, HALF), (policy, condition))
            lines.append(_line((policy, condition.removeprefix(_DELAY), *_cells(pairs))))
    return lines


def tables(rows: Sequence[Row]) -> list[list[str]]:
    """Returns all tables: rates as trained, in changed scenes and with delays, then pairs."""
    plain = [row for row in rows if row.condition in (WHOLE, HALF)]
    delayed = [row for row in rows if row.condition.startswith(_DELAY)]
    known = {*plain, *delayed}
    changed = [row for row in rows if row not in known]
    return [
        *(rate_table(chosen) for chosen in (plain, changed, delayed)),
        *(paired_table(rows, first, second) for first, second in COMPARED),
        delay_table(rows),
    ]


def main() -> None:
    """Adds the trials of evaluations, or prints the tables."""
    arguments = sys.argv[1:]
    if len(arguments) in (1, 2):
        sys.exit("usage: python -m benchmarks.policy_trials [POLICY CONDITION FOLDER ...]")
    if arguments:
        policy, condition, *folders = arguments
        added = evaluated(policy, condition, map(pathlib.Path, folders))
        kept = [r for r in read_rows() if (r.policy, r.condition) != (policy, condition)]
        write_rows([*kept, *added])
        return
    for table in tables(read_rows()):
        sys.stdout.write("\n".join([*table, "", ""]))


def _paired(rows: Sequence[Row], first: tuple[str, str], second: tuple[str, str]) -> Paired:
    """Returns the pairs of two policies, each under a condition, by what they are paired by."""
    ours, theirs = (
        {r.place: bool(r.success) for r in rows if (r.policy, r.condition) == chosen}
        for chosen in (first, second)
    )
    return Paired.of([(ours[place], theirs[place]) for place in sorted(ours.keys() & theirs)])


def _cells(pairs: Paired) -> list[str]:
    counts = (pairs.num_trials, pairs.both, pairs.only_first, pairs.only_second, pairs.neither)
    return [*map(str, counts), f"{pairs.p_value:.2g}"]


def _rate(rows: Iterable[Row]) -> Rate:
    successes = [row.success for row in rows]
    return Rate(sum(successes), len(successes))


def _counts(rate: Rate) -> str:
    return f"{rate.num_successes} of {rate.num_trials}"


def _in_order(values: Iterable[_T]) -> list[_T]:
    """Returns the distinct values, in the order in which they first occur."""
    return list(dict.fromkeys(values))


def _header(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
