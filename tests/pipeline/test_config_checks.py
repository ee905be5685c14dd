import dataclasses
import pathlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

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
from pipeline.files import dump_json, from_json_text, to_json_values
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


class Unchecked(Protocol):
    def draw(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Fitting:
    low: int
    high: int
    step: int

    def __post_init__(self) -> None:
        check(self)

    def problems(self) -> Iterator[Problem]:
        yield from check_positive(self, "step")
        if self.low >= self.high:
            yield Problem("high", f"more than low, {self.low}", self.high, "Raise it.")


@dataclasses.dataclass(frozen=True)
class Typed(Inner):
    rate: float = 0.5
    limit: int | None = None
    name: str | None = None
    path: str | pathlib.Path = ""
    is_on: bool = False
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    inner: Inner = Inner()
    pair: tuple[int, str] = (0, "")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A class of one's own, with types that are not checked here, or cannot be."""

    draw: Callable[[int], float] = float
    unchecked: Unchecked | None = None
    anything: Any = None
    kinds: list[int] = dataclasses.field(default_factory=list)
    where: ClassVar[int] = 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"size": "8"},
            "Typed, size: expected an integer; found '8'. Give one, without quotes or a decimal p",
        ),
        ({"size": 8.0}, "Typed, size: expected an integer; found 8.0. "),
        ({"size": True}, "Typed, size: expected an integer; found True. "),
        ({"rate": "fast"}, "Typed, rate: expected a number; found 'fast'. "),
        ({"rate": None}, "Typed, rate: expected a number; found None. "),
        ({"limit": "1"}, "Typed, limit: expected an integer, or None; found '1'. "),
        ({"name": pathlib.Path("x")}, "found PosixPath('x'). Give it in quotes; str() makes a te"),
        (
            {"is_on": 1},
            "Typed, is_on: expected True or False; found 1. Give one of them, without q",
        ),
        ({"path": 3}, "path: expected a text or an instance of Path; found 3. Give one of them."),
        ({"scales": {"x": "2"}}, "Typed, scales.x: expected a number; found '2'. Give one"),
        ({"scales": {3: 2.0}}, "Typed, scales, the key 3: expected a text; found 3. Give it"),
        ({"scales": ()}, "scales: expected a dictionary of str to float; found (). Write scales="),
        ({"inner": None}, "inner: expected an instance of Inner; found None. Write Inner(...)."),
        ({"inner": Inner}, "found the class Inner. Write Inner(...)."),
        ({"inner": Drawn()}, "found an instance of Drawn. Write Inner(...)."),
        ({"pair": 3}, "Typed, pair: expected a tuple (int, str); found 3. Write pair=(int, str)."),
        ({"pair": (1,)}, "Typed, pair: expected a tuple (int, str); found (1,). Write pair="),
        ({"pair": ("a", "b")}, "Typed, pair.0: expected an integer; found 'a'. Give one"),
    ],
)
def test_a_value_of_another_type_is_a_problem(wrong: dict, message: str) -> None:
    with deferred():
        config = Outer(Typed(**wrong))
    assert not is_typed(config)
    with pytest.raises(ConfigError) as caught:
        Typed(**wrong)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_become_what_json_would_give() -> None:
    yes = np.bool_(1)
    config = Typed(np.int64(2), rate=np.float32(0.5), is_on=yes, pair=[np.int8(1), "x"])  # pyright: ignore[reportArgumentType]
    assert config == Typed(size=2, rate=0.5, is_on=True, pair=(1, "x"))
    kinds = {name: type(value) for name, value in vars(config).items()}
    assert (kinds["size"], kinds["rate"], kinds["is_on"]) == (int, float, bool)
    assert type(config.pair[0]) is int
    assert type(Typed(rate=1).rate) is float
    assert from_json_text(Typed, dump_json(to_json_values(config)), where="", remedy="") == config


def test_types_that_are_not_known_fit_all_values() -> None:
    assert is_typed(Drawn(draw=len, unchecked=3, anything=object()))  # pyright: ignore[reportArgumentType]
    assert not is_typed(Drawn(draw=3))  # pyright: ignore[reportArgumentType]
    assert not is_typed(Drawn(kinds=3))  # pyright: ignore[reportArgumentType]
    assert not is_typed((Drawn(kinds=3),))  # pyright: ignore[reportArgumentType]


def test_a_value_of_another_type_hides_no_other_problem_and_adds_none() -> None:
    with pytest.raises(ConfigError) as caught:
        Typed(size="8", count=0)  # pyright: ignore[reportArgumentType]
    assert [problem.field for problem in caught.value.problems] == ["size", "count"]
    with pytest.raises(ConfigError) as caught:
        Fitting(low="1", high=0, step=0)  # pyright: ignore[reportArgumentType]
    assert [problem.field for problem in caught.value.problems] == ["low", "step"]


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
    ("datasets=(DatasetConfig('a', trim=3),)", "trim: expected a tuple (int, int); found 3. Write"),
    ("datasets=(DatasetConfig('a', episodes=(1,)),)", "a tuple (int, int), or None; found (1,)."),
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
        "datasets.0: expected an instance of DatasetConfig; found 'x'. Write DatasetConfig(...).",
    ),
    ("normalized=None", "no error"),
    ("normalized='x'", "DataConfig, normalized: expected a tuple of str, or None; found 'x'."),
    ("observations=['x']", "no error"),
    ("windows=(('proprio', 1),)", "no error"),
    (
        "windows=('proprio', 1)",
        "expected a tuple of (str, int); found ('proprio', 1). Write windows=((str, int),)",
    ),
    ("windows=(('proprio', '1'),)", "windows.0.1: expected an integer; found '1'."),
    ("windows=(('proprio',),)", "windows.0: expected a tuple (str, int); found ('proprio',)."),
    ("windows={'proprio': 1}", "of (str, int); found {'proprio': 1}."),
    ("may_differ='rotation'", "or 'rotation'; found 'rotation'. Write may_differ=('rotation',)."),
    ("may_differ=3", "found 3. Write may_differ=('control_frequency_hz',)."),
    ("transforms=PadActions(8)", "a tuple of Transform; found an instance of PadActions. Write tr"),
    ("transforms=(None,)", "transforms.0: expected a dataclass with spec_after, apply; found None"),
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
