"""Clusters that a runner may use: its own, one at an address, one handed in, one of a class; and the way to them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from turnout._cluster import check_versions, versions
from turnout._scripts import scripts_by_value
from turnout._secrets import without_secrets
from turnout.errors import RunnerOptionError, RunnerStartError

from ._addresses import await_greeting, is_beyond_this_machine
from ._quiet import only_warnings

__all__ = ["Connection", "Settings", "connect"]

logger = logging.getLogger("turnout")

_SECURITY_PATHS = frozenset({"tls_ca_file", "tls_client_cert", "tls_client_key"})
_CLOSE_SECONDS = 10.0
_PING_SECONDS = 5.0
_PONG_SECONDS = 20.0


class Settings(NamedTuple):
    """What a runner was made with."""

    n_workers: int
    threads_per_worker: int
    memory_limit: Any
    address: str | None
    security: Any
    cluster: Any
    cluster_class: Any
    cluster_kwargs: Mapping[str, Any]
    adapt_kwargs: Mapping[str, Any] | None
    client_kwargs: Mapping[str, Any]
    connect_timeout: float
    shipment: bytes | None
    report_path: str | None


class Connection:
    """A client that is connected, and the cluster behind it if that is ours.

    Parameters
    ----------
    settings
        Where to, and how.
    """

    def __init__(self, settings: Settings) -> None:
        self.journal = ""
        self.is_elastic = settings.adapt_kwargs is not None
        self.cause_of_death: Callable[[str, int], str] = "the worker {} died".format
        self.check: Callable[[], str | None] = lambda: None
        # What is closed in the end, the last first.
        self._closing = contextlib.ExitStack()
        try:
            self._closing.enter_context(only_warnings())
            self.client = self._connected(settings)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close what was opened here, and nothing else."""
        self._closing.close()

    def ship(self, name: str, shipment: bytes) -> None:
        """Send code to all workers, until this is closed."""
        from ._ship import ShippedCode

        self.client.register_plugin(ShippedCode(name, shipment))
        self._closing.callback(_take_back, self.client, name)

    def write_report(self, path: str) -> None:
        """Have Dask write its report when this is closed."""
        import distributed

        _need_bokeh()
        report: Any = distributed.performance_report(filename=path)  # type: ignore[no-untyped-call]
        with self.client.as_current():
            report.__enter__()
        self._closing.callback(_end_report, self.client, report, path)

    def _connected(self, settings: Settings) -> Any:
        if settings.address is None and settings.cluster is None and settings.cluster_class is None:
            return self._to_own(settings)
        self._closing.enter_context(scripts_by_value())
        if settings.address is not None:
            return self._to_address(settings, settings.address)
        if settings.cluster is not None:
            return self._to_cluster(settings, settings.cluster)
        return self._to_cluster(settings, self._made(settings))

    def _to_own(self, settings: Settings) -> Any:
        from ._own import OwnCluster, cause_of

        own = OwnCluster(
            settings.n_workers, settings.threads_per_worker, settings.memory_limit, settings.cluster_kwargs
        )
        self._closing.callback(own.close)
        self.journal = own.journal
        self.cause_of_death = cause_of
        if settings.adapt_kwargs is not None:
            own.cluster.adapt(**settings.adapt_kwargs)
        return self._client(settings, own.cluster, "the cluster on this machine")

    def _made(self, settings: Settings) -> Any:
        cls = _found(settings.cluster_class)
        cluster = cls(**settings.cluster_kwargs)
        self._closing.callback(cluster.close)
        if settings.adapt_kwargs is not None:
            cluster.adapt(**settings.adapt_kwargs)
        return cluster

    def _to_cluster(self, settings: Settings, cluster: Any) -> Any:
        self.is_elastic = self.is_elastic or getattr(cluster, "_adaptive", None) is not None
        return self._client(settings, cluster, f"the cluster {type(cluster).__name__}")

    def _to_address(self, settings: Settings, address: str) -> Any:
        if settings.security is None and is_beyond_this_machine(address):
            warnings.warn(
                f"{without_secrets(address)} is reached without encryption or proof of identity: whoever is on that "
                "network can read what is sent, and run code as you on the scheduler, the workers and, by what they "
                "send back, here. Use tls:// with security=..., or a network that you trust.",
                RuntimeWarning,
                stacklevel=2,
            )
        if settings.security is None and address.startswith("tls://"):
            _need_certificates(address)
        try:
            await_greeting(address, settings.connect_timeout)
        except TimeoutError as error:
            raise RunnerStartError(_unreachable(address, settings, error)) from error
        client = self._client(settings, address, address)
        self.check = _Pings(client).check
        return client

    def _client(self, settings: Settings, target: Any, where: str) -> Any:
        import distributed

        from ._prompt import hurry

        make: Callable[..., Any] = distributed.Client
        arguments = {
            "timeout": settings.connect_timeout,
            # The user's own dask.compute must not go this way by itself.
            "set_as_default": False,
            "name": "turnout",
            **settings.client_kwargs,
        }
        if settings.security is not None:
            arguments["security"] = _security(settings.security)
        get_client = getattr(target, "get_client", None)
        try:
            # A gateway's cluster knows best how to reach it.
            is_gateway = type(target).__module__.startswith("dask_gateway")
            client = get_client(False) if get_client and is_gateway else make(target, **arguments)
        except Exception as error:
            raise RunnerStartError(_unreachable(where, settings, error)) from error
        self._closing.callback(_close_client, client)
        hurry(client.scheduler_comm)
        return client


