"""Ends a process, with one line, once another process of its run has died or hangs."""

import contextlib
import dataclasses
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal, cast

from pipeline.errors import EXIT_OTHER_DIED, UserError

_BEAT_S = 1.0
"""Each process sends the others a message this often."""
_SILENCE_S = 55.0
"""A process that sends none for this long counts as dead; then all others end within 60 s."""
_SUSPECT_S = 3.0
"""If a process fails while another has been silent for this long, that one may be the cause."""
_PAUSE_S = 5.0
"""If this process has looked at no messages for this long, it was stopped itself: no silence of
another one counts that it had no chance to hear, as when all processes were stopped together."""
_CONNECT_S = 20.0
"""How long connecting may take, and a connection may say nothing before its first message."""
_READING_S = 1.0
"""How long process 0 waits until the others have read who has died."""
_LONGEST_BYTES = 1 << 16
"""The longest message."""
_ENDED = "that it was killed (out of memory, for example), or that its host failed"
_SILENT = f"no sign of life for {_SILENCE_S:.0f} s: it hangs, or its host or the network failed"


@dataclasses.dataclass(frozen=True)
class Address:
    """Where process 0 listens for the others."""

    host: str
    port: int
    token: str
    """Part of every message, so that nothing else on the network is taken for a process."""
    name: str
    """What messages call the host: process 0 may die before it says so itself."""


@dataclasses.dataclass
class _Member:
    """What is known about a process of the run."""

    index: int
    """-1: it has not sent a message yet."""
    host: str
    state: Literal["running", "leaving", "failed", "dead"] = "running"
    found: str = ""
    """What was found instead of a running process."""


@dataclasses.dataclass
class _Link:
    """A connection to another process."""

    connection: socket.socket
    other: _Member
    heard_s: float
    """When its last message arrived."""
    unread: bytes = b""
    """The start of a message whose rest has not arrived."""
    is_open: bool = True


