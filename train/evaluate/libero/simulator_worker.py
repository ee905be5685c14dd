"""The process of a simulator: answers the requests of a pool one after the other."""

import contextlib
import dataclasses
import traceback
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pipeline.errors import UserError
from pipeline.worker_lifetime import follow_parent
from train.evaluate.libero.environment import Observation, Outcome
from train.evaluate.libero.suites import Trial

Connection = Any
"""One end of a pipe; its class differs between systems."""


Answer = tuple[Outcome, tuple[Observation, ...]]
"""State of a trial and its observations, the latest last."""


@runtime_checkable
class Env(Protocol):
    """An environment that a worker runs, such as `LiberoEnv`."""

    def reset(self, trial: Trial) -> Outcome:
        """Starts a trial."""
        ...

    def step(self, action: np.ndarray) -> Outcome:
        """Executes an action (a)."""
        ...

    def observe(self) -> Observation:
        """Returns the current observation."""
        ...

    def close(self) -> None:
        """Frees the environment."""
        ...


@dataclasses.dataclass(frozen=True)
class Begin:
    """Starts a trial and observes."""

    trial: Trial
    """The trial to start."""

    def run(self, env: Env) -> Answer:
        """The trial has settled."""
        outcome = env.reset(self.trial)
        return outcome, (env.observe(),)


@dataclasses.dataclass(frozen=True)
class Act:
    """Executes actions until the trial is over, and observes after the last if it is not."""

    actions: np.ndarray
    """(n, a), at least one."""
    num_observed: int
    """After how many of the last it observes, while the trial is under way."""

    def run(self, env: Env) -> Answer:
        """Executes the actions and observes."""
        observations = []
        outcome = None
        # Counts down: `left` is 1 for the last action.
        for left, action in zip(range(len(self.actions), 0, -1), self.actions, strict=True):
            outcome = env.step(action)
            # Later actions of the chunk are not executed, and nothing acts on an observation.
            if outcome.is_over:
                break
            # Only what the policy reads: rendering costs more than a step.
            if left <= self.num_observed:
                observations.append(env.observe())
        assert outcome is not None  # `act` sends at least one
        return outcome, tuple(observations)


@dataclasses.dataclass(frozen=True)
class Crash:
    """An exception that is not a user error."""

    text: str
    """The exception in one line."""
    details: str
    """Its traceback."""


def serve(connection: Connection, make: Callable[[], Env]) -> None:
    """Answers requests until the pipe ends."""
    follow_parent()
    env = None
    with contextlib.suppress(EOFError, OSError):  # the pool is gone
        while True:
            request = connection.recv()
            try:
                # Built at the first request, so that errors of building are answers.
                env = env or make()
                answer = request.run(env)
            except UserError as error:
                answer = error
            except Exception as error:  # noqa: BLE001  (reported to the pool)
                text = " ".join(f"{type(error).__name__}: {error}".split())
                answer = Crash(text, traceback.format_exc())
            # Crashes are answers too; the pool replaces this process.
            connection.send(answer)
    if env is not None:
        env.close()
