"""What stands between engines and a started runner: the queue, the window, and the news that comes back.

Queue and window belong to the started runner, which several flows may share; order, retries and states belong to the
engine of each flow.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import heapq
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from . import _engine
from ._call import Call
from ._context import Scope
from ._engine import PENDING, RETRYING, RUNNING, execute, settle, start
from ._failures import decode
from ._forwarding import receive
from ._future import COMPLETED, LOCK, Failure, brief, delivering
from ._loops import LoopThread
from ._packing import PackedBatch, PackedFunctions, pack
from ._serialization import Parcel, explain_load
from ._state import StateType
from ._timers import after
from .errors import CrashedRun, RunnerStartError
from .runner import Batch, Capabilities, Host, Outcome, OutcomeKind, TaskRunner

__all__ = ["Backends", "Dispatcher", "hold", "release"]

logger = logging.getLogger("turnout")

# Results up to this many bytes are unpacked when they arrive, so that one which can't be is a failure of its call.
# Larger ones stay packed until somebody asks: most go straight on to another worker.
_SMALL: Final = 64 * 1024
# How many async calls go to a worker together, to wait side by side on its event loop.
_MOST_TOGETHER: Final = 1000


class Dispatcher(abc.ABC):
    """Takes calls that are ready to a started runner, and what became of them back to their engines."""

    def __init__(self, runner: TaskRunner | None, capabilities: Capabilities) -> None:
        self.runner = runner
        self.can_stop = capabilities.cancel != "none"
        self.shares_nested = capabilities.nested == "shared"
        self.capabilities = capabilities
        self.loop = LoopThread()

    @abc.abstractmethod
    def push(self, call: Call, here: bool) -> None:
        """Take a call that is ready. ``here`` says that this is the thread of the user's code that submits it."""

    def later(self, call: Call, delay: float) -> None:
        """Take a call in ``delay`` seconds."""
        if delay > 0:
            after(delay, functools.partial(self.push, call, False))
        else:
            self.push(call, False)

    def abandon(self, call: Call) -> None:
        """Stop the body of a call that is final, or give its slot away, as far as the runner can."""
        if self.runner is not None:
            self.runner.cancel(call)

    def waiting(self, scope: Call) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the body of a call waits and others use its slot."""
        return self.runner.waiting() if self.runner is not None else contextlib.nullcontext()

    def start(self) -> None:
        """Start the runner.

        Raises
        ------
        RunnerStartError
            If it doesn't come up.
        """
        if self.runner is None:
            return
        try:
            self.runner.start(self.host())
        except RunnerStartError:
            self.stop()
            raise
        except Exception as error:
            self.stop()
            raise RunnerStartError(
                f"{self.runner!r} did not start: {brief(error)}. "
                "Check its settings, or run the flow elsewhere, for example with task_runner='thread'."
            ) from error

    def stop(self) -> None:
        """Stop the runner and what belongs to it."""
        self.loop.stop()
        if self.runner is not None:
            self.runner.stop()

    def host(self) -> Host:
        """Return what the runner may call."""
        return Host(execute=_execute, report=self.report)

    def report(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Take news of a batch in this process that could not be executed."""
        with delivering():
            for outcome in outcomes:
                if outcome.kind >= OutcomeKind.VALUE:
                    start(_given_up(batch.calls[outcome.index], str(outcome.data)))


def _execute(batch: Batch) -> Sequence[Batch]:
    assert isinstance(batch, Call), "runners in the driver's process are handed single calls"
    return execute(batch)


def _given_up(call: Call, cause: str) -> list[Call]:
    return settle(call, StateType.CRASHED, Failure(CrashedRun(f"The runner did not run {call.future.name}: {cause}")))


