"""Which calls travel together: as many as are worth the way, and no more than shall wait for each other.

A backend takes a tenth of a millisecond (processes) to some milliseconds (Dask) for a batch, whatever is in it. So
calls that take microseconds go by the hundred, and calls that take longer than the way costs go alone. How long they
take is measured: where they run, by the function.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ._call import Call
from ._ending import PENDING

__all__ = ["Batching"]

# What a call costs on the worker besides its body, in seconds; and each byte of what it returns.
_OVERHEAD: Final = 10e-6
_PER_BYTE: Final = 2e-9
# Less work than this, in seconds, is not worth being spread over several workers.
_LEAST: Final = 0.002
# How much more than the calls before them dependents may be worth side by side, and still go where those are.
_WIDER: Final = 1.5
# How many calls may travel together at most.
_MOST: Final = 2000
# How much the last measurement counts beside those before: more if calls got longer, for that can cost more.
_WEIGHT: Final = 0.3
_WEIGHT_OF_MORE: Final = 0.5
# Calls that return more bytes than this travel alone: such values stay where they were made.
_LARGE: Final = 64 * 1024
_NO_LOAD: Final = (None, 0.0)
# How many batches of one short call may wait at each worker. On Dask, a no-op by itself takes 6.3 ms with one at each
# worker and none behind it; with one behind it 3.9, with three 2.5, with seven 2.0, with fifteen 1.5.
_MOST_AHEAD: Final = 15
# Of how many functions measurements are kept.
_KNOWN: Final = 10_000


def measured(seconds: float | None) -> float | None:
    """Return how long a call is thought to take of which it is known, or not, how long others of its function took."""
    return seconds


# Tests put others in its place.
guess: Callable[[float | None], float | None] = measured


class Batching:
    """What one started runner knows of how long calls take, and what follows for those that wait.

    Parameters
    ----------
    max_seconds
        How much work may travel together, in seconds; 0 for no more than one call.
    """

    def __init__(self, max_seconds: float) -> None:
        self.max_seconds = max_seconds
        # By the id of the function, which is held, so that no other gets it.
        self._paces: dict[int, tuple[Callable[..., Any], list[float]]] = {}
        # How many bytes of arguments calls bring, in the same way; only for functions whose calls bring some.
        self._loads: dict[int, tuple[Callable[..., Any], float]] = {}

    def learn(self, call: Call, seconds: float, size: int) -> None:
        """Take note of how long a call took, and how many bytes it returned."""
        function = call.task.fn
        known = self._paces.get(id(function))
        if size:
            seconds += size * _PER_BYTE
        if known is None:
            if len(self._paces) >= _KNOWN:
                self._paces.clear()
            self._paces[id(function)] = (function, [seconds, float(size)])
            return
        pace = known[1]
        more = seconds - pace[0]
        pace[0] += more * (_WEIGHT_OF_MORE if more > 0 else _WEIGHT)
        more = size - pace[1]
        if more:
            pace[1] += more * (_WEIGHT_OF_MORE if more > 0 else _WEIGHT)

    def learn_loads(self, calls: Sequence[Call], sizes: Mapping[Call, int]) -> None:
        """Take note of how many bytes of arguments calls brought that no others have; of most that is nothing."""
        if not (sizes or self._loads):
            return
        if len(self._loads) >= _KNOWN:
            self._loads.clear()
        for call in calls:
            function = call.task.fn
            size = sizes.get(call, 0)
            if size:
                self._loads[id(function)] = (function, float(size))
            elif self._loads:
                # One large argument must not have a function's calls travel alone for ever.
                self._loads.pop(id(function), None)

    def worth(self, call: Call) -> float | None:
        """Return how many seconds a call is expected to take, or None if it must travel alone."""
        task = call.task
        if task.travels_alone or task.is_async or not task.crash_retries or call.trouble is not None:
            return None
        known = self._paces.get(id(task.fn))
        if known is not None and known[1][1] > _LARGE:
            return None
        load = self._loads.get(id(task.fn), _NO_LOAD)[1] if self._loads else 0.0
        if load > _LARGE:
            return None
        seconds = guess(None if known is None else known[1][0] + load * _PER_BYTE)
        if seconds is None or 2 * (seconds + _OVERHEAD) > self.max_seconds:
            return None
        return seconds + _OVERHEAD

    def is_long(self, call: Call) -> bool:
        """Return whether a call is known to be one that goes alone, for all that it takes."""
        return not self.max_seconds or (id(call.task.fn) in self._paces and self.worth(call) is None)

    def lead(self, call: Call, latency: float) -> int:
        """Return how many batches of such a call it takes behind the one that runs, for its worker not to wait.

        Parameters
        ----------
        call
            The first call of the next batch.
        latency
            How long a worker would wait for the next batch if that were sent when the one before is over, in seconds.
        """
        if not latency or self.worth(call) is not None:
            # If it doesn't go alone, a batch takes longer than its way.
            return 0
        known = self._paces.get(id(call.task.fn))
        if known is None:
            return 1
        return min(_MOST_AHEAD, math.ceil(latency / (known[1][0] + _OVERHEAD)))

    def fill(
        self,
        calls: list[Call],
        first: Callable[[], Call | None],
        queue: list[tuple[int, Call]],
        slots: int,
        before: int | None = None,
    ) -> None:
        """Move from the queue to a batch what may travel with its first call.

        Parameters
        ----------
        calls
            The first call; others are added.
        first
            Returns the first call of the queue, if there is one that is wanted.
        queue
            A heap.
        slots
            How many calls can run at once.
        before
            Only calls with lower numbers, if that is given.
        """
        worth = self.worth(calls[0])
        total = 0.0
        # What is independent is spread over the slots, in portions that get smaller towards the end.
        share = 1 + len(queue) // (2 * slots)
        while worth is not None:
            total += worth
            if len(calls) >= _MOST or total >= self.max_seconds or (len(calls) >= share and total >= _LEAST):
                return
            call = first()
            if call is not None and before is not None and call.seq > before:
                return
            worth = self.worth(call) if call is not None else None
            if call is not None and worth is not None:
                calls.append(call)
                heapq.heappop(queue)

    def grow(self, calls: list[Call], slots: int) -> list[Call]:
        """Add to a batch what waits for nothing but calls of it; return what was added."""
        if not any(call.future._dependents for call in calls):
            return []
        worths = [self.worth(call) for call in calls]
        if None in worths:
            return []
        total = sum(worth for worth in worths if worth is not None)
        added = self._dependents(calls, slots, total, total, len(calls))
        if added:
            calls += added
            # What a call needs was submitted before it.
            calls.sort(key=_seq)
        return added

    def is_full(self, calls: Sequence[Call]) -> bool:
        """Return whether so many calls make a batch that is worth more than half of what it may."""
        return 2 * len(calls) >= _MOST or 2 * sum(self.worth(call) or 0.0 for call in calls) >= self.max_seconds

    def behind(self, calls: Sequence[Call], slots: int) -> list[Call]:
        """Return what may travel together and waits for nothing but these calls, in order of submission."""
        return sorted(self._dependents(calls, slots, sum(self.worth(call) or 0.0 for call in calls), 0.0, 0), key=_seq)

    def _dependents(
        self, calls: Sequence[Call], slots: int, worth_of_calls: float, total: float, count: int
    ) -> list[Call]:
        """Return what may go along with, or behind, some calls.

        Not if it opens out: if more than they were can go on side by side, it is for several workers.

        Parameters
        ----------
        calls, worth_of_calls
            The calls, and how many seconds they are worth together.
        slots
            How many calls can run at once.
        total, count
            What is in the batch already, in seconds, and how many calls.
        """
        added: list[Call] = []
        missing: dict[Call, int] = {}
        ready: list[tuple[int, Call, float]] = []
        waiting = sum(self._release(call, missing, ready) for call in calls)
        most = max(_LEAST, _WIDER * worth_of_calls) if slots > 1 else float("inf")
        while ready and waiting <= most and count < _MOST and total < self.max_seconds:
            _, call, worth = heapq.heappop(ready)
            total += worth
            count += 1
            added.append(call)
            waiting += self._release(call, missing, ready) - worth
        return added

    def _release(self, call: Call, missing: dict[Call, int], ready: list[tuple[int, Call, float]]) -> float:
        """Note that a call is in the batch; add to ``ready`` what waits for nothing else, and return what it is worth.

        Without a lock: a dependency that ends meanwhile elsewhere can only make a count too high here, and then the
        dependent is left to be sent in its turn.
        """
        dependents: Sequence[Call] = call.future._dependents or ()
        added = 0.0
        for dependent in tuple(dependents):
            if dependent.dispatcher is call.dispatcher:
                left = missing.get(dependent, dependent.pending) - 1
                missing[dependent] = left
                worth = self._worth_of_dependent(dependent) if left == 0 else None
                if worth is not None:
                    heapq.heappush(ready, (dependent.seq, dependent, worth))
                    added += worth
        return added

    def _worth_of_dependent(self, call: Call) -> float | None:
        if call.future._type is not PENDING or call.attempt or call.task.run_name is not None:
            return None
        return self.worth(call)


def _seq(call: Call) -> int:
    return call.seq
