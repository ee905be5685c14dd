"""The websocket server: one session per connection, one inference at a time.

It carries frames and measures them; a session of the clients' protocol reads and writes them. With
an API key, a client that does not send it gets 401 instead of a connection.
"""

import asyncio
import concurrent.futures
import contextlib
import http
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from pipeline.errors import UserError
from pipeline.terminal import escaped
from train.policy.policy import Policy
from train.serve.api_key import HEADER, SCHEME, ApiKey
from train.serve.client_session import ProtocolName, ServeConfig, Session
from train.serve.frame_budget import Frames
from train.serve.listener import unusable
from train.serve.msgpack_codec import MAX_MESSAGE_BYTES
from train.serve.openpi_protocol import OpenpiSession
from train.serve.vla_eval.harness_session import VlaEvalSession

HEALTH_PATHS = ("/healthz", "/health")
"""Where openpi's and vla-eval's servers answer whether they are ready."""
_SESSIONS: dict[ProtocolName, type[OpenpiSession] | type[VlaEvalSession]] = {
    "openpi": OpenpiSession,
    "vla-eval": VlaEvalSession,
}
# A benchmark of vla-eval answers no ping while it builds a simulator, which may take minutes. The
# operating system still notices a machine that is gone, by the pings that it does not confirm.
_PING_TIMEOUT_S: dict[ProtocolName, float | None] = {"openpi": 20.0, "vla-eval": None}
# Room for four messages of the largest size; normal ones are a hundredth of it.
_MAX_HELD_BYTES = 4 * MAX_MESSAGE_BYTES
_MAX_CONNECTIONS = 200
# Frames that wait in the library are in memory, though nobody reads them yet.
_MAX_QUEUED_FRAMES = 2
_SECONDS_TO_OPEN = 5.0
# With the abort below less than the three seconds that `run` promises.
_SECONDS_TO_CLOSE = 1.5
_SECONDS_TO_ABORT = 0.5

_log = logging.getLogger(__name__)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Logs clients' errors below the level of messages in one line, without a traceback."""
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        # Lines of clients are escaped: they could fake entries of the log.
        record.msg, record.args = "%s: %s", (record.getMessage(), escaped(str(error)))
        record.exc_info = None
    return True


_connection_log = logging.getLogger("train.serve.connections")
# The library logs a traceback for every client that leaves without closing.
_connection_log.addFilter(_without_traceback)
_connection_log.setLevel(logging.ERROR)


