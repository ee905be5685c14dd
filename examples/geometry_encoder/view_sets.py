"""Sets of views: images, depth and cameras of moments of the expert's episodes, a file per episode.

A set shows one moment: from the dataset's third-person camera, from the same camera moved around
the point that it looks at, and from the camera in the hand. Images have the orientation in which a
dataset stores them, and the size at which the encoder reads them.
"""

import dataclasses
import io
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from converters.job import workers
from converters.mapping.mapping_registry import registered
from examples.geometry_encoder.cameras import Cameras, as_stored, mujoco_camera, orbited
from examples.scripted_expert.episodes import Noise, find_course
from pipeline.data.rotations import from_matrix
from pipeline.errors import UserError
from pipeline.files import dump_json, to_json_values, write_text_atomically, writing
from pipeline.vggt.encoder import resize_bicubic
from train.evaluate.libero.environment import CAMERAS, LiberoEnv
from train.evaluate.libero.installation import Installation
from train.evaluate.libero.simulator import Simulator
from train.evaluate.libero.simulator_conventions import frame_to_image
from train.evaluate.libero.suites import Trial

SETTINGS = "settings.json"
CONVENTIONS = registered("libero").conventions
_THIRD_PERSON, _WRIST = CAMERAS["image_primary"], CAMERAS["image_wrist"]
_RENDERED_PX = 256
"""Size of a dataset's images, from which the encoder resizes."""
_MM = 1000
_NOISE = Noise(action=0.2, waypoint_m=0.03)
"""Noise of the expert's episodes, so that the arm is seen in more places."""


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """What decides the bytes of a file, beside its trial."""

    num_moments: int
    """Moments of each episode."""
    num_moved: int
    """Views of a moment from a camera that was moved."""
    azimuth_deg: float
    """Largest turn of the camera around the vertical, to either side."""
    elevation_deg: float
    """Largest turn upward or downward."""
    distance: float
    """Largest change of the camera's distance, as a fraction of it."""
    image_size: int
    """Height and width of the images."""
    attempts: int
    """Tries at an initial state, each with other noise, until one reaches the goal."""
    seed: int
    """Seed of noise, moments and cameras."""
    simulator: str
    """Versions of what simulates and renders."""


@dataclasses.dataclass(frozen=True)
class ViewSets:
    """Sets of as many views each: n sets of v."""

    images: np.ndarray
    """uint8 (n, v, y, x, 3): as a dataset stores them."""
    depth_mm: np.ndarray
    """uint16 (n, v, y, x): distance along the camera's axis; 0: none within 65 m."""
    cameras: Cameras
    """Axes (n, v): first the dataset's camera, then the moved ones, last that in the hand."""

    @classmethod
    def read(cls, paths: Sequence[pathlib.Path]) -> "ViewSets":
        """The sets of some files, in their order."""
        return joined([cls._read_one(path) for path in paths], axis=0)

    @classmethod
    def _read_one(cls, path: pathlib.Path) -> "ViewSets":
        with np.load(path) as arrays:
            pose = {key: arrays[key].astype(np.float64) for key in _POSE}
            return cls(arrays["images"], arrays["depth_mm"], Cameras(**pose))

    def write(self, path: pathlib.Path) -> int:
        """Writes a file, which is complete or absent; returns its bytes."""
        buffer = io.BytesIO()
        pose = {key: getattr(self.cameras, key).astype(np.float32) for key in _POSE}
        np.savez_compressed(buffer, images=self.images, depth_mm=self.depth_mm, **pose)
        with writing(path):
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(path)
        return buffer.tell()


_POSE = tuple(field.name for field in dataclasses.fields(Cameras))


@dataclasses.dataclass(frozen=True)
class ViewFiles:
    """All that a worker needs to make any file."""

    installation: Installation
    settings: ViewSettings
    trials: tuple[Trial, ...]
    """The episodes, one per file."""
    folder: pathlib.Path
    """Folder of the files."""

    def check_settings(self) -> None:
        """Notes the settings in the folder.

        Raises:
          UserError: It holds files of other settings.
        """
        noted, text = self.folder / SETTINGS, dump_json(to_json_values(self.settings))
        if noted.exists() and noted.read_text() != text:
            raise UserError(
                where=str(self.folder),
                expected="views of the same settings",
                found=f"those of others, see {noted}",
                remedy="Give the same flags, or name another folder.",
            )
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text_atomically(noted, text)

    def pending(self) -> list[int]:
        """Numbers of the trials that have no file yet."""
        return [n for n, trial in enumerate(self.trials) if not self._path(trial).exists()]

    def make(self, number: int, report: workers.Report) -> None:
        """Makes the file of a trial."""
        trial = self.trials[number]
        env = _environment(self.installation)
        # From the trial alone: any worker makes the same file.
        seed = (self.settings.seed, *trial.task.name.encode(), trial.init)
        rng = np.random.default_rng(seed)
        states = visited_states(env, trial, seed, self.settings.attempts)
        # One moment in each part of the episode.
        parts = np.array_split(states, self.settings.num_moments)
        moments = [part[rng.integers(len(part))] for part in parts if len(part)]
        poses = [draw_poses(env.simulator, self.settings, rng) for _ in moments]
        sets = [
            view_set(env.simulator, *one, self.settings.image_size)
            for one in zip(moments, poses, strict=True)
        ]
        report(joined(sets, axis=0).write(self._path(trial)))

    def _path(self, trial: Trial) -> pathlib.Path:
        return self.folder / f"{trial.task.suite}-{trial.task.index}-{trial.init:02d}.npz"