class DirectDispatcher(Dispatcher):
    """For a runner in this process that keeps its own order: each call goes straight to it."""

    def __init__(self, runner: TaskRunner) -> None:
        super().__init__(runner, runner.capabilities)
        self._submit = runner.submit

    def push(self, call: Call, here: bool) -> None:
        if call.task.is_async:
            self.loop.push(call)
            return
        try:
            self._submit(call)
        except Exception as error:
            start(_given_up(call, brief(error)))


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

    def push(self, call: Call, here: bool) -> None:
        # Within the turn of the call that submits it, or where there are no turns.
        free = self.runner is None or self._outermost(call.scope) is not None
        if free and call.task.is_async and _in_event_loop():
            # Whoever submits it on an event loop can await it, and must not be blocked.
            self.loop.push(call)
        elif free and here:
            self._to_the_end(call)
        elif free:
            # Not with the others, which may have to wait for the turn that the call around this one has.
            threading.Thread(target=self._to_the_end, args=(call,), name="turnout-nested", daemon=True).start()
        elif here and not _in_event_loop():
            self._in_turn(call)
        else:
            self._deferred.put(call)

    def later(self, call: Call, delay: float) -> None:
        """Wake whoever sees this call to its end, and waits for the delay by itself; if nobody does, wait here."""
        gate = self._gates.get(call)
        if gate is not None:
            gate.release()
        elif call.task.is_async:
            after(delay, functools.partial(self.loop.push, call))

    def waiting(self, scope: Call) -> contextlib.AbstractContextManager[object]:
        outermost = self._outermost(scope)
        if outermost is None or outermost is not self._holder:
            return contextlib.nullcontext()
        return self._out_of_turn(outermost)

    def stop(self) -> None:
        self._deferred.stop()
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
        for call in _engine.calls_around(scope):
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
            self.runner.submit(call)
            return
        ready: deque[Call] = deque([call])
        while ready:
            ready.extend(execute(ready.popleft()))

    def _beside(self, call: Call) -> None:
        """Run an attempt in another thread, so that it can be left when it is out of time or must be awaited."""
        with self._watched(call) as gate:
            if call.task.is_async:
                self.loop.push(call)
            else:
                threading.Thread(target=self._attempt, args=(call,), name="turnout-timed-call", daemon=True).start()
            gate.acquire()

    def _pause(self, call: Call, delay: float) -> None:
        with self._watched(call) as gate:
            if call.future._type is RETRYING:
                gate.acquire(timeout=max(0.0, delay))

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

    def __init__(self, run: Any) -> None:
        self._run = run
        self._changed = threading.Condition()
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


class WindowDispatcher(Dispatcher):
    """For runners that take as many batches as fit: keeps the queue, and refills the window as outcomes arrive.

    Whoever makes room or adds a call also sends what that allows; so there is no thread here, and nothing is forgotten.
    """

    def __init__(self, runner: TaskRunner) -> None:
        super().__init__(runner, runner.capabilities)
        self._backend = runner
        # Guards what follows; held for a few instructions only.
        self._lock = threading.Lock()
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

    def host(self) -> Host:
        return Host(execute=self._run_here, report=self.report)

    def push(self, call: Call, here: bool) -> None:
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
            if self._quarantine is not None or (self._suspects and self._in_flight):
                return []
            calls = self._take_suspect() if self._suspects else self._take_next(slots)
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
        if self.capabilities.in_process:
            batch: Batch | None = calls[0]
        else:
            for call in calls:
                call.attempt += 1
            batch = pack(calls, self._refuse)
        with self._lock:
            if batch is None:
                self._in_flight -= 1
                self._quarantine = None
                return None
            if self._quarantine is not None:
                self._quarantine = batch
            self._sent.update(dict.fromkeys(batch.calls, batch))
        return batch

    def _refuse(self, call: Call, error: Exception) -> None:
        # It never left, but was ready to run: that counts as an attempt which failed, and trying again would not help.
        start(settle(call, StateType.FAILED, Failure(error)))

    def _submit(self, batch: Batch) -> None:
        if not self.capabilities.streams and isinstance(batch, PackedBatch):
            for call, attempt in zip(batch.calls, batch.attempts, strict=True):
                self._begin(call, attempt)
        try:
            handle = self._backend.submit(batch)
        except Exception as error:
            cause = f"{self._backend!r} refused it: {brief(error)}"
            self.report(batch, [Outcome(index, OutcomeKind.CRASHED, cause) for index in range(len(batch.calls))])
        else:
            if isinstance(batch, PackedBatch):
                batch.handle = handle
        for call in batch.calls:
            # Cancelled between taking and sending: the runner did not know of it then.
            if call.future._type >= COMPLETED:
                self.abandon(call)

    # News

    def _run_here(self, batch: Batch) -> Sequence[Batch]:
        """Execute a call in a thread of the runner."""
        ready = _execute(batch)
        self._over(batch, batch.calls[0])
        start([call for call in ready if isinstance(call, Call)])
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
        if not isinstance(batch, PackedBatch):
            self._over(batch, call)
            start(_given_up(call, str(outcome.data)))
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

    def _begin(self, call: Call, attempt: int) -> None:
        """Note that a body runs."""
        with LOCK:
            if call.future._type not in (PENDING, RETRYING) or call.attempt != attempt:
                return
            call.future._type = RUNNING
            call.future._time = time.time()
        if call.task.is_watched:
            _engine.began(call, attempt)

    def _settled(self, call: Call, attempt: int, outcome: Outcome, alone: bool) -> Sequence[Call]:
        """Pass what became of a call to its engine; return the calls that are ready now."""
        kind, data = outcome.kind, outcome.data
        for failure in outcome.unlooked:
            call.engine.remote_failures.append(decode(failure))
        if kind is OutcomeKind.VALUE:
            return self._value(call, attempt, data)
        if kind is OutcomeKind.FAILURE:
            return _engine.failed(call, attempt, decode(data))
        if kind is OutcomeKind.CRASHED or (kind is OutcomeKind.LOST and (alone or not call.task.crash_retries)):
            if not self.capabilities.isolates_crashes:
                _engine.trouble_of(call).dangerous = True
            return _engine.crashed(call, attempt, str(data))
        return self._again(call, attempt, suspect=kind is OutcomeKind.LOST)

    def _value(self, call: Call, attempt: int, data: Any) -> Sequence[Call]:
        if isinstance(data, Parcel) and data.nbytes <= _SMALL:
            try:
                data = data.load()
            except Exception as error:
                problem = explain_load(error, f"The result of task {call.future.name!r}")
                return _engine.failed(call, attempt, problem)
        return _engine.succeeded(call, attempt, data)

    def _again(self, call: Call, attempt: int, *, suspect: bool) -> Sequence[Call]:
        """Queue a call again at no charge."""
        with LOCK:
            if call.future._type >= COMPLETED or call.attempt != attempt:
                return ()
            call.future._type = PENDING
            call.attempt -= 1
            if suspect:
                _engine.trouble_of(call).dangerous = True
        return (call,)


