"""Waiting in threads without blocking those on whom the end of the wait depends."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ._context import current_scope
from ._locks import LOCK
from ._signals import INTERRUPTS, acquire
from ._stop import Stop
from .errors import WouldDeadlockError

if TYPE_CHECKING:
    from ._future import TaskFuture

__all__ = ["LOCK", "Arrivals", "Away", "countdown", "delivering", "is_delivering", "logged", "outside", "wait_for_gate"]

logger = logging.getLogger("turnout")

R = TypeVar("R")


class _Delivering(threading.local):
    """Whether the current thread delivers outcomes, so that waiting in it could wait for ever."""

    now = False


_delivering: Final = _Delivering()


@contextlib.contextmanager
def delivering() -> Iterator[None]:
    """Mark the current thread as one that delivers outcomes: user code inside must not wait for others."""
    before = _delivering.now
    _delivering.now = True
    try:
        yield
    finally:
        _delivering.now = before


def is_delivering() -> bool:
    """Return whether the current thread delivers outcomes, so that it must not wait for any."""
    return _delivering.now


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Run user code as outside of every run: on an inline runner the thread that delivers is in the middle of one."""
    token = current_scope.set(None)
    try:
        yield
    finally:
        current_scope.reset(token)


@contextlib.contextmanager
def logged(message: str, *args: object) -> Iterator[None]:
    """Log whatever user code raises that was called on the way, even SystemExit: others depend on this thread.

    Only Ctrl-C in the main thread goes on: it is meant for the whole program. Where it is still due, it will come.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            if INTERRUPTS.due:
                return
            raise
        if isinstance(error, Stop):
            return
        logger.exception(message, *args)


class Away(contextlib.ExitStack):
    """The slots that a thread gives to others while it waits, and how it waits meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.wait: Callable[[threading.Lock, float], bool] = _acquire


def _acquire(gate: threading.Lock, timeout: float) -> bool:
    return acquire(gate, None if timeout < 0 else timeout)


class Arrivals(Generic[R]):
    """A queue with one consumer, whose waiting knows about slots and deadlocks (unlike :class:`queue.Queue`)."""

    __slots__ = ("_gate", "_items")

    def __init__(self) -> None:
        self._items: deque[R] = deque()
        self._gate = threading.Lock()
        self._gate.acquire()

    def put(self, item: R) -> None:
        """Add an item; any thread may."""
        with LOCK:
            self._items.append(item)
            if len(self._items) == 1:
                self._gate.release()

    def wait(self, timeout: float | None, future: TaskFuture[Any] | None = None) -> bool:
        """Wait for an item, and return whether there is one to take.

        Parameters
        ----------
        timeout
            Seconds, or None.
        future
            The only one that can bring it.
        """
        return bool(self._items) or wait_for_gate(self._gate, timeout, future, keep=True)

    def take(self) -> R:
        """Return the item that has been there longest."""
        with LOCK:
            item = self._items.popleft()
            if not self._items:
                self._gate.acquire()
            return item


def wait_for_gate(
    gate: threading.Lock, timeout: float | None, future: TaskFuture[Any] | None = None, *, keep: bool = False
) -> bool:
    """Wait until another thread opens a gate, giving the caller's slot to others meanwhile.

    Parameters
    ----------
    gate
        A lock that is held now and will be released.
    timeout
        Seconds, or None.
    future
        The one whose call opens the gate.
    keep
        Leave the gate open behind.

    Raises
    ------
    WouldDeadlockError
        If the gate would stay closed for ever, as its opening depends on this thread.
    """
    if gate.acquire(blocking=False):
        passed = True
    elif timeout is not None and timeout <= 0:
        return False
    elif _delivering.now:
        raise WouldDeadlockError(
            "This thread delivers outcomes (it is in a callback, a hook, or a runner's event loop), so what it waits "
            "for might never come. Submit a task that depends on the future, use `await`, or wait in the flow's body."
        )
    else:
        scope = current_scope.get()
        awaited = future if timeout is None else None
        with scope.engine.waiting(scope, awaited) if scope is not None else Away() as away:
            passed = away.wait(gate, -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
    if passed and keep:
        gate.release()
    return passed


def countdown(timeout: float | None) -> Callable[[], float | None]:
    """Return a function that tells how many seconds of a timeout remain, never less than 0."""
    if timeout is None:
        return lambda: None
    end = time.monotonic() + timeout
    return lambda: max(0.0, end - time.monotonic())
