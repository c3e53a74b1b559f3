"""What the runners of drivers and of tasks on workers have in common: a link to a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from turnout.errors import RunnerStoppedError
from turnout.runner import Batch, Capabilities, Stored, TaskRunner

if TYPE_CHECKING:
    from turnout._serialization import Parcel

    from ._link import Link

__all__ = ["FOREIGN", "LinkedRunner"]

FOREIGN: Final = Capabilities(
    cancel="cooperative",
    frees_slot=True,
    # The workers of others may have several threads, and die with several calls.
    isolates_crashes=False,
    explains_crashes=False,
    keeps_results=False,
    knows_resources=True,
    nested="shared",
    streams=True,
    # Driver, scheduler and worker each gather messages for some milliseconds before they send them.
    latency=0.02,
    batch_seconds=0.0027,
    orders=True,
    ends_with_driver=False,
)
"""What can be had of a cluster that somebody else started."""


class LinkedRunner(TaskRunner):
    """A runner that hands everything to its link."""

    _link: Link | None = None
    _without: ClassVar[str]
    """Why there is no link."""

    def slots(self) -> int:
        """Return how many threads the workers have together."""
        return 1 if self._link is None else self._link.slots()

    def submit(self, batch: Batch) -> None:
        """Send a batch to whichever worker Dask chooses."""
        self._linked().submit(batch)

    def cancel(self, batch: Batch) -> bool:
        """Have a batch not begun, or ask its body to stop."""
        return self._link is not None and self._link.cancel(batch)

    def recall(self, batch: Batch) -> None:
        """Give back what has not begun of a batch of several calls."""
        if self._link is not None:
            self._link.recall(batch)

    def is_waiting(self, batch: Batch) -> bool:
        """Return whether a batch waits for others that it sent this way."""
        return self._link is not None and self._link.is_waiting(batch)

    def fetch(self, stored: Stored) -> Parcel:
        """Bring a value here."""
        return self._linked().fetch(stored)

    def _linked(self) -> Link:
        if self._link is None:
            raise RunnerStoppedError(self._without)
        return self._link
