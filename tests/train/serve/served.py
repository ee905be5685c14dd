"""A policy that is served in a thread of the test's own process, and messages for it."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from train.policy import Policy
from train.serve.client_session import ServeConfig
from train.serve.listener import bind
from train.serve.server import PolicyServer

TEXT = "pick up the bowl"


def shown(seed: int = 0) -> dict[str, Any]:
    """An observation as openpi's LIBERO client sends it."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    return {
        "observation/image": images[0],
        "observation/wrist_image": images[1],
        "observation/state": rng.normal(size=8),
        "prompt": TEXT,
    }


@contextlib.contextmanager
def serving(
    policy: Policy,
    config: ServeConfig | None = None,
    send_buffer: int | None = None,
    **options: Any,
) -> Iterator[int]:
    """The port of a server in a thread of its own."""
    started: dict[str, Any] = {}
    ready = threading.Event()
    listener = bind("127.0.0.1", 0)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)

    async def run() -> None:
        started["stop"], started["loop"] = asyncio.Event(), asyncio.get_running_loop()

        def note(port: int) -> None:
            started["port"] = port
            ready.set()

        await PolicyServer(policy, config or ServeConfig(), **options).run(
            listener, started["stop"], note
        )

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield started["port"]
    finally:
        started["loop"].call_soon_threadsafe(started["stop"].set)
        thread.join(30)
        assert not thread.is_alive()
