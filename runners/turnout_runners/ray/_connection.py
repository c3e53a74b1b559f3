"""The one connection to Ray that a process can have: made by the first runner that needs it, or the user's own."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from turnout._scripts import scripts_by_value
from turnout.errors import RunnerStartError

from ._cluster import Cluster
from ._lifeline import Lifeline
from ._mailbox import Mailbox

__all__ = ["Connection", "Settings", "connect"]

logger = logging.getLogger("turnout")

# How often to ask for the actor that takes news.
_TRIES: Final = 3


class Settings(NamedTuple):
    """What a connection is made of."""

    address: str | None
    num_cpus: int | None
    init_kwargs: Mapping[str, Any]
    runtime_env: Mapping[str, Any] | None
    namespace: str | None
    connect_timeout: float


class Connection:
    """A connection, and who uses it.

    Parameters
    ----------
    settings
        Of the runner that was first.
    disconnect
        Ends it; None leaves it to the user, who made it.
    watched
        Addresses, each of a host and a port, that must stay reachable: else Ray is lost.
    end_worker
        Kills the worker with a process id, where a runner has started it.
    """

    def __init__(
        self,
        settings: Settings,
        disconnect: Callable[[], None] | None,
        watched: list[tuple[str, int]],
        end_worker: Callable[[int], None] | None = None,
    ) -> None:
        self.settings = settings
        self.cluster = Cluster()
        if end_worker is not None:
            self.cluster.end_worker = end_worker
        self.mailbox_name = ""
        self.mailbox: Any = None
        self.users: list[Callable[[str], None]] = []
        self.lost: str | None = None
        self.is_ours = disconnect is not None
        """Whether a runner made it."""
        self._disconnect = disconnect
        self._scripts = contextlib.ExitStack()
        self._ending = threading.Lock()
        self._lifeline = Lifeline(watched, self.cluster, self._lose)

    def open(self) -> None:
        """Start what belongs to it.

        Raises
        ------
        RunnerStartError
            If Ray starts no actor.
        """
        from ._library import ray

        self.cluster.look()
        if not self.is_ours or self.settings.address is not None:
            self._scripts.enter_context(scripts_by_value())
        self._lifeline.start()
        actor = ray.remote(num_cpus=0, max_concurrency=10_000, max_restarts=0)(Mailbox)
        # Time limits begin when the mailbox tells that a call has begun: it has to be there. On a cluster that others
        # have just used, Ray was seen to answer that the actor's creation was cancelled.
        for tries_left in reversed(range(_TRIES)):
            self.mailbox_name = f"turnout-{uuid.uuid4().hex}"
            self.mailbox = actor.options(name=self.mailbox_name, **_beside_the_driver()).remote()
            try:
                ray.get(self.mailbox.ready.remote(), timeout=self.settings.connect_timeout)
                return
            except Exception as error:
                if not tries_left:
                    raise RunnerStartError(
                        f"Ray starts no actor for news of running tasks ({type(error).__name__}: {error}). Look into "
                        "the logs of Ray's head node, and whether its workers can start."
                    ) from error
                logger.debug("Ray did not start the mailbox.", exc_info=True)

    def close(self) -> None:
        """End it, if it is not the user's. Twice is fine."""
        from ._library import ray

        self._lifeline.stop()
        self._scripts.close()
        if self.mailbox is not None and self.lost is None:
            with contextlib.suppress(Exception):
                ray.kill(self.mailbox)
        self.mailbox = None
        self._end()

    def _end(self) -> None:
        # Whoever comes second waits: a new Ray must not start while this one is being shut down.
        with self._ending:
            disconnect, self._disconnect = self._disconnect, None
            if disconnect is not None:
                disconnect()

    def _lose(self, cause: str) -> None:
        """Tell all who use it that it is gone."""
        with _lock:
            self.lost = cause
            users = list(self.users)
        for user in users:
            user(cause)
        # Not later: a minute after it lost its head node, Ray would end this process.
        self._end()


_lock: Final = threading.RLock()
_current: Connection | None = None


def connect(settings: Settings, lost: Callable[[str], None]) -> tuple[Connection, Callable[[], None]]:
    """Return the connection of this process, made if there is none, and a function that lets go of it.

    Parameters
    ----------
    settings
        What the runner wants.
    lost
        Called with the cause, in any thread, when Ray is lost.

    Raises
    ------
    RunnerStartError
        If Ray can't be reached, or this process is connected to another one.
    """
    global _current
    with _lock:
        if _current is not None and _current.lost is not None:
            _close(_current)
        if _current is None:
            _current = _made(settings)
            try:
                _current.open()
            except BaseException:
                _current.close()
                _current = None
                raise
            atexit.register(_close_at_exit, _current)
        else:
            _check_same(_current, settings)
        connection = _current
        connection.users.append(lost)

    def leave() -> None:
        with _lock:
            if lost in connection.users:
                connection.users.remove(lost)
            if not connection.users:
                _close(connection)

    return connection, leave


def _close(connection: Connection) -> None:
    global _current
    with _lock:
        atexit.unregister(_close_at_exit)
        if _current is connection:
            _current = None
        connection.close()


def _close_at_exit(connection: Connection) -> None:
    """Close a connection whose flows may run on in other threads: those must not have Ray start another by itself."""
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import auto_init_hook

        auto_init_hook.enable_auto_connect = False
    _close(connection)


def _made(settings: Settings) -> Connection:
    from ._library import ray

    if ray.is_initialized():
        return _users_own(settings)
    if settings.address is None:
        from ._local import start

        return Connection(settings, *start(settings))
    from ._remote_cluster import attach

    return Connection(settings, *attach(settings))


def _users_own(settings: Settings) -> Connection:
    """Return a connection over the one that the user has made."""
    from ._addresses import address_in_use, places_in_use, same_place

    address = address_in_use()
    if settings.address not in (None, "auto") and not same_place(settings.address, address):
        raise RunnerStartError(
            f"This process is connected to Ray at {address}, and RayTaskRunner(address={settings.address!r}) asks for "
            "another. A process can have one connection to Ray: call ray.shutdown() first, or leave the address out "
            "to use the one that is there."
        )
    return Connection(settings, None, places_in_use())


def _check_same(connection: Connection, settings: Settings) -> None:
    """Refuse to share a connection with a runner that wants another Ray."""
    if settings.address in (None, "auto") and not connection.is_ours:
        return
    if settings.address != connection.settings.address:
        raise RunnerStartError(
            f"This process runs calls on Ray at {connection.settings.address or 'a local Ray of its own'}, and "
            f"RayTaskRunner(address={settings.address!r}) asks for another. A process can have one connection to Ray: "
            "run these flows one after the other, or in processes of their own."
        )


def _beside_the_driver() -> dict[str, Any]:
    """Return options that put an actor on the driver's own node; by ``ray://``, on that of what stands for it there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from ._library import ray

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
