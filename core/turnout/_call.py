"""The record of a call."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from ._context import RunContext, current_tags, seed_of
from ._future import COMPLETED, TaskFuture
from .runner import Batch

if TYPE_CHECKING:
    from ._context import Scope
    from ._dispatch import Dispatcher
    from ._engine import Engine
    from ._task import Task
    from ._telling import Told

__all__ = ["EMPTY", "NO_KEYWORDS", "Call", "Trouble"]

_NO_TAGS: Final[frozenset[str]] = frozenset()
NO_KEYWORDS: Final[dict[str, Any]] = {}
EMPTY: Final = contextvars.Context()


class Call(Batch):
    """What the engine knows about a call until it is final. In the driver's process it is its own batch of one.

    The engine makes one for each call and drops it when the call is final, so it holds what may be large (arguments)
    or is used seldom (``trouble``); what outlives it is in the future.
    """

    __slots__ = (
        "args",
        "attempt",
        "awaited",
        "context",
        "counters",
        "dependencies",
        "dispatcher",
        "engine",
        "future",
        "is_known_ready",
        "kwargs",
        "pending",
        "queued",
        "scope",
        "seq",
        "task",
        "thread",
        "told",
        "trouble",
    )

    engine: Engine
    scope: Scope
    task: Task[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    future: TaskFuture[Any]
    # A copy of the submitter's context variables; the body runs in it.
    context: contextvars.Context
    seq: int
    dispatcher: Dispatcher
    # The futures in the arguments and in wait_for; the value tells whether their failure is allowed.
    dependencies: dict[TaskFuture[Any], bool] | None
    # How many dependencies are not over yet.
    pending: int
    # Whether it waits in the queue of its runner.
    queued: bool
    # How often the body was begun. Outcomes of an earlier attempt come too late and are dropped.
    attempt: int
    # For what the body waits now, without a time limit; not set before it does.
    awaited: TaskFuture[Any] | None
    # The thread that runs the body in this process; 0 outside of the body.
    thread: int
    # How many runs of each name were submitted inside of this one.
    counters: MutableMapping[str, Iterator[int]] | None
    trouble: Trouble | None
    # Whether those who listen to events were told that it is ready.
    is_known_ready: bool
    # What they were told last of its body.
    told: Told | None

    @property
    def around(self) -> Scope:
        """What it was submitted in."""
        return self.scope

    @property
    def number(self) -> int:
        """What it goes by in events."""
        return self.seq

    @property
    def calls(self) -> tuple[Call]:  # type: ignore[override]
        """The call itself, as the only one of its batch."""
        return (self,)

    @property
    def prefix(self) -> str:
        """What the names of nested runs begin with."""
        return f"{self.future.name}/"

    @property
    def path(self) -> str:
        """The place of the call below its root flow."""
        return self.future.path

    @property
    def log_prints(self) -> bool:
        """Whether the body's prints go to its logger: as the task says, else as the flow does."""
        wanted = self.task.log_prints
        return self.engine.flow_run.log_prints if wanted is None else wanted

    def describe(self) -> RunContext:
        """Return what the body may know about itself."""
        run = self.engine.flow_run
        future = self.future
        tags: frozenset[str] = self.context.get(current_tags, _NO_TAGS)
        return RunContext(
            flow_run_id=run.id,
            flow_run_name=run.name,
            flow_name=run.flow_name,
            task_run_id=future.task_run_id,
            task_run_name=future.name,
            task_name=self.task.name,
            attempt=max(1, self.attempt),
            tags=self.task.tags | tags,
            seed=seed_of(future.path),
        )

    def asked_to_stop(self) -> bool:
        """Return whether the attempt that asks is no longer wanted."""
        return self.future._type >= COMPLETED or (self.trouble is not None and self.trouble.abandoned == self.attempt)


class Trouble:
    """What the engine remembers about a call that failed, crashed, or has a time limit."""

    __slots__ = ("abandoned", "crashes", "dangerous", "retries", "retry_at", "stop", "timer", "worker")

    def __init__(self) -> None:
        self.retries = 0
        self.crashes = 0
        # Attempt whose body was asked to stop because it is out of time.
        self.abandoned = 0
        # It may have taken its worker with it, so that it must run with nothing else around.
        self.dangerous = False
        # When to try again, by time.monotonic(), for runners that wait in submit.
        self.retry_at = 0.0
        # Cancels the timer that runs: the attempt's time limit, or the delay before the next one.
        self.timer: Callable[[], None] | None = None
        # Where the last attempt failed, if that is in another process.
        self.worker = ""
        # Stops the body of the attempt, if it is under way.
        self.stop: Callable[[], bool] | None = None
