import dataclasses
import pickle
from collections.abc import Iterator

import pytest

from pipeline.config_checks import (
    ConfigError,
    Problem,
    all_problems,
    check,
    check_positive,
    deferred,
)
from pipeline.errors import UserError, nearest_name


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        check(self)

    def problems(self) -> Iterator[Problem]:
        yield from check_positive(self, "size", "count")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner


def test_one_problem_has_the_four_parts_of_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        Inner(size=0)
    error = caught.value
    assert isinstance(error, UserError)
    assert isinstance(error, ValueError)
    assert str(error) == "Inner, size: expected at least 1; found 0. Give a whole number from 1."
    assert (error.where, error.expected, error.found) == ("Inner, size", "at least 1", "0")


def test_several_problems_are_listed_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Inner(size=0, count=-1)
    assert str(caught.value).splitlines() == [
        "Inner: expected settings that fit together; found 2 problems. Change these fields:",
        "  size: expected at least 1; found 0. Give a whole number from 1.",
        "  count: expected at least 1; found -1. Give a whole number from 1.",
    ]


def test_problems_of_nested_configs_have_the_path() -> None:
    with deferred():
        config = Outer(Inner(size=0))
    assert [problem.field for problem in all_problems(config)] == ["inner.size"]


def test_an_error_crosses_a_process_border() -> None:
    with pytest.raises(ConfigError) as caught:
        Inner(size=0)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (str(copied), copied.problems) == (str(caught.value), caught.value.problems)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("proprio", "observation/proprio"),
        ("observation/propio", "observation/proprio"),
        ("obs/proprio", "observation/proprio"),
        ("acton", "action"),
        ("something", None),
    ],
)
def test_the_nearest_name_is_found_by_its_last_part_too(name: str, nearest: str | None) -> None:
    assert nearest_name(name, ["action", "observation/proprio", "reward"]) == nearest
