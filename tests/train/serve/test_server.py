import dataclasses
import re
import signal
import socket
import sys
import threading
import time
import urllib.request

import jax
import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosedError

from pipeline.data.conventions import restore_gripper
from pipeline.errors import UserError
from pipeline.loading.transforms.gripper_rules import GripperHysteresis
from tests.processes import Command
from tests.train.serve.openpi_client import Client
from tests.train.serve.served import TEXT, serving, shown
from train.checkpoints.checkpoint_store import read_checkpoint
from train.policy import Policy
from train.policy.policy import read_run
from train.serve import __main__ as serve_main
from train.serve.__main__ import parse_keys
from train.serve.client_session import ServeConfig
from train.serve.listener import bind
from train.serve.openpi_protocol import CODEC, OpenpiSession

OBJECTS = {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [0]}


def as_observation(message: dict) -> dict:
    return {
        "image_primary": message["observation/image"],
        "image_wrist": message["observation/wrist_image"],
        "proprio": message["observation/state"],
    }


@pytest.fixture(scope="module")
def policies(served_policy, policy_run):
    """Two equal policies: one that is served, and one to compare with."""
    return served_policy, Policy(read_checkpoint(policy_run))


@pytest.fixture
def expected(policies):
    """The chunk of an episode's first observations; by number, messages and instruction."""

    def infer(env, messages, text=TEXT):
        policy = policies[1]
        policy.reset(env, text)
        chunks = [policy.infer({env: as_observation(message)})[env] for message in messages]
        policy.forget(env)
        return [restore_gripper(chunk, policy.conventions) for chunk in chunks]

    return infer


def test_a_client_gets_the_policys_metadata_and_commands(policies, expected):
    with serving(policies[0]) as port, Client(port) as client:
        metadata = client.metadata
        assert metadata["observations"] == {
            "observation/image": {"dtype": "uint8", "shape": [128, 128, 3]},
            "observation/wrist_image": {"dtype": "uint8", "shape": [128, 128, 3]},
            "observation/state": {"dtype": "float32", "shape": [8]},
        }
        assert (metadata["actions"], metadata["window_size"], metadata["step"]) == ([4, 7], 2, 2)
        assert metadata["action_dims"][-1] == "gripper"
        assert metadata["conventions"]["gripper_open"] == -1.0
        messages = [shown(seed) for seed in range(3)]
        found, timings = zip(*(client.ask(**message) for message in messages), strict=True)
        assert found[0].dtype == np.float32
        assert set(np.unique(np.array(found)[..., 6])) <= {-1.0, 1.0}  # open, close
        np.testing.assert_allclose(found, expected(0, messages), atol=1e-5)
        assert list(timings[0]) == ["infer_ms", "wait_ms"]
        assert timings[1]["prev_total_ms"] >= timings[0]["infer_ms"] > 0
        of_policy = client.reply["policy_timing"]
        assert list(of_policy) == ["infer_ms", "instruction_ms"]
        assert min(of_policy.values()) > 0
        assert timings[-1]["infer_ms"] > sum(of_policy.values())


def test_what_other_clients_take_is_no_time_of_the_policys(policies, monkeypatch):
    predicted = policies[0].infer
    is_asked, may_answer = threading.Event(), threading.Event()

    def infer(shown):
        is_asked.set()
        assert may_answer.wait(30)
        return predicted(shown)

    monkeypatch.setattr(policies[0], "infer", infer)
    with serving(policies[0]) as port, Client(port) as one, Client(port) as two:
        one.send(**shown())
        assert is_asked.wait(30)
        two.send(**shown())
        time.sleep(0.3)
        may_answer.set()
        (_, first), (_, second) = one.receive(), two.receive()
    assert first["infer_ms"] > 200 > first["wait_ms"]
    assert second["wait_ms"] > 10


def test_an_action_that_was_planned_takes_no_time_of_the_models(policies):
    session = OpenpiSession(policies[0], ServeConfig(execute_horizon=2), iter(range(9)))
    timings = [session.answer(CODEC.pack(shown(seed)))["policy_timing"] for seed in range(3)]
    assert [timing["infer_ms"] > 0 for timing in timings] == [True, False, True]


def test_two_clients_at_once_do_not_mix(policies, expected):
    texts = (TEXT, "open the drawer")
    messages = [
        [shown(10 * number + step) | {"prompt": text} for step in range(4)]
        for number, text in enumerate(texts)
    ]
    with serving(policies[0]) as port, Client(port) as one, Client(port) as two:
        turns = [
            (client.ask(**message)[0])
            for step in range(4)
            for client, message in ((one, messages[0][step]), (two, messages[1][step]))
        ]
    for number, text in enumerate(texts):
        alone = expected(number, messages[number], text)
        np.testing.assert_allclose(turns[number::2], alone, atol=1e-5)


