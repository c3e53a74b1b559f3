"""Ctrl-C and SIGTERM while a flow runs in the main thread: they strike its code, and wait while ours is at work.

A KeyboardInterrupt between any two instructions of ours could leave a lock held or a call half submitted. So, while a
flow or a ``with runner:`` block is open in the main thread, and if nobody else handles these signals, they are handled
here: what the user wrote, and our waits, are interrupted at once; everything else is finished first.
"""

from __future__ import annotations

import _thread
import contextlib
import enum
import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ._locks import LOCK, free_in_forks
from ._stop import Stop, send, take_back

if TYPE_CHECKING:
    from ._wakeups import Wakeups

__all__ = [
    "INTERRUPTS",
    "acquire",
    "call_inner",
    "calls_flow",
    "calls_inner",
    "join",
    "sleep",
    "stop_inner",
    "wait_for",
]

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

_PACKAGE: Final = __name__.partition(".")[0]
# Parts of the package that are users of it: the command line, and what tests are made of.
_USERS: Final = (f"{_PACKAGE}.cli", f"{_PACKAGE}.testing")
# How often to look whether an interrupt that had to wait can strike now, in seconds.
_LOOK_SECONDS: Final = 0.005
# How long a wait is at most before it looks up, in seconds.
_PORTION_SECONDS: Final = 1.0


class _Place(enum.Enum):
    """Where a thread is."""

    OURS = enum.auto()
    """In code of ours, which is to be finished."""
    FLOW = enum.auto()
    """In the code of a flow, or outside of all."""
    INNER = enum.auto()
    """In the body of a task, a hook or a callback: an exception there does not end the flow."""


# Functions that do nothing but call users' code, with what that is; and those that do nothing but wait.
_callers: Final[dict[CodeType, _Place]] = {}
_waiters: Final[set[CodeType]] = set()


def _code(function: Any) -> CodeType:
    code: CodeType = function.__code__
    return code


# Threads in hooks and the like, and those of them that were asked to stop.
_inner: Final[set[int]] = set()
_stopped: Final[set[int]] = set()
_inner_lock: Final = free_in_forks(threading.Lock())


def calls_flow(function: F) -> F:
    """Mark a function that calls the body of a flow. Decorator."""
    _callers[_code(function)] = _Place.FLOW
    return function


def calls_inner(function: F) -> F:
    """Mark a function that calls other code of the user's, whose exceptions are caught by ours. Decorator."""
    _callers[_code(function)] = _Place.INNER
    return function


def waits(function: F) -> F:
    """Mark a function that waits, and may be interrupted meanwhile. Decorator."""
    _waiters.add(_code(function))
    return function


@waits
def _in_portions(wait: Callable[[float], bool], seconds: float | None = None) -> bool:
    """Wait interruptibly, for no longer than a second at a time; return whether what was waited for came in time.

    Of a signal that the system hands to another thread, as it does while one forks, the main one learns when it wakes.

    Parameters
    ----------
    wait
        Waits for some seconds, and returns whether it need not go on.
    seconds
        How long to wait, in all; None for ever.
    """
    end = math.inf if seconds is None else time.monotonic() + seconds
    left = math.inf if seconds is None else seconds
    while not wait(min(left, _PORTION_SECONDS)):
        left = end - time.monotonic()
        if left <= 0:
            return False
    return True


def wait_for(event: threading.Event, seconds: float | None = None) -> bool:
    """Wait for an event, interruptibly; return whether it came in time."""
    return _in_portions(event.wait, seconds)


def acquire(gate: threading.Lock, seconds: float | None = None) -> bool:
    """Acquire a lock, interruptibly; return whether that went in time."""
    return _in_portions(functools.partial(gate.acquire, True), seconds)


def join(thread: threading.Thread, seconds: float) -> None:
    """Wait for the end of a thread, interruptibly."""
    _in_portions(functools.partial(_joined, thread), seconds)


@waits
def _joined(thread: threading.Thread, seconds: float) -> bool:
    thread.join(seconds)
    return not thread.is_alive()


def sleep(seconds: float) -> None:
    """Sleep, interruptibly."""
    _in_portions(_slept, seconds)


@waits
def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@calls_inner
def call_inner(function: Callable[..., R], *args: Any) -> R:
    """Call code of the user's, such as a hook, whose exceptions are caught by ours.

    Raises
    ------
    Stop
        If the flow has been interrupted, and this is not the main thread.
    """
    thread = threading.get_ident()
    is_outermost = thread not in _inner
    try:
        _inner.add(thread)
        return function(*args)
    finally:
        if is_outermost:
            with _inner_lock:
                _inner.discard(thread)
                was_stopped = thread in _stopped
                _stopped.discard(thread)
            if was_stopped:
                # It may not have arrived yet, and must not hit what comes after.
                take_back()


