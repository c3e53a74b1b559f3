"""A Ray that somebody else has started: connecting to it within a time, and comparing what runs there."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from turnout.errors import RunnerStartError

from ._addresses import CLIENT, host_and_port, places_in_use
from ._lifeline import reach
from ._local import kept_handlers, loopback_only, quietly

if TYPE_CHECKING:
    from ._connection import Settings

__all__ = ["attach"]

# How long the nodes get to tell their versions, in seconds. The first call of a driver starts a process on each.
_VERSIONS: Final = 30.0


def attach(settings: Settings) -> tuple[Callable[[], None], list[tuple[str, int]]]:
    """Connect to a cluster by its address.

    Returns
    -------
    tuple
        A function that disconnects, and the places that must stay reachable.

    Raises
    ------
    RunnerStartError
        If nothing answers there, or what runs there does not fit.
    """
    assert settings.address is not None, "without an address a local Ray is started"
    _look_at(settings)
    _init(settings)
    try:
        _compare_versions(settings)
        return _disconnect, places_in_use()
    except BaseException:
        _disconnect()
        raise


def _look_at(settings: Settings) -> None:
    """Make sure that something listens there. Ray itself would try for long, and may end the process."""
    address = settings.address
    assert address is not None, "see above"
    if address == "auto":
        return
    if address.startswith(CLIENT):
        _need_client(address)
    try:
        reach(host_and_port(address), settings.connect_timeout).close()
    except OSError as error:
        raise RunnerStartError(
            f"No Ray answers at {address}: a connection was tried for {settings.connect_timeout:g} s ({error}). "
            f"{_remedy(address)}"
        ) from error


def _remedy(address: str) -> str:
    if address.startswith(CLIENT):
        return (
            "Check host and port; a head node listens on 10001 when it was started with `ray start --head "
            "--ray-client-server-port=10001`, and a firewall may be between."
        )
    return (
        "Check host and port; a head node is started with `ray start --head --port=6379`. From a machine that is no "
        "node of the cluster, connect to ray://host:10001 instead."
    )


def _need_client(address: str) -> None:
    if importlib.util.find_spec("grpc") is None:
        raise RunnerStartError(
            f"{address} is reached through Ray's client, which is not installed. Install it with: "
            'pip install "ray[client]"'
        )


def _init(settings: Settings) -> None:
    from ._library import ray

    # By itself Ray refuses another patch of Python; what has to agree is compared below.
    os.environ.setdefault("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    # gRPC's handlers of forks end processes that start others while its threads are busy ("Check failed:
    # next_worker->state == KICKED"). They are for children that use gRPC, too, of which there are none.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    address = settings.address
    try:
        with quietly(), _where_it_listens(str(address)), _quiet_client(str(address)):
            ray.init(**_arguments(settings))
    except Exception as error:
        with contextlib.suppress(Exception), kept_handlers():
            ray.shutdown()
        raise RunnerStartError(
            f"Ray at {address} can't be used from here: {type(error).__name__}: {error}. {_remedy(str(address))}"
        ) from error


def _arguments(settings: Settings) -> dict[str, Any]:
    address = settings.address
    assert address is not None, "see above"
    arguments: dict[str, Any] = {
        "address": address,
        "namespace": settings.namespace,
        "runtime_env": settings.runtime_env,
    }
    if not address.startswith(CLIENT):
        arguments |= {"log_to_driver": False, "configure_logging": False}
    return {name: value for name, value in {**arguments, **settings.init_kwargs}.items() if value is not None}


def _where_it_listens(address: str) -> contextlib.AbstractContextManager[None]:
    """Return a context in which Ray finds a cluster that listens on loopback alone; it would look elsewhere."""
    from ray._private import services

    if address == "auto" or address.startswith(CLIENT):
        return contextlib.nullcontext()
    host, port = host_and_port(address)
    if services.resolve_ip_for_localhost(host) != host:
        try:
            reach((services.resolve_ip_for_localhost(host), port), 1.0).close()
        except OSError:
            return loopback_only()
    return contextlib.nullcontext()


@contextlib.contextmanager
def _quiet_client(address: str) -> Iterator[None]:
    """Keep what Ray's client server logs and prints off the screen, as what Ray itself does elsewhere.

    Such as "SIGTERM handler is not set", though all is well. What tasks print comes another way.
    """
    if not address.startswith(CLIENT):
        yield
        return
    from ray.util import client
    from ray.util.client.logsclient import LogstreamClient

    # Its words come before there is a connection that could be told to be quiet.
    stream: Any = LogstreamClient
    before = stream.log, stream.stdstream
    stream.log = stream.stdstream = _leave_out
    try:
        yield
        context: Any = client.ray
        its = context.worker.log_client
        its.log = its.stdstream = functools.partial(_leave_out, its)
    finally:
        stream.log, stream.stdstream = before


def _leave_out(stream: object, level: int, msg: str) -> None:
    """Say nothing."""


def _disconnect() -> None:
    from ._library import ray

    with kept_handlers():
        ray.shutdown()


def _compare_versions(settings: Settings) -> None:
    """Compare versions of Python, Turnout and cloudpickle with those of every node.

    Raises
    ------
    RunnerStartError
        Naming both sides, if they can't work together.
    """
    from turnout._cluster import check_versions, versions

    check_versions(versions(), _versions_of_nodes(settings))


def _versions_of_nodes(settings: Settings) -> dict[str, dict[str, str]]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from ._library import ray

    ask = ray.remote(num_cpus=0, max_retries=0)(_by_value())
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = {
        f"{address} (node {node[:8]})": ask.options(
            name="turnout-versions", scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node, address in nodes.items()
    }
    deadline = time.monotonic() + max(_VERSIONS, settings.connect_timeout)
    found = {}
    for name, reference in asked.items():
        try:
            found[name] = ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))
        except ray.exceptions.RayTaskError as error:
            raise RunnerStartError(
                f"The worker at {name} of Ray at {settings.address} can't tell its versions: {error}. Install the "
                'driver\'s version of turnout where it runs: pip install "turnout[ray]"'
            ) from error
        except ray.exceptions.GetTimeoutError:
            # A busy or dying node; what it runs will tell.
            continue
    return found


def _by_value() -> Callable[[], dict[str, str]]:
    """Return a function that travels as code: the other side may have no Turnout that could be imported."""
    source = """
def tell():
    import platform
    versions = {"python": platform.python_version()}
    try:
        from turnout._cluster import versions as told
    except ImportError:
        return versions
    return told()
"""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(source, scope)
    made: Callable[[], dict[str, str]] = scope["tell"]
    return made
