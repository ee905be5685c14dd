"""`benchmarks.policy_trials`: rates and pairs of trials, and that docs/results.md has them all."""

import dataclasses
import pathlib
import re
from typing import Any

import pytest

from benchmarks.policy_trials import (
    HALF,
    WHOLE,
    Row,
    delay_table,
    evaluated,
    paired_table,
    rate_table,
    read_rows,
    tables,
    write_rows,
)
from train.evaluate.results import ResultsFile, Settings, TrialResult

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results.md"


def _rows(policy: str, condition: str, successes: str) -> list[Row]:
    return [Row(policy, condition, "s", 2, init, int(s), 90) for init, s in enumerate(successes)]


def test_each_policy_and_condition_has_its_rate_and_interval() -> None:
    rows = [*_rows("default", WHOLE, "1110"), *_rows("default", "camera=5", "0000")]
    rows.append(Row("default", WHOLE, "t", 0, 0, 1, 80))
    assert rate_table(rows)[2:] == [
        "| default | whole chunks | 3 of 4 | 1 of 1 | 4 of 5 | 38 to 96 % |",
        "| default | camera=5 | 0 of 4 |  | 0 of 4 | 0 to 49 % |",
    ]


def test_policies_are_paired_by_initial_state() -> None:
    rows = [*_rows("default", "c", "111111"), *_rows("other", "c", "100000"), *_rows("b", "d", "1")]
    assert paired_table(rows, "default", "other")[2:] == ["| c | 6 | 1 | 5 | 0 | 0 | 0.062 |"]
    assert paired_table(rows, "default", "b")[2:] == []


def test_a_delay_is_paired_with_the_same_policy_without_it() -> None:
    rows = [*_rows("a", HALF, "1110"), *_rows("a", "delay=4 naive_async", "1001")]
    rows += _rows("b", HALF, "1111")
    assert delay_table(rows)[2:] == ["| a | 4 naive_async | 4 | 1 | 2 | 1 | 0 | 1 |"]


def test_rates_are_grouped_by_what_was_changed() -> None:
    rows = [
        *_rows("a", "delay=4", "1"),
        *_rows("a", WHOLE, "1"),
        *_rows("a", "camera=5", "1"),
    ]
    assert [table[2].split(" | ")[1] for table in tables(rows)[:3]] == [
        WHOLE,
        "camera=5",
        "delay=4",
    ]


def test_rows_are_written_and_read(tmp_path: pathlib.Path) -> None:
    rows = [*_rows("default", WHOLE, "10"), *_rows("other", "camera=5 and light", "01")]
    write_rows(rows, tmp_path / "trials.csv")
    assert read_rows(tmp_path / "trials.csv") == rows


@pytest.mark.parametrize(
    "changed", [{"error": "lost"}, {"is_demonstrated": True}, {"is_demonstrated": None}]
)
def test_trials_that_say_nothing_are_refused(
    tmp_path: pathlib.Path, changed: dict[str, Any]
) -> None:
    held_out = TrialResult(
        suite="s",
        task=2,
        instruction="lift",
        init=40,
        success=True,
        steps=90,
        seconds=1.0,
        seed=0,
        is_demonstrated=False,
    )
    file = ResultsFile(tmp_path, "run", Settings("0", 1, "d", "s", 0, 4, None, "sim"))
    file.add(held_out)
    assert evaluated("p", "c", [tmp_path]) == [Row("p", "c", "s", 2, 40, 1, 90)]
    file.add(dataclasses.replace(held_out, init=41, **changed))
    with pytest.raises(ValueError, match="no held-out trial that ended"):
        evaluated("p", "c", [tmp_path])


def test_the_results_have_the_tables_of_all_trials() -> None:
    text = RESULTS.read_text().splitlines()
    lines = [line for table in tables(read_rows()) for line in table]
    assert len(lines) > 3
    assert [line for line in lines if line not in text] == []
    # And no rate that no trial is behind.
    rates = [line for line in text if re.match(r"\| [\w, ]+ \| .*\d+ to \d+ % \|$", line)]
    assert rates == [line for table in tables(read_rows())[:3] for line in table[2:]]