def init_of(path: pathlib.Path) -> int:
    """The initial state of a file's episode."""
    return int(path.stem.rsplit("-", maxsplit=1)[1])


def visited_states(
    env: LiberoEnv, trial: Trial, seed: tuple[int, ...], attempts: int
) -> np.ndarray:
    """float64 (t, n): the physics states of the expert's episode.

    Raises:
      UserError: The expert does not reach the goal.
    """
    for attempt in range(attempts):
        course = find_course(env, trial, _NOISE, (*seed, attempt))
        if course is not None:
            return course.states
    raise UserError(
        where=str(trial),
        expected="an episode that reaches the goal",
        found=f"none in {attempts} attempts",
        remedy="Raise --attempts.",
    )


# --- rendering

Pose = tuple[np.ndarray, np.ndarray]
"""A camera's position (3) in m and its axes as columns (3, 3), as MuJoCo has them."""


def draw_poses(
    simulator: Simulator, settings: ViewSettings, rng: np.random.Generator
) -> list[Pose]:
    """The third-person camera where it is, then moved at random."""
    number = simulator.model.camera(_THIRD_PERSON).id
    position = simulator.data.cam_xpos[number].copy()
    axes = simulator.data.cam_xmat[number].reshape(3, 3).copy()
    # Where its axis meets the height at which the objects stand.
    height = np.mean([simulator.position(name)[2] for name in simulator.objects])
    target = position - axes[:, 2] * (height - position[2]) / -axes[2, 2]
    most = np.radians([settings.azimuth_deg, settings.elevation_deg])
    moved = []
    for _ in range(settings.num_moved):
        azimuth, elevation = rng.uniform(-most, most)
        distance = 1 + rng.uniform(-settings.distance, settings.distance)
        moved.append(orbited(position, axes, target, (azimuth, elevation), distance))
    return [(position, axes), *moved]


def view_set(
    simulator: Simulator, state: np.ndarray, poses: Sequence[Pose], image_size: int
) -> ViewSets:
    """One set: a state from each pose of the third-person camera, and from the hand."""
    camera = simulator.model.camera(_THIRD_PERSON)
    before = camera.pos.copy(), camera.quat.copy()
    views = []
    try:
        for position, axes in poses:
            # It hangs at the world itself, so these are the world's axes.
            camera.pos[:], camera.quat[:] = position, from_matrix(axes, "quaternion_wxyz")
            # Setting the state samples the cameras where they stand now.
            simulator.physics_state = state
            views.append(_view(simulator, _THIRD_PERSON, image_size))
        views.append(_view(simulator, _WRIST, image_size))
    finally:
        camera.pos[:], camera.quat[:] = before
    return joined(views, axis=1)


def joined(sets: Sequence[ViewSets], axis: int) -> ViewSets:
    """Joins sets of as many views (axis 0), or views of the same sets (axis 1)."""

    def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays, axis=axis)

    cameras = {name: join([getattr(one.cameras, name) for one in sets]) for name in _POSE}
    images, depth_mm = join([s.images for s in sets]), join([s.depth_mm for s in sets])
    return ViewSets(images, depth_mm, Cameras(**cameras))


def _view(simulator: Simulator, name: str, image_size: int) -> ViewSets:
    """One view of the present state, with the axes (1, 1)."""
    frame, depth = simulator.render_with_depth(name, _RENDERED_PX, _RENDERED_PX)
    # Depth lies as the image does.
    image, depth_m = (frame_to_image(array, CONVENTIONS) for array in (frame, depth))
    # As the encoder sees a stored image.
    resized = np.asarray(resize_bicubic(jnp.asarray(image[None]), image_size, image_size))
    data, number = simulator.data, simulator.model.camera(name).id
    camera = mujoco_camera(
        data.cam_xpos[number].copy(),
        data.cam_xmat[number].reshape(3, 3).copy(),
        simulator.model.cam_fovy[number],
    )
    stored = as_stored(camera, CONVENTIONS)
    pose = {field: getattr(stored, field)[None, None] for field in _POSE}
    depth_mm = to_mm(nearest(depth_m, image_size))
    return ViewSets(resized[None], depth_mm[None, None], Cameras(**pose))


def nearest(depth: np.ndarray, side: int) -> np.ndarray:
    """Depth (y, x) at the nearest pixels of a smaller image: a mean across an edge is nowhere."""
    middles = (np.arange(side) + 0.5) / side
    rows, columns = ((middles * length).astype(int) for length in depth.shape)
    return depth[np.ix_(rows, columns)]


def to_mm(depth_m: np.ndarray) -> np.ndarray:
    """uint16 millimetres of a depth in m; 0 where it is out of range."""
    rounded = np.rint(depth_m * _MM)
    return np.where(rounded <= np.iinfo(np.uint16).max, rounded, 0).astype(np.uint16)


_environments: list[LiberoEnv] = []
"""The simulator of this process, kept between episodes."""


def _environment(installation: Installation) -> LiberoEnv:
    if not _environments:
        _environments.append(LiberoEnv(installation, CONVENTIONS, observations=()))
    return _environments[0]
