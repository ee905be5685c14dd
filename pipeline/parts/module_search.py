"""Imports a module whose name a file gives, unless that would execute what comes with the file."""

import ast
import importlib
import os
import pathlib
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

from pipeline.errors import UserError


def import_outside(
    module: str, class_name: str, directories: Sequence[pathlib.Path]
) -> types.ModuleType | None:
    """Imports a module if its source, and that of its packages, lies outside of directories.

    Nothing is executed before all of it is checked; in particular, no package is imported to find
    what is inside. A module without a class of that name is not imported either: a file could
    otherwise have any module of the system executed.

    Args:
      module: Dotted name of the module.
      class_name: The class that its source defines.
      directories: Folders of which nothing may be executed.

    Returns:
      The module; None if there is none to import.

    Raises:
      UserError: The module raises an error while it is imported.
    """
    origin = _origin_outside(module, directories)
    if origin is None or not _defines(origin, class_name):
        return None
    path = list(sys.path)
    # What the module imports cannot come from there either.
    sys.path[:] = [entry for entry in path if _is_outside(entry or os.getcwd(), directories)]
    try:
        return importlib.import_module(module)
    except Exception as error:  # the module's own code may raise anything
        raise UserError(
            where=f"module {module}, which defines {class_name}",
            expected="a module that can be imported",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}",
            remedy=f"Fix {origin}; --debug shows where it fails.",
        ) from error
    finally:
        sys.path[:] = path


def _origin_outside(module: str, directories: Sequence[pathlib.Path]) -> str | None:
    """Returns the source of a module; None if there is none, or any of it is in a directory."""
    importlib.invalidate_caches()  # a file may be new
    names = module.split(".")
    if not all(name.isidentifier() for name in names):
        return None
    folders: list[str] | None = None
    origin = None
    for number in range(len(names)):
        found = _locate(".".join(names[: number + 1]), folders)
        if found is None:
            return None
        origin, folders = found
        # A package without a file has folders alone.
        if not all(_is_outside(place, directories) for place in (*folders, origin) if place):
            return None
        if number < len(names) - 1 and not folders:
            return None
    return origin


def _locate(name: str, folders: list[str] | None) -> tuple[str | None, list[str]] | None:
    """Returns the source file of a module and the folders of a package, without importing it."""
    if (known := sys.modules.get(name)) is not None:
        return getattr(known, "__file__", None), list(getattr(known, "__path__", ()))
    spec: ModuleSpec | None = None
    for finder in sys.meta_path:
        if (spec := finder.find_spec(name, folders)) is not None:
            break
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        return None
    is_file = spec.has_location or spec.origin is None
    places = list(spec.submodule_search_locations or ())
    return (spec.origin, places) if is_file else None


def _is_outside(place: str, directories: Sequence[pathlib.Path]) -> bool:
    """Returns whether a path lies in none of the directories, neither as written nor resolved."""
    written = {os.path.abspath(place), os.path.realpath(place)}
    inside = {form(each) for each in directories for form in (os.path.abspath, os.path.realpath)}
    return not any(pathlib.Path(path).is_relative_to(top) for path in written for top in inside)


def _defines(origin: str, class_name: str) -> bool:
    """Returns whether a source file defines a class."""
    if not origin.endswith(".py") or not os.path.isfile(origin):
        return False
    try:
        nodes = ast.walk(ast.parse(pathlib.Path(origin).read_bytes()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.ClassDef) and node.name == class_name for node in nodes)
