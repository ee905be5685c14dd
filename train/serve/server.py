"""The websocket server: one session a connection, one inference at a time.

client                                       server
connects                                 ->
<-  what the policy is (`describe_policy`)
{"observation/image": ..., "prompt": ..} ->
<-  {"actions": ..., "server_timing": ...}
an observation that does not fit         ->
<-  a text frame that says why; the connection stays
GET /healthz                             ->
<-  200 OK
"""

import asyncio
import http
import itertools
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from pipeline.errors import UserError
from train.policy.policy import Policy
from train.serve.codec import pack, unpack
from train.serve.session import ServeConfig, Session, describe_policy

HEALTH_PATH = "/healthz"
_MAX_MESSAGE_BYTES = 1 << 28

_log = logging.getLogger(__name__)


class PolicyServer:
    """Serves a policy until it is stopped.

    Args:
      policy: That acts.
      config: What clients send and get.
    """

    def __init__(self, policy: Policy, config: ServeConfig) -> None:
        self._policy = policy
        self._config = config
        self._metadata = pack(describe_policy(policy, config))
        self._numbers = itertools.count()
        self._lock = asyncio.Lock()  # the policy and the device serve one client at a time

    async def run(
        self, host: str, port: int, stop: asyncio.Event, ready: Callable[[int], None]
    ) -> None:
        """Serves until `stop` is set; then says good-bye to every client.

        Args:
          host: Address that is listened at.
          port: The same; 0: a free one.
          stop: Ends it.
          ready: Called with the port once clients can connect.

        Raises:
          UserError: The address cannot be listened at.
        """
        try:
            server = await serve(
                self._serve,
                host,
                port,
                compression=None,
                max_size=_MAX_MESSAGE_BYTES,
                process_request=_answer_health_check,
            )
        except OSError as error:
            raise UserError(
                where=f"{host}:{port}",
                expected="an address to listen at",
                found=error.strerror or str(error),
                remedy="Name another --port or --host.",
            ) from error
        async with server:
            ready(next(iter(server.sockets)).getsockname()[1])
            await stop.wait()

    async def _serve(self, connection: ServerConnection) -> None:
        """One client, until it goes."""
        client = connection.remote_address
        session = Session(self._policy, self._config, self._numbers)
        _log.info("%s connected", client)
        try:
            await connection.send(self._metadata)
            await self._talk(connection, session)
        except ConnectionClosed:
            _log.info("%s broke off", client)
        finally:
            async with self._lock:
                session.close()
        _log.info("%s left", client)

    async def _talk(self, connection: ServerConnection, session: Session) -> None:
        previous_ms = None
        async for data in connection:
            started = time.perf_counter()
            try:
                reply = await self._answer(session, data)
            except UserError as error:
                _log.warning("%s: %s", connection.remote_address, error)
                await connection.send(str(error))
                continue
            except Exception:  # noqa: BLE001  (its client is told; others go on)
                _log.exception("%s: the session has ended", connection.remote_address)
                await connection.send(traceback.format_exc())
                await connection.close(CloseCode.INTERNAL_ERROR, "the text before says why")
                return
            if previous_ms is not None:
                reply["server_timing"]["prev_total_ms"] = previous_ms
            await connection.send(pack(reply))
            previous_ms = 1000 * (time.perf_counter() - started)

    async def _answer(self, session: Session, data: str | bytes) -> dict[str, Any]:
        """A reply, computed in a thread, so that other clients and health checks are heard."""
        if isinstance(data, str):
            raise UserError(
                where="message",
                expected="a binary frame of msgpack",
                found="a text frame",
                remedy="Send bytes.",
            )
        message = unpack(data)
        async with self._lock:
            started = time.perf_counter()
            reply = await asyncio.to_thread(session.answer, message)
            infer_ms = 1000 * (time.perf_counter() - started)
        return {**reply, "server_timing": {"infer_ms": infer_ms}}


def _answer_health_check(connection: ServerConnection, request: Request) -> Response | None:
    if request.path == HEALTH_PATH:
        return connection.respond(http.HTTPStatus.OK, "OK\n")
    return None