def test_an_episode_begins_with_a_client_a_reset_or_another_instruction(policies, expected):
    first, second = shown(1), shown(2)
    other = second | {"prompt": "open the drawer"}
    with serving(policies[0]) as port:
        with Client(port) as client:
            client.ask(**first)
            by_reset, _ = client.ask(**second, reset=True)
            client.ask(**first, reset=False)
            by_prompt, _ = client.ask(**other)
        with Client(port) as client:
            by_client, _ = client.ask(**second)
    np.testing.assert_allclose(by_reset, expected(1, [second])[0], atol=1e-5)
    np.testing.assert_allclose(by_prompt, expected(2, [other], other["prompt"])[0], atol=1e-5)
    np.testing.assert_allclose(by_client, expected(3, [second])[0], atol=1e-5)
    assert policies[0]._asked == {}  # nothing is kept of clients that left


def test_what_does_not_fit_is_reported_and_the_connection_stays(policies, expected):
    good = shown()
    wrong = {"observation/image": good["observation/image"][:64], "prompt": 3}
    with serving(policies[0]) as port, Client(port) as client:
        with pytest.raises(RuntimeError) as caught:
            client.ask(**wrong, **{"observation/state": np.zeros(8)})
        assert str(caught.value).startswith(
            "message: expected observation/image uint8[128,128,3], "
            "observation/wrist_image uint8[128,128,3], observation/state float32[8], "
            "prompt str of at most 4096 characters; optionally reset True or False; "
            "found observation/image: uint8[64,128,3]; observation/wrist_image: missing; "
            "prompt: int. Give what the policy was trained on"
        )
        assert str(caught.value).endswith(
            "If it has another key, start the server with --keys KEY=image_wrist. "
            "Start the server with --resize to resize images. "
            "Give the instruction as a str, under the key prompt."
        )
        for change, found in (
            ({"prompt": None}, "prompt: missing. Give the instruction as a str, under the key"),
            (
                {"reset": "yes"},
                "reset: str instead of True or False. Leave out what is optional, or give it as",
            ),
        ):
            with pytest.raises(RuntimeError) as caught:
                client.ask(**(good | change))
            assert f"; found {found}" in str(caught.value)
            assert "images" not in str(caught.value)
        for raw, message in (
            (b"\xc1", "message: expected msgpack"),
            ("hello", "expected a binary frame of msgpack; found a text frame"),
            (msgpack.packb([1]), "found a list instead of a map"),
            (msgpack.packb({"x": OBJECTS}), "only numbers and booleans are supported"),
        ):
            client.socket.send(raw)
            assert message in client.socket.recv()
        actions, _ = client.ask(**good)
    np.testing.assert_allclose(actions, expected(0, [good])[0], atol=1e-5)


def test_the_log_has_one_line_for_the_end_of_a_client(policies, caplog):
    caplog.set_level("INFO", logger="train.serve.server")
    with serving(policies[0]) as port:
        with Client(port):
            pass
        abrupt = Client(port)
        abrupt.connection.socket.shutdown(socket.SHUT_RDWR)
    lines = sorted(record.getMessage().rpartition(") ")[2] for record in caplog.records)
    assert lines == ["connected", "connected", "disconnected", "disconnected without closing"]


def test_a_failure_of_its_own_ends_a_session_and_not_the_server(policies, monkeypatch):
    with serving(policies[0]) as port, Client(port) as other:
        with Client(port) as client, monkeypatch.context() as patched:
            patched.setattr(policies[0], "infer", lambda shown: 1 / 0)
            with pytest.raises(RuntimeError, match="server failed: ZeroDivisionError"):
                client.ask(**shown())
            with pytest.raises(ConnectionClosedError, match="1011"):
                client.socket.recv()
        assert other.ask(**shown())[0].shape == (4, 7)


def test_health_is_answered(policies):
    with serving(policies[0]) as port:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz")
        assert (answer.status, answer.read()) == (200, b"OK\n")


def test_a_port_in_use_is_reported(policies):
    with (
        serving(policies[0]) as port,
        pytest.raises(UserError, match=rf"127.0.0.1:{port}: expected an address to listen at"),
    ):
        bind("127.0.0.1", port)


