"""One run of a flow: its body, the calls that it submitted, and what is said about both at the end."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from ._arguments import find_futures, replace
from ._backends import Backends
from ._choice import engine_for
from ._context import FLOW_RUNS, current_scope, within
from ._ending import run_hooks
from ._engine import Engine
from ._event_stream import STREAM
from ._flow_story import FlowStory
from ._future import TaskFuture, summary
from ._onlookers import beginning
from ._prints import prints_logged
from ._scopes import FlowScope, next_index
from ._signals import INTERRUPTS, calls_flow, sleep, wait_for
from ._state import State, StateType
from ._stop import Stop
from ._stopping import end_from_outside, interrupt
from ._winding_up import patience, wind_up, wind_up_async
from .errors import CancelledRun, FlowRunTimeoutError

if TYPE_CHECKING:
    from ._flow import Flow

__all__ = ["FlowRun"]


class FlowRun:
    """One run of a flow, through all its attempts. Hooks get it as ``flow_run``.

    Parameters
    ----------
    flow
        The flow.
    parameters
        Its arguments by name.
    """

    def __init__(self, flow: Flow[..., Any], parameters: dict[str, Any]) -> None:
        self.flow = flow
        self.parameters = parameters
        self.id = str(uuid.uuid4())
        self.attempt = 0
        self._thread = threading.get_ident()
        self._current: Engine | None = None
        self.state: State | None = None
        self._parent = current_scope.get()
        self._backends = Backends() if self._parent is None else self._parent.engine.backends
        self._story = FlowStory(self.id, self._parent)
        place = flow.name
        if self._parent is not None:
            place = f"{flow.name}-{next_index(self._parent, flow.name)}"
        self._path = place if self._parent is None else f"{self._parent.path}/{place}"
        self.name = flow.name_of_run(parameters) or (f"{place}-{self.id[:8]}" if self._parent is None else place)
        if find_futures([parameters]):
            self.parameters = replace(parameters, _result)

    # Flows that are functions

    def run(self, body: Callable[[], Any]) -> State:
        """Run the body until it succeeds or is not to be tried again; return the final state."""
        with INTERRUPTS.handled(self._end_from_outside), self._looked_on():
            self._say_running()
            try:
                while True:
                    state = self._attempt(body)
                    delay = self.flow.retry_delay(self.attempt - 1) if self._may_retry(state) else None
                    if delay is None:
                        return self._ended(state)
                    self._say_retrying(state, delay)
                    sleep(delay)
            finally:
                self._close()
                self._story.end()

    def _attempt(self, body: Callable[[], Any]) -> State:
        self.attempt += 1
        engine = self._engine()
        try:
            value = self._within_time(engine, body)
            INTERRUPTS.check()
            engine.join()
            return self._completed(engine, value)
        except BaseException as error:
            return self._state_of(wind_up(engine, error, is_late=_timed_out(error)))
        finally:
            engine.close()

    def _within_time(self, engine: Engine, body: Callable[[], Any]) -> Any:
        with self._prints():
            if self.flow.timeout_seconds is None:
                with within(engine.flow_run):
                    return _call(body)
            return _in_thread(engine, body, self.flow.timeout_seconds, self._time_is_up())

    # Flows that are coroutine functions

    async def run_async(self, body: Callable[[], Any]) -> State:
        """Run an async body as ``run`` does, on the running loop, which is never blocked."""
        import asyncio

        with INTERRUPTS.handled(self._end_from_outside), self._looked_on():
            self._say_running()
            try:
                while True:
                    state = await self._attempt_async(body)
                    delay = self.flow.retry_delay(self.attempt - 1) if self._may_retry(state) else None
                    if delay is None:
                        return self._ended(state)
                    self._say_retrying(state, delay)
                    await asyncio.sleep(delay)
            finally:
                await _aside(self._close)
                if self._story.leave():
                    await _aside(STREAM.flush)

    async def _attempt_async(self, body: Callable[[], Any]) -> State:
        import asyncio

        self.attempt += 1
        engine = self._engine()
        try:
            with self._prints(), within(engine.flow_run):
                limit = asyncio.timeout(self.flow.timeout_seconds)
                try:
                    async with limit:
                        value = await _await(body)
                        await engine.join_async()
                except TimeoutError:
                    if limit.expired():
                        raise self._time_is_up() from None
                    raise
            return self._completed(engine, value)
        except BaseException as error:
            return self._state_of(await wind_up_async(engine, error, is_late=_timed_out(error)))
        finally:
            engine.close()

    # Flows that are generators

    def walk(self, body: Callable[[], Generator[Any, Any, Any]]) -> Generator[Any, Any, Any]:
        """Run a generator's body as its items are asked for, and yield them with futures replaced by results."""
        with self._walking() as engine:
            context = contextvars.copy_context()
            context.run(current_scope.set, engine.flow_run)
            items = body()
            go_on: Callable[[Any], Any] = items.send
            given: Any = None
            while True:
                try:
                    item = context.run(_go_on, go_on, given)
                except StopIteration as stop:
                    engine.join()
                    return self._completed(engine, stop.value).result()
                try:
                    given = yield _resolved(item)
                    go_on = items.send
                except GeneratorExit:
                    items.close()
                    raise
                except BaseException as error:
                    go_on, given = items.throw, error

    async def walk_async(self, body: Callable[[], AsyncGenerator[Any, Any]]) -> AsyncGenerator[Any, Any]:
        """Run an async generator's body as ``walk`` does."""
        with self._walking() as engine:
            items = body()
            try:
                while True:
                    with within(engine.flow_run):
                        try:
                            item = await anext(items)
                        except StopAsyncIteration:
                            break
                    for future in find_futures([item]) or {}:
                        await future._over()
                    yield _resolved(item)
                await engine.join_async()
                self._completed(engine, None)
            finally:
                await items.aclose()

    @contextlib.contextmanager
    def _walking(self) -> Iterator[Engine]:
        with INTERRUPTS.handled(self._end_from_outside), self._looked_on(is_own=False):
            self._say_running()
            self.attempt += 1
            engine = self._engine()
            state = State(StateType.COMPLETED, None, time.time())
            try:
                with self._prints():
                    yield engine
            except BaseException as error:
                state = self._state_of(wind_up(engine, error, is_late=True))
                raise
            finally:
                engine.close()
                self._close()
                self._ended(state)
                self._story.end()

    # What all of them share

    @property
    def runner_told(self) -> str:
        """Its runner as it is told; empty if it isn't there, which the flow will find out."""
        try:
            chosen = engine_for(self._backends, self._parent, self.flow.chosen_runner, self.flow.task_runner).runner
        except Exception:
            return ""
        return "" if chosen is None else repr(chosen)

    @property
    def backends(self) -> Backends:
        """The started runners that it shares with the flows inside of it."""
        return self._backends

    def _looked_on(self, *, is_own: bool = True) -> contextlib.AbstractContextManager[object]:
        return beginning(self, is_own=is_own) if self._parent is None else contextlib.nullcontext()

    def _engine(self) -> Engine:
        engine = self._new_engine()
        inherited = self._parent is not None and self._parent.log_prints
        engine.flow_run = FlowScope(
            engine,
            id=self.id,
            name=self.name,
            flow_name=self.flow.name,
            path=self._path,
            attempt=self.attempt,
            log_prints=inherited if self.flow.log_prints is None else self.flow.log_prints,
            parent=self._parent,
        )
        engine.run_id = self.id if self.attempt == 1 else f"{self.id}#{self.attempt}"
        engine.events = self._story.events
        if self.attempt == 1 and not engine.is_dry:
            self._story.begin(self.name, self.flow.name, engine)
        self._current = engine
        if self._parent is not None:
            engine.tally = self._parent.engine.tally
        if not engine.is_dry:
            engine.tally.engines[engine] = None
        return engine

    def _new_engine(self) -> Engine:
        return engine_for(self._backends, self._parent, self.flow.chosen_runner, self.flow.task_runner)

    def _prints(self) -> contextlib.AbstractContextManager[object]:
        return prints_logged() if self.flow.log_prints else contextlib.nullcontext()

    def _completed(self, engine: Engine, value: Any) -> State:
        """Return the state of a run whose body returned, once its calls are over."""
        value = _resolved(value)
        failures = engine.unlooked()
        if failures:
            raise BaseExceptionGroup(
                f"{len(failures)} failure{'s' * (len(failures) > 1)} in flow run {self.name!r} at which nobody looked. "
                "Look with future.result(), future.exception() or future.state, pass the future in allow_failure(...), "
                "or return it",
                failures,
            )
        return State(StateType.COMPLETED, None, time.time(), value)

    def _state_of(self, error: BaseException) -> State:
        import concurrent.futures

        if _timed_out(error):
            type_ = StateType.TIMED_OUT
        elif isinstance(error, (CancelledRun, concurrent.futures.CancelledError)) or _is_cancelled_error(error):
            type_ = StateType.CANCELLED
        else:
            type_ = StateType.FAILED if isinstance(error, Exception) else StateType.CRASHED
        return State(type_, summary(error, type_), time.time(), error)

    def _time_is_up(self) -> FlowRunTimeoutError:
        return FlowRunTimeoutError(
            f"Flow run {self.name!r} ran for longer than its timeout_seconds={self.flow.timeout_seconds}."
        )

    def _may_retry(self, state: State) -> bool:
        return state.is_failed() and self.attempt <= self.flow.retries

    def _say_running(self) -> None:
        run_hooks(self.flow.on_running_hooks, self.flow, self, State(StateType.RUNNING, None, time.time()))

    def _say_retrying(self, state: State, delay: float) -> None:
        with self._speaking():
            FLOW_RUNS.info(
                "Flow run %r - Received non-final state Retrying(%r): retry %d of %d in %.3g s.",
                self.name,
                state.message,
                self.attempt,
                self.flow.retries,
                delay,
                extra=self._ids(),
            )

    def _ended(self, state: State) -> State:
        self.state = state
        level = logging.INFO if state.is_completed() else logging.ERROR
        with self._speaking():
            FLOW_RUNS.log(level, "Flow run %r - Finished in state %r", self.name, state, extra=self._ids())
        self._story.tell_finished(state.name, state.message)
        run_hooks(self.flow.hooks_for(state.type), self.flow, self, state)
        return state

    def _speaking(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._current is None else within(self._current.flow_run)

    def _ids(self) -> dict[str, object]:
        return {"flow_run_id": self.id, "flow_run_name": self.name, "task_run_id": None, "task_run_name": None}

    def _end_from_outside(self) -> None:
        """End the run from another thread, because the program ends."""
        self.flow = self.flow.with_options(retries=0)
        if self._current is not None:
            end_from_outside(self._current, self._thread)

    def _close(self) -> None:
        if self._parent is None:
            self._backends.close()


def _resolved(value: Any) -> Any:
    """Return a value with every future in it replaced by its result; returning a future is looking at it."""
    futures = find_futures([value])
    if futures is None:
        return value
    for future in futures:
        future._looked = True
    return replace(value, _result)


def _result(future: TaskFuture[Any], allowed: bool) -> Any:
    error = future.exception() if allowed else None
    return future.result() if error is None or isinstance(error, CancelledRun) else error


@calls_flow
def _call(body: Callable[[], Any]) -> Any:
    return body()


@calls_flow
async def _await(body: Callable[[], Any]) -> Any:
    return await body()


@calls_flow
def _go_on(go_on: Callable[[Any], Any], given: Any) -> Any:
    return go_on(given)


def _in_thread(engine: Engine, body: Callable[[], Any], seconds: float, too_late: FlowRunTimeoutError) -> Any:
    """Run a body in a thread that can be left when its time is up."""
    over = threading.Event()
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        current_scope.set(engine.flow_run)
        try:
            outcome.append((True, body()))
        except Stop:
            pass
        except BaseException as error:
            outcome.append((False, error))
        finally:
            over.set()

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name=f"turnout-flow-{engine.flow_run.name}", daemon=True
    )
    thread.start()
    try:
        # This thread waits in the slot of the task that calls the flow, if one does.
        with engine.waiting(engine.flow_run):
            if not wait_for(over, seconds):
                raise too_late
    except BaseException as error:
        INTERRUPTS.ends(error)
        engine.cancel_all()
        interrupt(thread)
        wait_for(over, patience(engine))
        raise
    thread.join()
    good, value = outcome[0]
    if good:
        return value
    raise value


def _timed_out(error: BaseException) -> bool:
    return isinstance(error, FlowRunTimeoutError)


def _is_cancelled_error(error: BaseException) -> bool:
    import sys

    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


async def _aside(action: Callable[[], None]) -> None:
    """Do in a thread what may take long, without blocking the running loop."""
    import asyncio

    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    problems: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            problems.append(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(over.set)

    thread = threading.Thread(target=act, name="turnout-closing")
    thread.start()
    cancelled = None
    while not over.is_set():
        try:
            await over.wait()
        except asyncio.CancelledError as error:
            # It is seen to its end all the same, unless somebody insists.
            if cancelled is not None:
                raise
            cancelled = error
    thread.join()
    if cancelled is not None:
        raise cancelled
    if problems:
        raise problems[0]
