"""The mappings that are built in, reading one from a file, and proposing one for a new source."""

import dataclasses
import fnmatch
import glob
import itertools
import json
import math
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from converters.rlds.source import STEPS, RldsSource, SourceKey
from converters.standardize import IMAGES, FeatureMapping, SourceMapping
from pipeline.config import DataConfig
from pipeline.conventions import Conventions
from pipeline.errors import DataError, SchemaError, UserError
from pipeline.files import from_json_text
from pipeline.schema import ACTION, EPISODES, SOURCE_ID, rest_dtype

_TOKEN_VALUES = 512
"""Tensors from this many values a step on are proposed as a column of their own."""

_TASK_WORDS = ("instruction", "language", "lang", "prompt", "task")
_ACTION_WORDS = ("action", "cmd", "control")
"""In the keys that are likely to be one, the likeliest first."""

_RENAMED = {"image": "image_primary", "wrist_image": "image_wrist", "state": "proprio"}
"""Leaves below `observation/`, to what training reads by default."""

_READ_BY_DEFAULT = (ACTION, *(f"observation/{name}" for name in DataConfig.observations))
_WIDE_INTEGERS = ("int64", "uint32", "uint64")
_FLOATS = ("float16", "bfloat16", "float32", "float64")

_POSE = ("x_m", "y_m", "z_m", "rx_rad", "ry_rad", "rz_rad")

LIBERO = SourceMapping(
    features=(
        FeatureMapping(
            "action",
            "steps/action",
            dims=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
        ),
        FeatureMapping(
            "observation/proprio",
            "steps/observation/state",
            dims=(*_POSE, "gripper_left_m", "gripper_right_m"),
        ),
        FeatureMapping(
            "observation/joint_state",
            "steps/observation/joint_state",
            dims=tuple(f"joint_{i}_rad" for i in range(7)),
        ),
        FeatureMapping("reward", "steps/reward"),
        FeatureMapping("discount", "steps/discount"),
        FeatureMapping("is_first", "steps/is_first"),
        FeatureMapping("is_last", "steps/is_last"),
        FeatureMapping("is_terminal", "steps/is_terminal"),
        FeatureMapping("observation/image_primary", "steps/observation/image", IMAGES),
        FeatureMapping("observation/image_wrist", "steps/observation/wrist_image", IMAGES),
        FeatureMapping(
            "observation/vggt_tokens",
            "steps/observation/vggt_tokens",
            "vggt_tokens",
            optional=True,
        ),
    ),
    conventions=Conventions(
        image_orientation="rotated_180",
        rotation="axis_angle",
        control_frequency_hz=20.0,
        gripper_dim=6,
        gripper_open=-1.0,
        gripper_close=1.0,
        no_ops="removed_at_source",
    ),
    source_id="episode_metadata/file_path",
    licence="CC-BY-4.0",
    column_licences={
        "vggt_tokens": "CC-BY-4.0, by weights that may be CC-BY-NC-4.0 (facebook/VGGT-1B)"
    },
)
"""LIBERO as published in RLDS, with or without VGGT tokens.

Actions are end-effector deltas of the simulator's controller in [-1, 1]: 1 is 0.05 m or 0.5 rad.
"""

BUILT_IN = {"libero_*": LIBERO, "liber_o10*": LIBERO}
"""By glob over the dataset's own name."""


def find_mapping(source: RldsSource) -> SourceMapping:
    """The built-in mapping of a source.

    Raises:
      UserError: Where none is built in.
    """
    for pattern, mapping in BUILT_IN.items():
        if fnmatch.fnmatchcase(source.name, pattern):
            return mapping
    raise UserError(
        where=f"{source.directory}",
        expected=f"a dataset named {' or '.join(BUILT_IN)}, or a mapping",
        found=f"{source.name}",
        remedy="Write one: `python -m converters.rlds SRC --describe > mapping.toml`, edit it, "
        "and convert with `--mapping mapping.toml`.",
    )


def read_mapping(path: epath.PathLike) -> SourceMapping:
    """Reads a mapping in TOML; `--describe` prints one.

    Raises:
      DataError: Where it is missing, no TOML, or has fields that a mapping does not have.
    """
    try:
        values = tomllib.loads(epath.Path(path).read_text())
    except (OSError, ValueError) as error:  # no UTF-8, or no TOML
        raise DataError(
            where=str(path),
            expected="a mapping in TOML",
            found=str(error),
            remedy="Start from `python -m converters.rlds SRC --describe > mapping.toml`.",
        ) from error
    return from_json_text(
        SourceMapping,
        json.dumps(values, default=str),
        where=str(path),
        remedy="Mend the fields; `python -m converters.rlds SRC --describe` prints valid ones.",
    )


