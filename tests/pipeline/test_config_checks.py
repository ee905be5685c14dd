import dataclasses
import pathlib
import pickle
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.config_checks import (
    ConfigError,
    Problem,
    all_problems,
    check,
    check_positive,
    deferred,
    is_typed,
)
from pipeline.errors import UserError, nearest_name
from tests.processes import Command


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


@dataclasses.dataclass(frozen=True)
class Listing(Inner):
    names: tuple[str, ...] = ()
    pairs: tuple[tuple[str, int], ...] | None = None


def test_a_list_for_a_tuple_becomes_one_at_every_depth() -> None:
    given = ["a", "b"]
    made = Listing(names=given, pairs=[["a", 1], ("b", 2)])  # pyright: ignore[reportArgumentType]
    assert made == Listing(names=("a", "b"), pairs=(("a", 1), ("b", 2)))
    assert hash(made) == hash(Listing(names=("a", "b"), pairs=(("a", 1), ("b", 2))))
    assert given == ["a", "b"]
    with deferred():
        assert Listing(size=0, names=["a"]).names == ("a",)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class Typed(Inner):
    rate: float = 0.5
    limit: int | None = None
    name: str | None = None
    path: str | pathlib.Path = ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"size": "8"},
            "Typed, size: expected an integer; found '8'. Give one, without quotes.",
        ),
        ({"size": 8.0}, "Typed, size: expected an integer; found 8.0. "),
        ({"size": True}, "Typed, size: expected an integer; found True. "),
        ({"rate": "fast"}, "Typed, rate: expected a number; found 'fast'. "),
        ({"rate": None}, "Typed, rate: expected a number; found None. "),
        ({"limit": "1"}, "Typed, limit: expected an integer; found '1'. "),
        ({"name": pathlib.Path("x")}, "Typed, name: expected a text; found x. Give it in quotes; "),
    ],
)
def test_a_value_of_another_type_is_a_problem(wrong: dict, message: str) -> None:
    with deferred():
        config = Outer(Typed(**wrong))
    assert not is_typed(config)
    with pytest.raises(ConfigError) as caught:
        Typed(**wrong)
    assert str(caught.value).startswith(message)


def test_numbers_of_numpy_and_absent_values_have_their_types() -> None:
    config = Typed(size=np.int64(2), rate=np.float32(0.5), path=pathlib.Path("x"))
    assert is_typed(Outer(config))
    assert is_typed(Typed(rate=1, limit=3, name="n"))


def test_problems_of_nested_configs_have_the_path() -> None:
    with deferred():
        config = Outer(Inner(size=0))
    assert [problem.field for problem in all_problems(config)] == ["inner.size"]


@dataclasses.dataclass(frozen=True)
class Reading:
    inner: Inner

    def problems(self) -> Iterator[Problem]:
        yield from check_positive(self.inner, "lacking")


def test_a_check_that_fails_because_of_an_inner_problem_adds_none() -> None:
    with deferred():
        config = Reading(Inner(size=0))
    assert [problem.field for problem in all_problems(config)] == ["inner.size"]
    # Without such a problem it is a mistake in the check.
    with pytest.raises(AttributeError, match="no attribute 'lacking'"):
        all_problems(Reading(Inner()))


CHANGES = [
    ("datasets=(DatasetConfig('a', trim=3),)", "trim: expected two numbers of steps, of 0 or more"),
    ("datasets=(DatasetConfig('a', episodes=(1,)),)", "episodes: expected the first episode and"),
    ("split='test'", "DataConfig, split: expected one of 'train', 'validation', 'all'; found"),
    ("split='al'", "found 'al'. Did you mean 'all'?"),
    (
        "normalization='minmax'",
        "expected one of 'normal', 'bounds', 'quantile'; found 'minmax'.",
    ),
    (
        "observations='proprio'",
        "a tuple of str; found 'proprio'. Write observations=('proprio',).",
    ),
    (
        "datasets='x'",
        "DataConfig, datasets: expected a tuple of DatasetConfig; found 'x'. Write",
    ),
    (
        "datasets=('x',)",
        "a tuple of DatasetConfig; found ('x',). Write datasets=(DatasetConfig(",
    ),
    ("normalized=None", "no error"),
    ("normalized='x'", "DataConfig, normalized: expected a tuple of str; found 'x'."),
    ("observations=['x']", "no error"),
    ("windows=(('proprio', 1),)", "no error"),
    (
        "windows=('proprio', 1)",
        "expected a tuple of (str, int); found ('proprio', 1). Write windows=((str, int),)",
    ),
    ("windows=(('proprio', '1'),)", "of (str, int); found (('proprio', '1'),)."),
    ("windows=(('proprio',),)", "of (str, int); found (('proprio',),)."),
    ("windows={'proprio': 1}", "of (str, int); found {'proprio': 1}."),
]


@pytest.fixture(scope="module")
def found_untyped() -> dict[str, str]:
    """What each change of a config is refused with, where beartype does not refuse it first."""
    changes = [change for change, _ in CHANGES]
    lines = Command("tests.pipeline.untyped_configs", *changes).finish().stdout.splitlines()
    assert len(lines) == len(changes), lines
    return dict(zip(changes, lines, strict=True))


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_modes_and_tuples_are_checked_without_a_type_checker(
    found_untyped: dict[str, str], change: str, message: str
) -> None:
    assert message in found_untyped[change]


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
