"""A mapping proposed for a new source, as `--describe` prints it."""

import dataclasses
import glob
import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from converters.mapping.arm_keys import (
    COMMAND_WORDS,
    GRIPPER_WORDS,
    find_proprio,
    is_gripper,
    is_joint_space,
    place_in_arm,
)
from converters.mapping.instruction_guess import (
    CAMERA_WORDS,
    FLOATS,
    TASK_WORDS,
    find_source_id,
    find_task,
    leaf_words,
    on_one_line,
    quoted,
    words_of,
)
from converters.mapping.mapped_features import IMAGES, FeatureMapping
from converters.sources.source import STEPS, Source, SourceKey
from pipeline.data.schema import ACTION, EPISODES, SOURCE_ID, rest_dtype
from pipeline.errors import SchemaError
from pipeline.loading.data_config import DataConfig

_IMAGE_AXES = 3
_TOKEN_VALUES = 512
"""Tensors with at least this many values per step are proposed as a column of their own."""

_NO_ARM_WORDS = {"base", "mobile", "navigation", "terminate", "stop", "stamp", "timestamp", "mode"}
"""Words in keys of actions that do not move the arm."""
_SECOND_CAMERA_WORDS = {
    "wrist",
    "hand",
    "gripper",
    "goal",
    "tactile",
    "depth",
    "mask",
    "segmentation",
}
_FIRST_CAMERA_WORDS = (
    "primary",
    "exterior",
    "third",
    "front",
    "agentview",
    "static",
    "main",
    "head",
)

_RENAMED = {"image": "image_primary", "wrist_image": "image_wrist", "state": "proprio"}
"""Leaves of observations, to what training reads by default."""
_OBSERVATIONS = (STEPS, f"{STEPS}observation/", f"{STEPS}observation/images/")
"""Where observations lie, but for those of other depth."""
_PRIMARY = "observation/image_primary"
_PROPRIO = "observation/proprio"

_READ_BY_DEFAULT = (ACTION, *(f"observation/{name}" for name in DataConfig.observations))
_BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index", "subtask_index"}
"""Columns of LeRobot that place a row or number its texts, below `steps/`."""
_WIDE_INTEGERS = ("int64", "uint32", "uint64")


@dataclasses.dataclass(frozen=True)
class _Proposal:
    """Source keys that can be stored, with the feature that they become."""

    keys: tuple[SourceKey, ...]
    feature: FeatureMapping
    check: str = ""
    """What a person has to look at in its name."""

    @property
    def key(self) -> SourceKey:
        """The first of the keys; of all but a joined feature, the one."""
        return self.keys[0]

    @property
    def is_camera(self) -> bool:
        """Whether it is an image, encoded or as its pixels, of each step."""
        is_rgb = _is_rgb(self.key) and not self.feature.depth
        return is_rgb and self.key.key.startswith(STEPS)


def describe(source: Source) -> str:
    """A mapping for a source, in TOML, to be edited: what cannot be known is marked CHECK.

    It is valid as it stands, unless the source has no action.
    """
    keys = list(source.keys.values())
    task = find_task(source)
    # After the task, which is the likelier meaning of a text.
    source_id = find_source_id(keys, task.keys)
    rest = [key for key in keys if key.key not in (*task.keys, source_id)]
    refused = {key.key: reason for key in rest if (reason := _refusal(key, source.format))}
    proposals = _proposals([key for key in rest if key.key not in refused])
    proposals = _with_primary_camera(_with_proprio(_with_action(proposals)))
    name = f"{source.name} {source.version}".rstrip()
    # Valid as it stands: everything is taken or ignored.
    lines = [
        f"# Mapping of {name}. Look at every line marked CHECK.",
        *([] if task.is_table else task.lines),
        *([f"source_id = {quoted(source_id)}"] if source_id else []),
        *_ignore_lines(refused),
        *([] if proposals else ["features = []  # CHECK: the source has none that can be stored"]),
        'licence = "unknown"  # CHECK: of the data, such as CC-BY-4.0',
        *(["", *task.lines] if task.is_table else []),
        "",
        *_conventions_lines(
            next((p for p in proposals if p.feature.key == ACTION), None), source.notes.get("fps")
        ),
        *_missing_lines(proposals),
    ]
    for proposal in proposals:
        lines += _feature_lines(proposal)
    return "\n".join(lines) + "\n"


# --- what cannot be stored


def _refusal(key: SourceKey, source_format: str) -> str | None:
    """Why a key cannot be a feature, marked where it may be needed; None where it can."""
    if key.key.removeprefix(STEPS) in _BOOKKEEPING and source_format.startswith("LeRobot"):
        return "bookkeeping of LeRobot"
    reason = _reason(key)
    if reason is None:
        return None
    words = words_of(key.key)
    if key.kind == "image" or key.has_images or (key.kind == "text" and words & CAMERA_WORDS):
        return f"CHECK: a camera is left out: {reason}"
    if words & {*COMMAND_WORDS, "actions"}:
        return f"CHECK: an action is left out: {reason}"
    if any(word in key.key.lower() for word in TASK_WORDS):
        return f"CHECK: is it the instruction? {reason}"
    return reason


