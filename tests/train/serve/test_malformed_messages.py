"""Whatever a client sends or leaves out, the server answers in one line, and serves the others."""

import logging
import os
import re
import socket
import threading
import time

import msgpack
import numpy as np
import psutil
import pytest

from tests.train.serve.malformed import drawn, nested
from tests.train.serve.openpi_client import Client
from tests.train.serve.served import serving, shown
from train.serve.client_session import ServeConfig

LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u202e]+: expected .+; found .+\. .+")


def wire(**changed):
    """A valid message with arrays as maps, with some values replaced."""
    return {key: Client.encoded(value) for key, value in shown().items()} | changed


def array(data=b"\0" * 32, dtype="<f4", shape=(8,)):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def state(**parts):
    return {"observation/state": array(**parts)}


def scalar(data, dtype):
    return {b"__npgeneric__": True, b"data": data, b"dtype": dtype}


MESSAGES = [
    (wire(**state(dtype="(1,u1")), "dtype '(1,u1': only numbers and booleans are supported"),
    (wire(**state(dtype="\x1b[31mO")), r"dtype '\x1b[31mO': only"),
    (wire(**state(dtype="|O")), "dtype '|O': only"),
    (wire(**state(dtype=["f4"])), "dtype ['f4']: only"),
    (wire(**state(dtype=None)), "dtype None: only"),
    (wire(**state(dtype="<f3")), "TypeError: data type '<f3' not understood"),
    (wire(**state(shape=(-8,))), "or one out of range"),
    (wire(**state(shape=(2**63, 0), data=b"")), "or one out of range"),
    (wire(**state(shape=(2**40, 2**40))), "32 bytes for an array float32[1099511627776, "),
    (wire(**state(shape=(2**60,) * 100_000)), "more than 32 sizes"),
    (wire(**state(shape=(8.0,))), "shape of an array is not a list of integers"),
    (wire(**state(shape="8")), "shape of an array is not a list of integers"),
    (wire(**state(data="x" * 32)), "data of an array is a str, not bytes"),
    (wire(**state(data=array())), "data of an array is a ndarray, not bytes"),
    (wire(**{"observation/state": {b"__ndarray__": True}}), "dtype None: only"),
    (wire(**{"observation/state": scalar([1, 2], "<f4")}), "data of a scalar is a list"),
    (wire(**{"observation/state": scalar(300, "|u1")}), "OverflowError: "),
    (wire(**{"observation/state": [[1.0], [2.0, 3.0]]}), "a list that is not an array"),
    (wire(**{"observation/state": nested(100)}), "observation/state: "),
    (wire(**{"observation/state": [None] * 8}), "observation/state: object[8]"),
    (wire(**{"observation/state": {"a": 1.0}}), "observation/state: object[]"),
    (wire(**{"observation/image": array()}), "observation/image: float32[8]"),
    (wire(reset=array(b"\1\0", "|b1", (2,))), "reset: bool[2] instead of True or False"),
    (wire(reset="yes"), "reset: str instead of True or False"),
    (wire(prompt=["text"]), "prompt: list"),
    (wire(prompt=array()), "prompt: float32[8]"),
    (wire(prompt="x" * 2_000_000), "prompt: str of 2000000 characters"),
    (wire(extra=[0] * 1_000_001), "exceeds max_array_len"),
    (wire(extra=[[0] * 100_000] * 11), "more than 1000000 values outside arrays"),
    (wire(**{"observation/state": [float("inf")] * 8}), "values that are not finite as float32"),
    (wire(**{"observation/state": [1e300] * 8}), "values that are not finite as float32"),
    (wire(**{"observation/state": [1e30] * 8}), "actions: expected finite values; found NaN"),
]


@pytest.fixture(scope="module")
def port(served_policy):
    with serving(served_policy) as port:
        yield port


def answer(client, data):
    """Returns the server's reply: its text, or whether all actions are finite."""
    client.socket.send(data)
    reply = client.socket.recv()
    if isinstance(reply, str):
        assert LINE.fullmatch(reply), reply
        assert "Traceback" not in reply
        return reply
    actions = msgpack.unpackb(reply)["actions"]
    return bool(np.isfinite(np.frombuffer(actions[b"data"], actions[b"dtype"])).all())


def test_every_malformed_message_is_answered_in_one_line(port, caplog):
    with Client(port) as client:
        before, _ = client.ask(**shown(), reset=True)
        for message, found in MESSAGES:
            text = str(answer(client, msgpack.packb(message)))
            assert found in text
        after, _ = client.ask(**shown(), reset=True)
    assert before.shape == after.shape
    assert not [record for record in caplog.records if record.exc_info]


