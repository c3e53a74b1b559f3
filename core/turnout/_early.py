"""Calls that go to their runner before what they need is there, on a backend that orders by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from ._call import Call
from ._ending import PENDING
from ._future import COMPLETED
from ._packing import PackedBatch, pack
from ._waiting import LOCK
from .runner import Batch, Coming, Outcome, OutcomeKind

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Early", "EarlyCalls"]

# How many calls, each of which needs the one before, may be under way behind one whose turn has come. Their turns come
# one inside of the other.
_DEEPEST: Final = 8


class Early:
    """A call that was sent before its turn, and what is known of it."""

    __slots__ = ("batch", "behind", "is_abandoned", "is_due", "news")

    def __init__(self, behind: Call) -> None:
        self.behind = behind
        """The call for which it waits."""
        self.batch: PackedBatch | None = None
        """None while it is packed."""
        self.news: list[Outcome] = []
        """What came of it already. Nobody hears of it before its turn."""
        self.is_due = False
        self.is_abandoned = False

    @property
    def is_over(self) -> bool:
        """Whether it has ended, so that only its turn is to come."""
        return any(outcome.kind >= OutcomeKind.VALUE for outcome in self.news)


class EarlyCalls:
    """The early calls of one started runner.

    A call whose last open dependency is under way may be sent: then the backend starts it, on the same worker if it
    can, without a word from here. Its turn comes as always, by that dependency's end; only from then on it counts as
    sent. If the dependency ends otherwise than with a value, the backend gives the call back.

    Parameters
    ----------
    lock
        The dispatcher's lock, which guards what is in here.
    sent
        The dispatcher's calls that are under way, by batch.
    """

    def __init__(self, lock: Any, sent: MutableMapping[Call, Batch]) -> None:
        self._lock = lock
        self._sent = sent
        self._calls: dict[Call, Early] = {}
        # Those that may be sent when there is room, in order. None stays when its turn has come: it would hold results.
        self._behind: dict[Call, None] = {}

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do here."""
        return not (self._calls or self._behind)

    def any_under_way(self) -> bool:
        """Return whether one of them may run on a worker: of others only the turn is to come. With the lock held."""
        return not all(early.is_over for early in self._calls.values())

    def add(self, calls: Iterable[Call]) -> None:
        """Take note of calls that wait for others."""
        with self._lock:
            self._behind.update((call, None) for call in calls if call not in self._calls)

    def chosen(self, room: int) -> Iterator[tuple[Call, Early]]:
        """Yield calls that shall be packed and sent now; those for which there is no room are kept."""
        while (call := self._next(room)) is not None:
            # The locks in this order: what becomes ready after the look finds that the call is early.
            with LOCK:
                last = self._last(call)
                if last is None:
                    continue
                with self._lock:
                    early = self._calls[call] = Early(last)
            yield call, early

    def _next(self, room: int) -> Call | None:
        with self._lock:
            if not self._behind or len(self._calls) >= room:
                return None
            call = next(iter(self._behind))
            del self._behind[call]
            return call

    def _last(self, call: Call) -> Call | None:
        """Return the call for which a call waits in the end, or None if it can't be early."""
        task = call.task
        if call.pending != 1 or call.future._type is not PENDING or call.attempt or call.trouble is not None:
            return None
        if task.is_async or task.travels_alone or task.run_name is not None or call in self._calls:
            return None
        dependencies = call.dependencies or {}
        future = next((future for future in dependencies if future._type < COMPLETED), None)
        if future is None or dependencies[future] or future._call is None:
            return None
        return future._call if self._is_followed(future._call) else None

    def _is_followed(self, call: Call) -> bool:
        """Return whether a call may have an early one behind it."""
        batch = self._sent.get(call)
        if not isinstance(batch, PackedBatch) or len(batch.calls) > 1 or not batch.may_stay or batch.is_aside:
            return False
        return not call.task.retries and call.trouble is None and self._depth(call) < _DEEPEST

    def _depth(self, call: Call) -> int:
        """Return how many early calls end with this one, each behind the one before."""
        depth = 0
        while (early := self._calls.get(call)) is not None:
            depth, call = depth + 1, early.behind
        return depth

    def packed(self, call: Call) -> PackedBatch | None:
        """Pack a call that was chosen. None if it can't be: its turn will tell why, or show that it can by then."""
        call.attempt += 1
        early = self._calls[call]
        with contextlib.suppress(LookupError):
            batch = pack([call], lambda call, error: None, lambda future: self._coming(future._call))
            if batch is not None and not any(isinstance(need, Coming) for need in batch.upstream):
                # It is not among the arguments, but in wait_for. Nobody takes it, but the batch waits for it.
                batch.upstream = [*batch.upstream, self._coming(early.behind)]
            return batch
        return None

    def _coming(self, call: Call | None) -> Coming:
        batch = None if call is None else self._sent.get(call)
        if not isinstance(batch, PackedBatch):
            raise LookupError("it has ended meanwhile")
        return Coming(batch, 0)

    def sent(self, call: Call, early: Early, batch: PackedBatch) -> bool:
        """Note that a call is about to be sent; return whether its turn has come meanwhile."""
        with self._lock:
            early.batch = self._sent[call] = batch
            if early.is_due:
                del self._calls[call]
            return early.is_due

    def gave_up(self, call: Call) -> Early | None:
        """Have a call that was not sent wait for its turn; return what is known of it, or None if that has come."""
        with self._lock:
            early = self._calls.pop(call, None)
            if early is not None:
                call.attempt -= 1
                self._sent.pop(call, None)
            return early

    def came_due(self, call: Call) -> Early | None:
        """Note that the turn of a call has come; return what is known of it if it is early."""
        with self._lock:
            self._behind.pop(call, None)
            early = self._calls.get(call)
            if early is not None:
                early.is_due = True
                if early.batch is not None:
                    del self._calls[call]
            return early

    def keeps(self, batch: Batch, call: Call, outcome: Outcome) -> bool:
        """Return whether an outcome is of an early call. Then it is kept for its turn, or ends its being early."""
        with self._lock:
            early = self._calls.get(call)
            if early is None or early.batch is None or early.batch is not batch:
                return False
            is_over = outcome.kind is OutcomeKind.RETURNED or call.future._type >= COMPLETED
            if outcome.kind < OutcomeKind.VALUE or not is_over:
                early.news.append(outcome)
            else:
                self._forget(call)
                # If a backend says it twice, the second time is not of a call that counts as under way.
                early.batch.left.discard(outcome.index)
                if call.future._type < COMPLETED:
                    # Under the lock: when its turn comes, another thread counts from here.
                    call.attempt -= 1
            return True

    def orphans(self) -> list[Batch]:
        """Return batches of calls that are final before their turn came, each once; forget those that are over."""
        found: list[Batch] = []
        with self._lock:
            for call, early in list(self._calls.items()):
                if call.future._type < COMPLETED or early.batch is None:
                    continue
                if early.is_over:
                    self._forget(call)
                elif not early.is_abandoned:
                    early.is_abandoned = True
                    found.append(early.batch)
        return found

    def _forget(self, call: Call) -> None:
        del self._calls[call]
        self._sent.pop(call, None)
