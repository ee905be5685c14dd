"""What the packages import, checked in a fresh process and in their source."""

import ast
import pathlib

from tests.processes import Command

REPOSITORY = pathlib.Path(__file__).parents[1]
JAX_ONLY_IN = {"loading/device.py"}
ENCODER = "vggt/"
WITHOUT_JAX = {f"{ENCODER}{name}.py" for name in ("weight_sources", "encoder_spec")}

_IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
print(*sorted({"tensorflow", "torch"} & sys.modules.keys()))
"""


def frameworks(*packages: str, root: pathlib.Path = REPOSITORY) -> list[str]:
    """Which of TensorFlow and torch are there once every module of the packages is imported."""
    return Command("tests.code", _IMPORT_ALL, root, *packages).finish().stdout.split()


def importers(directory: pathlib.Path, package: str) -> set[str]:
    """The files below `directory` that import `package` themselves."""
    found = set()
    for path in directory.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            if any(name.split(".")[0] == package for name in names):
                found.add(str(path.relative_to(directory)))
    return found


def test_no_module_brings_tensorflow_or_torch() -> None:
    assert frameworks("octograin", "pipeline", "converters", "train") == []


def test_the_check_sees_an_import_deep_inside_a_package(tmp_path: pathlib.Path) -> None:
    (tmp_path / "torch.py").touch()
    inner = tmp_path / "package" / "inner"
    inner.mkdir(parents=True)
    for directory in (inner.parent, inner):
        (directory / "__init__.py").touch()
    assert frameworks("package", root=tmp_path) == []
    (inner / "module.py").write_text("def f():\n    pass\nimport torch\n")
    assert frameworks("package", root=tmp_path) == ["torch"]


def test_only_the_device_file_and_the_encoder_of_the_pipeline_import_jax() -> None:
    found = importers(REPOSITORY / "pipeline", "jax")
    assert {path for path in found if not path.startswith(ENCODER)} == JAX_ONLY_IN
    assert f"{ENCODER}encoder.py" in found
    assert not found & WITHOUT_JAX
    assert all((REPOSITORY / "pipeline" / name).is_file() for name in WITHOUT_JAX)


def test_importers_are_found_wherever_the_import_stands(tmp_path: pathlib.Path) -> None:
    sources = {
        "plain.py": "import jax",
        "sub.py": "import numpy, jax.numpy as jnp",
        "from.py": "from jax.sharding import Mesh",
        "late.py": "def f():\n    import jax",
        "other.py": "import jaxtyping\nfrom . import jax\n# import jax",
    }
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    assert importers(tmp_path, "jax") == set(sources) - {"other.py"}
