"""Carries this process's connection to JAX's coordination service, in a process of its own.

Process 0 hosts the service. JAX aborts a process whose connection to it breaks, and prints a C++
stack trace. The relay keeps JAX's end of the connection open when process 0 dies, so that
`train.processes.liveness` can end the process with one line.

In a process of its own, because JAX may wait for the service while it holds Python's lock. It uses
the standard library alone, so it starts within 50 ms:

    python -I -S relay.py HOST PORT

It prints the port on which it listens, and ends when its stdin is closed.
"""

import contextlib
import socket
import sys
import threading
from collections.abc import Callable

_CHUNK_BYTES = 1 << 16


def main() -> None:
    """Listens until stdin is closed, which happens at the latest when the parent process ends."""
    host, port = sys.argv[1:]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        _start(_accept, listener, (host, int(port)))
        sys.stdin.read()


def _accept(listener: socket.socket, service: tuple[str, int]) -> None:
    while True:
        connection, _ = listener.accept()
        _start(_connect, connection, service)


def _connect(connection: socket.socket, service: tuple[str, int]) -> None:
    try:
        upstream = socket.create_connection(service)
    except OSError:
        # Process 0 does not listen yet: JAX connects again.
        connection.close()
        return
    upstream.settimeout(None)
    _start(_carry, connection, upstream, _close)
    # If the service goes away, the other end stays open: this is what the relay is for.
    _start(_carry, upstream, connection, _keep)


def _carry(source: socket.socket, target: socket.socket, end: Callable[..., None]) -> None:
    # A connection that breaks ends as one that is closed does.
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(data)
    end(source, target)


def _close(*connections: socket.socket) -> None:
    for connection in connections:
        # Already shut down by the other end.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def _keep(*_: socket.socket) -> None:
    pass


def _start(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
