"""Two policies on the same initial states."""

import dataclasses

from train.evaluate.results import Results
from train.evaluate.statistics import Paired

COMPARISON_NAME = "comparison.json"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `comparison.json` holds."""

    first: str
    """A run, as it was named."""
    first_step: int
    """Of its checkpoint."""
    second: str
    """The other one."""
    second_step: int
    """Of its checkpoint."""
    tasks: dict[int, Paired]
    """By task: trials that both policies have and that no error kept from their end."""
    total: Paired
    """Of all tasks."""
    p_value: float
    """McNemar's exact test over all of them, two-sided."""
    num_unpaired: int
    """Trials that one policy alone has, or that an error kept from their end."""


def compare(first: Results, second: Results) -> Comparison:
    """Pairs the trials of two policies by task and initial state."""
    ours, theirs = (
        {trial.place: trial.success for trial in results.trials if trial.error is None}
        for results in (first, second)
    )
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
