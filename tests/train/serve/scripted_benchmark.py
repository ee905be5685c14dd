"""A benchmark for vla-eval without a simulator: drawn observations, and actions that are kept."""

import pathlib
from typing import Any

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import (
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    ROTATION_AA,
    STATE_EEF_POS_AA_GRIP,
)

from tests.train.serve.harness_client import observation

TASKS = ("pick up the bowl", "open the drawer")
NUM_STEPS = 6


def seed_of(task: int, episode: int, step: int) -> int:
    """Seed of an observation."""
    return 100 * task + 10 * episode + step


class ScriptedBenchmark(StepBenchmark):
    """Two tasks; writes the actions of each episode to `folder`.

    Args:
      folder: Where the actions are written.
      send_wrist_image: Whether observations have the image of the wrist.
      send_state: Whether observations have the state.
    """

    def __init__(
        self, folder: str, *, send_wrist_image: bool = False, send_state: bool = False
    ) -> None:
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.dropped = {"wrist": not send_wrist_image, "states": not send_state}
        self.actions: list[np.ndarray] = []

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": name, "task_id": number} for number, name in enumerate(TASKS)]

    def reset(self, task: dict[str, Any]) -> int:
        self.actions = []
        return 0

    def step(self, action: dict[str, Any]) -> StepResult:
        self.actions.append(action["actions"])
        is_over = len(self.actions) == NUM_STEPS
        if is_over:
            name = f"{self._task['task_id']}_{self._task['episode_idx']}.npy"
            np.save(self.folder / name, np.stack(self.actions))
        return StepResult(obs=len(self.actions), reward=0.0, done=is_over, info={})

    def make_obs(self, raw_obs: int, task: dict[str, Any]) -> dict[str, Any]:
        seed = seed_of(task["task_id"], task["episode_idx"], raw_obs)
        shown = observation(seed, task["name"])
        for name, is_dropped in self.dropped.items():
            if is_dropped:
                shown.pop(name, None)
                shown["images"].pop(name, None)
        return shown

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        return {"success": step_result.done}

    def get_action_spec(self) -> dict[str, Any]:
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self) -> dict[str, Any]:
        images = {"agentview": IMAGE_RGB, "wrist": IMAGE_RGB}
        return {**images, "state": STATE_EEF_POS_AA_GRIP, "language": LANGUAGE}