def _dispatcher(runner: TaskRunner) -> Dispatcher:
    if runner.capabilities.inline:
        return InlineDispatcher(runner)
    if runner.capabilities.in_process and runner.capabilities.keeps_order:
        return DirectDispatcher(runner)
    return WindowDispatcher(runner)


class _Held:
    """A runner with those who use it: started by the first, stopped by the last."""

    def __init__(self, runner: TaskRunner) -> None:
        self.runner = runner
        self.users = 0
        self.lock = threading.Lock()
        self.dispatcher: Dispatcher | None = None


_held: Final[dict[int, _Held]] = {}
_held_lock: Final = threading.Lock()


def hold(runner: TaskRunner) -> Dispatcher:
    """Start a runner, or share it if it is started; :func:`release` must follow.

    Raises
    ------
    RunnerStartError
        If it doesn't come up.
    """
    with _held_lock:
        held = _held.setdefault(id(runner), _Held(runner))
        held.users += 1
    try:
        # Only those who want the same runner wait while it starts.
        with held.lock:
            if held.dispatcher is None:
                dispatcher = _dispatcher(runner)
                dispatcher.start()
                held.dispatcher = dispatcher
            return held.dispatcher
    except BaseException:
        release(runner)
        raise


def release(runner: TaskRunner) -> None:
    """Let go of a runner; the last one to do so stops it."""
    with _held_lock:
        held = _held[id(runner)]
        held.users -= 1
        if held.users:
            return
    # The entry stays while the backend stops: whoever wants the runner again meanwhile waits for that.
    with held.lock:
        with _held_lock:
            if held.users > 0 or _held.get(id(runner)) is not held:
                return
        dispatcher, held.dispatcher = held.dispatcher, None
        try:
            if dispatcher is not None:
                dispatcher.stop()
        finally:
            with _held_lock:
                if held.users == 0:
                    _held.pop(id(runner), None)


class Backends:
    """The started runners that a flow and its subflows share. Equal runners are one."""

    def __init__(self) -> None:
        self.functions = PackedFunctions()
        self._lock = threading.Lock()
        self._dispatchers: list[tuple[TaskRunner, Dispatcher]] = []
        self._here: InlineDispatcher | None = None

    @property
    def here(self) -> InlineDispatcher:
        """What runs calls in the thread that makes them."""
        if self._here is None:
            self._here = InlineDispatcher()
        return self._here

    def dispatcher_for(self, runner: TaskRunner) -> Dispatcher:
        """Return the dispatcher of a runner, started if it is not.

        Raises
        ------
        RunnerStartError
            If it doesn't come up.
        """
        with self._lock:
            for known, dispatcher in self._dispatchers:
                if known is runner or known == runner:
                    return dispatcher
            dispatcher = hold(runner)
            self._dispatchers.append((runner, dispatcher))
            return dispatcher

    def close(self) -> None:
        """Let go of all of them."""
        with self._lock:
            dispatchers, self._dispatchers = self._dispatchers, []
        errors: list[Exception] = []
        for runner, _ in dispatchers:
            try:
                release(runner)
            except Exception as error:
                errors.append(error)
        if self._here is not None:
            self._here.stop()
        for problem in errors:
            logger.error("A runner did not stop cleanly.", exc_info=problem)