def _reason(key: SourceKey) -> str | None:
    shape = f"{key.dtype}{list(key.shape)}"
    if key.kind == "text":
        return "a text: only task and source_id are stored"
    if key.kind == "other":
        words = f"ragged, nested, encoded or texts: {on_one_line(key.dtype)}"
        # Declarations of nested features may have hundreds of characters.
        return textwrap.shorten(words, 120, placeholder=" ...")
    if min(key.shape, default=1) < 1:
        return f"{shape}: empty"
    if key.kind == "image" and (key.dtype, key.shape[2:]) == ("uint8", (1,)):
        return f"{shape}: a grey image; a feature with grey_to_rgb = true takes it"
    if _is_depth(key):
        return None
    if key.kind == "image" and (key.dtype, key.shape[2:]) != ("uint8", (3,)):
        return f"{shape}: only uint8 images of 3 channels are stored"
    # Asked by trying: the dtype law is in one place.
    try:
        rest_dtype(key.dtype, key.key)
    except SchemaError:
        return f"{shape}: only numbers that training reads are stored"
    return None


# --- features


def _proposals(keys: Sequence[SourceKey]) -> list[_Proposal]:
    """Every key as a feature of its own; a name that two want goes to a step's literal one."""
    names, columns = {SOURCE_ID}, {EPISODES, IMAGES}
    proposals = {}
    # Keys of steps first, and those with a usual name, so that these get the short names.
    for key in sorted(keys, key=lambda key: (not key.key.startswith(STEPS), _is_renamed(key.key))):
        features = (FeatureMapping(name, key.key) for name in _names(key) if _is_free(name, names))
        feature = dataclasses.replace(next(features), dims=key.dims)
        column = _column(key, feature.key, columns)
        names.add(feature.key)
        columns.add(column)
        feature = dataclasses.replace(feature, column=column)
        if _is_depth(key):
            unit = "m" if key.dtype in FLOATS else "mm"
            feature = dataclasses.replace(feature, depth=True, depth_unit=unit)
        proposals[key.key] = _Proposal((key,), feature)
    # In the order of the source.
    return [proposals[key.key] for key in keys]


def _is_renamed(key: str) -> bool:
    return any(key.removeprefix(place) in _RENAMED for place in _OBSERVATIONS)


def _names(key: SourceKey) -> Iterator[str]:
    """Names for the feature of a key, the best first; an action is a number or vector a step."""
    path = key.key if key.view is None else f"{key.stored}_{key.view}"
    name = "/".join(re.sub(r"[^\w-]", "_", part) or "_" for part in path.split("/"))
    short = name.removeprefix(STEPS)
    if _is_renamed(key.key):
        yield f"observation/{_RENAMED[key.key.rpartition('/')[2]]}"
    is_action = key.kind == "tensor" and len(key.shape) < 2 and key.key.startswith(STEPS)
    if is_action or short != ACTION:
        yield short
    full = name if name != short else f"episode/{name}"
    yield full
    yield from (f"{full}_{number}" for number in itertools.count(2))


def _is_free(name: str, taken: set[str]) -> bool:
    """Whether a feature may have a name that no other has."""
    # The checks of a feature are tried, not repeated.
    try:
        FeatureMapping(name, name)
    except ValueError:  # one that the loader fills itself
        return False
    return name not in taken


def _is_rgb(key: SourceKey) -> bool:
    is_pixels = key.kind == "tensor" and key.dtype == "uint8" and key.shape[2:] == (3,)
    return key.kind == "image" or is_pixels


def _is_depth(key: SourceKey) -> bool:
    """Whether a key has one number per pixel, and a type or a name that only depth has."""
    is_plane = len(key.shape) in (_IMAGE_AXES - 1, _IMAGE_AXES) and key.shape[2:] in ((), (1,))
    if not is_plane or not key.key.startswith(STEPS):
        return False
    if key.kind == "image":
        return key.dtype == "uint16"
    is_number = key.kind == "tensor" and key.dtype in ("uint16", "int32", "float32", "float64")
    return is_number and "depth" in words_of(key.key)


