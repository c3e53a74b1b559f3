"""Where a batch may run: what tasks ask for, in the words that Dask's scheduler knows."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from turnout._resources import described
from turnout.errors import RunnerOptionError
from turnout.runner import Batch

__all__ = ["Placement", "Unplaced", "Worker", "checked_options", "place", "why_nowhere"]

_OPTIONS: Final = ("priority", "workers", "resources")
# What a worker has, whether or not it declares it as a resource of Dask.
_INNATE: Final = ("cpu", "memory")
# How long a batch waits for a worker before anything is said, in seconds.
_PATIENCE: Final = 4.0


class Worker(NamedTuple):
    """What the scheduler tells of a worker."""

    address: str
    name: str
    threads: int
    memory: float
    """Its limit in bytes, 0 for none."""
    resources: Mapping[str, float]

    @classmethod
    def told(cls, address: str, told: Mapping[str, Any]) -> Worker:
        """Return a worker as the scheduler describes it."""
        resources = told.get("resources") or {}
        return cls(address, str(told["name"]), told["nthreads"], told.get("memory_limit") or 0, resources)

    def declared(self, name: str) -> str | None:
        """Return how a resource is spelled here: ``gpu`` may be ``GPU``."""
        if name in self.resources:
            return name
        same = [own for own in self.resources if own.lower() == name]
        return same[0] if same and name in (*_INNATE, "gpu") else None

    def has(self, name: str, amount: float) -> bool:
        """Return whether it has that much of something when nothing else runs."""
        own = self.declared(name)
        if own is not None:
            return self.resources[own] >= amount
        if name == "cpu":
            return self.threads >= amount
        return name == "memory" and (not self.memory or self.memory >= amount)

    def goes_by(self, name: object) -> bool:
        """Return whether a user may mean this one."""
        host = self.address.partition("://")[2].rpartition(":")[0]
        return str(name) in (self.address, self.address.partition("://")[2], self.name, host)


class Placement(NamedTuple):
    """What Dask is told of where a batch may run."""

    keywords: Mapping[str, Any]
    """For :meth:`distributed.Client.submit`."""
    only_on: frozenset[str]
    """The addresses of the workers that it may run on; all, if there is none."""


def checked_options(batch: Batch) -> Mapping[str, Any]:
    """Return a task's ``dask_options``.

    Raises
    ------
    RunnerOptionError
        If there is one that Dask doesn't have.
    """
    options = batch.options.get("dask") or {}
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise RunnerOptionError(
            f"dask_options of task {batch.calls[0].task.name!r} has no {unknown[0]!r}. "
            f"There are {', '.join(_OPTIONS[:-1])} and {_OPTIONS[-1]}."
        )
    return options


def place(batch: Batch, workers: Mapping[str, Worker]) -> Placement | None:
    """Return where a batch may run, or None if there is no worker that has what it needs."""
    options = checked_options(batch)
    named = _named(options)
    keywords = {"priority": options["priority"]} if "priority" in options else {}
    if not (batch.resources or named or options.get("resources")):
        return Placement(keywords, frozenset())
    fitting = [worker for worker in workers.values() if _fits(worker, batch, options, named)]
    if not fitting:
        return None
    # Dask counts what is declared. Of the rest it knows nothing: there only workers that have enough are allowed.
    request = {own: amount for name, amount in batch.resources.items() if (own := fitting[0].declared(name))}
    request.update(options.get("resources") or {})
    if request:
        keywords["resources"] = request
    alike = [worker for worker in fitting if request.keys() <= worker.resources.keys()]
    if not named and all(name in _declared(request) for name in batch.resources):
        return Placement(keywords, frozenset())
    only_on = frozenset(worker.address for worker in alike)
    return Placement({**keywords, "workers": sorted(only_on)}, only_on)


def why_nowhere(batch: Batch, workers: Mapping[str, Worker]) -> str:
    """Return why a batch can't run on the cluster, naming what that has."""
    options = checked_options(batch)
    wanted = dict(batch.resources) | dict(options.get("resources") or {})
    needs = [f"needs a worker with {described(wanted)}"] if wanted else []
    needs += [f"is to run on {', '.join(map(str, _named(options)))}"] if _named(options) else []
    found = sorted({_described(worker) for worker in workers.values()})
    has = f"{len(workers)} workers: {'; '.join(found[:5])}" if workers else "no workers"
    return f"{batch.calls[0].future.name} {' and '.join(needs)}, and the cluster has {has}"


def _named(options: Mapping[str, Any]) -> list[Any]:
    named = options.get("workers")
    if named is None:
        return []
    return [named] if isinstance(named, (str, int)) else list(named)


def _fits(worker: Worker, batch: Batch, options: Mapping[str, Any], named: list[Any]) -> bool:
    own = options.get("resources") or {}
    return (
        all(worker.has(name, amount) for name, amount in batch.resources.items())
        and all(worker.resources.get(name, 0) >= amount for name, amount in own.items())
        and (not named or any(worker.goes_by(name) for name in named))
    )


def _declared(request: Mapping[str, float]) -> set[str]:
    return {name.lower() if name.lower() in (*_INNATE, "gpu") else name for name in request}


def _described(worker: Worker) -> str:
    has = {"cpu": float(worker.threads)}
    if worker.memory:
        has["memory"] = float(worker.memory)
    return f"{worker.name} ({described(has | dict(worker.resources))})"


class Unplaced:
    """Batches that no worker may run now, each with the time since when it waits. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[Batch, float] = {}

    def add(self, batch: Batch) -> None:
        """Take a batch."""
        with self._lock:
            self._since[batch] = time.monotonic()

    def take(self, batch: Batch) -> bool:
        """Give a batch away, to one who asks for it only; return whether it was here."""
        with self._lock:
            return self._since.pop(batch, None) is not None

    def all(self) -> list[Batch]:
        """Return those that are here."""
        with self._lock:
            return list(self._since)

    def late(self) -> list[Batch]:
        """Return those that have waited for long, each only once."""
        with self._lock:
            now = time.monotonic()
            late = [batch for batch, since in self._since.items() if now - since > _PATIENCE]
            self._since.update(dict.fromkeys(late, math.inf))
            return late
