"""The worker half: runs the calls of a batch where it lands, and catches everything that they do.

For authors of runners: carry ``batch.body``, ``batch.functions`` and ``batch.upstream`` to a worker, call
:func:`run_batch` there, and pass what it emits to ``host.report``.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ._arguments import arriving, find_futures, replace
from ._context import RunContext, Scope, current_scope, current_tags, seed_of, set_registered
from ._failures import TravellingFailure, encode, without_own_frames
from ._forwarding import forwarding
from ._prints import prints_logged
from ._serialization import PLAIN_TYPES, Parcel, dumps, explain, explain_load, is_plain, load_function
from ._stop import Stop, Stopper, send
from .errors import SerializationError
from .runner import Outcome, OutcomeKind

if TYPE_CHECKING:
    from ._engine import Engine
    from .runner import TaskRunner

__all__ = ["FlowInfo", "Job", "Shipment", "Stopper", "call_body", "run_batch", "run_batch_async"]

Emit = Callable[[Sequence[Outcome]], None]


class FlowInfo(NamedTuple):
    """What the calls of one flow run have in common."""

    id: str | None
    name: str | None
    flow_name: str | None
    run_id: str
    log_prints: bool


class Job(NamedTuple):
    """One call, as it travels."""

    function: bytes
    """The digest of the function."""
    arguments: Parcel | tuple[tuple[Any, ...], dict[str, Any]]
    """Positional and keyword arguments: as they are if all are plain, else packed."""
    flow: int
    """Which of the shipment's flows it belongs to."""
    name: str
    path: str
    task_name: str
    attempt: int
    tags: frozenset[str]
    log_prints: bool
    is_async: bool
    read_only: bool
    """Whether large arguments may arrive without a copy, read-only."""
    variables: Parcel | None
    """The values of registered context variables, if there are any."""


class Shipment(NamedTuple):
    """What the body of a packed batch holds."""

    jobs: tuple[Job, ...]
    flows: tuple[FlowInfo, ...]
    levels: tuple[int, ...]
    """The levels of the driver's loggers."""
    origin: tuple[int, str]
    """The driver's process."""


# A fork has its parent's token and another id; another host may have the same id, with another token.
_TOKEN: Final = uuid.uuid4().hex


def this_process() -> tuple[int, str]:
    """Return what tells this process from every other."""
    return os.getpid(), _TOKEN


def run_batch(
    body: Parcel,
    functions: Mapping[bytes, bytes],
    upstream: Sequence[Any],
    emit: Emit,
    *,
    stopper: Stopper | None = None,
    nested: TaskRunner | None = None,
    context: contextvars.Context | None = None,
) -> None:
    """Run the calls of a batch in this thread, in order; async calls that stand side by side run together.

    Parameters
    ----------
    body, functions, upstream
        As in :class:`turnout.runner.Batch`. Functions that this process has run before may be missing.
    emit
        Takes outcomes as they come: ``STARTED`` before each body (not before its arguments and its module are loaded,
        which shall not count as its time), ``RECORD`` for what it logs, then ``VALUE`` or
        ``FAILURE``. Called in any thread that logs, so it must be thread-safe.
    stopper
        Asks the bodies to stop when another thread wants that; for runners with ``cancel="cooperative"``.
    nested
        Where calls run that the bodies submit, for runners with ``nested="shared"``; by default, here and now. Its
        ``waiting`` is entered when a body waits for them.
    context
        What each body finds set, in a copy of its own; by default, nothing.

    Notes
    -----
    Nothing that a call does is raised here: every ``BaseException`` of a body, and everything that can't be unpacked
    or packed, is the outcome of its call.
    """
    _Runs(body.load(), functions, upstream, emit, stopper, nested, context or contextvars.Context()).run()


async def run_batch_async(body: Parcel, functions: Mapping[bytes, bytes], upstream: Sequence[Any], emit: Emit) -> None:
    """Run the calls of a batch, all of which are async, side by side on the running loop.

    For workers that have an event loop for any number of such batches. Parameters as for :func:`run_batch`. Cancelling
    it cancels the bodies.
    """
    await _Runs(body.load(), functions, upstream, emit, None, None, contextvars.Context()).run_together()


