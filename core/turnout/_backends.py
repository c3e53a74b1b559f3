"""Which runners are started, by whom, and until when."""

from __future__ import annotations

import logging
import threading
from typing import Final

from ._dispatch import DirectDispatcher, Dispatcher
from ._inline import InlineDispatcher
from ._locks import free_in_forks
from ._packing import PackedFunctions
from ._window import WindowDispatcher
from .runner import TaskRunner

__all__ = ["Backends", "hold", "release"]

logger = logging.getLogger("turnout")


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
    try:
        # Only those who want the same runner wait while it starts.
        with held.lock:
            if held.dispatcher is None:
                dispatcher = _dispatcher(runner)
                dispatcher.start()
                held.dispatcher = dispatcher
            return held.dispatcher
    except BaseException:
        release(runner)
        raise


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

    def close(self) -> None:
        """Let go of all of them."""
        with self._lock:
            dispatchers, self._dispatchers = self._dispatchers, []
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
