"""Executes the Python files that a user gives: configs, and those of `--parts`."""

import hashlib
import importlib
import importlib.util
import os
import pathlib
import shlex
import sys
import types
from collections.abc import Iterator

from pipeline.arguments import check_path
from pipeline.errors import UserError

_loaded: dict[pathlib.Path, types.ModuleType] = {}
"""The modules of such files, by their absolute paths, the last one at the end."""


def load_parts(*sources: str | os.PathLike[str]) -> None:
    """Makes the classes of files or modules known, so that configs that record them can be read.

        octograin.load_parts("my_parts.py")
        policy = octograin.Policy.from_run("runs/mine")

    A file that is imported already is not executed again.

    Args:
      *sources: Paths of Python files, or names of modules that can be imported.

    Raises:
      UserError: There is no such file or module, or it fails.
    """
    for source in sources:
        check_path(source, "load_parts, source", "a file such as my_parts.py, or a module")
        name = os.fspath(source)
        path = pathlib.Path(name).absolute()
        is_file = path.suffix == ".py" or path.is_file() or os.sep in name
        if is_file and (path.suffix != ".py" or not path.is_file()):
            raise UserError(
                where=f"--parts {name}",
                expected="a Python file that ends in .py, or the name of a module",
                found="another file" if path.is_file() else "no such file",
                remedy="Give the file that defines your classes; of a copy that a run keeps, read "
                "it, then copy it elsewhere.",
            )
        try:
            if is_file:
                _load_once(path)
            else:
                importlib.import_module(name)
        except (Exception, SystemExit) as error:  # the file's own code may raise anything
            # A module that lacks another one is there, and that one is missing.
            missing = f"{error.name}." if isinstance(error, ModuleNotFoundError) else None
            if not is_file and missing and f"{name}.".startswith(missing):
                raise _no_module(name) from error
            text = " ".join(str(error).split())
            raise UserError(
                where=f"--parts {name}",
                expected="Python that can be executed, or the name of a module",
                found=f"{type(error).__name__}: {text}",
                remedy="Fix it; --debug shows where it fails. A file of a package is named as a "
                "module, such as my_package.my_parts; any other one with its .py.",
            ) from error


def run_file(path: pathlib.Path) -> types.ModuleType:
    """Executes a file, however often, and returns its module; no import finds it by its name.

    While it is executed, it can import the files beside it.

    Raises:
      Exception: What the file raises, or what its text makes the compiler raise.
    """
    return _run(path.absolute(), _private_name(path.absolute()))


def loaded_modules(name: str | None = None) -> Iterator[types.ModuleType]:
    """Yields the modules of the files, or of those of a name without `.py`, the last one first."""
    for path, module in reversed(list(_loaded.items())):
        if name in (None, path.stem):
            yield module


def is_loaded(path: pathlib.Path) -> bool:
    """Returns whether the file was given by its path."""
    return path.absolute() in _loaded


def _no_module(name: str) -> UserError:
    file = pathlib.Path(*name.split(".")).with_suffix(".py")
    return UserError(
        where=f"--parts {name}",
        expected="a path such as my_folder/my_parts.py, or a module that can be imported",
        found="no module of this name",
        remedy=f"Did you mean --parts {shlex.quote(str(file))}?"
        if file.is_file()
        else "Give the path of the file with its .py, or add the module's folder to PYTHONPATH.",
    )


def _load_once(path: pathlib.Path) -> None:
    """Executes a file unless it is imported, under its own name if no other module has it."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and os.path.exists(file) and os.path.samefile(file, path):
            _loaded[path] = module
            return
    is_free = path.stem not in sys.modules and _origin(path.stem) in (None, str(path))
    # So that a script that imports the file later gets the same classes.
    _run(path, path.stem if is_free else _private_name(path))


def _origin(name: str) -> str | None:
    """Returns what an import of a name would execute; None: nothing."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    return None if spec is None else spec.origin or ""


def _private_name(path: pathlib.Path) -> str:
    """Returns a name that belongs to one file alone, and that no import statement can have."""
    return f"{path.stem}@{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _run(path: pathlib.Path, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__file__, module.__package__ = str(path), ""
    before, folder = sys.modules.get(name), str(path.parent)
    # Annotations that are text are looked up in the module of their class.
    sys.modules[name] = module
    sys.path.insert(0, folder)
    try:
        # Compiled here: an import would leave bytecode beside the file.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    finally:
        # The file may have removed or added entries.
        if folder in sys.path:
            sys.path.remove(folder)
    _loaded.pop(path, None)  # to the end
    _loaded[path] = module
    return module
