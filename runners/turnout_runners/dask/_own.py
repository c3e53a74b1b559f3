"""A cluster of our own on this machine: loopback only, no main guard needed, and it knows what its workers died of."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing.spawn
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import dask.config
import distributed
from distributed.deploy.cluster import Cluster
from distributed.nanny import Nanny

from ._prompt import PromptScheduler
from ._spent import EXIT_STATUS

__all__ = ["OwnCluster", "cause_of", "end_workers_being_started"]

# By what Dask names the processes of workers, ours among them.
_PROCESS_NAME: Final = "Dask Worker process (from Nanny)"
_MAIN: Final = ("init_main_from_path", "init_main_from_name")
_SETTINGS: Final = {
    # Tasks may use multiprocessing.
    "distributed.worker.daemon": False,
    "distributed.worker.multiprocessing-method": "spawn",
    # The first death counts: how often a call is run again, the engine decides.
    "distributed.scheduler.allowed-failures": 0,
    # Otherwise a worker that ends a tiny task waits for the network before it gets the next.
    "distributed.scheduler.worker-saturation": "inf",
    # How many messages each connection keeps for debugging; ours hold results.
    "distributed.admin.low-level-log-length": 10,
}
# How long to wait for the exit code of a worker whose connection is gone, in seconds.
_PATIENCE: Final = 3.0
_MOST_EXITS: Final = 100


class OwnCluster:
    """A :class:`distributed.LocalCluster` with worker processes.

    Parameters
    ----------
    n_workers, threads_per_worker, memory_limit
        As for ``LocalCluster``.
    more
        Other arguments for it, which win over ours.
    """

    def __init__(self, n_workers: int, threads_per_worker: int, memory_limit: Any, more: Mapping[str, Any]) -> None:
        self.directory = tempfile.mkdtemp(prefix="turnout-dask-", dir=dask.config.get("temporary-directory"))
        self.journal = str(Path(self.directory, "journals"))
        Path(self.journal).mkdir(mode=0o700)
        resources = {"cpu": threads_per_worker} | dict(more.get("resources") or {})
        settings: dict[str, Any] = {
            "n_workers": n_workers,
            "threads_per_worker": threads_per_worker,
            "processes": True,
            "worker_class": _Nanny,
            # By default Dask listens with its dashboard on all addresses.
            "protocol": "tcp://",
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            # What goes wrong in tasks comes to the driver as their outcome.
            "silence_logs": logging.CRITICAL,
            "local_directory": self.directory,
            **more,
            "resources": resources,
            "scheduler_kwargs": {"plugins": (PromptScheduler(),), **(more.get("scheduler_kwargs") or {})},
        }
        if memory_limit is not None:
            settings["memory_limit"] = memory_limit
        try:
            # Dask would leave a directory behind.
            scratch = {"temporary-directory": self.directory}
            # One cluster after the other, or one would put back the other's folder.
            with _making, dask.config.set(scratch), _settings():
                make: Callable[..., Any] = _Cluster
                self.cluster = make(**settings)
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def close(self) -> None:
        """End scheduler and workers, and wait until they are gone."""
        try:
            # So says Dask in another thread while the interpreter ends, which has ended its event loop and the workers.
            with contextlib.suppress(UnboundLocalError):
                self.cluster.close()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


class _Cluster(distributed.LocalCluster):
    """Goes on with workers that die often."""

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Without what SpecCluster does in between: some time after a worker has died, it gives its nanny up if the next
        # one is just then dead as well. Ours come back.
        Cluster._update_worker_status(self, op, msg)  # type: ignore[no-untyped-call]


class _Nanny(Nanny):
    """Starts and restarts a worker process."""

    async def instantiate(self) -> Any:
        _being_started.add(self)
        try:
            with _settings(), _starting_workers():
                return await super().instantiate()
        finally:
            _being_started.discard(self)

    @property
    def process(self) -> Any:
        """The worker process, which tells of its exit code while it still knows its id."""
        return self._process

    @process.setter
    def process(self, process: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._process = process
        if process is not None:
            process.mark_stopped = functools.partial(_stopped, process, process.mark_stopped)


def _stopped(worker: Any, mark_stopped: Callable[[], None]) -> None:
    process = worker.process
    if process is not None and process.exitcode is not None:
        _exits.note(process.pid, process.exitcode)
    mark_stopped()


_making: Final = threading.Lock()
_being_started: Final[set[_Nanny]] = set()


def end_workers_being_started() -> None:
    """Kill the workers of our own that have not come up yet. Their cluster does not come up either then, and says so.

    Those of other runners that start in this very moment, too: they belong to a program that was told to end.
    """
    for nanny in list(_being_started):
        process: Any = getattr(nanny.process, "process", None)
        # It may not have begun, or be over.
        with contextlib.suppress(Exception):
            os.kill(process.pid, signal.SIGKILL)


class _Exits:
    """The exit codes of worker processes, by their process ids: addresses are used again by others soon."""

    def __init__(self) -> None:
        self._codes: dict[int, int | None] = {}
        self._changed = threading.Condition()

    def note(self, pid: int, code: int | None) -> None:
        """Take note of the exit code of a worker."""
        with self._changed:
            if len(self._codes) >= _MOST_EXITS:
                # Nobody asks about those that did nothing when they ended.
                del self._codes[next(iter(self._codes))]
            self._codes[pid] = code
            self._changed.notify_all()

    def wait_for(self, pid: int) -> int | None:
        """Return the exit code of a worker that is dying, or None if it can't be had."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._codes, _PATIENCE)
            return self._codes.pop(pid, None)


