"""Limits the memory that all connections of a server hold together."""

import logging
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode

_SECONDS_TO_LEAVE = 1.0
# Opcodes of frames that carry a message; pings and closing frames are answered at once.
_WITH_DATA = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)
_log = logging.getLogger(__name__)


class Frames:
    """Counts the bytes that clients have sent and that are not answered yet, by connection.

    If the total exceeds the limit, the connection that holds the most is closed. If there are too
    many connections, a new one is closed.

    Args:
      max_bytes: Limit for all connections together.
      max_connections: Largest number of connections at a time.
    """

    def __init__(self, max_bytes: int, max_connections: int) -> None:
        self._max_bytes = max_bytes
        self._max_connections = max_connections
        self._held: dict[CountedConnection, int] = {}

    def connect(self, *args: Any, **options: Any) -> "CountedConnection":
        """Makes a counted connection; the arguments are those of `ServerConnection`."""
        return CountedConnection(self, *args, **options)

    def abort_all(self) -> None:
        """Ends every connection at once, whatever its client does."""
        # A copy: connections leave the dictionary as they end.
        for connection in list(self._held):
            connection.transport.abort()

    def admit(self, connection: "CountedConnection") -> None:
        """Starts counting a connection, or ends it if there are too many."""
        if len(self._held) >= self._max_connections:
            _log.warning("%d connections: a further one is refused", len(self._held))
            connection.transport.abort()
            return
        self._held[connection] = 0

    def count(self, connection: "CountedConnection", held_bytes: int) -> None:
        """Records what a connection holds now."""
        # It was refused or dropped, and its last bytes still arrive.
        if connection not in self._held:
            return
        self._held[connection] = held_bytes
        total = sum(self._held.values())
        if total > self._max_bytes:
            # The largest one: a client with one small message is never closed for another's flood.
            largest = max(self._held, key=lambda one: self._held[one])
            _log.warning(
                "%s: closed, because its %d bytes are the most of %d that clients hold together",
                largest.remote_address,
                self._held[largest],
                total,
            )
            # Dropped at once, not when it is closed: otherwise the next message would close one
            # more.
            self.drop(largest)
            largest.leave()

    def release(self, connection: ServerConnection, num_bytes: int) -> None:
        """Stops counting a message of this size, because it is answered."""
        assert isinstance(connection, CountedConnection)  # `connect` made it
        connection.release(num_bytes)

    def drop(self, connection: "CountedConnection") -> None:
        """Stops counting a connection."""
        self._held.pop(connection, None)


class CountedConnection(ServerConnection):
    """A connection whose bytes are counted from their arrival until `release`."""

    def __init__(self, frames: Frames, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._frames = frames
        # Bytes are counted when they arrive, before the library has put them together.
        self._partial_bytes = 0  # of an incomplete frame; at most one read too many
        self._last_bytes = 0
        self._whole_bytes = 0  # of complete frames whose message is not answered yet

    def connection_made(self, transport: Any) -> None:
        """Starts counting the connection; overrides `ServerConnection`."""
        super().connection_made(transport)
        self._frames.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops counting the connection; overrides `ServerConnection`."""
        self._frames.drop(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts the received bytes; overrides `ServerConnection`."""
        self._partial_bytes += len(data)
        self._last_bytes = len(data)
        super().data_received(data)
        # After the frames in these bytes were processed, so that none is counted twice.
        self._count()

    def process_event(self, event: Any) -> None:
        """Counts a complete frame; the rest of the last read belongs to the next frame."""
        # What came before the last read is all in the frame; of the last read a part may be.
        self._partial_bytes = self._last_bytes
        if isinstance(event, Frame) and event.opcode in _WITH_DATA:
            self._whole_bytes += len(event.data)
        super().process_event(event)

    def release(self, num_bytes: int) -> None:
        """Stops counting a message of this size, because it is answered."""
        self._whole_bytes -= num_bytes
        self._count()

    def leave(self) -> None:
        """Closes the connection without waiting for its client."""
        # 1013, which asks a client to come back later.
        self.protocol.fail(CloseCode.TRY_AGAIN_LATER, "clients hold too many bytes together")
        self.send_data()
        # A client that does not read would keep the closing frame, and the connection, forever.
        self.loop.call_later(_SECONDS_TO_LEAVE, self.transport.abort)

    def _count(self) -> None:
        self._frames.count(self, self._partial_bytes + self._whole_bytes)
