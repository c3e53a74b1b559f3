"""The Dask runner as the engine sees it."""

from __future__ import annotations

import atexit
import dataclasses
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from turnout._secrets import without_secrets
from turnout.errors import RunnerOptionError, RunnerStartError
from turnout.runner import (
    DEFAULT_BATCH_SECONDS,
    Capabilities,
    Host,
    Plan,
    check_batch_seconds,
    check_count,
    usable_memory,
    usable_processors,
)

from ._linked import FOREIGN, LinkedRunner

if TYPE_CHECKING:
    from ._clusters import Connection

__all__ = ["DaskTaskRunner"]

_OWN: Final = dataclasses.replace(FOREIGN, isolates_crashes=True, explains_crashes=True, ends_with_driver=True)


class _Size(NamedTuple):
    """How large a cluster of the runner's own is."""

    n_workers: int
    threads_per_worker: int
    memory_limit: int | float | str | None
    """Of each worker; None leaves it to Dask."""


class DaskTaskRunner(LinkedRunner):
    """Runs calls on a Dask cluster: one of its own on this machine, or any other.

    Large results stay on the workers that made them, and travel from worker to worker. Tasks may submit tasks, which
    spread over the cluster. A running body that is cancelled or out of time is asked to stop, and its slot is free for
    others at once.

    Parameters
    ----------
    n_workers, threads_per_worker
        Of the cluster of its own. By default, as many workers as this process may use processors, with one thread
        each: then a worker that dies takes only its own call with it.
    memory_limit
        Of each worker, in bytes or as Dask writes it, such as ``"4GiB"``. By default, its share of what this process
        may use.
    address
        Of a scheduler that is up: ``"tcp://host:8786"`` or ``"tls://host:8786"``.
    security
        For ``tls://``: a :class:`distributed.Security`, or paths by the names ``tls_ca_file``, ``tls_client_cert`` and
        ``tls_client_key``.
    client_kwargs
        More arguments for :class:`distributed.Client`.
    cluster
        A cluster object of Dask's, which stays up.
    cluster_class
        A class of clusters, or its place as ``"package.Class"``: one is made for each run, and closed.
    cluster_kwargs
        Arguments for the class, or more of them for :class:`distributed.LocalCluster`.
    adapt_kwargs
        Arguments for the cluster's ``adapt``, such as ``{"minimum": 0, "maximum": 10}``.
    ship
        Modules, and paths of packages or modules, that the workers lack: they travel with the run.
    connect_timeout
        How long to wait for a scheduler, in seconds.
    performance_report_path
        Where Dask writes its report when the runner stops.
    max_batch_seconds
        How much work, in seconds, short calls may be that travel together; with 0 each travels alone.

    Raises
    ------
    RunnerOptionError
        If settings are wrong, or don't go together.

    Examples
    --------
    >>> runner = DaskTaskRunner(n_workers=2)
    >>> runner
    DaskTaskRunner(n_workers=2)
    >>> DaskTaskRunner.from_url("tls://head:8786")
    DaskTaskRunner(address='tls://head:8786')
    """

    capabilities: Capabilities = _OWN
    _without = "The Dask runner is not started."

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        memory_limit: int | float | str | None = None,
        *,
        address: str | None = None,
        security: Any = None,
        client_kwargs: Mapping[str, Any] | None = None,
        cluster: Any = None,
        cluster_class: Any = None,
        cluster_kwargs: Mapping[str, Any] | None = None,
        adapt_kwargs: Mapping[str, Any] | None = None,
        ship: Sequence[ModuleType | str] = (),
        connect_timeout: float = 10.0,
        performance_report_path: str | os.PathLike[str] | None = None,
        max_batch_seconds: float = DEFAULT_BATCH_SECONDS,
    ) -> None:
        if ":" in str(n_workers):
            raise RunnerOptionError(f"n_workers={n_workers!r} is no number. If it is an address: address={n_workers!r}")
        check_count("n_workers", n_workers)
        check_count("threads_per_worker", threads_per_worker)
        self._n_workers = n_workers
        self._threads_per_worker = threads_per_worker
        self._memory_limit = memory_limit
        self._address = address
        self._security = security
        self._client_kwargs = client_kwargs
        self._cluster = cluster
        self._cluster_class = cluster_class
        self._cluster_kwargs = cluster_kwargs
        self._adapt_kwargs = adapt_kwargs
        self._ship = ship
        self._connect_timeout = connect_timeout
        self._performance_report_path = performance_report_path
        self.max_batch_seconds = check_batch_seconds(max_batch_seconds)
        self._check()
        self._is_own = address is None and cluster is None and cluster_class is None
        self.capabilities = _OWN if self._is_own else FOREIGN
        if (threads_per_worker or 1) > 1:
            self.capabilities = dataclasses.replace(self.capabilities, isolates_crashes=False)
        self._connection: Connection | None = None

    @classmethod
    def from_url(cls, url: str) -> DaskTaskRunner:
        """Return the runner for a scheduler's address, ``tcp://`` or ``tls://``."""
        return cls(address=url)

    def _check(self) -> None:
        targets = {"address": self._address, "cluster": self._cluster, "cluster_class": self._cluster_class}
        given = [name for name, value in targets.items() if value is not None]
        if len(given) > 1:
            raise RunnerOptionError(f"{given[0]}= and {given[1]}= name two clusters. Give one of them.")
        sizes = {
            "n_workers": self._n_workers,
            "threads_per_worker": self._threads_per_worker,
            "memory_limit": self._memory_limit,
        }
        size = next((name for name, value in sizes.items() if value is not None), None)
        if given and size:
            where = "cluster_kwargs" if given == ["cluster_class"] else "whoever starts that cluster"
            raise RunnerOptionError(f"{size}= is for a cluster of the runner's own; with {given[0]}= tell {where}.")
        if self._address is not None and "://" not in str(self._address):
            shown = without_secrets(self._address)
            raise RunnerOptionError(f"address={shown!r}: give a URL such as 'tcp://{shown}'.")
        fixed = next((name for name in ("address", "cluster") if name in given), None)
        extra = next((name for name in ("cluster_kwargs", "adapt_kwargs") if getattr(self, f"_{name}") is not None), "")
        if fixed and extra:
            raise RunnerOptionError(f"{extra}= is for a cluster that the runner starts, not for {fixed}=.")

    def start(self, host: Host) -> None:
        """Start the cluster, or connect to it."""
        from ._clients import remember_client
        from ._clusters import connect
        from ._link import Link
        from ._terms import Terms, topic_of_run

        # A script may end with this still up. Dask's own end closes one worker after the other, and has the rest run
        # again what those had the results of, if nobody has let go of them before.
        atexit.register(self.stop)
        settings = self._all_settings()
        connection = self._connection = connect(settings)
        base = topic_of_run()
        if settings.shipment is not None:
            connection.ship(base, settings.shipment)
        if settings.report_path is not None:
            connection.write_report(settings.report_path)
        link = Link(
            connection.client,
            host,
            self,
            Terms(
                base,
                connection.journal,
                is_elastic=connection.is_elastic,
                cause_of_death=connection.cause_of_death,
                check_connection=connection.check,
            ),
        )
        link.open()
        self._link = link
        self._watch(connection.client, base)
        remember_client(self, connection.client)

    def plan(self) -> Plan:
        """Return what a cluster of its own would be, if that does not grow and shrink."""
        if not self._is_own or self._adapt_kwargs is not None:
            return Plan()
        size = self._size()
        limit = size.memory_limit
        return Plan(size.n_workers * size.threads_per_worker, limit if isinstance(limit, int) and limit > 0 else None)

    def give_up(self) -> None:
        """End the workers that are being started: the start fails then."""
        own = sys.modules.get(f"{__package__}._own")
        if own is not None:
            own.end_workers_being_started()

    def _size(self) -> _Size:
        """Return how large a cluster of its own is. What ``cluster_kwargs`` say goes first."""
        more = self._cluster_kwargs or {}
        threads = more.get("threads_per_worker") or self._threads_per_worker or 1
        n_workers = more.get("n_workers") or self._n_workers or max(1, usable_processors() // threads)
        memory = usable_memory()
        # Dask's own default is a share of the machine's memory, or of the container's, but not of a job's in it.
        share = None if memory is None else memory // n_workers
        memory_limit = more.get("memory_limit", share) if self._memory_limit is None else self._memory_limit
        return _Size(n_workers, threads, memory_limit)

    def _all_settings(self) -> Any:
        from turnout._cluster import shipment_of

        from ._clusters import Settings

        report_path = self._performance_report_path
        size = self._size()
        return Settings(
            n_workers=size.n_workers,
            threads_per_worker=size.threads_per_worker,
            memory_limit=size.memory_limit,
            address=self._address,
            security=self._security,
            cluster=self._cluster,
            cluster_class=self._cluster_class,
            cluster_kwargs=self._cluster_kwargs or {},
            adapt_kwargs=self._adapt_kwargs,
            client_kwargs=self._client_kwargs or {},
            connect_timeout=self._connect_timeout,
            shipment=shipment_of(self._ship),
            report_path=None if report_path is None else os.fspath(report_path),
        )

    def _watch(self, client: Any, base: str) -> None:
        from ._remote import stop_all
        from ._watch import ShippedWatch, Watch

        farewell = {"op": "run", "function": pickle.dumps(stop_all), "args": pickle.dumps((base,)), "wait": False}
        try:
            client.register_plugin(ShippedWatch(Watch(base, client.id, farewell)))
        except Exception as error:
            raise RunnerStartError(
                f"The scheduler {client.scheduler.address} refuses a plugin ({type(error).__name__}: {error}). Without "
                "it nobody tells of workers that die, and Dask runs their calls again unasked. Allow plugins there."
            ) from error

    def stop(self) -> None:
        """Close what was started, and leave the rest as it was."""
        from ._clients import forget_client

        atexit.unregister(self.stop)
        link, self._link = self._link, None
        connection, self._connection = self._connection, None
        if link is not None:
            if self._performance_report_path is not None:
                link.await_ends()
            link.close()
        if connection is not None:
            client = getattr(connection, "client", None)
            forget_client(client)
            connection.close()