# --- a mapping for a new source


@dataclasses.dataclass(frozen=True)
class _Proposal:
    """A source key that can be stored, with the feature that it becomes."""

    source: SourceKey
    feature: FeatureMapping

    @property
    def is_vector(self) -> bool:
        return self.source.kind == "tensor" and len(self.source.shape) == 1


def describe(source: RldsSource) -> str:
    """A mapping for a source, in TOML, to be edited: what cannot be known is marked CHECK.

    It is valid as it stands, unless the source has no text that could be the instruction.
    """
    texts = [key.key for key in source.keys.values() if key.kind == "text"]
    task, task_line = _task(texts)
    names = (key for key in texts if key != task and not key.startswith(STEPS))
    source_id = next(names, None)
    rest = [key for key in source.keys.values() if key.key not in (task, source_id)]
    refused = {key.key: reason for key in rest if (reason := _refusal(key))}
    proposals = _proposals([key for key in rest if key.key not in refused])
    candidate = _action_candidate(proposals)
    lines = [
        f"# Mapping of {source.name} {source.version}. Look at every line marked CHECK.",
        task_line,
        *([f"source_id = {_quoted(source_id)}"] if source_id else []),
        *_ignore_lines(refused),
        *([] if proposals else ["features = []  # CHECK: the source has none that can be stored"]),
        'licence = "unknown"  # CHECK: of the data, such as CC-BY-4.0',
        "",
        *_conventions_lines(next((p for p in proposals if p.feature.key == ACTION), None)),
    ]
    if candidate is None:
        lines += ["", f"# CHECK: training needs a feature named {ACTION}; no key looks like one"]
    for proposal in proposals:
        lines += _feature_lines(proposal, is_candidate=proposal is candidate)
    return "\n".join(lines) + "\n"


def _task(texts: list[str]) -> tuple[str | None, str]:
    """The key of the instruction, and its line."""
    likely = [key for word in _TASK_WORDS for key in texts if word in key.lower()]
    steps = [key for key in texts if key.startswith(STEPS)]
    candidates = list(dict.fromkeys(likely)) or steps or texts
    if not candidates:
        return None, 'task = ""  # CHECK: the source has no text, but training needs an instruction'
    line = f"task = {_quoted(candidates[0])}"
    others = ", ".join(map(_quoted, candidates[1:]))
    if others:
        line += f"  # CHECK: the instruction, which training needs; or {others}"
    elif not likely:
        line += "  # CHECK: the instruction, which training needs; no other text could be it"
    return candidates[0], line


def _refusal(key: SourceKey) -> str | None:
    """Why a key cannot be a feature; None where it can."""
    shape = f"{key.dtype}{list(key.shape)}"
    if key.kind == "text":
        return "a text: only task and source_id are stored"
    if key.kind == "other":
        words = "".join(letter if letter.isprintable() else " " for letter in key.dtype)
        return textwrap.shorten(
            f"ragged, nested, encoded or texts: {words}", 120, placeholder=" ..."
        )
    if min(key.shape, default=1) < 1:
        return f"{shape}: empty"
    if key.kind == "image" and (key.dtype, key.shape[2:]) != ("uint8", (3,)):
        return f"{shape}: only uint8 images of 3 channels are stored"
    try:
        rest_dtype(key.dtype, key.key)
    except SchemaError:
        return f"{shape}: only numbers that training reads are stored"
    return None


def _proposals(keys: Sequence[SourceKey]) -> list[_Proposal]:
    """Every key as a feature of its own; a name that two want goes to a step's literal one."""
    names, columns = {SOURCE_ID}, {EPISODES, IMAGES}
    proposals = {}
    for key in sorted(keys, key=lambda key: (not key.key.startswith(STEPS), _is_renamed(key.key))):
        features = (FeatureMapping(name, key.key) for name in _names(key) if _is_free(name, names))
        feature = next(features)
        column = _column(key, feature.key, columns)
        names.add(feature.key)
        columns.add(column)
        proposals[key.key] = _Proposal(key, dataclasses.replace(feature, column=column))
    return [proposals[key.key] for key in keys]


