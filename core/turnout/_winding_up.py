"""The end of a flow that is not to go on: what is open is cancelled, and waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ._call import Call
from ._signals import INTERRUPTS, stop_inner
from ._waiting import is_delivering

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["await_returns", "patience", "wind_up", "wind_up_async"]

# After Ctrl-C, or when its time is up, a flow waits this long for bodies that can't be stopped, in seconds.
_PATIENCE: Final = 3.0
# How long a cancel waits for calls to come back that were sent: in general, and where a worker may have to be ended for
# it, which on a busy Ray was seen to take two seconds; and how often it looks. In seconds.
_RETURN_PATIENCE: Final = 0.5
_KILL_PATIENCE: Final = 5.0
_RETURN_STEP: Final = 0.0005


def wind_up(engine: Engine, error: BaseException, *, is_late: bool = False) -> BaseException:
    """Cancel what is open and wait for it; return what the body's error has become: a later Ctrl-C wins.

    Parameters
    ----------
    engine
        The flow.
    error
        What ended the body.
    is_late
        Bodies that can't be stopped are not waited for long, as after Ctrl-C.
    """
    while True:
        is_hasty = is_late or not isinstance(error, Exception)
        INTERRUPTS.ends(error)
        try:
            waiting = _cancelled(engine)
            await_returns(waiting, is_hasty=is_hasty)
            engine.join(patience(engine) if is_hasty else None)
        except KeyboardInterrupt as interrupt:
            if is_hasty:
                return interrupt
            error = interrupt
        else:
            return error


async def wind_up_async(engine: Engine, error: BaseException, *, is_late: bool = False) -> BaseException:
    """Do as ``wind_up`` does, without blocking the event loop; here it is a later cancel that wins."""
    import asyncio

    while True:
        is_hasty = is_late or not isinstance(error, Exception)
        INTERRUPTS.ends(error)
        try:
            waiting = _cancelled(engine)
            for _ in _returns(waiting, is_hasty=is_hasty):
                await asyncio.sleep(_RETURN_STEP)
            await engine.join_async(patience(engine) if is_hasty else None)
        except (asyncio.CancelledError, KeyboardInterrupt) as interrupt:
            if is_hasty:
                return interrupt
            error = interrupt
        else:
            return error


def _cancelled(engine: Engine) -> list[Call]:
    """Cancel what is open, and stop what runs inside if the program ends; return the calls that had not begun."""
    waiting = engine.cancel_all()
    if INTERRUPTS.is_ending:
        stop_inner()
    return waiting


def patience(engine: Engine) -> float:
    """Return how long to wait still for bodies that can't be stopped, in seconds, since this was asked first."""
    now = time.monotonic()
    if engine.patient_until is None:
        engine.patient_until = now + _PATIENCE
    return max(0.0, engine.patient_until - now)


def _returns(calls: Sequence[Call], *, is_hasty: bool) -> Iterator[None]:
    """Yield each time somebody who waits for cancelled calls has to look again; end when they can't begin any more.

    They had not begun, as far as was known, but those that were sent may until the word reaches their workers. That
    takes some milliseconds on a cluster; one that has begun meanwhile is stopped as a running one is.
    """
    began = time.monotonic()
    for call in calls:
        seconds = _KILL_PATIENCE if call.dispatcher.kills and not is_hasty else _RETURN_PATIENCE
        while call.dispatcher.may_begin(call) and not is_delivering() and time.monotonic() < began + seconds:
            yield


def await_returns(calls: Sequence[Call], *, is_hasty: bool = False) -> None:
    """Wait until cancelled calls can't begin any more, or for as long as that may take."""
    for _ in _returns(calls, is_hasty=is_hasty):
        time.sleep(_RETURN_STEP)
