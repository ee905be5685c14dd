"""Robot data to JAX policies: datasets, batches, policies, and the configs of runs.

    import octograin

    dataset = octograin.open_dataset("data/libero_mini")
    step = dataset.step(episode=3, step=10)
    with octograin.open_loader("data/libero_mini", batch_size=8) as loader:
        for batch in loader: ...

Names are imported when they are first used: `import octograin` takes milliseconds.

The packages `pipeline`, `train` and `converters` are those installed beside this one, whatever
files of these names lie in the current directory or beside a script. Import octograin before them,
at the top of a script: the processes that it starts import it again.
"""

import ast
import importlib
import importlib.machinery
import pathlib
import pickle
import sys
from collections.abc import Sequence
from typing import Any

__version__ = "0.13.0"

_PACKAGES = ("pipeline", "train", "converters")
_FOLDER = pathlib.Path(__file__).resolve().parents[1]
_STUB = pathlib.Path(__file__).with_suffix(".pyi").read_text()
_MODULES = {
    alias.name: str(node.module)
    for node in ast.parse(_STUB).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
"""The module of each exported name; `__init__.pyi` lists them, for editors as well."""

__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """An exported name, imported at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'octograin' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    """The exported names, for completion."""
    return __all__


def unpickled(content: bytes) -> Any:
    """The object of a pickle, made in a process that imports octograin to find this function."""
    return pickle.loads(content)


class _OwnPackages:
    """Finds octograin's packages beside it, before anything on `sys.path`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of one of the packages; None for any other module."""
        del path, target
        if name not in _PACKAGES:
            return None
        return importlib.machinery.PathFinder.find_spec(name, [str(_FOLDER)])


def _keep_names_apart() -> None:
    """Puts the finder first.

    Raises:
      ImportError: Another module was imported under the name of one of the packages.
    """
    for name in _PACKAGES:
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        if name in sys.modules and pathlib.Path(file).resolve() != _FOLDER / name / "__init__.py":
            raise ImportError(
                f"import octograin: expected {_FOLDER / name} as the package {name}; found "
                f"{file or sys.modules[name]}. Import octograin before it, or rename it."
            )
    sys.meta_path.insert(0, _OwnPackages)


_keep_names_apart()
