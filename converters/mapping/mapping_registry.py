"""The mappings of published datasets: one TOML file each in the folder `registry` beside this file.

Adding a file adds a mapping. Its name is that of the dataset; `names` in it may list others.
"""

import fnmatch
import functools
import pathlib

from converters.mapping.standardize import SourceMapping
from pipeline.files import from_json_text, read_text, toml_to_json

_FOLDER = pathlib.Path(__file__).parent / "registry"
_EXPECTED = "a mapping in TOML"
_REMEDY = "Start from `octograin convert SRC --describe > mapping.toml`."


def registered_names() -> list[str]:
    """Returns the names of all mappings of the registry, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


@functools.cache
def registered(name: str) -> SourceMapping:
    """Returns the mapping of the registry that has a name.

    Raises:
      DataError: There is none.
    """
    return parse_mapping(str(_FOLDER / f"{name}.toml"))


def find_registered(dataset: str, format_name: str) -> SourceMapping | None:
    """Returns the mapping of a dataset by its name, else by its format; None where there is none.

    Args:
      dataset: Its own name.
      format_name: The format in words, as its source says it.
    """
    names = registered_names()
    if dataset in names:
        return registered(dataset)
    # Only now, because it reads every file.
    others = [registered(name) for name in names]
    by_name = [m for m in others if any(fnmatch.fnmatchcase(dataset, n) for n in m.names)]
    by_format = [m for m in others if format_name in m.formats]
    return next(iter(by_name + by_format), None)


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


def parse_mapping(path: str) -> SourceMapping:
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
