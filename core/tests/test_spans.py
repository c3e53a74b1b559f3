"""Spans of OpenTelemetry, from sequences of events that a test makes up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from turnout._spans import Spans
from turnout.events import CallCreated, CallFinished, CallRetrying, CallStarted, Event, FlowFinished, FlowStarted


class Told:
    """The spans of what a test tells."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = Spans(self.provider.get_tracer("test"))

    def tell(self, *events: Event) -> None:
        self.spans.take(events)

    def named(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.exporter.get_finished_spans() if span.name == name)
        return span

    def parent_of(self, name: str) -> str | None:
        parent = self.named(name).parent
        if parent is None:
            return None
        return next(
            span.name
            for span in self.exporter.get_finished_spans()
            if span.context is not None and span.context.span_id == parent.span_id
        )

    @contextlib.contextmanager
    def flow(self) -> Iterator[None]:
        """Tell of a flow run; its body is the block."""
        with self.spans.began("f", "main"):
            self.tell(FlowStarted(1.0, "f", "main-1", "main", "Crew()"))
            yield
            self.tell(FlowFinished(9.0, "f", "Completed", 8.0))


@pytest.fixture
def told() -> Told:
    return Told()


def created(call: int, task: str, *, parent: int | None = None, flow: str = "f") -> CallCreated:
    return CallCreated(1.0, call, flow, task, f"{task}-0", "crew", parent)


def started(call: int, time: float = 2.0, attempt: int = 1) -> CallStarted:
    return CallStarted(time, call, attempt, "node:7", 1)


def finished(
    call: int, task: str, state: str = "Completed", *, time: float = 3.0, attempt: int = 1, **more: str
) -> CallFinished:
    seconds = 1.0 if attempt else 0.0
    worker, host, pid = ("node:7", "node", 7) if attempt else ("", "", 0)
    return CallFinished(time, call, "f", task, f"{task}-0", state, attempt, seconds, worker, host, pid, **more)  # type: ignore[arg-type]


def test_a_call_is_a_span_within_that_of_its_flow(told: Told) -> None:
    with told.flow():
        told.tell(created(0, "load"), started(0), finished(0, "load"))
    assert told.parent_of("load") == "main"
    assert told.parent_of("main") is None
    span = told.named("load")
    assert (span.start_time, span.end_time) == (2_000_000_000, 3_000_000_000)
    assert dict(span.attributes or {}) == {
        "turnout.runner": "crew",
        "turnout.task.name": "load",
        "turnout.task_run.name": "load-0",
        "turnout.flow_run.id": "f",
        "turnout.state": "Completed",
        "turnout.attempt": 1,
        "turnout.worker": "node:7",
        "turnout.slot": 0,
        "turnout.bytes_in": 0,
        "turnout.bytes_out": 0,
        "host.name": "node",
        "process.pid": 7,
    }
    assert told.named("main").end_time == 9_000_000_000


def test_what_a_call_submits_is_within_its_span(told: Told) -> None:
    with told.flow():
        told.tell(created(0, "outer"), started(0), created(1, "inner", parent=0), started(1))
        told.tell(FlowStarted(2.0, "g", "sub-0", "sub", "here", None, "f", 1), created(2, "deep", flow="g"), started(2))
        told.tell(finished(2, "deep"), FlowFinished(3.0, "g", "Completed", 1.0))
        told.tell(finished(1, "inner"), finished(0, "outer"))
    names = ("main", "outer", "inner", "sub", "deep")
    assert [told.parent_of(name) for name in names] == [None, *names[:-1]]


def test_the_news_that_a_call_began_may_come_after_what_happened_in_it(told: Told) -> None:
    with told.flow():
        told.tell(created(0, "outer"), created(1, "inner", parent=0), started(1), finished(1, "inner"))
        assert told.exporter.get_finished_spans() == ()
        told.tell(started(0), finished(0, "outer"))
    assert told.parent_of("inner") == "outer"
    assert told.named("inner").start_time == 2_000_000_000


def test_an_outer_call_may_end_before_an_inner_one_begins(told: Told) -> None:
    with told.flow():
        told.tell(created(0, "outer"), started(0), created(1, "inner", parent=0), finished(0, "outer"))
        told.tell(started(1, 5.0), finished(1, "inner", time=6.0))
    assert told.parent_of("inner") == "outer"


