"""A backend of which a test says what becomes of each batch, and when."""

from __future__ import annotations

from turnout.runner import Batch, Capabilities, Host, Outcome, TaskRunner
from turnout.worker import run_batch

__all__ = ["Depot"]


class Depot(TaskRunner):
    """Collects batches; the test decides what becomes of each.

    Parameters
    ----------
    size
        For how many calls at once it gives itself out.

    Examples
    --------
    >>> from turnout import task
    >>> with Depot() as depot:
    ...     future = task(abs).submit(-1)
    ...     outcomes = depot.work(0)
    ...     future.result()
    1
    """

    capabilities = Capabilities(streams=True, cancel="kill")

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.batches: list[Batch] = []
        self.cancelled: list[Batch] = []
        self.recalled: list[Batch] = []

    def start(self, host: Host) -> None:
        """Take note of the host."""
        self.host = host

    def slots(self) -> int:
        """Return ``size``."""
        return self.size

    def submit(self, batch: Batch) -> None:
        """Keep a batch."""
        self.batches.append(batch)

    def cancel(self, batch: Batch) -> bool:
        """Note that a batch is to be stopped."""
        self.cancelled.append(batch)
        return True

    def recall(self, batch: Batch) -> None:
        """Note that a batch is to give back what has not begun."""
        self.recalled.append(batch)

    def stop(self) -> None:
        """Do nothing."""

    def sizes(self) -> list[int]:
        """Return how many calls each batch had."""
        return [len(batch.calls) for batch in self.batches]

    def names(self, number: int) -> list[str]:
        """Return the names of the runs in a batch."""
        return [call.future.name for call in self.batches[number].calls]

    def tell(self, number: int, *outcomes: Outcome) -> None:
        """Tell news of a batch."""
        self.host.report(self.batches[number], outcomes)

    def work(self, number: int) -> list[Outcome]:
        """Run a batch as a worker does, and tell what came of it."""
        batch = self.batches[number]
        outcomes: list[Outcome] = []
        run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
        self.host.report(batch, outcomes)
        return outcomes

    def work_off(self, begin: int = 0) -> None:
        """Run all batches from one on, and those that follow from them."""
        while begin < len(self.batches):
            self.work(begin)
            begin += 1
