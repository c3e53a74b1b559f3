"""The runner for what tasks on a Dask worker submit: the same cluster, through the worker's own client."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from turnout.runner import Capabilities, Host

from ._link import Link
from ._linked import FOREIGN, LinkedRunner
from ._remote import current_work
from ._terms import Terms

__all__ = ["WorkerDaskRunner"]


class WorkerDaskRunner(LinkedRunner):
    """Runs calls on the cluster that this process is a worker of. One for each run, made by what runs its batches.

    Parameters
    ----------
    worker
        The :class:`distributed.Worker`.
    base
        The topic of the run.
    journal
        The directory of the workers' journals, or nothing.
    """

    # What a task submits, it waits for: there is little to gain by sending it early.
    capabilities: Capabilities = dataclasses.replace(FOREIGN, orders=False)
    _without = "The task that could submit has ended."

    def __init__(self, worker: Any, base: str, journal: str) -> None:
        self._worker = worker
        self._terms = Terms(base, journal, is_nested=True)

    def start(self, host: Host) -> None:
        """Listen for news. The client belongs to the worker, which keeps it."""
        self._link = Link(self._worker.client, host, self, self._terms)
        self._link.open()

    def slots(self) -> int:
        """Return how many threads the workers have together, and how many batches wait for others."""
        # Asked in the thread of the body that submits, before its call is sent or queued.
        work = current_work()
        if work is not None:
            work.will_submit()
        return super().slots()

    def waiting(self) -> contextlib.AbstractContextManager[object]:
        """Give the slot of this thread's batch to others."""
        work = current_work()
        return contextlib.nullcontext() if work is None else work.waiting()

    def stop(self) -> None:
        """Listen no more."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
