"""The files of users' parts in a config, and their copies in a run, which are never executed."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from pipeline.files import writing
from pipeline.parts.part_sources import PartSource, source_of

FOLDER = "parts"
"""Folder of the copies in a run directory."""
_OWN = ("pipeline", "train", "converters", "octograin")


def write_copies(config: object, directory: pathlib.Path) -> None:
    """Writes the sources of users' classes in a config to `directory/parts`.

    A copy is bytewise the source, and its name holds the start of its SHA-256, which the config
    records in full: `my_parts.3f0c52a1.py.txt`. A resumed run with a changed source has both.

    Raises:
      UserError: The directory cannot be written.
    """
    for source in _sources(config):
        name = f"{pathlib.PurePath(source.file or '').stem}.{str(source.checksum)[:8]}.py.txt"
        path = directory / FOLDER / name
        if source.content is not None and not path.exists():
            with writing(path):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(source.content)


def own_files(config: object) -> list[str]:
    """Lists the files of users' classes in a config, relative to this folder where they are in it.

    These are what `--parts` takes.
    """
    paths = dict.fromkeys(source.path for source in _sources(config) if source.path)
    return [
        os.path.relpath(path) if pathlib.Path(path).is_relative_to(pathlib.Path.cwd()) else path
        for path in paths
    ]


def _sources(value: Any) -> Iterator[PartSource]:
    """Yields the sources of the classes of a user in a config, at every depth."""
    if isinstance(value, tuple | list):
        for element in value:
            yield from _sources(element)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value).__module__.partition(".")[0] not in _OWN:
            yield source_of(type(value))
        for field in dataclasses.fields(value):
            yield from _sources(getattr(value, field.name))
