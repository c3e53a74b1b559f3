"""What calls tell on their way, as events.

Whoever calls a function here has looked before that somebody listens. A call may be cancelled at any time, and what is
told of it must not come after its end: so everything but that is told with the lock of all futures held, while the call
is not final.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ._event_stream import BEGUN, CREATED, EVENT, FINISHED, READY, STREAM
from ._locks import LOCK
from ._places import NOWHERE, Place
from ._state import STATE_NAMES, StateType
from ._tracebacks import printed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._call import Call
    from ._dispatch import Dispatcher
    from ._future import TaskFuture
    from .events import WorkerUp

__all__ = [
    "Told",
    "tell_begun_here",
    "tell_created",
    "tell_finished",
    "tell_ready",
    "tell_retrying",
    "tell_stopped",
    "tell_worker",
]

Told: TypeAlias = tuple[float, int, Place, int | None, int, float, float, int]
"""The last attempt at a call of which somebody was told: when it began, which it is, where; the number of its batch,
and how many bytes travelled with it; when the body ended (0 before that, and where that is the call's end), how long it
ran, and how many bytes came back."""

PENDING: Final = StateType.PENDING
COMPLETED: Final = StateType.COMPLETED
_now: Final = time.time
_NOT_BEGUN: Final[Told] = (0.0, 0, NOWHERE, None, 0, 0.0, 0.0, 0)
# What a call may become before its body ends.
_BEFORE_THE_END: Final = (StateType.CANCELLED, StateType.TIMED_OUT)
# Those whose exception is of the call itself.
_RAISED: Final = (StateType.FAILED, StateType.TIMED_OUT, StateType.CRASHED)


def tell_created(call: Call, dependencies: Iterable[TaskFuture[Any]] | None) -> None:
    """Tell that a call was submitted, and that it is ready if it needs nothing. Nobody else knows of it yet."""
    engine = call.engine
    put = engine.events.put
    if put is None:
        return
    future, task, scope = call.future, call.task, call.scope
    number = future._number = call.seq
    needs: tuple[int, ...] = ()
    is_ready = False
    if dependencies is not None:
        try:
            needs = tuple([each._number for each in dependencies])
        except AttributeError:
            # Those that were submitted before anybody listened have no number.
            needs = tuple([each._number for each in dependencies if hasattr(each, "_number")])
    elif task.run_name is None:
        is_ready = call.is_known_ready = True
    flow, runner = engine.flow_run.id or "", call.dispatcher.name
    prefix, index, name = scope.prefix, future._index, future._name
    put((CREATED, _now(), number, flow, task.name, prefix, index, name, runner, scope.number, needs, is_ready))


def tell_ready(call: Call) -> None:
    """Tell that a call could begin, if nobody has told it before."""
    if not call.is_known_ready:
        # As `with LOCK` does, in a third of the time.
        if not LOCK.acquire(False):
            LOCK.__enter__()
        try:
            if call.future._type is PENDING:
                tell_ready_at(call, _now())
        finally:
            LOCK.release()


def tell_ready_at(call: Call, at: float) -> None:
    """Tell that a call could begin since some time. With the lock held."""
    put = call.engine.events.put
    if put is not None:
        call.is_known_ready = True
        future = call.future
        put((READY, at, call.seq, call.task.name, call.scope.prefix, future._index, future._name))


def tell_begun_here(call: Call, place: Place) -> None:
    """Tell that the body of a call has begun in this process. With the lock held."""
    now = _now()
    attempt = call.attempt
    call.told = (now, attempt, place, None, 0, 0.0, 0.0, 0)
    put = call.engine.events.put
    if put is not None:
        if not call.dispatcher.workers:
            from .events import WorkerUp

            tell_worker(call, WorkerUp(now, place[0], place[1], place[2], call.dispatcher.name))
        put((BEGUN, now, call.seq, attempt, place[0], place[3]))


def tell_worker(call: Call, up: WorkerUp) -> None:
    """Tell that a worker is there, if nobody has told it before."""
    dispatcher, events = call.dispatcher, call.engine.events
    dispatcher.workers.add(up.worker)
    if events is STREAM:
        STREAM.use_worker(up.worker, (EVENT, up), dispatcher)
    elif events.put is not None:
        # This process is a worker itself, and whoever hears of the event knows which workers are known.
        events.put((EVENT, up))


def tell_stopped(dispatcher: Dispatcher) -> None:
    """Tell that the workers of a runner are gone which was stopped."""
    workers, dispatcher.workers = dispatcher.workers, set()
    if not workers:
        return
    from .events import WorkerDown

    for worker in workers:
        STREAM.leave_worker(worker, (EVENT, WorkerDown(_now(), worker, "stopped")), dispatcher)


def tell_finished(call: Call, type_: StateType) -> None:
    """Tell that a call is final."""
    engine = call.engine
    put = engine.events.put
    if put is None:
        return
    future, task = call.future, call.task
    state, message, traceback = "Completed", "", ""
    if type_ is not COMPLETED:
        state = STATE_NAMES[type_]
        if type_ > StateType.CACHED:
            message, traceback = _message(future, type_), _traceback(future, type_)
    end = future._time
    told = call.told
    begin, attempt, place, batch, bytes_in, ended, seconds, bytes_out = told or _NOT_BEGUN
    if told is None and type_ is StateType.TIMED_OUT:
        # Its runner does not tell when a body begins.
        attempt = call.attempt
    elif told is not None and not ended:
        # The clock may have been set meanwhile.
        seconds = max(0.0, end - begin)
    elif told is not None and type_ not in _BEFORE_THE_END:
        end = ended
    put(
        (
            FINISHED,
            end,
            call.seq,
            engine.flow_run.id or "",
            task.name,
            call.scope.prefix,
            future._index,
            future._name,
            state,
            attempt,
            seconds,
            place,
            batch,
            bytes_in,
            bytes_out,
            message,
            traceback,
        )
    )


def tell_retrying(call: Call, attempt: int, type_: StateType, delay: float, message: str) -> None:
    """Tell that a call will be run again. With the lock held."""
    put, told, now = call.engine.events.put, call.told, call.future._time
    if told is not None and not told[5]:
        call.told = (*told[:5], now, max(0.0, now - told[0]), 0)
    if put is not None:
        from .events import CallRetrying

        put((EVENT, CallRetrying(now, call.seq, attempt, STATE_NAMES[type_], delay, message)))


def _message(future: TaskFuture[Any], type_: StateType) -> str:
    """Return why a call has no result, in a line."""
    try:
        return (future._state(look=False).message or "").partition("\n")[0]
    except Exception:  # a __str__ of the user's may raise
        return STATE_NAMES[type_]


def _traceback(future: TaskFuture[Any], type_: StateType) -> str:
    """Return the traceback of what a call raised. It is made now: the exception is not kept for it."""
    if type_ not in _RAISED or future._data.error is None:
        return ""
    try:
        return printed(future._data.error)
    except Exception:
        return ""
