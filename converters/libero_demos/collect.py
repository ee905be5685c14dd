"""The job: the expert's episodes one by one, then as RLDS, then as a dataset.

Each episode is a file of its own in a folder beside the destination until all are there, so that a job
that is killed loses no more than those under way. Then the RLDS is converted as any other.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

from etils import epath

from converters import workers
from converters.convert import convert
from converters.libero_demos import rlds
from converters.libero_demos.episode import Noise, find_course, record
from converters.mappings import LIBERO
from converters.rlds.encoding import serialize_episode
from converters.rlds.source import open_source
from converters.rlds.tfrecord import frame
from converters.standardize import SourceMapping
from pipeline.errors import UserError
from pipeline.files import (
    dump_json,
    sync,
    temporary_path,
    to_json_values,
    write_text_atomically,
    writing,
)
from pipeline.libero.environment import OBSERVATIONS, LiberoEnv
from pipeline.libero.installation import Installation
from pipeline.libero.suites import Trial
from pipeline.manifest import FILE_NAME, WORK, Manifest, load_manifest

NO_OP_THRESHOLD = 1e-4
"""Of OpenVLA's filter, which made the published sets."""

_PLAN = "plan.json"
_LOCK = "lock"
_PLACED = "rlds"
_EPISODE = ".tfrecord"
_FAILED = ".failed"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes of an episode, beside its trial."""

    noise: Noise
    """Of commands and waypoints."""
    seed: int
    """Of the noise."""
    attempts: int
    """Tries at an initial state, each with other noise."""
    image_size: int
    """Height and width of the images."""
    simulator: str
    """Versions of what simulates and renders."""


@dataclasses.dataclass(frozen=True)
class Collection:
    """All that a worker needs to make any episode."""

    installation: Installation
    settings: Settings
    trials: tuple[Trial, ...]
    """What is collected, in the order of the dataset."""
    folder: pathlib.Path
    """Where episodes lie until all are there."""

    def collect(self, number: int, report: workers.Report) -> None:
        """Makes the episode of a trial, or notes that the expert fails at it."""
        trial = self.trials[number]
        env = _environment(self)
        for attempt in range(self.settings.attempts):
            seed = (self.settings.seed, attempt, *trial.task.name.encode(), trial.init)
            course = find_course(env, trial, self.settings.noise, seed)
            if course is not None:
                name = f"{episode_name(trial)}/seed_{self.settings.seed}/attempt_{attempt}"
                values = record(env, trial, course, LIBERO.conventions, name)
                self._keep(self.path(trial, _EPISODE), frame(serialize_episode(values)))
                report(self.path(trial, _EPISODE).stat().st_size)
                return
        self._keep(self.path(trial, _FAILED), b"")
        report(0)

    def path(self, trial: Trial, suffix: str) -> pathlib.Path:
        """Where the episode of a trial lies, or the note that there is none."""
        return self.folder / f"{trial.task.suite}-{trial.task.index}-{trial.init}{suffix}"

    def is_done(self, trial: Trial) -> bool:
        """Whether its episode lies there, or the note that there is none."""
        return any(self.path(trial, suffix).exists() for suffix in (_EPISODE, _FAILED))

    def _keep(self, path: pathlib.Path, data: bytes) -> None:
        with writing(path):
            temporary = temporary_path(path)
            temporary.write_bytes(data)
            sync(temporary)
            temporary.replace(path)


def episode_name(trial: Trial) -> str:
    """Such as `scripted_expert/libero_spatial/task_0/init_07`: it proves what a policy has seen."""
    task = trial.task
    return f"scripted_expert/{task.suite}/task_{task.index}/init_{trial.init:02d}"


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where a collection goes."""

    dataset: pathlib.Path
    """Dataset directory."""
    rlds: pathlib.Path | None = None
    """Folder of the RLDS, which gets one of the version inside; None: none is kept."""
    name: str = "libero_expert"
    """Of the dataset."""
    licence: str = LIBERO.licence
    """Of the data, as an SPDX identifier or in words."""
    overwrite: bool = False
    """Whether a dataset that stands there is replaced."""

    @property
    def folder(self) -> pathlib.Path:
        """Where episodes lie until all are there."""
        absolute = self.dataset.absolute()
        return absolute.with_name(f".{absolute.name}.episodes")


def collect(
    collection: Collection,
    destination: Destination,
    num_workers: int = 1,
    on_progress: workers.OnProgress = lambda num_episodes, num_bytes: None,
) -> Manifest:
    """Makes all episodes and writes them as a dataset; what an earlier run made is not made again.

    Raises:
      UserError: A destination that is in use, episodes of other settings, a task that the expert
        does not have, or no episode that succeeded.
    """
    if _is_complete(destination):
        shutil.rmtree(collection.folder)
        return load_manifest(epath.Path(destination.dataset))
    _check_free(destination)
    with _claimed(collection):
        pending = [n for n, trial in enumerate(collection.trials) if not collection.is_done(trial)]
        on_progress(len(collection.trials) - len(pending), 0)
        workers.run(collection.collect, pending, min(num_workers, len(pending)) or 1, on_progress)
        made = [trial for trial in collection.trials if collection.path(trial, _EPISODE).exists()]
        if not made:
            raise _misused(
                "expert", "an episode that succeeds", "none", "Lower --noise, or name other tasks."
            )
        source = _placed_rlds(collection, destination, made)
        manifest = convert(
            open_source(str(source)),
            destination.dataset,
            mapping(destination.licence),
            overwrite=destination.overwrite,
            provenance=provenance(collection, made),
        )
    shutil.rmtree(collection.folder)
    return manifest


