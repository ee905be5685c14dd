import functools
import pathlib
from collections.abc import Mapping

import numpy as np
import pytest

from tests.train.evaluate.fakes import DIES, DIES_ONCE, FakeEnv, FakePolicy, trial
from train.evaluate.libero.environment import Observation
from train.evaluate.libero.simulator_pool import EnvPool
from train.evaluate.libero.suites import Trial
from train.evaluate.results import TrialResult
from train.evaluate.rollouts import Options, Rollouts, groups
from train.policy.chunk_execution import FirstActions

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def rolled_out(
    folder: pathlib.Path,
    policy: FakePolicy,
    trials: list[Trial],
    *,
    num_workers: int = 1,
    executed: int = 2,
) -> list[TrialResult]:
    results: list[TrialResult] = []
    options = Options(seed=4, make_execution=lambda: FirstActions(executed))
    with EnvPool(functools.partial(FakeEnv, str(folder)), num_workers) as pool:
        Rollouts(policy, pool, options, results.append).run(trials)
    return results


def test_each_trial_has_its_result(tmp_path: pathlib.Path) -> None:
    results = rolled_out(tmp_path, FakePolicy(), [trial(0), trial(1), trial(2, task=1)])
    found = [(r.task, r.init, r.success, r.steps, r.instruction) for r in results]
    assert found == [
        (0, 0, True, 5, "lift it"),
        (0, 1, False, 7, "lift it"),
        (3, 2, True, 5, "push it"),
    ]
    assert all(r.suite == "libero_spatial" and r.seed == 4 and r.error is None for r in results)
    assert all(r.seconds > 0 for r in results)


def test_the_policy_is_asked_when_its_actions_are_spent_and_is_batched(
    tmp_path: pathlib.Path,
) -> None:
    policy = FakePolicy()
    rolled_out(tmp_path, policy, [trial(0), trial(1)], num_workers=2)
    assert policy.seen == {0: [0, 2, 4], 1: [0, 2, 4, 6]}
    assert policy.batches == [(0,), (1,), (0,), (1,), (0,), (1,), (1,)]
    assert policy.log == [
        ("reset", 0, "lift it"),
        ("reset", 1, "lift it"),
        ("forget", 0),
        ("forget", 1),
    ]


def test_one_half_of_the_simulators_runs_while_the_policy_predicts_for_the_other(
    tmp_path: pathlib.Path,
) -> None:
    class Watching(FakePolicy):
        def infer(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
            busy.append(pool.busy)
            return super().infer(observations)

    policy, busy = Watching(), []
    options = Options(seed=4, make_execution=lambda: FirstActions(2))
    with EnvPool(functools.partial(FakeEnv, str(tmp_path)), 3) as pool:
        # Trials of odd numbers take four predictions, 0 three.
        Rollouts(policy, pool, options, lambda result: None).run([trial(n) for n in (1, 3, 0, 5)])
    assert policy.batches == [(1, 3), (0,)] * 3 + [(1, 3)] + [(5,)] * 4
    assert busy == [(2,), (0, 1)] * 3 + [(2,)] + [()] * 4


def test_groups_are_halves_and_the_first_is_the_larger() -> None:
    assert groups(range(1)) == (range(1),)
    assert groups((0, 1)) == ((0,), (1,))
    assert groups((0, 1, 2, 3, 4)) == ((0, 1, 2), (3, 4))


@pytest.mark.parametrize(
    ("executed", "seen"),
    [(1, [0, 1, 2, 3, 4]), (2, [0, -1, 2, -3, 4]), (3, [0, -2, 3])],
)
def test_a_window_sees_consecutive_steps(
    executed: int, seen: list[int], tmp_path: pathlib.Path
) -> None:
    """In `seen`, a negative number is a step that was observed without a prediction."""
    policy = FakePolicy(window_size=2)
    rolled_out(tmp_path, policy, [trial(0)], executed=executed)
    assert policy.seen[0] == seen


def test_a_lost_simulator_has_one_more_try(tmp_path: pathlib.Path) -> None:
    policy = FakePolicy()
    (result,) = rolled_out(tmp_path, policy, [trial(DIES_ONCE)])
    assert (result.success, result.steps, result.error) == (False, 7, None)
    assert [entry[0] for entry in policy.log] == ["reset", "forget", "reset", "forget"]


def test_a_trial_that_is_lost_twice_is_an_error_and_others_continue(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost, after = rolled_out(tmp_path, FakePolicy(), [trial(DIES), trial(2)])
    assert (lost.init, lost.success, lost.steps) == (DIES, False, 0)
    assert "killed by signal 9" in str(lost.error)
    assert (after.init, after.success) == (2, True)
    assert len([r for r in caplog.records if "initial state 90" in r.message]) == 2