def test_a_port_in_use_is_reported_before_anything_is_loaded(monkeypatch, capsys):
    from train.serve.__main__ import main

    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        for host, number, found in (
            ("127.0.0.1", port, "Address already in use"),
            ("127.0.0.1", 70000, "port must be 0-65535"),
            ("a" * 70, 0, "label too long"),
        ):
            flags = ["no run", "--host", host, "--port", str(number)]
            monkeypatch.setattr(sys, "argv", ["serve", *flags])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {host}:{number}: expected an address to listen at")
            assert found in error


@pytest.mark.parametrize(
    ("name", "found"),
    [("file", "found a file"), ("no", "no such directory"), ("x" * 5000, "too long")],
)
def test_a_path_that_is_no_run_is_reported(tmp_path, name, found):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=found):
        read_run(tmp_path / name)


def test_a_stepwise_reply_is_the_next_action_of_a_chunk(policies, expected):
    messages = [shown(seed) for seed in range(5)]
    session = OpenpiSession(policies[0], ServeConfig(execute_horizon=2), iter(range(9)))
    found = [session.answer(CODEC.pack(message))["actions"] for message in messages]
    assert [one.shape for one in found] == [(1, 7)] * 5
    policy = policies[1]
    policy.reset(0, TEXT)
    chunks = []
    for t, message in enumerate(messages):  # every step is seen; every second one is inferred
        one = {0: as_observation(message)}
        if t % 2:
            policy.observe(one)
        else:
            chunks.append(policy.infer(one)[0])
    planned = [chunks[t // 2][t % 2] for t in range(5)]
    planned = restore_gripper(np.stack(planned), policy.conventions)
    np.testing.assert_allclose(np.concatenate(found), planned, atol=1e-5)


def test_what_was_planned_ends_with_the_episode(policies, expected):
    session = OpenpiSession(policies[0], ServeConfig(execute_horizon=4), iter(range(9)))
    session.answer(CODEC.pack(shown(1)))
    found = session.answer(CODEC.pack(shown(2) | {"reset": True}))["actions"]
    np.testing.assert_allclose(found, expected(1, [shown(2)])[0][:1], atol=1e-5)


def test_a_stepwise_reply_may_be_the_mean_of_chunks(policies):
    messages = [shown(seed) for seed in range(2)]
    session = OpenpiSession(policies[0], ServeConfig(ensemble=0.0), iter(range(9)))
    found = [session.answer(CODEC.pack(message))["actions"] for message in messages]
    policy = policies[1]
    policy.reset(0, TEXT)
    first, second = (policy.infer({0: as_observation(message)})[0] for message in messages)
    mean = restore_gripper((first[1] + second[0]) / 2, policy.conventions)
    np.testing.assert_allclose(found[1][0], mean, atol=1e-5)


def test_commands_follow_the_grippers_rule_within_an_episode(policies, monkeypatch):
    policy = policies[0]
    rule = GripperHysteresis("gripper", 1e6 + 1, -1e6)  # keeps the first command of an episode
    data = dataclasses.replace(policy.spec.data, gripper_rules=(rule,))
    monkeypatch.setattr(policy, "spec", dataclasses.replace(policy.spec, data=data))
    openings = iter([0.9, 0.1, 0.4, 0.1, 0.9])
    chunk = np.zeros((4, 7), np.float32)
    predicted = lambda seen: dict.fromkeys(seen, chunk + np.float32(next(openings)))  # noqa: E731
    monkeypatch.setattr(policy, "infer", predicted)
    session = OpenpiSession(policy, ServeConfig(execute_horizon=1), iter(range(9)))
    messages = [shown(seed) | {"reset": seed == 3} for seed in range(5)]
    found = [session.answer(CODEC.pack(message))["actions"][0, 6] for message in messages]
    assert found == [-1, -1, -1, 1, 1]  # opened; then, in another episode, closed


def test_whole_chunks_of_a_policy_that_keeps_a_command_are_warned_about(
    policies, policy_run, monkeypatch, caplog
):
    policy = policies[1]
    rule = GripperHysteresis("gripper")
    data = dataclasses.replace(policy.spec.data, gripper_rules=(rule,))
    monkeypatch.setattr(policy, "spec", dataclasses.replace(policy.spec, data=data))
    monkeypatch.setattr(serve_main, "Policy", lambda *args: policy)
    for config, expected in ((ServeConfig(), True), (ServeConfig(execute_horizon=2), False)):
        caplog.clear()
        serve_main._load(serve_main.Args(str(policy_run)), config)
        assert ("a gripper keeps its last command (gripper)" in caplog.text) == expected


def test_other_keys_may_be_named(policies):
    config = ServeConfig(parse_keys(("front=image_primary",)))
    assert config.all_keys == {
        "front": "image_primary",
        "observation/wrist_image": "image_wrist",
        "observation/state": "proprio",
    }
    session = OpenpiSession(policies[0], config, iter(range(9)))
    message = shown()
    message["front"] = message.pop("observation/image")
    assert session.answer(CODEC.pack(message))["actions"].shape == (4, 7)
    with pytest.raises(UserError, match="expected KEY=NAME; found front"):
        parse_keys(("front",))
    for pairs, shared in ((("a=image_wrist", "a=proprio"), "a"), (("a=depth", "b=depth"), "depth")):
        with pytest.raises(UserError, match=rf"each key .* once; found a=.* with {shared}\."):
            parse_keys(pairs)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=np.int16).reshape(3, 4).T,
        np.zeros((0, 3), np.float32),
        np.float32(0.5),
        np.array(1, bool),
        {"a": [1, "ü", None, b"x"], "b": {"c": np.ones(2, ">f4")}},
    ],
)
def test_messages_come_back_as_they_were(value):
    found = CODEC.unpack(CODEC.pack(value))
    np.testing.assert_equal(found, value)
    if isinstance(value, np.ndarray | np.generic):
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert CODEC.unpack(msgpack.packb(Client.encoded(np.asarray(value)))).dtype == value.dtype


