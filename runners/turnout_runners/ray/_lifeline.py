"""Watches whether Ray is still there: by itself it would let calls wait for ever, and then end the whole process."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from ._cluster import Cluster

__all__ = ["Lifeline", "reach"]

# How often the nodes of the cluster are counted, in seconds.
_PERIOD: Final = 5.0
# How long a place may be out of reach before it counts as lost, in seconds.
_PATIENCE: Final = 6.0
# After how long silence the kernel asks whether the other side is there, how often, and how many times: a host that was
# cut off is noticed within 15 s.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3))


class Lifeline:
    """Holds a connection open to each place on which everything depends; the kernel tells when one breaks.

    Parameters
    ----------
    places
        Hosts and ports.
    cluster
        Whose nodes are looked at now and then.
    lost
        Called once, in a thread of its own, with the cause, when a place is lost.
    """

    def __init__(self, places: Sequence[tuple[str, int]], cluster: Cluster, lost: Callable[[str], None]) -> None:
        self._places = places
        self._cluster = cluster
        self._lost = lost
        self._wake, self._woken = socket.socketpair()
        self._threads = [
            threading.Thread(target=self._watch, name="turnout-ray-lifeline", daemon=True),
            threading.Thread(target=self._count, name="turnout-ray-nodes", daemon=True),
        ]
        self._is_over = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop watching. Twice is fine."""
        if self._is_over.is_set():
            return
        self._is_over.set()
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                # The one that counts may be stuck in Ray.
                thread.join(timeout=_PERIOD)
        self._wake.close()
        self._woken.close()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as sockets:
            selector.register(self._woken, selectors.EVENT_READ)
            for place in self._places:
                _hold(selector, sockets, place)
            while not self._is_over.is_set():
                for key, _ in selector.select():
                    if key.data is None or _is_open(key.fileobj):
                        continue
                    selector.unregister(key.fileobj)
                    # Its own time limits may have ended an idle connection: another attempt tells.
                    if not self._is_over.is_set() and not _hold(selector, sockets, key.data):
                        self._tell(key.data)
                        return

    def _tell(self, place: tuple[str, int]) -> None:
        if not self._is_over.is_set():
            host, port = place
            self._lost(f"Ray is lost: nothing answers at {host}:{port} any more.")

    def _count(self) -> None:
        while not self._is_over.wait(_PERIOD):
            with contextlib.suppress(Exception):
                self._cluster.look()


def reach(place: tuple[str, int], seconds: float) -> socket.socket:
    """Return a connection to a place, trying for some time.

    Raises
    ------
    OSError
        Of the last attempt.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(place, timeout=max(0.1, deadline - time.monotonic()))
        except OSError:
            if time.monotonic() > deadline - 0.5:
                raise
            time.sleep(0.5)


def _hold(selector: selectors.BaseSelector, sockets: contextlib.ExitStack, place: tuple[str, int]) -> bool:
    """Open a connection to a place and watch it; return whether that went."""
    try:
        connection = sockets.enter_context(reach(place, _PATIENCE))
    except OSError:
        return False
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    selector.register(connection, selectors.EVENT_READ, place)
    return True


def _is_open(connection: object) -> bool:
    """Read what the other side says; return whether it is still there."""
    assert isinstance(connection, socket.socket), "nothing else is watched under a place"
    try:
        return bool(connection.recv(4096))
    except BlockingIOError:
        return True
    except OSError:
        return False
