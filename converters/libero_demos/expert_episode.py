"""One episode of the expert: found without a picture, then replayed with pictures.

The executed command is the expert's with noise added, so that states off its path are visited; the
recorded action is what the expert intended in that state, without the noise. So a policy learns how
to come back, and not to err.

Source: DART, Laskey et al., 2017, arXiv:1703.09327.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import simplejpeg

from converters.libero_demos.expert import Expert
from pipeline.data.conventions import Conventions
from pipeline.data.schema import Blob
from train.evaluate.libero.environment import LiberoEnv
from train.evaluate.libero.simulator_conventions import GRIPPER_DIM, command_to_stored
from train.evaluate.libero.suites import Trial

_HOLD_STEPS = 4
"""Steps that share one draw of noise; the controller would smooth out a new one every step."""

_JPEG_QUALITY = 95
_JPEG_SUBSAMPLING = "420"
"""TensorFlow encodes like this, and so do published sets."""

EpisodeValues = dict[str, np.ndarray | Sequence[Blob]]
"""Values by source key of a published LIBERO dataset."""


@dataclasses.dataclass(frozen=True)
class Noise:
    """What makes episodes differ."""

    action: float = 0.0
    """Standard deviation of what is added to the arm's command, of which 1 is 0.05 m or 0.5 rad."""
    waypoint_m: float = 0.0
    """Half the side of the cube in which waypoints in free space are displaced, once an episode."""


@dataclasses.dataclass(frozen=True)
class Course:
    """The commands of a successful episode."""

    intended: np.ndarray
    """float64 (t, 7): the expert's."""
    executed: np.ndarray
    """float64 (t, 7): with noise."""


def find_course(env: LiberoEnv, trial: Trial, noise: Noise, seed: tuple[int, ...]) -> Course | None:
    """The course of an episode that reaches the goal; None where the expert fails.

    Args:
      env: The simulator.
      trial: The task and the initial state.
      noise: Noise of commands and waypoints.
      seed: Seed of the noise; the same seed gives the same episode.

    Raises:
      UserError: A task of another kind than the expert's.
    """
    env.reset(trial)
    rng = np.random.default_rng(seed)
    expert = Expert(env.simulator, rng, noise.waypoint_m)
    intended, executed = [], []
    draw = np.zeros(GRIPPER_DIM)
    while True:
        command = expert.command()
        # One draw for 4 steps: the controller would smooth out a new one every step.
        if len(executed) % _HOLD_STEPS == 0:
            draw = rng.normal(0.0, noise.action, GRIPPER_DIM)
        noisy = command.copy()
        # The arm alone: noise on the gripper would open and close it.
        noisy[:GRIPPER_DIM] += draw * expert.phase.noise
        intended.append(command)
        executed.append(np.clip(noisy, -1.0, 1.0))
        outcome = env.execute(executed[-1])
        if outcome.is_over:
            break
    return Course(np.array(intended), np.array(executed)) if outcome.is_success else None


def record(
    env: LiberoEnv, trial: Trial, course: Course, conventions: Conventions, name: str
) -> EpisodeValues:
    """The episode of a course, as a published set would hold it.

    Args:
      env: The simulator; it observes both cameras, `proprio` and `joint_state`.
      trial: That of the course.
      course: From `find_course`.
      conventions: Conventions of the dataset.
      name: Name by which the report lists the episode.

    Raises:
      RuntimeError: Where the course does not end in success again: the simulation is not the same.
    """
    # The same initial state and commands give the same course.
    outcome = env.reset(trial)
    seen = []
    for command in course.executed:
        # Observed before the command, as a policy would.
        seen.append(env.observe())
        outcome = env.execute(command)
    # The simulator is deterministic, so this is a bug.
    if not outcome.is_success:
        raise RuntimeError(f"{trial}: its course ended in success once and did not again")
    # The last step has the reward, as in published sets.
    last = np.arange(len(seen)) == len(seen) - 1
    values: EpisodeValues = {
        "steps/observation/image": [_jpeg(o["image_primary"]) for o in seen],
        "steps/observation/wrist_image": [_jpeg(o["image_wrist"]) for o in seen],
        "steps/observation/state": np.array([o["proprio"] for o in seen]),
        "steps/observation/joint_state": np.array([o["joint_state"] for o in seen]),
        "steps/action": command_to_stored(course.intended, conventions),
        "steps/discount": np.ones(len(seen), np.float32),
        "steps/reward": last.astype(np.float32),
        "steps/is_first": np.arange(len(seen)) == 0,
        "steps/is_last": last,
        "steps/is_terminal": last.copy(),
        "steps/language_instruction": [trial.task.instruction.encode()] * len(seen),
        "episode_metadata/file_path": [name.encode()],
    }
    return values


def _jpeg(image: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(image, _JPEG_QUALITY, "RGB", _JPEG_SUBSAMPLING)
