"""Asking bodies to stop: the exception that is raised in their threads, and how it gets there."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final, ParamSpec, TypeVar

from ._locks import LOCK

__all__ = ["Stop", "Stopper", "outdoors", "send", "sheltered", "take_back"]


P = ParamSpec("P")
R = TypeVar("R")


class Stop(BaseException):
    """Raised in the thread of a body that is cancelled or out of time. Users see it only if they catch everything."""


class Stopper:
    """Lets any thread ask the bodies of a batch to stop that run in another one: those under way, and those to come.

    Python code stops at its next step; C code, such as ``time.sleep``, when it returns.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether the bodies have been asked to stop."""
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None

    def ask(self) -> None:
        """Ask the bodies to stop. Twice is once."""
        with self._lock:
            if self.asked:
                return
            self.asked = True
            if self._stop is not None:
                self._stop()

    @contextlib.contextmanager
    def body(self, stop: Callable[[], object]) -> Iterator[None]:
        """Let what runs in this context be stopped by ``stop``, which is called once at most, and in any thread.

        Raises
        ------
        Stop
            If the bodies were asked to stop before.
        """
        with self._lock:
            if self.asked:
                raise Stop
            self._stop = stop
        try:
            yield
        finally:
            with self._lock:
                self._stop = None
                if self.asked:
                    # A Stop may not have arrived yet, and must not hit what comes after.
                    take_back()  # type: ignore[unreachable]  # another thread sets it


# Threads that hand calls to a backend, and what was sent to them meanwhile.
_sheltered: Final[set[int]] = set()
_postponed: Final[dict[int, type[BaseException]]] = {}
if hasattr(os, "register_at_fork"):
    # A pool's worker may be forked where a call is handed to the pool, and runs bodies there.
    os.register_at_fork(after_in_child=_sheltered.clear)
    os.register_at_fork(after_in_child=_postponed.clear)


def sheltered(function: Callable[P, R]) -> Callable[P, R]:
    """Keep from the thread what is sent to it in this function; it is raised when that is over. Decorator.

    A body that submits may be asked to stop at any step. If that was while a call is on its way to the backend, the
    room that it takes there would never be free again, and a pool might have a process of which it doesn't know.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        thread = threading.get_ident()
        if thread in _sheltered:
            return function(*args, **kwargs)
        _sheltered.add(thread)
        try:
            return function(*args, **kwargs)
        finally:
            _sheltered.discard(thread)
            # After that: who sends something now either sees that, or is seen here.
            if _postponed and (exception := _postponed.pop(thread, None)) is not None:
                raise exception

    return call


def outdoors(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call what runs a body; it may be stopped as others are, though a backend runs it where it is handed over."""
    thread = threading.get_ident()
    if thread not in _sheltered:
        return function(*args, **kwargs)
    _sheltered.discard(thread)
    try:
        return function(*args, **kwargs)
    finally:
        _sheltered.add(thread)


def send(thread: int, exception: type[BaseException]) -> None:
    """Have an exception raised in a thread at its next step in Python code, but neither sheltered nor with ``LOCK``."""
    import ctypes  # a slow import, for something seldom

    with LOCK:
        _postponed[thread] = exception
        if thread in _sheltered or _postponed.pop(thread, None) is None:
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(exception))


def take_back() -> None:
    """See to it that what was sent to this thread is not raised in it any more.

    It is raised here. Up to Python 3.12 the interpreter's flag that there is something to raise falls only when that is
    done: while it stands, all threads run slower, and 3.11 hangs in the next function that a debugger traces.
    """
    with contextlib.suppress(Stop):
        # In place of what has not arrived; if that has, it is one more.
        send(threading.get_ident(), Stop)
        while True:
            pass