def stop_inner() -> None:
    """Ask hooks and callbacks that run in other threads to stop: what they hold up is to end."""
    with LOCK, _inner_lock:
        for thread in _inner - _stopped - {threading.get_ident()}:
            _stopped.add(thread)
            send(thread, Stop)


class Interrupts:
    """What Ctrl-C and SIGTERM do to this process while flows run in its main thread."""

    def __init__(self) -> None:
        self.due = False
        """A KeyboardInterrupt is still to be raised in a flow's code. Hot path: asked wherever users call us."""
        self.is_ending = False
        """A flow has been interrupted, and ends."""
        self.is_command = False
        """The process is a command that runs one flow: the second signal ends it whatever it does."""
        self.order: int | None = None
        """The number of the signal that came first; None while there is none. Kept until the next flow begins."""
        self._users = 0
        self._count = 0
        self._began = 0.0
        # Each signal ends one body at most that stands between it and the flow.
        self._has_struck = False
        self._is_looking = False
        # The signal that comes next is our own, see `_look`.
        self._is_reminder = False
        self._before: dict[int, Any] = {}
        # Has the loop wake up for them in which async flows run.
        self._wakeups: Wakeups | None = None
        # One object: what a signal's handler is, is asked by identity.
        self._handler: Callable[[int, FrameType | None], None] = self._handle
        # How to end the flows that run in other threads.
        self._elsewhere: dict[int, Callable[[], object]] = {}
        self._registered: set[bool] = set()

    @contextlib.contextmanager
    def handled(self, end: Callable[[], object]) -> Iterator[None]:
        """Handle the signals in this block, if it is in the main thread and nobody else handles them.

        Parameters
        ----------
        end
            Ends what runs in the block, from any thread; called if it is in another thread than the main one, and that
            was ended by Ctrl-C.

        Raises
        ------
        KeyboardInterrupt
            At the end of the outermost block, if one had to wait until then. After SIGTERM the process ends there, by
            that signal, unless it is a command.
        """
        if threading.current_thread() is not threading.main_thread():
            self._elsewhere[id(end)] = end
            self._register()
            try:
                yield
            finally:
                del self._elsewhere[id(end)]
            return
        # Not by the order of blocks: async flows overlap.
        self._users += 1
        if self._users == 1:
            self._take_over()
        self._stay_awake()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._give_back()

    def _take_over(self) -> None:
        self._reset()
        self.order = None
        # What is ignored, as nohup wants it, or handled by somebody else, stays so. Who has a way of their own for
        # Ctrl-C would not like one of ours for SIGTERM. An event loop cancels its main task, in which the flow is.
        interrupt = signal.getsignal(signal.SIGINT)
        is_ours = interrupt is signal.default_int_handler or _is_of_a_loop(interrupt)
        if not (is_ours or interrupt is signal.SIG_IGN):
            return
        with contextlib.suppress(ValueError):  # this interpreter has no signals
            if is_ours:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._handler)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._handler)

    def _stay_awake(self) -> None:
        asyncio = sys.modules.get("asyncio")
        loop = None if asyncio is None else asyncio._get_running_loop()
        if loop is not None and self._before and self._wakeups is None:
            from ._wakeups import Wakeups

            self._wakeups = Wakeups(loop)

    def _give_back(self) -> None:
        if self._wakeups is not None:
            self._wakeups.close()
            self._wakeups = None
        # None of our own reminders may come after this.
        while self._is_looking:
            time.sleep(_LOOK_SECONDS / 10)
        # SIGINT last: from then on a KeyboardInterrupt may come anywhere.
        while self._before:
            number, handler = self._before.popitem()
            with contextlib.suppress(ValueError):  # a generator that is closed in another thread
                signal.signal(number, handler)
        was_due = self.due
        self._reset()
        if self.order == signal.SIGTERM and not self.is_command:
            os.kill(os.getpid(), signal.SIGTERM)
        if was_due:
            raise KeyboardInterrupt

    def _reset(self) -> None:
        self.due = self.is_ending = self._has_struck = self._is_reminder = False
        self._count = 0

    # Signals

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_reminder, self._is_reminder = self._is_reminder, False
        if not is_reminder:
            self.order = self.order or number
            self._began = self._began if self._count else time.monotonic()
            self._count += 1
            if self._count > 1 and (self.is_command or self.due or self.is_ending):
                self._end_at_once(number)
            loops = self._before.get(signal.SIGINT)
            if callable(loops) and _is_of_a_loop(loops):
                loops(number, frame)
                return
            self.due = True
            self._has_struck = False
        if self._may_strike(_place(frame)):
            raise KeyboardInterrupt

    def _may_strike(self, place: _Place) -> bool:
        """Return whether the interrupt that is due, if one is, is to be raised in a place; keep an eye on it if not."""
        if not self.due:
            return False
        strikes = place is _Place.FLOW or (place is _Place.INNER and not self._has_struck)
        if place is _Place.FLOW:
            self.due = False
        elif strikes:
            self._has_struck = True
        if self.due and self._users and not self._is_looking:
            self._is_looking = True
            # No threading.Thread: that takes locks which the code that was interrupted may hold.
            _thread.start_new_thread(self._look, (threading.get_ident(),))
        return strikes

    def _end_at_once(self, number: int) -> None:
        if hasattr(sys, "ps1") and not self.is_command:
            # At a prompt, which stays.
            self.due = False
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _look(self, main: int) -> None:
        """Remind the main thread of what is due when it is where that may strike. Runs in a thread of its own."""
        try:
            while self.due and self._users:
                place = _place(sys._current_frames().get(main))
                if place is _Place.FLOW or (place is _Place.INNER and not self._has_struck):
                    self._is_reminder = True
                    # It may be waiting in C code, which only a signal ends.
                    signal.pthread_kill(main, next(iter(self._before)))
                time.sleep(_LOOK_SECONDS)
        finally:
            self._is_looking = False

    # In code of ours

    def started(self) -> None:
        """Take note that a runner has started, which may have loaded modules."""
        if self._elsewhere:
            self._register()

    @property
    def seconds(self) -> float:
        """How long ago the signal came that came first."""
        return time.monotonic() - self._began

    @property
    def can_strike(self) -> bool:
        """Whether this thread is one that Ctrl-C strikes."""
        return bool(self._before) and threading.current_thread() is threading.main_thread()

    def check(self) -> None:
        """Raise the KeyboardInterrupt that is due, if this is the main thread, and only a flow's code is around.

        Raises
        ------
        KeyboardInterrupt
            Then.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if self.due and is_main and _around(sys._getframe(1)) is _Place.FLOW:
            self.due = False
            raise KeyboardInterrupt

    def ends(self, error: BaseException) -> None:
        """Note that a flow ends with an exception: it may have been interrupted, or cancelled because of that."""
        was_interrupted = isinstance(error, KeyboardInterrupt) or (self._count and not isinstance(error, Exception))
        if was_interrupted and threading.current_thread() is threading.main_thread():
            self.is_ending = True

    def _register(self) -> None:
        """Have flows of other threads be ended before concurrent.futures waits for its own: the last comes first."""
        has_pools = "concurrent.futures.thread" in sys.modules
        if has_pools not in self._registered:
            self._registered.add(has_pools)
            # What concurrent.futures does: called when the main thread has ended, before others are waited for.
            threading._register_atexit(self.end_elsewhere)  # type: ignore[attr-defined]

    def end_elsewhere(self) -> None:
        """End the flows of other threads, if Ctrl-C has ended the main one. The interpreter would wait for them."""
        last = getattr(sys, "last_type", None)
        if isinstance(last, type) and issubclass(last, KeyboardInterrupt):
            for end in list(self._elsewhere.values()):
                end()


INTERRUPTS: Final = Interrupts()


def _place(frame: FrameType | None) -> _Place:
    """Return where a thread is whose innermost frame this is."""
    innermost = frame
    while frame is not None and not _is_ours(frame):
        frame = frame.f_back
    if frame is None:
        return _Place.FLOW
    code = frame.f_code
    if code in _waiters or (code in _callers and frame is not innermost):
        return _around(frame)
    return _Place.OURS


def _around(frame: FrameType | None) -> _Place:
    """Return whose code calls ours in a frame. A flow in the body of a task is part of that."""
    while frame is not None:
        if _callers.get(frame.f_code) is _Place.INNER:
            return _Place.INNER
        frame = frame.f_back
    return _Place.FLOW


def _is_of_a_loop(handler: Any) -> bool:
    """Return whether a signal's handler is the one of ``asyncio.run``."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(getattr(getattr(handler, "func", None), "__self__", None), asyncio.Runner)


def _is_ours(frame: FrameType) -> bool:
    name: Any = frame.f_globals.get("__name__")
    if not isinstance(name, str) or name.partition(".")[0] != _PACKAGE:
        return False
    return not name.startswith(_USERS)
