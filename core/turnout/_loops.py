"""Async tasks of a runner in this process: one event loop, on one thread, for all of them."""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING, Any

from ._arguments import replace_arguments
from ._attempts import began, failed, is_wanted, succeeded
from ._bodies import call_async_body
from ._context import current_scope
from ._ending import PENDING, RETRYING, RUNNING, start, trouble_of, value_or_error
from ._failures import without_own_frames
from ._locks import start_thread
from ._places import Place, give_place, take_place
from ._stopping import body_ended
from ._telling import tell_begun_here
from ._waiting import LOCK, delivering

if TYPE_CHECKING:
    import asyncio

    from ._call import Call
    from ._context import Scope
    from ._engine import Engine
    from ._future import TaskFuture
    from ._task import Task

__all__ = ["LoopThread", "call_here_async"]


class LoopThread:
    """An event loop that starts with the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # The loop itself holds tasks weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    def push(self, call: Call) -> None:
        """Start an async call; never waits."""
        self._running_loop().call_soon_threadsafe(self._start, call)

    def stop(self) -> None:
        """End what still runs, then the loop and its thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(self._end, loop)
            thread.join()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                import asyncio

                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="turnout-event-loop", daemon=True
                )
                start_thread(self._thread)
            return self._loop

    def _start(self, call: Call) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        task = loop.create_task(_attempt(call), context=call.context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Set before the body can begin, since that needs another turn of the loop.
        trouble_of(call).stop = functools.partial(_cancel, loop, task)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await loop.shutdown_asyncgens()
            loop.stop()

        loop.create_task(end())


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    # Bodies and callbacks in this thread must not block it: what they would wait for may need it.
    with delivering():
        try:
            loop.run_forever()
        finally:
            loop.close()


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> bool:
    loop.call_soon_threadsafe(task.cancel)
    return True


async def _attempt(call: Call) -> None:
    """Run one attempt of an async call; what :func:`turnout._attempts.execute` is for other calls."""
    place = take_place() if call.engine.events.put is not None else None
    attempt = _begin(call, place)
    if not attempt:
        if place is not None:
            give_place(place)
        return
    try:
        began(call, attempt)
        value = await _body(call)
    except BaseException as error:
        if _leave(call, attempt):
            start(failed(call, attempt, without_own_frames(error)))
    else:
        if _leave(call, attempt):
            start(succeeded(call, attempt, value))
    finally:
        if place is not None:
            give_place(place)
        body_ended(call)


def _begin(call: Call, place: Place | None) -> int:
    with LOCK:
        if call.future._type not in (PENDING, RETRYING):
            return 0
        call.future._type = RUNNING
        # Not a thread to interrupt, but a sign that a body is under way in this process.
        call.thread = -1
        call.attempt += 1
        if place is not None:
            tell_begun_here(call, place)
        return call.attempt


def _leave(call: Call, attempt: int) -> bool:
    """Note that the body has ended; return whether its outcome is wanted."""
    with LOCK:
        wanted = is_wanted(call, attempt)
        if call.attempt == attempt:
            call.thread = 0
        return wanted


async def _body(call: Call) -> Any:
    current_scope.set(call)
    args, kwargs = call.args, call.kwargs
    if call.dependencies is not None:
        args, kwargs = replace_arguments(args, kwargs, value_or_error)
    return await call_async_body(call.task.fn, args, kwargs, call)


async def call_here_async(
    engine: Engine, scope: Scope, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> TaskFuture[Any]:
    """Run an async call on the running loop to its end, retries and all, and return its future."""
    import asyncio

    call = engine.new_call_here(scope, task, args, kwargs)
    for future in call.dependencies or ():
        await future._over()
    if not engine.may_go(call):
        return call.future
    try:
        while not call.future.done():
            attempt = asyncio.create_task(_attempt(call), context=call.context.copy())
            trouble_of(call).stop = functools.partial(_cancel, asyncio.get_running_loop(), attempt)
            await asyncio.wait([attempt])
            if call.future._type is RETRYING and call.trouble is not None:
                await asyncio.sleep(max(0.0, call.trouble.retry_at - time.monotonic()))
    except asyncio.CancelledError:
        engine.cancel(call)
        raise
    return call.future
