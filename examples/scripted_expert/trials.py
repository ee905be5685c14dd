"""Which episodes are made: the initial states of tasks, from the words of a command line."""

import pathlib

from pipeline.errors import UserError
from train.evaluate.libero.suites import Trial, parse_indices, trials_of


def choose_trials(
    root: pathlib.Path, suites: str, tasks: tuple[str, ...], wanted: range
) -> tuple[Trial, ...]:
    """The initial states of each task, in order.

    Args:
      root: Folder of the package `libero.libero`.
      suites: Names with commas between.
      tasks: Indices of tasks with commas between, once for all suites or once per suite; empty:
        all.
      wanted: The initial states.

    Raises:
      UserError: No such suite, task or initial state.
    """
    names = suites.split(",")
    where = "--first_init and --episodes"
    trials = []
    for suite, indices in zip(names, _indices(tasks, len(names)), strict=True):
        trials += trials_of(root, suite, indices, wanted, where)
    return tuple(trials)


def _indices(texts: tuple[str, ...], num_suites: int) -> list[tuple[int, ...] | None]:
    """The tasks of each suite; None: all."""
    if len(texts) not in (0, 1, num_suites):
        raise UserError(
            where="--tasks",
            expected=f"indices once, or once per suite ({num_suites} times)",
            found=f"{len(texts)} times: {' '.join(texts)}",
            remedy="Write them in the order of the suites, such as --tasks 0,2 0,5.",
        )
    chosen = [parse_indices(text) for text in texts]
    if len(chosen) == num_suites:
        return [*chosen]
    return [chosen[0] if chosen else None] * num_suites
