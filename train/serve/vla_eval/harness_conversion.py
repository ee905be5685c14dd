"""What is converted between a policy and the benchmark of vla-eval that drives it.

The harness compares some conventions and only warns. What it does not compare, or what a policy's
dataset has in another form, is converted here or refused before the first episode.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.data.conventions import Conventions
from pipeline.errors import UserError
from train.evaluate.libero.simulator_conventions import (
    CLOSE,
    OPEN,
    check_conventions,
    frame_to_image,
)
from train.policy.gripper_commands import GripperCommands
from train.policy.observations import Observation, describe_one
from train.policy.policy import Policy
from train.serve.vla_eval.harness_specs import is_camera, pose_rotation

_LIBERO = ("libero", "libero_plus", "libero_pro", "libero_mem", "robocerebra")
"""The harness's benchmarks in LIBERO's simulator. They send images of 256x256, the simulator's
frames rotated by 180 degrees, and take its commands."""
_SEEDED = ("libero", "libero_plus")
"""Those of them that take `env_seed` and `quat_no_antipodal`."""
_LIBERO_SHAPE = (256, 256, 3)
_PACKAGE = "vla_eval.benchmarks."
_ROUNDING_RAD = 1e-3
"""By how much an angle of at most pi may exceed it: float32 rounds pi up."""


@dataclasses.dataclass(frozen=True)
class _Rotation:
    """A state's axis times angle, as the training data has it: with angles above pi."""

    dims: range
    mean: np.ndarray
    """The training data's mean of it, float64 (3)."""

    def nearest(self, state: Any) -> np.ndarray:
        """Returns a state whose rotation is written as in the training data, float64 (n)."""
        values = np.array(state, np.float64)
        axis_angle = values[self.dims]
        angle = np.linalg.norm(axis_angle)
        # The same rotation, by the other way round.
        other = axis_angle * (1 - 2 * math.pi / angle) if angle else axis_angle
        if np.linalg.norm(other - self.mean) < np.linalg.norm(axis_angle - self.mean):
            values[self.dims] = other
        return values


class Conversion:
    """Converts observations to those of the policy's dataset, and actions to commands.

    Args:
      policy: The policy that is driven.
      benchmark: Import string of the benchmark's class, as the harness sends it; None: not sent.

    Raises:
      UserError: The policy's conventions or image sizes are not those of the benchmark.
    """

    def __init__(self, policy: Policy, benchmark: str | None = None) -> None:
        self._policy = policy
        package = (benchmark or "").removeprefix(_PACKAGE).partition(".")[0].partition(":")[0]
        is_known = (benchmark or "").startswith(_PACKAGE)
        self._is_libero = is_known and package in _LIBERO
        self._is_seeded = is_known and package in _SEEDED
        self._rotations = _rotations(policy)
        self.conventions: Conventions = policy.conventions
        if self._is_libero:
            check_conventions(policy.conventions, f"the benchmark {benchmark}")
            if policy.conventions.target_poses:
                raise UserError(
                    where=f"the benchmark {benchmark}, actions",
                    expected="commands of its controller",
                    found="target poses",
                    remedy="Use `octograin evaluate`, or train on the dataset's commands.",
                )
            self._check_sizes(benchmark)
            # Whatever the dataset's commands are: the policy knows which of them opens.
            self.conventions = dataclasses.replace(
                policy.conventions, gripper_open=OPEN, gripper_close=CLOSE
            )

    @property
    def params(self) -> dict[str, Any]:
        """Returns the parameters of a benchmark that make it send what the policy reads."""
        leaves = self._policy.expected.values()
        cameras = [leaf for leaf in leaves if is_camera(leaf)]
        params: dict[str, Any] = {}
        if len(cameras) > 1:
            params["send_wrist_image"] = True
        if len(cameras) < len(leaves):
            params["send_state"] = True
        if self._is_seeded:
            # The seed of `octograin evaluate`, and of OpenVLA's evaluation.
            params["env_seed"] = 0
            if params.get("send_state"):
                params["quat_no_antipodal"] = bool(self._rotations)
        return params

    def grippers(self) -> GripperCommands:
        """Returns what turns the actions of one episode into the benchmark's commands."""
        spec = self._policy.spec
        return GripperCommands(self.conventions, spec.action_dims, spec.data.gripper_rules)

    def observation(self, sent: Mapping[str, Any]) -> Observation:
        """Returns an observation as the policy's dataset has it, by the policy's names.

        Args:
          sent: The values that the benchmark sent, which fit the policy's types.
        """
        converted = dict(sent)
        for name, leaf in self._policy.expected.items():
            if name in self._rotations:
                converted[name] = self._rotations[name].nearest(sent[name])
            elif self._is_libero and is_camera(leaf):
                # Rotated back to the simulator's frame, and from there as the dataset's images lie.
                frame = np.asarray(sent[name])[::-1, ::-1]
                converted[name] = frame_to_image(frame, self._policy.conventions)
        return converted

    def _check_sizes(self, benchmark: str | None) -> None:
        if self._policy.config.resize:
            return
        others = {
            name: describe_one(leaf)
            for name, leaf in self._policy.expected.items()
            if leaf is not None and leaf.is_image and leaf.shape != _LIBERO_SHAPE
        }
        if others:
            raise UserError(
                where=f"the benchmark {benchmark}, images",
                expected="a policy that reads images of 256x256, which the benchmark sends",
                found=", ".join(f"{name} {leaf}" for name, leaf in others.items()),
                remedy="Start octograin serve with --resize.",
            )


def _rotations(policy: Policy) -> dict[str, _Rotation]:
    """Returns, by observation, the axis times angle that the dataset writes with angles above pi.

    Published LIBERO states are such, because robosuite keeps the sign of a quaternion's w. Their
    arm points down, an angle of about pi, so other software writes the opposite vector for half of
    the steps.
    """
    found = {}
    for name in policy.expected:
        key = f"observation/{name}"
        statistics, leaf = policy.spec.statistics.get(key), policy.spec.features.get(key)
        # Statistics are of what the model reads, which a transform may have changed.
        read = policy.spec.chain.spec.get(key)
        if statistics is None or leaf is None or read is None or read.dims != leaf.dims:
            continue
        kind, dims = pose_rotation(leaf) or ("", range(0))
        largest = np.maximum(np.abs(statistics.min), np.abs(statistics.max))[dims]
        if kind == "axis_angle" and largest.max() > math.pi + _ROUNDING_RAD:
            found[name] = _Rotation(dims, statistics.mean[dims].astype(np.float64))
    return found
