"""Whatever a client sends or leaves out, the server answers in one line, and serves the others."""

import dataclasses
import gc
import logging
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from tests.train.serve.harness_client import HarnessClient, image
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


# Those of a flag, which the harness does not have.
ONLY_OPENPI = ("instead of True or False",)
NAMES = {
    "observation/image": "agentview",
    "observation/wrist_image": "wrist",
    "observation/state": "states",
    "prompt": "task_description",
}


def as_harness(message):
    """A message of openpi's clients as an OBSERVATION of vla-eval."""
    payload = text_keys(message)
    if isinstance(payload, dict):
        payload = {NAMES.get(key, key): value for key, value in payload.items()}
        cameras = payload.keys() & {"agentview", "wrist"}
        payload["images"] = {name: payload.pop(name) for name in cameras}
    return envelope(payload=payload)


def envelope(**changed):
    return {"type": "observation", "payload": {}, "seq": 7, "timestamp": 0.0} | changed


def text_keys(value):
    """The same with keys of text, as the harness writes an array's map."""
    if not isinstance(value, dict):
        return value
    named = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in value.items()}
    return {key: text_keys(one) for key, one in named.items()}


def with_image(**parts):
    """An OBSERVATION whose image is encoded, with some of its parts replaced."""
    encoded = image(shown()["observation/image"], "png") | parts
    message = as_harness(wire())
    message["payload"]["images"]["agentview"] = encoded
    return message


TWO_ZEROS = {"__ndarray__": True, "data": bytes(16), "dtype": "<i8", "shape": [2]}
PNG = image(shown()["observation/image"], "png")["data"]
ONLY_HARNESS = [
    (with_image(format="gif"), "format 'gif' of an image: only raw, jpeg and png are"),
    (with_image(format=["png"]), "format ['png'] of an image: only"),
    (with_image(format="raw"), "dtype None: only numbers and booleans are supported"),
    (with_image(data="x"), "data of an image is a str, not bytes"),
    (with_image(shape="x"), "shape of an array is not a list of integers"),
    (with_image(shape=[-1, 1, 3]), "or one out of range"),
    (with_image(shape=[]), "agentview: an image of the shape []"),
    (with_image(shape=[128, 128]), "agentview: an image of the shape [128, 128]"),
    (with_image(shape=[128, 128, 4]), "agentview: an image of the shape [128, 128, 4]"),
    (with_image(shape=[0, 128, 3]), "agentview: an image of the shape [0, 128, 3]"),
    (with_image(shape=[2**60, 1, 3]), "agentview: an image of the shape [1152921504606846976, 1"),
    (with_image(shape=[8000, 8000, 3]), "agentview: an image of the shape [8000, 8000, 3]"),
    (with_image(shape=[64, 128, 3]), "found agentview: 128x128"),
    (with_image(data=PNG[:1000]), "found agentview: 1000 bytes that start with b'\\x89PNG"),
    (with_image(data=b"\xff\xd8\x1b[31m"), "found agentview: 7 bytes that start with"),
    (with_image(data=b""), "found agentview: 0 bytes that start with"),
    ([1], "a list instead of a map; seq None; type None; payload NoneType"),
    (envelope(type="\x1b[31m"), r"type '\x1b[31m'; payload dict"),
    (envelope(type=["hello"]), "type ['hello']; payload dict"),
    (envelope(type="action"), "type 'action'"),
    (envelope(payload=[1]), "type 'observation'; payload list"),
    (envelope(seq=-1), "seq -1"),
    (envelope(seq="1"), "seq '1'"),
    (envelope(seq=2**63), "seq 9223372036854775808"),
    (envelope(seq=TWO_ZEROS), "seq array([0, 0])"),
    (envelope(type="hello", payload={"protocol_version": "\n"}), r"protocol_version '\n'"),
    (envelope(type="hello", payload={"protocol_version": TWO_ZEROS}), "array([0, 0]), benchmark"),
    (
        envelope(type="hello", payload={"protocol_version": 1, "benchmark": [1]}),
        "benchmark list",
    ),
    (envelope(payload={"images": {"\x1b]0;x\x07": 1}}), r"sent: images/\x1b]0;x\x07, images"),
    (envelope(payload={3: 4}), "int is not allowed for map key"),
]


