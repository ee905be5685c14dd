"""Decides which actions of the predicted chunks are executed, in one environment."""

import collections
import math
from collections.abc import Callable

import numpy as np

from pipeline.data.conventions import Conventions
from pipeline.errors import UserError

_CONTINUOUS = ("rot6d", "rot6d_rows", "none")
"""Rotations of which similar ones have similar numbers; none at all included."""
Execution = Callable[[np.ndarray], np.ndarray]
"""Returns the actions (n a) to execute, in order, before the next chunk is predicted, for a chunk
(h a) from `Policy.infer`. Each environment and episode needs a new one."""


class FirstActions:
    """Executes the first `num_actions` of every chunk.

    Args:
      num_actions: Number of actions, from 1 to the length of a chunk.

    Raises:
      UserError: It is less than 1, or, at the first chunk, more than the chunk has.
    """

    def __init__(self, num_actions: int) -> None:
        if num_actions < 1:
            raise _wrong_count("at least 1", num_actions)
        self._num_actions = num_actions

    def __call__(self, chunk: np.ndarray) -> np.ndarray:
        """Returns the first actions (n a) of a chunk (h a)."""
        if self._num_actions > len(chunk):
            raise _wrong_count(f"at most {len(chunk)}, the actions of a chunk", self._num_actions)
        return chunk[: self._num_actions]


def _wrong_count(expected: str, num_actions: int) -> UserError:
    return UserError(
        where="FirstActions, num_actions",
        expected=expected,
        found=str(num_actions),
        remedy="Execute 1 to `policy.action_horizon` actions of a chunk.",
    )


class TemporalEnsemble:
    """Executes the mean of all chunks' predictions for a step; every step predicts a chunk.

        predicted at steps 0, 1, 2:  [1 2 3]  [4 5 6]  [7 8 9],  decay = 0
        executed:                     1        (2 + 4) / 2  (3 + 5 + 7) / 3

    The gripper, 1 = open, is averaged like the other dimensions, before it becomes a command.

    Args:
      decay: Decay in the weights `exp(-decay * i)`, where i = 0 is the oldest chunk. A larger decay
        gives the oldest chunk more weight; 0 weights all equally.

    Source: Zhao et al. 2023 (ACT), algorithm 2, with its 0.01 for chunks of 100 actions.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._chunks: collections.deque[np.ndarray] = collections.deque()

    def __call__(self, chunk: np.ndarray) -> np.ndarray:
        """Returns the averaged action for this step, float32 (1 a), given a new chunk (h a)."""
        self._chunks.append(chunk)
        # A chunk of h actions says something about h steps.
        if len(self._chunks) > len(chunk):
            self._chunks.popleft()
        # The oldest chunk comes first; a chunk of age k holds this step at index k.
        ages = range(len(self._chunks) - 1, -1, -1)
        # (chunks, a): what each chunk says about this step.
        now = np.stack([chunk[age] for chunk, age in zip(self._chunks, ages, strict=True)])
        # i = 0 is the oldest, so a positive decay trusts older chunks more, as in ACT.
        weights = np.exp(-self._decay * np.arange(len(now)))
        mean = np.average(now, axis=0, weights=weights)
        # (1, a)
        return mean[None].astype(np.float32)


def make_execution(
    action_horizon: int,
    conventions: Conventions,
    execute_horizon: int | None = None,
    ensemble: float | None = None,
) -> Execution:
    """Makes a new execution, for one environment and episode.

    Args:
      action_horizon: Number of actions per chunk.
      conventions: Meaning of the actions.
      execute_horizon: Number of actions to execute per chunk; None: all.
      ensemble: Decay of a temporal ensemble; None: no ensemble.

    Raises:
      UserError: Both are given, a value is out of range, or an ensemble is of poses whose numbers
        have no useful mean.
    """
    if ensemble is not None:
        if execute_horizon is not None or not 0 <= ensemble < math.inf:
            raise UserError(
                where="execution",
                expected="a finite decay of at least 0, and no execute_horizon as well",
                found=f"ensemble {ensemble}, execute_horizon {execute_horizon}",
                remedy="Use one of the two.",
            )
        _check_mean(conventions)
        return TemporalEnsemble(ensemble)
    num_actions = action_horizon if execute_horizon is None else execute_horizon
    _check_horizon(num_actions, action_horizon)
    return FirstActions(num_actions)


def _check_mean(conventions: Conventions) -> None:
    # Changes of a pose are small rotations, far from the angles at which numbers jump.
    if conventions.target_poses and conventions.rotation not in _CONTINUOUS:
        raise UserError(
            where="ensemble",
            expected=f"target poses with rotation {' or '.join(_CONTINUOUS)}, or changes of a pose",
            found=f"target poses with rotation {conventions.rotation}: two that are nearly equal "
            "can have a mean that is turned by 180 degrees",
            remedy="Use execute_horizon without an ensemble, or convert the dataset with the "
            "rotations of its actions as rot6d, and train on it.",
        )


def check_delay(delay: object, execute_horizon: int, action_horizon: int) -> None:
    """Checks that a chunk can take effect `delay` steps after its observation.

    Args:
      delay: Steps from an observation to the step at which its chunk takes effect.
      execute_horizon: Steps from one prediction to the next.
      action_horizon: Number of actions per chunk.

    Raises:
      UserError: The horizon is out of range, or the delay is no int, longer than the horizon, or
        longer than what is left of a chunk after it.
    """
    _check_horizon(execute_horizon, action_horizon)
    # NumPy rounds up to a float, such as np.ceil(2.3).
    if not isinstance(delay, int | np.integer):
        raise UserError(
            where="delay",
            expected="a whole number of steps, as an int",
            found=f"{type(delay).__name__} {delay!r}",
            remedy="Write, for example, math.ceil(steps).",
        )
    left = action_horizon - execute_horizon
    if not 0 <= delay <= min(execute_horizon, left):
        raise UserError(
            where="delay",
            expected=f"0 to {min(execute_horizon, left)} steps: a chunk of {action_horizon} is "
            f"predicted every {execute_horizon} steps, and {left} actions are left then",
            found=str(delay),
            remedy=f"With an execute_horizon of {(action_horizon + 1) // 2} it may be "
            f"{action_horizon // 2}; a longer delay needs a longer data.action_horizon.",
        )


def _check_horizon(execute_horizon: int, action_horizon: int) -> None:
    if not 1 <= execute_horizon <= action_horizon:
        raise UserError(
            where="execute_horizon",
            expected=f"1 to {action_horizon}, the actions of a chunk",
            found=str(execute_horizon),
            remedy=f"Use at most {action_horizon}, or train with a longer data.action_horizon.",
        )
