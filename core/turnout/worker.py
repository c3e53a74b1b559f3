"""The worker half: runs the calls of a batch where it lands, and catches everything that they do.

For authors of runners: carry ``batch.body``, ``batch.functions`` and ``batch.upstream`` to a worker, call
:func:`run_batch` there, and pass what it emits to ``host.report``.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from . import _forks
from ._alarms import no_alarm_left
from ._arguments import arriving, find_futures, replace
from ._context import RunContext, Scope, current_scope, current_tags, seed_of, set_registered
from ._failures import TravellingFailure, encode, without_own_frames
from ._forwarding import forwarding
from ._prints import prints_logged
from ._reused import is_costly, let_go, take
from ._serialization import (
    PLAIN_TYPES,
    Parcel,
    SharedParcel,
    dumps,
    explain,
    explain_load,
    is_plain,
    load_function,
)
from ._shipment import FlowInfo, Job, Kind, Shipment, this_process
from ._signals import calls_inner
from ._stop import Stop, Stopper, send
from ._together import MOST_HELD, Ledger, Teller
from .errors import SerializationError
from .runner import Outcome, OutcomeKind

if TYPE_CHECKING:
    from ._engine import Engine
    from .runner import TaskRunner

__all__ = ["Ledger", "Stopper", "call_body", "run_batch", "run_batch_async", "this_process"]

Emit = Callable[[Sequence[Outcome]], None]


def run_batch(
    body: Parcel,
    functions: Mapping[bytes, bytes],
    upstream: Sequence[Any],
    emit: Emit,
    *,
    stopper: Stopper | None = None,
    nested: TaskRunner | None = None,
    context: contextvars.Context | None = None,
    ledger: Ledger | None = None,
) -> None:
    """Run the calls of a batch in this thread, in order; async calls that stand side by side run together.

    Parameters
    ----------
    body, functions, upstream
        As in :class:`turnout.runner.Batch`. Functions that this process has run before may be missing.
    emit
        Takes outcomes as they come: ``STARTED`` before each body (not before its arguments and its module are loaded,
        which shall not count as its time), ``RECORD`` for what it logs, then ``VALUE`` or
        ``FAILURE``. Those of several calls come some at a time, and short ones without ``STARTED``. Called in any
        thread, so it must be thread-safe.
    stopper
        Asks the bodies to stop when another thread wants that; for runners with ``cancel="cooperative"``.
    nested
        Where calls run that the bodies submit, for runners with ``nested="shared"``; by default, here and now. Its
        ``waiting`` is entered when a body waits for them.
    context
        What each body finds set, in a copy of its own; by default, nothing.
    ledger
        Where to note what becomes of several calls, so that it is known even if this process dies.

    Notes
    -----
    Nothing that a call does is raised here: every ``BaseException`` of a body, and everything that can't be unpacked
    or packed, is the outcome of its call.
    """
    _Runs(body.load(), functions, upstream, emit, stopper, nested, context or contextvars.Context()).run(ledger)


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
        self.jobs = [Job._make(row) for row in shipment.jobs]
        self.functions = functions
        self.upstream = upstream
        self.emit = emit
        self.stopper = stopper
        self.nested = nested
        self.context = context
        self.generation = _forks.generation
        self.at_home = shipment.origin == this_process()
        # The call to which records belong that come from threads without a context.
        self.current = 0
        self.teller: Teller | None = None
        # What calls returned that later ones need.
        self.results: dict[int, Any] = {}
        self._functions: dict[int, Callable[..., Any]] = {}
        # What stays in this process for read-only calls, at least until this batch is over: once for each use.
        self._taken: list[bytes] = []

    def run(self, ledger: Ledger | None = None) -> None:
        try:
            with contextlib.nullcontext() if self.at_home else no_alarm_left():
                self.run_in_order(ledger)
        finally:
            let_go(self._taken)

    def run_in_order(self, ledger: Ledger | None) -> None:
        jobs = self.jobs
        is_async = [self.shipment.kinds[job.kind].is_async for job in jobs]
        with self.forwarding():
            if len(jobs) > 1 and not any(is_async):
                self.run_several(ledger)
                return
            index = 0
            while index < len(jobs):
                # Async calls that stand together wait side by side.
                last = index + 1
                while is_async[index] and last < len(jobs) and is_async[last]:
                    last += 1
                if is_async[index]:
                    _loop().run(self.run_async(range(index, last)))
                else:
                    self.run_one(index)
                index = last

    def run_several(self, ledger: Ledger | None) -> None:
        jobs = self.jobs
        needed = {index for job in jobs for index in job.needs}
        self.teller = teller = Teller(self.emit, len(jobs), self.shipment.patience, ledger)
        self.emit = teller.add
        try:
            for index, job in enumerate(jobs):
                if self.asked_to_stop() or not teller.may_begin(index):
                    break
                if job.needs and not self.results.keys() >= set(job.needs):
                    # What it needs has failed. The engine knows what that means for it.
                    teller.add([Outcome(index, OutcomeKind.RETURNED)])
                    continue
                self.current = index
                # A context of its own: what a body sets must not reach the next one.
                outcome = _apart(self.context.copy().run(self.attempt, index))
                if index in needed and outcome.kind is OutcomeKind.VALUE:
                    self.results[index] = outcome.data
                teller.add([outcome])
        finally:
            teller.end()

    async def run_together(self) -> None:
        try:
            with self.forwarding():
                await self.run_async(range(len(self.jobs)))
        finally:
            let_go(self._taken)

    def forwarding(self) -> contextlib.AbstractContextManager[None]:
        # An executor may turn out to be threads of the driver, whose logging needs no help.
        return contextlib.nullcontext() if self.at_home else forwarding(self.shipment.levels, self.record)

    def record(self, message: tuple[Any, ...]) -> None:
        if _forks.generation != self.generation:
            # A process that the body forked has no way to the driver, and writing to the ledger would spoil it.
            return
        scope = current_scope.get()
        if isinstance(scope, RemoteScope):
            # Several batches may run side by side on an event loop: to each its own.
            scope.runs.emit([Outcome(scope.index, OutcomeKind.RECORD, message)])
        else:
            self.emit([Outcome(self.current, OutcomeKind.RECORD, message)])

    def run_one(self, index: int) -> None:
        if self.asked_to_stop():
            self.emit([Outcome(index, OutcomeKind.RETURNED)])
            return
        self.current = index
        # A context of its own: what a body sets must not reach the next one.
        self.emit([self.context.copy().run(self.attempt, index)])

    def tell_started(self, index: int) -> None:
        if self.teller is None:
            self.emit([Outcome(index, OutcomeKind.STARTED)])
        else:
            self.teller.started(index)

    def attempt(self, index: int) -> Outcome:
        scope = self.enter(index)
        begin = time.perf_counter()
        try:
            function = self.function(scope)
            begin, imported = time.perf_counter(), len(sys.modules)
            args, kwargs = self.unpack(scope)
            if len(sys.modules) > imported:
                # Modules are loaded once. Everything else it takes to unpack arguments is the call's own time.
                begin = time.perf_counter()
            self.tell_started(index)
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
        scope = self.enter(index)
        begin = time.perf_counter()
        try:
            function = self.function(scope)
            args, kwargs = self.unpack(scope)
            self.emit([Outcome(index, OutcomeKind.STARTED)])
            begin = time.perf_counter()
            value = await call_async_body(function, args, kwargs, scope)
        except BaseException as error:
            return self.failure(index, scope, error, begin)
        return self.value(index, scope, value, begin)

    def enter(self, index: int) -> RemoteScope:
        job = self.jobs[index]
        scope = RemoteScope(index, job, self.shipment.kinds[job.kind], self)
        current_scope.set(scope)
        current_tags.set(scope.kind.tags)
        return scope

    def function(self, scope: RemoteScope) -> Callable[..., Any]:
        function = self._functions.get(scope.job.kind)
        if function is None:
            digest = scope.kind.function
            what = f"The function of task {scope.name!r}"
            function = self._functions[scope.job.kind] = load_function(digest, self.functions.get(digest, b""), what)
        return function

    def unpack(self, scope: RemoteScope) -> tuple[tuple[Any, ...], dict[str, Any]]:
        job = scope.job
        try:
            if job.variables is not None:
                set_registered(job.variables.load())
            return self.arguments(job, scope.kind.read_only)
        except Exception as error:
            raise explain_load(error, f"An argument of task {scope.name!r}") from error

    def arguments(self, job: Job, read_only: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments = job.arguments
        if isinstance(arguments, Parcel):
            with arriving(self.each_once(read_only)):
                args, kwargs = arguments.load(read_only=read_only)
            return args, kwargs
        if not job.places:
            return arguments
        value_of = self.each_once(read_only)
        args, kwargs = list(arguments[0]), arguments[1]
        for place, index in job.places:
            if isinstance(place, str):
                kwargs[place] = value_of(index)
            else:
                args[place] = value_of(index)
        return tuple(args), kwargs

    def each_once(self, read_only: bool) -> Callable[[int], Any]:
        """Return a function that unpacks a value when it is first asked for: the same future twice is one object.

        Negative numbers stand for what earlier calls of this batch returned, -1 for the first.
        """
        values: dict[int, Any] = {}

        def value_of(index: int) -> Any:
            if index not in values:
                value = self.upstream[index] if index >= 0 else self.results[-1 - index]
                if isinstance(value, Parcel):
                    key = self.shipment.keys.get(index) if read_only else None
                    values[index] = self.load(value, index, read_only) if key is None else self.take(key, value)
                else:
                    values[index] = value.load() if isinstance(value, TravellingFailure) else value
            return values[index]

        return value_of

    def load(self, parcel: Parcel, index: int, read_only: bool) -> Any:
        if index < 0 or index in self.shipment.shared:
            # It is yet to be sent as it is now, or to be given to other calls.
            parcel = SharedParcel(parcel.data, parcel.buffers)
        return parcel.load(read_only=read_only)

    def take(self, key: bytes, parcel: Parcel) -> Any:
        if not is_costly(parcel):
            return parcel.load(read_only=True)
        value = take(key, lambda: parcel.load(read_only=True))
        self._taken.append(key)
        return value

    def value(self, index: int, scope: RemoteScope, value: Any, begin: float) -> Outcome:
        seconds = time.perf_counter() - begin
        try:
            data, size = _packed(value, scope)
        except SerializationError as error:
            return self.failure(index, scope, error, begin)
        return Outcome(index, OutcomeKind.VALUE, data, seconds, size, scope.end())

    def failure(self, index: int, scope: RemoteScope, error: BaseException, begin: float) -> Outcome:
        seconds = time.perf_counter() - begin
        unlooked = scope.end()
        return Outcome(index, OutcomeKind.FAILURE, _encoded(error, scope.name), seconds, 0, unlooked)


def _apart(outcome: Outcome) -> Outcome:
    """Return an outcome that can wait: later calls may change what it lies over. What is large is sent at once."""
    data = outcome.data
    if type(data) is Parcel and data.buffers and data.nbytes <= MOST_HELD:
        return outcome._replace(data=data.owned())
    return outcome


def _packed(value: Any, scope: RemoteScope) -> tuple[Any, int]:
    """Return a value as it travels, and how many bytes it has if it is not plain."""
    if is_plain(value):
        return value, 0
    try:
        parcel = dumps(value)
    except BaseException as error:
        raise explain(value, error, f"The result of task {scope.name!r}", "result") from error
    return parcel, parcel.nbytes


def _encoded(error: BaseException, name: str) -> Any:
    try:
        return encode(without_own_frames(error), f"task {name!r}")
    except SerializationError as problem:
        return encode(problem)
    except BaseException as problem:
        return encode(SerializationError(f"What task {name!r} raised can't be packed: {type(problem).__name__}"))


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

    __slots__ = ("_engine", "counters", "index", "job", "kind", "log_prints", "runs")

    def __init__(self, index: int, job: Job, kind: Kind, runs: _Runs) -> None:
        self.runs = runs
        self.index = index
        self.job = job
        self.kind = kind
        self.log_prints = kind.log_prints
        self.counters: MutableMapping[str, Iterator[int]] | None = None
        self._engine: Engine | None = None

    @property
    def flow(self) -> FlowInfo:
        """The flow of the call."""
        return self.runs.shipment.flows[self.kind.flow]

    @property
    def engine(self) -> Engine:
        """The engine for nested calls, made when the first is submitted."""
        if self._engine is None:
            # Most tasks submit nothing. They shall not pay for loading an engine.
            from ._nested import nested_engine

            self._engine = nested_engine(self.flow, self.runs.nested)
        return self._engine

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.job.name or f"{self.kind.prefix}{self.kind.task_name}-{self.job.number}"

    @property
    def prefix(self) -> str:
        """What the names of nested runs begin with."""
        return f"{self.name}/"

    @property
    def path(self) -> str:
        """The place of the call below its root flow."""
        return f"{self.kind.path}/{self.kind.task_name}-{self.job.number}"

    def describe(self) -> RunContext:
        """Return what the body may know about itself."""
        flow, path = self.flow, self.path
        return RunContext(
            flow_run_id=flow.id,
            flow_run_name=flow.name,
            flow_name=flow.flow_name,
            task_run_id=f"{flow.run_id}/{path}",
            task_run_name=self.name,
            task_name=self.kind.task_name,
            attempt=self.job.attempt,
            tags=self.kind.tags,
            seed=seed_of(path),
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
        unlooked = tuple(_encoded(error, self.name) for error in engine.unlooked())
        engine.close()
        engine.backends.close()
        return unlooked


# Both halves meet here: what a body is, in the driver's process and in others.


@calls_inner
def call_body(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], scope: Scope) -> Any:
    """Call a task's function, and make what it returns a value that can travel."""
    generation = _forks.generation
    try:
        if scope.log_prints:
            with prints_logged():
                value = _value(function, args, kwargs, scope)
        else:
            value = function(*args, **kwargs)
            if type(value) not in PLAIN_TYPES:
                value = _finished_value(value, scope)
    except BaseException as error:
        _forks.end_in_child(generation, error)
        raise
    _forks.end_in_child(generation)
    return value


@calls_inner
def _value(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], scope: Scope) -> Any:
    value = function(*args, **kwargs)
    return value if type(value) in PLAIN_TYPES else _finished_value(value, scope)


@calls_inner
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
    generation = _forks.generation
    try:
        with prints_logged() if scope.log_prints else contextlib.nullcontext():
            value = function(*args, **kwargs)
            value = [item async for item in value] if hasattr(value, "__aiter__") else await value
        for future in _futures_in(value, scope):
            await future._over()
        value = _without_futures(value, scope)
    except BaseException as error:
        _forks.end_in_child(generation, error)
        raise
    _forks.end_in_child(generation)
    return value


def _futures_in(value: Any, scope: Scope) -> Mapping[Any, bool]:
    # Only a body that submitted something can have futures of its own to return.
    return {} if scope.counters is None else find_futures([value]) or {}


def _without_futures(value: Any, scope: Scope) -> Any:
    """Return a body's value with the futures of its nested calls replaced by their results."""
    if not _futures_in(value, scope):
        return value
    return replace(value, lambda future, allowed: future.result())
