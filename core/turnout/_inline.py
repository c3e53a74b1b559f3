"""Calls that run in the thread that submits them: in turn on an inline runner, or at once where a task is called."""

from __future__ import annotations

import contextlib
import functools
import heapq
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ._call import Call
from ._context import Scope
from ._dispatch import Dispatcher, execute_batch, give_up, retry_after
from ._ending import RETRYING, start
from ._future import COMPLETED
from ._locks import LOCK, start_thread
from ._scopes import calls_around
from ._signals import INTERRUPTS, acquire
from ._telling import tell_ready
from .runner import Batch, Capabilities, Host, TaskRunner

__all__ = ["InlineDispatcher"]


# How long `stop` waits for bodies that ran out of time and were asked to stop, in seconds.
_PATIENCE: Final = 1.0


class InlineDispatcher(Dispatcher):
    """For a runner whose ``submit`` runs the call: one at a time, in the thread that submits where that may wait.

    Without a runner it runs calls here and now, several at once if several threads ask: that serves tasks that are
    called like functions.
    """

    def __init__(self, runner: TaskRunner | None = None) -> None:
        capabilities = Capabilities(in_process=True, inline=True, cancel="cooperative", nested="shared", streams=True)
        super().__init__(runner, runner.capabilities if runner is not None else capabilities)
        self._turn = threading.Lock()
        # The call whose turn it is; calls nested in it run within its turn.
        self._holder: Call | None = None
        self._gates: dict[Call, threading.Lock] = {}
        self._deferred = _DeferredCalls(self._in_turn)
        # Threads of calls with a time limit. One that ran out of time may live on.
        self._timed: set[threading.Thread] = set()

    def host(self) -> Host:
        return Host(execute=self._execute, report=self.report)

    def push(self, call: Call, here: bool) -> None:
        if call.engine.events.put is not None and not call.is_known_ready:
            tell_ready(call)
        # Within the turn of the call that submits it, or where there are no turns.
        free = self.runner is None or self._outermost(call.scope) is not None
        if free and call.task.is_async and _in_event_loop():
            # Whoever submits it on an event loop can await it, and must not be blocked.
            self.loop.push(call)
        elif free and here:
            self._to_the_end(call)
        elif free:
            # Not with the others, which may have to wait for the turn that the call around this one has.
            start_thread(threading.Thread(target=self._to_the_end, args=(call,), name="turnout-nested", daemon=True))
        elif here and not _in_event_loop():
            self._in_turn(call)
        else:
            self._deferred.put(call)
        # A body may have been interrupted that stood between Ctrl-C and the flow.
        if INTERRUPTS.due:
            INTERRUPTS.check()

    def later(self, call: Call, delay: float) -> None:
        """Wake whoever sees this call to its end, and waits for the delay by itself; if nobody does, wait here."""
        gate = self._gates.get(call)
        if gate is not None:
            gate.release()
        elif call.task.is_async:
            retry_after(call, delay, functools.partial(self.loop.push, call))

    def waiting(self, scope: Call) -> contextlib.AbstractContextManager[object]:
        outermost = self._outermost(scope)
        if outermost is None or outermost is not self._holder:
            return contextlib.nullcontext()
        return self._out_of_turn(outermost)

    def stop(self) -> None:
        self._deferred.stop()
        deadline = time.monotonic() + _PATIENCE
        for thread in list(self._timed):
            thread.join(max(0.0, deadline - time.monotonic()))
        super().stop()

    def _in_turn(self, call: Call) -> None:
        with self._turn:
            self._holder = call
            try:
                self._to_the_end(call)
            finally:
                self._holder = None

    @contextlib.contextmanager
    def _out_of_turn(self, holder: Call) -> Iterator[None]:
        self._holder = None
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()
            self._holder = holder

    def _outermost(self, scope: Scope | None) -> Call | None:
        """Return the call of this dispatcher that a scope is inside of; of several, the one that came first."""
        outermost = None
        for call in calls_around(scope):
            if call.dispatcher is self:
                outermost = call
        return outermost

    def _to_the_end(self, call: Call) -> None:
        """Run a call, and run it again while it is to be retried."""
        future = call.future
        while future._type < COMPLETED:
            if call.task.is_async or call.task.timeout_seconds is not None:
                self._beside(call)
            else:
                self._attempt(call)
            if future._type is RETRYING and call.trouble is not None:
                self._pause(call, call.trouble.retry_at - time.monotonic())

    def _attempt(self, call: Call) -> None:
        if self.runner is not None:
            try:
                self.runner.submit(call)
            except Exception as error:
                start(give_up(call, error))
            return
        ready: deque[Batch] = deque([call])
        while ready:
            ready.extend(self._execute(ready.popleft()))

    def _execute(self, batch: Batch) -> Sequence[Batch]:
        """Run a call, and return those that became ready by it and that this thread may run next.

        The others have to be seen to their end by somebody, who tries them again or leaves them. And the thread of a
        call with a time limit may run nothing else: the turn ends with that call.
        """
        ready = execute_batch(batch)
        if not ready:
            return ready
        is_left = any(call.task.timeout_seconds is not None for call in batch.calls)
        plain: list[Batch] = []
        for call in (call for batch in ready for call in batch.calls):
            if is_left or call.task.retries or call.task.timeout_seconds is not None:
                self.push(call, False)
            else:
                plain.append(call)
        return plain

    def _beside(self, call: Call) -> None:
        """Run an attempt in another thread, so that it can be left when it is out of time or must be awaited."""
        with self._watched(call) as gate:
            if call.task.is_async:
                self.loop.push(call)
            else:
                thread = threading.Thread(target=self._attempt, args=(call,), name="turnout-timed-call", daemon=True)
                self._timed = {thread, *filter(threading.Thread.is_alive, self._timed)}
                start_thread(thread)
            acquire(gate)

    def _pause(self, call: Call, delay: float) -> None:
        with self._watched(call) as gate:
            if call.future._type is RETRYING:
                acquire(gate, max(0.0, delay))

    @contextlib.contextmanager
    def _watched(self, call: Call) -> Iterator[threading.Lock]:
        """Give a gate that opens when the call is final or to be retried."""
        gate = threading.Lock()
        gate.acquire()
        opener = functools.partial(_open, gate)
        self._gates[call] = gate
        if not call.future._listen(opener):
            gate.release()
        try:
            yield gate
        finally:
            del self._gates[call]
            call.future._forget(opener)


def _open(gate: threading.Lock) -> None:
    with contextlib.suppress(RuntimeError):  # open already
        gate.release()


def _in_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


class _DeferredCalls:
    """Calls for an inline runner from threads that must not run them, on one thread that starts with the first."""

    def __init__(self, run: Callable[[Call], None]) -> None:
        self._run = run
        # That lock, because bodies submit calls, too, in threads that may be stopped.
        self._changed = threading.Condition(LOCK)
        self._calls: list[tuple[int, Call]] = []
        self._thread: threading.Thread | None = None
        self._stopped = False

    def put(self, call: Call) -> None:
        with self._changed:
            heapq.heappush(self._calls, (call.seq, call))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="turnout-deferred", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._calls and not self._stopped:
                    self._changed.wait()
                if not self._calls:
                    return
                call = heapq.heappop(self._calls)[1]
            self._run(call)
