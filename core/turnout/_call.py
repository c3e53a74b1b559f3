"""The record of a call, and the one walk over arguments."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ._context import RunContext, current_tags, seed_of
from ._future import COMPLETED, FuturePart, TaskFuture
from ._serialization import PLAIN_TYPES
from ._state import StateType
from .runner import Batch

if TYPE_CHECKING:
    from ._context import Scope
    from ._dispatch import Dispatcher
    from ._engine import Engine
    from ._task import Task

__all__ = ["Call", "allow_failure", "find_futures", "quote", "replace", "replace_arguments", "unmapped"]

T = TypeVar("T")


PLAIN: Final = PLAIN_TYPES
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
        "context",
        "counters",
        "dependencies",
        "dispatcher",
        "engine",
        "future",
        "kwargs",
        "pending",
        "scope",
        "seq",
        "task",
        "thread",
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
    # How often the body was begun. Outcomes of an earlier attempt come too late and are dropped.
    attempt: int
    # The thread that runs the body in this process; 0 outside of the body.
    thread: int
    # How many runs of each name were submitted inside of this one.
    counters: MutableMapping[str, Iterator[int]] | None
    trouble: Trouble | None

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

    __slots__ = ("abandoned", "crashes", "dangerous", "retries", "retry_at", "stop", "timer")

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
        # Stops the body of the attempt, if it is under way.
        self.stop: Callable[[], bool] | None = None


class unmapped(Generic[T]):  # noqa: N801  (the name that users know)
    """Pass a value to every call of a map whole, instead of walking over it.

    Examples
    --------
    >>> from turnout import flow, task, unmapped
    >>> @task
    ... def scale(x, factors):
    ...     return x * sum(factors)
    >>> @flow
    ... def scaled():
    ...     return scale.map([1, 2], unmapped([10, 20]))
    >>> scaled()
    [30, 60]
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


class allow_failure(unmapped[T]):  # noqa: N801
    """Let a call run even if the future has no result, and pass it the exception then.

    It works inside of containers and in ``wait_for``. A cancelled future still cancels the call.

    Examples
    --------
    >>> from turnout import allow_failure, flow, task
    >>> @task
    ... def fail():
    ...     raise ValueError("no")
    >>> @task
    ... def report(outcome):
    ...     return repr(outcome)
    >>> @flow
    ... def careful():
    ...     return report.submit(allow_failure(fail.submit()))
    >>> careful()
    "ValueError('no')"
    """

    __slots__ = ()


class quote(unmapped[T]):  # noqa: N801
    """Pass a value as it is: no search for futures in it. Worth it for huge containers.

    Examples
    --------
    >>> from turnout import flow, quote, task
    >>> @task
    ... def size(table):
    ...     return len(table)
    >>> @flow
    ... def measure():
    ...     return size.submit(quote(list(range(1000))))
    >>> measure()
    1000
    """

    __slots__ = ()


def find_futures(values: tuple[Any, ...] | list[Any]) -> dict[TaskFuture[Any], bool] | None:
    """Return the futures in some values, and whether their failure is allowed; None if there is nothing to replace.

    A future that stands once inside of ``allow_failure`` and once outside is not allowed to fail. ``quote`` gives an
    entry to the answer only by making it not None.
    """
    found: dict[TaskFuture[Any], bool] = {}
    special = False
    # A container may stand inside of allow_failure and outside.
    seen: set[tuple[int, bool]] = set()
    # A list, not recursion: arguments may be nested deeper than Python's stack.
    todo: list[tuple[Any, bool]] = [(value, False) for value in values]
    while todo:
        value, allowed = todo.pop()
        cls = type(value)
        if cls in PLAIN:
            continue
        if cls is TaskFuture:
            found[value] = found.get(value, True) and allowed
        elif cls is FuturePart:
            found[value.future] = found.get(value.future, True) and allowed
        elif cls is quote:
            special = True
        elif cls is allow_failure or cls is unmapped:
            special = True
            todo.append((value.value, allowed or cls is allow_failure))
        else:
            parts = _parts(value)
            if parts and (id(value), allowed) not in seen:
                seen.add((id(value), allowed))
                todo.extend((part, allowed) for part in parts if type(part) not in PLAIN)
    return found if found or special else None