class Liveness:
    """Tells the other processes that this one runs, and ends it once another one has died.

    Every process holds a connection to process 0. A process has died if its connection closes
    before it has called `leave`, or if it is silent for 55 s. Process 0 then tells all others. A
    thread does this, so it works while the main thread compiles, waits for another process, or
    writes a checkpoint.

    Args:
      index: The number of this process.
      host: The name of this host.
      zero: Where process 0 listens; None in process 0 itself.
      end: Called with the line that reports another process's death. By default it writes the line
        to stderr, and ends this process with exit code 75.

    Raises:
      OSError: Process 0 cannot be reached.
    """

    def __init__(
        self,
        index: int,
        host: str,
        zero: Address | None = None,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._own = _Member(index, host)
        self._end = end or _exit
        self._token = zero.token if zero else secrets.token_hex(8)
        self._sending = threading.Lock()
        # Replaced, never changed in place where one is removed: two threads send.
        self._links: list[_Link] = []
        self._selector = selectors.DefaultSelector()
        self._listener = None
        if zero is None:
            self._listener = _listen()
            self._selector.register(self._listener, selectors.EVENT_READ)
        else:
            connection = socket.create_connection((zero.host, zero.port), _CONNECT_S)
            self._add(connection, _Member(0, zero.name))
            # At once: process 0 sends nothing to those that it does not know.
            self._send(self._own)
        self._none_failed_s = time.monotonic()
        self._is_over = threading.Event()
        # A daemon: it ends with the process.
        threading.Thread(target=self._run, daemon=True, name="liveness").start()

    def address(self, host: str) -> Address:
        """Returns where the others connect to this process, which is process 0, under a host name.

        Raises:
          ValueError: This is not process 0.
        """
        if self._listener is None:
            raise ValueError(f"process {self._own.index} does not listen")
        return Address(host, self._listener.getsockname()[1], self._token, self._own.host)

    def leave(self) -> None:
        """Reports that this process ends because its work is done."""
        self._own.state = "leaving"
        self._send(self._own)

    def fail(self, error: str) -> None:
        """Reports that this process failed; returns once the others know, and end as well.

        If another process has died, which may have caused the error, this process ends here.

        Args:
          error: The error, which the other processes print.
        """
        self._own.found, self._own.state = error, "failed"
        self._send(self._own)
        # A process that is silent now may be the cause; it is dead or heard within 55 s.
        self._is_over.wait(_SILENCE_S + _SUSPECT_S)

    def _run(self) -> None:
        beaten_s, looked_s = 0.0, time.monotonic()
        while not self._is_over.is_set():
            for key, _ in self._selector.select(_BEAT_S):
                if key.data is None:
                    self._accept()
                else:
                    self._receive(key.data)
            now_s = time.monotonic()
            if now_s - looked_s > _PAUSE_S:
                self._excuse(now_s, now_s - looked_s)
            looked_s = now_s
            self._forget_strangers(now_s)
            if time.monotonic() - beaten_s >= _BEAT_S:
                beaten_s = time.monotonic()
                self._send(self._own)
            # As of the time of reading: this process may have been stopped since.
            dead = self._dead(now_s)
            if dead is not None:
                self._conclude(dead)
            if self._own.state == "leaving" and not any(link.is_open for link in self._links):
                self._is_over.set()
        self._close()

    def _excuse(self, now_s: float, pause_s: float) -> None:
        """Does not count a silence while this process itself was stopped."""
        for link in self._links:
            link.heard_s = min(link.heard_s + pause_s, now_s)

    def _forget_strangers(self, now_s: float) -> None:
        """Drops connections that have ended, or say nothing, without belonging to the run."""
        strangers = [link for link in self._links if link.other.index < 0]
        gone = [s for s in strangers if not s.is_open or now_s - s.heard_s > _CONNECT_S]
        if gone:
            self._links = [link for link in self._links if link not in gone]
        for link in gone:
            self._shut(link)

    def _shut(self, link: _Link) -> None:
        if link.is_open:
            self._selector.unregister(link.connection)
            link.connection.close()
            link.is_open = False

    def _close(self) -> None:
        for key in list(self._selector.get_map().values()):
            cast(socket.socket, key.fileobj).close()
        self._selector.close()

    def _add(self, connection: socket.socket, other: _Member) -> None:
        # A process that does not read must not block the thread; messages are short.
        connection.settimeout(_BEAT_S)
        link = _Link(connection, other, time.monotonic())
        self._links.append(link)
        self._selector.register(connection, selectors.EVENT_READ, link)

    def _accept(self) -> None:
        assert self._listener is not None
        # A connection that was closed before it is accepted is an error.
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            self._add(connection, _Member(-1, ""))

    def _receive(self, link: _Link) -> None:
        """Reads the messages of one process that have arrived."""
        try:
            data = link.connection.recv(_LONGEST_BYTES)
        except TimeoutError:
            # Nothing had arrived after all.
            return
        except OSError:
            # A connection that broke has ended like one that was closed.
            data = b""
        *messages, link.unread = (link.unread + data).split(b"\n")
        is_known = all(self._take(link, message) for message in messages)
        if not data or not is_known or len(link.unread) > _LONGEST_BYTES:
            self._shut(link)

    def _take(self, link: _Link, message: bytes) -> bool:
        """Notes what a process says; returns whether it belongs to the run."""
        # Before it is parsed: what a stranger sends may be anything.
        if not message.startswith(json.dumps([self._token])[:-1].encode()):
            return False
        with contextlib.suppress(ValueError, TypeError):
            _, *fields = json.loads(message)
            link.other, link.heard_s = _Member(*fields), time.monotonic()
            return True
        return False

    def _send(self, about: _Member) -> None:
        """Sends every other process a message about a process."""
        message = json.dumps([self._token, *dataclasses.astuple(about)]).encode() + b"\n"
        with self._sending:
            # Not to a stranger, who would learn the token.
            for link in (one for one in self._links if one.other.index >= 0):
                # Reading from a broken connection shows that it is.
                with contextlib.suppress(OSError):
                    link.connection.sendall(message)

    def _dead(self, now_s: float) -> _Member | None:
        """Returns the process that has died, if any: the first cause if there are several."""
        for link in self._links:
            other = link.other
            # From process 0, which tells the others who has died.
            if other.state == "dead":
                return other
            # Its connection may break before the word of process 0 about its failure arrives.
            if other.state == "failed" and not link.is_open:
                return other
            if other.index < 0 or other.state != "running":
                continue
            if not link.is_open:
                return dataclasses.replace(other, found=_ENDED)
            if now_s - link.heard_s > _SILENCE_S:
                return dataclasses.replace(other, found=_SILENT)
        return self._failed(now_s) if self._listener else None

    def _failed(self, now_s: float) -> _Member | None:
        """Returns, in process 0, a process that failed by itself, not because another one died."""
        failed = [one.other for one in self._links if one.other.state == "failed"]
        failed += [self._own] if self._own.state == "failed" else []
        if not failed:
            self._none_failed_s = now_s
            return None
        running = [one for one in self._links if one.is_open and one.other.state == "running"]
        # An error of a collective arrives together with the death that causes it, or before.
        is_alone = all(now_s - one.heard_s < _SUSPECT_S for one in running)
        return failed[0] if is_alone and now_s - self._none_failed_s > _BEAT_S else None

    def _await_reading(self) -> None:
        """Waits until the others have closed their ends, for a second at most.

        Closing a connection with unread messages discards what was sent last.
        """
        last_s = time.monotonic() + _READING_S
        links = [link for link in self._links if link.is_open]
        for link in links:
            with contextlib.suppress(OSError):
                link.connection.shutdown(socket.SHUT_WR)
        for link in links:
            # One that hangs is left behind.
            with contextlib.suppress(OSError):
                while (left_s := last_s - time.monotonic()) > 0:
                    link.connection.settimeout(left_s)
                    if not link.connection.recv(_LONGEST_BYTES):
                        break

    def _conclude(self, dead: _Member) -> None:
        """Tells the others who has died, and ends this process unless it is itself the one."""
        if self._listener:
            self._send(dataclasses.replace(dead, state="dead"))
            self._await_reading()
        if dead.index != self._own.index:
            self._end(f"error: {_error(dead)}\n")
        self._is_over.set()


def _listen() -> socket.socket:
    """Returns a socket that listens at all addresses of this host."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=socket.SOMAXCONN
        )
    return socket.create_server(("", 0), backlog=socket.SOMAXCONN)


def _error(dead: _Member) -> UserError:
    return UserError(
        where=f"process {dead.index} on {dead.host}",
        expected="it to run until all processes have finished",
        found=dead.found,
        remedy="This process ended as well. Continue from the last checkpoint with --resume, on "
        "as many processes or fewer.",
    )


def _exit(line: str) -> None:
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    finally:
        # `os._exit`: the main thread may wait for the process that has died.
        os._exit(EXIT_OTHER_DIED)
