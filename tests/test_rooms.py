"""The folders of the packages: what may import what, their size, and the names of their files."""

import ast
import collections
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PACKAGES = ("pipeline", "train", "converters")
MOST_FILES = 14
"""Python files in a folder of the packages, `__init__` and `__main__` included."""
REPEATED = {"__init__.py", "__main__.py", "conftest.py"}
PIPELINE = {
    "pipeline",
    "pipeline/hub",
    "pipeline/sharing",
    "pipeline/parts",
    "pipeline/data",
    "pipeline/loading",
    "pipeline/loading/reading",
    "pipeline/loading/samples",
    "pipeline/loading/transforms",
}
MAY_IMPORT = {
    # octograin finds the packages; files and checks of configs know parts.
    "pipeline": {"octograin", "pipeline/parts"},
    # Caches of the hub hold no modules of parts.
    "pipeline/parts": {"pipeline", "pipeline/hub"},
    "pipeline/hub": {"pipeline"},
    # Opening a dataset by its address fetches it.
    "pipeline/data": {"pipeline", "pipeline/hub", "pipeline/vggt", "pipeline/sharing"},
    "pipeline/sharing": {"pipeline", "pipeline/hub", "pipeline/data", "pipeline/inspection"},
    "pipeline/vggt": {"pipeline", "pipeline/data", "pipeline/hub"},
    "pipeline/loading": {*PIPELINE, "pipeline/parts"},
    "pipeline/loading/transforms": {"pipeline", "pipeline/data", "pipeline/loading"},
    "pipeline/loading/samples": {"pipeline", "pipeline/data", "pipeline/loading"},
    "pipeline/loading/reading": {
        "pipeline",
        "pipeline/data",
        "pipeline/loading",
        "pipeline/loading/samples",
    },
    "pipeline/inspection": PIPELINE,
    "pipeline/benchmark": PIPELINE,
    "train/evaluate/libero": {"pipeline", "pipeline/data", "train/evaluate/libero/scene"},
    "train/evaluate/libero/scene": {"pipeline"},
    "train/policy": {
        *PIPELINE,
        "pipeline/inspection",
        "pipeline/vggt",
        "train/checkpoints",
        "train/octo",
        "train/octo/heads",
        "train/update",
    },
    # Its code is copied into files that run without this package.
    "train/exported": {*PIPELINE, "train/checkpoints", "train/octo", "train/policy"},
    "train/octo/heads": {"train/octo"},
    "train/octo/released": {"pipeline", "pipeline/hub", "train/octo"},
    "train/octo": {"pipeline", "pipeline/parts", "pipeline/loading", "train/octo/heads"},
    "converters/sources": {"pipeline", "pipeline/hub", "pipeline/data"},
    "converters/operations": {"pipeline/data"},
    "converters/hdf5": {"pipeline", "pipeline/data", "converters/sources"},
    "converters/lerobot": {"pipeline", "pipeline/hub", "pipeline/data", "converters/sources"},
    # Its `__main__` is the command of all formats, under the name that it had first.
    "converters/rlds": {"pipeline", "pipeline/data", "converters/sources", "converters/job"},
    "converters/mapping": {*PIPELINE, "converters/sources", "converters/operations"},
    "converters/job/runners": {"pipeline", "converters/job"},
    "converters/job": {
        "converters/job/runners",
        "pipeline",
        "pipeline/data",
        "pipeline/sharing",
        "converters/sources",
        "converters/mapping",
    },
}
"""Folders, and the others that their modules may import; those of `converters` that are not listed
may import `pipeline` and `converters`, those of `train` may import `pipeline` and `train`."""


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The modules of the packages below a folder, by dotted name."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    }


def imports(root: pathlib.Path) -> list[tuple[str, str, str]]:
    """Each import between two folders: (folder, folder of the imported module, file and line)."""
    known = modules(root)
    found = []
    for path in known.values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [
                    full if (full := f"{node.module}.{alias.name}") in known else node.module
                    for alias in node.names
                ]
            folder = path.parent.relative_to(root).as_posix()
            for name in names:
                if name.split(".")[0] in (*PACKAGES, "octograin", "tests", "configs"):
                    target = (
                        known[name].parent.relative_to(root).as_posix() if name in known else name
                    )
                    place = f"{path.relative_to(root)}:{node.lineno}"
                    found.append((folder, target, place))
    return found


def is_allowed(folder: str, target: str) -> bool:
    """Whether a module of one folder may import one of another."""
    if folder == target:
        return True
    if folder in MAY_IMPORT:
        return target in MAY_IMPORT[folder]
    package = folder.split("/", maxsplit=1)[0]
    return target.split("/", maxsplit=1)[0] in {"pipeline", package} & {*PACKAGES}


def test_rooms_import_in_the_allowed_directions() -> None:
    wrong = {
        f"{place} imports {target}"
        for folder, target, place in imports(ROOT)
        if not is_allowed(folder, target)
    }
    assert not wrong


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pipeline/data/record.py", "from pipeline.loading.batch import table"),
        ("pipeline/errors.py", "def f():\n    import pipeline.data.schema"),
        ("train/run.py", "from converters.job import convert"),
        ("converters/job/convert.py", "from octograin import open_dataset"),
        ("converters/sources/source.py", "from converters.job import convert"),
        ("converters/operations/cast.py", "from converters.sources import source"),
        ("converters/hdf5/demos.py", "from converters.job.convert import run"),
    ],
)
def test_an_import_against_the_directions_is_found(tmp_path, file, text) -> None:
    for name in (
        "pipeline/loading/batch.py",
        "pipeline/data/schema.py",
        "converters/job/convert.py",
        "converters/sources/source.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    found = [(folder, target) for folder, target, _ in imports(tmp_path)]
    assert [is_allowed(*one) for one in found] == [False]


def test_every_listed_room_exists() -> None:
    named = {*MAY_IMPORT, *(target for targets in MAY_IMPORT.values() for target in targets)}
    assert {name for name in named if not (ROOT / name / "__init__.py").is_file()} == set()


def test_rooms_are_small() -> None:
    sizes = collections.Counter(path.parent for path in modules(ROOT).values())
    assert {str(folder): size for folder, size in sizes.items() if size > MOST_FILES} == {}


def test_no_two_files_have_one_name() -> None:
    folders = (*PACKAGES, "octograin", "configs", "benchmarks", "tests")
    files = [
        path.relative_to(ROOT)
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in REPEATED and not path.is_relative_to(ROOT / "tests" / "data")
    ]
    by_name = collections.defaultdict(set)
    for path in files:
        by_name[path.name].add(str(path))
    assert {name: paths for name, paths in by_name.items() if len(paths) > 1} == {}


def test_no_folder_hides_a_module_of_the_standard_library() -> None:
    folders = {path.parent.name for path in modules(ROOT).values()}
    assert folders & sys.stdlib_module_names == set()


def test_the_way_of_a_frame_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| \d+ \| `(\S+)` \| `(\S+)` \|", ARCHITECTURE.read_text(), re.MULTILINE)
    assert len(rows) == 25
    assert [row for row in rows if not is_defined(*row)] == []


def is_defined(file: str, name: str) -> bool:
    """Whether a file defines a function, a class or a method, such as `Loader.batches`."""
    body = ast.parse((ROOT / file).read_text()).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def test_a_missing_function_is_found() -> None:
    assert is_defined("pipeline/loading/loader.py", "Loader.batches")
    assert not is_defined("pipeline/loading/loader.py", "Loader.batch")