def _parts(value: Any) -> list[Any] | None:
    """Return what a container holds, or None for anything else."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value) if hasattr(value, field.name)]
    return None


def replace(value: Any, resolve: Callable[[TaskFuture[Any], bool], Any]) -> Any:
    """Return a value with every future in it replaced by ``resolve(future, failure_allowed)``.

    Containers in which nothing changes are returned as they are, not copied.
    """
    return _Replacement(resolve).of(value, allowed=False)


def replace_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], resolve: Callable[[TaskFuture[Any], bool], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with every future in them replaced by ``resolve(future, failure_allowed)``."""
    # Hot path: most futures stand alone as arguments, and need no walk.
    placed = []
    for value in args:
        cls = type(value)
        if cls is TaskFuture:
            placed.append(resolve(value, False))
        else:
            placed.append(value if cls in PLAIN else replace(value, resolve))
    return tuple(placed), {name: replace(value, resolve) for name, value in kwargs.items()} if kwargs else kwargs


class _Replacement:
    """One walk that builds values anew where futures stand in them."""

    def __init__(self, resolve: Callable[[TaskFuture[Any], bool], Any]) -> None:
        self.resolve = resolve
        # Containers that the walk is inside of, by id: they may contain themselves.
        self.inside: set[int] = set()

    def of(self, value: Any, allowed: bool) -> Any:
        cls = type(value)
        if cls in PLAIN:
            return value
        if cls is TaskFuture:
            return self.resolve(value, allowed)
        if cls is FuturePart:
            return self.part(value, allowed)
        if cls is quote:
            return value.value
        if cls is allow_failure or cls is unmapped:
            return self.of(value.value, allowed or cls is allow_failure)
        if find_futures([value]) is None or id(value) in self.inside:
            return value
        self.inside.add(id(value))
        try:
            return self.container(value, allowed)
        finally:
            self.inside.discard(id(value))

    def part(self, part: FuturePart, allowed: bool) -> Any:
        whole = self.resolve(part.future, allowed)
        if part.future._type > StateType.CACHED:
            return whole  # an exception, which has no parts
        return Placeholder(whole.index, part.keys) if type(whole) is Placeholder else part.take(whole)

    def container(self, value: Any, allowed: bool) -> Any:
        if isinstance(value, dict):
            items = [(self.of(key, allowed), self.of(item, allowed)) for key, item in value.items()]
            return self.like(value, dict(items), items)
        if isinstance(value, (list, set, frozenset)):
            return self.like(value, None, [self.of(item, allowed) for item in value])
        if isinstance(value, tuple):
            parts = [self.of(item, allowed) for item in value]
            make = getattr(type(value), "_make", None)  # named tuples are made from the parts themselves
            return make(parts) if make else type(value)(parts)
        return self.dataclass(value, allowed)

    @staticmethod
    def like(value: Any, exact: Any, parts: list[Any]) -> Any:
        """Return a container of the same kind as another, with other parts."""
        cls = type(value)
        if cls is dict:
            return exact
        if cls in (list, set, frozenset):
            return cls(parts)
        copy = value.copy() if hasattr(value, "copy") else None
        if copy is None or not hasattr(copy, "clear"):
            return cls(parts)
        copy.clear()
        (copy.extend if isinstance(value, list) else copy.update)(parts)
        return copy

    def dataclass(self, value: Any, allowed: bool) -> Any:
        changes = {
            field.name: self.of(getattr(value, field.name), allowed)
            for field in dataclasses.fields(value)
            if hasattr(value, field.name)
        }
        # Not dataclasses.replace: __init__ and __post_init__ may check or compute, and did so once already.
        copy = object.__new__(type(value))
        if hasattr(value, "__dict__"):
            copy.__dict__.update(value.__dict__)
        for name, changed in changes.items():
            object.__setattr__(copy, name, changed)
        return copy


class Placeholder:
    """Stands in packed arguments for a value, or part of one, that travels beside them.

    Unpickling gives the value itself, taken from what :func:`arriving` was told; so no walk is needed on the worker.
    """

    __slots__ = ("index", "keys")

    def __init__(self, index: int, keys: tuple[Any, ...] = ()) -> None:
        self.index = index
        self.keys = keys

    def __reduce__(self) -> tuple[Callable[[int, tuple[Any, ...]], Any], tuple[int, tuple[Any, ...]]]:
        return _arrived, (self.index, self.keys)


class _Arriving(threading.local):
    value_of: Callable[[int], Any] | None = None


_arriving: Final = _Arriving()


@contextlib.contextmanager
def arriving(value_of: Callable[[int], Any]) -> Iterator[None]:
    """Let placeholders that are unpickled in this thread become ``value_of(index)``."""
    before = _arriving.value_of
    _arriving.value_of = value_of
    try:
        yield
    finally:
        _arriving.value_of = before


def _arrived(index: int, keys: tuple[Any, ...]) -> Any:
    assert _arriving.value_of is not None, "placeholders are unpickled inside of arriving() only"
    value = _arriving.value_of(index)
    for key in keys:
        value = value[key]
    return value
