"""What a robot executes while a prediction takes some steps, without real-time chunking.

The simulator waits for every prediction. The first one of an episode takes no steps.
"""

from typing import Literal, assert_never

import numpy as np

from pipeline.data.conventions import Conventions
from train.policy.chunk_execution import Execution

DelayStrategy = Literal["real_time_chunking", "naive_async", "synchronous"]
"""What a robot does while the next chunk is predicted: it executes the last chunk, which the next
one continues (`DelayedPolicy`) or not (`NaiveAsync`), or it holds still (`Synchronous`)."""


class NaiveAsync:
    """Executes the last chunk for `delay` more steps, then the next from its action number `delay`.

        chunk of step 0    a0 a1 a2 a3 a4 a5 a6 a7        execute_horizon 4, delay 2
        chunk of step 4                b0 b1 b2 b3 ...    predicted from step 4 alone
        executed           a0 a1 a2 a3 a4 a5 b2 b3        may jump from a5 to b2

    Args:
      execute: Executes the first `execute_horizon` actions of a chunk.
      execute_horizon: Steps from one prediction to the next.
      delay: Number of steps that a prediction takes, within the limits of `check_delay`.

    Source: the baseline of this name of Black, Galliker and Levine 2025.
    """

    def __init__(self, execute: Execution, execute_horizon: int, delay: int) -> None:
        self._execute = execute
        self._execute_horizon, self._delay = execute_horizon, delay
        self._last: np.ndarray | None = None

    def __call__(self, chunk: np.ndarray) -> np.ndarray:
        """Returns the actions (n a) to execute, given a new chunk (h a)."""
        last, self._last = self._last, chunk
        if last is None:
            return self._execute(chunk)
        left = last[self._execute_horizon : self._execute_horizon + self._delay]
        return self._execute(np.concatenate([left, chunk[self._delay :]]))


class Synchronous:
    """Holds the robot still for `delay` steps at every prediction, then executes the new chunk.

        chunk of step 0    a0 a1 a2 a3                    execute_horizon 4, delay 2
        chunk of step 4                b0 b1 b2 b3        predicted from step 4
        executed           a0 a1 a2 a3 -- -- b0 b1 ...    the next is predicted from step 10

    Args:
      execute: Executes the first `execute_horizon` actions of a chunk.
      delay: Number of steps that a prediction takes.
      conventions: Conventions of the actions, which `check_conventions` of the simulator allows.
    """

    def __init__(self, execute: Execution, delay: int, conventions: Conventions) -> None:
        self._execute, self._delay, self._conventions = execute, delay, conventions
        self._last: np.ndarray | None = None

    def __call__(self, chunk: np.ndarray) -> np.ndarray:
        """Returns the held actions and those of a new chunk (h a), together (n a)."""
        last, actions = self._last, self._execute(chunk)
        self._last = actions[-1]
        if last is None:
            return actions
        held = hold_still(last, self._conventions)
        return np.concatenate([np.repeat(held[None], self._delay, axis=0), actions])


def hold_still(last: np.ndarray, conventions: Conventions) -> np.ndarray:
    """Returns the action (a) that holds the arm still, and the gripper as the last action (a) did.

    A change of the pose is zero; a pose to reach is the last one.
    """
    if conventions.target_poses:
        return last
    held = np.zeros_like(last)
    held[conventions.gripper_dim] = last[conventions.gripper_dim]
    return held


def delay_execution(
    execute: Execution,
    strategy: DelayStrategy,
    execute_horizon: int,
    delay: int,
    conventions: Conventions,
) -> Execution:
    """Returns what an episode executes, where predictions take `delay` steps.

    Args:
      execute: Executes the first `execute_horizon` actions of a chunk.
      strategy: What the robot does meanwhile; chunks of real-time chunking are executed as they
        come from a `DelayedPolicy`.
      execute_horizon: Number of actions that are executed of every chunk.
      delay: Number of steps that a prediction takes.
      conventions: Conventions of the actions.
    """
    match strategy:
        case "real_time_chunking":
            return execute
        case "naive_async":
            return NaiveAsync(execute, execute_horizon, delay)
        case "synchronous":
            return Synchronous(execute, delay, conventions)
        case _:
            assert_never(strategy)
