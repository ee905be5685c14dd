import dataclasses
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline import inspect
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.inspect import (
    DimRange,
    LengthSummary,
    Summary,
    locate_records,
    summarize,
    summarize_episode,
    to_json,
    to_text,
)
from pipeline.manifest import Shard
from pipeline.schema import EPISODES

BOWL = "pick up the black bowl between the plate and the ramekin and place it on the plate"
SOUP = "pick up the alphabet soup and place it in the basket"


def plain(width: int = 120) -> Console:
    return Console(force_terminal=False, width=width, highlight=False, markup=False, emoji=False)


@pytest.fixture(scope="module")
def summary(mini_dataset: pathlib.Path) -> Summary:
    return summarize(open_dataset(str(mini_dataset)))


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Runs the command line in this process: (stdout, stderr)."""

    def call(*args: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, args)])
        inspect.main()
        captured = capsys.readouterr()
        return captured.out, captured.err

    return call


def test_lengths_and_columns_are_those_of_the_manifest(
    summary: Summary, mini_dataset: pathlib.Path
) -> None:
    assert summary.lengths == LengthSummary(episodes=4, min=102, median=114.5, max=124, total=455)
    assert [(c.name, c.per, c.records, c.shards) for c in summary.columns] == [
        ("episodes", "episode", 4, 2),
        ("steps", "step", 455, 2),
        ("vggt_tokens", "step", 455, 2),
    ]
    for column in summary.columns:
        files = (mini_dataset / column.name).iterdir()
        assert column.num_bytes == sum(file.stat().st_size for file in files)
        assert column.bytes_per_step == column.num_bytes / 455


def test_features_have_both_types_and_the_bytes_of_a_step(summary: Summary) -> None:
    features = {feature.key: feature for feature in summary.features}
    tokens = features["observation/vggt_tokens"]
    assert (tokens.dtype, tokens.shape, tokens.bytes_per_step) == ("float16", (21, 64), 2688)
    assert features["observation/image_primary"].bytes_per_step is None
    assert features["source_id"].batch_dtype is None
    assert features["action"].dims[3] == "drx"


def test_tasks_count_their_episodes_and_steps(summary: Summary) -> None:
    rows = [(t.index, t.text, t.episodes, t.steps, t.removed_steps) for t in summary.tasks]
    assert rows == [(0, BOWL, 2, 208, 0), (1, SOUP, 2, 247, 0)]


def test_a_step_counts_for_the_instruction_that_holds_at_it(
    copied: pathlib.Path, edit_json: Callable[..., None]
) -> None:
    changes = [{"episode": 0, "step": 40, "task": 1}, {"episode": 0, "step": 70, "task": 0}]
    edit_json(
        copied / "dataset.json",
        lambda d: d.update(task_changes=changes, removed_steps=[7, 0]),
    )
    dataset = open_dataset(str(copied))
    summary = summarize(dataset)
    assert [(t.episodes, t.steps, t.removed_steps) for t in summary.tasks] == [
        (2, 178, 7),
        (3, 277, 0),
    ]
    assert [(t.step, t.index, t.text) for t in summarize_episode(dataset, 0).tasks] == [
        (0, 0, BOWL),
        (40, 1, SOUP),
        (70, 0, BOWL),
    ]
    assert "no-ops removed" in to_text(summary, plain())


def test_statistics_stand_beside_the_names_of_their_dimensions(
    summary: Summary, mini_dataset: pathlib.Path
) -> None:
    stored = json.loads((mini_dataset / "statistics.json").read_text())["action"]
    dims = summary.statistics["action"]
    assert [dim.dim for dim in dims] == ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
    for name in ("mean", "std", "min", "p01", "p99", "max"):
        assert [getattr(dim, name) for dim in dims] == stored[name]
    assert [dim.dim for dim in summary.statistics["reward"]] == [""]


def test_episode_names_its_source_records_and_values(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    summary = summarize_episode(dataset, 3)
    assert (summary.steps, summary.duration_s, summary.first_step) == (106, 106 / 20, 349)
    assert summary.source_id
    assert [(r.column, r.file, r.first, r.last) for r in summary.records] == [
        ("episodes", "episodes/00001-of-00002.arrayrecord", 1, 1),
        ("steps", "steps/00001-of-00002.arrayrecord", 123, 228),
        ("vggt_tokens", "vggt_tokens/00001-of-00002.arrayrecord", 123, 228),
    ]
    action = np.asarray(dataset.columns[EPISODES].read(3)["action"])[:, 2].tolist()
    expected = DimRange("dz", action[0], action[-1], min(action), max(action))
    assert summary.values["action"][2] == expected
    (is_last,) = summary.values["is_last"]
    assert dataclasses.asdict(is_last) == {
        "dim": "",
        "first": False,
        "last": True,
        "min": False,
        "max": True,
    }


@pytest.mark.parametrize("episode", [-1, 4])
def test_missing_episode_names_the_range(mini_dataset: pathlib.Path, episode: int) -> None:
    message = f"--episode: expected a whole number from 0 to 3; found {episode}.*4 episodes"
    with pytest.raises(UserError, match=message):
        summarize_episode(open_dataset(str(mini_dataset)), episode)


@pytest.mark.parametrize(
    ("first", "count", "places"),
    [
        (0, 4, [("a", 0, 3)]),
        (3, 7, [("a", 3, 3), ("b", 0, 4), ("c", 0, 0)]),
        (13, 1, [("c", 4, 4)]),
    ],
)
def test_records_may_lie_in_several_shards(
    first: int, count: int, places: list[tuple[str, int, int]]
) -> None:
    shards = [Shard(name, records, 0, "") for name, records in (("a", 4), ("b", 5), ("c", 5))]
    assert locate_records(shards, first, count) == places


def test_text_shows_every_part_without_colour(summary: Summary) -> None:
    text = to_text(summary, plain())
    assert "\x1b" not in text
    assert "4 episodes, 455 steps, 2 tasks, 8.1 MB" in text
    assert re.search(r"vggt_tokens +step +455 +2 +1\.4 +3,169 ", text)
    assert re.search(r"action +episodes +float32 +float32 +7 +28 ", text)
    assert re.search(rf"0 +2 +208 +{BOWL}", text)
    assert re.search(r"steps +102 +114\.5 +124 +455", text)
    assert re.search(r"rx_rad +3\.1381 +0\.0096 +3\.1157 +3\.1167 +3\.1570 +3\.1584", text)
    assert re.search(r"gripper dim +6 \(gripper\)", text)
    assert "control frequency   20 Hz" in text


@pytest.mark.parametrize("width", [100, 120, 200])
def test_lines_fit_and_no_cell_is_cut_off(summary: Summary, width: int) -> None:
    text = to_text(summary, plain(width))
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    features = text[text.index("Features") : text.index("Tasks")]
    words = set(text.split())
    assert {f.key for f in summary.features} <= words
    assert {dim for f in summary.features for dim in f.dims} <= set(features.split())
    assert set(f"{BOWL} {SOUP} {summary.columns[2].licence}".split()) <= words


def test_json_has_the_numbers_and_the_same_keys(
    run: Callable[..., tuple[str, str]], summary: Summary, mini_dataset: pathlib.Path
) -> None:
    out, err = run(mini_dataset, "--json")
    values = json.loads(out)
    assert err == ""
    assert out == to_json(summary)
    assert list(values) == [
        "path",
        "name",
        "format_version",
        "schema_hash",
        "provenance",
        "conventions",
        "lengths",
        "columns",
        "features",
        "tasks",
        "statistics",
    ]
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
    def damage(values: dict[str, Any]) -> None:
        values["reward"]["std"] = [float("nan")]

    edit_json(copied / "statistics.json", damage)
    text = to_json(summarize(open_dataset(str(copied))))
    assert json.loads(text)["statistics"]["reward"][0]["std"] is None


def test_text_of_an_episode(
    run: Callable[..., tuple[str, str]], mini_dataset: pathlib.Path
) -> None:
    out, _ = run(mini_dataset, "--episode", 1)
    assert "libero_mini, episode 1\nof 4 episodes\n" in out
    assert re.search(r"length +124 steps, 6\.2 s", out)
    assert re.search(r"steps of the dataset +102 to 225", out)
    assert re.search(r"steps/00000-of-00002\.arrayrecord +102 +225", out)
    assert re.search(r"is_last +false +true +false +true", out)


def test_picture_is_written_and_named_on_stderr(
    run: Callable[..., tuple[str, str]], mini_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out, err = run(mini_dataset, "--json", "--plot", tmp_path / "out.png")
    assert json.loads(out)["name"] == "libero_mini"
    assert err == f"picture: {tmp_path / 'out.png'}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("missing",), "missing: expected a dataset directory .* found no such directory"),
        (("{}", "--episode", "9"), "--episode: expected a whole number from 0 to 3; found 9"),
        (("{}", "--plot", "out.jpg"), "--plot out.jpg: expected a file that ends in .png"),
        (("{}", "--plot", "no/out.png"), "--plot no/out.png: expected a folder that exists"),
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


def test_module_runs_as_a_command_and_leaves_matplotlib_alone(mini_dataset: pathlib.Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['inspect', sys.argv[1]];"
        "runpy.run_module('pipeline.inspect', run_name='__main__');"
        "sys.exit('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, mini_dataset],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("libero_mini\n")
