"""What a worker says of calls that travel together: seldom enough to cost little, often enough to mislead nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from ._timers import after
from .runner import Outcome, OutcomeKind

__all__ = ["MOST_HELD", "Ledger", "Teller"]

MOST_HELD: Final = 64 * 1024
"""How many bytes of results may wait for others to be sent with them."""

# How long an outcome may wait for others to be sent with it, in seconds.
_BEAT_SECONDS: Final = 0.01


class Ledger(Protocol):
    """What a runner knows of a batch of several calls while it runs, even if its worker dies."""

    def begin(self, index: int) -> bool:
        """Note that a call begins, and return whether it may; if not, it is given back, and so is all behind it."""
        ...

    def note(self, outcome: Outcome) -> bool:
        """Keep an outcome that is yet to be sent; return False if there is no room, so that it is sent at once."""
        ...

    def turn(self) -> None:
        """Keep what comes from now on apart from what came before, which is about to be sent."""
        ...

    def sent(self) -> None:
        """Forget what came before the last turn."""
        ...


class Teller:
    """Tells of the calls of one batch, which run one after the other.

    Outcomes are held back for some milliseconds, and sent together; only what a call logs is sent at once. Of a call
    that takes longer it is told that it has begun; and if the whole batch takes longer than it should, what has not
    begun is given back, while the call that holds it up goes on.

    Parameters
    ----------
    emit
        Takes outcomes, in order. Called in this thread and in that of the timers.
    count
        How many calls there are.
    patience
        After how many seconds what has not begun is given back.
    ledger
        Knows more of the batch, where the runner has such a thing.
    """

    def __init__(
        self,
        emit: Callable[[Sequence[Outcome]], None],
        count: int,
        patience: float,
        ledger: Ledger | None = None,
    ) -> None:
        self._emit = emit
        self._ledger = ledger
        # Re-entrant, because a destructor that logs or prints may come in between; the same goes for the one below.
        self._lock = threading.RLock()
        self._outcomes: list[Outcome] = []
        self._bytes = 0
        # Calls from here on have not begun, and those from the limit on never will.
        self._next = 0
        self._limit = count
        self._running: int | None = None
        self._stamp: Any = 0
        # Whether it was told that it has begun.
        self._is_told = False
        self._since = time.perf_counter()
        self._deadline = self._since + patience
        self._is_over = False
        # Makes taking what is held back and sending it one step, so that it goes in order.
        self._sending = threading.RLock()
        self._cancel = after(_BEAT_SECONDS, self._beat)

    def may_begin(self, index: int) -> bool:
        """Return whether a call may begin; if not, it is given back, and so is all behind it."""
        with self._lock:
            if index >= self._limit:
                return False
            self._next = index + 1
        if self._ledger is None or self._ledger.begin(index):
            return True
        with self._lock:
            self._next = index
            self._give_back()
        return False

    def started(self, index: int, stamp: Any = 0) -> None:
        """Note that the body of a call begins, with what goes with that if it is told."""
        with self._lock:
            self._running = index
            self._stamp = stamp
            self._is_told = False
            self._since = time.perf_counter()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes, in any thread."""
        is_urgent = False
        with self._lock:
            for outcome in outcomes:
                # Prints don't come this way, and shall not overtake records.
                is_urgent = is_urgent or outcome.kind == OutcomeKind.RECORD
                if outcome.index == self._running and outcome.kind >= OutcomeKind.VALUE:
                    self._running = None
                self._bytes += outcome.size
                if self._ledger is not None and not self._ledger.note(outcome):
                    is_urgent = True
            self._outcomes.extend(outcomes)
        if is_urgent or self._bytes > MOST_HELD:
            self._send()

    def end(self) -> None:
        """Give back what has not begun, and send what is held back."""
        with self._lock:
            self._is_over = True
            self._give_back()
        self._cancel()
        self._send()

    def _give_back(self) -> None:
        first, last = self._next, self._limit
        self._limit = min(first, last)
        # The first of them says for how long the call has been running that holds them up.
        running = 0.0 if self._running is None else time.perf_counter() - self._since
        self._outcomes += [
            Outcome(index, OutcomeKind.RETURNED, seconds=running if index == first else 0.0)
            for index in range(first, last)
        ]

    def _beat(self) -> None:
        with self._lock:
            if self._is_over:
                return
            if self._running is not None:
                if not self._is_told:
                    self._is_told = True
                    self._outcomes.append(Outcome(self._running, OutcomeKind.STARTED, stamp=self._stamp))
                if time.perf_counter() >= self._deadline:
                    self._give_back()
            # With nothing behind the call that runs, its end is all that is left to tell.
            is_last = self._limit <= self._next and self._is_told
        try:
            self._send()
        finally:
            if not is_last:
                self._beat_again()

    def _beat_again(self) -> None:
        with self._lock:
            if not self._is_over:
                self._cancel = after(_BEAT_SECONDS, self._beat)

    def _send(self) -> None:
        with self._sending:
            with self._lock:
                outcomes, self._outcomes, self._bytes = self._outcomes, [], 0
                if outcomes and self._ledger is not None:
                    self._ledger.turn()
            if outcomes:
                self._emit(outcomes)
                if self._ledger is not None:
                    self._ledger.sent()
