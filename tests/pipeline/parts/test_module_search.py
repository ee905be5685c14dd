"""A run names the classes of its parts; no file of a run is executed, wherever it is looked for."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pipeline.errors import DataError, UserError
from tests.own_modules import forget_modules

from .user_parts import PART, read, record, write


def hostile(canary: pathlib.Path) -> str:
    return f"open({str(canary)!r}, 'w').close()\n" + PART


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run directory whose every file of Python leaves a canary."""
    directory = tmp_path / "runs" / "theirs"
    for name in (
        "my_parts.py",
        "__init__.py",
        "package/__init__.py",
        "package/inner.py",
        "bare/inner.py",
        "checkpoints/__init__.py",
        "checkpoints/inner.py",
        "yaml.py",
    ):
        write(directory / name, hostile(tmp_path / "canary"))
    return directory


@pytest.mark.parametrize(
    "module",
    [
        "my_parts",
        "package",
        "package.inner",
        "bare.inner",
        "theirs",
        "theirs.my_parts",
        "theirs.package.inner",
        "runs.theirs.my_parts",
        "runs.theirs.bare.inner",
        "link",
        "link.inner",
        "linked_file",
    ],
)
@pytest.mark.parametrize("where", ["inside", "above", "working directory"])
def test_nothing_in_a_run_is_executed(module, where, run, tmp_path, monkeypatch) -> None:
    (run.parent / "link").symlink_to(run / "package")
    (run.parent / "linked_file.py").symlink_to(run / "my_parts.py")
    monkeypatch.chdir(run)
    if where == "working directory":
        sys.path.insert(0, "")
    for path in [run] if where == "inside" else [run.parent, tmp_path]:
        sys.path.insert(0, str(path))
    # The run itself may be named by a link too.
    for directory in (run, pathlib.Path(".")):
        with pytest.raises(DataError, match="no class Wrench of"):
            read(record(module), directory)
    assert not (tmp_path / "canary").exists()
    assert not {"my_parts", "package", "bare", "theirs", "link"} & set(sys.modules)


def test_the_canary_is_left_by_an_import(run, tmp_path) -> None:
    sys.path.insert(0, str(run))
    __import__("package.inner")
    assert (tmp_path / "canary").exists()


def test_another_process_executes_nothing_of_the_run_it_stands_in(run, tmp_path) -> None:
    code = (
        "import octograin, pathlib, sys\n"
        "from tests.pipeline.parts.user_parts import read, record\n"
        "from pipeline.errors import DataError\n"
        "for module in ('my_parts', 'package.inner', 'bare.inner'):\n"
        "    try:\n        read(record(module), pathlib.Path('.'))\n"
        "    except DataError as error:\n        print(error)\n"
    )
    root = pathlib.Path(__file__).parents[3]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(run)])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("no class Wrench of") == 3
    assert not (tmp_path / "canary").exists()


def test_the_cache_of_the_hub_is_closed_as_well(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(run.parent))
    sys.path.insert(0, str(run))
    with pytest.raises(DataError, match=r"no class Wrench of my_parts\.py"):
        read(record("my_parts"), tmp_path / "elsewhere")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["outer", "outer.inner", "space.inner"])
def test_a_module_outside_of_the_run_is_imported(name, run, tmp_path) -> None:
    place = tmp_path / "project"
    for file in ("outer/__init__.py", "outer/inner.py", "space/inner.py"):
        write(place / file)
    sys.path[:0] = [str(run), str(place)]
    (part,) = read(record(name, gain=2.0), run).transforms
    assert part.apply(2.0) == 4.0
    # Without the directory that is read, nothing is known to be outside of it.
    forget_modules(tmp_path)
    with pytest.raises(DataError, match="no class Wrench"):
        read(record(name))
    assert not (tmp_path / "canary").exists()


def test_what_a_module_imports_does_not_come_from_the_run_either(run, tmp_path) -> None:
    write(tmp_path / "project" / "outer.py", "import my_parts\n" + PART)
    sys.path[:0] = [str(run), str(tmp_path / "project")]
    with pytest.raises(UserError, match=r"module outer, .*; found ModuleNotFoundError: No m"):
        read(record("outer"), run)
    assert not (tmp_path / "canary").exists()
    assert sys.path[0] == str(run)


@pytest.mark.parametrize(
    "name",
    ["antigravity", "this", "builtins", "zipimport", "..", "os.path", "a b", "json.tool"],
)
def test_a_module_without_such_a_class_is_not_imported(name, tmp_path, capfd) -> None:
    for known in ("antigravity", "this", "json.tool"):
        sys.modules.pop(known, None)
    with pytest.raises(DataError, match="no class Wrench"):
        read(record(name), tmp_path)
    assert not {"antigravity", "this", "json.tool"} & set(sys.modules)
    assert capfd.readouterr().out == ""


def test_a_record_cannot_have_code() -> None:
    text = json.dumps({"transforms": [{"part": "__import__('os')", "module": "x", "fields": {}}]})
    with pytest.raises(DataError, match="no class __import__"):
        read(text)
