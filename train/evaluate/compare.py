"""Compares two policies on the same initial states."""

import dataclasses

from train.evaluate.results import Results
from train.evaluate.success_rates import Paired

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
