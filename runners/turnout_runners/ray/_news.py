"""What a batch tells while it runs: a thread in each worker that sends it to the driver's mailbox."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from typing import Any, Final, Protocol

from turnout.runner import Outcome

from ._orders import Order, plain

__all__ = ["News"]

logger = logging.getLogger("turnout")

# A batch that is over sooner tells everything with its result, which costs nothing.
_PERIOD: Final = 0.05
# How long a body waits for its first words to be in safe hands, before which it must not crash, in seconds.
_PATIENCE: Final = 0.25
# How long this thread waits for the mailbox, which may have to start first, in seconds.
_DELIVERY: Final = 10.0


class Source(Protocol):
    """Has what is to be told."""

    def take(self, *, early: bool = False) -> list[Outcome]:
        """Return the outcomes that have not been told."""
        ...

    def put_back(self, outcomes: list[Outcome]) -> None:
        """Take outcomes back that reached nobody, to be told before all others."""
        ...


class News:
    """Sends what a batch has to tell, at most every 50 ms, from a thread of its own.

    From the body's own thread a wait for Ray would give the body's processors away; and it may be busy.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._order: Order | None = None
        self._source: Source | None = None
        self._parts = 0
        # When news are sent next, and from when on a record goes at once.
        self._next = 0.0
        self._quiet_until = 0.0
        self._marks = False
        self._hurried: threading.Event | None = None
        self._is_sending = False
        self._mailboxes: dict[str, Any] = {}
        self._thread: threading.Thread | None = None

    def begin(self, order: Order, source: Source) -> None:
        """Note that a batch begins, and what has its news."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="turnout-ray-news", daemon=True)
            self._thread.start()
        with self._changed:
            self._order, self._source, self._parts = order, source, 0
            self._quiet_until = 0.0
            self._next = time.monotonic() + _PERIOD
            self._changed.notify()
        if not order.may_stay:
            # It must not begin twice. If this worker dies and the mark is not there, it has not begun at all.
            self._hurry(_DELIVERY, marks=True)

    def hurry(self) -> None:
        """Have a record sent now, if it is the first for a while, and wait until it is in safe hands.

        The body may be about to end its process. Those who log much wait once in 50 ms.
        """
        if time.monotonic() >= self._quiet_until and threading.current_thread() is not self._thread:
            self._hurry(_PATIENCE, marks=False)

    def hurry_begin(self) -> None:
        """Have it told now that a call with a time limit begins, and wait until that is in safe hands.

        Its time runs in the driver. If this process stood still before the driver knew, it would never be up.
        """
        self._hurry(_DELIVERY, marks=False)

    def _hurry(self, patience: float, *, marks: bool) -> None:
        with self._changed:
            if self._order is None:
                return
            now = time.monotonic()
            if not marks:
                self._quiet_until = now + _PERIOD
            self._next = now
            self._marks = self._marks or marks
            self._hurried = hurried = threading.Event()
            self._changed.notify()
        hurried.wait(patience)

    def end(self) -> int:
        """Note that the batch is over; return how many messages about it were sent."""
        with self._changed:
            # What is on its way counts, and nothing follows it.
            self._changed.wait_for(lambda: not self._is_sending)
            self._order = self._source = None
            return self._parts

    def _serve(self) -> None:
        while True:
            with self._changed:
                while self._order is None or self._next > time.monotonic():
                    self._changed.wait(None if self._order is None else self._next - time.monotonic())
                order, position, hurried = self._order, self._parts, self._hurried
                assert self._source is not None, "it comes and goes with the order"
                outcomes = self._source.take(early=True)
                self._is_sending = sends = bool(outcomes) or self._marks
                self._parts += sends
                self._next = time.monotonic() + _PERIOD
                self._hurried, self._marks = None, False
            if sends:
                self._deliver(order, position, outcomes)
            if hurried is not None:
                hurried.set()

    def _deliver(self, order: Order, position: int, outcomes: list[Outcome]) -> None:
        message = order.channel, order.number, position, pickle.dumps((os.getpid(), plain(outcomes)), protocol=5)
        try:
            self._put(order.mailbox, message)
        except Exception:
            logger.debug("News about a batch did not reach the mailbox.", exc_info=True)
            self._mailboxes.clear()
            self._undelivered(order, outcomes)
        finally:
            self._on_its_way()

    def _undelivered(self, order: Order, outcomes: list[Outcome]) -> None:
        with self._changed:
            # When the batch is over it is too late; the driver waits for the message then, but not for ever.
            if self._order is order and self._source is not None:
                self._parts -= 1
                self._source.put_back(outcomes)

    def _on_its_way(self) -> None:
        with self._changed:
            self._is_sending = False
            self._changed.notify_all()

    def _put(self, name: str, message: tuple[Any, ...]) -> None:
        from ._library import ray

        if name not in self._mailboxes:
            # Another runner of the driver; those before it have ended, or will be looked up again.
            self._mailboxes = {name: ray.get_actor(name)}
        receipt = self._mailboxes[name].put.remote(*message)
        self._on_its_way()
        # Not the next before this one is there: the mailbox shall not be flooded.
        ready, _ = ray.wait([receipt], timeout=_DELIVERY)
        # Raises if the mailbox is gone.
        ray.get(ready)
