import socket
import threading
import time

import pytest

from pipeline.errors import UserError
from tests.train.serve.openpi_client import Client
from tests.train.serve.served import shown
from train.serve.client_session import ServeConfig
from train.serve.in_thread import serving


def check_threads(before: int) -> None:
    """A thread that has given its result may still be ending."""
    for _ in range(1000):
        if threading.active_count() <= before:
            return
        time.sleep(0.01)
    raise AssertionError(threading.enumerate())


def test_clients_are_served_while_the_block_lasts(served_policy):
    before = threading.active_count()
    with serving(served_policy) as port, Client(port) as client:
        actions, _ = client.ask(**shown())
        assert actions.shape == tuple(client.metadata["actions"])
    check_threads(before)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_the_server_ends_with_an_error_of_the_block(served_policy):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), serving(served_policy):
        raise ZeroDivisionError
    check_threads(before)


def test_a_config_that_does_not_fit_is_an_error_before_a_client_connects(served_policy):
    for config, expected in (
        (ServeConfig(execute_horizon=5), "execute_horizon: expected 1 to 4"),
        (ServeConfig(execute_horizon=2, delay=1), "made for real-time chunking"),
    ):
        with pytest.raises(UserError, match=expected), serving(served_policy, config):
            raise AssertionError


def test_a_port_in_use_is_an_error(served_policy):
    before = threading.active_count()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match="an address to listen at"),
            serving(served_policy, port=port),
        ):
            raise AssertionError
    check_threads(before)
