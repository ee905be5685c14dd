import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from etils import epath

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.inspection.__main__ import main, to_json
from pipeline.inspection.dataset_summary import summarize
from tests.small_dataset import write_dataset

SOUP = "pick up the alphabet soup and place it in the basket"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A dataset whose figure has one panel."""
    return write_dataset(tmp_path_factory.mktemp("plot") / "small", {"action": (1,)})


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Runs the command line in this process: (stdout, stderr)."""

    def call(*args: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, args)])
        main()
        captured = capsys.readouterr()
        return captured.out, captured.err

    return call


def test_json_has_the_numbers_and_the_same_keys(
    run: Callable[..., tuple[str, str]], mini_dataset: pathlib.Path
) -> None:
    out, err = run(mini_dataset, "--json")
    values = json.loads(out)
    assert err == ""
    assert out == to_json(summarize(open_dataset(str(mini_dataset))))
    assert list(values) == [
        "path",
        "name",
        "format_version",
        "schema_hash",
        "provenance",
        "conventions",
        "lengths",
        "excluded_episodes",
        "kept_steps",
        "failed_episodes",
        "columns",
        "features",
        "tasks",
        "statistics",
        "depth",
        "hub",
    ]
    assert values["hub"] is None
    assert values["lengths"]["median"] == 114.5
    assert values["features"][0]["shape"] == [7]
    assert values["conventions"]["gripper_dim"] == 6


def test_json_of_an_episode_has_true_and_false(
    run: Callable[..., tuple[str, str]], mini_dataset: pathlib.Path
) -> None:
    values = json.loads(run(mini_dataset, "--json", "--episode", 1)[0])
    assert (values["episode"], values["episodes"], values["steps"]) == (1, 4, 124)
    assert values["values"]["is_first"][0]["first"] is True
    assert values["tasks"] == [{"step": 0, "index": 1, "text": SOUP}]


def test_number_that_is_not_finite_is_null_in_json(
    copied: pathlib.Path, edit_json: Callable[..., None]
) -> None:
    def corrupt(values: dict[str, Any]) -> None:
        values["reward"]["std"] = [float("nan")]

    edit_json(copied / "statistics.json", corrupt)
    text = to_json(summarize(open_dataset(str(copied))))
    assert json.loads(text)["statistics"]["reward"][0]["std"] is None


def test_figure_is_written_and_named_on_stderr(
    run: Callable[..., tuple[str, str]], small: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out, err = run(small, "--json", "--plot", tmp_path / "out.png")
    assert json.loads(out)["name"] == "small"
    assert err == f"figure: {tmp_path / 'out.png'}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("missing",), "missing: expected a dataset directory .* found no such directory"),
        (("{}", "--episode", "9"), "--episode: expected a whole number from 0 to 3; found 9"),
        (
            ("{}", "--plot", "out.jpg"),
            "--plot out.jpg: expected a file that ends in .png, .* found .jpg",
        ),
        (("{}", "--plot", "out"), "--plot out: expected a file that ends in .png, .* no suffix"),
        (("{}", "--plot", "no/out.png"), "--plot no/out.png: expected .* found no folder no"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    args: tuple[str, ...],
    message: str,
    run: Callable[..., tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
    mini_dataset: pathlib.Path,
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*(arg.format(mini_dataset) for arg in args))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"error: {message}.*\n", captured.err)


def test_failed_write_is_one_line_and_keeps_the_figure_of_before(
    run: Callable[..., tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
    small: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(SystemExit):
        run(small, "--plot", target)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(
        r"error: --plot .*: expected a file that can be written; found No space left.*\n",
        captured.err,
    )
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_object_store_is_refused(
    run: Callable[..., tuple[str, str]], object_store: epath.Path
) -> None:
    with pytest.raises(UserError, match=r"s3://bucket/out: .*found an object store\. Copy the"):
        run(object_store / "out", "--debug")


def test_the_address_of_a_policy_is_no_dataset(run: Callable[..., tuple[str, str]]) -> None:
    with pytest.raises(
        UserError, match=r"address of a policy\. Write hf://datasets/owner/name@v1 if it is a d"
    ):
        run("hf://owner/name@v1", "--debug")


def test_folder_that_is_read_only_is_one_line(
    run: Callable[..., tuple[str, str]],
    tmp_path: pathlib.Path,
    as_nobody: Callable[[], AbstractContextManager[None]],
) -> None:
    dataset = write_dataset(tmp_path / "small", {"action": (1,)})
    folder = tmp_path / "locked"
    folder.mkdir(0o555)
    plot = folder / "out.png"
    message = r"expected a file that can be written; found .*Permission denied"
    with as_nobody(), pytest.raises(UserError, match=message):
        run(dataset, "--debug", "--plot", plot)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("corrupt", "found"),
    [
        (pathlib.Path.unlink, "no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes"),
    ],
)
@pytest.mark.parametrize("args", [(), ("--json",), ("--episode", 0), ("--plot", "out.png")])
def test_missing_or_truncated_shard_is_one_line(
    corrupt: Callable[[pathlib.Path], object],
    found: str,
    args: tuple[object, ...],
    run: Callable[..., tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
    copied: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(copied.parent)
    corrupt(copied / "steps" / "00000-of-00002.arrayrecord")
    with pytest.raises(SystemExit) as caught:
        run(copied, *args)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = rf"error: .*00000-of-00002.arrayrecord, column steps: expected .*; found .*{found}.*\n"
    assert re.fullmatch(line, captured.err)


def test_shard_with_corrupt_bytes_is_one_line(
    run: Callable[..., tuple[str, str]], copied: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shard = copied / "steps" / "00000-of-00002.arrayrecord"
    shard.write_bytes(bytes(shard.stat().st_size))
    assert run(copied)[0].startswith("libero_mini\n")
    with pytest.raises(UserError, match=r"00000-of-00002.arrayrecord.*expected 226 records"):
        run(copied, "--debug", "--plot", tmp_path / "out.png")


def test_module_runs_as_a_command_and_leaves_matplotlib_alone(mini_dataset: pathlib.Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['inspect', sys.argv[1]];"
        "runpy.run_module('pipeline.inspection', run_name='__main__');"
        "sys.exit('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, mini_dataset],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[3],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("libero_mini\n")
