"""The episodes of one client: the policy's history, the planned actions, the grippers."""

import collections
from collections.abc import Callable, Iterator

import numpy as np

from train.policy.chunk_execution import Execution
from train.policy.gripper_commands import GripperCommands
from train.policy.observations import Observation
from train.policy.policy import Policy


class Episodes:
    """A client's episodes, one after the other; how its messages look is not known here.

    Args:
      policy: The policy, shared with other clients; only one may act at a time.
      make_execution: Makes what executes the chunks of an episode. It returns None where the client
        executes them itself.
      numbers: Gives every episode of the server a number, which determines its noise.
    """

    def __init__(
        self,
        policy: Policy,
        make_execution: Callable[[], Execution | None],
        numbers: Iterator[int],
    ) -> None:
        self._policy = policy
        self._make_execution = make_execution
        # Shared by all clients, so that no two episodes have the same number, and so the same
        # noise.
        self._numbers = numbers
        self._env: int | None = None
        self._instruction = ""
        # Needs its own for every episode: an ensemble keeps chunks.
        self._execution = make_execution()
        self._grippers = GripperCommands.of(policy.spec)
        self._planned: collections.deque[np.ndarray] = collections.deque()

    @property
    def instruction(self) -> str | None:
        """Returns the instruction of the running episode; None: no episode is running."""
        return None if self._env is None else self._instruction

    def begin(self, instruction: str, grippers: GripperCommands | None = None) -> None:
        """Starts an episode with an empty history, and ends the one before.

        Args:
          instruction: The task.
          grippers: Turns the episode's actions into commands; None: into the dataset's.
        """
        # The policy keeps the images of a window until the old episode is forgotten.
        self.end()
        env = next(self._numbers)
        self._policy.reset(env, instruction)
        self._env, self._instruction = env, instruction
        self._grippers = grippers or GripperCommands.of(self._policy.spec)

    def instruct(self, instruction: str) -> None:
        """Gives the running episode another task, and keeps its history and its grippers."""
        assert self._env is not None, "an episode must begin first"
        self._policy.instruct(self._env, instruction)
        self._instruction = instruction
        # Planned for the task before.
        self._forget_plan()

    def act(self, observation: Observation) -> np.ndarray:
        """Returns the actions that follow an observation, as commands: float32 (n a).

        n is 1, or the length of a chunk where the client executes chunks itself.

        Args:
          observation: The observation of the next step, by the policy's names.

        Raises:
          UserError: It does not fit, or the predicted actions are not finite.
        """
        assert self._env is not None, "an episode must begin first"
        shown = {self._env: observation}
        # The history needs every step, also those between predictions.
        if self._planned:
            self._policy.observe(shown)
        else:
            # Predicts only where nothing is planned, while the client waits.
            chunk = self._policy.infer(shown)[self._env]
            if self._execution is None:
                return self._grippers(chunk)
            self._planned.extend(self._execution(chunk))
        # (1, a), as the grippers take actions.
        return self._grippers(self._planned.popleft()[None])

    def end(self) -> None:
        """Forgets the episode, if one is running: its history and what was planned."""
        if self._env is not None:
            self._policy.forget(self._env)
        self._env = None
        self._forget_plan()

    def _forget_plan(self) -> None:
        self._planned.clear()
        self._execution = self._make_execution()
