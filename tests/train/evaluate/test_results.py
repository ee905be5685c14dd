import dataclasses
import json
import pathlib
import re

import pytest

from pipeline.errors import DataError, UserError
from tests.train.evaluate.fakes import trial
from train.evaluate.evaluation_page import to_page, write_report
from train.evaluate.result_tables import compare, paired_table, success_table
from train.evaluate.results import (
    Inference,
    Paired,
    Rate,
    Results,
    ResultsFile,
    Settings,
    TrialResult,
    claimed,
    read_results,
)

SETTINGS = Settings("d1", 100, "data/x", "libero_spatial", 0, 4, None, "mujoco 3.3, egl")


def result(task: int, init: int, *, success: bool = True, error: str | None = None) -> TrialResult:
    instruction = {0: "lift it", 3: "push <it>"}[task]
    return TrialResult("libero_spatial", task, instruction, init, success, 80 + init, 1.5, 0, error)


def opened(folder: pathlib.Path, settings: Settings = SETTINGS) -> ResultsFile:
    file = ResultsFile(folder, "runs/a", settings)
    file.open()
    return file


def test_results_of_a_run_whose_name_is_no_text_are_read_again(tmp_path: pathlib.Path) -> None:
    file = ResultsFile(tmp_path, "runs/a\udcff", SETTINGS)
    file.add(result(0, 1))
    file.open()
    assert read_results(tmp_path) == file.results
    assert file.results.run == "runs/a\\udcff"


