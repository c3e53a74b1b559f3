"""A worker's way to those who sent it batches: news go by Dask's own connection, as events of a topic."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Final

from ._journal import Journal, journal_path
from ._wire import News

__all__ = ["Outbox"]

_PATIENCE: Final = 5.0
_STEP: Final = 0.0005
# How long after something was handed to Dask to see whether it has gone, in seconds.
_WATCH_SECONDS: Final = 0.25


class Outbox:
    """Sends the news of all batches of one Dask worker.

    Dask sends the events of a worker, and the ends of its tasks, in the order in which they are given to its loop: news
    that were emitted before the task of a batch ends arrive before the word of that end.

    Parameters
    ----------
    worker
        The :class:`distributed.Worker`.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        # Re-entrant, because a destructor that logs may come in between.
        self._lock = threading.RLock()
        self._pending: list[tuple[str, bytes, Journal | None]] = []
        self._journals: dict[str, Journal] = {}
        self._is_scheduled = False
        self._is_watched = False

    def send(self, news: News, journals: str, *, is_last: bool = False) -> None:
        """Send news of a batch, from any thread.

        Parameters
        ----------
        news
            The news.
        journals
            The directory of the workers' journals, or nothing.
        is_last
            Whether they can wait for :meth:`flush_last`.
        """
        message = news.packed()
        with self._lock:
            journal = self._journal(journals)
            if journal is not None:
                journal.write(message)
            self._pending.append((news.topic, message, journal))
            if is_last or self._is_scheduled:
                return
            self._is_scheduled = True
        # What others emit until the loop comes to it goes along.
        self._worker.loop.add_callback(self.flush)

    def flush(self) -> None:
        """Hand everything to Dask. Called in the worker's loop."""
        with self._lock:
            pending, self._pending = self._pending, []
            self._is_scheduled = False
            if not getattr(self._worker.batched_stream, "buffer", True):
                # All that was handed over before is on its way.
                for journal in self._journals.values():
                    journal.restart(message for _, message, its in pending if its is journal)
        for topic, message, _ in pending:
            self._worker.log_event(topic, message)
        if not self._is_watched:
            self._is_watched = True
            self._worker.loop.call_later(_WATCH_SECONDS, self._watch)

    def _watch(self) -> None:
        # Here, because it needs distributed, which a recipe does not load.
        from ._watch import wake_overslept

        self._is_watched = False
        wake_overslept(self._worker.batched_stream)

    def flush_last(self) -> None:
        """Hand everything to Dask at the end of a task, to go with the word of that end. Called in the worker's loop.

        Dask sends what it is given at once, and what comes within the next two milliseconds after those. If the news
        went first, the word of the end would be late; and the driver, quicker than the scheduler, would let values go
        of which the scheduler tells the worker, and then has the next task wait for five more. Between two tasks of
        64 MB each that, and late words of letting go, made 4.8 ms instead of 3.0.
        """
        stream = self._worker.batched_stream
        if not self._pending or getattr(stream, "next_deadline", 0) is not None:
            # What is given to a stream that has a deadline waits for that anyway.
            self.flush()
            return
        # The stream is not woken while it has a deadline.
        stream.next_deadline = 0.0
        try:
            self.flush()
        finally:
            stream.next_deadline = None
        # Some steps from now: the end of a task that was cancelled has no word that would wake it.
        self._worker.loop.add_callback(self._worker.loop.add_callback, self._worker.loop.add_callback, stream.waker.set)

    def wait_until_sent(self) -> None:
        """Wait, in a thread that is not the loop's, until all that was told before is on its way.

        Where no journal is read, that makes sure of what began on a worker that dies. It takes a millisecond or two.
        """
        sent = threading.Event()
        self._worker.loop.add_callback(self._settle, sent)
        sent.wait(_PATIENCE)

    async def _settle(self, sent: threading.Event) -> None:
        self.flush()
        while getattr(self._worker.batched_stream, "buffer", None):  # noqa: ASYNC110 - Dask has no event for it
            await asyncio.sleep(_STEP)
        # What has left the buffer goes to the socket in one of the loop's next steps.
        await asyncio.sleep(_STEP)
        sent.set()

    def _journal(self, directory: str) -> Journal | None:
        if not directory:
            return None
        journal = self._journals.get(directory)
        if journal is None:
            journal = self._journals[directory] = Journal(journal_path(directory, self._worker.address))
        return journal
