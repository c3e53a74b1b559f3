"""Things to do later, on one thread that lives only while there are any."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from ._locks import LOCK

__all__ = ["after"]

logger = logging.getLogger("turnout")

Entry = tuple[float, int, list[Callable[[], object]]]


class _Timers:
    """A heap of actions with the thread that takes them in turn."""

    def __init__(self) -> None:
        # Of all locks that one: timers are set and cancelled in threads of bodies, which may be stopped.
        self._changed = threading.Condition(LOCK)
        self._entries: list[Entry] = []
        self._numbers = itertools.count()
        self._live = 0
        self._thread: threading.Thread | None = None

    def after(self, delay: float, action: Callable[[], object]) -> Callable[[], None]:
        # The action stands in a list so that cancelling can empty it and let its references go at once.
        slot = [action]
        with self._changed:
            heapq.heappush(self._entries, (time.monotonic() + delay, next(self._numbers), slot))
            self._live += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="turnout-timers", daemon=True)
                self._thread.start()
            self._changed.notify()
        return lambda: self._cancel(slot)

    def _cancel(self, slot: list[Callable[[], object]]) -> None:
        with self._changed:
            if slot:
                slot.clear()
                self._live -= 1
                if not self._live:
                    self._entries.clear()
                    self._changed.notify()

    def _run(self) -> None:
        while (slot := self._next()) is not None:
            while slot:
                try:
                    slot.pop()()
                except BaseException:  # this thread serves the whole process
                    logger.exception("A timer's action raised.")

    def _next(self) -> list[Callable[[], object]] | None:
        """Wait for the next action; None when there are no more, and then the thread ends."""
        with self._changed:
            while self._live:
                when, _, slot = self._entries[0]
                delay = when - time.monotonic()
                if slot and delay > 0:
                    self._changed.wait(min(delay, threading.TIMEOUT_MAX))
                    continue
                heapq.heappop(self._entries)
                if slot:
                    self._live -= 1
                    taken = slot.copy()
                    slot.clear()
                    return taken
            self._entries.clear()
            self._thread = None
            return None


_timers: Final = _Timers()
if hasattr(os, "register_at_fork"):
    # What is to be done is the parent's affair, and its thread is not in this process.
    os.register_at_fork(after_in_child=_timers.__init__)  # type: ignore[misc]  # all of it is made anew


def after(delay: float, action: Callable[[], object]) -> Callable[[], None]:
    """Have an action done in ``delay`` seconds, on a thread of its own; return a function that cancels it.

    The action must be quick: others wait behind it.
    """
    return _timers.after(delay, action)
