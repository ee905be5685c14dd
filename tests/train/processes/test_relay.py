import socket
import subprocess
import sys

import pytest

from train.processes import relay


@pytest.fixture
def service():
    """A server, in place of the service that process 0 hosts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


@pytest.fixture
def started(service):
    """A relay to the server."""
    line = [sys.executable, "-I", "-S", relay.__file__, "127.0.0.1", str(service.getsockname()[1])]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process


def connect(started):
    return socket.create_connection(("127.0.0.1", int(started.stdout.readline())), 60)


def test_it_carries_both_directions_and_ends_with_its_parent(service, started):
    with connect(started) as client, service.accept()[0] as server:
        client.sendall(b"x" * 200_000)
        assert server.recv(200_000, socket.MSG_WAITALL) == b"x" * 200_000
        server.sendall(b"yes")
        assert client.recv(3, socket.MSG_WAITALL) == b"yes"
        # The relay closes the service's side with the client's.
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        started.stdin.close()
        assert started.wait(60) == 0


def test_the_client_does_not_notice_that_the_service_is_gone(service, started):
    with connect(started) as client:
        server, _ = service.accept()
        server.sendall(b"last")
        server.close()
        service.close()
        assert client.recv(4, socket.MSG_WAITALL) == b"last"
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_service_that_does_not_listen_yet_closes_the_connection(service, started):
    service.close()
    with connect(started) as client:
        assert client.recv(1) == b""
