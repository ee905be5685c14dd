"""Binds the socket that a server listens on, before anything that takes time."""

import ipaddress
import socket

from pipeline.errors import UserError

# A port has 16 bits.
_NUM_PORTS = 1 << 16


def bind(host: str, port: int) -> socket.socket:
    """Returns a bound socket, which refuses clients until a server listens on it.

    Args:
      host: Address or name; if a name has several addresses, IPv4 comes first.
      port: Port number; 0: any free port.

    Raises:
      UserError: There is no such address, or it is in use.
    """
    address = f"{host}:{port}"
    if not 0 <= port < _NUM_PORTS:  # getaddrinfo would silently use another port
        raise unusable(address, ValueError(f"port must be 0-{_NUM_PORTS - 1}"))
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # IPv4 first, where a name has addresses of both kinds.
        family, *_, place = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Otherwise a restarted server waits a minute for the connections of the old one.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except BaseException:
            # Also for `KeyboardInterrupt`: the socket would stay open until it is collected.
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        raise unusable(address, error) from error
    return listener


def is_local(listener: socket.socket) -> bool:
    """Returns whether only this machine reaches a bound socket."""
    # The scope of a link-local address is no part of the address.
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def unusable(address: str, error: Exception) -> UserError:
    """Returns the error for an address that cannot be listened at."""
    reason = error.strerror if isinstance(error, OSError) else None
    return UserError(
        where=address,
        expected="an address to listen at",
        found=reason or str(error),
        remedy="Choose another --port or --host.",
    )
