"""One batch as it is put together: calls from the queue, and what waits for nothing but them.

Calls that need each other's results travel together, for results cross from worker to worker by way of the driver. But
if all of them did, one worker would have all the work. So a batch begins with its share of the calls that are ready,
those first that are needed together, and goes on with what they make ready. Of a grid, each row of which needs the one
before, that is a triangle; the triangles between are the next batches (Frigo and Strumpen, Cache Oblivious Stencil
Computations, ICS 2005).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ._batching import MOST, Batching
from ._call import Call
from ._ending import PENDING
from ._future import COMPLETED

if TYPE_CHECKING:
    from ._queue import CallQueue

__all__ = ["Portion"]

# Independent calls that are less work than this together, in seconds, are not spread over several workers.
_LEAST: Final = 0.002
# Nor are calls that need each other's results, if they are less work than so many times what a batch costs: so much for
# a batch, and so much side by side. A stencil 16 wide on two processes keeps half of the ideal speed with tasks of
# 170 us; of 335 if what follows goes along for as long as it can; and of 265 by hand.
_LEAST_TIMES: Final = 3.0
_LEAST_ABREAST_TIMES: Final = 1.5
# How much more than the calls before them dependents may be worth side by side, and still go where those are, if other
# workers have something to do.
_WIDER: Final = 1.5
# Of how many dependents of a call, and of those that need how many calls at most, the others are looked for that they
# need. Where 500 calls each need the same 500, looking at all took 7 s of the driver's time; now it has 0.3 to do.
_MOST_DEPENDENTS: Final = 16
_MOST_NEEDED: Final = 64


class Portion:
    """The calls of one batch.

    Parameters
    ----------
    batching
        Knows what calls are worth, in seconds, and how much a batch may be.
    slots
        How many calls can run at once.
    in_flight
        How many batches are under way, this one or the one before it among them.
    """

    __slots__ = (
        "_batching",
        "_kin",
        "_leaves_nothing",
        "_missing",
        "_others_idle",
        "_own",
        "_ready",
        "_slots",
        "_taken",
        "_total",
        "_waiting",
        "ahead",
    )

    def __init__(self, batching: Batching, slots: int, in_flight: int) -> None:
        self.ahead: list[Call] = []
        """What needs others of the batch, or of what the batch shall follow."""
        self._batching = batching
        self._slots = slots
        self._others_idle = in_flight < slots
        # Whether others are idle and stay so, unless some of what follows is for them.
        self._leaves_nothing = self._others_idle
        self._taken: list[Call] = []
        self._total = 0.0
        # What the calls are worth that come from the queue, or that the batch shall follow.
        self._own = 0.0
        # How many of the calls that others need are neither over nor in here.
        self._missing: dict[Call, int] = {}
        # Dependents that may come along; and what they are worth.
        self._ready: list[tuple[int, Call, float]] = []
        self._waiting = 0.0
        # Calls with which dependents of those in here can come along.
        self._kin: deque[Call] = deque()

    def fill(self, first: Call, queue: CallQueue, lock: Any, before: int | None) -> list[Call]:
        """Return what travels with a call that was taken from the queue, and the call, in order of submission.

        Parameters
        ----------
        first, queue, lock
            The call; the queue; and what guards that.
        before
            If given, only calls with lower numbers, and in order.
        """
        worth = self._batching.worth(first)
        if worth is None:
            return [first]
        # What is independent is spread over the slots, in portions that get smaller towards the end.
        share = 1 + len(queue) // (2 * self._slots)
        self._add(first, worth)
        while True:
            with lock:
                is_more = self._take(queue, share, before)
            self._leaves_nothing = self._others_idle and not is_more
            self._follow()
            least = _LEAST_TIMES * self._batching.batch_seconds if self._missing else _LEAST
            if not is_more or self._total >= least:
                break
            share += 1 + share // 4
        calls = self._taken + self.ahead
        if self._missing:
            # What a call needs was submitted before it.
            calls.sort(key=_seq)
        return calls

    def follow(self, calls: Sequence[Call]) -> list[Call]:
        """Return what may travel together and waits for nothing but these calls, in order of submission."""
        for call in calls:
            self._own += self._batching.worth(call) or 0.0
            self._waiting += self._release(call)
        self._follow()
        return sorted(self.ahead, key=_seq)

    def _add(self, call: Call, worth: float) -> None:
        self._taken.append(call)
        self._total += worth
        self._own += worth
        if call.future._dependents is not None:
            self._waiting += self._release(call)
            self._find_kin(call)

    def _take(self, queue: CallQueue, share: int, before: int | None) -> bool:
        """Take calls from the queue until there are so many; return whether it has more that can come along."""
        taken, worth_of = self._taken, self._batching.worth
        while len(taken) < share:
            if self._is_full():
                return False
            call = self._next(queue)
            if call is None or (before is not None and call.seq > before):
                return False
            worth = worth_of(call)
            if worth is None:
                return False
            queue.take(call)
            self._add(call, worth)
        return not self._is_full()

    def _next(self, queue: CallQueue) -> Call | None:
        while self._kin:
            call = self._kin.popleft()
            if call.queued and call.future._type < COMPLETED:
                return call
        return queue.first()

    def _follow(self) -> None:
        """Add what waits for nothing but calls in here, in order of submission.

        Not if there is enough of it side by side for several workers: if it opens out, or if others have nothing to do.
        """
        most = float("inf")
        if self._slots > 1:
            most = _LEAST_ABREAST_TIMES * self._batching.batch_seconds
            if not self._leaves_nothing:
                most = max(most, _WIDER * self._own)
        while self._ready and self._waiting <= most and not self._is_full():
            _, call, worth = heapq.heappop(self._ready)
            self._total += worth
            self.ahead.append(call)
            self._waiting += self._release(call) - worth

    def _release(self, call: Call) -> float:
        """Note that a call is in the batch, and what waits for nothing else; return how much more that is worth.

        Without a lock: a dependency that ends meanwhile elsewhere can only make a count too high here, and then the
        dependent is left to be sent in its turn.
        """
        added = 0.0
        for dependent in tuple(call.future._dependents or ()):
            if dependent.dispatcher is call.dispatcher:
                left = self._missing.get(dependent, dependent.pending) - 1
                self._missing[dependent] = left
                worth = self._worth_of_dependent(dependent) if left == 0 else None
                if worth is not None:
                    heapq.heappush(self._ready, (dependent.seq, dependent, worth))
                    added += worth
        return added

    def _worth_of_dependent(self, call: Call) -> float | None:
        if call.future._type is not PENDING or call.attempt or call.task.run_name is not None:
            return None
        return self._batching.worth(call)

    def _find_kin(self, call: Call) -> None:
        """Look for calls of the queue that are all that a dependent of a call needs besides what is in here."""
        if self._slots == 1:
            # Where order counts, none goes before one that was submitted earlier.
            return
        for dependent in (call.future._dependents or [])[:_MOST_DEPENDENTS]:
            left = self._missing.get(dependent, 0)
            dependencies = dependent.dependencies or ()
            if left > 0 and len(dependencies) <= _MOST_NEEDED:
                needed = (future._call for future in tuple(dependencies) if future._type < COMPLETED)
                kin = [other for other in needed if other is not None and other.queued]
                if len(kin) == left:
                    self._kin += kin
                    return

    def _is_full(self) -> bool:
        count = len(self._taken) + len(self.ahead)
        return count >= MOST or self._total >= self._batching.max_seconds


def _seq(call: Call) -> int:
    return call.seq