class _Pings:
    """Asks the scheduler now and then whether it is there: a network that is cut tells nobody."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._asked = self._answered = time.monotonic()

    def check(self) -> str | None:
        """Return what is wrong, or None."""
        now = time.monotonic()
        if now - self._answered > _PONG_SECONDS and self._asked > self._answered:
            return f"the scheduler {self._client.scheduler.address} has not answered for {now - self._answered:.0f} s"
        if now - max(self._asked, self._answered) > _PING_SECONDS:
            if self._asked <= self._answered:
                # From now on it has its time; before, nobody asked.
                self._answered = now - 0.001
            self._asked = now
            self._client.loop.add_callback(self._ping)
        return None

    async def _ping(self) -> None:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._client.scheduler.ncores(workers=[]), _PONG_SECONDS)
            self._answered = time.monotonic()


def connect(settings: Settings) -> Connection:
    """Connect to the cluster that the settings name, and see that it understands us.

    Raises
    ------
    RunnerStartError
        If it can't be reached in time, or its software doesn't fit.
    """
    connection = Connection(settings)
    try:
        if connection.journal == "":
            check_cluster_versions(connection.client)
    except BaseException:
        connection.close()
        raise
    return connection


def check_cluster_versions(client: Any) -> None:
    """Compare the versions of driver and workers, before the first call finds out.

    Raises
    ------
    RunnerStartError
        Naming both sides.
    """
    found = client.run(_versions_here, on_error="return")
    problems = {name: answer for name, answer in found.items() if isinstance(answer, BaseException)}
    if problems:
        name, problem = next(iter(problems.items()))
        raise RunnerStartError(
            f"The worker {name} can't tell its versions ({type(problem).__name__}: {problem}). It must have the same "
            "minor version of Python as the driver."
        )
    check_versions(versions(), {f"the worker {name}": answer for name, answer in found.items()})


def _versions_here() -> dict[str, str | None]:
    # By value, to workers that may lack Turnout; so it asks for everything by name.
    import importlib
    import platform

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, module, attribute in (
        ("turnout", "turnout._version", "__version__"),
        ("cloudpickle", "cloudpickle", "__version__"),
    ):
        try:
            found[name] = str(getattr(importlib.import_module(module), attribute))
        except ImportError:
            found[name] = None
    return found


def _unreachable(where: str, settings: Settings, error: Exception) -> str:
    cause = f"{type(error).__name__}: {error}"
    text = f"No connection to {where} within {settings.connect_timeout:g} s ({cause}). "
    if settings.address is None:
        return text + "Check that it is up, or run the flow elsewhere, for example with task_runner='process'."
    return (
        text + "Tried a client of Dask. Check that a scheduler listens there (dask scheduler --host ... --port ...), "
        "that no firewall is between, and that both sides use tcp:// or both tls:// with the same certificates."
    )


def _need_certificates(address: str) -> None:
    import dask.config

    # Without them a client of Dask fails, and then holds up the end of the program for 20 s.
    if dask.config.get("distributed.comm.tls.ca-file", None) is None:
        names = ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")
        variables = ", ".join(f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in names)
        raise RunnerStartError(
            f"{address} needs certificates. Give security=dict(tls_ca_file=..., tls_client_cert=..., "
            f"tls_client_key=...), or name the files in the environment: {variables}."
        )


def _security(security: Any) -> Any:
    """Return Dask's object for what users give."""
    if not isinstance(security, Mapping):
        return security
    from distributed import Security

    unknown = sorted(set(security) - _SECURITY_PATHS)
    if unknown:
        raise RunnerOptionError(f"security has no {unknown[0]!r}. There are {', '.join(sorted(_SECURITY_PATHS))}.")
    for name, path in security.items():
        # May also be the text of the certificate itself.
        if "\n" not in str(path) and not Path(path).exists():
            raise RunnerOptionError(f"security[{name!r}]: there is no file {path}.")
    make: Callable[..., Any] = Security
    made = make(require_encryption=True, **{name: str(path) for name, path in security.items()})
    _check_certificates(made)
    return made


def _check_certificates(security: Any) -> None:
    # A client of Dask that fails for want of them says little of them, and complains again at the end of the program.
    try:
        context = security.get_connection_args("client").get("ssl_context")
    except OSError as error:
        raise RunnerOptionError(
            f"security: these are no certificates and key that fit ({type(error).__name__}: {error}). Give PEM files: "
            "that of the authority, and the own certificate with its key."
        ) from error
    if context is None:
        raise RunnerOptionError(
            "security: a connection needs tls_ca_file, tls_client_cert and, if the key is not in the same file as the "
            "certificate, tls_client_key."
        )


def _found(cluster_class: Any) -> Callable[..., Any]:
    if not isinstance(cluster_class, str):
        return cluster_class  # type: ignore[no-any-return]
    module, _, name = cluster_class.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise RunnerStartError(
            f"cluster_class={cluster_class!r} can't be had ({type(error).__name__}: {error}). Install the package that "
            "has it, or check the spelling."
        ) from error


def _need_bokeh() -> None:
    if importlib.util.find_spec("bokeh") is None:
        raise RunnerStartError("performance_report_path= needs Bokeh, here and on the scheduler: pip install bokeh.")


def _end_report(client: Any, report: Any, path: str) -> None:
    try:
        with client.as_current():
            report.__exit__(None, None, None)
    except Exception:
        logger.exception("Dask could not write its report to %s.", path)


def _take_back(client: Any, name: str) -> None:
    # If the connection is lost, the scheduler does it.
    with contextlib.suppress(Exception):
        client.unregister_worker_plugin(name)


def _close_client(client: Any) -> None:
    with contextlib.suppress(Exception):
        client.close(timeout=_CLOSE_SECONDS)
