"""A call on a worker, as the scope of what it submits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from ._context import RunContext, Scope, seed_of
from ._event_stream import drained
from ._failures import encode, without_own_frames
from ._shipment import FlowInfo, Job, Kind, Shipment, this_process
from ._stop import Stop, send
from ._tally import Tally
from .errors import SerializationError
from .runner import Outcome, OutcomeKind

if TYPE_CHECKING:
    from ._engine import Engine
    from .runner import TaskRunner

__all__ = ["RemoteScope", "encoded", "remote_around"]

# How long events may wait for others to be sent with them, in seconds.
_EVENTS_SECONDS: Final = 0.1


class BatchUnderWay(Protocol):
    """What a call sees of the batch in which it runs."""

    shipment: Shipment
    nested: TaskRunner | None
    emit: Callable[[Sequence[Outcome]], None]

    def asked_to_stop(self) -> bool:
        """Return whether its bodies have been asked to stop."""
        ...


class RemoteScope:
    """A call on a worker, as the scope of what it submits."""

    __slots__ = ("_engine", "_outlet", "around", "counters", "index", "job", "kind", "log_prints", "runs")

    def __init__(self, index: int, job: Job, kind: Kind, runs: BatchUnderWay) -> None:
        self.runs = runs
        self.index = index
        self.job = job
        self.kind = kind
        self.log_prints = kind.log_prints
        self.counters: MutableMapping[str, Iterator[int]] | None = None
        self._engine: Engine | None = None
        self._outlet: Forwarded | None = None
        self.around = None

    @property
    def number(self) -> int | None:
        """What the call goes by in events: below zero, for it is the driver's number, and not one of this process."""
        numbers = self.runs.shipment.numbers
        return None if numbers is None else -1 - numbers[self.index]

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
            self._engine.events = self._outlet = Forwarded(self.runs, self.index)
            # Not that of this process, which may be the driver's.
            self._engine.tally = Tally()
            if self.runs.shipment.is_counted:
                self._engine.tally.begin()
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
        if self._outlet is not None:
            self._outlet.send()
        if self.runs.shipment.is_counted:
            self.runs.emit([Outcome(self.index, OutcomeKind.RECORD, ("steps", tuple(engine.tally.steps())))])
        unlooked = tuple(encoded(error, self.name) for error in engine.unlooked())
        engine.close()
        engine.backends.close()
        return unlooked


def remote_around(scope: Scope | None) -> RemoteScope | None:
    """Return the call of another process that a scope is inside of, if this process is a worker."""
    while scope is not None and not isinstance(scope, RemoteScope):
        scope = scope.around
    return scope


class Forwarded:
    """Where calls and flows within a call on a worker tell what happens: sent to the driver, some at a time.

    Parameters
    ----------
    runs
        The batch of the call.
    index
        Which call of the batch it is.
    """

    def __init__(self, runs: BatchUnderWay, index: int) -> None:
        self._runs = runs
        self._index = index
        self._rows: list[Any] = []
        # Makes taking what is there and sending it one step, so that it goes in order.
        self._sending = threading.RLock()
        self._due = time.time() + _EVENTS_SECONDS
        self.put: Callable[[Sequence[Any]], object] | None = None
        if runs.shipment.numbers is not None:
            # Now: when something is told a lock may be held, and what an import makes the collector end may want that.
            from ._event_rows import Events

            self._made = Events
            self.put = self._put

    def _put(self, row: Sequence[Any]) -> None:
        self._rows.extend(row)
        if time.time() >= self._due:
            self.send()

    def send(self) -> None:
        """Send what there is."""
        with self._sending:
            self._due = time.time() + _EVENTS_SECONDS
            rows = drained(self._rows)
            if rows:
                message = ("events", this_process(), list(self._made(rows)))
                self._runs.emit([Outcome(self._index, OutcomeKind.RECORD, message)])


def encoded(error: BaseException, name: str) -> Any:
    """Return what a call raised as it travels."""
    try:
        return encode(without_own_frames(error), f"task {name!r}")
    except SerializationError as problem:
        return encode(problem)
    except BaseException as problem:
        return encode(SerializationError(f"What task {name!r} raised can't be packed: {type(problem).__name__}"))