class _Runs:
    """One batch under way."""

    def __init__(
        self,
        shipment: Shipment,
        functions: Mapping[bytes, bytes],
        upstream: Sequence[Any],
        emit: Emit,
        stopper: Stopper | None,
        nested: TaskRunner | None,
        context: contextvars.Context,
    ) -> None:
        self.shipment = shipment
        self.functions = functions
        self.upstream = upstream
        self.emit = emit
        self.stopper = stopper
        self.nested = nested
        self.context = context
        # The call to which records belong that come from threads without a context.
        self.current = 0

    def run(self) -> None:
        with self.forwarding():
            index = 0
            while index < len(self.shipment.jobs):
                together = self.side_by_side(index)
                if together > 1 or self.shipment.jobs[index].is_async:
                    _loop().run(self.run_async(range(index, index + together)))
                else:
                    self.run_one(index)
                index += together

    async def run_together(self) -> None:
        with self.forwarding():
            await self.run_async(range(len(self.shipment.jobs)))

    def forwarding(self) -> contextlib.AbstractContextManager[None]:
        # An executor may turn out to be threads of the driver, whose logging needs no help.
        at_home = self.shipment.origin == this_process()
        return contextlib.nullcontext() if at_home else forwarding(self.shipment.levels, self.record)

    def record(self, message: tuple[Any, ...]) -> None:
        scope = current_scope.get()
        if isinstance(scope, RemoteScope):
            # Several batches may run side by side on an event loop: to each its own.
            scope.runs.emit([Outcome(scope.index, OutcomeKind.RECORD, message)])
        else:
            self.emit([Outcome(self.current, OutcomeKind.RECORD, message)])

    def side_by_side(self, first: int) -> int:
        """Return how many async calls stand together from here on, at least 1."""
        jobs = self.shipment.jobs
        last = first
        while last < len(jobs) and jobs[last].is_async:
            last += 1
        return max(1, last - first)

    def run_one(self, index: int) -> None:
        if self.asked_to_stop():
            self.emit([Outcome(index, OutcomeKind.RETURNED)])
            return
        self.current = index
        # A context of its own: what a body sets must not reach the next one.
        self.emit([self.context.copy().run(self.attempt, index)])

    def attempt(self, index: int) -> Outcome:
        job = self.shipment.jobs[index]
        scope = self.enter(index)
        begin = time.perf_counter()
        try:
            function, args, kwargs = self.unpack(job)
            self.emit([Outcome(index, OutcomeKind.STARTED)])
            begin = time.perf_counter()
            if self.stopper is None:
                value = call_body(function, args, kwargs, scope)
            else:
                with self.stopper.body(scope.stop_in(threading.get_ident())):
                    value = call_body(function, args, kwargs, scope)
        except BaseException as error:
            return self.failure(index, scope, error, begin)
        return self.value(index, scope, value, begin)

    async def run_async(self, indices: Sequence[int]) -> None:
        import asyncio

        me, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert me is not None, "coroutines run in tasks"
        pending = {asyncio.create_task(self.attempt_async(index), context=self.context.copy()) for index in indices}
        try:
            with self.stopped_by(lambda: loop.call_soon_threadsafe(me.cancel)):
                while pending:
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    self.emit([task.result() for task in done])
        except (asyncio.CancelledError, Stop):
            for task in pending:
                task.cancel()
            # Bodies end as they do otherwise, with an outcome: whoever reported the batch waits for one.
            self.emit(list(await asyncio.gather(*pending)))

    def asked_to_stop(self) -> bool:
        return self.stopper is not None and self.stopper.asked

    def stopped_by(self, stop: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.stopper is None else self.stopper.body(stop)

    async def attempt_async(self, index: int) -> Outcome:
        job = self.shipment.jobs[index]
        scope = self.enter(index)
        begin = time.perf_counter()
        try:
            function, args, kwargs = self.unpack(job)
            self.emit([Outcome(index, OutcomeKind.STARTED)])
            begin = time.perf_counter()
            value = await call_async_body(function, args, kwargs, scope)
        except BaseException as error:
            return self.failure(index, scope, error, begin)
        return self.value(index, scope, value, begin)

    def enter(self, index: int) -> RemoteScope:
        job = self.shipment.jobs[index]
        scope = RemoteScope(index, job, self.shipment.flows[job.flow], self)
        current_scope.set(scope)
        current_tags.set(job.tags)
        return scope

    def unpack(self, job: Job) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        what = f"task {job.name!r}"
        function = load_function(job.function, self.functions.get(job.function, b""), f"The function of {what}")
        try:
            if job.variables is not None:
                set_registered(job.variables.load())
            if not isinstance(job.arguments, Parcel):
                return function, *job.arguments
            with arriving(_each_once(self.upstream, job.read_only)):
                args, kwargs = job.arguments.load(read_only=job.read_only)
        except Exception as error:
            raise explain_load(error, f"An argument of {what}") from error
        return function, args, kwargs

    def value(self, index: int, scope: RemoteScope, value: Any, begin: float) -> Outcome:
        seconds = time.perf_counter() - begin
        try:
            data, size = _packed(value, f"The result of task {scope.job.name!r}")
        except SerializationError as error:
            return self.failure(index, scope, error, begin)
        return Outcome(index, OutcomeKind.VALUE, data, seconds, size, scope.end())

    def failure(self, index: int, scope: RemoteScope, error: BaseException, begin: float) -> Outcome:
        seconds = time.perf_counter() - begin
        unlooked = scope.end()
        return Outcome(index, OutcomeKind.FAILURE, _encoded(error, scope.job.name), seconds, 0, unlooked)


def _packed(value: Any, what: str) -> tuple[Any, int]:
    """Return a value as it travels, and how many bytes it has if it is not plain."""
    if is_plain(value):
        return value, 0
    try:
        parcel = dumps(value)
    except BaseException as error:
        raise explain(value, error, what, "result") from error
    return parcel, parcel.nbytes


def _encoded(error: BaseException, name: str) -> Any:
    try:
        return encode(without_own_frames(error), f"task {name!r}")
    except SerializationError as problem:
        return encode(problem)
    except BaseException as problem:
        return encode(SerializationError(f"What task {name!r} raised can't be packed: {type(problem).__name__}"))


def _each_once(upstream: Sequence[Any], read_only: bool) -> Callable[[int], Any]:
    """Return a function that unpacks a value when it is first asked for: the same future twice is one object."""
    values: dict[int, Any] = {}

    def value_of(index: int) -> Any:
        if index not in values:
            value = upstream[index]
            if isinstance(value, Parcel):
                value = value.load(read_only=read_only)
            values[index] = value.load() if isinstance(value, TravellingFailure) else value
        return values[index]

    return value_of


class _Loops(threading.local):
    runner: Any = None


_loops: Final = _Loops()


def _loop() -> Any:
    """Return the event loop's runner of this worker thread: one for all batches, as clients of servers expect."""
    import asyncio

    if _loops.runner is None:
        _loops.runner = asyncio.Runner()
    return _loops.runner


class RemoteScope:
    """A call on a worker, as the scope of what it submits."""

    __slots__ = ("_engine", "counters", "flow", "index", "job", "log_prints", "runs")

    def __init__(self, index: int, job: Job, flow: FlowInfo, runs: _Runs) -> None:
        self.runs = runs
        self.index = index
        self.job = job
        self.flow = flow
        self.log_prints = job.log_prints
        self.counters: MutableMapping[str, Iterator[int]] | None = None
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine for nested calls, made when the first is submitted."""
        if self._engine is None:
            # Most tasks submit nothing. They shall not pay for loading an engine.
            from ._nested import nested_engine

            self._engine = nested_engine(self.flow, self.runs.nested)
        return self._engine

    @property
    def prefix(self) -> str:
        """What the names of nested runs begin with."""
        return f"{self.job.name}/"

    @property
    def path(self) -> str:
        """The place of the call below its root flow."""
        return self.job.path

    def describe(self) -> RunContext:
        """Return what the body may know about itself."""
        job, flow = self.job, self.flow
        return RunContext(
            flow_run_id=flow.id,
            flow_run_name=flow.name,
            flow_name=flow.flow_name,
            task_run_id=f"{flow.run_id}/{job.path}",
            task_run_name=job.name,
            task_name=job.task_name,
            attempt=job.attempt,
            tags=job.tags,
            seed=seed_of(job.path),
        )

    def asked_to_stop(self) -> bool:
        """Return whether the batch has been asked to stop."""
        return self.runs.asked_to_stop()

    def stop_in(self, thread: int) -> Callable[[], None]:
        """Return what stops the body, which runs in this thread, and what it submitted."""

        def stop() -> None:
            send(thread, Stop)
            if self._engine is not None:
                # The thread may be waiting for one of them.
                self._engine.cancel_all()

        return stop

    def waiting(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the body waits, and its slot may serve others."""
        return contextlib.nullcontext() if self.runs.nested is None else self.runs.nested.waiting()

    def end(self) -> tuple[Any, ...]:
        """Wait for nested calls, and return the failures at which nobody looked."""
        if self._engine is None:
            return ()
        engine, self._engine = self._engine, None
        engine.join()
        unlooked = tuple(_encoded(error, self.job.name) for error in engine.unlooked())
        engine.close()
        engine.backends.close()
        return unlooked


# Both halves meet here: what a body is, in the driver's process and in others.


def call_body(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], scope: Scope) -> Any:
    """Call a task's function, and make what it returns a value that can travel."""
    if scope.log_prints:
        with prints_logged():
            value = function(*args, **kwargs)
            return value if type(value) in PLAIN_TYPES else _finished_value(value, scope)
    value = function(*args, **kwargs)
    return value if type(value) in PLAIN_TYPES else _finished_value(value, scope)


def _finished_value(value: Any, scope: Scope) -> Any:
    cls = type(value)
    if cls is types.GeneratorType:
        value = list(value)
    elif cls is types.CoroutineType:
        value = _loop().run(value)
    return _without_futures(value, scope)


async def call_async_body(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], scope: Scope
) -> Any:
    """Await a task's async function, or collect what its async generator yields."""
    with prints_logged() if scope.log_prints else contextlib.nullcontext():
        value = function(*args, **kwargs)
        value = [item async for item in value] if hasattr(value, "__aiter__") else await value
    for future in _futures_in(value, scope):
        await future._over()
    return _without_futures(value, scope)


def _futures_in(value: Any, scope: Scope) -> Mapping[Any, bool]:
    # Only a body that submitted something can have futures of its own to return.
    return {} if scope.counters is None else find_futures([value]) or {}


def _without_futures(value: Any, scope: Scope) -> Any:
    """Return a body's value with the futures of its nested calls replaced by their results."""
    if not _futures_in(value, scope):
        return value
    return replace(value, lambda future, allowed: future.result())
