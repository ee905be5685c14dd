"""The mappings that are built in, reading one from a file, and proposing one for a new source."""

import fnmatch
import json
import tomllib

from etils import epath

from converters.rlds.source import STEPS, RldsSource, SourceKey
from converters.standardize import IMAGES, FeatureMapping, SourceMapping
from pipeline.conventions import Conventions
from pipeline.errors import DataError, UserError
from pipeline.files import from_json_text
from pipeline.schema import EPISODES

_TOKEN_VALUES = 512
"""Tensors from this many values a step on are proposed as a column of their own."""

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


def describe(source: RldsSource) -> str:
    """A mapping for a source, in TOML, to be edited: what cannot be known is marked CHECK."""
    texts = [key.key for key in source.keys.values() if key.kind == "text"]
    task = next((key for key in texts if "language" in key or "instruction" in key), None)
    source_id = next((key for key in texts if not key.startswith(STEPS)), None)
    rest = [key for key in texts if key not in (task, source_id)]
    rest += [key.key for key in source.keys.values() if key.kind == "other"]
    lines = [
        f"# Mapping of {source.name} {source.version}. Look at every line marked CHECK.",
        f'task = "{task or ""}"' + ("" if task else "  # CHECK: no text found; name one"),
        *([f'source_id = "{source_id}"'] if source_id else []),
        f"ignore = {json.dumps(rest)}  # globs over keys to leave out",
        'licence = "unknown"  # CHECK: of the data, such as CC-BY-4.0',
        "",
        "[conventions]",
        'image_orientation = "upright"  # CHECK: upright, rotated_180 or flipped_vertically',
        'rotation = "axis_angle"  # CHECK: axis_angle, euler_xyz, quaternion_xyzw or none',
        "control_frequency_hz = 10.0  # CHECK: actions a second",
        f"gripper_dim = {_last_dim(source)}  # CHECK: index in the action; none: delete the line",
        "gripper_open = 1.0  # CHECK: the command that opens it",
        "gripper_close = 0.0  # CHECK: the command that closes it",
        'no_ops = "kept"  # CHECK: kept, removed_at_source, or removed_at_conversion with',
        "# no_op_threshold = 0.0001  # the norm of an action without its gripper that is no motion",
    ]
    proposed = [_propose(k) for k in source.keys.values() if k.kind in ("tensor", "image")]
    return "\n".join(lines + [line for lines in proposed for line in lines]) + "\n"


def _last_dim(source: RldsSource) -> int:
    """Index of the last dimension of the action, where a gripper usually is."""
    action = source.keys.get(f"{STEPS}action")
    return action.shape[-1] - 1 if action and action.shape else 0


def _propose(key: SourceKey) -> list[str]:
    """The TOML lines of one feature."""
    name = _proposed_name(key)
    column = _proposed_column(key)
    shape = f"{key.dtype}{list(key.shape)}"
    lines = ["", f"[[features]]  # {shape}", f'key = "{name}"', f'source = "{key.key}"']
    return lines + ([f'column = "{column}"'] if column != EPISODES else [])


def _proposed_name(key: SourceKey) -> str:
    name = key.key.removeprefix(STEPS)
    parent, _, leaf = name.rpartition("/")
    renamed = {"image": "image_primary", "wrist_image": "image_wrist", "state": "proprio"}
    return f"{parent}/{renamed.get(leaf, leaf)}" if parent == "observation" else name


def _proposed_column(key: SourceKey) -> str:
    if key.kind == "image":
        return IMAGES
    size = 1
    for length in key.shape:
        size *= length
    return key.key.rpartition("/")[2] if size >= _TOKEN_VALUES else EPISODES
