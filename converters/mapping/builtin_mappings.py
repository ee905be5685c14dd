"""The mappings that are built in, and reading one from a file."""

import fnmatch

from etils import epath

from converters.mapping.mapped_features import IMAGES, FeatureMapping
from converters.mapping.mapping_registry import (
    find_registered,
    parse_mapping,
    registered,
    registered_names,
)
from converters.mapping.standardize import SourceMapping
from converters.sources.open_source import RLDS
from converters.sources.source import Source
from pipeline.data.conventions import Conventions
from pipeline.errors import UserError

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

LIBERO_AS_RELEASED = "LIBERO HDF5 as released"
"""The format of files whose rows are observed after their action."""
BUILT_IN = {"libero_*": LIBERO, "liber_o10*": LIBERO}
"""Built-in mappings, by glob over the dataset's own name."""


def known_mapping(source: Source) -> SourceMapping | None:
    """The mapping of a source, built in or of the registry, by its name or its format."""
    for pattern, mapping in BUILT_IN.items():
        # LIBERO's in RLDS; a folder of other files may have such a name.
        if source.format == RLDS.name and fnmatch.fnmatchcase(source.name, pattern):
            return mapping
    return find_registered(source.name, source.format)


def find_mapping(source: Source) -> SourceMapping:
    """The mapping of a source, built in or of the registry.

    Raises:
      UserError: Where there is none, or the source is of a form that no mapping takes by itself.
    """
    found = known_mapping(source)
    if found is not None:
        return found
    expected = f"a dataset named {' or '.join(BUILT_IN)} or as `octograin convert --list` prints,"
    expected += " or a mapping"
    remedy = "Write one: `octograin convert SRC --describe > mapping.toml`, edit it, and convert "
    remedy += "with `--mapping mapping.toml`."
    if source.format == LIBERO_AS_RELEASED:
        expected = "LIBERO's regenerated files, whose rows are observed before their action"
        remedy = (
            "Give each observation the action after it: `--mapping libero_hdf5_released`, which "
        )
        remedy += "does not give the published RLDS."
    raise UserError(
        where=f"{source.directory}", expected=expected, found=_found(source), remedy=remedy
    )


def _found(source: Source) -> str:
    if source.format == LIBERO_AS_RELEASED:
        return "the released ones, whose rows are observed after it"
    return source.name if source.format == RLDS.name else f"{source.name}, {source.format}"


def read_mapping(path: epath.PathLike) -> SourceMapping:
    """Reads a mapping in TOML, or takes one of the registry by its name.

    Args:
      path: A file, as `--describe` prints one; or a name that `octograin convert --list` prints.

    Raises:
      DataError: Where it is missing, no TOML, or has fields that a mapping does not have.
    """
    name = str(path)
    # A file of that name comes first.
    if name in registered_names() and not epath.Path(path).exists():
        return registered(name)
    return parse_mapping(name)
