import contextlib
import hashlib
import json
import logging
import pathlib
import re
import sys
import types

import pytest

from pipeline.errors import DataError, UserError
from pipeline.files import to_json_values
from pipeline.parts.part_files import load_parts, run_file

from .user_parts import PART, Config, read, record, text_of, write


def test_a_file_of_parts_gives_the_classes_that_a_config_records(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "my_parts.py")
    text = record("my_parts", gain=3.0)
    with pytest.raises(DataError, match=r"--parts my_parts\.py"):
        read(text)
    load_parts(path)
    (part,) = read(text).transforms
    assert part.apply(2.0) == 6.0
    # Its record is the one that was read, with the checksum of the file.
    (values,) = to_json_values(Config((part,)))["transforms"]
    assert values == {
        "part": "Wrench",
        "module": "my_parts",
        "file": "my_parts.py",
        "checksum": hashlib.sha256(PART.encode()).hexdigest(),
        "fields": {"gain": 3.0},
    }


def test_a_class_is_found_in_a_file_of_another_name(tmp_path) -> None:
    load_parts(write(tmp_path / "renamed.py"))
    (part,) = read(record("my_parts", gain=3.0)).transforms
    assert part.apply(2.0) == 6.0


def test_a_class_of_a_session_is_to_be_written_into_a_file(tmp_path) -> None:
    session = sys.modules["a_session"] = types.ModuleType("a_session")
    exec(PART, vars(session))
    text = text_of(Config((session.Wrench(2.0),)))
    assert read(text).transforms == (session.Wrench(2.0),)
    del sys.modules["a_session"]
    with pytest.raises(DataError, match=r"no class Wrench of a_session\. It was defined in a sess"):
        read(text)
    load_parts(write(tmp_path / "my_parts.py"))
    assert read(text).transforms[0].apply(2.0) == 4.0


def test_a_file_is_executed_once_whether_it_is_loaded_or_imported(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    counted = "import builtins\nbuiltins.runs = getattr(builtins, 'runs', 0) + 1\n"
    write(tmp_path / "one_parts.py", counted + PART)
    import builtins

    monkeypatch.setattr(builtins, "runs", 0, raising=False)
    load_parts(tmp_path / "one_parts.py")
    imported = __import__("one_parts")
    load_parts(tmp_path / "one_parts.py", "one_parts")
    assert builtins.runs == 1  # pyright: ignore[reportAttributeAccessIssue]
    (part,) = read(record("one_parts")).transforms
    assert type(part) is imported.Wrench


def test_a_file_with_the_name_of_another_module_does_not_replace_it(tmp_path) -> None:
    load_parts(write(tmp_path / "json.py"))
    assert sys.modules["json"] is json
    (part,) = read(record("json", gain=2.0)).transforms
    assert part.apply(1.0) == 2.0
    assert to_json_values(Config((part,)))["transforms"][0]["module"] == "json"


def test_classes_of_a_config_file_and_of_files_beside_it_are_known(tmp_path) -> None:
    write(tmp_path / "beside.py", "from __future__ import annotations\n" + PART)
    mine = "from beside import Wrench\n" + PART.replace("Wrench", "Spanner")
    found = run_file(write(tmp_path / "my_robot.py", mine + "PARTS = (Wrench(2.0), Spanner(3.0))"))
    assert "my_robot" not in sys.modules
    assert str(tmp_path) not in sys.path
    config = Config(found.PARTS)
    assert read(text_of(config)) == config
    modules = [values["module"] for values in to_json_values(config)["transforms"]]
    assert modules == ["beside", "my_robot"]
    # Another process gets the class of the config file from the same file.
    load_parts(tmp_path / "my_robot.py")
    assert read(text_of(config)) == config


def test_a_config_file_that_changed_is_executed_again(tmp_path) -> None:
    path = write(tmp_path / "my_robot.py", PART)
    first = run_file(path)
    write(path, PART.replace("1.0", "5.0"))
    assert (first.Wrench().gain, run_file(path).Wrench().gain) == (1.0, 5.0)


def test_a_changed_source_is_a_warning_and_the_part_is_read(tmp_path, caplog) -> None:
    load_parts(write(tmp_path / "my_parts.py"))
    with caplog.at_level(logging.WARNING):
        (part,) = read(record("my_parts", gain=4.0)).transforms
        read(record("my_parts", gain=4.0))
    assert part.apply(1.0) == 4.0
    digest = hashlib.sha256(PART.encode()).hexdigest()[:12]
    assert caplog.messages == [
        "part Wrench: the source my_parts.py has changed since it was recorded (SHA-256 00 then, "
        f"{digest} now)"
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "expected a Python file that ends in .py, or .*; found no such file"),
        ("my_parts.py.txt", PART, "found another file. Give the file that defines your classes; "),
        ("bad.py", "1 / 0", "found ZeroDivisionError: division by zero. Fix it; --debug shows"),
        ("bad.py", "exit(3)", "found SystemExit: 3"),
        (
            "bad.py",
            "from . import x",
            "found ImportError: .* is named as a module, such as my_pack",
        ),
    ],
)
def test_what_cannot_be_loaded_says_why(name, text, message, tmp_path) -> None:
    path = tmp_path / name
    if text is not None:
        write(path, text)
    with pytest.raises(UserError, match=message) as caught:
        load_parts(path)
    assert str(caught.value).startswith(f"--parts {path}: ")
    assert not any(name.startswith("bad") for name in sys.modules)


@pytest.mark.parametrize("name", ["no_such_module", "my_lab.parts", "json.my_parts"])
def test_of_a_module_that_is_missing_a_path_or_another_module_is_expected(name, tmp_path) -> None:
    message = (
        f"--parts {name}: expected a path such as my_folder/my_parts.py, or a module that can be "
        "imported; found no module of this name. "
    )
    with pytest.raises(UserError, match="^" + re.escape(message + "Give the path of the file")):
        load_parts(name)
    file = tmp_path / name.replace(".", "/")
    file.parent.mkdir(exist_ok=True)
    write(file.with_suffix(".py"))
    with contextlib.chdir(tmp_path), pytest.raises(UserError) as caught:
        load_parts(name)
    assert str(caught.value) == f"{message}Did you mean --parts {name.replace('.', '/')}.py?"


def test_a_module_that_fails_to_import_another_names_that_one(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "wants_more.py", "import no_such_module\n")
    with pytest.raises(UserError, match="found ModuleNotFoundError: No module named 'no_such_m"):
        load_parts("wants_more")
