"""A bound on what all connections of a server hold in memory together."""

import logging
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode

_SECONDS_TO_LEAVE = 1.0
_WITH_DATA = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)
_log = logging.getLogger(__name__)


class Frames:
    """Bytes that clients have sent and that are not answered yet, by connection.

    Where all together exceed the limit, the connection that holds the most is closed; where there
    are too many connections, the new one is.

    Args:
      max_bytes: Of all connections together.
      max_connections: At a time.
    """

    def __init__(self, max_bytes: int, max_connections: int) -> None:
        self._max_bytes = max_bytes
        self._max_connections = max_connections
        self._held: dict[CountedConnection, int] = {}

    def connect(self, *args: Any, **options: Any) -> "CountedConnection":
        """A connection that is counted; arguments as of `ServerConnection`."""
        return CountedConnection(self, *args, **options)

    def abort_all(self) -> None:
        """Ends every connection at once, whatever its client does."""
        for connection in list(self._held):
            connection.transport.abort()

    def admit(self, connection: "CountedConnection") -> None:
        """Begins to count a connection, or ends it where there are too many."""
        if len(self._held) >= self._max_connections:
            _log.warning("%d connections: one more is refused", len(self._held))
            connection.transport.abort()
            return
        self._held[connection] = 0

    def count(self, connection: "CountedConnection", held_bytes: int) -> None:
        """Notes what a connection holds now."""
        if connection not in self._held:
            return
        self._held[connection] = held_bytes
        total = sum(self._held.values())
        if total > self._max_bytes:
            largest = max(self._held, key=lambda one: self._held[one])
            _log.warning(
                "%s: closed, for its %d bytes are the most of %d that clients hold together",
                largest.remote_address,
                self._held[largest],
                total,
            )
            self.drop(largest)
            largest.leave()

    def release(self, connection: ServerConnection, num_bytes: int) -> None:
        """Counts a message of this size of a connection no longer: it is answered."""
        assert isinstance(connection, CountedConnection)  # `connect` made it
        connection.release(num_bytes)

    def drop(self, connection: "CountedConnection") -> None:
        """Counts a connection no longer."""
        self._held.pop(connection, None)


class CountedConnection(ServerConnection):
    """A connection whose bytes are counted from their arrival to `release`."""

    def __init__(self, frames: Frames, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._frames = frames
        self._partial_bytes = 0  # of a frame that is not whole yet; at most one read too many
        self._last_bytes = 0
        self._whole_bytes = 0  # of frames whose message is not answered yet

    def connection_made(self, transport: Any) -> None:
        """As of the class above."""
        super().connection_made(transport)
        self._frames.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """As of the class above."""
        self._frames.drop(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As of the class above."""
        self._partial_bytes += len(data)
        self._last_bytes = len(data)
        super().data_received(data)
        self._count()

    def process_event(self, event: Any) -> None:
        """As of the class above; a frame is whole, and what is left came with the last read."""
        self._partial_bytes = self._last_bytes
        if isinstance(event, Frame) and event.opcode in _WITH_DATA:
            self._whole_bytes += len(event.data)
        super().process_event(event)

    def release(self, num_bytes: int) -> None:
        """Counts a message of this size no longer: it is answered."""
        self._whole_bytes -= num_bytes
        self._count()

    def leave(self) -> None:
        """Closes the connection, without waiting for its client."""
        self.protocol.fail(CloseCode.TRY_AGAIN_LATER, "clients hold too many bytes together")
        self.send_data()
        self.loop.call_later(_SECONDS_TO_LEAVE, self.transport.abort)

    def _count(self) -> None:
        self._frames.count(self, self._partial_bytes + self._whole_bytes)
