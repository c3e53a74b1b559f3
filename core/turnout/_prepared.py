"""Batches that are packed while what they need is still under way, and go the moment that it is there.

Without them the driver and the workers of a chain of short calls take turns: while one packs and settles, the other has
nothing to do. A batch that stands ready goes before the news that complete it are taken in, so that both work.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ._arguments import PLAIN
from ._call import Call
from ._ending import PENDING
from ._future import COMPLETED, TaskFuture
from ._packing import PackedBatch, pack
from ._serialization import Parcel
from ._shared import SharedArguments
from ._waiting import LOCK
from .runner import Coming, Outcome, OutcomeKind

__all__ = ["Prepared", "PreparedBatches"]

_PROTOCOL: Final = 5


class Prepared:
    """A batch that waits for some of what another one returns."""

    __slots__ = ("batch", "calls", "due", "source", "upstream", "wants")

    def __init__(self, source: PackedBatch) -> None:
        self.source = source
        """The other one, which is under way."""
        self.calls: list[Call] = []
        self.batch: PackedBatch | None = None
        """None while it is packed."""
        self.upstream: list[Any] = []
        """The batch's upstream, which is filled here."""
        self.wants: dict[int, list[int]] = {}
        """By index in the source: where in the upstream goes what the call returns."""
        self.due: list[Call] = []
        """Calls whose turn has come meanwhile."""

    def takes(self, outcomes: Sequence[Outcome]) -> bool:
        """Put in what the source's calls returned; return False if the batch can't go, for one of them did not."""
        for outcome in outcomes:
            if outcome.kind < OutcomeKind.VALUE or outcome.index not in self.wants:
                continue
            parcel = _parcel(outcome)
            if self.batch is None or parcel is None or outcome.index not in self.source.left:
                return False
            for position in self.wants.pop(outcome.index):
                # One for each: what a call unpacks and changes, another must not see.
                self.upstream[position] = Parcel(parcel.data, parcel.buffers)
        return True

    def is_late(self) -> bool:
        """Return whether a call waits here that could go, or for what will not come."""
        return bool(self.due) or not self.wants.keys() <= self.source.left


def _parcel(outcome: Outcome) -> Parcel | None:
    data = outcome.data
    if outcome.kind is not OutcomeKind.VALUE:
        return None
    if type(data) in PLAIN:
        return Parcel(pickle.dumps(data, _PROTOCOL))
    return data if type(data) is Parcel else None


class PreparedBatches:
    """The prepared batches of one started runner: at most one behind each batch that is under way.

    Parameters
    ----------
    lock
        The dispatcher's lock, which guards what is in here.
    shared
        The large arguments that are under way.
    """

    def __init__(self, lock: Any, shared: SharedArguments) -> None:
        self._lock = lock
        self._shared = shared
        self._behind: dict[PackedBatch, Prepared] = {}
        self._of: dict[Call, Prepared] = {}

    def __bool__(self) -> bool:
        return bool(self._behind)

    def __contains__(self, call: Call) -> bool:
        return call in self._of

    def behind(self, source: PackedBatch) -> Prepared | None:
        """Return the one that waits for a batch."""
        return self._behind.get(source)

    def came_due(self, call: Call) -> bool:
        """Take note that the turn of a call has come; return whether it is in a prepared batch."""
        with self._lock:
            prepared = self._of.get(call)
            if prepared is not None:
                prepared.due.append(call)
            return prepared is not None

    def begin(self, source: PackedBatch, calls: Sequence[Call]) -> Prepared | None:
        """Take calls for a batch behind another one; None if there is one already."""
        # The locks in this order: what becomes ready after the look finds that the call is here.
        with LOCK, self._lock:
            if source in self._behind:
                return None
            prepared = self._behind[source] = Prepared(source)
            for call in calls:
                if call.pending and call.future._type is PENDING and not call.attempt:
                    call.attempt += 1
                    self._of[call] = prepared
                    prepared.calls.append(call)
            return prepared

    def pack(self, prepared: Prepared, patience: float) -> bool:
        """Pack the calls; return False if the batch can't go together. ``patience`` is as for :func:`pack`."""
        source = prepared.source
        indices = {source.calls[index].future: index for index in tuple(source.left)}

        def coming(future: TaskFuture[Any]) -> Coming:
            # Raises for what neither of the two batches returns.
            return Coming(source, indices[future])

        batch = pack(prepared.calls, lambda call, error: None, coming, patience, self._shared)
        if batch is None or len(batch.calls) < len(prepared.calls):
            return False
        wants = _wants(batch, indices)
        batch.upstream = prepared.upstream = list(batch.upstream)
        with self._lock:
            prepared.wants = wants
            prepared.batch = batch
            # News that came while it was packed were not put in.
            return bool(wants) and not prepared.is_late()

    def release(self, prepared: Prepared) -> list[Call]:
        """Forget a batch that won't go; return those of its calls whose turn has come."""
        with self._lock:
            if self._behind.get(prepared.source) is prepared:
                self.forget(prepared)
                for call in prepared.calls:
                    call.attempt -= 1
                return prepared.due
            return []

    def forget(self, prepared: Prepared) -> None:
        """Forget a batch that goes. With the lock held."""
        del self._behind[prepared.source]
        for call in prepared.calls:
            del self._of[call]


def _wants(batch: PackedBatch, indices: Mapping[TaskFuture[Any], int]) -> dict[int, list[int]]:
    wants: dict[int, list[int]] = {}
    for call in batch.calls:
        # Those in wait_for, too. They are let go when the call is final.
        for future in call.dependencies or ():
            if future._type < COMPLETED and future in indices:
                wants[indices[future]] = []
    for position, item in enumerate(batch.upstream):
        if isinstance(item, Coming):
            wants.setdefault(item.call, []).append(position)
    return wants
