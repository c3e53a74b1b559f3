"""The result of a call that may not be there yet: one class for all runners."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from ._context import current_scope
from ._serialization import Parcel
from ._signals import INTERRUPTS, call_inner
from ._state import State, StateType
from ._waiting import LOCK, countdown, delivering, logged, outside, wait_for_gate
from .errors import CancelledRun, CrashedRun, SerializationError, UpstreamFailed, WouldDeadlockError
from .runner import Stored

if TYPE_CHECKING:
    from types import TracebackType

    from ._call import Call
    from ._context import Scope
    from ._task import Task

__all__ = ["PACKED", "Failure", "FutureList", "FuturePart", "TaskFuture", "own_end"]

R = TypeVar("R")


COMPLETED: Final = StateType.COMPLETED
UPSTREAM_FAILED: Final = StateType.UPSTREAM_FAILED
CANCELLED: Final = StateType.CANCELLED

PACKED: Final = frozenset({Parcel, Stored})
"""What a result is until somebody asks for it."""

logger = logging.getLogger("turnout")


class Failure:
    """Why a call has no result: its exception, or the call upstream whose exception it is."""

    __slots__ = ("error", "root", "traceback")

    def __init__(self, error: BaseException | None = None, root: TaskFuture[Any] | None = None) -> None:
        self.error = error
        # Each raise adds the raiser's frames to an exception's traceback. Starting from this one every time keeps it
        # from growing with every look.
        self.traceback: TracebackType | None = error.__traceback__ if error is not None else None
        self.root = root


class TaskFuture(Generic[R]):
    """A call that was submitted: its state now, and its result when there is one.

    ``task.submit`` and ``task.map`` make futures; nobody else does. Given to another call, alone or inside of lists,
    tuples, sets, dicts and dataclasses, a future stands for its result. ``future[key]`` stands for a part of it.

    Examples
    --------
    >>> from turnout import flow, task
    >>> @task
    ... def double(x):
    ...     return 2 * x
    >>> @flow
    ... def four():
    ...     future = double.submit(1)
    ...     return double.submit(future).result()
    >>> four()
    4
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_data",
        "_dependents",
        "_index",
        "_listeners",
        "_looked",
        "_name",
        "_number",
        "_scope",
        "_task",
        "_time",
        "_type",
    )

    # The record that the engine keeps while the call is not final; None from then on, so that arguments can go.
    _call: Call | None
    # The result (packed until somebody asks for it), or a Failure. Meaningless before the call is final.
    _data: Any
    _dependents: list[Call] | None
    _listeners: list[Callable[[], object]] | None
    # What the call goes by in events; not set if nobody listened when it was submitted.
    _number: int

    def __init__(self, task: Task[..., Any], scope: Scope, index: int) -> None:
        self._task = task
        self._scope = scope
        self._index = index
        self._type: StateType = StateType.PENDING
        self._call = None
        self._data = None
        self._dependents = None
        self._listeners = None
        self._looked = False
        self._name: str | None = None
        self._time = 0.0

    @property
    def name(self) -> str:
        """The name of the task run, such as ``"add-0"``."""
        return self._name or f"{self._scope.prefix}{self._task.name}-{self._index}"

    @property
    def task_run_id(self) -> str:
        """The id of the task run, unlike that of every other run."""
        return f"{self._scope.engine.run_id}/{self.path}"

    @property
    def path(self) -> str:
        """The place of the call below its root flow, which does not depend on names given to runs."""
        return f"{self._scope.path}/{self._task.name}-{self._index}"

    @property
    def state(self) -> State:
        """What has become of the call. Asking for the state of a call that failed counts as looking at the failure."""
        if INTERRUPTS.due:
            INTERRUPTS.check()
        return self._state(look=True)

    def result(self, timeout: float | None = None) -> R:
        """Wait for the call and return its result, or raise what it raised.

        Parameters
        ----------
        timeout
            How long to wait at most, in seconds; None waits for ever. The call itself runs on.

        Raises
        ------
        TimeoutError
            If the call is not over in time.
        UpstreamFailed, CrashedRun, CancelledRun, TaskRunTimeoutError
            If the call has no result, and not because its body raised.
        WouldDeadlockError
            In a callback or hook, if the call is not over: the waiting thread would have to deliver the result. In a
            task, without a timeout, if the call waits for that task, or is that task's own.
        """
        if INTERRUPTS.due:
            INTERRUPTS.check()
        if self._type < COMPLETED:
            self._wait(timeout)
        if self._type is COMPLETED:
            data = self._data
            return data if type(data) not in PACKED else self._value()
        return self._other_result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the call and return the exception that ``result`` would raise, or None.

        Parameters
        ----------
        timeout
            How long to wait at most, in seconds; None waits for ever.

        Raises
        ------
        TimeoutError
            If the call is not over in time.
        """
        if INTERRUPTS.due:
            INTERRUPTS.check()
        if self._type < COMPLETED:
            self._wait(timeout)
        return None if self._type <= StateType.CACHED else self._error()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the call is over, and return whether it is. Raises nothing, and is no look at a failure.

        Parameters
        ----------
        timeout
            How long to wait at most, in seconds; None waits for ever.
        """
        if INTERRUPTS.due:
            INTERRUPTS.check()
        with contextlib.suppress(TimeoutError):
            if self._type < COMPLETED:
                self._wait(timeout)
        return self._type >= COMPLETED

    def done(self) -> bool:
        """Return whether the call is over, in whatever way."""
        if INTERRUPTS.due:
            INTERRUPTS.check()
        return self._type >= COMPLETED

    def running(self) -> bool:
        """Return whether the body is running now, as far as the runner tells."""
        if INTERRUPTS.due:
            INTERRUPTS.check()
        return self._type is StateType.RUNNING

    def cancelled(self) -> bool:
        """Return whether the call was cancelled."""
        if INTERRUPTS.due:
            INTERRUPTS.check()
        return self._type is CANCELLED

    def cancel(self) -> bool:
        """Cancel the call and everything that depends on it; return whether that took.

        A call that has not begun never will. The body of a running one is stopped as the runner can: killed on
        processes, asked on threads; on an executor it runs on, and ``cancel`` returns False.
        """
        call = self._call
        return call is not None and call.engine.cancel(call)

    def add_done_callback(self, callback: Callable[[TaskFuture[R]], object]) -> None:
        """Call ``callback(future)`` once the call is over, or now if it is.

        It runs in the thread that delivers the outcome, so it must be quick and must not wait for other futures. What
        it raises is logged.
        """
        if self._scope.engine.is_dry:
            return  # the call never was, so it is nothing that has ended
        if not self._listen(functools.partial(_deliver, callback, self)):
            _call_back(callback, self)

    def __await__(self) -> Generator[Any, None, R]:
        if self._type < COMPLETED:
            yield from self._over().__await__()
        return self.result()

    def __getitem__(self, key: Any) -> FuturePart:
        return FuturePart(self, (key,))

    def __iter__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} can't be walked over: its result is not there yet. "
            "Use task.map(future), future[0], or future.result()."
        )

    def __reduce__(self) -> NoReturn:
        raise SerializationError(
            f"The future of {self.name!r} can't travel inside of an object or a closure. Pass it to submit as an "
            "argument, alone or in a list, tuple, set, dict or dataclass, or pass its result()."
        )

    def __repr__(self) -> str:
        return f"<TaskFuture {self.name} {self._type.name.lower()}>"

    def _repr_html_(self) -> str:
        from ._html import Row, card

        type_, outcome = self._told()
        is_over = Row("result" if type_ <= StateType.CACHED else "error", outcome)
        return card("TaskFuture", self.name, [Row("state", State(type_).name), is_over], state=type_.name)

    # What follows is for the engine and for the functions of this module.

    def _listen(self, listener: Callable[[], object]) -> bool:
        """Have a listener called when the call is over; return False, and don't, if it is."""
        with LOCK:
            if self._type >= COMPLETED:
                return False
            if self._listeners is None:
                self._listeners = [listener]
            else:
                self._listeners.append(listener)
            return True

    def _forget(self, listener: Callable[[], object]) -> None:
        with LOCK, contextlib.suppress(ValueError):
            if self._listeners is not None:
                self._listeners.remove(listener)

    def _wait(self, timeout: float | None) -> None:
        gate = threading.Lock()
        gate.acquire()
        if not self._listen(gate.release):
            return
        try:
            if not wait_for_gate(gate, timeout, self):
                raise TimeoutError(f"{self.name} is {self._type.name.lower()} still, after {timeout} s.")
        finally:
            self._forget(gate.release)

    async def _over(self) -> None:
        import asyncio  # slow to load, and most programs don't wait this way

        # Longer circles are not looked for: what a coroutine awaits may be one of several things, or have a time limit.
        if self._type < COMPLETED and getattr(current_scope.get(), "future", None) is self:
            raise own_end(self)
        loop = asyncio.get_running_loop()
        over = loop.create_future()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed: then nobody waits any more
                loop.call_soon_threadsafe(lambda: None if over.done() else over.set_result(None))

        if not self._listen(tell):
            return
        try:
            await over
        finally:
            self._forget(tell)

    def _told(self) -> tuple[StateType, str]:
        """Return the type of the state, and the outcome in one line, without waiting, unpacking or looking at it."""
        from ._html import first_line, short

        with LOCK:
            type_, data = self._type, self._data
        if type_ < COMPLETED:
            return type_, ""
        if type_ <= StateType.CACHED:
            return type_, "not unpacked yet" if type(data) in PACKED else short(data)
        return type_, first_line(summary(self._error(look=False), type_))

    def _state(self, *, look: bool) -> State:
        with LOCK:
            type_, data, timestamp = self._type, self._data, self._time
        if type_ < COMPLETED:
            return State(type_, None, timestamp)
        if type_ <= StateType.CACHED:
            return State(type_, None, timestamp, self._value() if type(data) in PACKED else data)
        error = self._error(look=look)
        return State(type_, summary(error, type_), timestamp, error)

    def _value(self) -> R:
        """Return the result of a completed call, unpacked if it has not been."""
        packed = self._data
        if type(packed) not in PACKED:
            return packed  # type: ignore[no-any-return]
        parcel = self._fetched(packed) if type(packed) is Stored else packed
        try:
            value: R = parcel.load()
        except Exception as error:
            raise SerializationError(f"The result of {self.name!r} can't be unpacked here: {error!r}") from error
        with LOCK:
            # Somebody else may have unpacked it meanwhile; all must see one object.
            if self._data is packed:
                self._data = value
            return self._data  # type: ignore[no-any-return]

    def _fetched(self, stored: Stored) -> Parcel:
        """Return the result that stayed on a backend."""
        try:
            return stored.fetch()
        except Exception as error:
            raise CrashedRun(f"The result of {self.name} is lost: {brief(error)}") from error

    def _other_result(self) -> R:
        if self._type is StateType.CACHED:
            return self._value()
        error = self._error()
        try:
            raise error.with_traceback(self._data.traceback)
        finally:
            del error  # or the traceback would hold this frame, and this frame the traceback

    def _error(self, *, look: bool = True) -> BaseException:
        """Return the exception of a call without a result, and remember that somebody looked.

        The exception of a call that failed because of another one holds the other's, so looking at it is looking at
        both.
        """
        failure: Failure = self._data
        if look:
            self._looked = True
            if failure.root is not None:
                failure.root._looked = True
        if failure.error is None:
            failure.error = self._second_hand(failure.root)
        return failure.error

    def _second_hand(self, root: TaskFuture[Any] | None) -> BaseException:
        if root is None or self._type is CANCELLED:
            return CancelledRun(f"{self.name} was cancelled.")
        cause = root._error(look=False)
        error = UpstreamFailed(f"{self.name} did not run, because {root.name} has no result: {brief(cause)}", root.name)
        error.__cause__ = cause
        return error


