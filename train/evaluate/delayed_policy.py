"""A policy whose predictions take some steps, for a simulator that waits for every prediction."""

from collections.abc import Mapping

import numpy as np

from train.evaluate.libero.environment import Observation
from train.policy.chunk_execution import check_delay
from train.policy.planned_actions import PlannedActions
from train.policy.policy import Policy


class DelayedPolicy:
    """Acts as if every prediction took `delay` steps, during which the last chunk is executed.

    A chunk begins with the actions that the last one planned for these steps, so executing the
    first `execute_horizon` actions of every chunk gives what a robot would have executed:

        chunk of step 0    a0 a1 a2 a3 a4 a5 a6 a7        execute_horizon 4, delay 2
        chunk of step 4                a4 a5 b2 b3 ...    predicted from step 4, acts from step 6
        executed           a0 a1 a2 a3 a4 a5 b2 b3

    Args:
      policy: A policy with `PolicyConfig(real_time_chunking=True)`.
      execute_horizon: Number of actions that are executed of every chunk.
      delay: Number of steps that a prediction takes.

    Raises:
      UserError: The delay is longer than what can be executed meanwhile.
    """

    def __init__(self, policy: Policy, execute_horizon: int, delay: int) -> None:
        check_delay(delay, execute_horizon, policy.action_horizon)
        self._policy = policy
        self._execute_horizon, self._delay = execute_horizon, delay
        # What is left of each environment's last chunk when the next is predicted.
        self._planned: dict[int, PlannedActions] = {}

    @property
    def window_size(self) -> int:
        """Returns the number of steps that the policy reads."""
        return self._policy.window_size

    def reset(self, env: int, instruction: str) -> None:
        """Starts an episode, whose first chunk continues nothing."""
        self._planned.pop(env, None)
        self._policy.reset(env, instruction)

    def observe(self, observations: Mapping[int, Observation]) -> None:
        """Adds steps without predicting."""
        self._policy.observe(observations)

    def infer(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Returns chunks (h a) by environment, which continue the last ones."""
        previous = {env: self._planned[env] for env in observations if env in self._planned}
        chunks = self._policy.infer(observations, previous)
        for env, chunk in chunks.items():
            self._planned[env] = PlannedActions(chunk[self._execute_horizon :], self._delay)
        return chunks

    def forget(self, env: int) -> None:
        """Drops an environment that has ended."""
        self._planned.pop(env, None)
        self._policy.forget(env)