def mapping(licence: str) -> SourceMapping:
    """That of the published sets; steps without motion are left out by the rule that made them."""
    conventions = dataclasses.replace(
        LIBERO.conventions, no_ops="removed_at_conversion", no_op_threshold=NO_OP_THRESHOLD
    )
    features = tuple(feature for feature in LIBERO.features if not feature.optional)
    return dataclasses.replace(
        LIBERO, features=features, conventions=conventions, licence=licence, column_licences={}
    )


def provenance(collection: Collection, made: Sequence[Trial]) -> dict[str, str]:
    """What the manifest says of the episodes: which initial states are in it, and how they arose."""
    settings = collection.settings
    failed = [trial for trial in collection.trials if trial not in made]
    return {
        "expert": "scripted, converters.libero_demos",
        "simulator": settings.simulator,
        "noise": f"commands {settings.noise.action:g}, waypoints {settings.noise.waypoint_m:g} m; "
        "actions are the expert's, without it",
        "seed": f"{settings.seed}",
        "initial_states": _listed(made),
        "failed_initial_states": _listed(failed) or "none",
    }


def _listed(trials: Sequence[Trial]) -> str:
    """Such as `libero_spatial task 0: 0 1 2; libero_spatial task 2: 0 1`."""
    states: dict[str, list[int]] = {}
    for trial in trials:
        states.setdefault(str(trial.task), []).append(trial.init)
    return "; ".join(f"{task}: {' '.join(map(str, inits))}" for task, inits in states.items())


# --- the folder of episodes


@contextlib.contextmanager
def _claimed(collection: Collection) -> Iterator[None]:
    """Holds the folder for one job; what killed workers left in it is removed."""
    folder = collection.folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _misused(
                str(folder), "no other job in it", "one at work", "Wait for its end, or stop it."
            ) from error
        plan = dump_json(to_json_values(collection.settings))
        noted = folder / _PLAN
        if noted.exists() and noted.read_text() != plan:
            raise _misused(
                str(folder),
                "episodes of the same settings",
                f"those of others, see {noted}",
                "Finish with those, or remove the folder to start over.",
            )
        with writing(folder):
            write_text_atomically(noted, plan)
        for path in folder.glob(".*.tmp"):
            path.unlink()
        yield
    finally:
        os.close(descriptor)


def _is_complete(destination: Destination) -> bool:
    """Whether a job was killed after its last file, with only the episodes left to be removed."""
    dataset = destination.dataset
    is_done = (dataset / FILE_NAME).exists() and not (dataset / WORK).exists()
    return is_done and destination.folder.exists() and not destination.overwrite


def _check_free(destination: Destination) -> None:
    """Refuses, before hours of simulation, a place that is taken."""
    dataset = destination.dataset
    is_used = dataset.exists() and not dataset.is_dir()
    is_used |= dataset.is_dir() and any(dataset.iterdir()) and not (dataset / WORK).exists()
    if is_used and not destination.overwrite:
        remedy = "Replace a dataset with --overwrite, or name another one."
        raise _misused(str(dataset), "an empty or new directory", "one that is in use", remedy)
    folder = destination.rlds
    if folder is not None and folder.exists() and not (destination.folder / _PLACED).exists():
        remedy = "Name another folder with --rlds."
        raise _misused(str(folder), "a new folder", "one that exists", remedy)


def _placed_rlds(
    collection: Collection, destination: Destination, made: Sequence[Trial]
) -> pathlib.Path:
    """The folder of the RLDS, which appears whole; one that an earlier run placed stays."""
    folder = destination.rlds or collection.folder / "kept"
    if destination.rlds is None:
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        with writing(folder):
            (collection.folder / _PLACED).touch()  # from now on it is this job's
            temporary = temporary_path(folder.absolute())
            episodes = [collection.path(trial, _EPISODE) for trial in made]
            size = collection.settings.image_size
            try:
                rlds.write_rlds(temporary / rlds.VERSION, destination.name, episodes, size)
                temporary.replace(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder / rlds.VERSION


def _misused(where: str, expected: str, found: str, remedy: str) -> UserError:
    return UserError(where=where, expected=expected, found=found, remedy=remedy)


# --- in a worker


@functools.cache
def _environments() -> dict[str, LiberoEnv]:
    """The one of this process, kept between episodes."""
    return {}


def _environment(collection: Collection) -> LiberoEnv:
    size = (collection.settings.image_size,) * 2
    return _environments().setdefault(
        str(size),
        LiberoEnv(
            collection.installation,
            LIBERO.conventions,
            observations=OBSERVATIONS,
            image_size=size,
        ),
    )