def _column(key: SourceKey, name: str, taken: set[str]) -> str:
    """The column of a key; one of its own has a name that no other has."""
    if _is_rgb(key) or _is_depth(key):
        return IMAGES
    if name == ACTION or math.prod(key.shape) < _TOKEN_VALUES:
        return EPISODES
    leaf = re.sub(r"[^\w-]", "_", key.key.rpartition("/")[2])
    column = leaf if re.match(r"\w", leaf) else f"_{leaf}"
    numbered = (f"{column}_{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([column], numbered) if free not in taken)


def _with_action(proposals: list[_Proposal]) -> list[_Proposal]:
    """The proposals with an action, where keys are named like one: a vector, or several joined."""
    if any(proposal.feature.key == ACTION for proposal in proposals):
        return proposals
    parts = _action_parts(proposals)
    # A single number is no arm's action.
    if not parts or (len(parts) == 1 and not parts[0].key.shape):
        return proposals
    check = f"training needs a feature named {ACTION}: this one?"
    if len(parts) > 1:
        check = f"training needs a feature named {ACTION}: these keys, in this order?"
        others = [p.key.key for p in proposals if _is_command(p) and p not in parts]
        check += f" Not {', '.join(map(quoted, others))}?" if others else ""
    return _with_joined(proposals, ACTION, parts, check)


def _with_proprio(proposals: list[_Proposal]) -> list[_Proposal]:
    """The proposals with a proprio of joints or pose and gripper, where none has the name."""
    if any(proposal.feature.key == _PROPRIO for proposal in proposals):
        return proposals
    free = {p.key.key: p for p in proposals if p.feature.key != ACTION}
    guess = find_proprio(proposal.key for proposal in free.values())
    if not guess.parts:
        return proposals
    check = "no key is called proprio: these, in this order?"
    if len(guess.parts) == 1:
        check = "no key is called proprio: this one?"
    others = ", ".join(quoted(key.key) for key in guess.others)
    check += f" Or {others}?" if others else ""
    return _with_joined(proposals, _PROPRIO, [free[key.key] for key in guess.parts], check)


def _with_joined(
    proposals: Sequence[_Proposal], name: str, parts: Sequence[_Proposal], check: str
) -> list[_Proposal]:
    """The proposals with one feature of some of them, in the place of the first."""
    keys = tuple(part.key for part in parts)
    feature = dataclasses.replace(parts[0].feature, key=name, column=EPISODES)
    if len(keys) > 1:
        # One name for each value, or none at all.
        named = all(len(key.dims) == math.prod(key.shape) for key in keys)
        dims = tuple(dim for key in keys for dim in key.dims) if named else ()
        feature = FeatureMapping(name, joined=tuple(key.key for key in keys), dims=dims)
    first = min(proposals.index(part) for part in parts)
    rest = [None if proposal in parts else proposal for proposal in proposals]
    rest[first] = _Proposal(keys, feature, check)
    return [proposal for proposal in rest if proposal is not None]


def _action_parts(proposals: Iterable[_Proposal]) -> list[_Proposal]:
    """The numbers and vectors that are named like an action of the arm, in order.

    They are floats, but for a gripper's.
    """
    usable = [
        p
        for p in proposals
        if p.key.kind == "tensor"
        and (p.key.dtype in FLOATS or is_gripper(p.key))
        and len(p.key.shape) < 2
        and p.key.key.startswith(STEPS)
    ]
    # Commands that were only observed count if there are no others.
    commands = [p for p in usable if "/observation/" not in p.key.key] or usable
    for word in COMMAND_WORDS:
        likely = [p for p in commands if word in p.key.key.lower()]
        arm = [p for p in likely if not leaf_words(p.key.key) & _NO_ARM_WORDS]
        if arm or likely:
            return sorted(arm or likely, key=lambda p: place_in_arm(p.key))
    return []


def _is_command(proposal: _Proposal) -> bool:
    """Whether a key is named like an action, of whatever moves."""
    key = proposal.key.key
    is_named = any(word in key.lower() for word in COMMAND_WORDS)
    return is_named and key.startswith(STEPS) and "/observation/" not in key


def _with_primary_camera(proposals: list[_Proposal]) -> list[_Proposal]:
    """The proposals with the likeliest camera under the name that training reads by default."""
    cameras = [proposal for proposal in proposals if proposal.is_camera]
    if not cameras or any(proposal.feature.key == _PRIMARY for proposal in proposals):
        return proposals
    likeliest = min(cameras, key=lambda proposal: _unlikeliness(proposal.key.key))
    renamed = _Proposal(
        likeliest.keys,
        dataclasses.replace(likeliest.feature, key=_PRIMARY),
        "no camera is called image_primary: this one?",
    )
    return [renamed if proposal is likeliest else proposal for proposal in proposals]


def _unlikeliness(key: str) -> tuple[bool, int, str]:
    """Sorts cameras by how likely they see the whole scene."""
    words = leaf_words(key)
    places = [n for n, word in enumerate(_FIRST_CAMERA_WORDS) if word in words]
    # Second cameras last, then by the words of first ones, then by name.
    return bool(words & _SECOND_CAMERA_WORDS), min(places, default=len(_FIRST_CAMERA_WORDS)), key


# --- lines


def _ignore_lines(reasons: Mapping[str, str]) -> list[str]:
    if not reasons:
        return ["ignore = []  # globs over keys to leave out"]
    # Escaped, because brackets of a view are a glob's.
    globs = [f"    {quoted(glob.escape(key))},  # {reason}" for key, reason in reasons.items()]
    return ["ignore = [  # globs over keys to leave out", *globs, "]"]


def _conventions_lines(action: _Proposal | None, fps: str | None) -> list[str]:
    """The conventions, with the frame rate of the source where it notes one."""
    frequency = f"control_frequency_hz = {float(fps)}" if fps else "control_frequency_hz = 10.0"
    return [
        "[conventions]",
        'image_orientation = "upright"  # CHECK: upright, flipped_vertically, or rotated_180 for'
        " published LIBERO sets, which are mirrored (docs/format.md)",
        _rotation_line(action),
        f"{frequency}  # CHECK: actions per second",
        *_gripper_lines(action),
        'no_ops = "kept"  # CHECK: kept, removed_at_source, or removed_at_conversion with',
        "# no_op_threshold = 0.0001  # the norm of an action without its gripper that is no motion",
    ]


def _rotation_line(action: _Proposal | None) -> str:
    """The rotation of the action; none where it moves joints by its names."""
    others = "euler_xyz, quaternion_xyzw, quaternion_wxyz, rot6d, rot6d_rows"
    if action and is_joint_space(action.keys):
        return f'rotation = "none"  # CHECK: of joints; or axis_angle, {others}'
    return f'rotation = "axis_angle"  # CHECK: axis_angle, {others} or none'


def _gripper_lines(action: _Proposal | None) -> list[str]:
    """The grippers by the names of the action's dimensions; without any, the last dimension."""
    dims = action.feature.dims if action else ()
    grippers = [index for index, name in enumerate(dims) if words_of(name) & GRIPPER_WORDS]
    if len(grippers) > 1:
        one = "    {{ dim = {}, open = 1.0, close = 0.0 }},"
        return [
            'grippers = [  # CHECK: their commands; those with a middle: kind = "continuous"',
            *(f"{one.format(dim)}  # {on_one_line(dims[dim])}" for dim in grippers),
            "]",
        ]
    num_dims = sum(math.prod(key.shape) for key in action.keys) if action else 0
    line = "# gripper_dim = 6  # CHECK: index in the action, once there is one of several"
    if num_dims > 1:
        line = f"gripper_dim = {grippers[0] if grippers else num_dims - 1}"
        line += "  # CHECK: index in the action; none: delete the line"
    return [
        line,
        "gripper_open = 1.0  # CHECK: the command that opens it",
        "gripper_close = 0.0  # CHECK: the command that closes it",
    ]


def _missing_lines(proposals: Sequence[_Proposal]) -> list[str]:
    """What training needs and no key is."""
    lines = []
    if not any(proposal.feature.key == ACTION for proposal in proposals):
        reason = "no key looks like one"
        for proposal in proposals:
            key = proposal.key
            if key.key == f"{STEPS}{ACTION}":
                reason = f"{key.key} is {key.kind} {key.dtype}{list(key.shape)}, not of one step"
        lines += ["", f"# CHECK: training needs a feature named {ACTION}; {reason}"]
    if not any(proposal.is_camera for proposal in proposals):
        lines += ["", "# CHECK: no camera is stored"]
    return lines


def _feature_lines(proposal: _Proposal) -> list[str]:
    """The lines of one feature."""
    feature = proposal.feature
    types = " + ".join(f"{key.dtype}{list(key.shape)}" for key in proposal.keys)
    check = ""
    if feature.key == ACTION and proposal.key.dtype not in FLOATS:
        check = "  # CHECK: learned as numbers, not as codes"
    elif feature.key != ACTION and proposal.key.dtype in _WIDE_INTEGERS:
        check = "  # CHECK: must fit int32"
    mark = "  # training reads it by default" if feature.key in _READ_BY_DEFAULT else ""
    if proposal.check:
        mark = f"  # CHECK: {proposal.check}"
    sources = ", ".join(map(quoted, feature.sources))
    return [
        "",
        f"[[features]]  # {types}{check}",
        f"key = {quoted(feature.key)}{mark}",
        f"from = [{sources}]" if feature.joined else f"source = {sources}",
        *([f"column = {quoted(feature.column)}"] if feature.column != EPISODES else []),
        *([f"dims = [{', '.join(map(quoted, feature.dims))}]"] if feature.dims else []),
        *_depth_lines(feature),
    ]


def _depth_lines(feature: FeatureMapping) -> list[str]:
    if not feature.depth:
        return []
    return ["depth = true  # CHECK", f"depth_unit = {quoted(feature.depth_unit)}  # CHECK: mm or m"]
