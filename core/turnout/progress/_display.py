"""What is displayed while flows run: from the first event of a flow to its last, as often as there is one."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from .._onlookers import onlookers
from ..events import CallCreated, Event, FlowStarted, Subscription, subscribe
from ._counts import Counts, Progress

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Display", "View"]

logger = logging.getLogger("turnout")

_BEGINNINGS: Final = (FlowStarted, CallCreated)
# No more than this part of the time goes into drawing; but something is drawn so often, in seconds.
_SHARE: Final = 0.01
_SELDOM: Final = 2.0


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
        self._progress = Progress()
        # Between the thread that counts and the one that draws.
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="turnout-progress", daemon=True)
        self._thread.start()

    def take(self, events: Sequence[Event]) -> bool:
        """Count events; return whether all flows are over."""
        with self._lock:
            self._progress.take(events)
            return self._progress.is_over

    def end(self) -> None:
        """Show how things stand in the end."""
        self._over.set()
        self._thread.join()
        self._safely(self._view.end)

    def _draw(self) -> None:
        pause = self._view.interval_seconds
        while not self._over.wait(pause):
            began = time.thread_time()
            if not self._safely(self._view.show):
                return
            cost = time.thread_time() - began
            pause = max(self._view.interval_seconds, min(cost / _SHARE, _SELDOM))

    def _safely(self, show: Callable[[Counts], None]) -> bool:
        with self._lock:
            counts = self._progress.counts(time.time())
        try:
            show(counts)
        except Exception:
            # Such as a terminal that is gone. The flow has other things to do.
            self._view.give_up()
            logger.debug("Progress can't be shown any more.", exc_info=True)
            return False
        return True


class Display:
    """Shows the progress of flows, until it is closed. Made by :func:`turnout.progress.show`.

    Parameters
    ----------
    open_view
        Opens a view, which shows one picture to its end. None shows nothing.
    """

    def __init__(self, open_view: Callable[[], View] | None) -> None:
        self._open_view = open_view
        self._view: View | None = None
        self._session: _Session | None = None
        self._subscription: Subscription | None = None
        if open_view is not None:
            # What is kept back is to be seen also where a program ends with a flow under way.
            atexit.register(self.close)
            onlookers.append(self._beginning)
            self._subscription = subscribe(self._take)

    @property
    def is_open(self) -> bool:
        """Whether it shows progress."""
        return self._subscription is not None

    def close(self) -> None:
        """Show how things stand, and end. A second time it does nothing."""
        if self._subscription is not None:
            self._subscription.close()
        self._end()
        if self._beginning in onlookers:
            onlookers.remove(self._beginning)
        # Last: Ctrl-C may come before, and what is left to do then is done when the program ends.
        self._subscription = None
        atexit.unregister(self.close)

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _beginning(self, id: str, flow_name: str) -> Iterator[None]:
        self._prepare()
        yield

    def _prepare(self) -> None:
        """Choose where the next picture stands: in a notebook it is below the cell of the thread that calls this."""
        if self._open_view is not None and self._session is None and self._view is None:
            self._view = self._open_view()

    def _take(self, events: Sequence[Event]) -> None:
        if self._session is None:
            # What comes after the end of a flow, such as the end of a worker, begins no picture.
            if not any(type(event) in _BEGINNINGS for event in events):
                return
            self._prepare()
            assert self._view is not None, "one has been opened"
            self._session, self._view = _Session(self._view), None
        if self._session.take(events):
            self._end()

    def _end(self) -> None:
        if self._session is not None:
            self._session.end()
        self._session = None
