"""Events turned into spans of OpenTelemetry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from .events import (
    CallCreated,
    CallFinished,
    CallRetrying,
    CallStarted,
    Event,
    FlowFinished,
    FlowStarted,
)

__all__ = ["Spans"]

# Those of which one would look for the reason.
_ERRORS: Final = ("Failed", "TimedOut", "UpstreamFailed", "Crashed")


class _Run:
    """A flow run or a call whose span is not ended, or within which others may still begin.

    News that one of another process began may come after those of what is within: it waits for that.
    """

    __slots__ = ("begin", "end", "inner", "is_over", "name", "parent", "span", "waiting")

    def __init__(self, parent: _Run | None, name: str) -> None:
        self.parent = parent
        self.name = name
        # What is known of its beginning: time and attributes.
        self.begin: tuple[float, dict[str, Any]] | None = None
        self.end: Callable[[Any], None] | None = None
        self.span: Any = None
        self.is_over = False
        # How many runs within this one are not over.
        self.inner = 0
        # What is to be done when the span is there.
        self.waiting: list[Callable[[Any], None]] = []


class Spans:
    """Makes spans of events.

    Parameters
    ----------
    tracer
        Makes the spans.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._flows: dict[str, Any] = {}
        self._calls: dict[int, Any] = {}
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            FlowStarted: self._flow_started,
            FlowFinished: self._flow_finished,
            CallCreated: self._created,
            CallStarted: self._started,
            CallRetrying: self._retrying,
            CallFinished: self._finished,
        }
