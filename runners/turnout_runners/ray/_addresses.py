"""Addresses of Ray clusters: what users write, and where this process is connected."""

from __future__ import annotations

import socket

from turnout._secrets import without_secrets
from turnout.errors import RunnerOptionError

__all__ = ["CLIENT", "address_in_use", "check_address", "host_and_port", "places_in_use", "same_place"]

CLIENT = "ray://"
"""What the addresses of Ray's client servers begin with."""


def check_address(address: str | None) -> None:
    """Refuse what is no address of a cluster.

    Raises
    ------
    RunnerOptionError
        With the forms that there are.

    Examples
    --------
    >>> check_address("auto"), check_address("ray://head:10001"), check_address("head:6379")
    (None, None, None)
    >>> check_address("head")
    Traceback (most recent call last):
        ...
    turnout.errors.RunnerOptionError: address='head': give "auto", "host:6379" or "ray://host:10001"; or none, for a \
local Ray.
    """
    if address is None or address == "auto":
        return
    try:
        host_and_port(address)
    except (ValueError, TypeError, AttributeError):
        raise RunnerOptionError(
            f'address={without_secrets(str(address))!r}: give "auto", "host:6379" or "ray://host:10001"; or none, for '
            "a local Ray."
        ) from None


def host_and_port(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    Raises
    ------
    ValueError
        If it has none.

    Examples
    --------
    >>> host_and_port("ray://head:10001"), host_and_port("[::1]:6379")
    (('head', 10001), ('::1', 6379))
    """
    place = address.removeprefix(CLIENT).partition("/")[0].partition("?")[0]
    host, colon, port = place.rpartition(":")
    if not (colon and host and port.isdecimal()):
        raise ValueError(f"{address!r} is not of the form host:port")
    return host.strip("[]"), int(port)


def same_place(one: str | None, other: str | None) -> bool:
    """Return whether two addresses lead to the same place, by whatever name.

    Examples
    --------
    >>> same_place("localhost:6379", "127.0.0.1:6379"), same_place("ray://a:1", "a:1")
    (True, False)
    """
    if one is None or other is None or one.startswith(CLIENT) != other.startswith(CLIENT):
        return False
    return _resolved(one) == _resolved(other)


def address_in_use() -> str | None:
    """Return the address to which this process is connected, or None if Ray doesn't tell."""
    from ._library import ray

    if ray.util.client.ray.is_connected():
        client = ray.util.client.ray.get_context().client_worker
        return f"{CLIENT}{client._conn_str}" if client is not None else None
    found: str = ray.get_runtime_context().gcs_address
    return found


def places_in_use() -> list[tuple[str, int]]:
    """Return the hosts and ports on which this process depends: the head node's, and those of the driver's own node."""
    from ._library import ray

    address = address_in_use()
    places = [host_and_port(address)] if address else []
    if not ray.util.client.ray.is_connected():
        here = ray.get_runtime_context().get_node_id()
        own = (node for node in ray.nodes() if node["NodeID"] == here)
        places += [(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in own]
    return places


def _resolved(address: str) -> tuple[str, int]:
    host, port = host_and_port(address)
    try:
        return socket.gethostbyname(host), port
    except OSError:
        return host, port
