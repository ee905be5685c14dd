"""Every executed action of a trial, by delay and by what the robot does during it.

An action of the fake policy holds the step that it was predicted from, its place in the chunk, and
whether planned actions guided the chunk.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import pytest

from converters.mapping.mapping_registry import registered
from tests.train.evaluate.fakes import trial
from train.evaluate.delayed_execution import DelayStrategy, delay_execution, hold_still
from train.evaluate.delayed_policy import DelayedPolicy
from train.evaluate.libero.environment import Observation, Outcome
from train.evaluate.libero.simulator_pool import EnvPool, Reply
from train.evaluate.libero.simulator_worker import Act, Begin
from train.evaluate.libero.suites import Trial
from train.evaluate.rollouts import Options, Rollouts
from train.policy import RealTimeChunking
from train.policy.chunk_execution import FirstActions
from train.policy.planned_actions import PlannedActions, Previous, with_committed
from train.policy.policy import Policy

HORIZON, EVERY, LIMIT = 16, 8, 60
CONVENTIONS = registered("libero").conventions
STRATEGIES: tuple[DelayStrategy, ...] = ("synchronous", "naive_async", "real_time_chunking")


def action(step: int, place: int, *, guided: int = 0) -> list[float]:
    """What is predicted at a step; the gripper closes at some actions."""
    return [step, place, guided, 0, 0, 0, float((step + place) % 3 > 0)]


class NumberPolicy(Policy):
    """A policy of numbers, and what it was given."""

    def __init__(self, window_size: int) -> None:
        self.size = window_size
        self.observed: list[int] = []
        self.predicted: list[int] = []
        self.plans: list[PlannedActions | None] = []

    @property
    def window_size(self) -> int:
        return self.size

    @property
    def action_horizon(self) -> int:
        return HORIZON

    def reset(self, env: int, text: str, *args: object) -> None:
        del env, text, args

    def forget(self, env: int) -> None:
        del env

    def observe(self, observations: Mapping[int, Observation]) -> None:
        self.observed += [int(seen["proprio"][0]) for seen in observations.values()]

    def infer(
        self, observations: Mapping[int, Observation], previous: Previous | None = None
    ) -> dict[int, np.ndarray]:
        ((env, seen),) = observations.items()
        step, plan = int(seen["proprio"][0]), (previous or {}).get(env)
        self.predicted.append(step)
        self.plans.append(plan)
        rows = [action(step, k, guided=int(plan is not None)) for k in range(HORIZON)]
        chunk = np.array(rows, np.float32)
        return {env: chunk if plan is None else with_committed(chunk, plan)}


class RecordingEnv:
    """Records actions; an observation is the number of the step."""

    def __init__(self) -> None:
        self.executed: list[list[float]] = []

    def reset(self, trial: Trial) -> Outcome:
        del trial
        return self._outcome()

    def step(self, action: np.ndarray) -> Outcome:
        self.executed.append(action.tolist())
        return self._outcome()

    def observe(self) -> Observation:
        return {"proprio": np.full(1, len(self.executed), np.float32)}

    def close(self) -> None:
        pass

    def _outcome(self) -> Outcome:
        return Outcome(len(self.executed), is_success=False, is_over=len(self.executed) == LIMIT)


class OneEnv(EnvPool):
    """A pool of one environment, in this process."""

    def __init__(self, env: RecordingEnv) -> None:
        self.env = env
        self.replies: list[Reply] = []

    idle = property(lambda self: () if self.replies else (0,))
    busy = property(lambda self: (0,) if self.replies else ())
    num_busy = property(lambda self: len(self.replies))

    def begin(self, worker: int, trial: Trial) -> None:
        self.replies.append(Reply(worker, trial, *Begin(trial).run(self.env)))

    def act(self, worker: int, actions: np.ndarray, num_observed: int = 1) -> None:
        answer = Act(actions, num_observed).run(self.env)
        self.replies.append(Reply(worker, trial(0), *answer))

    def receive(self, workers: Collection[int] | None = None) -> Reply:
        del workers
        return self.replies.pop()


def rolled_out(
    strategy: DelayStrategy, delay: int, window_size: int = 1
) -> tuple[list[list[float]], NumberPolicy, int]:
    """The executed actions of a trial, its policy, and the steps that are reported."""
    policy, env, results = NumberPolicy(window_size), RecordingEnv(), []
    is_guided = strategy == "real_time_chunking"
    Rollouts(
        DelayedPolicy(policy, EVERY, delay) if is_guided and delay else policy,
        OneEnv(env),
        Options(
            0, lambda: delay_execution(FirstActions(EVERY), strategy, EVERY, delay, CONVENTIONS)
        ),
        results.append,
    ).run([trial(0)])
    return env.executed, policy, results[0].steps


def expected_actions(strategy: DelayStrategy, delay: int) -> list[list[float]]:
    """Written step by step, and cut at the limit."""
    if strategy == "synchronous":
        actions = [action(0, k) for k in range(EVERY)]
        while len(actions) < LIMIT:
            step = len(actions)
            actions += [[0.0] * 6 + actions[-1][6:]] * delay
            actions += [action(step, k) for k in range(EVERY)]
        return actions[:LIMIT]
    is_guided = strategy == "real_time_chunking" and delay > 0
    actions = []
    for step in range(LIMIT):
        # The chunk that acts was predicted at least `delay` steps ago, but for the first.
        begin = max(step - delay, 0) // EVERY * EVERY
        actions.append(action(begin, step - begin, guided=int(is_guided and begin > 0)))
    return actions


@pytest.mark.parametrize("window_size", [1, 2])
@pytest.mark.parametrize("delay", [0, 2, 4, 8])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_action_of_a_trial(strategy: DelayStrategy, delay: int, window_size: int) -> None:
    executed, policy, num_steps = rolled_out(strategy, delay, window_size)
    assert executed == expected_actions(strategy, delay)
    # Held steps count towards the limit.
    assert num_steps == LIMIT
    interval = EVERY + (delay if strategy == "synchronous" else 0)
    steps = [0, *range(EVERY, LIMIT, interval)]
    # The image is of the step before the pause.
    assert policy.predicted == steps
    # The window has the step just before, which may be a held one.
    assert policy.observed == ([step - 1 for step in steps[1:]] if window_size == 2 else [])
    plans = [plan for plan in policy.plans if plan is not None]
    is_guided = strategy == "real_time_chunking" and delay > 0
    assert [(len(plan.actions), plan.delay) for plan in plans] == (
        [(EVERY, delay)] * (len(steps) - 1) if is_guided else []
    )


def test_some_actions_by_hand() -> None:
    held_open, held_closed = [0.0] * 6 + [1.0], [0.0] * 6 + [0.0]
    executed, _, _ = rolled_out("synchronous", 4)
    assert executed[7:13] == [action(0, 7), *[held_open] * 4, action(8, 0)]
    assert executed[19:25] == [action(8, 7), *[held_closed] * 4, action(20, 0)]
    executed, _, _ = rolled_out("naive_async", 4)
    assert executed[7:13] == [action(0, k) for k in range(7, 12)] + [action(8, 4)]
    executed, _, _ = rolled_out("real_time_chunking", 4)
    assert executed[11:13] == [action(0, 11), action(8, 4, guided=1)]


def test_all_strategies_are_the_same_without_a_delay() -> None:
    ((first, *others), _) = zip(*[rolled_out(s, 0)[::2] for s in STRATEGIES], strict=True)
    assert first == [action(step // EVERY * EVERY, step % EVERY) for step in range(LIMIT)]
    assert others == [first, first]


def test_a_target_pose_is_held_and_a_change_of_the_pose_is_zero() -> None:
    last = np.arange(1, 8, dtype=np.float32)
    assert hold_still(last, CONVENTIONS).tolist() == [0, 0, 0, 0, 0, 0, 7]
    poses = dataclasses.replace(CONVENTIONS, target_poses=True, rotation="rot6d", gripper_dim=9)
    last = np.arange(1, 11, dtype=np.float32)
    assert hold_still(last, poses).tolist() == last.tolist()


@pytest.mark.parametrize("delay", [0, 2, 8])
def test_a_robot_executes_the_naive_actions_of_a_simulator(delay: int) -> None:
    policy = NumberPolicy(2)
    with RealTimeChunking.of(
        policy, execute_horizon=EVERY, delay=delay, when_late="wait", is_guided=False
    ) as act:
        robot = [act({"proprio": np.full(1, step, np.float32)}).tolist() for step in range(LIMIT)]
    assert robot == expected_actions("naive_async", delay)
    assert set(policy.plans) == {None}
