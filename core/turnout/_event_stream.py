"""The one stream of events: who publishes, who listens, and the thread between them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["STREAM", "Stream", "Subscription"]

logger = logging.getLogger("turnout")


class Subscription:
    """Somebody who listens, until it is closed. Made by :func:`turnout.events.subscribe`."""

    def __init__(self, stream: Stream, callback: Callable[[Sequence[Any]], object], interval_seconds: float) -> None:
        self._stream = stream
        self._callback = callback
        self._interval = interval_seconds
        self._events: deque[Any] = deque()
        self._ended = threading.Event()
        self._telling = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="turnout-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell what has happened so far, and end."""
        self._stream.forget(self)
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def flush(self) -> None:
        """Tell what has happened so far."""
        with self._telling:
            if events := [self._events.popleft() for _ in range(len(self._events))]:
                try:
                    self._callback(events)
                except Exception:
                    logger.exception("%r, which listens to events, raised; it is told of no more.", self._callback)
                    self._stream.forget(self)
                    self._ended.set()

    def put(self, event: Any) -> None:
        """Take an event, to be told later."""
        self._events.append(event)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._ended.wait(self._interval):
            self.flush()
        self.flush()


class Stream:
    """All events of this process."""

    def __init__(self) -> None:
        self.subscriptions: tuple[Subscription, ...] = ()
        self._lock = threading.Lock()

    def subscribe(self, callback: Callable[[Sequence[Any]], object], interval_seconds: float) -> Subscription:
        """Add somebody who listens."""
        subscription = Subscription(self, callback, interval_seconds)
        with self._lock:
            self.subscriptions = (*self.subscriptions, subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Take somebody out who listens."""
        with self._lock:
            self.subscriptions = tuple(each for each in self.subscriptions if each is not subscription)

    def publish(self, event: Any) -> None:
        """Tell everybody of an event."""
        for subscription in self.subscriptions:
            subscription.put(event)


STREAM: Final = Stream()
