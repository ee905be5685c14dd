"""The protocol of vla-eval: one reply per observation, episodes per connection."""

import urllib.request

import numpy as np
import pytest

from pipeline.data.conventions import restore_gripper
from tests.train.serve.harness_client import (
    HarnessClient,
    array,
    as_observation,
    image,
    message,
    observation,
)
from tests.train.serve.served import serving
from train.policy import TemporalEnsemble
from train.serve.client_session import ServeConfig
from train.serve.vla_eval.harness_codec import CODEC
from train.serve.vla_eval.harness_session import VlaEvalSession

TEXT = "pick up the bowl"


def config(**settings):
    return ServeConfig(protocol="vla-eval", **settings)


@pytest.fixture
def port(served_policy):
    with serving(served_policy, config()) as port:
        yield port


@pytest.fixture
def session(served_policy):
    """A session after HELLO, whose messages are given without a connection."""
    session = VlaEvalSession(served_policy, config(execute_horizon=2), iter(range(9)))
    say(session, "hello", {"protocol_version": 1})
    yield session
    session.close()


def say(session, kind, payload):
    reply = session.answer(CODEC.pack(message(kind, payload)))
    return reply and reply["payload"]


def act(session, shown):
    return say(session, "observation", shown)["actions"]


def commands(policy, env, observations, horizon, text=TEXT):
    """What the policy called directly executes."""
    policy.reset(env, text)
    actions = []
    for step, shown in enumerate(observations):
        if step % horizon:
            policy.observe({env: as_observation(shown)})
        else:
            actions.extend(policy.infer({env: as_observation(shown)})[env][:horizon])
    policy.forget(env)
    return restore_gripper(np.stack(actions[: len(observations)]), policy.conventions)


def test_hello_has_what_the_harness_compares_and_what_the_policy_needs(port):
    with HarnessClient(port) as client:
        hello = client.hello()
    assert hello["protocol_version"] == 1
    assert hello["capabilities"] == {}
    assert hello["policy"]["step"] == 2
    assert hello["observation_params"] == {"send_wrist_image": True, "send_state": True}
    formats = {key: (one["dims"], one["format"]) for key, one in hello["action_spec"].items()}
    assert formats == {
        "position": (3, "delta_xyz"),
        "rotation": (3, "axis_angle"),
        "gripper": (1, "binary_close_positive"),
    }
    formats = {key: one["format"] for key, one in hello["observation_spec"].items()}
    assert formats == {
        "agentview": "rgb_hwc_uint8",
        "wrist": "rgb_hwc_uint8",
        "state": "eef_pos3_axisangle3_gripper2",
        "language": "language",
    }


def test_a_whole_chunk_is_executed_one_action_per_message(served_policy):
    shown = [observation(seed) for seed in range(5)]
    with serving(served_policy, config()) as port, HarnessClient(port) as client:
        client.hello()
        client.begin()
        found = [client.act(one) for one in shown]
    assert found[0].shape == (7,)
    assert found[0].dtype == np.float32
    expected = commands(served_policy, 0, shown, horizon=4)
    np.testing.assert_array_equal(found, expected)


def test_episode_start_forgets_the_history_and_the_plan(session, served_policy):
    say(session, "episode_start", {"task": {"name": "x"}})
    act(session, observation(1))
    say(session, "episode_end", {"metrics": {"success": False}})
    say(session, "episode_start", {"task": {"name": "x"}})
    found = [act(session, observation(seed)) for seed in (2, 3, 4)]
    expected = commands(served_policy, 1, [observation(seed) for seed in (2, 3, 4)], horizon=2)
    np.testing.assert_array_equal(found, expected)
    session.close()
    assert served_policy._asked == {}


def test_the_task_may_change_within_an_episode(session, served_policy):
    say(session, "episode_start", {"task": {"name": "x"}})
    act(session, observation(1))
    found = act(session, observation(2, "open the drawer"))
    served_policy.reset(0, TEXT)
    served_policy.infer({0: as_observation(observation(1))})
    served_policy.instruct(0, "open the drawer")
    # Predicted again, with the history: the second action of the first chunk is for another task.
    chunk = served_policy.infer({0: as_observation(observation(2))})[0]
    np.testing.assert_array_equal(found, restore_gripper(chunk, served_policy.conventions)[0])
    served_policy.forget(0)


