"""A local Ray of our own: closed to other machines, quiet, and gone without a trace when it is no longer needed."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from turnout.errors import RunnerStartError
from turnout.runner import usable_memory, usable_processors

from ._addresses import places_in_use

if TYPE_CHECKING:
    from ._connection import Settings

__all__ = ["kept_handlers", "loopback_only", "quietly", "start"]

_LOOPBACK: Final = "127.0.0.1"
# The names of Unix sockets below it add some 89 characters, and there may be 107.
_LONGEST_FOLDER: Final = 18
# Ray opens its folder to everybody, sockets and all. So it gets one that lies in a folder of ours, which is not open.
_INSIDE: Final = "r"
# Of the memory that is free, for the object store: this part, but no more than that many bytes.
_STORE_PART: Final = 0.3
_LARGEST_STORE: Final = 20 * 2**30
_SMALLEST_STORE: Final = 100 * 2**20
# How long Ray keeps workers that have nothing to do, in milliseconds. Tasks that wait for tasks of their own need more
# workers than there are processors; Ray would end those after a second, and take another to start each anew: 40 chains
# of three calls took 38 s on one processor, and 1.5 s with this. Not by `num_workers_soft_limit`, which Ray takes for
# how many may start for batches that wait for a processor, too: flows of short calls lost a quarter of a second.
_KEEP_IDLE: Final = 60_000
# How long processes get to end, in seconds.
_PATIENCE: Final = 10.0


def start(settings: Settings) -> tuple[Callable[[], None], list[tuple[str, int]], Callable[[int], None]]:
    """Start a Ray on this machine.

    Returns
    -------
    tuple
        A function that stops it, the places that must stay reachable, and a function that kills one of its workers.

    Raises
    ------
    RunnerStartError
        If it doesn't come up.
    """
    from ._library import ray

    folder = _new_folder()
    others = _children()
    variables = dict(os.environ)
    try:
        _private_token()
        with loopback_only(), quietly(), _apart():
            ray.init(**_arguments(settings, folder))
    except Exception as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        raise RunnerStartError(
            f"A local Ray did not start: {type(error).__name__}: {error}. Check the settings of RayTaskRunner, free "
            "memory and /dev/shm, and that no ports are blocked on loopback; `ray start --head` shows more."
        ) from error
    own = {pid: began for pid, began in _children().items() if others.get(pid) != began}
    # Some of them tell code of Ray's that this Ray wants a token; no other may.
    set_by_ray = {name: value for name, value in os.environ.items() if variables.get(name) != value}

    def stop() -> None:
        _stop(_below(own), folder)
        for name, value in set_by_ray.items():
            if os.environ.get(name) == value:
                _restore(name, variables.get(name))
        _forget_token()

    def end_worker(process: int) -> None:
        if process in _below(own):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    return stop, places_in_use(), end_worker


def _stop(processes: dict[int, str], folder: str) -> None:
    from ._library import ray

    with kept_handlers():
        ray.shutdown()
    _outlive(processes)
    shutil.rmtree(folder, ignore_errors=True)


def _arguments(settings: Settings, folder: str) -> dict[str, Any]:
    from ray.job_config import JobConfig

    arguments = {
        "address": "local",
        # Workers put one after the other at the front.
        "job_config": JobConfig(_py_driver_sys_path=_own_places()[::-1]),
        # By itself Ray would pass over affinity, and quotas save those of containers.
        "num_cpus": settings.num_cpus or usable_processors(),
        "include_dashboard": False,
        "log_to_driver": False,
        "configure_logging": False,
        "namespace": settings.namespace,
        "runtime_env": settings.runtime_env,
        "object_store_memory": _store_size(),
        "_node_ip_address": _LOOPBACK,
        "_temp_dir": str(Path(folder, _INSIDE)),
        **settings.init_kwargs,
    }
    arguments["_system_config"] = {
        "idle_worker_killing_time_threshold_ms": _KEEP_IDLE,
        **(settings.init_kwargs.get("_system_config") or {}),
    }
    return {name: value for name, value in arguments.items() if value is not None}


def _own_places() -> list[str]:
    """Return where this process looks for modules, save for the places that every interpreter of its kind has.

    Ray tells its workers no more than the folder of the script and the current one.
    """
    standard = tuple({str(Path(prefix)) + os.sep for prefix in (sys.prefix, sys.base_prefix)})
    places = [str(Path(place).absolute()) for place in sys.path]
    return [place for place in dict.fromkeys(places) if not place.startswith(standard)]


def _new_folder() -> str:
    """Return a new folder for Ray's sockets and logs, whose name is short enough."""
    parent = tempfile.gettempdir()
    if len(parent) > _LONGEST_FOLDER and Path("/tmp").is_dir():
        parent = "/tmp"
    return tempfile.mkdtemp(prefix="turnout-ray-", dir=parent)