class PolicyServer:
    """Serves a policy until it is stopped.

    Args:
      policy: The policy that acts.
      config: What clients send and receive.
      api_key: Key that clients must send; None: none is asked for.
      max_held_bytes: Limit for the bytes of all clients' messages that are not answered yet.

    Raises:
      UserError: The config does not fit the policy; or there is a key, and clients of the protocol
        cannot send one.
    """

    def __init__(
        self,
        policy: Policy,
        config: ServeConfig,
        api_key: ApiKey | None = None,
        max_held_bytes: int = _MAX_HELD_BYTES,
    ) -> None:
        config.check_api_key(api_key)
        # Made for its checks: an unusable horizon is an error now, not at the first client.
        config.make_execution(policy)
        self._policy = policy
        self._config = config
        self._api_key = api_key
        self._numbers = itertools.count()
        self._frames = Frames(max_held_bytes, _MAX_CONNECTIONS)
        self._thread: threading.Thread | None = None
        # Held for a message at a time, so clients take turns.
        self._lock = asyncio.Lock()  # the policy and the device serve one client at a time

    async def run(
        self, listener: socket.socket, stop: asyncio.Event, ready: Callable[[int], None]
    ) -> None:
        """Serves until `stop` is set, then closes all connections within three seconds.

        Args:
          listener: The socket that `bind` returned.
          stop: Ends the server, whatever clients do; see `is_answering`.
          ready: Called with the port once clients can connect.

        Raises:
          UserError: The address cannot be listened at.
        """
        address, port = listener.getsockname()[:2]
        try:
            server = await serve(
                self._serve,
                sock=listener,
                # Images hardly compress, and compressing costs time at every step.
                compression=None,
                max_size=MAX_MESSAGE_BYTES,
                max_queue=_MAX_QUEUED_FRAMES,
                open_timeout=_SECONDS_TO_OPEN,
                close_timeout=_SECONDS_TO_CLOSE,
                ping_timeout=_PING_TIMEOUT_S[self._config.protocol],
                process_request=self._answer_request,
                create_connection=cast(Any, self._frames.connect),
                logger=_connection_log,
            )
        except OSError as error:
            raise unusable(f"{address}:{port}", error) from error
        try:
            ready(port)
            await stop.wait()
        finally:
            # Also if `ready` fails: the socket must not stay open.
            server.close()
            await self._wait_closed(server)

    async def _wait_closed(self, server: Server) -> None:
        """Waits for clients that close the connection properly; ends the other connections."""
        # Once for clients that answer the closing frame, once more for those that were aborted.
        for seconds in (_SECONDS_TO_CLOSE, _SECONDS_TO_ABORT):
            try:
                await asyncio.wait_for(server.wait_closed(), seconds)
            except TimeoutError:
                self._frames.abort_all()
            else:
                return

    @property
    def is_answering(self) -> bool:
        """Returns whether a prediction is running; it ends at the latest with the process."""
        # The thread is a daemon, so it does not keep the process alive. With a delay, a prediction
        # has another.
        return self._policy.is_busy or (self._thread is not None and self._thread.is_alive())

    def _make_session(self) -> Session:
        return _SESSIONS[self._config.protocol](self._policy, self._config, self._numbers)

    def _answer_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers before the upgrade to a websocket: health checks, and clients without the key."""
        # Without the key: load balancers have none, and the answer says nothing else.
        if request.path in HEALTH_PATHS:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._api_key is None:
            return None
        problem = self._api_key.find_problem(request.headers.get_all(HEADER))
        if problem is None:
            return None
        _log.warning("%s refused: %s", connection.remote_address, problem)
        text = f"{problem}: expected the header {HEADER}: {SCHEME} KEY\n"
        response = connection.respond(http.HTTPStatus.UNAUTHORIZED, text)
        response.headers["WWW-Authenticate"] = SCHEME
        return response

    async def _serve(self, connection: ServerConnection) -> None:
        """Serves one client until it disconnects."""
        client = connection.remote_address
        session = self._make_session()
        _log.info("%s connected", client)
        end = "disconnected"
        try:
            if session.greeting is not None:
                await connection.send(session.greeting)
            await self._talk(connection, session)
        except ConnectionClosed:
            end = "disconnected without closing"
        finally:
            # A prediction for this session may still run, after its client left: closing waits.
            async with self._lock:
                with contextlib.suppress(TimeoutError):  # it ends in its thread then
                    await asyncio.wait_for(self._in_thread(session.close), _SECONDS_TO_ABORT)
        _log.info("%s %s", client, end)

    async def _talk(self, connection: ServerConnection, session: Session) -> None:
        # The total includes sending, so it is known one reply later. openpi's server adds the time
        # until the message arrives, in which its client acts.
        previous_ms = None
        async for data in connection:
            started = time.perf_counter()
            try:
                reply = await self._answer(session, data)
            except UserError as error:
                text = str(error)  # a kept log record must not keep the message in memory
                # The client stays connected: it can send a better observation.
                _log.warning("%s: %s", connection.remote_address, text)
                await connection.send(session.refusal(text))
                continue
            except Exception as error:  # noqa: BLE001  (its client gets the reason; others stay)
                _log.exception("%s: the session has ended", connection.remote_address)
                text = f"the server failed: {type(error).__name__}; see its log"
                await connection.send(session.refusal(text))
                await connection.close(CloseCode.INTERNAL_ERROR, "the text before gives the reason")
                # An error of this project's: the session's state is not known to be whole.
                return
            finally:
                # `websockets` counts text in characters, but it arrived as bytes.
                num_bytes = len(data if isinstance(data, bytes) else data.encode())
                self._frames.release(connection, num_bytes)
            if reply is None:
                continue
            if previous_ms is not None:
                reply["server_timing"]["prev_total_ms"] = previous_ms
            await connection.send(session.pack(reply))
            previous_ms = 1000 * (time.perf_counter() - started)

    async def _answer(self, session: Session, data: str | bytes) -> dict[str, Any] | None:
        """Computes a reply in a thread, so that other clients and health checks are answered."""
        if isinstance(data, str):
            raise UserError(
                where="message",
                expected="a binary frame of msgpack",
                found="a text frame",
                remedy="Send bytes.",
            )
        arrived = time.perf_counter()
        async with self._lock:
            started = time.perf_counter()
            # Unpacking too, which for 64 MiB would stop the event loop.
            reply = await self._in_thread(lambda: session.answer(data))
            ended = time.perf_counter()
        if reply is None:
            return None
        timing = {"infer_ms": 1000 * (ended - started), "wait_ms": 1000 * (started - arrived)}
        return {**reply, "server_timing": timing | reply.get("server_timing", {})}

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Returns the result from a thread that does not keep the process alive."""
        # asyncio's own executor would wait for the thread when the process ends.
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        self._thread = threading.Thread(target=_complete, args=(future, function), daemon=True)
        self._thread.start()
        return await asyncio.wrap_future(future)


# A function of the module: the type checks of the tests keep every nested one, with its message.
def _complete(future: concurrent.futures.Future[Any], function: Callable[[], Any]) -> None:
    """Sets a future's result, or the error that is raised where it is awaited."""
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001  (raised where it is awaited)
        future.set_exception(error)