def test_a_call_that_is_submitted_when_the_one_around_it_is_over_is_within_the_flow(told: Told) -> None:
    with told.flow():
        told.tell(created(0, "outer"), started(0), finished(0, "outer", "Cancelled"))
        told.tell(created(1, "inner", parent=0), finished(1, "inner", "Cancelled", attempt=0))
    assert told.parent_of("inner") == "main"


def test_a_call_that_never_began_is_a_point_in_time(told: Told) -> None:
    with told.flow():
        told.tell(created(0, "late"), finished(0, "late", "UpstreamFailed", attempt=0, message="it has no result"))
    span = told.named("late")
    assert span.start_time == span.end_time == 3_000_000_000
    assert "turnout.worker" not in (span.attributes or {})
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "it has no result")
    assert dict(span.events[0].attributes or {}) == {
        "exception.type": "UpstreamFailed",
        "exception.message": "it has no result",
    }


@pytest.mark.parametrize("state", ["Failed", "TimedOut", "Crashed"])
def test_a_failure_is_the_status_and_an_exception(told: Told, state: str) -> None:
    with told.flow():
        failure = finished(0, "load", state, message="OSError: no net: none", traceback="Traceback ...")
        told.tell(created(0, "load"), started(0), failure)
    span = told.named("load")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "OSError: no net: none")
    (event,) = span.events
    assert (event.name, event.timestamp) == ("exception", 3_000_000_000)
    assert dict(event.attributes or {}) == {
        "exception.type": "OSError",
        "exception.message": "no net: none",
        "exception.stacktrace": "Traceback ...",
    }


@pytest.mark.parametrize("state", ["Completed", "Cached", "Cancelled"])
def test_what_did_not_go_wrong_has_no_status(told: Told, state: str) -> None:
    with told.flow():
        told.tell(created(0, "load"), started(0), finished(0, "load", state))
    assert told.named("load").status.status_code is StatusCode.UNSET
    assert told.named("load").events == ()


def test_attempts_that_are_tried_again_are_events_of_one_span(told: Told) -> None:
    with told.flow():
        told.tell(created(0, "load"), started(0), CallRetrying(2.5, 0, 1, "Failed", 0.5, "OSError: no"))
        told.tell(started(0, 3.0, 2), finished(0, "load", time=4.0, attempt=2))
    span = told.named("load")
    assert (span.start_time, span.end_time) == (2_000_000_000, 4_000_000_000)
    assert (span.attributes or {})["turnout.attempt"] == 2
    (event,) = span.events
    assert (event.name, event.timestamp) == ("retry", 2_500_000_000)
    assert dict(event.attributes or {}) == {
        "turnout.attempt": 1,
        "turnout.state": "Failed",
        "turnout.delay_seconds": 0.5,
        "turnout.message": "OSError: no",
    }


def test_calls_of_before_anybody_listened_have_a_span_too(told: Told) -> None:
    told.tell(started(7), CallRetrying(2.5, 7, 1, "Failed"), finished(7, "load"))
    assert told.named("load").start_time == 2_000_000_000
    assert told.parent_of("load") is None


def test_the_end_of_an_unknown_flow_is_nothing(told: Told) -> None:
    told.tell(FlowFinished(1.0, "unknown", "Completed", 1.0))
    assert told.exporter.get_finished_spans() == ()


def test_the_span_of_a_flow_is_within_the_current_one_and_the_current_one_of_its_body(told: Told) -> None:
    from opentelemetry import trace

    with told.provider.get_tracer("user").start_as_current_span("request") as request, told.flow():
        assert trace.get_current_span() is not request
        with told.provider.get_tracer("user").start_as_current_span("phase"):
            pass
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert (told.parent_of("main"), told.parent_of("phase")) == ("request", "main")


def test_nothing_is_kept_of_what_is_over(told: Told) -> None:
    with told.flow():
        for call in range(0, 300, 3):
            told.tell(created(call, "a"), started(call), created(call + 1, "b", parent=call), finished(call, "a"))
            told.tell(created(call + 2, "c", parent=call + 1), started(call + 1), finished(call + 1, "b"))
            told.tell(started(call + 2), finished(call + 2, "c"))
        assert list(told.spans._runs) == ["f"]
    assert told.spans._runs == {}
