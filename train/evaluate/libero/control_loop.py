"""Executes commands as robosuite's own `step` does, without what nobody reads.

    each of a step's 25 intervals of 2 ms:
        positions and velocities (mj_step1) -> torques of the controller -> motion (mj_step2)

In an interval robosuite computes positions, velocities and forces three times, and updates 29
observables. Here they are computed once, and five observables are updated. The states that follow
are bitwise identical.
"""

import importlib
from typing import Any

import numpy as np

from train.evaluate.libero.scene.sampled_scene import SAMPLING

READ = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "robot0_joint_pos")
"""The observables that a step returns."""


class ControlLoop:
    """Steps one environment.

    Args:
      env: LIBERO's environment of robosuite 1.4, with one Panda arm, `OSC_POSE` control and a
        `SampledScene`.
    """

    def __init__(self, env: Any) -> None:
        # Not before: MuJoCo reads once, as it is imported, how to render.
        self._mujoco: Any = importlib.import_module("mujoco")
        self._env = env
        self._updated = {name: env._observables[name] for name in (*READ, SAMPLING)}  # noqa: SLF001
        self._interval_s = env.model_timestep
        self._num_intervals = int(env.control_timestep / env.model_timestep)
        robot, sim = env.robots[0], env.sim
        self._model, self._data = sim.model._model, sim.data._data  # noqa: SLF001
        self._site = sim.model.site_name2id(robot.controller.eef_name)
        self._positions = np.array(robot.controller.qpos_index)
        self._joints = np.array(robot.controller.qvel_index)
        self._arm = np.array(robot._ref_joint_actuator_indexes)  # noqa: SLF001
        self._fingers = np.array([sim.model.actuator_name2id(n) for n in robot.gripper.actuators])
        self._low, self._high = self._model.actuator_ctrlrange[self._arm].T.copy()
        low, high = self._model.actuator_ctrlrange[self._fingers].T
        self._finger_middle, self._finger_reach = 0.5 * (high + low), 0.5 * (high - low)
        num_velocities = self._model.nv
        # Overwritten in every interval.
        self._translation, self._rotation = np.zeros((2, 3, num_velocities))
        self._masses = np.zeros((num_velocities, num_velocities))

    def step(self, command: np.ndarray) -> tuple[dict[str, np.ndarray], bool]:
        """Executes a command (7) for 1/20 s; returns observables and whether the goal is reached.

        Source: robosuite 1.4.0, `MujocoEnv.step`, `SingleArm.control`, `Manipulator.grip_action`.
        """
        # A reset makes a new controller.
        robot = self._env.robots[0]
        controller, ctrl = robot.controller, self._data.ctrl
        arm, gripper = command[: controller.control_dim], command[controller.control_dim :]
        for interval in range(self._num_intervals):
            self._mujoco.mj_step1(self._model, self._data)
            # A new controller keeps for one interval what it measured when it was made.
            if controller.new_update:
                self._measure(controller)
            if interval == 0:
                controller.set_goal(arm)
            torques = controller.run_controller()
            ctrl[self._arm] = np.minimum(np.maximum(torques, self._low), self._high)
            # The gripper's ramp advances.
            opening = robot.gripper.format_action(gripper)
            ctrl[self._fingers] = self._finger_middle + self._finger_reach * opening
            self._mujoco.mj_step2(self._model, self._data)
            # Each samples once in a step, by a clock of its own.
            for observable in self._updated.values():
                observable.update(timestep=self._interval_s, obs_cache={})
        # Such as the flame of a stove.
        self._env._post_process()  # noqa: SLF001
        sensed = {name: self._updated[name].obs for name in READ}
        return sensed, bool(self._env._check_success())  # noqa: SLF001

    def _measure(self, controller: Any) -> None:
        """Gives the controller what it computes torques from.

        Source: robosuite 1.4.0, `Controller.update`, which first computes all dynamics again.
        """
        data, joints = self._data, self._joints
        controller.ee_pos = data.site_xpos[self._site].copy()
        controller.ee_ori_mat = data.site_xmat[self._site].reshape(3, 3).copy()
        self._mujoco.mj_jacSite(self._model, data, self._translation, self._rotation, self._site)
        controller.ee_pos_vel = np.dot(self._translation, data.qvel)
        controller.ee_ori_vel = np.dot(self._rotation, data.qvel)
        controller.joint_pos = data.qpos[self._positions]
        controller.joint_vel = data.qvel[joints]
        # Columns first, then rows: another memory layout would change the last bits of products.
        controller.J_pos = self._translation[:, joints]
        controller.J_ori = self._rotation[:, joints]
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        self._mujoco.mj_fullM(self._model, self._masses, data.qM)
        controller.mass_matrix = self._masses[joints, :][:, joints]
        # Or the controller would measure again.
        controller.new_update = False
