import math

import pytest

from train.evaluate.results import Paired, Rate


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (48, 50, 0.865399, 0.988961),
        (50, 50, 0.928652, 1.0),
        (0, 10, 0.0, 0.277533),
        (5, 10, 0.236593, 0.763407),
        (394, 500, 0.750048, 0.821560),
    ],
)
def test_wilsons_interval(successes: int, trials: int, low: float, high: float) -> None:
    rate = Rate(successes, trials)
    assert rate.value == successes / trials
    assert rate.interval == pytest.approx((low, high), abs=1e-6)
    mirrored = Rate(trials - successes, trials).interval
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_nothing_is_known_without_trials() -> None:
    assert math.isnan(Rate(0, 0).value)
    assert Rate(0, 0).interval == (0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (6, 0, 0.03125),
        (10, 2, 0.03857421875),
        (5, 5, 1.0),
        (9, 3, 0.14599609375),
    ],
)
def test_mcnemars_exact_test(first: int, second: int, p: float) -> None:
    assert Paired(20, first, second, 7).p_value == p
    assert Paired(0, second, first, 0).p_value == p


def test_pairs_are_counted() -> None:
    outcomes = [(True, True), (True, False), (True, False), (False, True), (False, False)]
    assert Paired.of(outcomes) == Paired(1, 2, 1, 1)
    assert Paired.of(outcomes).num_trials == 5