def _store_size() -> int:
    """Return how large the object store may grow, in bytes: Ray takes that address space at once, but no memory."""
    free = _SMALLEST_STORE / _STORE_PART
    with contextlib.suppress(OSError, ValueError):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # What is stored counts towards the limit of a container or job.
        free = min(free, usable_memory() or free)
        # Where shared memory is small, as in containers, Ray would warn and go to the disk.
        free = min(free, shutil.disk_usage("/dev/shm").free / _STORE_PART * 0.9)
    return int(min(max(free * _STORE_PART, _SMALLEST_STORE), _LARGEST_STORE))


# What Ray does to its surroundings, and we put right


def _private_token() -> None:
    """Have the token that opens this Ray be readable by its owner only: Ray would write it for everybody to read."""
    path = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        path.chmod(0o600)
        return
    with contextlib.suppress(ImportError, OSError):
        from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

        # Who can write to the folder can put another token there.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(generate_new_authentication_token())


def _forget_token() -> None:
    """Have Ray read its settings anew, once the variables are what they were.

    Else this process would want a token of every Ray that it connects to later: the head node of one without could not
    answer its questions, would take it for dead, and end its actors.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray import _raylet

        compiled: Any = _raylet
        config, loader = compiled.Config, compiled.AuthenticationTokenLoader
        config.initialize("")
        loader.instance().reset_cache()


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Have all of this Ray listen on loopback.

    It does so where it can't form clusters with other machines, as on macOS; else it replaces the loopback address by
    that of a network.
    """
    from ray._private import ray_constants

    variables = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in variables}
    was_enabled = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    os.environ.update(variables)
    if was_enabled is not None:
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        if was_enabled is not None:
            ray_constants.ENABLE_RAY_CLUSTER = was_enabled
        for name, value in before.items():
            _restore(name, value)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Have all of this Ray be in a process group of its own: who ends ours by a signal ends Ray through us.

    Else Ray is gone in the moment in which the driver wants to cancel what it runs, and an answer that never comes is
    waited for up to a minute.
    """
    from ray._private import services

    module: Any = services
    popen = getattr(module, "ConsolePopen", None)
    if popen is not None:
        module.ConsolePopen = functools.partial(popen, process_group=0)
    try:
        yield
    finally:
        if popen is not None:
            module.ConsolePopen = popen


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep Ray's own words off the screen, and the user's signal handlers in place."""
    # Ray sets the level of the first one, which is that of the others too, unless they have their own.
    loggers = [logging.getLogger(name) for name in ("ray", "ray._private.worker", "ray.client_builder")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with kept_handlers():
            yield
            _no_prints()
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """Put the signal handlers back that Ray replaces. It can't do that in other threads than the main one."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    before = [(number, signal.getsignal(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:
                signal.signal(number, handler)


def _no_prints() -> None:
    """Send what Ray tells about dead workers to our logger: it would print it to standard output."""
    from ray._private import worker

    worker.print_to_stdstream = _log_instead


def _log_instead(data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    logging.getLogger("turnout").info("Ray: %s", "\n".join(data.get("lines", [])))


# Processes


def _children() -> dict[int, str]:
    """Return the children of this process, with the time at which each began: an id alone may come again."""
    return {pid: began for pid, (parent, began) in _table().items() if parent == os.getpid()}


def _below(roots: dict[int, str]) -> dict[int, str]:
    """Return processes with all that they started."""
    table = _table()
    found = dict(roots)
    more = True
    while more:
        new = {pid: began for pid, (parent, began) in table.items() if parent in found and pid not in found}
        found |= new
        more = bool(new)
    return found


def _table() -> dict[int, tuple[int, str]]:
    """Return parent and beginning of every process; nothing where the system doesn't tell."""
    table = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            table[int(path.parent.name)] = int(fields[1]), fields[19]
    return table


def _outlive(processes: dict[int, str]) -> None:
    """Wait until processes have ended, and end those that take too long."""
    deadline = time.monotonic() + _PATIENCE
    while left := [pid for pid, began in processes.items() if _runs(pid, began)]:
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.02)


def _runs(pid: int, began: str) -> bool:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0] != "Z" and fields[19] == began
    return False
