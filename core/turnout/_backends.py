"""Which runners are started, by whom, and until when."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Sequence
from typing import Final

from ._dispatch import DirectDispatcher, Dispatcher
from ._inline import InlineDispatcher
from ._locks import free_in_forks
from ._packing import PackedFunctions
from ._signals import INTERRUPTS, join, wait_for
from ._waiting import logged
from ._window import WindowDispatcher
from .runner import TaskRunner

__all__ = ["Backends", "hold", "release"]

logger = logging.getLogger("turnout")

# How long after Ctrl-C runners get to stop, in seconds, and how long at least.
_PATIENCE: Final = 4.5
_LEAST_PATIENCE: Final = 1.5
# How often a start that nobody wants any more is told so, in seconds.
_STEP: Final = 0.1


def _dispatcher(runner: TaskRunner) -> Dispatcher:
    if runner.capabilities.inline:
        return InlineDispatcher(runner)
    if runner.capabilities.in_process and runner.capabilities.keeps_order:
        return DirectDispatcher(runner)
    return WindowDispatcher(runner)


class _Held:
    """A runner with those who use it: started by the first, stopped by the last."""

    def __init__(self, runner: TaskRunner) -> None:
        self.runner = runner
        self.users = 0
        self.lock = threading.Lock()
        self.dispatcher: Dispatcher | None = None


_held: Final[dict[int, _Held]] = {}


_held_lock: Final = free_in_forks(threading.Lock())


def hold(runner: TaskRunner) -> Dispatcher:
    """Start a runner, or share it if it is started; :func:`release` must follow.

    Raises
    ------
    RunnerStartError
        If it doesn't come up.
    """
    with _held_lock:
        held = _held.setdefault(id(runner), _Held(runner))
        held.users += 1
    # Only what can be given up: child processes may end with the thread that started them, as those of a Ray do.
    if INTERRUPTS.can_strike and type(runner).give_up is not TaskRunner.give_up:
        return _Start(held).wait()
    try:
        return _started(held)
    except BaseException:
        release(runner)
        raise


def _started(held: _Held) -> Dispatcher:
    # Only those who want the same runner wait while it starts.
    with held.lock:
        if held.dispatcher is None:
            dispatcher = _dispatcher(held.runner)
            dispatcher.start()
            held.dispatcher = dispatcher
            INTERRUPTS.started()
        return held.dispatcher


class _Start:
    """The start of a runner in a thread of its own, so that Ctrl-C need not wait for it, nor leave it half done.

    A cluster takes seconds to start. If nobody wants it any more, it is stopped as soon as it has started.
    """

    def __init__(self, held: _Held) -> None:
        self._held = held
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._is_wanted = True
        self._dispatcher: Dispatcher | None = None
        self._error: BaseException | None = None
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="turnout-start", daemon=True)

    def wait(self) -> Dispatcher:
        """Return what the runner has become."""
        self._thread.start()
        try:
            wait_for(self._is_over)
        except BaseException as error:
            INTERRUPTS.ends(error)
            with self._lock:
                self._is_wanted = False
                is_over = self._is_over.is_set()
            if is_over:
                self._undo()
            else:
                self._end()
            raise
        if self._error is not None:
            release(self._held.runner)
            raise self._error
        assert self._dispatcher is not None, "a start has an outcome"
        return self._dispatcher

    def _end(self) -> None:
        """Have the start end, and wait for that, though not for long."""
        while self._thread.is_alive() and INTERRUPTS.seconds < _PATIENCE:
            with logged("%r did not give up its start.", self._held.runner):
                self._held.runner.give_up()
            join(self._thread, _STEP)

    def _run(self) -> None:
        try:
            self._dispatcher = _started(self._held)
        except BaseException as error:
            self._error = error
        with self._lock:
            self._is_over.set()
            is_wanted = self._is_wanted
        if not is_wanted:
            self._undo()

    def _undo(self) -> None:
        with logged("A runner that was no longer wanted did not stop cleanly."):
            release(self._held.runner)


def release(runner: TaskRunner) -> None:
    """Let go of a runner; the last one to do so stops it."""
    with _held_lock:
        held = _held[id(runner)]
        held.users -= 1
        if held.users:
            return
    # The entry stays while the backend stops: whoever wants the runner again meanwhile waits for that.
    with held.lock:
        with _held_lock:
            if held.users > 0 or _held.get(id(runner)) is not held:
                return
        dispatcher, held.dispatcher = held.dispatcher, None
        try:
            if dispatcher is not None:
                dispatcher.stop()
        finally:
            with _held_lock:
                if held.users == 0:
                    _held.pop(id(runner), None)


class Backends:
    """The started runners that a flow and its subflows share. Equal runners are one."""

    def __init__(self) -> None:
        self.functions = PackedFunctions()
        self._lock = threading.Lock()
        self._dispatchers: list[tuple[TaskRunner, Dispatcher]] = []
        self._here: InlineDispatcher | None = None

    @property
    def here(self) -> InlineDispatcher:
        """What runs calls in the thread that makes them."""
        if self._here is None:
            self._here = InlineDispatcher()
        return self._here

    def dispatcher_for(self, runner: TaskRunner) -> Dispatcher:
        """Return the dispatcher of a runner, started if it is not.

        Raises
        ------
        RunnerStartError
            If it doesn't come up.
        """
        with self._lock:
            for known, dispatcher in self._dispatchers:
                if known is runner or known == runner:
                    return dispatcher
            dispatcher = hold(runner)
            self._dispatchers.append((runner, dispatcher))
            return dispatcher

    def slots(self) -> int:
        """Return how many calls all of them together can run at once, now."""
        return sum(dispatcher.runner.slots() for _, dispatcher in [*self._dispatchers] if dispatcher.runner is not None)

    def close(self) -> None:
        """Let go of all of them. After Ctrl-C that must not take long."""
        with self._lock:
            dispatchers, self._dispatchers = self._dispatchers, []
        if dispatchers and INTERRUPTS.is_ending and INTERRUPTS.can_strike:
            # A hook or a backend may be stuck. What is left then ends with the process.
            thread = threading.Thread(target=self._let_go, args=(dispatchers,), name="turnout-stop", daemon=True)
            thread.start()
            join(thread, max(_LEAST_PATIENCE, _PATIENCE - INTERRUPTS.seconds))
        else:
            self._let_go(dispatchers)

    def _let_go(self, dispatchers: Sequence[tuple[TaskRunner, Dispatcher]]) -> None:
        errors: list[Exception] = []
        for runner, _ in dispatchers:
            try:
                release(runner)
            except Exception as error:
                errors.append(error)
        if self._here is not None:
            self._here.stop()
        for problem in errors:
            logger.error("A runner did not stop cleanly.", exc_info=problem)
