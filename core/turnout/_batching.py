"""What calls are worth: how long they take, and so whether they may travel together, and how many.

A backend takes a tenth of a millisecond (processes) to some milliseconds (Dask) for a batch, whatever is in it. So
calls that take microseconds go by the hundred, and calls that take longer than the way costs go alone. How long they
take is measured: where they run, by the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ._call import Call

__all__ = ["MOST", "Batching"]

MOST: Final = 2000
"""How many calls may travel together at most."""

# What a call costs on the worker besides its body, in seconds; and each byte of what it returns.
_OVERHEAD: Final = 10e-6
_PER_BYTE: Final = 2e-9
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
    batch_seconds
        How much work a batch is, in seconds, whatever is in it.
    """

    def __init__(self, max_seconds: float, batch_seconds: float = 0.0) -> None:
        self.max_seconds = max_seconds
        self.batch_seconds = batch_seconds
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

    def is_full(self, calls: Sequence[Call]) -> bool:
        """Return whether so many calls make a batch that is worth more than half of what it may."""
        return 2 * len(calls) >= MOST or 2 * sum(self.worth(call) or 0.0 for call in calls) >= self.max_seconds
