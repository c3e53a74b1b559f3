"""What calls tell on their way, as events.

Whoever calls a function here has looked before that somebody listens. A call may be cancelled at any time, and what is
told of it must not come after its end: so everything but that is told with the lock of all futures held, while the call
is not final. Events hold text and numbers only: no argument or result stays alive
for them. They are made by :func:`tuple.__new__`, because their classes' own takes twice as long.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ._event_stream import STREAM
from ._locks import LOCK
from ._state import StateType
from ._tracebacks import printed
from .events import (
    CallCreated,
    CallFinished,
    CallReady,
    CallRetrying,
    CallSent,
    CallStarted,
    WorkerDown,
    WorkerUp,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._call import Call
    from ._dispatch import Dispatcher
    from ._future import TaskFuture
    from ._places import Place

__all__ = [
    "Begun",
    "tell_begun",
    "tell_begun_here",
    "tell_created",
    "tell_finished",
    "tell_ready",
    "tell_ready_at",
    "tell_retrying",
    "tell_sent",
    "tell_stopped",
    "tell_worker",
]

_new: Final[Any] = tuple.__new__
_now: Final = time.time
PENDING: Final = StateType.PENDING
_STATES: Final = {
    StateType.COMPLETED: "Completed",
    StateType.CACHED: "Cached",
    StateType.FAILED: "Failed",
    StateType.TIMED_OUT: "TimedOut",
    StateType.UPSTREAM_FAILED: "UpstreamFailed",
    StateType.CRASHED: "Crashed",
    StateType.CANCELLED: "Cancelled",
}
# Those whose exception is of the call itself.
_RAISED: Final = (StateType.FAILED, StateType.TIMED_OUT, StateType.CRASHED)
# Those in which a call may be before its body ends.
_BEFORE_THE_END: Final = (StateType.CANCELLED, StateType.TIMED_OUT)


class Begun(NamedTuple):
    """The last attempt at a call of which somebody was told."""

    time: float
    attempt: int
    place: Place | None
    """None if nobody knows."""
    batch: int | None = None
    bytes_in: int = 0
    ended: float = 0.0
    """When the body ended; 0 before that, and where that is now."""
    seconds: float = 0.0
    """How long it ran, if it has ended."""
    bytes_out: int = 0


def tell_created(call: Call, dependencies: Iterable[TaskFuture[Any]] | None) -> None:
    """Tell that a call was submitted, and that it is ready if it needs nothing. Nobody else knows of it yet."""
    put = call.engine.events.put
    if put is None:
        return
    now = _now()
    number = call.future._number = call.seq
    needs: tuple[int, ...] = ()
    if dependencies is not None:
        # Those that were submitted before anybody listened have no number.
        needs = tuple([each._number for each in dependencies if hasattr(each, "_number")])
    scope = call.scope
    flow = call.engine.flow_run.id or ""
    name = call.future.name
    runner = call.dispatcher.name
    put(_new(CallCreated, (now, number, flow, call.task.name, name, runner, scope.number, needs)))
    if dependencies is None and call.task.run_name is None:
        call.label = name
        put(_new(CallReady, (now, number, name)))


def tell_ready(call: Call) -> None:
    """Tell that a call could begin, if nobody has told it before."""
    if call.label is None:
        with LOCK:
            if call.future._type is PENDING:
                tell_ready_at(call, _now())


def tell_ready_at(call: Call, at: float) -> None:
    """Tell that a call could begin since some time. With the lock held."""
    put = call.engine.events.put
    if put is not None:
        call.label = name = call.future.name
        put(_new(CallReady, (at, call.seq, name)))


def tell_sent(call: Call, attempt: int, at: float, batch: int, bytes_in: int) -> None:
    """Tell that a call is about to leave for a worker. With the lock held."""
    put = call.engine.events.put
    if put is not None:
        put(_new(CallSent, (at, call.seq, attempt, batch, bytes_in)))


def tell_begun(call: Call, begun: Begun) -> None:
    """Tell that the body of a call has begun. With the lock held."""
    call.told = begun
    place = begun.place
    worker, slot = (place.worker, place.slot) if place is not None else ("", 0)
    put = call.engine.events.put
    if put is not None:
        put(_new(CallStarted, (begun.time, call.seq, begun.attempt, worker, slot)))


def tell_begun_here(call: Call, place: Place) -> None:
    """Tell that the body of a call has begun in this process. With the lock held."""
    now = _now()
    call.told = _new(Begun, (now, call.attempt, place, None, 0, 0.0, 0.0, 0))
    put = call.engine.events.put
    if put is not None:
        if not call.dispatcher.workers:
            tell_worker(call, WorkerUp(now, place.worker, place.host, place.pid, call.dispatcher.name))
        put(_new(CallStarted, (now, call.seq, call.attempt, place.worker, place.slot)))


def tell_worker(call: Call, up: WorkerUp) -> None:
    """Tell that a worker is there, if nobody has told it before."""
    dispatcher, events = call.dispatcher, call.engine.events
    dispatcher.workers.add(up.worker)
    if events is STREAM:
        STREAM.use_worker(up, dispatcher)
    elif events.put is not None:
        # This process is a worker itself, and whoever hears of the event knows which workers are known.
        events.put(up)


def tell_stopped(dispatcher: Dispatcher) -> None:
    """Tell that the workers of a runner are gone which was stopped."""
    workers, dispatcher.workers = dispatcher.workers, set()
    for worker in workers:
        STREAM.leave_worker(WorkerDown(_now(), worker, "stopped"), dispatcher)


def tell_finished(call: Call, type_: StateType) -> None:
    """Tell that a call is final."""
    put = call.engine.events.put
    if put is None:
        return
    future, told = call.future, call.told
    end = future._time
    message = traceback = ""
    if type_ > StateType.CACHED:
        message, traceback = _message(future, type_), _traceback(future, type_)
    name = call.label or future.name
    flow = call.engine.flow_run.id or ""
    if told is None:
        put(
            _new(
                CallFinished,
                (
                    end,
                    call.seq,
                    flow,
                    call.task.name,
                    name,
                    _STATES[type_],
                    0,
                    0.0,
                    "",
                    "",
                    0,
                    0,
                    None,
                    0,
                    0,
                    message,
                    traceback,
                ),
            )
        )
        return
    begin, attempt, place, batch, bytes_in, ended, seconds, bytes_out = told
    if not ended:
        # The clock may have been set meanwhile.
        seconds = max(0.0, end - begin)
    elif type_ not in _BEFORE_THE_END:
        end = ended
    worker, host, pid, slot = place if place is not None else ("", "", 0, 0)
    put(
        _new(
            CallFinished,
            (
                end,
                call.seq,
                flow,
                call.task.name,
                name,
                _STATES[type_],
                attempt,
                seconds,
                worker,
                host,
                pid,
                slot,
                batch,
                bytes_in,
                bytes_out,
                message,
                traceback,
            ),
        )
    )


def tell_retrying(call: Call, attempt: int, type_: StateType, delay: float, message: str) -> None:
    """Tell that a call will be run again. With the lock held."""
    put = call.engine.events.put
    if call.told is not None and not call.told.ended:
        now = call.future._time
        call.told = call.told._replace(ended=now, seconds=now - call.told.time)
    if put is not None:
        put(_new(CallRetrying, (call.future._time, call.seq, attempt, _STATES[type_], delay, message)))


def _message(future: TaskFuture[Any], type_: StateType) -> str:
    """Return why a call has no result, in a line."""
    try:
        return (future._state(look=False).message or "").partition("\n")[0]
    except Exception:  # a __str__ of the user's may raise
        return _STATES[type_]


def _traceback(future: TaskFuture[Any], type_: StateType) -> str:
    """Return the traceback of what a call raised. It is made now: the exception is not kept for it."""
    if type_ not in _RAISED or future._data.error is None:
        return ""
    try:
        return printed(future._data.error)
    except Exception:
        return ""
