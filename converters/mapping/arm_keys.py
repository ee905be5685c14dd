"""Which keys of a source are an arm's joints, pose and gripper, by the words of their names."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from converters.mapping.instruction_guess import FLOATS, leaf_words, words_of
from converters.sources.source import STEPS, SourceKey

COMMAND_WORDS = ("action", "cmd", "control")
"""Words in the keys of likely actions, the likeliest first."""
GRIPPER_WORDS = {"gripper", "grip", "closedness"}
"""Words in the names of dimensions that command a gripper; a hand may have fingers instead."""
_ARM_ORDER = (
    {"world", "xyz", "pos", "position", "translation", "cartesian", "linear", "pose", "eef", "ee"},
    {"rotation", "rot", "rpy", "orientation", "angular", "euler", "quat", "quaternion", "axis"},
    set(),
    GRIPPER_WORDS | {"finger", "fingers", "hand"},
)
"""Words of the parts of an arm's vector, in their usual order; the empty set is for all others."""
_JOINT_WORDS = {"joint", "joints", "qpos"}
_JOINT_NAMES = {"waist", "shoulder", "elbow"}
"""Words in the names of dimensions that are joints."""
_POSE_WORDS = {"eef", "ee", "tcp", "tool", "effector", "cartesian"}
_FINGER_WORDS = GRIPPER_WORDS | {"finger", "fingers"}
_POSITION_WORDS = {"pos", "position", "positions", "qpos", "angle", "angles"}
_STATE_WORDS = {"state", "states", "proprio", "proprioception"}
_NO_POSITION_WORDS = {
    *("velocity", "velocities", "vel", "qvel", "acceleration", "accelerations", "delta"),
    *("torque", "torques", "effort", "efforts", "force", "forces", "wrench", "sin", "cos"),
    *(
        "target",
        "desired",
        "goal",
        "command",
        "commanded",
        "object",
        "camera",
        "extrinsics",
        "stamp",
    ),
}
_SIDES = ("left", "right")


@dataclasses.dataclass(frozen=True)
class ProprioGuess:
    """The keys that are likely the robot's own state."""

    parts: tuple[SourceKey, ...] = ()
    """What is joined, in this order; empty where nothing is likely."""
    others: tuple[SourceKey, ...] = ()
    """What could stand in place of a part."""


def is_joint_space(keys: Iterable[SourceKey]) -> bool:
    """Whether values are of joints, by the names of their keys or dimensions, and of no pose."""
    held = list(keys)
    of_dims = set().union(*(words_of(dim) for key in held for dim in key.dims))
    words = of_dims.union(*(words_of(key.key) for key in held))
    has_joints = bool(words & _JOINT_WORDS or of_dims & _JOINT_NAMES)
    return has_joints and not words & (_POSE_WORDS | _ARM_ORDER[1])


def place_in_arm(key: SourceKey) -> int:
    """The place of a key in an arm's vector: position, rotation, others, gripper."""
    words = leaf_words(key.key)
    places = (place for place, usual in enumerate(_ARM_ORDER) if words & usual)
    # The last place whose words fit: a "gripper_position" is the gripper.
    return max(places, default=2)


def is_gripper(key: SourceKey) -> bool:
    """Whether a key is of a gripper or hand by its last name."""
    return bool(leaf_words(key.key) & _ARM_ORDER[-1])


def find_proprio(keys: Iterable[SourceKey]) -> ProprioGuess:
    """The joints of each arm with its gripper; without joints, the pose of its end effector.

    Nothing where a key is the whole state by its name.
    """
    usable = [key for key in keys if _is_observed_vector(key)]
    observed = [key for key in usable if re.search("/obs(ervations?)?/", key.key)] or usable
    arm_words = _JOINT_WORDS | _POSE_WORDS | _FINGER_WORDS
    if any(leaf_words(key.key) & _STATE_WORDS and not _words(key) & arm_words for key in observed):
        return ProprioGuess()
    positions = [key for key in observed if not _words(key) & _NO_POSITION_WORDS]
    grippers = [key for key in positions if _words(key) & _FINGER_WORDS]
    floats = [key for key in positions if key.dtype in FLOATS and key not in grippers]
    joints = [key for key in floats if _words(key) & _JOINT_WORDS]
    poses = [key for key in floats if _words(key) & _POSE_WORDS and key not in joints]
    parts: list[SourceKey] = []
    sides = sorted({_side(key) for key in joints or poses})
    for side in sides:
        of_side = [key for key in joints or poses if _side(key) == side]
        parts += _joints(of_side) if joints else _pose(of_side)
        # One arm alone has every gripper, such as a left finger.
        own = [key for key in grippers if len(sides) == 1 or _side(key) == side]
        parts += sorted(own, key=_unlikeliness)[:1]
    others = [key for key in (*joints, *poses, *grippers) if key not in parts]
    return ProprioGuess(tuple(parts), tuple(others) if parts else ())


def _is_observed_vector(key: SourceKey) -> bool:
    is_vector = key.kind == "tensor" and len(key.shape) < 2 and key.key.startswith(STEPS)
    return is_vector and not any(word in key.key.lower() for word in COMMAND_WORDS)


def _words(key: SourceKey) -> set[str]:
    return words_of(key.key.removeprefix(STEPS))


def _side(key: SourceKey) -> str:
    return next((side for side in _SIDES if side in _words(key)), "")


def _unlikeliness(key: SourceKey) -> tuple[bool, str]:
    """Sorts keys of one part by how likely they are positions, then by name."""
    return not _words(key) & _POSITION_WORDS, key.key


def _joints(keys: Sequence[SourceKey]) -> list[SourceKey]:
    """The likeliest vector; of joints that have a key each, all in the order of their numbers."""
    vectors = [key for key in keys if key.shape]
    if vectors:
        return [min(vectors, key=_unlikeliness)]
    return sorted(keys, key=_by_number)


def _by_number(key: SourceKey) -> list[tuple[int, str]]:
    # A text of digits by its number: joint_10 after joint_9.
    return [(int(part or -1), text) for text, part in re.findall(r"(\D*)(\d*)", key.key)]


def _pose(keys: Sequence[SourceKey]) -> list[SourceKey]:
    """The position and the rotation, or the one vector that holds both."""
    places = sorted(set(map(place_in_arm, keys)))
    return [min((k for k in keys if place_in_arm(k) == at), key=_unlikeliness) for at in places]