@dataclasses.dataclass(frozen=True)
class Wire:
    """A protocol, by the messages that its clients send."""

    config: ServeConfig
    messages: list[tuple[Any, str]]
    wrap: Callable[[Any], Any]
    """Makes a message of one of openpi's."""
    connect: Callable[[int], Any]
    actions: Callable[[bytes], Any]
    """Returns the map of the actions in a reply; a text is an error."""


def started(port):
    """A client that has begun an episode."""

    class Started(HarnessClient):
        def __enter__(self):
            super().__enter__()
            self.hello()
            self.begin()
            return self

    return Started(port)


def harness_actions(reply):
    message = msgpack.unpackb(reply)
    if message["type"] == "error":
        return message["payload"]["error"]
    return message["payload"]["actions"]


def openpi_actions(reply):
    if isinstance(reply, str):
        return reply
    return text_keys(msgpack.unpackb(reply)["actions"])


def renamed(found):
    for key, name in NAMES.items():
        found = found.replace(f"{key}:", f"{name}:")
    return found


WIRES = {
    "openpi": Wire(ServeConfig(), MESSAGES, lambda one: one, Client, openpi_actions),
    "vla-eval": Wire(
        ServeConfig(protocol="vla-eval", execute_horizon=1),
        [
            *((as_harness(m), renamed(f)) for m, f in MESSAGES if not f.endswith(ONLY_OPENPI)),
            *ONLY_HARNESS,
        ],
        as_harness,
        started,
        harness_actions,
    ),
}


@pytest.fixture(scope="module", params=WIRES)
def served(request, served_policy):
    """A protocol, and the port of a server of it."""
    used = WIRES[request.param]
    with serving(served_policy, used.config) as port:
        yield used, port


@pytest.fixture(scope="module")
def port(served_policy):
    with serving(served_policy) as port:
        yield port


def answer(client, data, used=WIRES["openpi"]):
    """Returns the server's reply: its text, or whether all actions are finite."""
    client.socket.send(data)
    actions = used.actions(client.socket.recv())
    if isinstance(actions, str):
        assert LINE.fullmatch(actions), actions
        assert "Traceback" not in actions
        return actions
    return bool(np.isfinite(np.frombuffer(actions["data"], actions["dtype"])).all())


def test_every_malformed_message_is_answered_in_one_line(served, caplog):
    used, port = served
    good = msgpack.packb(used.wrap(wire()))
    with used.connect(port) as client:
        assert answer(client, good, used) is True
        for message, found in used.messages:
            text = str(answer(client, msgpack.packb(message), used))
            assert found in text
        assert answer(client, good, used) is True
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


def draw_and_send(served, number, seed):
    """Returns by how many bytes Python's memory grows over the second half, if it is traced."""
    used, port = served
    traced = []
    refused = 0
    with used.connect(port) as client:
        for count, data in enumerate(drawn(seed, number, wire(), used.wrap)):
            refused += isinstance(answer(client, data, used), str)
            if count % number == number - 1:
                gc.collect()
                traced.append(tracemalloc.get_traced_memory()[0])
        assert answer(client, msgpack.packb(used.wrap(wire())), used) is True
    assert refused > number  # most of them, and not all: some change pixels alone
    return traced[1] - traced[0]


def test_drawn_malformed_messages_are_answered(served, caplog):
    draw_and_send(served, 60, seed=1)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.slow
def test_a_thousand_malformed_messages_are_answered_in_bounded_memory(served, caplog):
    tracemalloc.start()
    try:
        # A kept message has 98 KB; what is kept is the log's lines, in the test.
        assert draw_and_send(served, 500, seed=2) < 5e6
    finally:
        tracemalloc.stop()
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
