"""What a policy sends and reads, in the words of vla-eval, which compares it with a benchmark.

Each component is a map of `name`, `dims` (0: not counted) and `format`. The harness warns where a
benchmark has another format, so a convention that the checkpoint does not state gets a format that
no benchmark has: `unknown`.

Source: `specs.py` of vla-eval 0.8.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.conventions import ROTATION_DIMS, Conventions, Gripper
from pipeline.data.schema import ACTION
from pipeline.loading.batch import LeafSpec
from train.policy.policy import Policy
from train.policy.policy_spec import PolicySpec
from train.serve.client_session import ServeConfig, expected_keys

UNKNOWN = "unknown"
STATE_KEYS = ("states", "state")
"""Keys of the robot's state: benchmarks of the harness send either."""
_IMAGE = {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}
_LANGUAGE = {"name": "language", "dims": 0, "format": "language"}
# The harness's `rot6d_interleaved` is the first two columns row by row: neither of ours.
_ROTATIONS = {"rot6d": "rot6d_contiguous"}
_GRIPPERS = {
    (-1.0, 1.0): "binary_close_positive",
    (1.0, -1.0): "binary_close_negative",
    (0.0, 1.0): "binary_close_01",
}
"""Formats by the commands that open and close a binary gripper."""
_POSITIONS: Mapping[tuple[str, ...], str] = {
    ("dx", "dy", "dz"): "delta_xyz",
    ("x_m", "y_m", "z_m"): "absolute_xyz",
    ("x", "y", "z"): "absolute_xyz",
}
"""Formats by the names of an action's first dimensions."""
_STATES = {"axis_angle": "axisangle3", "euler_xyz": "euler3", "quaternion_xyzw": "quat4"}
_NUM_POSITIONS = 3
_NUM_VALUES: Mapping[str, int] = {**ROTATION_DIMS}


def action_spec(spec: PolicySpec, conventions: Conventions) -> dict[str, Any]:
    """Returns the components of an action: a pose and a gripper, or `actions` of unknown meaning.

    Args:
      spec: The policy's interface.
      conventions: Conventions of the commands that a benchmark receives.
    """
    (action_dim,) = spec.features[ACTION].shape
    num_rotations = 0 if conventions.rotation == "none" else ROTATION_DIMS[conventions.rotation]
    is_pose = num_rotations and action_dim == _NUM_POSITIONS + num_rotations + 1
    match conventions.all_grippers:
        case (Gripper(dim=dim) as gripper,) if is_pose and dim == action_dim - 1:
            names = spec.action_dims[:_NUM_POSITIONS]
            rotation = _ROTATIONS.get(conventions.rotation, conventions.rotation)
            return {
                "position": _component("position", _NUM_POSITIONS, _POSITIONS.get(names, UNKNOWN)),
                "rotation": _component("rotation", num_rotations, rotation),
                "gripper": _component("gripper", 1, _gripper_format(gripper)),
            }
        case _:
            return {"actions": _component("actions", action_dim, UNKNOWN)}


def observation_spec(policy: Policy, config: ServeConfig) -> dict[str, Any]:
    """Returns the components of an observation: cameras, the robot's state, the instruction."""
    components = {}
    for key, name in zip(expected_keys(policy, config), policy.expected, strict=True):
        leaf = policy.expected[name]
        if is_camera(leaf):
            components[key] = _IMAGE
        else:
            component = "state" if key in STATE_KEYS else key
            features = policy.spec.features[f"observation/{name}"]
            components[component] = _component("state", features.shape[0], _state_format(features))
    if policy.spec.model.language is not None:
        components["language"] = _LANGUAGE
    return components


def is_camera(leaf: LeafSpec | None) -> bool:
    """Returns whether an expected observation is an RGB image."""
    return leaf is None or leaf.is_image


def pose_rotation(leaf: LeafSpec) -> tuple[str, range] | None:
    """Returns the representation and the dimensions of a pose's rotation; None: not known.

    Args:
      leaf: One step of a vector, with the names of its dimensions and what is stated of them.
    """
    rotations: Mapping[str, str] = dict(leaf.rotations)
    if not rotations:
        # Datasets of earlier releases state no rotations of observations, but have these names.
        rotations = dict.fromkeys(("rx_rad", "ry_rad", "rz_rad"), "axis_angle")
    dims = [dim for dim, name in enumerate(leaf.dims) if name in rotations]
    kinds = {rotations[leaf.dims[dim]] for dim in dims}
    # Poses of two arms have twice as many dimensions as one rotation.
    if len(kinds) != 1 or len(dims) != _NUM_VALUES.get(min(kinds)):
        return None
    is_whole = dims[-1] - dims[0] == len(dims) - 1
    return (kinds.pop(), range(dims[0], dims[-1] + 1)) if is_whole else None


def _state_format(leaf: LeafSpec) -> str:
    """Returns a format such as `eef_pos3_axisangle3_gripper2`."""
    found = pose_rotation(leaf)
    if found is None or found[1].start != _NUM_POSITIONS or found[0] not in _STATES:
        return UNKNOWN
    rest: Sequence[str] = leaf.dims[found[1].stop :]
    if not rest or not all("gripper" in name for name in rest):
        return UNKNOWN
    return f"eef_pos3_{_STATES[found[0]]}_gripper{len(rest)}"


def _gripper_format(gripper: Gripper) -> str:
    if gripper.kind == "binary":
        return _GRIPPERS.get((gripper.open, gripper.close), UNKNOWN)
    # The harness's format leaves open which end is closed.
    return "continuous_01" if {gripper.open, gripper.close} == {0.0, 1.0} else UNKNOWN


def _component(name: str, dims: int, form: str) -> dict[str, Any]:
    return {"name": name, "dims": dims, "format": form}