def test_what_is_no_number_is_not_sent():
    for value in (np.array(["a"]), np.array([None]), object()):
        with pytest.raises(TypeError, match="cannot be sent"):
            CODEC.pack(value)


@pytest.mark.parametrize(
    ("by", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow)],
)
def test_the_command_serves_until_it_is_stopped(policy_run, by, code):
    flags = ("--port", "0", "--host", "127.0.0.1", "--seed", "3")
    environment = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "OCTOGRAIN_API_KEY": "k",
        "JAX_LOG_COMPILES": "1",
    }
    process = Command("train.serve", policy_run, *flags, env=environment)
    process.wait_until(lambda: "serving " in process.stderr)
    (port,) = re.findall(r"serving .* at ws://127.0.0.1:(\d+)", process.stderr)
    with Client(int(port), "k") as client:
        assert client.ask(**shown())[0].shape == (4, 7)
    process.wait_until(lambda: "disconnected" in process.stderr)
    process.send_signal(by)
    process.finish(code)
    assert "the policy reads 2 steps at once" in process.stderr
    assert "inference: 1 calls: " in process.stderr
    assert "Traceback" not in process.stderr
    # Nothing is compiled for the first answer, which would make it slow.
    before, _, after = process.stderr.partition(" connected\n")
    first_answer, _, _ = after.partition(" disconnected\n")
    assert "Compiling" in before
    assert "Compiling" not in first_answer


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step", "9"], "expected a checkpoint of step 9"),
        (["--execute_horizon", "5"], "execute_horizon: expected 1 to 4"),
        (["--delay", "1"], "delay: expected an execute_horizon, the steps from one prediction"),
        (
            ["--real_time_chunking", "--execute_horizon", "2"],
            "--real_time_chunking: expected replies with chunks, or a --delay; found replies with",
        ),
        (["--json"], "--json: expected --benchmark, whose result it prints; found no --benchmark"),
        (["--keys", "a=depth"], "--keys: expected observations of the policy"),
        (["--dataset", "other"], "found other"),
        (["--benchmark", "9"], "--benchmark: expected none of --host, --port and --api_key_file"),
        (["--protocol", "vla-eval", "--api_key_file", "KEY"], "KEY: expected no API key with"),
    ],
)
def test_mistakes_on_the_command_line_are_reported(
    policy_run, monkeypatch, capsys, tmp_path, flags, message
):
    from train.serve.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "KEY").write_text("secret")
    monkeypatch.setattr(sys, "argv", ["serve", str(policy_run), "--port", "0", *flags])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_keys_are_checked_before_weights_are_loaded(policy_run, monkeypatch, capsys):
    monkeypatch.setattr(serve_main, "encoder_of", None)
    arguments = ["serve", str(policy_run), "--port", "0", "--keys", "a=depth"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        serve_main.main()
    message = "--keys: expected observations of the policy: image_primary, image_wrist, proprio"
    assert f"{message}; found depth. Use only these." in capsys.readouterr().err


def test_missing_packages_are_reported(policy_run, monkeypatch, capsys):
    from train.serve.__main__ import main

    monkeypatch.setitem(sys.modules, "train.serve.server", None)
    monkeypatch.delattr("train.serve.server", raising=False)
    monkeypatch.setattr(sys, "argv", ["serve", str(policy_run)])
    with pytest.raises(SystemExit):
        main()
    assert "pip install -c constraints.txt -e '.[serve]'" in capsys.readouterr().err
