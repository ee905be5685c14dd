"""Views for the geometry encoder: depth and cameras explain each other, mirrored as stored."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from examples.geometry_encoder.cameras import Cameras, project, unproject
from examples.geometry_encoder.view_sets import ViewSets, ViewSettings, draw_poses, view_set
from pipeline.vggt.encoder import resize_bicubic
from tests.libero_sim.commands import run
from train.evaluate.libero.environment import LiberoEnv
from train.evaluate.libero.suites import Task, Trial

pytestmark = [
    pytest.mark.libero,
    pytest.mark.filterwarnings("ignore"),  # the simulator's packages are of another time
]

SIDE = 112
SETTINGS = ViewSettings(
    num_moments=1,
    num_moved=2,
    azimuth_deg=30.0,
    elevation_deg=8.0,
    distance=0.1,
    image_size=SIDE,
    attempts=1,
    seed=0,
    simulator="",
)
PUSH = np.array([0.5, 0.5, -0.5, 0, 0, 0.5, 0.0])


@pytest.fixture(scope="module")
def views(env: LiberoEnv, task: Task) -> ViewSets:
    """One moment of which the dataset's camera, two moved ones and the hand's are shown."""
    env.reset(Trial(task, 3))
    for _ in range(12):
        env.step(PUSH)
    poses = draw_poses(env.simulator, SETTINGS, np.random.default_rng(0))
    return view_set(env.simulator, env.simulator.physics_state, poses, SIDE)


def camera(views: ViewSets, view: int) -> Cameras:
    cameras = views.cameras
    return Cameras(cameras.rotation[0, view], cameras.translation[0, view], cameras.fov_y[0, view])


def test_the_first_and_last_views_are_what_a_policy_sees(env: LiberoEnv, views: ViewSets) -> None:
    env.simulator.physics_state = env.simulator.physics_state  # the cameras are sampled here
    seen = env.observe()
    for view, name in ((0, "image_primary"), (-1, "image_wrist")):
        resized = np.asarray(resize_bicubic(jnp.asarray(seen[name][None]), SIDE, SIDE))
        assert np.array_equal(views.images[:, view], resized)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (0, 3), (2, 3)])
def test_depth_takes_each_pixel_to_its_place_in_another_view(
    views: ViewSets, one: int, other: int
) -> None:
    points = unproject(views.depth_mm[0, one] / 1000, camera(views, one))
    pixels, depth_m = project(points, camera(views, other), SIDE)
    is_inside = (depth_m > 0) & ((pixels >= 0) & (pixels <= SIDE - 1)).all(axis=-1)
    column, row = np.rint(pixels[is_inside]).astype(int).T
    error = np.abs(depth_m[is_inside] - views.depth_mm[0, other][row, column] / 1000)
    # Some pixels show what is hidden in the other view.
    assert is_inside.mean() > 0.02
    assert np.median(error) < 0.005
    assert (error < 0.02).mean() > 0.65


def test_the_camera_is_put_back(env: LiberoEnv, views: ViewSets) -> None:
    env.simulator.physics_state = env.simulator.physics_state
    before = env.observe()["image_primary"]
    state = env.simulator.physics_state
    poses = draw_poses(env.simulator, SETTINGS, np.random.default_rng(1))
    assert not np.array_equal(poses[1][0], poses[0][0])
    view_set(env.simulator, state, poses, SIDE)
    env.simulator.physics_state = state
    assert np.array_equal(env.observe()["image_primary"], before)


def test_a_finished_file_is_not_made_again(tmp_path: pathlib.Path) -> None:
    arguments = ("examples.geometry_encoder.render", tmp_path / "views", "--tasks", 0)
    arguments += ("--episodes", 1, "--moments", 2, "--moved", 2)
    assert "views of 1 episodes" in run(*arguments)
    read = ViewSets.read([tmp_path / "views" / "libero_spatial-0-00.npz"])
    assert read.images.shape == (2, 4, SIDE, SIDE, 3)
    assert 30 < read.depth_mm[read.depth_mm > 0].min() < 100  # the gripper before its camera
    assert ", 0 new, " in run(*arguments)
