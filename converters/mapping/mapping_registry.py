"""Finding a mapping: in the source, by the source's name or format, by its own name, or in a file.

Mappings of published datasets are one TOML file each in the folder `registry` beside this file;
adding a file adds a mapping. Its name is that of the dataset; `names` in it may list others.
"""

import fnmatch
import functools
import pathlib

from etils import epath

from converters.mapping.standardize import SourceMapping
from converters.sources.open_source import LEROBOT, RLDS
from converters.sources.source import Source
from pipeline.errors import DataError, UserError, nearest_name
from pipeline.files import from_json_text, read_text, toml_to_json

_FOLDER = pathlib.Path(__file__).parent / "registry"
_EXPECTED = "a mapping in TOML"
_REMEDY = "Start from `octograin convert SRC --describe > mapping.toml`."
OWN_MAPPING = "meta/octograin.toml"
"""The mapping that a LeRobot dataset brings along which `octograin export` wrote."""
LIBERO_AS_RELEASED = "LIBERO HDF5 as released"
"""The format of files whose rows are observed after their action."""


def registered_names() -> list[str]:
    """Returns the names of all mappings of the registry, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


@functools.cache
def registered(name: str) -> SourceMapping:
    """Returns the mapping of the registry that has a name.

    Raises:
      DataError: There is none.
    """
    return _parse(str(_FOLDER / f"{name}.toml"))


def find_registered(dataset: str, format_name: str) -> SourceMapping | None:
    """Returns the mapping of a dataset by its name, else by its format; None where there is none.

    Args:
      dataset: Its own name.
      format_name: The format in words, as its source says it.
    """
    names = registered_names()
    # The name of a file before a glob in one, such as libero_openvla before libero_*.
    for name in [dataset, *names] if dataset in names else names:
        mapping = registered(name)
        # A folder of another format may have the name of a published dataset.
        if format_name not in (mapping.formats or (RLDS.name,)):
            continue
        is_layout = bool(mapping.formats) and not mapping.names
        if is_layout or any(fnmatch.fnmatchcase(dataset, n) for n in (name, *mapping.names)):
            return mapping
    return None


def own_mapping(source: Source) -> SourceMapping | None:
    """Returns the mapping that a LeRobot dataset brings along; None where it has none.

    Raises:
      DataError: The file is no mapping.
    """
    path = source.directory / OWN_MAPPING
    is_export = source.format.startswith(LEROBOT.name) and path.exists()
    return _parse(str(path)) if is_export else None


def find_mapping(source: Source) -> SourceMapping:
    """Returns the mapping of a source: its own, or one of the registry.

    Raises:
      DataError: Its own is no mapping.
      UserError: Where there is none, or the source is of a form that no mapping takes by itself.
    """
    found = own_mapping(source) or find_registered(source.name, source.format)
    if found is not None:
        return found
    expected = "a dataset that `octograin convert --list` prints, or a mapping"
    words = source.name if source.format == RLDS.name else f"{source.name}, {source.format}"
    remedy = (
        "Write one: `octograin convert SRC --describe > mapping.toml`, edit it, and convert with "
        "`--mapping mapping.toml`."
    )
    if source.format == LIBERO_AS_RELEASED:
        expected = "LIBERO's regenerated files, whose rows are observed before their action"
        words = "the released ones, whose rows are observed after it"
        remedy = (
            "Give each observation the action after it: `--mapping libero_hdf5_released`, which "
            "does not give the published RLDS."
        )
    raise UserError(where=str(source.directory), expected=expected, found=words, remedy=remedy)


def read_mapping(path: epath.PathLike) -> SourceMapping:
    """Reads a mapping in TOML, or takes one of the registry by its name.

    Args:
      path: A file, as `--describe` prints one; or a name that `octograin convert --list` prints.

    Raises:
      DataError: Where it is missing, no TOML, or has fields that a mapping does not have.
    """
    name = str(path)
    names = registered_names()
    # A file of that name comes first.
    if name in names and not epath.Path(path).exists():
        return registered(name)
    if not name.endswith(".toml") and not epath.Path(path).exists():
        nearest = nearest_name(name, names)
        raise DataError(
            where=name,
            expected="a mapping in TOML, or a name that `octograin convert --list` prints",
            found="no such file or name",
            remedy=f"Did you mean {nearest}?" if nearest else _REMEDY,
        )
    return _parse(name)


def registry_list() -> str:
    """Returns one line for each mapping: its name, rate, licence and what the dataset is."""
    rows = []
    for name in registered_names():
        mapping = registered(name)
        rate = f"{mapping.conventions.control_frequency_hz:g} Hz"
        rows.append((name, rate, mapping.licence, mapping.about))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "".join(
        f"{name:{widths[0]}}  {rate:>{widths[1]}}  {licence:{widths[2]}}  {about}\n"
        for name, rate, licence, about in rows
    )


def _parse(path: str) -> SourceMapping:
    """Reads a mapping in TOML.

    Raises:
      DataError: It is missing, is no TOML, or has fields that a mapping does not have.
    """
    text = read_text(path, expected=_EXPECTED, remedy=_REMEDY)
    return from_json_text(
        SourceMapping,
        toml_to_json(text, where=path, expected=_EXPECTED, remedy=_REMEDY),
        where=path,
        remedy="Fix the fields; `octograin convert SRC --describe` prints valid ones.",
    )
