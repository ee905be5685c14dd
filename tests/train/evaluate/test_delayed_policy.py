import numpy as np
import pytest

from pipeline.errors import UserError
from train.evaluate.delayed_policy import DelayedPolicy
from train.policy import PlannedActions, RealTimeChunking

TEXT = "pick up the bowl"


def seen(policy, step):
    return policy.example_observation() | {"proprio": np.full(8, 0.1 * step)}


def executed_actions(policy, num_steps):
    """What a simulator would execute, which asks every 2 steps and shows the step before."""
    delayed = DelayedPolicy(policy, execute_horizon=2, delay=1)
    assert delayed.window_size == 2
    delayed.reset(2, TEXT)
    actions = []
    for step in range(0, num_steps, 2):
        if step:
            delayed.observe({2: seen(policy, step - 1)})
        actions += [*delayed.infer({2: seen(policy, step)})[2][:2]]
    delayed.forget(2)
    return np.array(actions)


def test_a_simulator_executes_what_a_robot_would_have_executed(real_time_policy):
    found = executed_actions(real_time_policy, 8)
    real_time_policy.reset(2, TEXT)
    with RealTimeChunking.of(
        real_time_policy, 2, execute_horizon=2, delay=1, when_late="wait"
    ) as act:
        robot = [act(seen(real_time_policy, step)) for step in range(8)]
    np.testing.assert_array_equal(found, robot)
    # Another episode continues nothing of the last one.
    np.testing.assert_array_equal(executed_actions(real_time_policy, 8), found)
    # The action at step 2 was planned at step 0, and the one at step 3 was not.
    real_time_policy.reset(2, TEXT)
    first = real_time_policy.infer({2: seen(real_time_policy, 0)})[2]
    real_time_policy.observe({2: seen(real_time_policy, 1)})
    planned = {2: PlannedActions(first[2:], 1)}
    second = real_time_policy.infer({2: seen(real_time_policy, 2)}, planned)[2]
    np.testing.assert_array_equal(found[:4], [*first[:3], second[1]])
    assert np.abs(found[3] - first[3]).max() > 1e-6
    real_time_policy.forget(2)


def test_a_delay_that_cannot_be_is_reported(real_time_policy):
    with pytest.raises(UserError, match="0 to 1 steps: a chunk of 4 is predicted every 3 steps"):
        DelayedPolicy(real_time_policy, execute_horizon=3, delay=2)
