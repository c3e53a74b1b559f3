"""What is displayed while flows run: from when the first of them begins until the last ends."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from .._onlookers import onlookers
from .._state import StateType
from .._tally import TALLY
from ._counts import Counts, Progress

if TYPE_CHECKING:
    from types import TracebackType

    from .._flow_run import FlowRun

__all__ = ["Display", "View"]

logger = logging.getLogger("turnout")

# No more than this part of the time goes into it; but something is shown so often, in seconds.
_SHARE: Final = 0.01
_SELDOM: Final = 2.0
# How often it is looked at what was counted at least, so that little is kept for it, in seconds.
_LOOK: Final = 1.0
# How many calls are looked at for those that run: as a rule they are among the first that are not over.
_MOST_CALLS: Final = 10_000


class View(Protocol):
    """Where progress is displayed."""

    interval_seconds: ClassVar[float]
    """How often it wants to show how things stand."""

    def show(self, counts: Counts) -> None:
        """Show how things stand. Called in one thread, never while another of these methods is."""
        ...

    def end(self, counts: Counts) -> None:
        """Show how things stand in the end. Nothing is called afterwards."""
        ...

    def give_up(self) -> None:
        """Leave all as it is, because one of these methods raised. Nothing is called afterwards."""
        ...


class _Session:
    """One picture: of a flow, or of several that run at once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._progress = Progress(time.monotonic())
        self._runs: list[FlowRun] = []
        self._slots: int | None = None
        self._is_broken = False
        self._over = threading.Event()
        TALLY.begin()
        self._thread = threading.Thread(target=self._draw, name="turnout-progress", daemon=True)
        self._thread.start()

    def begin(self, run: FlowRun) -> None:
        """Take note of a flow."""
        self._runs.append(run)
        self._progress.begin(run.flow.name, run.runner_told)

    def end(self, run: FlowRun) -> bool:
        """Take note of the end of a flow; return whether none is left."""
        state = run.state
        self._progress.end("Crashed" if state is None else state.name, (state and state.message) or "")
        return self._progress.is_over

    def close(self) -> None:
        """Show how things stand in the end. A second time it does nothing."""
        self._over.set()
        self._thread.join()
        if not self._is_broken:
            self._look()
            self._safely(self._view.end)
            self._is_broken = True
        TALLY.stop()

    def _draw(self) -> None:
        pause = due = self._view.interval_seconds
        while not self._over.wait(min(pause, _LOOK)):
            began = time.thread_time()
            self._look()
            due -= min(pause, _LOOK)
            if due <= 1e-3:
                self._safely(self._view.show)
                if self._is_broken:
                    TALLY.stop()
                    return
                cost = time.thread_time() - began
                pause = due = max(self._view.interval_seconds, min(cost / _SHARE, _SELDOM))

    def _look(self) -> None:
        self._progress.take(TALLY.steps(), _running(), time.monotonic())
        # When a flow ends its runners do. Until then there may be more of them, and clusters grow.
        slots = 0
        with contextlib.suppress(Exception):  # a backend that breaks down
            slots = sum(run.backends.slots() for run in self._runs)
        self._slots = slots or self._slots

    def _safely(self, show: Callable[[Counts], None]) -> None:
        counts = self._progress.counts(time.monotonic(), self._slots)
        try:
            show(counts)
        except Exception:
            # Such as a terminal that is gone. The flow has other things to do.
            self._is_broken = True
            self._view.give_up()
            logger.debug("Progress can't be shown any more.", exc_info=True)


def _running() -> Counter[str]:
    """Return how many calls of each task run. Their futures may change meanwhile: it is a picture of a moment."""
    running: Counter[str] = Counter()
    for engine in [*TALLY.engines]:
        # In one step of the interpreter, so that no other thread comes between.
        calls = [*itertools.islice(engine.open, _MOST_CALLS)]
        running.update([call.task.name for call in calls if call.future._type is StateType.RUNNING])
    return running


class Display:
    """Shows the progress of flows, until it is closed. Made by :func:`turnout.progress.show`.

    Parameters
    ----------
    open_view
        Opens a view, which shows one picture to its end. None shows nothing.
    """

    def __init__(self, open_view: Callable[[], View] | None) -> None:
        self._open_view = open_view
        self._session: _Session | None = None
        self._lock = threading.Lock()
        self.is_open = open_view is not None
        """Whether it shows progress."""
        if self.is_open:
            # What is kept back is to be seen also where a program ends with a flow under way.
            atexit.register(self.close)
            onlookers.append(self._looking_on)

    def close(self) -> None:
        """Show how things stand, and end. A second time it does nothing."""
        if self._looking_on in onlookers:
            onlookers.remove(self._looking_on)
        self._end()
        # Last: Ctrl-C may come before, and what is left to do then is done when the program ends.
        self.is_open = False
        atexit.unregister(self.close)

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _looking_on(self, run: FlowRun, is_own: bool) -> Iterator[None]:
        with self._lock:
            if self._session is None and self._open_view is not None:
                # Here: in a notebook the picture stands below the cell of the thread that calls the first flow.
                self._session = _Session(self._open_view())
            session = self._session
            if session is not None:
                session.begin(run)
        try:
            yield
        finally:
            with self._lock:
                is_last = session is not None and session.end(run) and session is self._session
            if is_last:
                self._end()

    def _end(self) -> None:
        session = self._session
        if session is not None:
            session.close()
            self._session = None
