"""A client of vla-eval's protocol, written from the description in docs/vla_eval.md alone."""

import io
from typing import Any

import msgpack
import numpy as np
from PIL import Image
from websockets.sync.client import connect


class HarnessClient:
    """Sends messages as a benchmark does, and counts them."""

    def __init__(self, port: int) -> None:
        self.connection = connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None)
        self.seq = 0

    def __enter__(self):
        self.socket = self.connection.__enter__()
        return self

    def __exit__(self, *error):
        self.connection.__exit__(*error)

    def send(self, kind: str, payload: Any) -> None:
        self.seq += 1
        self.socket.send(msgpack.packb(message(kind, payload, self.seq)))

    def ask(self, kind: str, payload: Any) -> dict[str, Any]:
        """The payload of the reply, which has the number of the message."""
        self.send(kind, payload)
        return self.receive(self.seq)

    def receive(self, seq: int) -> dict[str, Any]:
        reply = msgpack.unpackb(self.socket.recv())
        assert reply["seq"] == seq
        assert isinstance(reply["timestamp"], float)
        if reply["type"] == "error":
            raise RuntimeError(reply["payload"]["error"])
        return reply["payload"]

    def hello(self) -> dict[str, Any]:
        return self.ask("hello", {"harness_version": "0.8.0", "protocol_version": 1})

    def begin(self) -> None:
        self.send("episode_start", {"task": {"name": "a task", "episode_idx": 0}})

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        return array(self.ask("observation", observation)["actions"])


def array(sent: dict[str, Any]) -> np.ndarray:
    """The array of a map."""
    assert sent["__ndarray__"] is True
    return np.frombuffer(sent["data"], sent["dtype"]).reshape(sent["shape"])


def message(kind: str, payload: Any, seq: int = 1) -> dict[str, Any]:
    return {"type": kind, "payload": encoded(payload), "seq": seq, "timestamp": 0.0}


def encoded(value: Any) -> Any:
    """Arrays as maps; images as PNG."""
    if isinstance(value, dict):
        return {key: encoded(one) for key, one in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.uint8 and value.ndim == 3:
        return image(value, "png")
    return {
        "__ndarray__": True,
        "data": value.tobytes(),
        "dtype": value.dtype.str,
        "shape": value.shape,
    }


def image(pixels: np.ndarray, encoding: str) -> dict[str, Any]:
    """An image as the harness encodes it."""
    if encoding == "raw":
        data, more = pixels.tobytes(), {"dtype": "|u1"}
    else:
        file, more = io.BytesIO(), {}
        Image.fromarray(pixels).save(file, format=encoding)
        data = file.getvalue()
    return {"__image__": True, "format": encoding, "data": data, "shape": pixels.shape, **more}


def observation(seed: int = 0, text: str = "pick up the bowl") -> dict[str, Any]:
    """An observation as the harness's LIBERO benchmark sends it, at the size of the tiny policy."""
    rng = np.random.default_rng(seed)
    agentview, wrist = rng.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    states = rng.normal(size=8)
    # The gripper points down, as in LIBERO: half a turn about the x axis.
    states[3:6] = np.array([3.13, 0.0, -0.1]) + 0.01 * states[3:6]
    return {
        "images": {"agentview": agentview, "wrist": wrist},
        "task_description": text,
        "states": states,
        "controller_states": rng.normal(size=8).astype(np.float32),
    }


def as_observation(payload: dict[str, Any]) -> dict[str, np.ndarray]:
    """The same by the policy's names."""
    images = payload["images"]
    return {
        "image_primary": images["agentview"],
        "image_wrist": images["wrist"],
        "proprio": payload["states"],
    }
