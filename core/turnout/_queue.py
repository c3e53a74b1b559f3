"""The calls that are ready and wait for room at their runner, the earliest first."""

from __future__ import annotations

import heapq

from ._call import Call
from ._future import COMPLETED

__all__ = ["CallQueue"]


class CallQueue:
    """A queue in order of submission, from the midst of which calls can be taken, too.

    Not safe for threads by itself: its dispatcher has a lock.
    """

    __slots__ = ("_count", "_heap")

    def __init__(self) -> None:
        # What is taken from the midst leaves its entry behind, which is passed over when it comes to the front.
        self._heap: list[tuple[int, Call]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, call: Call) -> None:
        """Put in a call that is not in here."""
        call.queued = True
        self._count += 1
        heapq.heappush(self._heap, (call.seq, call))

    def take(self, call: Call) -> None:
        """Take out a call that is in here."""
        call.queued = False
        self._count -= 1
        if self._heap[0][1] is call:
            heapq.heappop(self._heap)

    def first(self) -> Call | None:
        """Return the first call that is still wanted, without taking it out."""
        while self._heap:
            call = self._heap[0][1]
            if call.queued:
                if call.future._type < COMPLETED:
                    return call
                self.take(call)
            else:
                heapq.heappop(self._heap)
        return None
