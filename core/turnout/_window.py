"""The queue in front of a runner that takes as many batches as fit, and the news that comes back from it."""

from __future__ import annotations

import heapq
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from ._arguments import PLAIN
from ._attempts import began, crashed, failed, succeeded
from ._batching import Batching
from ._call import Call
from ._dispatch import Dispatcher, execute_batch, give_up
from ._early import Early, EarlyCalls
from ._ending import PENDING, RETRYING, RUNNING, give_name, settle, start, trouble_of
from ._failures import decode
from ._forwarding import receive
from ._future import COMPLETED, Failure
from ._locks import PoliteLock
from ._packing import PackedBatch, pack
from ._serialization import Parcel, explain_load
from ._state import StateType
from ._waiting import LOCK, delivering, is_delivering, logged
from .runner import Batch, Host, Outcome, OutcomeKind, Stored, TaskRunner

__all__ = ["WindowDispatcher"]


# Results up to this many bytes are unpacked when they arrive, so that one which can't be is a failure of its call.
# Larger ones stay packed until somebody asks: most go straight on to another worker.
_SMALL: Final = 64 * 1024


# How many async calls go to a worker together, to wait side by side on its event loop.
_MOST_TOGETHER: Final = 1000
# How long a cancel waits for a call to come back that was sent, and how often it looks, in seconds.
_RETURN_PATIENCE: Final = 0.5
_RETURN_STEP: Final = 0.0005
# When a batch of several gives back what has not begun: this many times the work that it may be, in seconds.
_PATIENCE: Final = 2.0


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
        # News of calls that were sent together with what they need, whose turn has just come.
        self._kept: deque[tuple[PackedBatch, Call, Outcome]] = deque()
        self._batching = Batching(0.0 if self.capabilities.in_process else runner.max_batch_seconds)
        self.sends_early = self.capabilities.orders
        self._early = EarlyCalls(self._lock, self._sent)
        # Values that are still with the runner.
        self._stored: weakref.WeakSet[Stored] = weakref.WeakSet()

    def host(self) -> Host:
        return Host(execute=self._run_here, report=self.report)

    def push(self, call: Call, here: bool) -> None:
        # One call more needs one batch more at most. The thread of a user's code shall not be kept to serve others.
        # If there is no room, whoever makes some sends it.
        if not self._enqueue(call):
            self._settle_kept()
        elif self._may_have_room():
            self._send(everything=False)

    def _enqueue(self, call: Call) -> bool:
        """Put a call into the queue; return False if it goes another way."""
        if call.dependencies is not None and self._was_sent(call):
            return False
        dangerous = call.trouble is not None and call.trouble.dangerous
        if call.task.is_async and self.capabilities.in_process:
            self.loop.push(call)
            return False
        if call.task.is_async and self.capabilities.async_aside and not dangerous:
            self._send_aside(call)
            return False
        with self._lock:
            if dangerous:
                self._suspects.append(call)
            else:
                heapq.heappush(self._queue, (call.seq, call))
        return True

    def _was_sent(self, call: Call) -> bool:
        """Take a call as sent whose turn has come, if it was sent together with what it needs, or early."""
        if call in self._sent:
            with self._lock:
                batch = self._sent.get(call)
                if isinstance(batch, PackedBatch) and call in batch.ahead:
                    outcome = batch.ahead.pop(call)
                    if outcome is not None:
                        del self._sent[call]
                        self._kept.append((batch, call, outcome))
                    return True
        return not self._early.is_idle and self._take_turn(call)

    def _may_have_room(self) -> bool:
        return self._in_flight < 2 * self._backend.slots()

    def await_turn(self, call: Call) -> None:
        if self._batching.is_long(call):
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
        if isinstance(batch, PackedBatch) and len(batch.calls) > 1:
            self._abandon_some(batch)
        elif batch is not None:
            self._backend.cancel(batch)

    def await_return(self, call: Call) -> None:
        # It had not begun, as far as was known, but may begin until the word reaches its worker. That takes some
        # milliseconds on a cluster; if it has begun meanwhile, it is stopped as a running one is.
        deadline = time.monotonic() + _RETURN_PATIENCE
        while call in self._sent and not is_delivering() and time.monotonic() < deadline:
            time.sleep(_RETURN_STEP)

    def _abandon_some(self, batch: PackedBatch) -> None:
        """Stop a batch if all that is left of it is not wanted any more; else have the runner give back what waits."""
        with self._lock:
            is_unwanted = all(batch.calls[index].future._type >= COMPLETED for index in batch.left)
            was_recalled, batch.is_recalled = batch.is_recalled, True
        if is_unwanted:
            self._backend.cancel(batch)
        elif not was_recalled:
            self._backend.recall(batch)

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
            ahead = self._batching.grow(calls) if self._batching.max_seconds else ()
            batch = self._as_batch(calls, ahead)
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
        first = self._first()
        if first is None or self._in_flight >= self._window(first, slots):
            return []
        calls = [first]
        heapq.heappop(self._queue)
        if first.task.is_async and not self.capabilities.in_process and not first.task.travels_alone:
            while len(calls) < _MOST_TOGETHER and (call := self._first()) is not None and call.task.is_async:
                if call.task.travels_alone:
                    break
                calls.append(call)
                heapq.heappop(self._queue)
        elif self._batching.max_seconds:
            self._batching.fill(calls, self._first, self._queue, slots)
        return calls

    def _first(self) -> Call | None:
        """Return the first call of the queue that is still wanted."""
        while self._queue:
            call = self._queue[0][1]
            if call.future._type < COMPLETED:
                return call
            heapq.heappop(self._queue)
        return None

    def _window(self, call: Call, slots: int) -> int:
        # A runner that tells when a call begins can have a second one waiting at each worker. Where it can't, what was
        # sent counts as running and can't be taken back. Nor may a time limit run while its call waits for a worker.
        prefetches = self.capabilities.streams and not call.task.travels_alone
        return slots * 2 if prefetches else slots

    def _as_batch(self, calls: list[Call], ahead: Sequence[Call]) -> Batch | None:
        batch: Batch | None = calls[0] if self.capabilities.in_process else self._packed(calls)
        if batch is None:
            return None
        with self._lock:
            if ahead and isinstance(batch, PackedBatch):
                batch.ahead.update((call, None) for call in ahead if call.future._type < COMPLETED)
            if self._quarantine is not None:
                self._quarantine = batch
            self._sent.update(dict.fromkeys(batch.calls, batch))
        return batch

    def _packed(self, calls: list[Call]) -> PackedBatch | None:
        for call in calls:
            call.attempt += 1
        batch = None
        try:
            batch = pack(calls, self._refuse, patience=_PATIENCE * self._batching.max_seconds)
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
                if call not in batch.ahead:
                    self._begin(call, attempt)
        try:
            self._backend.submit(batch)
        except Exception as error:
            self._give_up(batch, error)
        self._follow(batch)
        for call in batch.calls:
            # Cancelled between taking and sending: the runner did not know of it then.
            if call.future._type >= COMPLETED and call in self._sent:
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
            self._early.add(filter(self._batching.is_long, behind))

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
            now = time.time()
            for outcome in outcomes:
                if outcome.kind is not OutcomeKind.VALUE or not self._took_value(batch, outcome, now):
                    self._take_in(batch, outcome)
            self._settle_kept()
            if isinstance(batch, PackedBatch) and batch.ahead:
                self._forget_unwanted(batch)
            if isinstance(batch, PackedBatch) and batch.is_recalled and batch.left:
                self._abandon_some(batch)
            self._send(everything=True)

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
            ready = []
            for dependent in dependents or ():
                dependent.pending -= 1
                if not dependent.pending:
                    ready.append(dependent)
        self._batching.learn(call, outcome.seconds, outcome.size)
        engine.finished(call, COMPLETED, listeners)
        self._start(ready)
        self._over(batch, call)
        return True

    def _take_in(self, batch: Batch, outcome: Outcome) -> None:
        if outcome.kind is OutcomeKind.RECORD:
            receive(outcome.data)
            return
        call = batch.calls[outcome.index]
        if self._early and self._early.keeps(batch, call, outcome):
            return
        if not isinstance(batch, PackedBatch):
            if outcome.kind is OutcomeKind.RETURNED and call.future._type < COMPLETED:
                self._start([call])
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
            self._begin(call, attempt)
            self._start(self._settled(batch, call, attempt, outcome, False))

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

    def _over(self, batch: Batch, call: Call) -> None:
        """Note that the runner is done with a call, and with the batch if it was the last one."""
        with self._lock:
            if self._sent.get(call) is batch:
                del self._sent[call]
            self._count_down(batch)

    def _count_down(self, batch: Batch) -> None:
        """Note that a batch is over, if it is. With the lock held."""
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

    def _settled(self, batch: PackedBatch, call: Call, attempt: int, outcome: Outcome, alone: bool) -> Sequence[Call]:
        """Pass what became of a call to its engine; return the calls that are ready now."""
        kind, data = outcome.kind, outcome.data
        for failure in outcome.unlooked:
            call.engine.remote_failures.append(decode(failure))
        if kind is OutcomeKind.VALUE:
            return self._value(call, attempt, data)
        if kind is OutcomeKind.FAILURE:
            return failed(call, attempt, decode(data))
        if kind is OutcomeKind.LOST and len(batch.calls) > 1:
            # Nobody knows whether it had begun. Alone it will show whether it is to blame.
            trouble_of(call)
            return self._again(call, attempt, suspect=False)
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
