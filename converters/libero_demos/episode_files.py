"""The episodes of a job, each a file of its own that is there whole or not at all."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator

from converters.job import workers
from converters.libero_demos.expert_episode import Noise, find_course, record
from converters.mapping.mapping_registry import registered
from converters.rlds.example_encoding import serialize_episode
from converters.rlds.tfrecord import frame
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
from train.evaluate.libero.suites import Trial

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


@functools.cache
def _environments() -> dict[str, LiberoEnv]:
    """The one of this process, kept between episodes."""
    return {}


def _environment(files: EpisodeFiles) -> LiberoEnv:
    side = files.settings.image_size
    # One simulator per process and size, kept between episodes.
    return _environments().setdefault(
        str(side),
        LiberoEnv(
            files.installation,
            registered("libero").conventions,
            observations=OBSERVATIONS,
            image_size=(side, side),
        ),
    )
