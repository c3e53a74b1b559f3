"""The runner inside of workers: calls that a task submits go to the same Ray, and its processors to them meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, ClassVar, Final

from turnout.errors import RunnerStoppedError
from turnout.runner import Batch, Capabilities, Host, Stored, TaskRunner

from ._cluster import Cluster
from ._pump import CAPABILITIES, Pump, under_way
from ._values import fetched

if TYPE_CHECKING:
    from turnout._serialization import Parcel

__all__ = ["NestedRayRunner", "wait_for_nested", "wait_giving_way"]

# Nodes come and go; how old what is known of them may be, in seconds.
_MAX_AGE: Final = 5.0
# How long the main thread waits in Ray for one of the calls before it looks up, in seconds.
_LOOK_UP: Final = 0.1
# How long a call that is over takes to be told of, in seconds.
_TELLING: Final = 0.01


class NestedRayRunner(TaskRunner):
    """Runs what a task submits on the Ray that runs the task.

    Parameters
    ----------
    mailbox
        The name of the actor that takes the driver's news, and takes those of nested calls too.
    shipment
        Code that came with the task, and goes on to those that it submits.
    """

    capabilities: Capabilities = CAPABILITIES
    _cluster: ClassVar[Cluster] = Cluster()

    def __init__(self, mailbox: str, shipment: bytes | None = None) -> None:
        self._mailbox = mailbox
        self._shipment = shipment
        self._pump: Pump | None = None

    def start(self, host: Host) -> None:
        """Make ready for calls; costs little, for many tasks submit some."""
        from ._library import ray
        from ._post import Post

        post = Post(ray.get_actor(self._mailbox), self._mailbox, uuid.uuid4().hex)
        self._pump = Pump(self, host, post, self._cluster, self._shipment)

    def slots(self) -> int:
        """Return how many processors the cluster has."""
        return self._cluster.processors(_MAX_AGE)

    def submit(self, batch: Batch) -> None:
        """Hand a batch to Ray."""
        if self._pump is None:
            raise RunnerStoppedError("The task that submitted this call is over.")
        self._pump.submit(batch)

    def cancel(self, batch: Batch) -> bool:
        """End the worker that runs a batch."""
        return self._pump is not None and self._pump.cancel(batch)

    def recall(self, batch: Batch) -> None:
        """Have those calls of a batch given back that have not begun."""
        if self._pump is not None:
            self._pump.recall(batch)

    def fetch(self, stored: Stored) -> Parcel:
        """Bring a value from the object store."""
        return fetched(stored)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Any]:
        """Return a context whose value is how the main thread waits: in Ray, which then gives its processors away."""
        yield wait_giving_way if threading.current_thread() is threading.main_thread() else None

    def stop(self) -> None:
        """Let go of what is under way."""
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.stop()


def wait_giving_way(gate: threading.Lock, timeout: float) -> bool:
    """Acquire a lock like ``gate.acquire(timeout=timeout)``, while the task's processors are free for nested calls."""
    deadline = None if timeout < 0 else time.monotonic() + timeout
    patience = 0.0
    while not gate.acquire(timeout=patience):
        left = _LOOK_UP if deadline is None else min(_LOOK_UP, deadline - time.monotonic())
        if left <= 0:
            return False
        patience = _TELLING if _one_is_over(left) else left
    return True


def wait_for_nested(done: Future[Any], seconds: float) -> None:
    """Wait a little for a thread of this worker, in Ray if it has submitted calls."""
    if _one_is_over(seconds):
        wait([done], _TELLING)
    elif not under_way():
        wait([done], seconds)


def _one_is_over(seconds: float) -> bool:
    """Wait in Ray until a nested call is over, or for some time; return whether there was anything to wait for."""
    from ._library import ray

    references = under_way()
    if references:
        ray.wait(references, num_returns=1, timeout=seconds, fetch_local=False)
    return bool(references)