def evaluated(successes: list[bool], run: str = "runs/a") -> Results:
    """Returns trials of task 0, then as many of task 3."""
    half = len(successes) // 2
    trials = [result(3 * (n // half), n % half, success=s) for n, s in enumerate(successes)]
    return Results(run, SETTINGS, None, tuple(trials))


def test_every_trial_is_on_the_disk_at_once(tmp_path: pathlib.Path) -> None:
    file = opened(tmp_path)
    file.add(result(3, 1))
    file.add(result(0, 0, success=False))
    values = json.loads((tmp_path / "results.json").read_text())
    assert [(t["task"], t["init"], t["success"]) for t in values["trials"]] == [
        (0, 0, False),
        (3, 1, True),
    ]
    assert values["trials"][0] == {
        "suite": "libero_spatial",
        "task": 0,
        "instruction": "lift it",
        "init": 0,
        "success": False,
        "steps": 80,
        "seconds": 1.5,
        "seed": 0,
        "error": None,
        "video": None,
        "is_demonstrated": None,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert read_results(tmp_path) == file.results


def test_an_evaluation_continues_and_runs_errors_again(tmp_path: pathlib.Path) -> None:
    opened(tmp_path).add(result(0, 0))
    opened(tmp_path).add(result(0, 1, success=False, error="it died"))
    again = opened(tmp_path)
    assert again.pending([trial(0), trial(1), trial(2), trial(0, task=1)]) == [
        trial(1),
        trial(2),
        trial(0, task=1),
    ]
    again.add(result(0, 1))
    assert [t.error for t in again.results.trials] == [None, None]


def test_results_of_other_settings_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    opened(tmp_path).add(result(0, 0))
    other = dataclasses.replace(SETTINGS, checkpoint="d2", execute_horizon=1)
    with pytest.raises(UserError) as refused:
        opened(tmp_path, other)
    said = str(refused.value)
    assert "expected results of runs/a, checkpoint d2, execute_horizon 1;" in said
    assert "found those of runs/a, checkpoint d1, execute_horizon 4." in said
    assert "seed" not in said


def test_corrupt_results_are_refused(tmp_path: pathlib.Path) -> None:
    opened(tmp_path).add(result(0, 0))
    path = tmp_path / "results.json"
    stored = path.read_text()
    path.write_text(stored.replace('"steps": 80', '"steps": 81'))
    with pytest.raises(DataError, match=r"expected content with the checksum .* that was written"):
        opened(tmp_path)
    # What earlier releases wrote has no checksum.
    values = {name: value for name, value in json.loads(stored).items() if name != "checksum"}
    path.write_text(json.dumps(values))
    assert read_results(tmp_path).trials == (result(0, 0),)
    path.write_text(json.dumps(values).replace('"steps": 80', '"steps": "many"'))
    with pytest.raises(DataError, match=r"trials \(1st\)\.steps"):
        opened(tmp_path)


def test_a_folder_is_one_evaluations_own(tmp_path: pathlib.Path) -> None:
    with (
        claimed(tmp_path / "new"),
        pytest.raises(UserError, match="no other evaluation running"),
        claimed(tmp_path / "new"),
    ):
        pass
    with claimed(tmp_path / "new"):
        pass


def test_an_error_counts_as_no_success() -> None:
    results = evaluated([True, True]).adding(result(3, 0, success=False, error="it died"))
    assert results.rate() == Rate(1, 2)
    assert results.rate(0) == Rate(1, 1)
    assert results.mean_steps() == 80
    assert results.mean_steps(3) is None
    assert [t.place for t in results.errors] == [(3, 0)]


def test_the_table() -> None:
    results = evaluated([True, True, True, False, False, False]).adding(
        result(3, 2, success=False, error="it died")
    )
    assert success_table(results).splitlines() == [
        "task  success  rate     95 % interval    steps  instruction",
        "0     3 of 3   100.0 %  43.9 to 100.0 %  81     lift it",
        "3     0 of 3   0.0 %    0.0 to 56.1 %    -      push <it>",
        "all   3 of 6   50.0 %   18.8 to 81.2 %   81",
        "error: libero_spatial task 3, initial state 2, counted as a failure: it died",
    ]


def test_two_policies_are_paired_by_initial_state() -> None:
    first = evaluated([True, True, True, False, True, True])
    second = evaluated([True, False, False, True, False, False], "runs/b").adding(
        result(3, 2, success=False, error="it died")
    )
    comparison = compare(first, second)
    assert comparison.tasks == {0: Paired(1, 2, 0, 0), 3: Paired(0, 1, 1, 0)}
    assert comparison.total == Paired(1, 3, 1, 0)
    assert comparison.p_value == 0.625
    assert comparison.num_unpaired == 1
    assert paired_table(comparison).splitlines()[2:] == [
        "3     2      0     1           1            0",
        "all   5      1     3           1            0",
        "McNemar's exact test: p = 0.625; only the first policy succeeded at 3 trials, only the "
        "second at 1.",
    ]


def test_the_page_tells_what_the_table_tells(tmp_path: pathlib.Path) -> None:
    inference = Inference(120, 4, 8.25, 7.5, 9.9, "cpu")
    first = dataclasses.replace(
        evaluated([True, True, True, False]), inference=inference, run="runs/<a>"
    )
    video = dataclasses.replace(first.trials[0], video="videos/libero_spatial-0-00-success.mp4")
    second = evaluated([True, False, False, False], "runs/b")
    policies = [(tmp_path, first.adding(video)), (tmp_path / "compared", second)]
    page = to_page(policies, compare(first, second))
    text = re.sub(r"<[^>]+>", "|", page)
    for expected in ("75.0 %", "30.1 to 95.4 %", "3 of 4", "7.5 ms", "push &lt;it&gt;", "p = 0.5"):
        assert expected in text
    assert "runs/&lt;a&gt;" in page
    assert "<a>" not in page
    assert 'href="videos/libero_spatial-0-00-success.mp4"' in page
    assert "http" not in re.sub(r"data:[^\"]+", "", page)
    assert page.count("<svg") == 1
    assert (
        page.count('<path class="train dots"') == page.count('<path class="validation dots"') == 1
    )
    assert write_report(policies[:1], None).read_text() == to_page(policies[:1], None)
    assert "Comparison" not in to_page(policies[:1], None)
