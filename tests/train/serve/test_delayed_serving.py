"""Replies at once while the next chunk is predicted, which takes effect at its step."""

import copy
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.data.conventions import restore_gripper
from pipeline.errors import UserError
from tests.train.serve.openpi_client import Client
from tests.train.serve.served import TEXT, serving, shown
from train.policy import PlannedActions, Policy, RealTimeChunking
from train.serve.client_session import ServeConfig
from train.serve.openpi_protocol import CODEC, OpenpiSession

CONFIG = ServeConfig(execute_horizon=2, delay=1)


class Held(Policy):
    """Predicts only when a test lets it."""

    def infer(self, observations, previous=None):
        self.asked.set()
        assert self.free.wait(60)
        return super().infer(observations, previous)


@pytest.fixture
def held(real_time_policy):
    """The policy with programs that are compiled already."""
    policy = copy.copy(real_time_policy)
    policy.__class__ = Held
    policy.asked, policy.free = threading.Event(), threading.Event()
    policy.free.set()
    yield policy
    policy.free.set()


def on_a_robot(policy, env, messages):
    """The commands of a control loop that sees the same observations."""
    names = {"image_primary": "image", "image_wrist": "wrist_image", "proprio": "state"}
    policy.reset(env, TEXT)
    with RealTimeChunking.of(policy, env, execute_horizon=2, delay=1, when_late="wait") as act:
        actions = [
            act({name: message[f"observation/{key}"] for name, key in names.items()})
            for message in messages
        ]
    policy.forget(env)
    return restore_gripper(np.stack(actions), policy.conventions)


def answered(session, message):
    return session.answer(CODEC.pack(message))


def test_replies_are_what_a_robot_would_execute(real_time_policy):
    messages = [shown(seed) for seed in range(6)]
    expected = [on_a_robot(real_time_policy, env, messages) for env in (0, 1)]
    with (
        serving(real_time_policy, CONFIG) as port,
        Client(port) as client,
    ):
        for actions in expected:
            model_ms = []
            for number, message in enumerate(messages):
                found, timing = client.ask(**message, reset=number == 0)
                np.testing.assert_array_equal(found, actions[number : number + 1])
                assert timing["late_ms"] >= 0
                model_ms.append(client.reply["policy_timing"]["infer_ms"])
            # Each prediction is in one reply: the one that starts it, or that in which it is used.
            assert np.count_nonzero(model_ms[:1]) == 1
            assert np.count_nonzero(model_ms[2:4]) == np.count_nonzero(model_ms[4:6]) == 1


def test_a_reply_does_not_wait_for_a_prediction_until_its_step(held):
    session = OpenpiSession(held, CONFIG, iter(range(9)))
    for seed in range(2):
        answered(session, shown(seed))
    held.asked.clear()
    held.free.clear()
    # At step 2 the next chunk is asked, and the reply is of the last one.
    reply = answered(session, shown(2))
    assert held.asked.wait(60)
    assert reply["server_timing"] == {"late_ms": 0.0}
    with ThreadPoolExecutor(1) as other:
        # At step 3 it takes effect.
        late = other.submit(answered, session, shown(3))
        threading.Event().wait(0.05)
        assert not late.done()
        held.free.set()
        assert late.result(60)["server_timing"]["late_ms"] > 10
    session.close()


def test_another_task_waits_for_the_prediction_of_the_last_one(held):
    session = OpenpiSession(held, CONFIG, iter(range(9)))
    messages = [shown(seed) for seed in range(3)]
    for message in messages:
        answered(session, message)
    # A new instruction begins an episode, whose chunks continue nothing.
    again = [answered(session, message | {"prompt": "open it"})["actions"] for message in messages]
    session.close()
    other = OpenpiSession(held, CONFIG, iter([1]))
    found = [answered(other, message | {"prompt": "open it"})["actions"] for message in messages]
    other.close()
    np.testing.assert_array_equal(again, found)
    assert not [t for t in threading.enumerate() if t.name.startswith("real_time_chunking")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ServeConfig(delay=1), "an execute_horizon, .*; found execute_horizon None"),
        (ServeConfig(ensemble=0.1, execute_horizon=2, delay=1), "no ensemble; found .*0.1"),
        (ServeConfig(execute_horizon=3, delay=2), "delay: expected 0 to 1 steps: a chunk of 4"),
        (ServeConfig(execute_horizon=2, delay=-1), "delay: expected 0 to 2 steps"),
    ],
)
def test_delays_that_cannot_be_are_reported(real_time_policy, config, message):
    with pytest.raises(UserError, match=message):
        config.make_execution(real_time_policy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("protocol", "x", "protocol: expected one of 'openpi', 'vla-eval'; found 'x'"),
        ("protocol", "vla_eval", "Did you mean 'vla-eval'?"),
        ("delay", 1.5, "delay: expected an integer; found 1.5"),
        ("execute_horizon", "2", "execute_horizon: expected an integer, or None; found '2'"),
    ],
)
def test_settings_of_another_type_are_reported(field, value, message):
    # Set afterwards, as the type checker of the tests refuses it first.
    config = ServeConfig()
    object.__setattr__(config, field, value)
    with pytest.raises(UserError, match=f"^ServeConfig, .*{re.escape(message)}"):
        config.__post_init__()


def test_a_policy_without_real_time_chunking_is_reported(served_policy):
    with pytest.raises(UserError, match=r"Make it with PolicyConfig\(real_time_chunking=True\)"):
        CONFIG.make_execution(served_policy)
    with pytest.raises(UserError, match="RealTimeChunking: expected a policy that was made for"):
        RealTimeChunking.of(served_policy, execute_horizon=2, delay=1)


def test_a_client_that_executes_chunks_gets_one_that_continues_the_last(real_time_policy):
    policy = real_time_policy
    session = OpenpiSession(policy, ServeConfig(), iter([3, 4]))
    assert CODEC.unpack(session.greeting)["continues_chunks"] is True
    first = answered(session, shown(0))["actions"]
    second = answered(session, shown(1) | {"executed": 1, "delay": 2})["actions"]
    np.testing.assert_array_equal(second[:2], first[1:3])
    # In units of the dataset and of the policy: the gripper's commands are made of the result.
    names = {"image_primary": "image", "image_wrist": "wrist_image", "proprio": "state"}
    one, two = (
        {name: shown(seed)[f"observation/{key}"] for name, key in names.items()} for seed in (0, 1)
    )
    policy.reset(3, TEXT)
    chunk = policy.infer({3: one})[3]
    following = policy.infer({3: two}, {3: PlannedActions(chunk[1:], 2)})[3]
    np.testing.assert_array_equal(second, restore_gripper(following, policy.conventions))
    policy.forget(3)
    for message, found in (
        ({"executed": 4, "delay": 0}, "4 executed and a delay of 0"),
        ({"executed": 2, "delay": 3}, "2 executed and a delay of 3"),
        ({"executed": 1, "delay": 1, "reset": True}, "no chunk before in the episode"),
        ({"executed": True, "delay": 1}, "executed and delay: bool, int instead of two integers"),
        ({"delay": 1}, "executed and delay: int instead of two integers"),
    ):
        with pytest.raises(UserError, match=found):
            answered(session, shown(2) | message)
    session.close()
    stepwise = OpenpiSession(policy, ServeConfig(execute_horizon=2), iter([3]))
    with pytest.raises(UserError, match="for a server with --real_time_chunking"):
        answered(stepwise, shown(0) | {"executed": 1, "delay": 1})
