"""Serves a policy from a program of one's own, in a thread."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from types import ModuleType

from pipeline.arguments import named_arguments
from pipeline.errors import UserError, install_extra
from train.policy.policy import Policy
from train.serve.api_key import ApiKey
from train.serve.client_session import ServeConfig
from train.serve.listener import bind


@named_arguments("ServeConfig has the keys that clients send.")
@contextlib.contextmanager
def serving(
    policy: Policy,
    config: ServeConfig | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
) -> Iterator[int]:
    """Serves a policy while the block lasts; the value is the port that clients connect to.

        with serving(policy) as port:
            ...    # openpi's clients, or one of your own, at ws://127.0.0.1:{port}

    Do not call the policy inside the block: it answers one caller at a time. `octograin serve` does
    the same in a process of its own.

    Args:
      policy: The policy that acts.
      config: What clients send and receive; None: the keys of openpi's clients, and whole chunks.
      host: Address to listen at.
      port: Port; 0: any free one.
      api_key: Key that clients must send; None: none is asked for.

    Raises:
      UserError: The extra `serve` is not installed; the config does not fit the policy; the key is
        empty or has spaces; or there is no such address, or it is in use.
    """
    key = None if api_key is None else ApiKey(api_key)
    server = import_server().PolicyServer(policy, config or ServeConfig(), key)
    with bind(host, port) as listener, _loop_in_thread() as loop:
        policy.warm_up()
        stop, ready = asyncio.Event(), concurrent.futures.Future[int]()
        ended = asyncio.run_coroutine_threadsafe(server.run(listener, stop, ready.set_result), loop)
        concurrent.futures.wait([ready, ended], return_when=concurrent.futures.FIRST_COMPLETED)
        try:
            if ready.done():
                yield ready.result()
        finally:
            loop.call_soon_threadsafe(stop.set)
            ended.result()


def import_server() -> ModuleType:
    """Imports the server's module, which needs extra packages.

    Raises:
      UserError: They are not installed.
    """
    try:
        from train.serve import server  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise UserError(
            where="octograin serve",
            expected="the packages websockets and msgpack",
            found=f"{error.name} is not installed",
            remedy=f"{install_extra('serve')}.",
        ) from error
    return server


@contextlib.contextmanager
def _loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
