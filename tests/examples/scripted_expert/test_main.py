import pathlib
import sys
from typing import Any

import pytest

from examples.scripted_expert import __main__ as command, trials
from pipeline.errors import UserError
from train.evaluate.libero.installation import Installation


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command, with a simulator that has no tasks."""
    nowhere = Installation(pathlib.Path("/nowhere"), pathlib.Path("/nowhere"), "egl", {})
    monkeypatch.setattr(command, "find_installation", lambda assets: nowhere)
    monkeypatch.setattr(sys, "argv", ["scripted_expert", "out", *arguments])
    with pytest.raises(SystemExit) as caught:
        command.main()
    return int(str(caught.value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "--episodes: expected at least 1; found 0"),
        (["--noise", "-0.1"], "--noise: expected at least 0.0; found -0.1"),
        (["--noise", "nan"], "--noise: expected at least 0.0; found nan"),
        (["--workers", "0"], "--workers: expected at least 1; found 0"),
        (
            ["--tasks", "0-3"],
            "--tasks: expected indices with commas between, such as 0,2; found 0-3",
        ),
        (["--suite", "libero"], "suite: expected one of libero_spatial, libero_object"),
        ([], "/nowhere/benchmark/libero_suite_task_map.py: expected LIBERO's list of tasks"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_without_a_simulator_the_command_that_installs_it_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(assets: Any) -> Installation:
        raise UserError(where="sim", expected="it", found="none", remedy="make libero")

    monkeypatch.setattr(command, "find_installation", missing)
    monkeypatch.setattr(sys, "argv", ["scripted_expert", "out"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert capsys.readouterr().err == "error: sim: expected it; found none. make libero\n"


@pytest.mark.parametrize(
    ("texts", "tasks"),
    [
        ((), [None, None]),
        (("0,2,10",), [(0, 2, 10), (0, 2, 10)]),
        (("0,2,0", "5"), [(0, 2), (5,)]),
    ],
)
def test_tasks_are_given_for_all_suites_or_for_each(
    texts: tuple[str, ...], tasks: list[tuple[int, ...] | None]
) -> None:
    assert trials._indices(texts, num_suites=2) == tasks


def test_tasks_for_another_number_of_suites_are_refused() -> None:
    with pytest.raises(UserError, match=r"once per suite \(1 times\); found 2 times: 0 1"):
        trials._indices(("0", "1"), num_suites=1)


def test_the_name_is_one_that_the_built_in_mapping_takes() -> None:
    assert command._name("libero_spatial") == "libero_spatial_expert"
    assert command._name("libero_spatial,libero_object") == "libero_expert"
