"""Whether anybody listens at an address, and if not, which of the reasons it is."""

from __future__ import annotations

import socket
import time
from typing import Final
from urllib.parse import urlsplit

from .._units import shown_seconds
from ._findings import Finding

__all__ = ["reached"]

# How long a host gets to answer, in seconds.
_PATIENCE: Final = 5.0


def reached(address: str) -> Finding | None:
    """Try a TCP connection to an address; None if it does not end with a host and a port.

    Examples
    --------
    >>> reached("auto"), reached("head")
    (None, None)
    >>> reached("tcp://127.0.0.1:1").text
    'Nothing listens at 127.0.0.1:1. Start the cluster there, or check the port.'
    """
    place = _host_and_port(address)
    if place is None:
        return None
    host, port = place
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    begun = time.perf_counter()
    try:
        socket.create_connection(place, timeout=_PATIENCE).close()
    except socket.gaierror:
        problem = f"No host is known as {host!r}. Check the name, or give the host's number."
    except ConnectionRefusedError:
        problem = f"Nothing listens at {shown}. Start the cluster there, or check the port."
    except TimeoutError:
        problem = f"{shown} does not answer. Check the host, and whether a firewall or a VPN is between."
    except OSError as error:
        problem = f"{shown} can't be reached ({error.strerror or error}). Check the address and the network."
    else:
        seconds = time.perf_counter() - begun
        return Finding("ok", "address", f"{shown} takes connections, in {shown_seconds(seconds)}")
    return Finding("problem", "address", problem)


def _host_and_port(address: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:
        return None
