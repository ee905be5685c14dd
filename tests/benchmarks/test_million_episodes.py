"""The datasets of many episodes whose costs are measured, and the table of them."""

import pathlib
import sys

import pytest

from benchmarks.episode_costs import CALLS
from benchmarks.episode_sets import write_episodes, write_without_records
from benchmarks.million_episodes import _ROWS, _cell, _chosen, _run, _table
from converters.verify.verifier import Verifier
from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError


@pytest.fixture(scope="module")
def dst(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A thousand episodes, of which some instructions name a soup."""
    directory = tmp_path_factory.mktemp("many") / "1000"
    write_episodes(directory, 1000)
    return directory


def test_episodes_are_a_dataset_that_verify_accepts(dst: pathlib.Path) -> None:
    dataset = open_dataset(dst)
    assert (dataset.num_episodes, dataset.num_steps) == (1000, 2000)
    assert len(set(dataset.manifest.tasks)) == 100
    assert not Verifier(dataset.directory, dataset.manifest).run().count
    assert dataset.step(999, 1)["observation"]["image_primary"].shape == (8, 8, 3)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_runs(dst: pathlib.Path, name: str) -> None:
    CALLS[name](str(dst))()


def test_rows_without_a_command_are_calls() -> None:
    assert {row.name for row in _ROWS if row.command is None} == {*CALLS}


def test_a_name_that_is_not_measured_is_an_error_before_any_set_is_written() -> None:
    assert [row.name for row in _chosen(("inspect", "report"))] == ["inspect", "report"]
    with pytest.raises(UserError, match=r"--only: expected open_dataset; .* found speed; x\. Name"):
        _chosen(("x", "inspect", "speed"))


def test_a_manifest_without_records_has_as_many_steps_as_wanted(tmp_path: pathlib.Path) -> None:
    write_without_records(tmp_path / "set", 40, 9_001)
    dataset = open_dataset(tmp_path / "set")
    assert (dataset.num_episodes, dataset.num_steps) == (40, 9_001)
    assert len(set(dataset.manifest.episode_lengths)) > 20


def test_a_process_is_measured_or_its_error_kept() -> None:
    found = _run([sys.executable, "-S", "-c", "print(sum(range(10**6)))"], 60.0)
    assert found["last_line"] == "499999500000"
    assert isinstance(found["cpu_s"], float)
    assert 0 <= found["cpu_s"] < 5
    assert _cell(found).endswith(" MB")
    failed = _run([sys.executable, "-S", "-c", "raise SystemExit('no such set')"], 60.0)
    assert failed == {"error": "no such set"}
    assert _table({"inspect": ["1 s", _cell(failed)]}, ["1,000", "10,000"]) == (
        "| CPU seconds, largest resident set | 1,000 | 10,000 |\n"
        "| --- | --- | --- |\n"
        "| inspect | 1 s | failed |\n"
    )