class FuturePart:
    """A part of a result that may not be there yet: ``future["key"]``, ``future[0]``, ``future[0]["key"]``.

    Given to a call it makes that call depend on the whole, and stands for the part.
    """

    __slots__ = ("future", "keys")

    def __init__(self, future: TaskFuture[Any], keys: tuple[Any, ...]) -> None:
        self.future = future
        self.keys = keys

    def __getitem__(self, key: Any) -> FuturePart:
        return FuturePart(self.future, (*self.keys, key))

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{self!r} can't be walked over: its result is not there yet. Use {self!r}.result().")

    def take(self, value: Any) -> Any:
        """Return this part of a whole."""
        for key in self.keys:
            value = value[key]
        return value

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the whole, and return the part; see :meth:`TaskFuture.result`."""
        return self.take(self.future.result(timeout))

    def done(self) -> bool:
        """Return whether the call that makes the whole is over."""
        return self.future.done()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the call that makes the whole is over, and return whether it is."""
        return self.future.wait(timeout)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.take((yield from self.future.__await__()))

    def __repr__(self) -> str:
        return f"{self.future!r}" + "".join(f"[{key!r}]" for key in self.keys)


class FutureList(list[TaskFuture[R]]):
    """The futures of a map, in order of the elements."""

    def result(self, timeout: float | None = None) -> list[R]:
        """Wait for all and return their results in order, or raise what the first that failed raised.

        Parameters
        ----------
        timeout
            How long to wait for all of them together, in seconds; None waits for ever.
        """
        remaining = countdown(timeout)
        return [future.result(remaining()) for future in self]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all are over, and return whether they are.

        Parameters
        ----------
        timeout
            How long to wait for all of them together, in seconds; None waits for ever.
        """
        remaining = countdown(timeout)
        for future in self:
            future.wait(remaining())
        return all(future.done() for future in self)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(futures)} {type_.name.lower()}" for type_, futures in self._by_state().items())
        return f"<FutureList of {len(self)}{': ' * bool(counts)}{counts}>"

    def _repr_html_(self) -> str:
        from ._html import Row, card

        rows = []
        for type_, futures in self._by_state().items():
            first = f", first {futures[0].name}: {futures[0]._told()[1]}" if type_ > StateType.CACHED else ""
            rows.append(Row(State(type_).name, f"{len(futures):,}{first}", type_.name))
        return card("FutureList", f"{len(self):,} call{'s' * (len(self) != 1)}", rows)

    def _by_state(self) -> dict[StateType, list[TaskFuture[R]]]:
        """Return the futures by the types of their states, in the order of these."""
        by_state: dict[StateType, list[TaskFuture[R]]] = {}
        for future in self:
            if isinstance(future, TaskFuture):  # it is a list, and may hold anything
                by_state.setdefault(future._type, []).append(future)
        return dict(sorted(by_state.items()))


def own_end(future: TaskFuture[Any]) -> WouldDeadlockError:
    """Return the error for a body that waits for the end of its own call."""
    return WouldDeadlockError(f"Task {future.name!r} waits for its own end, which would never come.")


def summary(error: BaseException | None, type_: StateType) -> str | None:
    """Return the message of a state without a result."""
    if error is None:
        return None
    return brief(error) if type_ in (StateType.FAILED, StateType.CRASHED) else str(error)


def brief(error: BaseException) -> str:
    """Return an exception in one line of at most 200 characters."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # a __str__ of the user's may raise
        text = type(error).__name__
    line = text.partition("\n")[0]
    return line if len(line) <= 200 else line[:197] + "..."


def _deliver(callback: Callable[[TaskFuture[Any]], object], future: TaskFuture[Any]) -> None:
    with delivering(), outside():
        _call_back(callback, future)


def _call_back(callback: Callable[[TaskFuture[Any]], object], future: TaskFuture[Any]) -> None:
    with logged("A done callback of %r raised.", future.name):
        call_inner(callback, future)