def test_the_task_may_change_between_predictions_with_a_delay(real_time_policy):
    policy = real_time_policy
    session = VlaEvalSession(policy, config(execute_horizon=2, delay=1), iter([5]))
    say(session, "hello", {"protocol_version": 1})
    say(session, "episode_start", {})
    for seed in range(2):
        act(session, observation(seed))
    found = act(session, observation(2, "open the drawer"))
    session.close()
    policy.reset(5, TEXT)
    policy.infer({5: as_observation(observation(0))})
    # The window's step before, which no prediction has read yet.
    policy.observe({5: as_observation(observation(1))})
    policy.instruct(5, "open the drawer")
    chunk = policy.infer({5: as_observation(observation(2))})[5]
    np.testing.assert_array_equal(found, restore_gripper(chunk, policy.conventions)[0])
    policy.forget(5)


def test_an_action_may_be_the_mean_of_chunks(served_policy):
    session = VlaEvalSession(served_policy, config(ensemble=0.5), iter(range(9)))
    say(session, "hello", {"protocol_version": 1})
    say(session, "episode_start", {})
    found = [act(session, observation(seed)) for seed in range(3)]
    session.close()
    ensemble = TemporalEnsemble(0.5)
    served_policy.reset(0, TEXT)
    for seed in range(3):
        chunk = served_policy.infer({0: as_observation(observation(seed))})[0]
        action = restore_gripper(ensemble(chunk), served_policy.conventions)
        np.testing.assert_array_equal(found[seed], action[0])
    served_policy.forget(0)


def test_each_observation_has_one_reply_and_an_error_keeps_the_connection(port):
    good, wrong = observation(), observation() | {"states": np.zeros(3), "task_description": 3}
    wrong["images"] = {"primary": wrong["images"]["agentview"][:64]}
    with HarnessClient(port) as client:
        with pytest.raises(RuntimeError, match=r"expected HELLO and EPISODE_START .*found neither"):
            client.act(good)
        client.hello()
        with pytest.raises(RuntimeError, match="found no EPISODE_START"):
            client.act(good)
        client.begin()
        with pytest.raises(RuntimeError) as caught:
            client.act(wrong)
        assert str(caught.value).startswith(
            "message: expected agentview uint8[128,128,3], wrist uint8[128,128,3], "
            "states float32[8], task_description str of at most 4096 characters; "
            "found agentview: missing; wrist: missing; states: float64[3]; task_description: int; "
            "sent: images/primary, images, task_description, states, controller_states. Give"
        )
        assert client.act(good).shape == (7,)
        client.send("error", {"error": "a benchmark's\nown"})
        assert client.act(good).shape == (7,)


def test_observations_that_do_not_wait_are_answered_in_their_order(served_policy):
    shown = [observation(seed) for seed in range(6)]
    with serving(served_policy, config()) as port, HarnessClient(port) as client:
        client.hello()
        client.begin()
        for one in shown:
            client.send("observation", one)
        # HELLO and EPISODE_START were the first two messages.
        found = [array(client.receive(3 + step)["actions"]) for step in range(6)]
    np.testing.assert_array_equal(found, commands(served_policy, 0, shown, horizon=4))


def test_images_come_as_png_jpeg_or_raw(session):
    say(session, "episode_start", {})
    shown = observation()
    smooth = np.tile(np.arange(128, dtype=np.uint8)[:, None, None], (1, 128, 3))
    shown["images"] = {"agentview": smooth, "wrist": smooth}
    found = []
    for encoding in ("png", "raw", "jpeg"):
        images = {key: image(one, encoding) for key, one in shown["images"].items()}
        say(session, "episode_start", {})
        seen = {}
        session._episodes.act = lambda one, seen=seen: seen.update(one) or np.zeros((1, 7))
        act(session, shown | {"images": images})
        found.append(seen)
        del session._episodes.act
    for seen in found[:2]:
        np.testing.assert_array_equal(seen["image_primary"], smooth)
    assert np.abs(found[2]["image_wrist"].astype(int) - smooth).max() <= 2


def test_cameras_of_another_benchmark_are_named(served_policy):
    keys = {"primary": "image_primary", "controller_states": "proprio"}
    session = VlaEvalSession(served_policy, config(keys=keys), iter(range(9)))
    hello = say(session, "hello", {"protocol_version": 1})
    assert list(hello["observation_spec"]) == ["primary", "wrist", "controller_states", "language"]
    say(session, "episode_start", {})
    shown = observation()
    shown["images"]["primary"] = shown["images"].pop("agentview")
    assert act(session, shown).shape == (7,)
    session.close()


def test_another_version_of_the_protocol_is_refused(port):
    with (
        HarnessClient(port) as client,
        pytest.raises(RuntimeError, match=r"expected protocol_version 1.*found protocol_version 2"),
    ):
        client.ask("hello", {"protocol_version": 2})


def test_health_is_answered_where_the_harness_asks(port):
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200
