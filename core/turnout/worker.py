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
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _forks
from ._alarms import no_alarm_left
from ._arguments import arriving
from ._bodies import call_async_body, call_body, loop_of_thread
from ._context import current_scope, current_tags, set_registered
from ._event_stream import STREAM
from ._failures import TravellingFailure
from ._forwarding import forwarding
from ._places import Place, give_place, here, take_place
from ._remote_scope import RemoteScope, encoded, remote_around
from ._reused import is_costly, let_go, take
from ._serialization import (
    Parcel,
    SharedParcel,
    dumps,
    explain,
    explain_load,
    is_plain,
    load_function,
)
from ._shipment import Job, Shipment, this_process
from ._stop import Stop, Stopper
from ._together import MOST_HELD, Ledger, Teller
from .errors import SerializationError
from .runner import Outcome, OutcomeKind

if TYPE_CHECKING:
    from .runner import TaskRunner

__all__ = ["Ledger", "Stopper", "run_batch", "run_batch_async", "this_process"]

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
        if not self.at_home:
            STREAM.is_elsewhere = True
        # The call to which records belong that come from threads without a context.
        self.current = 0
        self.teller: Teller | None = None
        # What calls returned that later ones need.
        self.results: dict[int, Any] = {}
        # Where this is, for those who listen; None for async calls, each of which has its own place.
        self.place: Place | None = None
        self.is_place_told = False
        self._functions: dict[int, Callable[..., Any]] = {}
        # What stays in this process for read-only calls, at least until this batch is over: once for each use.
        self._taken: list[bytes] = []

    def run(self, ledger: Ledger | None = None) -> None:
        in_turn = self.shipment.numbers is not None and not all(
            self.shipment.kinds[job.kind].is_async for job in self.jobs
        )
        place = self.place = take_place() if in_turn else None
        try:
            with contextlib.nullcontext() if self.at_home else no_alarm_left():
                self.run_in_order(ledger)
        finally:
            let_go(self._taken)
            if place is not None:
                give_place(place)

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
                    loop_of_thread().run(self.run_async(range(index, last)))
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
                if outcome.size > MOST_HELD:
                    # Nobody knew that: what returns so much goes alone, and stays where it is made, where that can be.
                    break
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
        if message[0] == "log" and self.shipment.numbers is not None and scope is not None:
            # Who speaks may be a call or a flow within the one that came with the batch.
            message = (*message, this_process(), scope.number, scope.describe().flow_run_id)
        remote = remote_around(scope)
        if remote is not None:
            # Several batches may run side by side on an event loop: to each its own.
            remote.runs.emit([Outcome(remote.index, OutcomeKind.RECORD, message)])
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
        stamp = 0 if self.shipment.numbers is None else self.stamp()
        if self.teller is None:
            self.emit([Outcome(index, OutcomeKind.STARTED, stamp=stamp)])
        else:
            self.teller.started(index, stamp)

    def stamp(self) -> Any:
        """Return when this is; and where, as long as that may not have been told."""
        return time.time() if self.is_place_told or self.place is None else (time.time(), *self.place)

    def end_stamp(self, place: Place | None) -> Any:
        """Return what goes with the end of a body, which surely arrives."""
        if self.shipment.numbers is None:
            return 0
        if place is not None:
            return time.time(), *place
        stamp, self.is_place_told = self.stamp(), True
        return stamp

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
        place = None if self.shipment.numbers is None else take_place()
        begin = time.perf_counter()
        try:
            function = self.function(scope)
            args, kwargs = self.unpack(scope)
            stamp = 0 if place is None else (time.time(), *place)
            self.emit([Outcome(index, OutcomeKind.STARTED, stamp=stamp)])
            begin = time.perf_counter()
            value = await call_async_body(function, args, kwargs, scope)
        except BaseException as error:
            return self.failure(index, scope, error, begin, place)
        else:
            return self.value(index, scope, value, begin, place)
        finally:
            if place is not None:
                give_place(place)

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

    def value(self, index: int, scope: RemoteScope, value: Any, begin: float, place: Place | None = None) -> Outcome:
        seconds = time.perf_counter() - begin
        stamp = self.end_stamp(place)
        try:
            data, size = _packed(value, scope)
        except SerializationError as error:
            return self.failure(index, scope, error, begin, place)
        return Outcome(index, OutcomeKind.VALUE, data, seconds, size, scope.end(), stamp)

    def failure(
        self, index: int, scope: RemoteScope, error: BaseException, begin: float, place: Place | None = None
    ) -> Outcome:
        seconds = time.perf_counter() - begin
        # Where a call failed, those want to know, too, who don't listen.
        stamp = time.time(), *(place or self.place or here())
        unlooked = scope.end()
        return Outcome(index, OutcomeKind.FAILURE, encoded(error, scope.name), seconds, 0, unlooked, stamp)


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
