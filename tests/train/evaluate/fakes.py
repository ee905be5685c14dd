"""A simulator and a policy of which the loop cannot tell that they are none.

A module of its own: spawned processes import it.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.evaluate.libero.environment import Observation, Outcome
from train.evaluate.libero.scene.perturbations import Perturbations
from train.evaluate.libero.suites import Task, Trial

STEPS = 7
"""Number of actions after which a trial ends."""
SUCCEEDS_AFTER = 5
DIES, DIES_ONCE = 90, 91
"""Initial states whose process is killed at the second action: always, or only the first time."""
TASKS = (Task("libero_spatial", 0, "lift_it"), Task("libero_spatial", 3, "push_it"))


def trial(init: int, task: int = 0) -> Trial:
    return Trial(TASKS[task], init)


class FakeEnv:
    """Even initial states succeed after 5 actions; an observation holds (task, init, steps)."""

    def __init__(self, folder: str, size: int = 16) -> None:
        self.mark = pathlib.Path(folder) / "died"
        self.size = size
        self.now = (0, 0, 0)

    def reset(self, trial: Trial) -> Outcome:
        self.now = (trial.task.index, trial.init, 0)
        return Outcome(0, is_success=False, is_over=False)

    def step(self, action: np.ndarray) -> Outcome:
        assert action.shape == (7,)
        task, init, steps = self.now
        self.now = (task, init, steps + 1)
        if steps == 1:
            self._happen(init)
        is_success = init % 2 == 0 and steps + 1 == SUCCEEDS_AFTER
        return Outcome(steps + 1, is_success=is_success, is_over=is_success or steps + 1 == STEPS)

    def observe(self) -> Observation:
        image = np.full((self.size, self.size, 3), 10 * self.now[2], np.uint8)
        proprio = np.zeros(8, np.float32)
        proprio[:3] = self.now
        return {"image_primary": image, "image_wrist": image + 100, "proprio": proprio}

    def close(self) -> None:
        pass

    def _happen(self, init: int) -> None:
        if init == DIES or (init == DIES_ONCE and not self.mark.exists()):
            self.mark.touch()
            os.kill(os.getpid(), 9)


class FakePolicy:
    """Predicts chunks of 3 zeros, and records its instructions and observations."""

    def __init__(self, window_size: int = 1) -> None:
        self.window_size = window_size
        self.log: list[Any] = []
        self.seen: dict[int, list[int]] = {}
        self.batches: list[tuple[int, ...]] = []

    def reset(self, env: int, instruction: str) -> None:
        self.log.append(("reset", env, instruction))
        self.seen[env] = []

    def observe(self, observations: Mapping[int, Observation]) -> None:
        for env, observation in observations.items():
            self.seen[env].append(-int(observation["proprio"][2]))

    def infer(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        self.batches.append(tuple(observations))
        for env, observation in observations.items():
            task, init, steps = (int(value) for value in observation["proprio"][:3])
            assert env == 1000 * task + init
            self.seen[env].append(steps)
        return {env: np.zeros((3, 7), np.float32) for env in observations}

    def forget(self, env: int) -> None:
        self.log.append(("forget", env))


def make_env(
    installation: Any,
    conventions: Any,
    *,
    observations: tuple[str, ...],
    image_size: tuple[int, int],
    seed: int,
    perturbations: Perturbations,
) -> FakeEnv:
    """Stands in for `LiberoEnv`."""
    assert conventions.gripper_dim == 6
    assert set(observations) == {"image_primary", "image_wrist", "proprio"}
    assert image_size[0] == image_size[1]
    assert seed == 7
    assert perturbations.start in (0, 0.1)
    return FakeEnv(str(installation.root), image_size[0])
