"""One task's simulation: commands in; frames, states and success out."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.errors import UserError
from train.evaluate.libero.control_loop import ControlLoop
from train.evaluate.libero.installation import ASSETS_COMMAND, Installation, import_simulator
from train.evaluate.libero.scene.perturbations import NONE, Draws, Perturbations
from train.evaluate.libero.scene.perturbed_scene import PerturbedScene
from train.evaluate.libero.scene.sampled_scene import SampledScene
from train.evaluate.libero.scene.unseen_geoms import unseen_left_out
from train.evaluate.libero.simulator_conventions import (
    ACTION_DIM,
    CONTROL_FREQUENCY_HZ,
    OPEN,
    axis_angle,
)
from train.evaluate.libero.suites import Task, Trial

SETTLING_STEPS = 10
"""Commands without motion after a reset, in which objects come to rest.

Source: the evaluations of OpenVLA, OpenVLA-OFT and openpi.
"""

# No motion, and the gripper open, as in the published evaluations.
_SETTLING_COMMAND = (*[0.0] * (ACTION_DIM - 1), OPEN)
_GPUS = "CUDA_VISIBLE_DEVICES"


class Simulator:
    """A simulator of one task, in this process.

    It takes 5 to 25 s and 0.5 GB to build. A step without rendering takes 0.01 CPU-seconds, a
    camera image about 0.05 to 0.1 on a CPU, so images are rendered only when asked for.

    Args:
      installation: The simulator on this machine.
      task: The task.
      seed: Seed of the fixtures' positions, which no initial state holds. They are drawn again at
        every reset.

    Raises:
      UserError: Where the task's scene or its assets are missing or corrupt.
    """

    def __init__(self, installation: Installation, task: Task, seed: int = 0) -> None:
        self.task = task
        self.seed = seed
        self._init_states = task.init_states(installation.root)
        make = import_simulator(installation)
        scene = task.scene_path(installation.root)
        with _explained(task, installation), _gpus_that_egl_understands():
            # Building draws the positions of fixtures.
            self._seed()
            self._env = make(
                str(scene),
                # Cameras are rendered when a frame is asked for: 0.03 CPU-seconds per step instead
                # of 0.24.
                use_camera_obs=False,
                hard_reset=False,  # a hard one builds the scene again: 6 to 10 s instead of 0.1
                # The trial's limit is counted outside.
                ignore_done=True,
                control_freq=CONTROL_FREQUENCY_HZ,
            )
        self._scene = SampledScene(self._env.env)
        self._perturbed_scene = PerturbedScene(self._env.env)
        self._control_loop = ControlLoop(self._env.env)
        self._sensed: Any = None

    def reset(self, init: int, perturbations: Perturbations = NONE) -> None:
        """Starts a trial: an initial state, then the settling steps.

        Results are bitwise identical whatever the simulator did before.

        Args:
          init: Number of the initial state.
          perturbations: Sizes of what is changed in this trial.

        Raises:
          UserError: No such initial state.
        """
        if init not in range(len(self._init_states)):
            raise UserError(
                where=str(Trial(self.task, init)),
                expected=f"an initial state from 0 to {len(self._init_states) - 1}",
                found=str(init),
                remedy="Name another one.",
            )
        # A reset draws too, so a trial depends on nothing before it.
        self._seed()
        self._env.reset()
        # A soft reset keeps the gripper's ramp of the trial before, which a hard one starts at 0.
        gripper = self._robot.gripper
        gripper.current_action = np.zeros_like(gripper.current_action)
        draws = Draws(self.seed, self.task.index, init)
        self._perturbed_scene.change(perturbations, draws)
        state = self._init_states[init]
        if perturbations.start:
            state = self._displaced(state, draws.joints_rad(perturbations.start))
        self._sensed = self._env.set_init_state(state)
        if perturbations.start:
            # Or the arm would return to the pose that the controller was made in.
            self._robot.controller.update(force=True)
            self._robot.controller.reset_goal()
        for _ in range(SETTLING_STEPS):
            self.step(np.array(_SETTLING_COMMAND))

    def step(self, command: np.ndarray) -> bool:
        """Executes one command (7) for 1/20 s; returns whether the goal is reached now."""
        self._sensed, is_success = self._control_loop.step(command)
        return is_success

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        """uint8 (height, width, 3): the frame of a camera, upside down.

        As robosuite's cameras see it, at the same instant as its sensors.
        """
        return self._render(camera, height, width, depth=False)

    def render_with_depth(
        self, camera: str, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the frame of `render`, and its depth.

        Depth is float32 (height, width), upside down as well: the distance in m of what a pixel
        shows, along the camera's axis.
        """
        frame, nonlinear = self._render(camera, height, width, depth=True)
        near, far = (
            limit * self.model.stat.extent
            for limit in (self.model.vis.map.znear, self.model.vis.map.zfar)
        )
        # A depth buffer is 0 at the near plane, 1 at the far one, and linear in 1 / distance.
        return frame, (near / (1.0 - nonlinear * (1.0 - near / far))).astype(np.float32)

    def _render(self, camera: str, height: int, width: int, *, depth: bool) -> Any:
        self._make_current()
        sim, options = self._sim, self._sim._render_context_offscreen.vopt  # noqa: SLF001
        number, aspect = sim.model.camera_name2id(camera), width / height
        unseen = unseen_left_out(self.model, self.data, options, number, aspect)
        # The scene first, as the other looks at it when its block begins.
        with self._scene.shown(), unseen:
            # Upside down, as OpenGL's rows run.
            return sim.render(camera_name=camera, height=height, width=width, depth=depth)

    @property
    def state(self) -> np.ndarray:
        """float32 (8): end effector's position in m and axis times angle in rad, fingers' in m.

        As sensors see it, after the 24th of a step's 25 intervals.
        """
        seen = self._sensed
        pose = (seen["robot0_eef_pos"], axis_angle(seen["robot0_eef_quat"]))
        # Eight numbers: position, rotation, two fingers.
        return np.concatenate([*pose, seen["robot0_gripper_qpos"]]).astype(np.float32)

    @property
    def joint_state(self) -> np.ndarray:
        """float32 (7): the arm's joints in rad."""
        return self._sensed["robot0_joint_pos"].astype(np.float32)

    @property
    def physics_state(self) -> np.ndarray:
        """float64 (n): time, positions and velocities of all that moves, as initial states are."""
        return self._env.get_sim_state()

    @physics_state.setter
    def physics_state(self, state: np.ndarray) -> None:
        self._sensed = self._env.set_init_state(state)

    @property
    def model(self) -> Any:
        """MuJoCo's `MjModel`."""
        return self._sim.model._model  # noqa: SLF001  (robosuite wraps it)

    @property
    def data(self) -> Any:
        """MuJoCo's `MjData`."""
        return self._sim.data._data  # noqa: SLF001

    @property
    def end_effector(self) -> tuple[np.ndarray, np.ndarray]:
        """Its position, float64 (3) in m, and its axes as the columns of a rotation (3, 3)."""
        site = self._robot.eef_site_id
        # Copies: MuJoCo changes its arrays in place.
        return self.data.site_xpos[site].copy(), self.data.site_xmat[site].reshape(3, 3).copy()

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of what can be moved."""
        return tuple(self._env.env.objects_dict)

    @property
    def goal(self) -> list[list[str]]:
        """What has to hold, such as `[["on", "akita_black_bowl_1", "plate_1"]]`."""
        return self._env.env.parsed_problem["goal_state"]

    def body_id(self, name: str) -> int:
        """MuJoCo's number of an object or fixture."""
        return int(self._env.env.obj_body_id[name])

    def position(self, name: str) -> np.ndarray:
        """float64 (3): the origin of an object or fixture, in m."""
        return self.data.xpos[self.body_id(name)].copy()

    def close(self) -> None:
        """Frees the renderer and the simulation."""
        # Freeing another simulator's context would break that one.
        self._make_current()
        self._scene.close()
        self._perturbed_scene.close()
        self._env.close()

    @property
    def _sim(self) -> Any:
        return self._env.sim  # robosuite's own wrapper; not kept: a reset may replace it

    @property
    def _robot(self) -> Any:
        return self._env.robots[0]

    def _displaced(self, state: np.ndarray, joints_rad: np.ndarray) -> np.ndarray:
        """Returns a copy of a state whose arm is displaced."""
        displaced = state.copy()
        # A state begins with the time.
        displaced[1 + np.array(self._robot.controller.qpos_index)] += joints_rad
        return displaced

    def _make_current(self) -> None:
        """Selects this simulator, of several in a process, to draw or to free its context."""
        self._sim._render_context_offscreen.gl_ctx.make_current()  # noqa: SLF001

    def _seed(self) -> None:
        np.random.seed(self.seed)  # noqa: NPY002  (robosuite draws from the global generator)


@contextlib.contextmanager
def _explained(task: Task, installation: Installation) -> Iterator[None]:
    """Names the task and the assets where its scene cannot be built inside the block."""
    try:
        yield
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise UserError(
            where=f"{task}, assets {installation.assets}",
            expected="its scene, and all meshes and textures in it",
            found=" ".join(f"{type(error).__name__}: {error}".split()),
            remedy=f"Fetch the whole set: {ASSETS_COMMAND}",
        ) from error


@contextlib.contextmanager
def _gpus_that_egl_understands() -> Iterator[None]:
    """Hides a `CUDA_VISIBLE_DEVICES` that names no numbers: robosuite's EGL fails at it."""
    before = os.environ.get(_GPUS)
    if before is None or all(part.strip().isdigit() for part in before.split(",")):
        yield
        return
    del os.environ[_GPUS]
    try:
        yield
    finally:
        os.environ[_GPUS] = before
