"""Where the classes of users' parts come from: what is imported already, a file, or a module.

A file that records a part comes with a run or a checkpoint, which others may have written. It names
a class, and never decides what is executed: a module is imported only if it lies outside of the
directory that is read, and its source defines a class of that name.
"""

import dataclasses
import functools
import hashlib
import importlib
import logging
import os
import pathlib
import shlex
import sys
import types
from collections.abc import Iterator, Sequence

from pipeline.errors import nearest_name
from pipeline.hub.cache_places import cache_directories
from pipeline.parts.module_search import import_outside
from pipeline.parts.part_files import is_loaded, loaded_modules

_log = logging.getLogger(__name__)


class MissingPartError(Exception):
    """The class of a part is not found.

    Args:
      message: What is missing.
      remedy: What to do.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclasses.dataclass(frozen=True)
class PartSource:
    """The file that defines the class of a user's part."""

    module: str
    """Name of its module; of a file that was named by its path, the name without `.py`."""
    file: str | None
    """Name of the file, without its folder; None: the class was defined in a session."""
    checksum: str | None
    """SHA-256 of the file, 64 hex digits."""
    content: bytes | None
    """The file, as it was when the class was first written to JSON."""
    path: str | None = None
    """Where the file is, for this process; no file records it."""


@functools.cache
def source_of(kind: type) -> PartSource:
    """Returns the source of a class; the file is read once, so that later edits do not count."""
    module = sys.modules.get(kind.__module__)
    path = getattr(module, "__file__", None)
    if path is None or not os.path.isfile(path):
        return PartSource(kind.__module__, None, None, None)
    content = pathlib.Path(path).read_bytes()
    name = _recorded_name(kind.__module__, pathlib.Path(path))
    checksum = hashlib.sha256(content).hexdigest()
    return PartSource(name, os.path.basename(path), checksum, content, path)


def _recorded_name(module: str, path: pathlib.Path) -> str:
    """The name of a module by which another process may know it."""
    if is_loaded(path):
        return path.stem
    if module == "__main__":
        spec = getattr(sys.modules[module], "__spec__", None)  # of `python -m NAME`
        return path.stem if spec is None else spec.name
    return module


def find_class(
    name: str, recorded: PartSource | None, own: Sequence[str], directory: pathlib.Path | None
) -> type:
    """Returns the class of a part.

    Args:
      name: Name of the class.
      recorded: Its source; None: it is one of the library.
      own: Modules of the library that define such parts.
      directory: What is read, a run or a checkpoint; nothing in it is executed. None: no module is
        imported.

    Raises:
      MissingPartError: There is no such class.
    """
    if recorded is None:
        return _own_class(name, own)
    modules = _candidates(name, recorded, directory)
    found = next((c for module in modules if (c := _dataclass_in(module, name))), None)
    if found is None:
        # Quoted: the name may come from somebody else, and the line is there to be copied.
        file = recorded.file or "my_parts.py"
        lost = "" if recorded.file else "It was defined in a session: write it into a file. "
        raise MissingPartError(
            f"no class {name} of {recorded.file or recorded.module}",
            f"{lost}Give the file: --parts {shlex.quote(file)}; in Python, "
            f"octograin.load_parts({file!r}).",
        )
    now = source_of(found)
    if now.checksum != recorded.checksum:
        _warn_of_change(name, now.file or now.module, recorded.checksum, now.checksum)
    return found


def _own_class(name: str, own: Sequence[str]) -> type:
    known: dict[str, type] = {}
    for module in own:
        for value in vars(importlib.import_module(module)).values():
            is_own = getattr(value, "__module__", None) == module
            if is_own and isinstance(value, type) and dataclasses.is_dataclass(value):
                known[value.__name__] = value
    if name not in known:
        nearest = nearest_name(name, known)
        raise MissingPartError(
            f"octograin has no part {name}" + (f" ({nearest}?)" if nearest else ""),
            "Read it with the release that wrote it, or a later one.",
        )
    return known[name]


def _candidates(
    name: str, recorded: PartSource, directory: pathlib.Path | None
) -> Iterator[types.ModuleType]:
    """Yields modules that may define a class, the likeliest first; the last ones as needed."""
    yield from _known_modules(recorded.module)
    if directory is not None:
        closed = (directory, *cache_directories())
        if (module := import_outside(recorded.module, name, closed)) is not None:
            yield module
    # A file may have another name than the one that was recorded.
    yield from loaded_modules()


def _known_modules(name: str) -> Iterator[types.ModuleType]:
    """Yields modules of a name that are imported already."""
    yield from loaded_modules(name)
    if name in sys.modules:
        yield sys.modules[name]
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if main is not None and path and _recorded_name("__main__", pathlib.Path(path)) == name:
        yield main


def _dataclass_in(module: types.ModuleType, name: str) -> type | None:
    found = getattr(module, name, None)
    is_class = isinstance(found, type) and dataclasses.is_dataclass(found)
    return found if is_class else None


@functools.cache
def _warn_of_change(name: str, file: str, then: str | None, now: str | None) -> None:
    """Warns once of each change."""
    _log.warning(
        "part %s: the source %s has changed since it was recorded (SHA-256 %.12s then, %.12s now)",
        name,
        file,
        then,
        now,
    )
