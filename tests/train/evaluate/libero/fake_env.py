"""An environment of which a pool cannot tell that it is none; what it does depends on the trial.

A module of its own: spawned processes import it.
"""

import os
import time

import numpy as np

from pipeline.errors import UserError
from train.evaluate.libero.environment import Observation, Outcome
from train.evaluate.libero.suites import Task, Trial

STEPS = 5
DIES, FAILS, HANGS, MISUSED, SLOW = 90, 91, 92, 93, 94
"""Initial states at which something happens at the second action."""


def trial(init: int) -> Trial:
    return Trial(Task("libero_spatial", 3, "name"), init)


class FakeEnv:
    """A trial is over after 5 actions; an observation is the number of actions so far."""

    def __init__(self) -> None:
        self.steps = 0
        self.init = 0

    def reset(self, trial: Trial) -> Outcome:
        self.steps, self.init = 0, trial.init
        return Outcome(0, is_success=False, is_over=False)

    def step(self, action: np.ndarray) -> Outcome:
        self.steps += 1
        if self.steps == 2:
            self._happen()
        return Outcome(self.steps, is_success=bool(action[6] > 0), is_over=self.steps == STEPS)

    def observe(self) -> Observation:
        return {"proprio": np.array([self.init, self.steps, os.getpid()], np.float32)}

    def close(self) -> None:
        pass

    def _happen(self) -> None:
        if self.init == DIES:
            os.kill(os.getpid(), 9)
        if self.init == FAILS:
            raise RuntimeError("the simulation\nis unstable")
        if self.init == HANGS:
            time.sleep(600)
        if self.init == SLOW:
            time.sleep(1.5)
        if self.init == MISUSED:
            raise UserError(where="action", expected="a", found="b", remedy="Fix it.")
