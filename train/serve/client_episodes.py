"""The episodes of one client: the policy's history, the planned actions, the grippers."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import UserError
from train.policy.gripper_commands import GripperCommands
from train.policy.latency import Timing
from train.policy.observations import Observation
from train.policy.planned_actions import PlannedActions
from train.policy.policy import Policy
from train.policy.real_time_chunking import RealTimeChunking, predict_with
from train.serve.client_session import ServeConfig


class Executed(NamedTuple):
    """What a client that executes chunks has done with its last one, while it asks for the next."""

    num_actions: int
    """Number of its actions that were executed before the observation."""
    delay: int
    """Number of its next actions that are executed before the new chunk takes effect."""


class Episodes:
    """A client's episodes, one after the other; how its messages look is not known here.

    Args:
      policy: The policy, shared with other clients.
      config: What clients receive: chunks or actions, and when they are predicted.
      numbers: Gives every episode of the server a number, which determines its noise.
    """

    def __init__(self, policy: Policy, config: ServeConfig, numbers: Iterator[int]) -> None:
        self._policy = policy
        self._config = config
        # Shared by all clients, so that no two episodes have the same number, and so the same
        # noise.
        self._numbers = numbers
        self._env: int | None = None
        self._instruction = ""
        # Needs its own for every episode: an ensemble keeps chunks.
        self._execution = config.make_execution(policy)
        self._grippers = GripperCommands.of(policy.spec)
        self._planned: collections.deque[np.ndarray] = collections.deque()
        # The last chunk of a client that executes chunks itself, (h a).
        self._replied: np.ndarray | None = None
        # With a delay, predicts in a thread; one for each episode.
        self._chunking: RealTimeChunking | None = None
        # Of the predictions that ended since the last action, which are in another thread.
        self._timings: collections.deque[Timing] = collections.deque(maxlen=1)
        self._timing = Timing()

    @property
    def instruction(self) -> str | None:
        """Returns the instruction of the running episode; None: no episode is running."""
        return None if self._env is None else self._instruction

    @property
    def timing(self) -> Timing:
        """Returns where the time of a prediction went that has ended since the action before."""
        return self._timing

    @property
    def late_ms(self) -> float | None:
        """Returns how long the last action waited for a late prediction; None: without a delay."""
        return None if self._chunking is None else 1000 * self._chunking.waited_s

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
        if self._config.delay:
            self._chunking = self._start_chunking(env)

    def instruct(self, instruction: str) -> None:
        """Gives the running episode another task, and keeps its history and its grippers."""
        assert self._env is not None, "an episode must begin first"
        # Planned for the task before. First, as it waits for a prediction of that task.
        self._forget_plan()
        self._policy.instruct(self._env, instruction)
        self._instruction = instruction

    def act(self, observation: Observation, executed: Executed | None = None) -> np.ndarray:
        """Returns the actions that follow an observation, as commands: float32 (n a).

        n is 1, or the length of a chunk where the client executes chunks itself.

        Args:
          observation: The observation of the next step, by the policy's names.
          executed: With a chunk that continues the last one, what was executed of that; None: the
            chunk continues nothing.

        Raises:
          UserError: It does not fit, or the predicted actions are not finite; or there is no chunk
            to continue.
        """
        assert self._env is not None, "an episode must begin first"
        if self._chunking is not None:
            action = self._chunking(observation)
            self._timing = self._timings.pop() if self._timings else Timing()
            return self._grippers(action[None])
        if executed is None:
            actions = self._next_actions({self._env: observation}, self._env)
        else:
            planned = self._left(executed)
            actions = self._policy.infer({self._env: observation}, {self._env: planned})[self._env]
        if self._execution is None:
            self._replied = actions
        self._timing = self._policy.timing
        return self._grippers(actions)

    def end(self) -> None:
        """Forgets the episode, if one is running: its history and what was planned."""
        self._forget_plan()
        if self._chunking is not None:
            self._chunking.close()
        self._chunking = None
        self._timings.clear()
        if self._env is not None:
            self._policy.forget(self._env)
        self._env = None

    def _next_actions(self, shown: dict[int, Observation], env: int) -> np.ndarray:
        """Returns the next planned action (1 a), or a chunk (h a) that the client executes."""
        # The history needs every step, also those between predictions.
        if self._planned:
            self._policy.observe(shown)
        else:
            # Predicts only where nothing is planned, while the client waits.
            chunk = self._policy.infer(shown)[env]
            if self._execution is None:
                return chunk
            self._planned.extend(self._execution(chunk))
        # (1, a), as the grippers take actions.
        return self._planned.popleft()[None]

    def _left(self, executed: Executed) -> PlannedActions:
        """Returns what is left of the last chunk."""
        horizon, (num_actions, delay) = self._policy.action_horizon, executed
        # Only chunks that the client executes are kept.
        last = self._replied
        if last is None or not (0 < num_actions < horizon and 0 <= delay <= horizon - num_actions):
            found = f"{num_actions} executed and a delay of {delay}"
            raise UserError(
                where="message, executed and delay",
                expected=f"1 to {horizon - 1} executed actions of the last chunk, and a delay of "
                "at most the others",
                found=found if last is not None else f"{found}, and no chunk before in the episode",
                remedy="Leave them out of an episode's first message, and ask for the next chunk "
                "before the last one ends.",
            )
        return PlannedActions(last[num_actions:], delay)

    def _start_chunking(self, env: int) -> RealTimeChunking:
        """Returns what predicts while the client executes; it waits for a late prediction."""
        policy, config = self._policy, self._config
        predict_in = predict_with(policy, env)

        def predict(observations: Sequence[Any], planned: PlannedActions | None) -> np.ndarray:
            chunk = predict_in(observations, planned)
            self._timings.append(policy.timing)
            return chunk

        return RealTimeChunking(
            predict,
            action_horizon=policy.action_horizon,
            execute_horizon=config.execute_horizon or policy.action_horizon,
            delay=config.delay,
            num_observed=policy.window_size,
            when_late="wait",
        )

    def _forget_plan(self) -> None:
        self._planned.clear()
        self._replied = None
        self._execution = self._config.make_execution(self._policy)
        if self._chunking is not None:
            self._chunking.drop_plan()
