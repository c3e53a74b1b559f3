"""What a flow run tells as events: that it began, how it ended, and when everything about it has been told."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from ._event_file import FILE
from ._event_stream import EVENT, STREAM, Outlet
from ._future import brief
from ._log_events import note_logs

if TYPE_CHECKING:
    from ._context import Scope
    from ._engine import Engine
    from ._event_rows import Events

__all__ = ["FlowStory"]


def _made(rows: list[Any]) -> Events:
    from ._event_rows import Events

    return Events(rows)


# The kinds of events take a while to load: nothing imports them until somebody listens.
STREAM.on_change = note_logs
STREAM.made = _made


class FlowStory:
    """What is told of one flow run, through all its attempts.

    Parameters
    ----------
    id
        The id of the run.
    parent
        The flow or call that calls the flow, or None.

    Raises
    ------
    EventFileError
        If events are to be written where they can't be.
    """

    def __init__(self, id: str, parent: Scope | None) -> None:
        if parent is None:
            FILE.begin()
        self._id = id
        self._parent = parent
        self.events: Outlet = STREAM if parent is None else parent.engine.events
        """Where the run and its calls tell what happens."""
        self._began = 0.0
        self._is_over = False

    def begin(self, name: str, flow_name: str, engine: Engine) -> None:
        """Tell that the body is about to run for the first time."""
        self._began = time.time()
        put = self.events.put
        if put is None:
            return
        from .events import FlowStarted

        runner = engine.home.runner if engine.runner is None and engine.home is not None else engine.runner
        above = self._parent.engine.flow_run.id if self._parent is not None else None
        number = self._parent.number if self._parent is not None else None
        told = "here" if runner is None else repr(runner)
        slots = None if runner is None else runner.plan().slots
        put((EVENT, FlowStarted(self._began, self._id, name, flow_name, told, slots, above, number)))

    def tell_finished(self, state: str, message: str | None) -> None:
        """Tell that the run is over; only the first time counts."""
        if self._is_over or not self._began:
            return
        self._is_over = True
        put = self.events.put
        if put is not None:
            from .events import FlowFinished

            now = time.time()
            line = (message or "").partition("\n")[0]
            put((EVENT, FlowFinished(now, self._id, state, now - self._began, line)))

    def leave(self) -> bool:
        """Tell that the run is over, if nobody has; return whether `end` has anything to wait for.

        It may be left without a state, if Ctrl-C comes between two attempts.
        """
        error = sys.exc_info()[1]
        self.tell_finished("Crashed", None if error is None else brief(error))
        return self._parent is None and STREAM.put is not None

    def end(self) -> None:
        """Return when everything that happened has been told, if nothing is around this run that goes on."""
        if self.leave():
            STREAM.flush()
