"""Has Dask send sooner: its streams hold messages back for milliseconds, which tasks that wait for others feel."""

from __future__ import annotations

from typing import Any, Final

from distributed.diagnostics.plugin import SchedulerPlugin

__all__ = ["PromptScheduler", "hurry"]

# How long a stream waits after a message before it sends the next, in seconds. Dask has 10 ms from clients to the
# scheduler, and 5 ms from there to workers. With those, letting go of a value is told late, so that workers hold one
# more, and has the next task wait: of twelve tasks that hand on 64 MB, each took 11.4 ms instead of 9.4, and 9.0 by
# hand.
_INTERVAL: Final = 0.001


def hurry(stream: Any) -> None:
    """Have a stream of Dask's, a :class:`distributed.batched.BatchedSend`, wait less between messages."""
    stream.interval = min(stream.interval, _INTERVAL)


class PromptScheduler(SchedulerPlugin):
    """Has a scheduler do so with its streams to workers."""

    name = "turnout-prompt"

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Take a new worker's stream."""
        hurry(scheduler.stream_comms[worker])
