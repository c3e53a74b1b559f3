"""Order, readiness, retries and final states: what a flow run does with its calls.

The way of a call: ``submit`` → (its dependencies are over) → its dispatcher → a runner → ``execute`` in this process,
or ``worker.run_batch`` in another → ``succeeded`` or ``failed`` → its dependents.

`submit` and `execute` are the hot path. They are written out long, with few calls and one lock, because at their scale
(a few µs for a no-op on threads) each method call and each lock counts.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ._call import NO_KEYWORDS, PLAIN, Call, Trouble, find_futures, replace_arguments
from ._context import TASK_RUNS, RunContext, Scope, current_scope, current_tags, seed_of
from ._failures import without_own_frames
from ._future import (
    CANCELLED,
    COMPLETED,
    LOCK,
    UPSTREAM_FAILED,
    Failure,
    TaskFuture,
    brief,
    delivering,
    summary,
    wait_for_gate,
)
from ._serialization import Parcel
from ._state import State, StateType
from ._timers import after
from .errors import CrashedRun, MissingContextError, TaskRunTimeoutError
from .registry import resolve
from .worker import call_body

if TYPE_CHECKING:
    import asyncio

    from ._dispatch import Backends, Dispatcher
    from ._task import Task
    from .runner import TaskRunner

__all__ = ["Engine", "FlowScope", "TaskRun", "execute"]

PENDING: Final = StateType.PENDING
RUNNING: Final = StateType.RUNNING
RETRYING: Final = StateType.RETRYING
FAILURES: Final = (StateType.FAILED, StateType.TIMED_OUT, StateType.CRASHED)

logger = logging.getLogger("turnout")
# Calls are numbered in order of submission, over all flows of the process: runners that are shared go by it.
_numbers: Final = itertools.count()


class Stop(BaseException):
    """Raised in the thread of a body that is cancelled or out of time. Users see it only if they catch everything."""


class _LoopGate:
    """A gate for a coroutine to wait at, opened as a lock is: by ``release``, from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        self.opened = asyncio.Event()
        self._loop = loop

    def locked(self) -> bool:
        """Return True: opening it twice does no harm."""
        return True

    def release(self) -> None:
        """Open the gate."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self.opened.set)


class TaskRun(NamedTuple):
    """What hooks and retry conditions are told about a task run."""

    id: str
    name: str
    attempt: int
    flow_run_id: str | None


class FlowScope:
    """A flow run as the scope of what is submitted in it; also the scope of ``with runner:``, then without a name."""

    def __init__(
        self,
        engine: Engine,
        *,
        id: str | None = None,
        name: str | None = None,
        flow_name: str | None = None,
        path: str = "",
        attempt: int = 1,
        log_prints: bool = False,
        parent: Scope | None = None,
    ) -> None:
        self.engine = engine
        self.parent = parent
        self.id = id
        self.name = name
        self.flow_name = flow_name
        self.path = path
        self.attempt = attempt
        self.log_prints = log_prints
        self.prefix = ""
        self.counters: MutableMapping[str, Iterator[int]] | None = {}

    def describe(self) -> RunContext:
        """Return what the flow's body may know about itself."""
        return RunContext(
            flow_run_id=self.id,
            flow_run_name=self.name,
            flow_name=self.flow_name,
            task_run_id=None,
            task_run_name=None,
            task_name=None,
            attempt=self.attempt,
            tags=current_tags.get(),
            seed=seed_of(self.path),
        )

    def asked_to_stop(self) -> bool:
        """Return whether the flow's calls are being cancelled."""
        return self.engine.cancelling


def calls_around(scope: Scope | None) -> Iterator[Call]:
    """Yield the calls of this process that a scope is inside of, itself included, from the innermost out."""
    while scope is not None:
        if isinstance(scope, Call):
            yield scope
            scope = scope.scope
        else:
            scope = scope.parent if isinstance(scope, FlowScope) else None


