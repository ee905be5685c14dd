"""Collects the code that an exported policy runs, and its settings as Python.

The modules of the package that the code imports go into the file as they are, under one name: an
exported policy may be imported beside octograin.

    from pipeline.errors import UserError    from exported_policy.pipeline.errors import UserError
    from octograin import dims_at            from exported_policy.pipeline....transform import ...
"""

import ast
import dataclasses
import importlib.util
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pipeline.bundled import module_of
from pipeline.errors import UserError

PACKAGE = "exported_policy"
OWN_PARTS = "own_parts"
"""Package of the modules that define a user's own classes."""
AVAILABLE = {"jax", "numpy", "scipy", "ml_dtypes", *sys.stdlib_module_names}
"""Where an exported policy runs, these can be imported: jax, numpy, and what jax requires."""
_PACKAGES = ("pipeline", "train")
_LIBRARY = "octograin"
_ROOTS = ("train.exported.exported_policy",)


def bundle_code(classes: Iterable[type]) -> dict[str, str]:
    """Returns the source of each file of the package `exported_policy`, by its path in it.

    Args:
      classes: Classes that the settings use; a user's own are among them.

    Raises:
      UserError: The module of a class imports a package that an exported policy cannot have.
    """
    kinds = [kind for kind in classes if kind.__module__.split(".")[0] != "builtins"]
    waiting = [*_ROOTS, *(kind.__module__ for kind in kinds)]
    found: dict[str, str] = {}
    problems: list[str] = []
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        source, imported = _rewritten(name, problems)
        found[name] = source
        waiting += imported
    if problems:
        raise UserError(
            where="export --to stablehlo, classes of the run",
            expected="imports of numpy, scipy, jax, the standard library and names of octograin",
            found="; ".join(problems),
            remedy="Remove these imports from the files of your own parts, or serve the run with "
            "`octograin serve`.",
        )
    files = {f"{place_of(name).replace('.', '/')}.py": text for name, text in found.items()}
    folders = {str(parent) for path in files for parent in pathlib.PurePath(path).parents}
    return {f"{folder}/__init__.py": "" for folder in sorted(folders - {"."})} | files


def place_of(module: str) -> str:
    """Returns the name of a module inside of the package `exported_policy`."""
    if module.split(".", maxsplit=1)[0] in _PACKAGES:
        return module
    # A file that was loaded by its path may have any name.
    name = re.sub(r"[^\w.]", "_", module)
    return f"{OWN_PARTS}.{name}"


def _rewritten(name: str, problems: list[str]) -> tuple[str, list[str]]:
    """Returns the source of a module with the imports that it has in a file, and what it imports.

    Args:
      name: Name of the module.
      problems: Imports that an exported policy cannot have are appended.
    """
    path = _source(name)
    lines = path.read_text().splitlines(keepends=True)
    imported: list[str] = []
    for node in _imports(ast.parse("".join(lines))):
        if isinstance(node, ast.Import):
            tops = {alias.name.split(".")[0] for alias in node.names} - AVAILABLE
            problems += [f"{path.name}:{node.lineno} imports {top}" for top in sorted(tops)]
            continue
        module, top = node.module or "", (node.module or "").split(".")[0]
        if node.level or top not in {*AVAILABLE, *_PACKAGES, _LIBRARY}:
            problems.append(f"{path.name}:{node.lineno} imports {'.' * node.level}{module}")
        elif top not in AVAILABLE:
            parts = dict.fromkeys(_module_of(module, alias.name) for alias in node.names)
            if _LIBRARY in parts:
                problems.append(f"{path.name}:{node.lineno} imports octograin itself")
                continue
            imported += parts
            texts = [_line(part, node, module) for part in parts]
            indent = " " * node.col_offset
            lines[node.lineno - 1] = "".join(f"{indent}{text}\n" for text in texts)
            # Line numbers stay those of the source.
            for number in range(node.lineno, node.end_lineno or node.lineno):
                lines[number] = "" if number - node.lineno < len(texts) - 1 else "\n"
    return "".join(lines), imported


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yields the imports of a module but for those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from _imports(node)


def _module_of(module: str, name: str) -> str:
    """Returns the module that defines an imported name."""
    if module == _LIBRARY:
        return module_of(name)
    full, spec = f"{module}.{name}", importlib.util.find_spec(module)
    return full if spec and spec.submodule_search_locations else module


def _line(part: str, node: ast.ImportFrom, module: str) -> str:
    """Returns an import of those names that one module defines."""
    names = [alias for alias in node.names if _module_of(module, alias.name) == part]
    shown = ", ".join(ast.unparse(alias) for alias in names)
    inner = module if part.startswith(f"{module}.") else part
    return f"from {PACKAGE}.{place_of(inner)} import {shown}"


def _source(name: str) -> pathlib.Path:
    """Returns the source file of a module."""
    module = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if module is None else module.__spec__
    origin = getattr(module, "__file__", None) or (spec and spec.origin)
    if origin is None:
        raise UserError(
            where=f"export --to stablehlo, module {name}",
            expected="a Python file",
            found="none",
            remedy="Define the classes of the run in a file.",
        )
    return pathlib.Path(origin)


class SettingsSource:
    """Writes dataclasses as Python; `classes` are those that were written."""

    def __init__(self) -> None:
        self.classes: dict[str, type] = {}

    def module(self, name: str, value: object) -> str:
        """Returns the source of a module that defines a value."""
        text = self.text(value)
        imports = [
            f"from {PACKAGE}.{place_of(kind.__module__)} import {kind.__qualname__} as {alias}"
            for alias, kind in self.classes.items()
        ]
        # As `repr` writes floats that are not finite.
        names = ["from math import inf, nan", "", "import numpy as np", ""]
        return "\n".join([*names, *imports, "", f"{name} = {text}", ""])

    def text(self, value: object) -> str:
        """Returns an expression for a value: numbers, texts, arrays, containers, dataclasses.

        Raises:
          UserError: It is, or holds, something else.
        """
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return repr(value)
        if isinstance(value, np.ndarray):
            # A float32 as the float64 that it equals: it comes back exactly.
            return f"np.array({value.tolist()!r}, {str(value.dtype)!r})"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            texts = [f"{name}={self.text(getattr(value, name))}" for name in fields]
            return f"{self._alias(type(value))}({', '.join(texts)})"
        if isinstance(value, Mapping):
            pairs = [f"{self.text(key)}: {self.text(one)}" for key, one in value.items()]
            return f"{{{', '.join(pairs)}}}"
        if isinstance(value, frozenset | set):
            return f"{type(value).__name__}([{', '.join(sorted(map(self.text, value)))}])"
        if isinstance(value, tuple | list):
            return f"{type(value).__name__}([{', '.join(map(self.text, value))}])"
        raise UserError(
            where="export --to stablehlo, a field of the run's config",
            expected="numbers, texts, tuples and dataclasses of them",
            found=f"a {type(value).__name__}",
            remedy="Keep other objects out of the fields of your own parts.",
        )

    def _alias(self, kind: type) -> str:
        """Returns the name of a class, which is numbered if another class has it."""
        name, number = kind.__name__, 1
        while self.classes.setdefault(name, kind) is not kind:
            number += 1
            name = f"{kind.__name__}_{number}"
        return name
