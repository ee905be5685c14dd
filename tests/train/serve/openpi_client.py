"""A client of openpi's protocol, written from the description in docs/acting.md alone."""

import msgpack
import numpy as np
from websockets.sync.client import connect


class Client:
    """A client written from the protocol's description alone; it builds its messages by hand."""

    def __init__(self, port: int, api_key: str | None = None) -> None:
        headers = None if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self.connection = connect(
            f"ws://127.0.0.1:{port}", compression=None, max_size=None, additional_headers=headers
        )

    def __enter__(self):
        self.socket = self.connection.__enter__()
        self.metadata = msgpack.unpackb(self.socket.recv())
        return self

    def __exit__(self, *error):
        self.connection.__exit__(*error)

    def ask(self, **message):
        self.send(**message)
        return self.receive()

    def send(self, **message):
        self.socket.send(msgpack.packb({k: self.encoded(v) for k, v in message.items()}))

    def receive(self):
        reply = self.socket.recv()
        if isinstance(reply, str):
            raise RuntimeError(reply)
        self.reply = reply = msgpack.unpackb(reply)
        actions = reply["actions"]
        assert actions[b"__ndarray__"] is True
        actions = np.frombuffer(actions[b"data"], actions[b"dtype"]).reshape(actions[b"shape"])
        return actions, reply["server_timing"]

    @staticmethod
    def encoded(value):
        if not isinstance(value, np.ndarray):
            return value
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
