"""The queue in front of a runner that takes as many batches as fit."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence, Set
from typing import Final

from ._call import Call
from ._dispatch import execute_batch, give_up
from ._early import Early
from ._ending import settle, start
from ._flight import FlightDispatcher
from ._future import COMPLETED, Failure
from ._packing import PackedBatch, pack
from ._portion import Portion
from ._prepared import Prepared
from ._queue import CallQueue
from ._state import StateType
from ._stop import outdoors, sheltered
from ._telling import tell_ready
from ._trips import tell_departure
from ._waiting import LOCK, delivering
from .runner import Batch, Host, Outcome, OutcomeKind, TaskRunner

__all__ = ["WindowDispatcher"]

# How many async calls go to a worker together, to wait side by side on its event loop.
_MOST_TOGETHER: Final = 1000
# When a batch of several gives back what has not begun: this many times the work that it may be, in seconds.
_PATIENCE: Final = 2.0


class WindowDispatcher(FlightDispatcher):
    """For runners that take as many batches as fit: keeps the queue, and refills the window as outcomes arrive.

    Whoever makes room or adds a call also sends what that allows; so there is no thread here, and nothing is forgotten.
    """

    def __init__(self, runner: TaskRunner) -> None:
        super().__init__(runner)
        self._queue = CallQueue()
        # Calls that may have taken their worker with them. Each runs with nothing else around, to find the guilty one.
        self._suspects: deque[Call] = deque()
        # Makes taking from the queue, packing and submitting one step, so that calls start in order. Re-entrant,
        # because pickling may run user code that submits.
        self._sending = threading.RLock()
        self._is_sending = False
        self._more = False
        # How many batches there may be for each slot, as of the last look at the queue.
        self._depth = 2

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
        if call.engine.events.put is not None and not call.is_known_ready:
            tell_ready(call)
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
                self._queue.push(call)
        return True

    def _was_sent(self, call: Call) -> bool:
        """Take a call as sent whose turn has come, if it was sent together with what it needs, or early, or will be."""
        # In this order: a prepared call may be sent between the two looks.
        if call in self._prepared and self._prepared.came_due(call):
            return True
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
        return self._in_flight < max(2, self._depth) * self._backend.slots()

    def await_turn(self, call: Call) -> None:
        if self._batching.is_long(call):
            self._early.add([call])
            self._send(everything=False)

    # Sending

    @sheltered
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
            ahead: Sequence[Call] = ()
            if self._batching.max_seconds:
                calls, ahead = self._filled(calls)
            batch = self._as_batch(calls, ahead)
            if batch is not None:
                self._submit(batch)
        return bool(calls)

    @sheltered
    def _send_aside(self, call: Call) -> None:
        """Send an async call, for which there is always room."""
        with self._sending:
            call.attempt += 1
            batch = pack([call], self._refuse, shared=self._shared)
            if batch is not None:
                batch.is_aside = True
                with self._lock:
                    self._sent[call] = batch
                self._submit(batch)

    def _take(self) -> list[Call]:
        """Take from the queue what makes the next batch, and count it as in flight."""
        slots = self._backend.slots()
        with self._lock:
            # A batch that waits may wait for one of those that are here: it must not keep them, nor they each other.
            if self._quarantine is not None and not self._backend.is_waiting(self._quarantine):
                return []
            # An early call that has ended may itself wait for a suspect: its worker died when others had its value.
            if self._suspects and (self._any_runs() or (self._early and self._early.any_under_way())):
                return []
            # None of the suspects may be wanted any more: then the others go on.
            calls = self._take_suspect() or self._take_next(slots)
            if calls:
                self._in_flight += 1
            return calls

    def _any_runs(self) -> bool:
        """Return whether a batch is under way that waits for none of its own calls. With the lock held."""
        # A copy: who settles a call takes it out without the lock.
        batches = {batch for batch in list(self._sent.values()) if not _is_aside(batch)}
        return self._in_flight > sum(map(self._backend.is_waiting, batches))

    def _take_suspect(self) -> list[Call]:
        while self._suspects:
            call = self._suspects.popleft()
            if call.future._type < COMPLETED:
                # Not known as a batch yet; anything but None keeps others away until it is.
                self._quarantine = call
                return [call]
        return []

    def _take_next(self, slots: int) -> list[Call]:
        first = self._queue.first()
        if first is None or self._in_flight >= self._window(first, slots):
            return []
        calls = [first]
        self._queue.take(first)
        if first.task.is_async and not self.capabilities.in_process and not first.task.travels_alone:
            while len(calls) < _MOST_TOGETHER and (call := self._queue.first()) is not None and call.task.is_async:
                if call.task.travels_alone:
                    break
                calls.append(call)
                self._queue.take(call)
        return calls

    def _filled(self, calls: list[Call]) -> tuple[list[Call], Sequence[Call]]:
        """Return what travels with a call that was taken, in order, and which of that needs others of it."""
        if len(calls) > 1:
            return calls, ()
        slots = self._backend.slots()
        # Where order counts, a batch goes by its first call, and must not take others past one that waits already.
        before = self._next_sent(calls[0]) if slots == 1 else None
        portion = Portion(self._batching, slots, self._in_flight)
        return portion.fill(calls[0], self._queue, self._lock, before), portion.ahead

    def _next_sent(self, call: Call) -> int | None:
        """Return the number of the next batch under way that is later than a call."""
        return min((batch.seq for batch in list(self._sent.values()) if batch.seq > call.seq), default=None)

    def _window(self, call: Call, slots: int) -> int:
        # Kept for `_may_have_room`, which is asked at each submit and must not look for the first call.
        self._depth = 1 + self._lead(call)
        return slots * self._depth

    def _lead(self, call: Call) -> int:
        """Return how many batches may wait at each worker, for one that begins with this call."""
        # What was sent to a runner that doesn't tell when a call begins counts as running, and can't be taken back.
        if not self.capabilities.streams:
            return 0
        if not call.task.travels_alone:
            return max(1, self._batching.lead(call, self.capabilities.latency))
        # What needs something special must not keep others waiting until that is there.
        return 0 if call.task.has_needs else self._batching.lead(call, self.capabilities.latency)

    def _as_batch(self, calls: list[Call], ahead: Sequence[Call]) -> Batch | None:
        batch: Batch | None = calls[0] if self.capabilities.in_process else self._packed(calls)
        if batch is None:
            return None
        with self._lock:
            if len(batch.calls) < len(calls):
                self._leave_out(set(calls).difference(batch.calls), ahead)
            if ahead and isinstance(batch, PackedBatch):
                inside = set(batch.calls)
                batch.ahead.update((call, None) for call in ahead if call in inside)
            if self._quarantine is calls[0]:
                self._quarantine = batch
            self._sent.update(dict.fromkeys(batch.calls, batch))
        return batch

    def _leave_out(self, calls: Set[Call], ahead: Sequence[Call]) -> None:
        """Have calls for which a batch had no room wait for the next. With the lock held."""
        for call in calls:
            if call.future._type < COMPLETED:
                call.attempt -= 1
                if call not in ahead:
                    self._queue.push(call)

    def _packed(self, calls: list[Call]) -> PackedBatch | None:
        for call in calls:
            call.attempt += 1
        batch = None
        try:
            batch = pack(calls, self._refuse, patience=_PATIENCE * self._batching.max_seconds, shared=self._shared)
        except KeyboardInterrupt:
            # Ctrl-C came while they were packed: they must not stay open, nor keep the room that they have.
            for call in calls:
                start(settle(call, StateType.CANCELLED, Failure()))
            raise
        finally:
            if batch is None:
                with self._lock:
                    self._in_flight -= 1
                    if self._quarantine is calls[0]:
                        self._quarantine = None
        if batch is not None:
            self._batching.learn_loads(batch.calls, batch.sizes)
        return batch

    def _refuse(self, call: Call, error: Exception) -> None:
        # It never left, but was ready to run: that counts as an attempt which failed, and trying again would not help.
        start(settle(call, StateType.FAILED, Failure(error)))

    def _submit(self, batch: Batch) -> None:
        if isinstance(batch, PackedBatch) and _is_unwanted(batch):
            # Cancelled while it was packed, when nobody could have it back from the runner.
            self._keep(batch)
            return
        if isinstance(batch, PackedBatch) and batch.calls[0].engine.events.put is not None:
            tell_departure(batch)
        if not self.capabilities.streams and isinstance(batch, PackedBatch):
            for call, attempt in zip(batch.calls, batch.attempts, strict=True):
                if call not in batch.ahead:
                    self._begin(call, attempt)
        try:
            self._backend.submit(batch)
        except Exception as error:
            self._give_up(batch, error)
        self._follow(batch)
        if len(batch.calls) > 1 and isinstance(batch, PackedBatch) and batch.left:
            self._newest = batch
        unwanted = [call for call in batch.calls if call.future._type >= COMPLETED and call in self._sent]
        if unwanted and isinstance(batch, PackedBatch):
            # Cancelled a moment ago, and the runner may not have known of the batch then.
            batch.is_recalled = False
        for call in unwanted:
            self.abandon(call)

    def _keep(self, batch: PackedBatch) -> None:
        """Don't send a batch of which some is not wanted any more: the rest goes in another one."""
        self.report(batch, [Outcome(index, OutcomeKind.RETURNED) for index in sorted(batch.left)])

    def _give_up(self, batch: Batch, error: Exception) -> None:
        with delivering():
            for index, call in enumerate(batch.calls):
                if isinstance(batch, PackedBatch):
                    with self._lock:
                        batch.left.discard(index)
                start(give_up(call, error))
                self._over(batch, call)

    # Before their turn

    def _prepare(self, told: Batch) -> None:
        if self._queue or self._suspects or self._quarantine is not None:
            return
        # Behind one that is half over, whatever there is. Behind the newest, only if no more would fit: of what is yet
        # to be submitted more could go along.
        half_over = isinstance(told, PackedBatch) and bool(told.left) and len(told.calls) > 1
        source = told if half_over else self._newest
        if not isinstance(source, PackedBatch) or source.is_recalled or source.is_aside or not source.left:
            return
        if self._prepared.behind(source) is not None:
            return
        calls = Portion(self._batching, self._backend.slots(), self._in_flight).follow(
            [source.calls[index] for index in tuple(source.left)]
        )
        if not calls or not (half_over or self._batching.is_full(calls)):
            return
        prepared = self._prepared.begin(source, calls)
        if prepared is None:
            return
        stands = False
        try:
            stands = self._prepared.pack(prepared, _PATIENCE * self._batching.max_seconds)
        finally:
            if not stands:
                self._drop(prepared)
                self._send(everything=True)

    def _send_prepared(self, source: PackedBatch, outcomes: Sequence[Outcome]) -> None:
        prepared = self._prepared.behind(source)
        if prepared is None or prepared.batch is None:
            return
        if not prepared.takes(outcomes):
            self._drop(prepared)
        elif not prepared.wants:
            with self._sending:
                if self._is_sending or not self._departs(prepared, prepared.batch):
                    self._drop(prepared)
                    return
                self._is_sending = True
                try:
                    self._submit(prepared.batch)
                finally:
                    self._is_sending = self._more = False

    def _departs(self, prepared: Prepared, batch: PackedBatch) -> bool:
        """Take a prepared batch as sent; return False if others are to go first, or some of it is not wanted any more.

        It needs no room: that of the batch for which it waited is about to be free.
        """
        with self._lock:
            first = self._queue.first()
            is_first = first is None or batch.seq < first.seq
            if not is_first or self._suspects or self._quarantine is not None:
                return False
            if self._prepared.behind(prepared.source) is not prepared:
                return False
            if _is_unwanted(batch):
                return False
            self._prepared.forget(prepared)
            due = set(prepared.due)
            batch.ahead.update((call, None) for call in batch.calls if call not in due)
            self._sent.update(dict.fromkeys(batch.calls, batch))
            self._in_flight += 1
            return True

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
        if _is_unwanted(batch):
            if not self._not_early(call):
                self._keep(batch)
            return
        if call.engine.events.put is not None:
            tell_departure(batch)
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
                self._take_in(early.batch, outcome, time.time())

    def _run_here(self, batch: Batch) -> Sequence[Batch]:
        """Execute a call in a thread of the runner."""
        ready = outdoors(execute_batch, batch)
        # Dependents go to the queue before the room is given away: the earliest call goes first.
        start([call for call in ready if isinstance(call, Call)])
        self._over(batch, batch.calls[0])
        self._send(everything=True)
        # What became ready went to the queue, by whose order it starts.
        return ()


def _is_unwanted(batch: Batch) -> bool:
    return any(call.future._type >= COMPLETED for call in batch.calls)


def _is_aside(batch: Batch) -> bool:
    return isinstance(batch, PackedBatch) and batch.is_aside
