"""Calls that are under way to a runner, several batches at once, and the news that come back of them."""

from __future__ import annotations

import abc
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from ._arguments import PLAIN
from ._attempts import began, crashed, failed, succeeded
from ._batching import Batching
from ._call import Call
from ._dispatch import Dispatcher, give_up
from ._early import EarlyCalls
from ._ending import PENDING, RETRYING, RUNNING, give_name, start, trouble_of
from ._failures import decode
from ._forwarding import receive
from ._future import COMPLETED
from ._locks import PoliteLock
from ._packing import PackedBatch
from ._places import here
from ._prepared import Prepared, PreparedBatches
from ._serialization import Parcel, explain_load
from ._shared import SharedArguments
from ._state import StateType
from ._stopping import body_ended
from ._tally import Steps
from ._telling import tell_retrying
from ._trips import tell_loss, tell_news, tell_news_of, tell_record, tell_returned
from ._waiting import LOCK, delivering, logged
from .runner import Batch, Outcome, OutcomeKind, Stored, TaskRunner

__all__ = ["FlightDispatcher"]

# Results up to this many bytes are unpacked when they arrive, so that one which can't be is a failure of its call.
# Larger ones stay packed until somebody asks: most go straight on to another worker.
_SMALL: Final = 64 * 1024


class FlightDispatcher(Dispatcher):
    """Knows which calls are under way, and takes in the news of them.

    What becomes ready by them goes to the queue, and what they make room for is sent: see :mod:`turnout._window`.
    """

    def __init__(self, runner: TaskRunner) -> None:
        super().__init__(runner, runner.capabilities)
        self._backend = runner
        # Guards what follows; held for a few instructions only.
        self._lock = PoliteLock()
        self._sent: dict[Call, Batch] = {}
        self._in_flight = 0
        # The batch, or the call that will be one, that runs with nothing else around.
        self._quarantine: Batch | None = None
        # News of calls that were sent together with what they need, whose turn has just come.
        self._kept: deque[tuple[PackedBatch, Call, Outcome]] = deque()
        max_seconds = 0.0 if self.capabilities.in_process else runner.max_batch_seconds
        self._batching = Batching(max_seconds, self.capabilities.batch_seconds)
        self.sends_early = self.capabilities.orders
        self._early = EarlyCalls(self._lock, self._sent)
        self._shared = SharedArguments()
        self._prepared = PreparedBatches(self._lock, self._shared)
        # The last batch of several calls that was sent, if it is under way.
        self._newest: PackedBatch | None = None
        # Values that are still with the runner.
        self._stored: weakref.WeakSet[Stored] = weakref.WeakSet()

    @abc.abstractmethod
    def _enqueue(self, call: Call) -> bool:
        """Put a call into the queue; return False if it goes another way."""

    @abc.abstractmethod
    def _send(self, *, everything: bool) -> None:
        """Send one batch if there is room, or as many as there is room for."""

    @abc.abstractmethod
    def _send_prepared(self, source: PackedBatch, outcomes: Sequence[Outcome]) -> None:
        """Send the batch that waits for what these news bring, if they bring all that it needs."""

    @abc.abstractmethod
    def _prepare(self, told: Batch) -> None:
        """Have a batch ready for what comes next, if there is nothing better to do, when there is news of one."""

    def stop(self) -> None:
        # Whoever still has their futures may ask for them when the backend is gone.
        with self._lock:
            stored = list(self._stored)
        for value in stored:
            with logged("A result of %d bytes is lost with the backend that had it.", value.nbytes):
                value.leave()
        super().stop()

    def abandon(self, call: Call) -> None:
        with self._lock:
            batch = self._sent.get(call)
        if isinstance(batch, PackedBatch) and len(batch.calls) > 1:
            self._abandon_some(batch)
        elif batch is not None:
            self._backend.cancel(batch)

    def may_begin(self, call: Call) -> bool:
        return call in self._sent

    def _abandon_some(self, batch: PackedBatch) -> None:
        """Stop a batch if all that is left of it is not wanted any more; else have the runner give back what waits."""
        with self._lock:
            is_unwanted = all(batch.calls[index].future._type >= COMPLETED for index in batch.left)
            was_recalled, batch.is_recalled = batch.is_recalled, True
        if is_unwanted:
            self._backend.cancel(batch)
        elif not was_recalled:
            self._backend.recall(batch)

    # News

    def report(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        with delivering():
            now = time.time()
            if self._prepared and isinstance(batch, PackedBatch):
                self._send_prepared(batch, outcomes)
            for outcome in outcomes:
                if outcome.kind is not OutcomeKind.VALUE or not self._took_value(batch, outcome, now):
                    self._take_in(batch, outcome, now)
            self._settle_kept()
            if isinstance(batch, PackedBatch) and batch.ahead:
                self._forget_unwanted(batch)
            if isinstance(batch, PackedBatch) and batch.is_recalled and batch.left:
                self._abandon_some(batch)
            if self._prepared and isinstance(batch, PackedBatch):
                self._drop_if_late(batch)
            self._send(everything=True)
            if self._batching.max_seconds:
                self._prepare(batch)

    def _start(self, ready: Sequence[Call]) -> None:
        """Take calls that became ready by news; they are sent when all the news are taken in."""
        for call in ready:
            if call.dispatcher is not self:
                start([call])
            elif call.task.run_name is None or give_name(call):
                self._enqueue(call)

    def _took_value(self, batch: Batch, outcome: Outcome, now: float) -> bool:
        """Settle a call that returned a small value; return False if there is more to it.

        Hot path: what `_take_in` does in steps, for the many calls about which nobody wants to know more. To take in a
        tiny call and pack the next takes 8.6 µs with it, and 11 without (medians of four, the machine not idle).
        """
        call: Call = batch.calls[outcome.index]
        plain = type(outcome.data) in PLAIN and not outcome.unlooked
        if not plain or not isinstance(batch, PackedBatch) or call.trouble is not None or call.task.is_watched:
            return False
        if self._early or self._quarantine is batch:
            return False
        future, engine = call.future, call.engine
        with LOCK:
            known = future._type
            if (known is not PENDING and known is not RUNNING) or call.attempt != batch.attempts[outcome.index]:
                return False
            if outcome.index not in batch.left or call in batch.ahead:
                return False
            batch.left.discard(outcome.index)
            future._data = outcome.data
            future._time = now
            future._type = COMPLETED
            future._call = None
            listeners, dependents = future._listeners, future._dependents
            future._listeners = future._dependents = None
            ready = None
            if dependents is not None:
                ready = []
                for dependent in dependents:
                    dependent.pending -= 1
                    if not dependent.pending:
                        ready.append(dependent)
        self._batching.learn(call, outcome.seconds, outcome.size)
        if listeners is not None or engine.logs or call.task.has_hooks:
            if engine.events.put is not None:
                tell_news_of(batch, call, call.attempt, outcome, now)
            engine.finished(call, COMPLETED, listeners)
        else:
            if engine.tally.completed is not None:
                engine.tally.completed(call.task)
            if engine.events.put is not None:
                tell_returned(batch, call, outcome, now)
            engine.let_go(call)
        if ready:
            self._start(ready)
        if batch.left:
            # Without a lock: it is final, so nobody sends it again.
            self._sent.pop(call, None)
        else:
            self._over(batch, call)
        return True

    def _take_in(self, batch: Batch, outcome: Outcome, now: float) -> None:
        call = batch.calls[outcome.index]
        if outcome.kind is OutcomeKind.RECORD:
            if outcome.data[0] == "steps":
                call.engine.tally.add(Steps(*outcome.data[1]))
                return
            if not (isinstance(batch, PackedBatch) and tell_record(batch, call, outcome.data)):
                receive(outcome.data)
            return
        if self._early and self._early.keeps(batch, call, outcome):
            return
        if not isinstance(batch, PackedBatch):
            if outcome.kind is OutcomeKind.RETURNED and call.future._type < COMPLETED:
                self._enqueue(call)
                self._over(batch, call)
                return
            self._over(batch, call)
            self._start(give_up(call, str(outcome.data)))
            return
        if call in batch.ahead and self._takes_ahead(batch, call, outcome):
            return
        attempt = batch.attempts[outcome.index]
        # What comes of an attempt that ran out of time, or twice, changes nothing any more.
        wanted = outcome.index in batch.left and (call.trouble is None or call.trouble.abandoned != attempt)
        if call.engine.events.put is not None:
            if outcome.kind is OutcomeKind.CRASHED or outcome.kind is OutcomeKind.LOST:
                tell_loss(batch, call, attempt, outcome)
            elif wanted and outcome.kind is not OutcomeKind.RETURNED:
                tell_news(batch, call, attempt, outcome, now)
        if wanted and outcome.kind not in (OutcomeKind.RETURNED, OutcomeKind.LOST):
            self._begin(call, attempt)
        if outcome.kind is OutcomeKind.STARTED:
            return
        with self._lock:
            if outcome.index not in batch.left:
                return
            batch.left.discard(outcome.index)
            alone = self._quarantine is batch
        self._learn(batch, outcome)
        # Dependents go to the queue before the room is given away: the earliest call goes first.
        if wanted:
            self._start(self._settled(batch, call, attempt, outcome, alone))
        self._over(batch, call)

    def _takes_ahead(self, batch: PackedBatch, call: Call, outcome: Outcome) -> bool:
        """Take news of a call that was sent together with what it needs, before its turn; False if that has come.

        What it needs may be told of later: large values stay on their worker, and come when the batch is over.
        """
        is_over = outcome.kind is OutcomeKind.VALUE or outcome.kind is OutcomeKind.FAILURE
        with self._lock:
            if call not in batch.ahead:
                return False
            if outcome.kind < OutcomeKind.VALUE or outcome.index not in batch.left:
                return True
            batch.left.discard(outcome.index)
            if is_over and call.future._type < COMPLETED:
                batch.ahead[call] = outcome
            else:
                del batch.ahead[call]
                # Under the lock: when its turn comes, another thread counts from here.
                call.attempt -= 1
                self._sent.pop(call, None)
            self._count_down(batch)
        self._learn(batch, outcome)
        return True

    def _settle_kept(self) -> None:
        """Settle calls whose turn has come after the news of them."""
        while self._kept:
            try:
                batch, call, outcome = self._kept.popleft()
            except IndexError:  # another thread took it
                return
            attempt = batch.attempts[outcome.index]
            if call.engine.events.put is not None:
                tell_news(batch, call, attempt, outcome, time.time())
            self._begin(call, attempt)
            self._start(self._settled(batch, call, attempt, outcome, False))
            if call.engine.stopping:
                # Cancelled in this moment, as a call that runs: its body has ended long ago.
                body_ended(call)

    def _drop_if_late(self, source: PackedBatch) -> None:
        prepared = self._prepared.behind(source)
        if prepared is not None and prepared.is_late():
            self._drop(prepared)

    def _drop(self, prepared: Prepared) -> None:
        """Have the calls of a prepared batch wait for their turns."""
        for call in self._prepared.release(prepared):
            self._enqueue(call)

    def _forget_unwanted(self, batch: PackedBatch) -> None:
        """Forget what came of calls whose turn will not come."""
        with self._lock:
            for call, outcome in list(batch.ahead.items()):
                if outcome is not None and call.future._type >= COMPLETED:
                    del batch.ahead[call]
                    self._sent.pop(call, None)

    def _learn(self, batch: PackedBatch, outcome: Outcome) -> None:
        """Take note of how long calls take."""
        if outcome.kind is OutcomeKind.VALUE or outcome.kind is OutcomeKind.FAILURE:
            self._batching.learn(batch.calls[outcome.index], outcome.seconds, outcome.size)
        elif outcome.kind is OutcomeKind.RETURNED and outcome.seconds:
            # The one before holds it up, and will for longer yet.
            self._batching.learn(batch.calls[outcome.index - 1], outcome.seconds, 0)
            if self._backend.slots() == 1:
                self._recall_later(batch)

    def _recall_later(self, batch: PackedBatch) -> None:
        """Have back what waits behind a batch that gives back calls: where there is one slot, calls start in order."""
        later: set[Batch] = set()
        with self._lock:
            # A copy: who settles a call takes it out without the lock.
            for other in list(self._sent.values()):
                if isinstance(other, PackedBatch) and other.seq > batch.seq and not other.is_recalled:
                    other.is_recalled = True
                    later.add(other)
        for other in later:
            self._backend.recall(other)

    def _over(self, batch: Batch, call: Call) -> None:
        """Note that the runner is done with a call, and with the batch if it was the last one."""
        with self._lock:
            is_last = self._sent.get(call) is batch
            if is_last:
                del self._sent[call]
            self._count_down(batch)
        if is_last and call.engine.stopping:
            body_ended(call)

    def _count_down(self, batch: Batch) -> None:
        """Note that a batch is over, if it is. With the lock held."""
        if not isinstance(batch, PackedBatch) or not (batch.left or batch.is_aside or batch.is_over):
            self._in_flight -= 1
            if self._quarantine is batch:
                self._quarantine = None
            if isinstance(batch, PackedBatch):
                batch.is_over = True
                if self._newest is batch:
                    self._newest = None
                # Batches behind it still name it, and so would hold the results that it needed.
                batch.upstream = batch.uses = ()

    def _begin(self, call: Call, attempt: int) -> None:
        """Note that a body runs."""
        with LOCK:
            if call.future._type not in (PENDING, RETRYING) or call.attempt != attempt:
                return
            call.future._type = RUNNING
            call.future._time = time.time()
        if call.task.is_watched:
            began(call, attempt)

    def _settled(self, batch: PackedBatch, call: Call, attempt: int, outcome: Outcome, alone: bool) -> Sequence[Call]:
        """Pass what became of a call to its engine; return the calls that are ready now."""
        kind, data = outcome.kind, outcome.data
        for failure in outcome.unlooked:
            call.engine.remote_failures.append((call, decode(failure)))
        if kind is OutcomeKind.VALUE:
            return self._value(call, attempt, data)
        if kind is OutcomeKind.FAILURE:
            if type(outcome.stamp) is tuple and outcome.stamp[1] != here()[0]:
                trouble_of(call).worker = outcome.stamp[1]
            return failed(call, attempt, decode(data))
        if kind is OutcomeKind.LOST and len(batch.calls) > 1:
            # Nobody knows whether it had begun. Alone it will show whether it is to blame.
            trouble_of(call)
            return self._again(call, attempt, suspect=False, cause=str(data or "lost"))
        if kind is OutcomeKind.CRASHED or (kind is OutcomeKind.LOST and (alone or not call.task.crash_retries)):
            # It may have begun without our knowing: it is charged as if it had.
            self._begin(call, attempt)
            if not self.capabilities.isolates_crashes:
                trouble_of(call).dangerous = True
            return crashed(call, attempt, str(data))
        return self._again(call, attempt, suspect=kind is OutcomeKind.LOST, cause=str(data or "lost"))

    def _value(self, call: Call, attempt: int, data: Any) -> Sequence[Call]:
        if type(data) is Stored:
            with self._lock:
                self._stored.add(data)
        if isinstance(data, Parcel) and data.nbytes <= _SMALL:
            try:
                data = data.load()
            except Exception as error:
                problem = explain_load(error, f"The result of task {call.future.name!r}")
                return failed(call, attempt, problem)
        return succeeded(call, attempt, data)

    def _again(self, call: Call, attempt: int, *, suspect: bool, cause: str) -> Sequence[Call]:
        """Queue a call again at no charge."""
        with LOCK:
            if call.future._type >= COMPLETED or call.attempt != attempt:
                return ()
            call.future._type = PENDING
            call.attempt -= 1
            if suspect:
                trouble_of(call).dangerous = True
            told = call.told
            if told is not None and told[1] == attempt and not told[5]:
                tell_retrying(call, attempt, StateType.CRASHED, 0.0, cause)
        return (call,)
