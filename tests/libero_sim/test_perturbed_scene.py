"""Perturbed trials: what changes, by how much, and that nothing of it stays."""

import numpy as np
import pytest

from train.evaluate.libero.environment import CAMERAS, LiberoEnv
from train.evaluate.libero.scene.perturbations import NONE, Perturbations
from train.evaluate.libero.scene.perturbed_scene import THIRD_PERSON_CAMERA
from train.evaluate.libero.suites import Task, Trial

pytestmark = [pytest.mark.libero, pytest.mark.filterwarnings("ignore")]

ALL = Perturbations(camera=20, light=0.5, texture=1, start=0.1)


def seen(env: LiberoEnv, task: Task, perturbations: Perturbations, init: int = 3) -> list:
    """Starts a trial; returns its frames and states, also after a few steps."""
    env.reset(Trial(task, init))
    env.simulator.reset(init, perturbations)
    found = []
    for _ in range(2):
        found += [*env.observe().values(), env.simulator.physics_state]
        for _ in range(3):
            env.step(np.array([0.5, 0.5, -0.5, 0, 0, 0.5, 0.0]))
    return found


def test_nothing_of_a_perturbation_stays(env: LiberoEnv, task: Task) -> None:
    alone = seen(env, task, NONE)
    perturbed = seen(env, task, ALL)
    assert not any(map(np.array_equal, alone, perturbed))
    seen(env, task, Perturbations(texture=0.5), init=4)
    assert all(map(np.array_equal, seen(env, task, NONE), alone))
    # Neither does an unperturbed trial change a perturbed one.
    assert all(map(np.array_equal, seen(env, task, ALL), perturbed))


def test_the_camera_orbits_the_point_that_it_looks_at(env: LiberoEnv, task: Task) -> None:
    env.reset(Trial(task, 0))
    simulator, camera = env.simulator, env.simulator.model.camera(THIRD_PERSON_CAMERA).id
    height = 0.9 if task.suite == "libero_spatial" else 0.0

    def pose(perturbations: Perturbations, init: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the camera is from the point that it looks at, and this point."""
        simulator.reset(init, perturbations)
        place, forward = simulator.data.cam_xpos[camera], -simulator.data.cam_xmat[camera][2::3]
        point = place + forward * (height - place[2]) / forward[2]
        return place - point, point

    before, target = pose(NONE, 0)
    for init, degrees in ((0, 10), (1, -10)):
        after, point = pose(Perturbations(camera=10), init)
        np.testing.assert_allclose(point, target, atol=1e-6)
        np.testing.assert_allclose(after[2], before[2], atol=1e-9)
        turn = np.angle(complex(*after[:2]) / complex(*before[:2]), deg=True)
        np.testing.assert_allclose(turn, degrees, atol=1e-6)


def test_a_look_changes_no_motion_and_a_start_moves_the_arm_alone(
    env: LiberoEnv, task: Task
) -> None:
    def settled(perturbations: Perturbations) -> np.ndarray:
        env.reset(Trial(task, 3))
        env.simulator.reset(3, perturbations)
        return env.simulator.physics_state

    before = settled(NONE)
    assert np.array_equal(settled(Perturbations(camera=5, light=1, texture=1)), before)
    moved = settled(Perturbations(start=0.1)) - before
    # Time, then the joints. The settling steps turn the unperturbed arm by up to 0.05 rad.
    assert 0.06 < np.linalg.norm(moved[1:8]) < 0.15
    num_positions = env.simulator.model.nq
    assert np.abs(moved[8 : 1 + num_positions]).max() < 1e-3


def test_geoms_that_are_left_out_change_no_pixel_of_a_perturbed_scene(
    env: LiberoEnv, task: Task
) -> None:
    for init in (0, 1):
        env.reset(Trial(task, init))
        simulator = env.simulator
        simulator.reset(init, ALL)
        for camera in CAMERAS.values():
            frame = simulator.render(camera, 128, 128)
            with simulator._scene.shown():
                whole = simulator._sim.render(camera_name=camera, height=128, width=128)
            assert np.array_equal(frame, whole)
