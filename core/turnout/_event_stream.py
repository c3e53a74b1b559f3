"""The one stream of events: who listens, and the threads in which they are told.

Whoever has something to tell looks at ``put`` first, which is None while nobody listens, and makes the event only then.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from . import _forks
from ._locks import free_in_forks
from ._signals import INTERRUPTS, join, wait_for

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "BEGUN",
    "CREATED",
    "EVENT",
    "FINISHED",
    "FOLLOWED",
    "READY",
    "RETURNED",
    "SENT",
    "STREAM",
    "Outlet",
    "Stream",
    "Subscription",
]

# The first field of a row says what the others are.
CREATED: Final = 0
"""time, call, flow, task, prefix, index, name, runner, parent, needs, whether it is ready"""
READY: Final = 1
"""time, call, task, prefix, index, name"""
SENT: Final = 2
"""those of the event"""
BEGUN: Final = 3
"""those of the event"""
FINISHED: Final = 4
"""time, call, flow, task, prefix, index, name, state, and from the attempt on those of the event, with a place"""
RETURNED: Final = 5
"""as FINISHED, of a call of which nobody was told that it began"""
FOLLOWED: Final = 6
"""as RETURNED, of a call that was sent ahead of what it needs: nobody was told that it was ready, and sent"""
EVENT: Final = 7
"""an event, of a kind that is seldom"""


logger = logging.getLogger("turnout")

# How long a flow that was interrupted waits for its events to be told, in seconds.
_PATIENCE: Final = 2.0


class Outlet(Protocol):
    """Where the events of an engine go."""

    put: Callable[[Sequence[Any]], object] | None
    """Takes a row, in any thread: see :mod:`turnout._event_rows`. None while nobody listens."""


def drained(rows: list[Any]) -> list[Any]:
    """Return what is in a list to which other threads add, and take it out. They add whole rows at once."""
    count = len(rows)
    taken = rows[:count]
    del rows[:count]
    return taken


class Subscription:
    """Somebody who listens, until it is closed. Made by :func:`turnout.events.subscribe`."""

    def __init__(
        self,
        stream: Stream,
        callback: Callable[[Sequence[Any]], object],
        interval_seconds: float,
        first: Iterable[Any] = (),
    ) -> None:
        self._stream = stream
        self._callback = callback
        self._interval = interval_seconds
        self._rows = list(first)
        self.put: Final = self._rows.extend
        self._generation = _forks.generation
        self._asked = threading.Event()
        # Those who wait until everything that has happened so far is told.
        self._waiting: deque[threading.Event] = deque()
        self._is_closed = False
        self._has_failed = False
        self._is_over = False
        self._thread = threading.Thread(target=self._serve, name="turnout-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell what has happened so far, and end. Twice is fine."""
        self._stream.forget(self)
        self._is_closed = True
        self.flush()
        if self._generation == _forks.generation and not _telling.now:
            # It has nothing more to do.
            join(self._thread, _PATIENCE)

    def flush(self) -> None:
        """Return when what has happened so far is told. In a callback, which would wait for itself, do nothing."""
        if self._generation != _forks.generation or _telling.now:
            return
        told = threading.Event()
        self._waiting.append(told)
        self._asked.set()
        if not self._is_over:
            wait_for(told, _PATIENCE if INTERRUPTS.is_ending else None)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        _telling.now = True
        is_closed = False
        while not is_closed:
            self._asked.wait(self._interval)
            self._asked.clear()
            # Looked at in this order: what was put before somebody asked, or closed this, is told now.
            is_closed = self._is_closed
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._tell()
            for told in waiting:
                told.set()
        self._is_over = True
        while self._waiting:
            self._waiting.popleft().set()

    def _tell(self) -> None:
        rows = drained(self._rows)
        if not rows or self._has_failed:
            return
        try:
            self._callback(self._stream.made(rows))
        except BaseException:
            # Of a thread that ends by SystemExit nobody would hear.
            self._has_failed = self._is_closed = True
            self._stream.forget(self)
            logger.exception("%r, which listens to events, raised; it is told of no more.", self._callback)


class _Telling(threading.local):
    now = False


# Whether this thread calls those who listen: it must not wait for itself, nor two of them for each other.
_telling: Final = _Telling()


class Stream:
    """All events of this process."""

    def __init__(self) -> None:
        self.put: Callable[[Sequence[Any]], object] | None = None
        self.subscriptions: tuple[Subscription, ...] = ()
        # Who uses which worker that is up, and the row that said so.
        self.workers: dict[str, tuple[Sequence[Any], set[object]]] = {}
        # Called with whether anybody listens, when that changes. Put there by those who stand above.
        self.on_change: Callable[[bool], object] | None = None
        # Makes events of rows.
        self.made: Callable[[list[Any]], Sequence[Any]] = list
        # This process runs calls of somebody else's flows, or was forked from one that listens: it writes no file.
        self.is_elsewhere = False
        self._lock = free_in_forks(threading.Lock())

    def subscribe(
        self, callback: Callable[[Sequence[Any]], object], interval_seconds: float, first: Iterable[Any] = ()
    ) -> Subscription:
        """Add somebody who listens; the first row is told before all, and then which workers are up."""
        with self._lock:
            up = [row for row, _ in list(self.workers.values())]
            rows = [field for row in (first, *up) for field in row]
            subscription = Subscription(self, callback, interval_seconds, rows)
            self._set((*self.subscriptions, subscription))
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Take somebody out who listens."""
        with self._lock:
            self._set(tuple(each for each in self.subscriptions if each is not subscription))

    def flush(self) -> None:
        """Return when everybody has been told what has happened so far."""
        for subscription in self.subscriptions:
            subscription.flush()

    def use_worker(self, worker: str, row: Sequence[Any], user: object) -> None:
        """Note that somebody uses a worker, and tell that it is up if nobody did before."""
        with self._lock:
            known = self.workers.get(worker)
            if known is None:
                self.workers[worker] = row, {user}
            else:
                known[1].add(user)
            put = self.put
        if known is None and put is not None:
            put(row)

    def leave_worker(self, worker: str, row: Sequence[Any], user: object | None) -> None:
        """Note that somebody uses a worker no more, None for all, and tell that it is down if nobody else does."""
        with self._lock:
            known = self.workers.get(worker)
            if known is None:
                return
            known[1].discard(user)
            if known[1] and user is not None:
                return
            del self.workers[worker]
            put = self.put
        if put is not None:
            put(row)

    def end(self) -> None:
        """Have nobody listen any more, in a process that was forked: it has none of the threads."""
        self.is_elsewhere = self.is_elsewhere or bool(self.subscriptions)
        self._set(())
        self.workers.clear()

    def _set(self, subscriptions: tuple[Subscription, ...]) -> None:
        if bool(subscriptions) != bool(self.subscriptions) and self.on_change is not None:
            self.on_change(bool(subscriptions))
        self.subscriptions = subscriptions
        if not subscriptions:
            self.put = None
        elif len(subscriptions) == 1:
            self.put = subscriptions[0].put
        else:
            self.put = self._put_to_all

    def _put_to_all(self, row: Sequence[Any]) -> None:
        for subscription in self.subscriptions:
            subscription.put(row)


STREAM: Final = Stream()
_forks.call_in_child(STREAM.end)
