"""Episodes of the expert, each a file of its own that is there whole or not at all.

An episode is found without images, then replayed with images. The executed command is the expert's
with noise added, so that states off its path are visited; the recorded action is what the expert
intended in that state, without the noise. A policy learns to recover, and not to err.

Source: DART, Laskey et al., 2017, arXiv:1703.09327.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import simplejpeg

from converters.job import workers
from converters.mapping.mapping_registry import registered
from converters.rlds.example_writing import serialize_episode
from converters.rlds.tfrecord import frame
from examples.scripted_expert.expert import Expert
from pipeline.data.conventions import Conventions
from pipeline.data.schema import Blob
from pipeline.errors import UserError
from pipeline.files import (
    dump_json,
    locked,
    sync,
    temporaries,
    temporary_of,
    temporary_path,
    to_json_values,
    write_text_atomically,
    writing,
)
from train.evaluate.libero.environment import OBSERVATIONS, LiberoEnv
from train.evaluate.libero.installation import Installation
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
    states: np.ndarray
    """float64 (t, n): the physics state before each command."""


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
    intended, executed, states = [], [], []
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
        states.append(env.simulator.physics_state)
        outcome = env.execute(executed[-1])
        if outcome.is_over:
            break
    if not outcome.is_success:
        return None
    return Course(np.array(intended), np.array(executed), np.array(states))


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


# --- files

_PLAN = "plan.json"
_LOCK = "lock"
_EPISODE = ".tfrecord"
_FAILED = ".failed"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes of an episode, beside its trial."""

    noise: Noise
    """Noise of commands and waypoints."""
    seed: int
    """Seed of the noise."""
    attempts: int
    """Tries at an initial state, each with other noise."""
    image_size: int
    """Height and width of the images."""
    simulator: str
    """Versions of what simulates and renders."""


@dataclasses.dataclass(frozen=True)
class EpisodeFiles:
    """All that a worker needs to make any episode."""

    installation: Installation
    settings: Settings
    trials: tuple[Trial, ...]
    """What is collected, in the order of the dataset."""
    folder: pathlib.Path
    """Folder of the episodes until all are collected."""

    def make(self, number: int, report: workers.Report) -> None:
        """Makes the episode of a trial, or notes that the expert fails at it."""
        trial = self.trials[number]
        env = _environment(self)
        for attempt in range(self.settings.attempts):
            # From the trial and attempt alone: any worker makes the same episode.
            seed = (self.settings.seed, attempt, *trial.task.name.encode(), trial.init)
            course = find_course(env, trial, self.settings.noise, seed)
            if course is not None:
                name = f"{episode_name(trial)}/seed_{self.settings.seed}/attempt_{attempt}"
                values = record(env, trial, course, registered("libero").conventions, name)
                data = frame(serialize_episode(values))
                _keep(self._path(trial, _EPISODE), data)
                report(len(data))
                return
        # An empty file notes the failure, so that it is not tried at every resume.
        _keep(self._path(trial, _FAILED), b"")
        report(0)

    def pending(self) -> list[int]:
        """Numbers of the trials whose outcome is not known yet."""
        known = [
            any(self._path(trial, suffix).exists() for suffix in (_EPISODE, _FAILED))
            for trial in self.trials
        ]
        return [number for number, is_known in enumerate(known) if not is_known]

    def made(self) -> dict[Trial, pathlib.Path]:
        """Returns the TFRecord file of each collected trial, in order."""
        paths = {trial: self._path(trial, _EPISODE) for trial in self.trials}
        return {trial: path for trial, path in paths.items() if path.exists()}

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the folder for one job; what killed workers left in it is removed.

        Raises:
          UserError: Where another job is at work in it, or episodes of other settings lie there.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            held = sorted(path.name for path in self.folder.iterdir() if path.name != _LOCK)
        # Anything but temporaries and a plan may be somebody's.
        if any(not temporary_of(name) for name in held) and not (self.folder / _PLAN).exists():
            raise UserError(  # the folder is deleted at the end
                where=str(self.folder),
                expected="a new folder, or that of an unfinished collection",
                found=f"other files: {held[0]}",
                remedy="Move them elsewhere, or name another dataset directory.",
            )
        refused = UserError(
            where=str(self.folder),
            expected="no other job in it",
            found="one at work",
            remedy="Wait for its end, or stop it.",
        )
        with locked(self.folder / _LOCK, refused):
            # Under the lock: another job must not see half of it.
            self._note_plan()
            for path in temporaries(self.folder):
                path.unlink()
            yield

    def _note_plan(self) -> None:
        plan = dump_json(to_json_values(self.settings))
        noted = self.folder / _PLAN
        # Episodes of other settings must not be mixed.
        if noted.exists() and noted.read_text() != plan:
            raise UserError(
                where=str(self.folder),
                expected="episodes of the same settings",
                found=f"those of others, see {noted}",
                remedy="Finish with those, or remove the folder to start over.",
            )
        with writing(self.folder):
            write_text_atomically(noted, plan)

    def _path(self, trial: Trial, suffix: str) -> pathlib.Path:
        return self.folder / f"{trial.task.suite}-{trial.task.index}-{trial.init}{suffix}"


def episode_name(trial: Trial) -> str:
    """Such as `scripted_expert/libero_spatial/task_0/init_07`: it proves what a policy has seen."""
    task = trial.task
    return f"scripted_expert/{task.suite}/task_{task.index}/init_{trial.init:02d}"


def _keep(path: pathlib.Path, data: bytes) -> None:
    with writing(path):
        temporary = temporary_path(path)
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)


_environments: dict[int, LiberoEnv] = {}
"""The simulators of this process, kept between episodes, by their image size."""


def _environment(files: EpisodeFiles) -> LiberoEnv:
    side = files.settings.image_size
    if side not in _environments:
        _environments[side] = LiberoEnv(
            files.installation,
            registered("libero").conventions,
            observations=OBSERVATIONS,
            image_size=(side, side),
        )
    return _environments[side]
