"""Finds what comes with octograin: its version and names, presets of runs, data of the demo.

In a checkout they lie in `configs/` and `tests/data/`; in a wheel, inside the package octograin.
"""

import ast
import pathlib

import octograin
from pipeline.errors import DataError

SCHEME = "octograin://"
"""Begins the name of a bundled file, such as `octograin://vocabulary.model`."""
BUNDLED = ("libero_mini", "vocabulary.model")
"""What the demo reads: an RLDS set of four episodes, and a small SentencePiece model."""
VERSION = octograin.__version__
_PACKAGE = pathlib.Path(octograin.__file__).parent


def local_path(path: str) -> str:
    """Resolves `octograin://NAME` to a local path; other paths are returned unchanged.

    Raises:
      DataError: Nothing of that name is bundled.
    """
    if not path.startswith(SCHEME):
        return path
    name = path.removeprefix(SCHEME)
    if name not in BUNDLED:
        raise DataError(
            where=path,
            expected="one of " + ", ".join(f"{SCHEME}{name}" for name in BUNDLED),
            found="nothing of that name",
            remedy="Write one of these, or a path.",
        )
    return str(_folder("data", "tests/data") / name)


def presets() -> dict[str, pathlib.Path]:
    """The config files that come with octograin, by name, such as `libero_vggt`."""
    return {path.stem: path for path in sorted(_folder("presets", "configs").glob("*.py"))}


def module_of(name: str) -> str:
    """Returns the module that defines a name of `import octograin`; octograin for other names."""
    stub = ast.parse(pathlib.Path(octograin.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    found = (str(node.module) for node in imports for alias in node.names if alias.name == name)
    return next(found, octograin.__name__)


def _folder(in_wheel: str, in_checkout: str) -> pathlib.Path:
    # A wheel packs the files inside the package; a checkout has them beside it.
    packed = _PACKAGE / in_wheel
    return packed if packed.is_dir() else _PACKAGE.parent / in_checkout
