"""A call on a worker, as the scope of what it submits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ._context import RunContext, seed_of
from ._failures import encode, without_own_frames
from ._shipment import FlowInfo, Job, Kind, Shipment
from ._stop import Stop, send
from .errors import SerializationError

if TYPE_CHECKING:
    from ._engine import Engine
    from .runner import Outcome, TaskRunner

__all__ = ["RemoteScope", "encoded"]


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

    __slots__ = ("_engine", "counters", "index", "job", "kind", "log_prints", "runs")

    def __init__(self, index: int, job: Job, kind: Kind, runs: BatchUnderWay) -> None:
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
        unlooked = tuple(encoded(error, self.name) for error in engine.unlooked())
        engine.close()
        engine.backends.close()
        return unlooked


def encoded(error: BaseException, name: str) -> Any:
    """Return what a call raised as it travels."""
    try:
        return encode(without_own_frames(error), f"task {name!r}")
    except SerializationError as problem:
        return encode(problem)
    except BaseException as problem:
        return encode(SerializationError(f"What task {name!r} raised can't be packed: {type(problem).__name__}"))
