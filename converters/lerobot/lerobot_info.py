"""`meta/info.json` of a LeRobot dataset: its version, its totals, and where its files lie."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from pipeline.errors import DataError
from pipeline.files import parse_json, read_text

VERSIONS = ("2.0", "2.1", "3.0")
"""Versions of the format that are read."""
INFO = "meta/info.json"
OWN_FILE = "meta/octograin.json"
"""What an export of this project adds: the dataset's provenance, and the sizes of the files."""
_OLDEST_INFO = "meta_data/info.json"
"""Where the first versions of the format had it."""
_UPGRADE = (
    "Convert it to 2.0 first, with `convert_dataset_v1_to_v2.py` of lerobot 0.3, or fetch a later "
    "revision of the dataset: most on the hub have one."
)
_FETCH = "Fetch the directory again, or write it with lerobot 0.3 or later."


@dataclasses.dataclass(frozen=True)
class LeRobotInfo:
    """The fields of `meta/info.json` that a reader needs."""

    path: epath.Path
    """The file itself."""
    version: str
    """Version of the format, one of `VERSIONS`."""
    fps: float
    """Steps per second."""
    features: Mapping[str, Mapping[str, Any]]
    """Declarations by name, as they stand in the file."""
    total_episodes: int
    total_frames: int
    chunks_size: int
    """Files of a folder."""
    data_path: str
    """Template of the path of a data file."""
    video_path: str
    """Template of the path of a video; empty where the set has none."""
    robot_type: str

    @property
    def is_packed(self) -> bool:
        """Whether a file holds many episodes, as from version 3.0 on."""
        return self.version.startswith("3.")

    def path_of(self, template: str, **fields: object) -> str:
        """The path of a file below the directory.

        Raises:
          DataError: The template asks for a field that no version has.
        """
        try:
            return template.format(**fields)
        except (LookupError, ValueError, AttributeError) as error:
            raise DataError(
                where=f"{self.path}, {template!r}",
                expected=f"a template of {', '.join(sorted(fields))}",
                found=f"{type(error).__name__}: {error}",
                remedy=_FETCH,
            ) from error


def read_info(directory: epath.Path) -> LeRobotInfo:
    """Reads `meta/info.json` of a directory.

    Raises:
      DataError: It is missing, not of a version that is read, or a field of it is not usable.
    """
    path = directory / INFO
    if not path.exists() and (directory / _OLDEST_INFO).exists():
        raise _other_version(directory / _OLDEST_INFO, "a version before 2.0", _UPGRADE)
    expected = "a LeRobot dataset's declaration in JSON"
    text = read_text(path, expected=expected, remedy=_FETCH)
    values = parse_json(text, where=str(path), expected=expected, remedy=_FETCH)
    if not isinstance(values, dict):
        raise _wrong(path, expected, type(values).__name__)
    features = _field(path, values, "features", dict)
    for name, declared in features.items():
        if not isinstance(declared, dict):
            raise _wrong(path, f"a table as the feature {name}", repr(declared))
    return LeRobotInfo(
        path=path,
        version=_version(path, values),
        fps=_positive(path, values, "fps"),
        features=features,
        total_episodes=_field(path, values, "total_episodes", int),
        total_frames=_field(path, values, "total_frames", int),
        chunks_size=int(_positive(path, values, "chunks_size")),
        data_path=_field(path, values, "data_path", str),
        video_path=values.get("video_path") or "",
        robot_type=str(values.get("robot_type") or ""),
    )


def _version(path: epath.Path, values: Mapping[str, Any]) -> str:
    declared = str(values.get("codebase_version"))
    match = re.fullmatch(r"v?(\d+)\.(\d+)(\.\d+)?", declared)
    if match is None:
        raise _other_version(path, repr(declared), _FETCH)
    version = f"{match[1]}.{match[2]}"
    if version in VERSIONS:
        return version
    if int(match[1]) < int(VERSIONS[0][0]):
        raise _other_version(path, declared, _UPGRADE)
    newer = "Write it as version 3.0 with lerobot, or convert it with a newer octograin."
    raise _other_version(path, declared, newer)


def _other_version(path: epath.Path, found: str, remedy: str) -> DataError:
    return DataError(
        where=f"{path}, codebase_version",
        expected=f"version {', '.join(VERSIONS[:-1])} or {VERSIONS[-1]} of the LeRobot format",
        found=found,
        remedy=remedy,
    )


def _field(path: epath.Path, values: Mapping[str, Any], name: str, kind: type) -> Any:
    value = values.get(name)
    # JSON's true would pass as the number 1.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _wrong(path, f"{name} as {kind.__name__}", repr(value))
    return value


def _positive(path: epath.Path, values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _wrong(path, f"{name} as a finite number above 0", repr(value))
    return float(value)


def _wrong(path: epath.Path, expected: str, found: str) -> DataError:
    return DataError(where=str(path), expected=expected, found=found, remedy=_FETCH)
