"""The runner for what tasks on a Dask worker submit: the same cluster, through the worker's own client."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from turnout.errors import RunnerStoppedError
from turnout.runner import Batch, Capabilities, Host, Stored, TaskRunner

from ._link import Link, Terms
from ._remote import current_work

if TYPE_CHECKING:
    from turnout._serialization import Parcel

__all__ = ["WorkerDaskRunner"]


class WorkerDaskRunner(TaskRunner):
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

    capabilities: Capabilities = Capabilities(
        cancel="cooperative",
        frees_slot=True,
        isolates_crashes=False,
        explains_crashes=False,
        keeps_results=False,
        knows_resources=True,
        nested="shared",
        streams=True,
        ends_with_driver=False,
    )

    def __init__(self, worker: Any, base: str, journal: str) -> None:
        self._worker = worker
        self._terms = Terms(base, journal, is_nested=True)
        self._link: Link | None = None

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
        return 1 if self._link is None else self._link.slots()

    def submit(self, batch: Batch) -> None:
        """Send a batch to whichever worker Dask chooses."""
        if self._link is None:
            raise RunnerStoppedError("The task that could submit has ended.")
        self._link.submit(batch)

    def cancel(self, batch: Batch) -> bool:
        """Have a batch stopped."""
        return self._link is not None and self._link.cancel(batch)

    def fetch(self, stored: Stored) -> Parcel:
        """Bring a value to this worker."""
        assert self._link is not None, "values are fetched before the runner is stopped"
        return self._link.fetch(stored)

    def waiting(self) -> contextlib.AbstractContextManager[object]:
        """Give the slot of this thread's batch to others."""
        work = current_work()
        return contextlib.nullcontext() if work is None else work.waiting()

    def stop(self) -> None:
        """Listen no more."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
