"""Episodes are excluded, declared as failed, and given instructions of their own."""

import json
import pathlib
import re
import shutil
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from etils import epath

from converters import edit as command
from converters.edit_episodes import parse_episodes
from converters.edit_notes import edits
from converters.export import rlds_export as export
from converters.job.convert import convert
from converters.sources.open_source import open_source
from converters.verify import __main__ as verify
from pipeline.data import statistics as stats
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError, UserError
from pipeline.inspection import __main__ as inspect
from tests.converters.kill_moments import kill_before_change
from tests.file_checksums import contents
from tests.processes import Command

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def source(toy: Any, tmp_path: pathlib.Path) -> Any:
    return toy.open(tmp_path / "source")


@pytest.fixture
def out(toy: Any, source: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    """The toy, converted: four episodes of three steps in two shards, of one task."""
    convert(source, tmp_path / "out", toy.mapping)
    return tmp_path / "out"


def actions(dataset: Dataset, *episodes: int) -> np.ndarray:
    return np.concatenate([dataset.episode(e, ["action"])["action"] for e in episodes])


def test_an_excluded_episode_leaves_the_statistics_and_comes_back(
    out: pathlib.Path, source: Any, run: Run
) -> None:
    before = contents(out)
    code, lines, _ = run(out, "--exclude", "1,3")
    dataset = open_dataset(str(out))
    day = dataset.manifest.provenance["edit_1"][:10]
    assert (code, lines) == (
        0,
        [
            f'{out}: {day} excluded_episodes: "none" -> "1,3"',
            f"{out}: 2 of 4 episodes, 6 steps, are used, without 1,3; statistics computed again",
        ],
    )
    assert dataset.kept_episodes.tolist() == [0, 2]
    assert dataset.statistics["action"].to_json() == stats.compute(actions(dataset, 0, 2)).to_json()
    assert "4 episodes, 12 steps at 10 Hz; excluded: 1,3 (" in str(dataset)
    # The records of an excluded episode can still be read.
    assert dataset.episode(1, ["action"])["action"].shape == (3, 2)
    # One file of statistics at any time, and no shard that changed.
    after = contents(out)
    assert set(before) - set(after) == {"statistics.json"}
    assert set(after) - set(before) == {dataset.manifest.statistics_name}
    assert {n for n in before if before[n] != after.get(n)} == {"dataset.json", "statistics.json"}
    lines = run(source.directory, out, module=verify)[1]
    assert "excluded, and not in the statistics: 1,3; compared too" in lines
    assert run(out, "--include", "1", "--exclude", "0")[0] == 0
    assert open_dataset(str(out)).kept_episodes.tolist() == [1, 2]
    assert run(out, "--include", "0-3")[1][-1] == (
        f"{out}: all 4 episodes are used; statistics computed again"
    )
    back = contents(out)
    assert back.pop("dataset.json") != before.pop("dataset.json")
    assert back == before
    unchanged = f"{out}: unchanged; it has checksums and hashes of its actions"
    assert run(out, "--include", "0-3") == (0, [unchanged], [])


def test_a_conversion_in_its_place_would_lose_the_edits(
    out: pathlib.Path, source: Any, toy: Any, run: Run
) -> None:
    assert run(out, "--exclude", "2")[0] == 0
    with pytest.raises(UserError, match="--overwrite, which loses what `octograin edit` changed"):
        convert(source, out, toy.mapping)


def test_the_digest_of_the_data_stays_and_that_of_the_dataset_changes(
    out: pathlib.Path, run: Run
) -> None:
    before = load_manifest(epath.Path(out))
    run(out, "--exclude", "2")
    after = load_manifest(epath.Path(out))
    assert after.data_digest() == before.data_digest()
    assert after.digest() != before.digest()
    run(out, "--include", "2", "--failed", "0")
    assert load_manifest(epath.Path(out)).digest() == before.digest()


def test_an_episode_that_cannot_be_read_is_excluded(out: pathlib.Path, run: Run) -> None:
    manifest = load_manifest(epath.Path(out))
    (shard, _) = manifest.shards["episodes"]
    path, (last,) = out / shard.file, actions(open_dataset(str(out)), 1)[-1:]
    data = path.read_bytes()
    assert data.count(last.tobytes()) == 1
    path.write_bytes(data.replace(last.tobytes(), bytes(8)))
    before = contents(out)
    code, _, errors = run(out, "--exclude", "0")
    assert code == 2
    assert "record 1" in errors[0]
    assert "Nothing was changed: episode 1 has to be excluded." in errors[0]
    assert contents(out) == before
    assert run(out, "--exclude", "0,1")[0] == 0
    dataset = open_dataset(str(out))
    assert dataset.statistics["action"].count == 6


REFUSED = {
    "only spaces": (["--instruction_of", "1", "  "], "expected an instruction.*; found '  '"),
    "no numbers": (["--exclude", "one"], "--exclude one: expected episodes from 0 to 3.*found one"),
    "beyond the last": (["--exclude", "2-4"], "episodes from 0 to 3, such as 3,7-9; found 2-4"),
    "backwards": (["--include", "3-1"], "found 3-1. Separate"),
    "an empty part": (["--failed", "1,,2"], "--failed 1,,2: expected .*found nothing"),
    "none left": (["--exclude", "0-3"], "at least one episode that is left; found all 4 excluded"),
    "both": (["--exclude", "1-3", "--include", "3"], "different episodes; found 3. Name each"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_list_that_does_not_fit_changes_nothing(out: pathlib.Path, run: Run, kind: str) -> None:
    flags, message = REFUSED[kind]
    before = contents(out)
    code, lines, errors = run(out, *flags)
    assert (code, lines, len(errors)) == (2, [], 1)
    assert re.search(message, errors[0])
    assert contents(out) == before


def test_lists_of_episodes() -> None:
    assert parse_episodes("3, 7-9,8", "", 10) == {3, 7, 8, 9}
    assert parse_episodes("0", "", 1) == {0}


def test_a_kill_leaves_the_old_or_the_new(out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    found: list[tuple[int, ...]] = []
    for number in range(20):
        copy = pathlib.Path(shutil.copytree(out, tmp_path / f"copy{number}"))
        job = Command(
            *("converters.edit", copy, "--exclude", "1"),
            env={"KILL_BEFORE": str(number)},
            before=kill_before_change,
        )
        code = job.wait().returncode
        # Opens with the statistics of its episodes.
        dataset = open_dataset(str(copy))
        kept = dataset.kept_episodes.tolist()
        expected = stats.compute(actions(dataset, *kept)).to_json()
        assert dataset.statistics["action"].to_json() == expected
        found.append(dataset.manifest.excluded_episodes)
        # The next edit removes what is left of the killed one.
        command.edit(command.Args(str(copy), exclude="1"))
        names = {path.name for path in copy.iterdir() if not path.name.startswith("..")}
        manifest = load_manifest(epath.Path(copy))
        assert names == {"dataset.json", manifest.statistics_name, "episodes", "steps"}
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert found == sorted(found)
    assert set(found) == {(), (1,)}
    assert len(found) > 6


def test_lists_that_contradict_the_manifest_do_not_open(
    out: pathlib.Path, run: Run, reseal: Any
) -> None:
    whole = (out / "dataset.json").read_text()
    for change, message in (
        (
            {"excluded_episodes": [4]},
            r"excluded_episodes: expected ascending .* 0 to 3; found \[4\]",
        ),
        ({"excluded_episodes": [2, 1]}, r"found \[2, 1\]"),
        ({"excluded_episodes": [0, 1, 2, 3]}, "at least one episode that is left; found all 4"),
        ({"failed_episodes": [1, 1]}, r"failed_episodes: expected ascending"),
    ):
        (out / "dataset.json").write_text(json.dumps(json.loads(whole) | change))
        reseal(out)
        with pytest.raises(DataError, match=message):
            open_dataset(str(out))


# --- what the other commands make of it


def test_an_export_leaves_it_out_and_converts_to_what_is_left(
    out: pathlib.Path, toy: Any, run: Run, tmp_path: pathlib.Path
) -> None:
    # The whole second shard, and one episode of the first.
    run(out, "--exclude", "0,2,3")
    code, lines, _ = run(out, tmp_path / "rlds", module=export)
    assert code == 0
    assert lines[0].startswith("1 episodes, 3 steps, ")
    assert lines[0].endswith(" MB/s; excluded: 0,2-3")
    convert(open_source(str(tmp_path / "rlds")), tmp_path / "again", toy.mapping)
    again, before = open_dataset(str(tmp_path / "again")), open_dataset(str(out))
    assert again.num_episodes == 1
    np.testing.assert_array_equal(actions(again, 0), actions(before, 1))
    assert again.statistics["action"].to_json() == before.statistics["action"].to_json()


def test_inspect_lists_it(out: pathlib.Path, run: Run) -> None:
    run(out, "--exclude", "1-2", "--failed", "3")
    module = inspect
    lines = run(out, module=module)[1]
    assert any("1-2: 2 episodes, 6 steps, not used and not in the stat" in line for line in lines)
    assert any("failed" in line and "3: 1 episode" in line for line in lines)
    assert "Statistics over 6 steps" in lines
    values = json.loads("\n".join(run(out, "--json", module=module)[1]))
    assert (values["excluded_episodes"], values["failed_episodes"]) == ([1, 2], [3])
    assert any("not used" in line for line in run(out, "--episode", "2", module=module)[1])


# --- instructions and success of single episodes


def test_an_episode_gets_an_instruction_of_its_own(
    out: pathlib.Path, source: Any, run: Run
) -> None:
    code, lines, _ = run(
        *(out, "--instruction_of", "1,3", "open the drawer"),
        *("--instruction_of", "3", "close it"),
        *("--instruction", "lift the cup", "lift it"),
    )
    assert code == 0
    manifest = load_manifest(epath.Path(out))
    assert manifest.tasks == ("lift it", "open the drawer", "close it")
    assert manifest.episode_tasks == (0, 1, 0, 2)
    assert manifest.removed_steps == (0, 0, 0)
    made = [(edit.field, edit.before, edit.after) for edit in edits(manifest)]
    # `--instruction` comes first.
    assert made == [
        ("instruction", "lift the cup", "lift it"),
        ("instruction[1,3]", "lift it", "open the drawer"),
        ("instruction[3]", "open the drawer", "close it"),
    ]
    assert lines[1].endswith('instruction[1,3]: "lift it" -> "open the drawer"')
    code, lines, _ = run(source.directory, out, module=verify)
    assert (code, lines[0]) == (0, "4 episodes, 12 steps, 3 tasks: as in the source")
    # Two tasks become one, and the other is gone.
    assert run(out, "--instruction_of", "3", "open the drawer")[0] == 0
    assert load_manifest(epath.Path(out)).tasks == ("lift it", "open the drawer")
    assert run(source.directory, out, module=verify)[0] == 0


def test_an_edit_that_is_not_noted_is_found(
    out: pathlib.Path, source: Any, run: Run, reseal: Any
) -> None:
    run(out, "--instruction_of", "1", "open the drawer")
    manifest = json.loads((out / "dataset.json").read_text())
    manifest["episode_tasks"] = [0, 1, 1, 0]
    (out / "dataset.json").write_text(json.dumps(manifest))
    reseal(out)
    code, _, errors = run(source.directory, out, module=verify)
    assert code == 2
    assert "task of episode 2, step 0: expected 'lift the cup'" in errors[0]


def test_an_episode_with_several_instructions_is_refused(
    out: pathlib.Path, run: Run, reseal: Any
) -> None:
    manifest = json.loads((out / "dataset.json").read_text())
    manifest |= {"tasks": ["a", "b"], "removed_steps": [0, 0]}
    manifest["task_changes"] = [{"episode": 2, "step": 1, "task": 1}]
    (out / "dataset.json").write_text(json.dumps(manifest))
    reseal(out)
    code, _, errors = run(out, "--instruction_of", "1-2", "c")
    assert code == 2
    assert "expected episodes with one instruction each; found several in 2. Correct" in errors[0]


def test_failures_are_declared(out: pathlib.Path, run: Run) -> None:
    assert load_manifest(epath.Path(out)).failed_episodes is None
    for value, expected, note in (
        ("1,2", (1, 2), '"unknown" -> "1-2"'),
        ("none", (), '"1-2" -> "none"'),
        ("unknown", None, '"none" -> "unknown"'),
    ):
        code, lines, _ = run(out, "--failed", value)
        assert (code, lines[0].endswith(f" failed_episodes: {note}")) == (0, True)
        assert load_manifest(epath.Path(out)).failed_episodes == expected