_exits: Final = _Exits()


def cause_of(address: str, pid: int) -> str:
    """Return what the worker of ours with this address, and this process, died of."""
    code = _exits.wait_for(pid)
    if code is None:
        return f"the worker {address} died"
    if code == EXIT_STATUS:
        return f"the worker {address} had no file descriptors left, and was ended"
    if code >= 0:
        return f"the worker {address} ended with exit code {code}"
    return f"the worker {address} was killed by signal {-code} ({_signal_name(-code)})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


# Guards what follows. Clusters and workers start side by side: whoever comes first changes what belongs to the whole
# process, and whoever goes last puts back what was there before.
_lending: Final = threading.Lock()
_settings_count = 0
_settings_before: Any = None
_starting_count = 0
_original: Any = None


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Have Dask's settings as our clusters and their workers need them."""
    global _settings_count, _settings_before
    with _lending:
        if not _settings_count:
            _settings_before = dask.config.set(_SETTINGS)
        _settings_count += 1
    try:
        yield
    finally:
        with _lending:
            _settings_count -= 1
            if not _settings_count:
                _settings_before.__exit__(None, None, None)


@contextlib.contextmanager
def _starting_workers() -> Iterator[None]:
    """Let worker processes of Dask start without importing the driver's main module again.

    That import would run a script's flow in each worker. They don't need it: what is defined there travels by value.
    Other processes that are started meanwhile are left alone.
    """
    global _starting_count, _original
    with _lending:
        if not _starting_count:
            _original = multiprocessing.spawn.get_preparation_data
            multiprocessing.spawn.get_preparation_data = _without_main
        _starting_count += 1
    try:
        yield
    finally:
        with _lending:
            _starting_count -= 1
            if not _starting_count:
                multiprocessing.spawn.get_preparation_data = _original


def _without_main(name: str) -> dict[str, Any]:
    data: dict[str, Any] = _original(name)
    if name == _PROCESS_NAME:
        for key in _MAIN:
            data.pop(key, None)
        # This thread does nothing but look after the new process, which inherits the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        data["turnout"] = _Apart()
    return data


class _Apart:
    """Puts the process that unpickles it into a group of its own: Ctrl-C at a terminal is for the driver.

    It is the first that such a process unpickles, before it knows where modules are.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_APART,)


# What came until now was for the driver, too.
_APART: Final = """
import os, signal
os.setpgid(0, 0)
handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
signal.signal(signal.SIGINT, handler)
"""
