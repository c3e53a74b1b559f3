"""Events turned into spans of OpenTelemetry."""

from __future__ import annotations

import contextlib
import time
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
    """A flow run or a call that is under way."""

    __slots__ = ("is_begun", "name", "parent", "span", "waiting")

    def __init__(self, name: str, parent: _Run | None) -> None:
        self.name = name
        self.parent = parent
        self.span: Any = None
        self.is_begun = False
        # What is to be done when the span is there.
        self.waiting: list[Callable[[], None]] = []

    def when_there(self, action: Callable[[], None]) -> None:
        """Do something when the span is there. The news that a call of another process began may be late."""
        if self.span is None:
            self.waiting.append(action)
        else:
            action()


class Spans:
    """Makes spans of events.

    Parameters
    ----------
    tracer
        Makes the spans.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        # Flows by their ids, calls by their numbers.
        self._runs: dict[str | int, _Run] = {}
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            FlowStarted: self._flow_started,
            FlowFinished: self._flow_finished,
            CallCreated: self._created,
            CallStarted: self._started,
            CallRetrying: self._retrying,
            CallFinished: self._finished,
        }

    @contextlib.contextmanager
    def began(self, id: str, flow_name: str) -> Iterator[None]:
        """Begin the span of a flow that no other one called, as the current span of this thread."""
        from opentelemetry import context, trace

        run = self._runs[id] = _Run(flow_name, None)
        run.is_begun = True
        self._open(run, time.time(), context.get_current())
        with trace.use_span(run.span, record_exception=False, set_status_on_exception=False):
            yield

    def take(self, events: Sequence[Event]) -> None:
        """Make spans of events, which are told in the order in which they happened."""
        for event in events:
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)

    def _flow_started(self, event: FlowStarted) -> None:
        run = self._runs.get(event.flow)
        if run is None:
            parent = self._around(event.parent_call, event.parent_flow)
            run = self._runs[event.flow] = _Run(event.flow_name, parent)
            self._begin(run, event.time)
        attributes = {
            "turnout.flow.name": event.flow_name,
            "turnout.flow_run.id": event.flow,
            "turnout.flow_run.name": event.name,
            "turnout.runner": event.runner,
        }
        run.when_there(lambda: run.span.set_attributes(attributes))

    def _flow_finished(self, event: FlowFinished) -> None:
        run = self._runs.pop(event.flow, None)
        if run is not None:
            run.when_there(lambda: _end(run.span, event, {"turnout.state": event.state}))

    def _created(self, event: CallCreated) -> None:
        run = self._runs[event.call] = _Run(event.task, self._around(event.parent, event.flow))
        run.when_there(lambda: run.span.set_attribute("turnout.runner", event.runner))

    def _started(self, event: CallStarted) -> None:
        run = self._runs.get(event.call)
        if run is not None:
            self._begin(run, event.time)

    def _retrying(self, event: CallRetrying) -> None:
        run = self._runs.get(event.call)
        if run is not None:
            self._begin(run, event.time)
            attributes = {
                "turnout.attempt": event.attempt,
                "turnout.state": event.state,
                "turnout.delay_seconds": event.delay,
                "turnout.message": event.message,
            }
            run.when_there(lambda: run.span.add_event("retry", attributes, _nanoseconds(event.time)))

    def _finished(self, event: CallFinished) -> None:
        run = self._runs.pop(event.call, None)
        if run is None:
            # It was submitted before anybody listened.
            run = _Run(event.task, self._runs.get(event.flow))
        self._begin(run, event.time - event.seconds)
        attributes = {
            "turnout.task.name": event.task,
            "turnout.task_run.name": event.name,
            "turnout.flow_run.id": event.flow,
            "turnout.state": event.state,
            "turnout.attempt": event.attempt,
            "turnout.worker": event.worker,
            "turnout.slot": event.slot,
            "turnout.batch": event.batch,
            "turnout.bytes_in": event.bytes_in,
            "turnout.bytes_out": event.bytes_out,
            "host.name": event.host,
            "process.pid": event.pid,
        }
        # What is not known, such as the worker of a call that never began, is left out.
        known = {name: value for name, value in attributes.items() if value not in ("", None)}
        run.when_there(lambda: _end(run.span, event, known))

    def _around(self, call: int | None, flow: str | None) -> _Run | None:
        """Return what a run is within: a call, or else a flow. What is submitted late has outlived its call."""
        around = None if call is None else self._runs.get(call)
        return self._runs.get(flow or "") if around is None else around

    def _begin(self, run: _Run, when: float) -> None:
        """Open the span of a run when that is open which is around it; do nothing the second time."""
        if run.is_begun:
            return
        run.is_begun = True
        if run.parent is None:
            self._open(run, when, _context_of(None))
        else:
            parent = run.parent
            parent.when_there(lambda: self._open(run, when, _context_of(parent.span)))

    def _open(self, run: _Run, when: float, context: Any) -> None:
        run.span = self._tracer.start_span(run.name, context, start_time=_nanoseconds(when))
        waiting, run.waiting = run.waiting, []
        for action in waiting:
            action()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _context_of(span: Any) -> Any:
    """Return a context with this span and nothing else."""
    from opentelemetry import context, trace

    return context.Context() if span is None else trace.set_span_in_context(span, context.Context())


def _end(span: Any, event: FlowFinished | CallFinished, attributes: dict[str, Any]) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attributes(attributes)
    end = _nanoseconds(event.time)
    if event.state in _ERRORS:
        span.add_event("exception", _exception(event), end)
        span.set_status(Status(StatusCode.ERROR, event.message or event.state))
    span.end(end)


def _exception(event: FlowFinished | CallFinished) -> dict[str, str]:
    """Return what OpenTelemetry says of exceptions. A message is that of an exception, behind its type."""
    name, colon, text = event.message.partition(": ")
    is_typed = name.isidentifier()
    attributes = {
        "exception.type": name if is_typed else event.state,
        "exception.message": text if is_typed and colon else event.message,
    }
    traceback = event.traceback if isinstance(event, CallFinished) else ""
    return attributes | ({"exception.stacktrace": traceback} if traceback else {})