def test_what_led_to_actions_that_are_not_finite_does_not_stay_in_the_window(served_policy):
    config = ServeConfig(execute_horizon=2)
    huge = shown(2) | {"observation/state": np.full(8, 1e30)}
    with serving(served_policy, config) as port, Client(port) as client:
        client.ask(**shown(1))
        assert np.isfinite(client.ask(**huge)[0]).all()  # it was planned at the message before
        with pytest.raises(RuntimeError, match=r"with a normalised proprio of up to .*e\+"):
            client.ask(**shown(3))
        assert np.isfinite(client.ask(**shown(4))[0]).all()


def test_a_flag_may_be_a_boolean_of_numpy(port):
    with Client(port) as client:
        for flag in (scalar(data=True, dtype="|b1"), array(b"\1", "|b1", ())):
            assert answer(client, msgpack.packb(wire(reset=flag))) is True


def draw_and_send(port, number, seed):
    """Returns the process's growth in bytes over the second half of malformed messages."""
    process, resident = psutil.Process(os.getpid()), []
    refused = 0
    with Client(port) as client:
        for count, data in enumerate(drawn(seed, number, wire())):
            refused += isinstance(answer(client, data), str)
            if count % number == number - 1:
                resident.append(process.memory_info().rss)
        assert client.ask(**shown())[0].shape == (4, 7)
    assert refused > number  # most of them, and not all: some change pixels alone
    return resident[1] - resident[0]


def test_drawn_malformed_messages_are_answered(port, caplog):
    draw_and_send(port, 60, seed=1)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.slow
def test_a_thousand_malformed_messages_are_answered_in_bounded_memory(port, caplog):
    assert draw_and_send(port, 500, seed=2) < 20e6
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    "data",
    [b"\0\n" * 100, b"GET / HTTP/1.1\r\n\r\n", b"GET /\x1b HTTP/9\r\n\r\n", b"\xff" * 10_000],
)
def test_what_is_no_websocket_is_noted_without_a_traceback(port, caplog, data):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(data)
        client.settimeout(10)
        while client.recv(1 << 16):
            pass
    assert not [record for record in caplog.records if record.exc_info]
    with Client(port) as client:
        assert answer(client, msgpack.packb(wire())) is True


def test_bytes_of_all_clients_together_are_bounded(served_policy, caplog):
    with (
        serving(served_policy, max_held_bytes=1_500_000) as port,
        Client(port) as polite,
        handshaken(port) as most,
        handshaken(port) as less,
    ):
        begun = b"\x82\xff" + (10_000_000).to_bytes(8, "big") + b"\0" * 4
        for client, data in (
            # At the byte that is one too many, the first client has twice as many as the second.
            (most, begun + b"\0" * 900_000),
            (less, begun + b"\0" * 500_000),
            (most, b"\0" * 600_000),
        ):
            client.sendall(data)
        deadline = time.monotonic() + 20
        while "the most of" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert answer(polite, msgpack.packb(wire())) is True
        most.settimeout(10)
        assert (1013).to_bytes(2, "big") in b"".join(iter(lambda: most.recv(4096), b""))
    assert caplog.text.count("the most of") == 1


def test_a_server_stops_within_five_seconds_whatever_clients_do(served_policy, monkeypatch):
    answered = threading.Event()
    is_asked = threading.Event()

    def infer(shown):
        is_asked.set()
        answered.wait(30)
        raise AssertionError("nobody waits for it")

    half_open = socket.socket()
    with serving(served_policy, send_buffer=4096) as port:
        half_open.connect(("127.0.0.1", port))
        half_open.sendall(b"GET / HT")
        deaf = handshaken(port)
        refused = b"\x82\x81" + b"\0" * 4 + b"\xc1"
        deaf.settimeout(0.3)
        try:
            for _ in range(2000):  # until neither side takes more
                deaf.sendall(refused * 100)
        except TimeoutError:
            pass
        silent = handshaken(port)
        waiting = Client(port).__enter__()
        monkeypatch.setattr(served_policy, "infer", infer)
        waiting.socket.send(msgpack.packb(wire()))
        assert is_asked.wait(20)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    answered.set()
    for client in (half_open, deaf, silent):
        client.close()


def handshaken(port):
    """A connection whose client reads only the server's handshake."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert client.recv(12) == b"HTTP/1.1 101"
    return client


def test_errors_below_messages_are_one_line(caplog):
    log = logging.getLogger("train.serve.connections")
    try:
        raise ValueError("bad\nrequest")
    except ValueError:
        log.exception("opening handshake failed")
    (record,) = caplog.records
    assert record.getMessage() == r"opening handshake failed: bad\nrequest"
    assert record.exc_info is None
