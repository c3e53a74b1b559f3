"""Addresses of schedulers: whether they lead over a network, and whether somebody greets there."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import NamedTuple

__all__ = ["await_greeting", "is_beyond_this_machine"]


class _Place(NamedTuple):
    """What an address without encryption leads to."""

    host: str
    port: str


def _place(address: str) -> _Place | None:
    scheme, _, rest = address.rpartition("://")
    if scheme not in ("", "tcp"):
        return None
    host, _, port = rest.rpartition(":")
    return _Place(host.strip("[]") or rest, port)


def is_beyond_this_machine(address: str) -> bool:
    """Return whether an address leads over a network, with nothing encrypted.

    Examples
    --------
    >>> is_beyond_this_machine("tcp://127.0.0.1:8786"), is_beyond_this_machine("tcp://10.0.0.7:8786")
    (False, True)
    """
    place = _place(address)
    if place is None:
        return False
    try:
        return not ipaddress.ip_address(place.host).is_loopback
    except ValueError:
        return place.host not in ("localhost", socket.gethostname())


def await_greeting(address: str, seconds: float) -> None:
    """Wait for the first byte of what listens at an address of plain TCP; where nobody does, leave that to Dask.

    A scheduler greets whoever connects. A client of Dask that has a connection waits for the greeting without a limit
    (distributed 2026.8): at a port of something else, or of a scheduler that is stopped, for ever.

    Parameters
    ----------
    address
        Such as ``"tcp://head:8786"``.
    seconds
        How long to wait.

    Raises
    ------
    TimeoutError
        If somebody takes the connection and says nothing.
    """
    place = _place(address)
    if place is None or not place.port.isdecimal():
        return
    connection = None
    with contextlib.suppress(OSError):
        connection = socket.create_connection((place.host, int(place.port)), seconds)
    if connection is None:
        return
    with connection:
        try:
            connection.recv(1)
        except TimeoutError:
            raise TimeoutError("what listens there takes connections and says nothing") from None
        except OSError:  # Dask will see it, too, and say more
            return