def next_index(scope: Scope, name: str) -> int:
    """Return how many runs of this name were submitted in a scope before."""
    counters = scope.counters
    if counters is None:
        counters = scope.counters = {}
    counter = counters.get(name)
    if counter is None:
        # setdefault, because two threads of a body may submit at once.
        counter = counters.setdefault(name, itertools.count())
    return next(counter)


class Engine:
    """One running flow: its open calls, and what is still to be told about those that failed.

    Parameters
    ----------
    backends
        The started runners that this flow shares with the flows around and inside of it.
    runner
        Where calls run that name no runner of their own.
    home
        A started runner to use instead. With neither, calls can only be made directly.
    in_worker
        This process is a worker of somebody else's flow.
    """

    def __init__(
        self,
        backends: Backends,
        runner: TaskRunner | None = None,
        home: Dispatcher | None = None,
        *,
        in_worker: bool = False,
    ) -> None:
        self.backends = backends
        self.runner = runner
        self.home = home
        self.in_worker = in_worker
        self.flow_run = FlowScope(self)
        self.run_id = ""
        # Calls that are not final. Kept in order of submission, so that cancelling goes in order too.
        self.open: dict[Call, None] = {}
        # Calls that were cancelled while their bodies ran in this process; the flow waits for the bodies' end.
        self.stopping: set[Call] = set()
        # Futures of calls that failed or crashed; those that nobody looked at make the flow fail.
        self.failures: list[TaskFuture[Any]] = []
        # Failures of nested calls that ran in a worker, with no future here.
        self.remote_failures: list[BaseException] = []
        self.cancelling = False
        self.closed = False
        # Asked once: a call must not pay for log lines that nobody reads.
        self.logs = TASK_RUNS.isEnabledFor(logging.INFO)
        self._dispatcher = home
        self._gates: list[threading.Lock | _LoopGate] = []

    # Submitting

    def submit(
        self,
        scope: Scope,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wait_for: Any = None,
    ) -> TaskFuture[Any]:
        """Take a call, and start it if nothing keeps it waiting. Hot path."""
        if task.task_runner is not None or scope is not self.flow_run:
            dispatcher = self._special_dispatcher(scope, task)
        else:
            dispatcher = self._dispatcher or self._default_dispatcher(task)
        call = self._new_call(scope, task, args, kwargs, dispatcher)
        dependencies = None
        for value in args:
            cls = type(value)
            if cls is TaskFuture:
                if dependencies is None:
                    dependencies = {value: False}
                else:
                    dependencies[value] = False
            elif cls not in PLAIN:
                dependencies = find_futures([*args, *kwargs.values()])
                break
        else:
            if kwargs:
                dependencies = find_futures([*args, *kwargs.values()])
        if wait_for is not None:
            dependencies = {**(find_futures([wait_for]) or {}), **(dependencies or {})}
        self.open[call] = None
        future = call.future
        if self.cancelling:
            settle(call, CANCELLED, Failure())
        if dependencies is not None:
            call.dependencies = dependencies
            if not self._register(call, dependencies):
                return future
        if task.run_name is None or give_name(call):
            dispatcher.push(call, True)
        return future

    def _new_call(
        self,
        scope: Scope,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dispatcher: Dispatcher,
    ) -> Call:
        counter = scope.counters.get(task.name) if scope.counters is not None else None
        index = next(counter) if counter is not None else next_index(scope, task.name)
        future: TaskFuture[Any] = TaskFuture(task, scope, index)
        call = Call()
        call.engine = self
        call.scope = scope
        call.task = task
        call.args = args
        call.kwargs = kwargs or NO_KEYWORDS
        call.future = future
        call.context = copy_context()
        call.seq = next(_numbers)
        call.dispatcher = dispatcher
        call.dependencies = None
        call.pending = 0
        call.attempt = 0
        call.thread = 0
        call.counters = None
        call.trouble = None
        future._call = call
        return call

    def _default_dispatcher(self, task: Task[..., Any]) -> Dispatcher:
        if self.closed:
            raise MissingContextError(
                f"{task.name}.submit() came after the flow run {self.flow_run.name!r} ended. "
                "Wait in the flow's body for what submits."
            )
        if self.runner is None:
            raise no_context(task)
        self._dispatcher = self.backends.dispatcher_for(self.runner)
        return self._dispatcher

    def _special_dispatcher(self, scope: Scope, task: Task[..., Any]) -> Dispatcher:
        """Choose for a task that names its runner, or for a call that is submitted by a task."""
        if task.task_runner is not None and not self.closed:
            return self.backends.dispatcher_for(resolve(task.task_runner))
        if isinstance(scope, Call) and (self.runner or self.home) and not self.closed:
            return nested_home(scope)
        return self._dispatcher or self._default_dispatcher(task)

    def _register(self, call: Call, dependencies: dict[TaskFuture[Any], bool]) -> bool:
        """Have the futures tell the call when they are over; return whether all are, and the call can go."""
        root: TaskFuture[Any] | None = None
        with LOCK:
            pending = 0
            for future, allowed in dependencies.items():
                type_ = future._type
                if type_ < COMPLETED:
                    pending += 1
                    if future._dependents is None:
                        future._dependents = [call]
                    else:
                        future._dependents.append(call)
                elif type_ > StateType.CACHED and (not allowed or type_ is CANCELLED):
                    root = future
                if allowed:
                    future._looked = True
            call.pending = pending
        if root is not None:
            self._lost_upstream(call, root)
            return False
        return not pending

    def _lost_upstream(self, call: Call, upstream: TaskFuture[Any]) -> None:
        type_ = CANCELLED if upstream._type is CANCELLED else UPSTREAM_FAILED
        start(settle(call, type_, Failure(root=upstream._data.root or upstream)))

    # Running here and now

    def call_here(
        self, scope: Scope, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        """Run a call in this thread to its end, retries and all, and return its future."""
        call = self.new_call_here(scope, task, args, kwargs)
        try:
            for future in call.dependencies or ():
                future.wait()
            if self.may_go(call):
                self.backends.here.push(call, True)
        except BaseException:
            # Interrupted, or refused to wait. Nobody else would end this call.
            settle(call, CANCELLED, Failure())
            raise
        return call.future

    def new_call_here(self, scope: Scope, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the open record of a call that its caller will run."""
        call = self._new_call(scope, task, args, kwargs, self.backends.here)
        self.open[call] = None
        call.dependencies = find_futures([*args, *kwargs.values()])
        if self.cancelling:
            settle(call, CANCELLED, Failure())
        return call

    def may_go(self, call: Call) -> bool:
        """Return whether a call whose dependencies are over can run; it is final if not."""
        ready = call.dependencies is None or self._register(call, call.dependencies)
        return ready and (call.task.run_name is None or give_name(call))

    # Cancelling

    def cancel(self, call: Call) -> bool:
        """Cancel a call and its dependents; return whether that took."""
        future = call.future
        with LOCK:
            running = future._type is RUNNING
            if running and not call.dispatcher.can_stop:
                return False
            nested = [other for other in self.open if other.scope is call] if running else []
        start(settle(call, CANCELLED, Failure()))
        if future._type is not CANCELLED:
            return False
        # Even one that seems to wait may be under way: the news that it began can be on its way.
        stop_body(call)
        for other in nested:
            self.cancel(other)
        return True

    def cancel_all(self) -> None:
        """Cancel every open call, and every one that is still submitted."""
        self.cancelling = True
        with LOCK:
            calls = list(self.open)
        # Last first: then nothing is started only to be cancelled.
        for call in reversed(calls):
            self.cancel(call)

    # Waiting

    def waiting(self, scope: Scope) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the body of a scope waits, and its slot may serve others."""
        # A subflow that a task calls waits in that task's slot. Several runners may be involved.
        around = {call.dispatcher: call for call in calls_around(scope)}
        slots = contextlib.ExitStack()
        for dispatcher, call in around.items():
            slots.enter_context(dispatcher.waiting(call))
        return slots

    def join(self, timeout: float | None = None) -> bool:
        """Wait until no call is open and no body runs on; return whether that is so.

        Parameters
        ----------
        timeout
            Seconds, or None to wait for ever.
        """
        gate = threading.Lock()
        gate.acquire()
        # Listed before the look, for `_emptied` looks the other way round and without a lock.
        self._gates.append(gate)
        try:
            while self.open or self.stopping:
                if not wait_for_gate(gate, timeout):
                    return False
            return True
        finally:
            self._gates.remove(gate)

    def emptied(self) -> None:
        """Wake those who join, if nothing is open any more."""
        if self._gates and not self.open and not self.stopping:
            with LOCK:
                for gate in self._gates:
                    if gate.locked():
                        gate.release()

    async def join_async(self) -> None:
        """Wait as ``join`` does, without blocking the event loop."""
        import asyncio

        gate = _LoopGate(asyncio.get_running_loop())
        self._gates.append(gate)
        try:
            while self.open or self.stopping:
                await gate.opened.wait()
                gate.opened.clear()
        finally:
            self._gates.remove(gate)

    def close(self) -> None:
        """Take no more calls."""
        self.closed = True
        self._dispatcher = None

    # The end of a call

    def unlooked(self) -> list[BaseException]:
        """Return the failures that nobody has looked at."""
        with LOCK:
            futures = [future for future in self.failures if not future._looked]
        return [future._error() for future in futures] + self.remote_failures

    def finished(self, call: Call, type_: StateType, listeners: list[Any] | None) -> None:
        """Tell everybody that a call is final, and let go of it."""
        future = call.future
        trouble = call.trouble
        if trouble is not None and trouble.timer is not None:
            trouble.timer()
        if type_ in FAILURES:
            self.failures.append(future)
        if self.logs or type_ in FAILURES:
            self._log_end(future, type_)
        hooks = call.task.hooks_for(type_) if call.task.has_hooks else ()
        if hooks:
            self._run_hooks(hooks, call, type_)
        if listeners is not None:
            for listener in listeners:
                listener()
        self.open.pop(call, None)
        if not self.open:
            self.emptied()

    def _log_end(self, future: TaskFuture[Any], type_: StateType) -> None:
        level = logging.ERROR if type_ in FAILURES else logging.INFO
        if TASK_RUNS.isEnabledFor(level):
            error = future._data.error if type_ > StateType.CACHED else None
            state = State(type_, summary(error, type_) if error is not None else None)
            ids = {
                "flow_run_id": self.flow_run.id,
                "flow_run_name": self.flow_run.name,
                "task_run_id": future.task_run_id,
                "task_run_name": future.name,
            }
            TASK_RUNS.log(level, "Task run %r - Finished in state %r", future.name, state, extra=ids)

    def _run_hooks(self, hooks: Sequence[Any], call: Call, type_: StateType) -> None:
        # Being told by a hook is not a look: the flow shall fail all the same.
        run_hooks(hooks, call.task, task_run(call), call.future._state(look=False))


def nested_home(call: Call) -> Dispatcher:
    """Return where calls go that another call submits."""
    return call.dispatcher if call.dispatcher.shares_nested else call.engine.backends.here


def run_hooks(hooks: Sequence[Any], owner: Any, run: Any, state: State) -> None:
    """Call hooks with what they are about, and log what they raise."""
    for hook in hooks:
        try:
            with delivering():
                hook(owner, run, state)
        except Exception:
            logger.exception("A hook of %s raised in state %s: %r", run.name, state.name, hook)


def task_run(call: Call) -> TaskRun:
    """Return what hooks are told about a call."""
    future = call.future
    return TaskRun(future.task_run_id, future.name, max(1, call.attempt), call.engine.flow_run.id)


def no_context(task: Task[..., Any]) -> MissingContextError:
    """Return the error for submitting where no flow runs."""
    return MissingContextError(
        f"{task.name}.submit() was called outside of a flow. Call it in the body of a @flow, or inside of "
        f"`with runner:`; or call {task.name}(...) to run it here and now."
    )


# What follows is called by dispatchers, with calls of any engine.


def execute(call: Call) -> Sequence[Call]:
    """Run a call's body in this thread and settle it; return the calls for the same runner that became ready by it.

    Hot path. Never raises.
    """
    future = call.future
    with LOCK:
        if future._type is not PENDING and future._type is not RETRYING:
            return ()
        future._type = RUNNING
        call.thread = threading.get_ident()
        call.attempt = attempt = call.attempt + 1
    try:
        if call.task.is_watched:
            began(call, attempt)
        try:
            # A body that ran out of time may still be inside of its context when the next attempt begins.
            context = call.context.copy() if call.task.retries else call.context
            value = context.run(_body, call)
        except BaseException as error:
            if not _leave(call, attempt):
                return _came_late(call)
            return _mine(failed(call, attempt, without_own_frames(error)), call)
        with LOCK:
            if future._type is not RUNNING or call.attempt != attempt or not call.thread:
                return _came_late(call)
            call.thread = 0
            future._data = value
            future._time = time.time()
            future._type = COMPLETED
            future._call = None
            listeners = future._listeners
            dependents = future._dependents
            future._listeners = future._dependents = None
            ready = None
            if dependents is not None:
                ready = []
                for dependent in dependents:
                    dependent.pending -= 1
                    if not dependent.pending:
                        ready.append(dependent)
        engine = call.engine
        if engine.logs or call.task.has_hooks or call.trouble is not None:
            engine.finished(call, COMPLETED, listeners)
        else:
            if listeners is not None:
                for listener in listeners:
                    listener()
            del engine.open[call]
            if engine._gates:
                engine.emptied()
        return _mine(ready, call) if ready else ()
    except Stop:
        # It was sent while the body ran and landed after its end; whoever sent it made the call final before.
        return _came_late(call)


def is_wanted(call: Call, attempt: int) -> bool:
    """Return whether an attempt is the one whose outcome counts. Ask with the lock held."""
    abandoned = call.trouble is not None and call.trouble.abandoned == attempt
    return call.future._type is RUNNING and call.attempt == attempt and not abandoned


def _leave(call: Call, attempt: int) -> bool:
    """Note that a body has ended, so that no Stop is sent to its thread; return whether its outcome is wanted."""
    with LOCK:
        wanted = is_wanted(call, attempt) and call.thread != 0
        if wanted:
            call.thread = 0
        return wanted


def _body(call: Call) -> Any:
    """Call the task's function. Runs in the call's own context."""
    current_scope.set(call)
    args, kwargs = call.args, call.kwargs
    if call.dependencies is not None:
        args, kwargs = replace_arguments(args, kwargs, value_or_error)
    return call_body(call.task.fn, args, kwargs, call)


def value_or_error(future: TaskFuture[Any], allowed: bool) -> Any:
    """Return what a future that is over stands for in arguments."""
    if future._type is COMPLETED and type(future._data) is not Parcel:  # hot path
        return future._data
    return future._value() if future._type <= StateType.CACHED else future._error()


def _mine(ready: Sequence[Call], call: Call) -> Sequence[Call]:
    """Start the calls that belong elsewhere, and return the rest."""
    if not ready:
        return ()
    dispatcher = call.dispatcher
    mine = []
    for other in ready:
        if other.task.run_name is not None and not give_name(other):
            continue
        if other.dispatcher is dispatcher and not other.task.is_async:
            mine.append(other)
        else:
            other.dispatcher.push(other, False)
    return mine


def start(ready: Sequence[Call]) -> None:
    """Hand calls that became ready to their dispatchers."""
    for call in ready:
        if call.task.run_name is None or give_name(call):
            call.dispatcher.push(call, False)


def give_name(call: Call) -> bool:
    """Give a call whose dependencies are over the name that its task wants, or fail it if there is none."""
    if call.future._name is not None:
        return True
    try:
        args, kwargs = replace_arguments(call.args, call.kwargs, value_or_error)
        call.future._name = call.task.name_of_run(args, kwargs)
    except Exception as error:
        error.add_note(f"Raised while a name was made from task_run_name={call.task.run_name!r}.")
        start(settle(call, StateType.FAILED, Failure(error)))
        return False
    return True


def began(call: Call, attempt: int) -> None:
    """Start the clock of a call whose body begins, and tell those who want to know."""
    task = call.task
    if task.timeout_seconds is not None:
        trouble = trouble_of(call)
        if trouble.timer is not None:
            trouble.timer()
        trouble.timer = after(task.timeout_seconds, lambda: _out_of_time(call, attempt))
    if task.on_running_hooks:
        run_hooks(task.on_running_hooks, task, task_run(call), State(RUNNING, None, time.time()))


def trouble_of(call: Call) -> Trouble:
    """Return a call's record of trouble, made if there is none."""
    if call.trouble is None:
        call.trouble = Trouble()
    return call.trouble


def _out_of_time(call: Call, attempt: int) -> None:
    error = TaskRunTimeoutError(
        f"{call.future.name} ran for longer than its timeout_seconds={call.task.timeout_seconds}."
    )
    with LOCK:
        if call.future._type is not RUNNING or call.attempt != attempt:
            return
        trouble_of(call).abandoned = attempt
    # The body first, while its thread and batch are still known as this attempt's.
    stop_body(call)
    with delivering():
        start(failed(call, attempt, error))


def stop_body(call: Call) -> None:
    """Stop the body of a call whose outcome nobody wants any more, as far as its runner can."""
    trouble = call.trouble
    if trouble is not None and trouble.stop is not None:
        trouble.stop()
        return
    with LOCK:
        if call.thread:
            _interrupted.add(call.thread)
            _send(call.thread, Stop)
            call.thread = 0
    call.dispatcher.abandon(call)


# Threads to which Stop was sent. It may not have arrived when the body ends.
_interrupted: Final[set[int]] = set()


def _came_late(call: Call) -> Sequence[Call]:
    """End an attempt that nobody waits for, and see to it that no Stop arrives after it."""
    thread = threading.get_ident()
    with LOCK:
        if call.thread == thread:
            call.thread = 0
        if thread in _interrupted:
            _interrupted.discard(thread)
            _send(thread, None)
    body_ended(call)
    return ()


def body_ended(call: Call) -> None:
    """Note that the body of a call that was cancelled is over: its flow may be waiting for that."""
    with LOCK:
        call.engine.stopping.discard(call)
    call.engine.emptied()


def interrupt(thread: threading.Thread) -> None:
    """Ask a thread that runs a flow's body, and nothing after it, to stop."""
    if thread.ident is not None and thread.is_alive():
        _send(thread.ident, Stop)


def _send(thread: int, exception: type[BaseException] | None) -> None:
    """Have an exception raised in a thread at its next step in Python code, or take back one not yet raised."""
    import ctypes  # a slow import, for something seldom

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception and ctypes.py_object(exception))


def succeeded(call: Call, attempt: int, value: Any) -> Sequence[Call]:
    """Settle a call whose body returned elsewhere; return what became ready."""
    return settle(call, COMPLETED, value, attempt)


def failed(call: Call, attempt: int, error: BaseException) -> Sequence[Call]:
    """Try a call again whose body raised, or settle it; return what became ready."""
    if not isinstance(error, Exception):
        return _crashed_by(call, attempt, error)
    type_ = StateType.TIMED_OUT if isinstance(error, TaskRunTimeoutError) else StateType.FAILED
    if call.task.retries and _will_retry(call, attempt, error, type_):
        return ()
    return settle(call, type_, Failure(error), attempt)


def _crashed_by(call: Call, attempt: int, error: BaseException) -> Sequence[Call]:
    crash = CrashedRun(f"The body of {call.future.name} raised {brief(error)}, which ends a run as a crash does.")
    crash.__cause__ = error
    return settle(call, StateType.CRASHED, Failure(crash), attempt)


def crashed(call: Call, attempt: int, cause: str) -> Sequence[Call]:
    """Run a call again whose worker died, or settle it; return what became ready."""
    trouble = trouble_of(call)
    with LOCK:
        if call.future._type is not RUNNING or call.attempt != attempt:
            return ()
        trouble.crashes += 1
        again = trouble.crashes <= call.task.crash_retries
        if again:
            call.future._type = RETRYING
            call.future._time = time.time()
    if again:
        logger.warning(
            "Task run %r - The worker died (%s); it is run again, %d of %d.",
            call.future.name,
            cause,
            trouble.crashes,
            call.task.crash_retries,
        )
        return (call,)
    error = CrashedRun(
        f"The worker that ran {call.future.name} died: {cause}. "
        f"It was begun {trouble.crashes} time{'s' * (trouble.crashes > 1)} (crash_retries={call.task.crash_retries})."
    )
    return settle(call, StateType.CRASHED, Failure(error), attempt)


def _will_retry(call: Call, attempt: int, error: Exception, type_: StateType) -> bool:
    """Arrange for another attempt if the task wants one."""
    task = call.task
    trouble = trouble_of(call)
    if trouble.retries >= task.retries:
        return False
    state = State(type_, summary(error, type_), time.time(), error)
    if not _condition_holds(call, state):
        return False
    delay = task.retry_delay(trouble.retries)
    with LOCK:
        if call.future._type is not RUNNING or call.attempt != attempt:
            return False
        trouble.retries += 1
        trouble.retry_at = time.monotonic() + delay
        trouble.stop = None
        call.future._type = RETRYING
        call.future._time = time.time()
    if trouble.timer is not None:
        trouble.timer()
    logger_line = "Task run %r - Received non-final state Retrying(%r): retry %d of %d in %.3g s."
    TASK_RUNS.info(logger_line, call.future.name, brief(error), trouble.retries, task.retries, delay)
    call.dispatcher.later(call, delay)
    return True


def _condition_holds(call: Call, state: State) -> bool:
    condition = call.task.retry_condition_fn
    if condition is None:
        return True
    try:
        return bool(condition(call.task, task_run(call), state))
    except Exception:
        logger.exception("retry_condition_fn of %s raised; it is not run again.", call.future.name)
        return False


def settle(call: Call, type_: StateType, data: Any, attempt: int | None = None) -> list[Call]:
    """Make a call final, and with it everything that can't run any more; return the calls that became ready.

    Parameters
    ----------
    call, type_, data
        The call, its final state, and its value or Failure.
    attempt
        Do nothing if the call has begun another attempt since; None settles it whatever it does.

    Notes
    -----
    A list of things to do, not recursion: a chain of dependents may be longer than Python's stack.
    """
    ready: list[Call] = []
    todo: list[tuple[Call, StateType, Any, int | None]] = [(call, type_, data, attempt)]
    while todo:
        one, type_, data, attempt = todo.pop()
        future = one.future
        with LOCK:
            if future._type >= COMPLETED:
                continue
            if attempt is not None and (attempt != one.attempt or future._type is not RUNNING):
                continue
            if type_ is CANCELLED and future._type is RUNNING and one.thread:
                one.engine.stopping.add(one)
            future._data = data
            future._time = time.time()
            future._type = type_
            future._call = None
            listeners, dependents = future._listeners, future._dependents
            future._listeners = future._dependents = None
            for dependent in dependents or ():
                allowed = dependent.dependencies is not None and dependent.dependencies[future]
                if type_ <= StateType.CACHED or (allowed and type_ is not CANCELLED):
                    dependent.pending -= 1
                    if not dependent.pending:
                        ready.append(dependent)
                else:
                    lost = CANCELLED if type_ is CANCELLED else UPSTREAM_FAILED
                    todo.append((dependent, lost, Failure(root=data.root or future), None))
        one.engine.finished(one, type_, listeners)
    return ready
