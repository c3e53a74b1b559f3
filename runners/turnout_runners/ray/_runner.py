"""The Ray runner as the engine sees it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from turnout._secrets import without_secrets
from turnout.errors import MissingRunnerLibraryError, RunnerOptionError, RunnerStoppedError
from turnout.runner import (
    DEFAULT_BATCH_SECONDS,
    Batch,
    Capabilities,
    Host,
    Plan,
    Stored,
    TaskRunner,
    check_batch_seconds,
    check_count,
    usable_processors,
)

from ._addresses import CLIENT, check_address
from ._pump import CAPABILITIES, Pump

if TYPE_CHECKING:
    from turnout._serialization import Parcel

    from ._connection import Connection

__all__ = ["RayTaskRunner"]


class RayTaskRunner(TaskRunner):
    """Runs calls on Ray.

    Without an address it starts a Ray of its own on this machine, which listens on loopback only, and stops it at the
    end; or it uses the one to which the program has connected by ``ray.init``, and leaves it as it was. Values over
    64 KiB stay in Ray's object store and go from worker to worker. A call that is cancelled or out of time is stopped,
    whatever it does; a worker that dies takes only its own call with it.

    Parameters
    ----------
    address
        Of a cluster: ``"host:6379"`` from one of its nodes, ``"ray://host:10001"`` from any other machine, ``"auto"``
        for the one that Ray finds by itself (``RAY_ADDRESS``, or one that runs on this machine).
    num_cpus
        How many processors a Ray of its own has, by default those that this process may use. On a cluster: how many
        calls run on it at once, by default as many as it has processors; calls that tasks submit don't count.
    namespace
        Ray's namespace for named actors.
    runtime_env
        Ray's description of what workers need: packages, files, environment variables.
    init_kwargs
        More arguments for ``ray.init``.
    ship
        Code that the workers don't have: modules, of which the top package travels whole, and paths to packages
        (folders) or modules (``.py`` files). It travels with the calls, and is removed when the workers end.
    connect_timeout
        How long to try to reach an address, in seconds.
    max_batch_seconds
        How much work, in seconds, short calls may be that travel together; with 0 each travels alone.

    Raises
    ------
    RunnerOptionError
        If an address or a number makes no sense.

    Examples
    --------
    >>> RayTaskRunner(num_cpus=2)
    RayTaskRunner(num_cpus=2)
    >>> RayTaskRunner("ray://head:10001") == RayTaskRunner.from_url("ray://head:10001")
    True
    """

    capabilities: Capabilities = CAPABILITIES

    def __init__(
        self,
        address: str | None = None,
        *,
        num_cpus: int | None = None,
        namespace: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
        ship: Sequence[ModuleType | str] = (),
        connect_timeout: float = 30.0,
        max_batch_seconds: float = DEFAULT_BATCH_SECONDS,
    ) -> None:
        check_address(address)
        check_count("num_cpus", num_cpus)
        if not connect_timeout > 0:
            raise RunnerOptionError(f"connect_timeout={connect_timeout!r}: give seconds, more than 0.")
        self._address = address
        if (address or "").startswith(CLIENT):
            # What stands for the driver in the cluster waits for it to come back, for half a minute.
            self.capabilities = dataclasses.replace(CAPABILITIES, ends_with_driver=False)
        self._num_cpus = num_cpus
        self._namespace = namespace
        self._runtime_env = runtime_env
        self._ship = tuple(ship)
        self._init_kwargs = dict(init_kwargs or {})
        self._connect_timeout = connect_timeout
        self.max_batch_seconds = check_batch_seconds(max_batch_seconds)
        self._connection: Connection | None = None
        self._leave: Callable[[], None] | None = None
        self._pump: Pump | None = None

    @classmethod
    def from_url(cls, url: str) -> RayTaskRunner:
        """Return the runner for a URL such as ``ray://host:10001``, which may end with options: ``?num_cpus=4``.

        Raises
        ------
        RunnerOptionError
            If it has no port, or an option that can't be written in a URL.
        """
        address, _, query = url.partition("?")
        options: dict[str, Any] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name == "num_cpus" and value.isdecimal():
                options[name] = int(value)
            elif name == "namespace":
                options[name] = value
            else:
                shown, start = without_secrets(url), without_secrets(address)
                raise RunnerOptionError(
                    f"{shown!r}: {name} is no option of such a URL, or has no such value. It takes num_cpus (a number) "
                    f"and namespace. For others write RayTaskRunner({start!r}, ...)."
                )
        return cls(address, **options)

    def start(self, host: Host) -> None:
        """Connect to Ray, or start one.

        Raises
        ------
        RunnerStartError
            If there is no Ray to be had.
        """
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise MissingRunnerLibraryError(
                'The Ray runner needs ray, which is not installed. Install it with: pip install "turnout[ray]"'
            ) from error
        import uuid

        from turnout._cluster import shipment_of

        from ._connection import Settings, connect
        from ._post import Post

        settings = Settings(
            self._address,
            self._num_cpus,
            self._init_kwargs,
            self._runtime_env,
            self._namespace,
            self._connect_timeout,
        )
        shipment = shipment_of(self._ship)
        connection, self._leave = connect(settings, self._lost)
        self._connection = connection
        post = Post(connection.mailbox, connection.mailbox_name, uuid.uuid4().hex)
        self._pump = Pump(self, host, post, connection.cluster, shipment, self._limit())

    def plan(self) -> Plan:
        """Return a plan of as many slots as a Ray of its own has processors."""
        if self._address is not None:
            return Plan()
        return Plan(self._init_kwargs.get("num_cpus") or self._num_cpus or usable_processors())

    def slots(self) -> int:
        """Return how many processors there are, or ``num_cpus`` if that is less. Follows the cluster's nodes."""
        if self._connection is None:
            return self._num_cpus or 1
        processors = self._connection.cluster.processors()
        return processors if self._num_cpus is None else min(processors, self._num_cpus)

    def submit(self, batch: Batch) -> None:
        """Hand a batch to Ray."""
        if self._pump is None:
            raise RunnerStoppedError(f"{self!r} is not running. Submit in a flow, or inside of `with runner:`.")
        self._pump.submit(batch)

    def cancel(self, batch: Batch) -> bool:
        """Take a batch back that waits, or end the worker that runs it; other calls don't notice."""
        return self._pump is not None and self._pump.cancel(batch)

    def recall(self, batch: Batch) -> None:
        """Have those calls of a batch given back that have not begun."""
        if self._pump is not None:
            self._pump.recall(batch)

    def fetch(self, stored: Stored) -> Parcel:
        """Bring a value from the object store."""
        from ._values import fetched

        return fetched(stored)

    def stop(self) -> None:
        """Leave Ray, and stop it if it was started here and nobody else uses it."""
        pump, self._pump = self._pump, None
        leave, self._leave = self._leave, None
        self._connection = None
        with contextlib.ExitStack() as ending:
            if leave is not None:
                ending.callback(leave)
            if pump is not None:
                pump.stop()

    def _limit(self) -> int | None:
        """Return how many batches Ray may have at once: no more than it has processors, if these are all ours."""
        connection = self._connection
        if self._num_cpus is None or connection is None:
            return None
        has_as_many = connection.cluster.processors() <= self._num_cpus
        return None if has_as_many and connection.settings.address is None else self._num_cpus

    def _lost(self, cause: str) -> None:
        pump = self._pump
        if pump is not None:
            pump.lose(cause)
