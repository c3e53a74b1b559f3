"""One attempt at a call: in this process from beginning to end, and what follows from its outcome wherever it ran.

`execute` is the hot path. It is written out long, with few calls and one lock, because at its scale (a few µs for a
no-op on threads) each method call and each lock counts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from ._arguments import replace_arguments
from ._bodies import call_body
from ._call import EMPTY, Call
from ._context import TASK_RUNS, current_scope, run_ids, within
from ._ending import (
    PENDING,
    RETRYING,
    RUNNING,
    crash_of,
    give_name,
    run_hooks,
    settle,
    start,
    task_run,
    trouble_of,
    value_or_error,
)
from ._failures import without_own_frames
from ._future import COMPLETED, Failure, brief, summary
from ._places import Place, give_place, take_place
from ._signals import call_inner
from ._state import State, StateType
from ._stop import Stop
from ._stopping import came_late, stop_body
from ._telling import tell_begun_here, tell_finished, tell_ready, tell_retrying
from ._timers import after
from ._waiting import LOCK, delivering, logged
from .errors import CrashedRun, TaskRunTimeoutError

__all__ = ["began", "crashed", "execute", "failed", "is_wanted", "succeeded"]

logger = logging.getLogger("turnout")


def execute(call: Call, place: Place | None = None) -> Sequence[Call]:
    """Run a call's body in this thread and settle it; return the calls for the same runner that became ready by it.

    Hot path. Never raises. The place is what somebody is told who listens.
    """
    if place is None and call.engine.events.put is not None:
        return _execute_told(call)
    future = call.future
    try:
        # Inside: from the release of the lock on, a Stop may come.
        with LOCK:
            if future._type is not PENDING and future._type is not RETRYING:
                return ()
            future._type = RUNNING
            call.thread = threading.get_ident()
            call.attempt = attempt = call.attempt + 1
            if place is not None:
                tell_begun_here(call, place)
        if call.task.is_watched:
            began(call, attempt)
        try:
            # A body that ran out of time may still be inside of its context when the next attempt begins.
            context = call.context.copy() if call.task.retries else call.context
            value = context.run(_body, call)
        except BaseException as error:
            if not _leave(call, attempt):
                return came_late(call)
            return _mine(failed(call, attempt, without_own_frames(error)), call)
        with LOCK:
            if future._type is not RUNNING or call.attempt != attempt or not call.thread:
                return came_late(call)
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
        if listeners is not None or engine.logs or call.task.has_hooks or call.trouble is not None:
            engine.finished(call, COMPLETED, listeners)
        else:
            if engine.tally.completed is not None:
                engine.tally.completed(call.task)
            if engine.events.put is not None:
                tell_finished(call, COMPLETED)
            call.args = ()
            call.dependencies = None
            call.context = EMPTY
            del engine.open[call]
            if engine.gates:
                engine.emptied()
        return _mine(ready, call) if ready else ()
    except Stop:
        # It was sent to the body, and landed before its beginning or after its end; whoever sent it made the call final
        # before.
        return came_late(call)


def _execute_told(call: Call) -> Sequence[Call]:
    place = take_place()
    try:
        return execute(call, place)
    finally:
        give_place(place)


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
            if other.engine.events.put is not None:
                tell_ready(other)
            mine.append(other)
        else:
            other.dispatcher.push(other, False)
    return mine


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


def _out_of_time(call: Call, attempt: int) -> None:
    error = TaskRunTimeoutError(
        f"{call.future.name} ran for longer than its timeout_seconds={call.task.timeout_seconds}."
    )
    with LOCK:
        if call.future._type is not RUNNING or call.attempt != attempt:
            return
        trouble_of(call).abandoned = attempt
        if call.dispatcher.kills:
            # The flow waits for the end of the body. Noted now, for it may end before it is killed.
            call.engine.stopping.add(call)
    # The body first, while its thread and batch are still known as this attempt's.
    stop_body(call)
    with delivering():
        start(failed(call, attempt, error))


def succeeded(call: Call, attempt: int, value: Any) -> Sequence[Call]:
    """Settle a call whose body returned elsewhere; return what became ready."""
    return settle(call, COMPLETED, value, attempt)


def failed(call: Call, attempt: int, error: BaseException) -> Sequence[Call]:
    """Try a call again whose body raised, or settle it; return what became ready."""
    if not isinstance(error, Exception):
        return settle(call, StateType.CRASHED, Failure(crash_of(f"The body of {call.future.name}", error)), attempt)
    type_ = StateType.TIMED_OUT if isinstance(error, TaskRunTimeoutError) else StateType.FAILED
    if call.task.retries and _will_retry(call, attempt, error, type_):
        return ()
    return settle(call, type_, Failure(error), attempt)


def crashed(call: Call, attempt: int, cause: str) -> Sequence[Call]:
    """Run a call again whose worker died, or settle it; return what became ready."""
    trouble = trouble_of(call)
    with LOCK:
        if call.future._type is not RUNNING or call.attempt != attempt:
            return ()
        trouble.crashes += 1
        again = trouble.crashes <= call.task.crash_retries and not call.engine.cancelling
        if again:
            call.future._type = RETRYING
            call.future._time = time.time()
            if call.engine.tally.retried is not None:
                call.engine.tally.retried(call.task)
            if call.engine.events.put is not None:
                tell_retrying(call, attempt, StateType.CRASHED, 0.0, cause)
    if again:
        with within(call):
            logger.warning(
                "Task run %r - The worker died (%s); it is run again, %d of %d.",
                call.future.name,
                cause,
                trouble.crashes,
                call.task.crash_retries,
                extra=run_ids(call.describe()),
            )
        return (call,)
    error = CrashedRun(
        f"The worker that ran {call.future.name} died: {cause.rstrip('.')}. "
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
        # A call that could not be cancelled with its flow runs to its end, but not again.
        if call.future._type is not RUNNING or call.attempt != attempt or call.engine.cancelling:
            return False
        trouble.retries += 1
        trouble.retry_at = time.monotonic() + delay
        trouble.stop = None
        call.future._type = RETRYING
        call.future._time = time.time()
        if call.engine.tally.retried is not None:
            call.engine.tally.retried(task)
        if call.engine.events.put is not None:
            tell_retrying(call, attempt, type_, delay, (state.message or "").partition("\n")[0])
    if trouble.timer is not None:
        trouble.timer()
    logger_line = "Task run %r - Received non-final state Retrying(%r): retry %d of %d in %.3g s."
    if TASK_RUNS.isEnabledFor(logging.INFO):
        name, ids = call.future.name, run_ids(call.describe())
        with within(call):
            TASK_RUNS.info(logger_line, name, brief(error), trouble.retries, task.retries, delay, extra=ids)
    call.dispatcher.later(call, delay)
    return True


def _condition_holds(call: Call, state: State) -> bool:
    condition = call.task.retry_condition_fn
    if condition is None:
        return True
    holds = False
    with logged("retry_condition_fn of %r raised; it is not run again.", call.future.name):
        holds = bool(call_inner(condition, call.task, task_run(call), state))
    return holds  # noqa: RET504  (still False if it raised)