def _is_renamed(key: str) -> bool:
    parent, _, leaf = key.rpartition("/")
    return parent == f"{STEPS}observation" and leaf in _RENAMED


def _names(key: SourceKey) -> Iterator[str]:
    """Names for the feature of a key, the best first; an image is no action."""
    name = "/".join(re.sub(r"[^\w-]", "_", part) or "_" for part in key.key.split("/"))
    short = name.removeprefix(STEPS)
    if _is_renamed(key.key):
        yield f"observation/{_RENAMED[key.key.rpartition('/')[2]]}"
    if key.kind != "image" or short != ACTION:
        yield short
    full = name if name != short else f"episode/{name}"
    yield full
    yield from (f"{full}_{number}" for number in itertools.count(2))


def _is_free(name: str, taken: set[str]) -> bool:
    """Whether a feature may have a name that no other has."""
    try:
        FeatureMapping(name, "")
    except ValueError:  # one that the loader fills itself
        return False
    return name not in taken


def _column(key: SourceKey, name: str, taken: set[str]) -> str:
    """The column of a key; one of its own has a name that no other has."""
    if key.kind == "image":
        return IMAGES
    if name == ACTION or math.prod(key.shape) < _TOKEN_VALUES:
        return EPISODES
    leaf = re.sub(r"[^\w-]", "_", key.key.rpartition("/")[2])
    column = leaf if re.match(r"\w", leaf) else f"_{leaf}"
    numbered = (f"{column}_{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([column], numbered) if free not in taken)


def _action_candidate(proposals: list[_Proposal]) -> _Proposal | None:
    """What is the action, or is most likely to be it: a vector of floats."""
    for proposal in proposals:
        if proposal.feature.key == ACTION:
            return proposal
    vectors = [p for p in proposals if p.is_vector and p.source.dtype in _FLOATS]
    likely = (p for word in _ACTION_WORDS for p in vectors if word in p.source.key.lower())
    return next(likely, None)


def _ignore_lines(reasons: Mapping[str, str]) -> list[str]:
    if not reasons:
        return ["ignore = []  # globs over keys to leave out"]
    globs = [f"    {_quoted(glob.escape(key))},  # {reason}" for key, reason in reasons.items()]
    return ["ignore = [  # globs over keys to leave out", *globs, "]"]


def _conventions_lines(action: _Proposal | None) -> list[str]:
    """The conventions; the last dimension of an action usually is its gripper."""
    gripper = "# gripper_dim = 6  # CHECK: index in the action, once there is one of one axis"
    if action is not None and action.is_vector:
        gripper = f"gripper_dim = {action.source.shape[0] - 1}"
        gripper += "  # CHECK: index in the action; none: delete the line"
    return [
        "[conventions]",
        'image_orientation = "upright"  # CHECK: upright, flipped_vertically, or rotated_180 for'
        " published LIBERO sets, which are mirrored (docs/format.md)",
        'rotation = "axis_angle"  # CHECK: axis_angle, euler_xyz, quaternion_xyzw or none',
        "control_frequency_hz = 10.0  # CHECK: actions a second",
        gripper,
        "gripper_open = 1.0  # CHECK: the command that opens it",
        "gripper_close = 0.0  # CHECK: the command that closes it",
        'no_ops = "kept"  # CHECK: kept, removed_at_source, or removed_at_conversion with',
        "# no_op_threshold = 0.0001  # the norm of an action without its gripper that is no motion",
    ]


def _feature_lines(proposal: _Proposal, *, is_candidate: bool) -> list[str]:
    """The lines of one feature."""
    source, feature = proposal.source, proposal.feature
    check = "  # CHECK: must fit int32" if source.dtype in _WIDE_INTEGERS else ""
    mark = ""
    if feature.key in _READ_BY_DEFAULT:
        mark = "  # training reads it by default"
    elif is_candidate:
        mark = f"  # CHECK: training needs a feature named {ACTION}: this one?"
    return [
        "",
        f"[[features]]  # {source.dtype}{list(source.shape)}{check}",
        f"key = {_quoted(feature.key)}{mark}",
        f"source = {_quoted(source.key)}",
        *([f"column = {_quoted(feature.column)}"] if feature.column != EPISODES else []),
    ]


def _quoted(text: str) -> str:
    """As a basic string of TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
