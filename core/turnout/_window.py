"""The queue in front of a runner that takes as many batches as fit, and the news that comes back from it."""

from __future__ import annotations

import heapq
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from ._attempts import began, crashed, failed, succeeded
from ._call import Call
from ._dispatch import Dispatcher, execute_batch, give_up
from ._early import Early, EarlyCalls
from ._ending import PENDING, RETRYING, RUNNING, settle, start, trouble_of
from ._failures import decode
from ._forwarding import receive
from ._future import COMPLETED, Failure
from ._locks import PoliteLock
from ._packing import PackedBatch, pack
from ._serialization import Parcel, explain_load
from ._state import StateType
from ._waiting import LOCK, delivering, logged
from .runner import Batch, Host, Outcome, OutcomeKind, Stored, TaskRunner

__all__ = ["WindowDispatcher"]


# Results up to this many bytes are unpacked when they arrive, so that one which can't be is a failure of its call.
# Larger ones stay packed until somebody asks: most go straight on to another worker.
_SMALL: Final = 64 * 1024


# How many async calls go to a worker together, to wait side by side on its event loop.
_MOST_TOGETHER: Final = 1000


class WindowDispatcher(Dispatcher):
    """For runners that take as many batches as fit: keeps the queue, and refills the window as outcomes arrive.

    Whoever makes room or adds a call also sends what that allows; so there is no thread here, and nothing is forgotten.
    """

    def __init__(self, runner: TaskRunner) -> None:
        super().__init__(runner, runner.capabilities)
        self._backend = runner
        # Guards what follows; held for a few instructions only.
        self._lock = PoliteLock()
        self._queue: list[tuple[int, Call]] = []
        self._sent: dict[Call, Batch] = {}
        self._in_flight = 0
        # Calls that may have taken their worker with them. Each runs with nothing else around, to find the guilty one.
        self._suspects: deque[Call] = deque()
        self._quarantine: Batch | None = None
        # Makes taking from the queue, packing and submitting one step, so that calls start in order. Re-entrant,
        # because pickling may run user code that submits.
        self._sending = threading.RLock()
        self._is_sending = False
        self._more = False
        self.sends_early = self.capabilities.orders
        self._early = EarlyCalls(self._lock, self._sent)
        # Values that are still with the runner.
        self._stored: weakref.WeakSet[Stored] = weakref.WeakSet()

    def host(self) -> Host:
        return Host(execute=self._run_here, report=self.report)

    def push(self, call: Call, here: bool) -> None:
        if not self._early.is_idle and self._take_turn(call):
            return
        dangerous = call.trouble is not None and call.trouble.dangerous
        if call.task.is_async and self.capabilities.in_process:
            self.loop.push(call)
            return
        if call.task.is_async and self.capabilities.async_aside and not dangerous:
            self._send_aside(call)
            return
        with self._lock:
            if dangerous:
                self._suspects.append(call)
            else:
                heapq.heappush(self._queue, (call.seq, call))
        # One call more needs one batch more at most. The thread of a user's code shall not be kept to serve others.
        self._send(everything=False)

    def await_turn(self, call: Call) -> None:
        self._early.add([call])
        self._send(everything=False)

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
        # A batch of several can't be stopped for the sake of one.
        if batch is not None and len(batch.calls) == 1:
            self._backend.cancel(batch)

    # Sending

    def _send(self, *, everything: bool) -> None:
        """Send one batch if there is room, or as many as there is room for."""
        with self._sending:
            if self._is_sending:
                # We are inside of a submit: this runner runs calls, or fails them, at once. The loop below goes on.
                self._more = True
                return
            self._is_sending = True
            try:
                while self._send_one() and (everything or self._more):
                    self._more = False
                if not self._early.is_idle:
                    self._send_early()
            finally:
                self._is_sending = self._more = False

    def _send_one(self) -> bool:
        calls = self._take()
        if calls:
            batch = self._as_batch(calls)
            if batch is not None:
                self._submit(batch)
        return bool(calls)

    def _send_aside(self, call: Call) -> None:
        """Send an async call, for which there is always room."""
        with self._sending:
            call.attempt += 1
            batch = pack([call], self._refuse)
            if batch is not None:
                batch.is_aside = True
                with self._lock:
                    self._sent[call] = batch
                self._submit(batch)

    def _take(self) -> list[Call]:
        """Take from the queue what makes the next batch, and count it as in flight."""
        slots = self._backend.slots()
        with self._lock:
            if self._quarantine is not None or (self._suspects and (self._in_flight or self._early)):
                return []
            # None of the suspects may be wanted any more: then the others go on.
            calls = self._take_suspect() or self._take_next(slots)
            if calls:
                self._in_flight += 1
            return calls

    def _take_suspect(self) -> list[Call]:
        while self._suspects:
            call = self._suspects.popleft()
            if call.future._type < COMPLETED:
                # Not known as a batch yet; anything but None keeps others away until it is.
                self._quarantine = call
                return [call]
        return []

    def _take_next(self, slots: int) -> list[Call]:
        calls: list[Call] = []
        while self._queue:
            call = self._queue[0][1]
            if call.future._type >= COMPLETED:
                heapq.heappop(self._queue)
            elif (
                calls and not (call.task.is_async and len(calls) < _MOST_TOGETHER and not call.task.travels_alone)
            ) or (not calls and self._in_flight >= self._window(call, slots)):
                break
            else:
                calls.append(heapq.heappop(self._queue)[1])
                if not call.task.is_async or call.task.travels_alone or self.capabilities.in_process:
                    break
        return calls

    def _window(self, call: Call, slots: int) -> int:
        # A runner that tells when a call begins can have a second one waiting at each worker. Where it can't, what was
        # sent counts as running and can't be taken back. Nor may a time limit run while its call waits for a worker.
        prefetches = self.capabilities.streams and not call.task.travels_alone
        return slots * 2 if prefetches else slots

    def _as_batch(self, calls: list[Call]) -> Batch | None:
        batch: Batch | None = calls[0] if self.capabilities.in_process else self._packed(calls)
        if batch is None:
            return None
        with self._lock:
            if self._quarantine is not None:
                self._quarantine = batch
            self._sent.update(dict.fromkeys(batch.calls, batch))
        return batch

    def _packed(self, calls: list[Call]) -> PackedBatch | None:
        for call in calls:
            call.attempt += 1
        batch = None
        try:
            batch = pack(calls, self._refuse)
        except KeyboardInterrupt:
            # Ctrl-C came while they were packed: they must not stay open, nor keep the room that they have.
            for call in calls:
                start(settle(call, StateType.CANCELLED, Failure()))
            raise
        finally:
            if batch is None:
                with self._lock:
                    self._in_flight -= 1
                    self._quarantine = None
        return batch

    def _refuse(self, call: Call, error: Exception) -> None:
        # It never left, but was ready to run: that counts as an attempt which failed, and trying again would not help.
        start(settle(call, StateType.FAILED, Failure(error)))

    def _submit(self, batch: Batch) -> None:
        if not self.capabilities.streams and isinstance(batch, PackedBatch):
            for call, attempt in zip(batch.calls, batch.attempts, strict=True):
                self._begin(call, attempt)
        try:
            self._backend.submit(batch)
        except Exception as error:
            self._give_up(batch, error)
        self._follow(batch)
        for call in batch.calls:
            # Cancelled between taking and sending: the runner did not know of it then.
            if call.future._type >= COMPLETED:
                self.abandon(call)

    def _give_up(self, batch: Batch, error: Exception) -> None:
        with delivering():
            for index, call in enumerate(batch.calls):
                if isinstance(batch, PackedBatch):
                    with self._lock:
                        batch.left.discard(index)
                start(give_up(call, error))
                self._over(batch, call)

    # Before their turn

    def _follow(self, batch: Batch) -> None:
        """Take note of calls that wait for nothing but one that was sent."""
        if self.sends_early and len(batch.calls) == 1:
            with LOCK:
                dependents = batch.calls[0].future._dependents or ()
                behind = [call for call in dependents if call.pending == 1 and call.dispatcher is self]
            self._early.add(behind)

    def _send_early(self) -> None:
        for batch in self._early.orphans():
            self._backend.cancel(batch)
        if not self._suspects and self._quarantine is None:
            for call, early in self._early.chosen(2 * self._backend.slots()):
                self._send_before_its_turn(call, early)

    def _send_before_its_turn(self, call: Call, early: Early) -> None:
        batch = None
        try:
            batch = self._early.packed(call)
        finally:
            if batch is None:
                self._not_early(call)
        if batch is None:
            return
        if self._early.sent(call, early, batch):
            self._count(early)
        try:
            self._backend.submit(batch)
        except Exception as error:
            if not self._not_early(call):
                self._give_up(batch, error)
        else:
            self._follow(batch)
        if call.future._type >= COMPLETED:
            self.abandon(call)

    def _not_early(self, call: Call) -> bool:
        """Have a call that could not be sent wait for its turn; return False if that has come and is taken."""
        early = self._early.gave_up(call)
        if early is not None and early.is_due:
            self.push(call, False)
        return early is not None

    def _take_turn(self, call: Call) -> bool:
        """Take a call as sent whose turn has come; return whether it is early."""
        early = self._early.came_due(call)
        if early is not None and early.batch is not None:
            self._count(early)
        return early is not None

    def _count(self, early: Early) -> None:
        with self._lock:
            self._in_flight += 1
        assert early.batch is not None, "it was packed"
        with delivering():
            for outcome in early.news:
                self._take_in(early.batch, outcome)

    # News

    def _run_here(self, batch: Batch) -> Sequence[Batch]:
        """Execute a call in a thread of the runner."""
        ready = execute_batch(batch)
        # Dependents go to the queue before the room is given away: the earliest call goes first.
        start([call for call in ready if isinstance(call, Call)])
        self._over(batch, batch.calls[0])
        self._send(everything=True)
        # What became ready went to the queue, by whose order it starts.
        return ()

    def report(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        with delivering():
            for outcome in outcomes:
                self._take_in(batch, outcome)
            self._send(everything=True)

    def _take_in(self, batch: Batch, outcome: Outcome) -> None:
        if outcome.kind is OutcomeKind.RECORD:
            receive(outcome.data)
            return
        call = batch.calls[outcome.index]
        if self._early and self._early.keeps(batch, call, outcome):
            return
        if not isinstance(batch, PackedBatch):
            if outcome.kind is OutcomeKind.RETURNED and call.future._type < COMPLETED:
                start([call])
                self._over(batch, call)
                return
            self._over(batch, call)
            start(give_up(call, str(outcome.data)))
            return
        attempt = batch.attempts[outcome.index]
        # What comes of an attempt that ran out of time, or twice, changes nothing any more.
        wanted = outcome.index in batch.left and (call.trouble is None or call.trouble.abandoned != attempt)
        if wanted and outcome.kind not in (OutcomeKind.RETURNED, OutcomeKind.LOST):
            self._begin(call, attempt)
        if outcome.kind is OutcomeKind.STARTED:
            return
        with self._lock:
            if outcome.index not in batch.left:
                return
            batch.left.discard(outcome.index)
            alone = self._quarantine is batch
        # Dependents go to the queue before the room is given away: the earliest call goes first.
        if wanted:
            start(self._settled(call, attempt, outcome, alone))
        self._over(batch, call)

    def _over(self, batch: Batch, call: Call) -> None:
        """Note that the runner is done with a call, and with the batch if it was the last one."""
        with self._lock:
            if self._sent.get(call) is batch:
                del self._sent[call]
            if not isinstance(batch, PackedBatch) or not (batch.left or batch.is_aside):
                self._in_flight -= 1
                if self._quarantine is batch:
                    self._quarantine = None
                if isinstance(batch, PackedBatch):
                    # Batches behind it still name it, and so would hold the results that it needed.
                    batch.upstream = ()

    def _begin(self, call: Call, attempt: int) -> None:
        """Note that a body runs."""
        with LOCK:
            if call.future._type not in (PENDING, RETRYING) or call.attempt != attempt:
                return
            call.future._type = RUNNING
            call.future._time = time.time()
        if call.task.is_watched:
            began(call, attempt)

    def _settled(self, call: Call, attempt: int, outcome: Outcome, alone: bool) -> Sequence[Call]:
        """Pass what became of a call to its engine; return the calls that are ready now."""
        kind, data = outcome.kind, outcome.data
        for failure in outcome.unlooked:
            call.engine.remote_failures.append(decode(failure))
        if kind is OutcomeKind.VALUE:
            return self._value(call, attempt, data)
        if kind is OutcomeKind.FAILURE:
            return failed(call, attempt, decode(data))
        if kind is OutcomeKind.CRASHED or (kind is OutcomeKind.LOST and (alone or not call.task.crash_retries)):
            # It may have begun without our knowing: it is charged as if it had.
            self._begin(call, attempt)
            if not self.capabilities.isolates_crashes:
                trouble_of(call).dangerous = True
            return crashed(call, attempt, str(data))
        return self._again(call, attempt, suspect=kind is OutcomeKind.LOST)

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

    def _again(self, call: Call, attempt: int, *, suspect: bool) -> Sequence[Call]:
        """Queue a call again at no charge."""
        with LOCK:
            if call.future._type >= COMPLETED or call.attempt != attempt:
                return ()
            call.future._type = PENDING
            call.attempt -= 1
            if suspect:
                trouble_of(call).dangerous = True
        return (call,)
