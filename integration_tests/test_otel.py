"""Flows and calls as spans, on runners: whatever process a call runs in, its span is where it belongs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from turnout import flow, get_run_context, otel, task

WORDS: Final = [
    "sequential",
    "thread",
    "process",
    "executor:concurrent.futures:ProcessPoolExecutor",
    *(pytest.param(word, marks=pytest.mark.cluster) for word in ("dask?n_workers=2", "ray?num_cpus=2")),
]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with otel.instrument(provider):
        yield provider
    assert context.get_current() == {}


def paths(exporter: InMemorySpanExporter) -> list[str]:
    """Return the spans by their names, each behind those around it."""
    spans = {span.context.span_id: span for span in exporter.get_finished_spans() if span.context is not None}

    def path(span: ReadableSpan) -> str:
        return f"{path(spans[span.parent.span_id])}/{span.name}" if span.parent is not None else span.name

    return sorted(map(path, spans.values()))


def attributes(exporter: InMemorySpanExporter, name: str) -> list[dict[str, Any]]:
    return [dict(span.attributes or {}) for span in exporter.get_finished_spans() if span.name == name]


@task
def double(number: int) -> int:
    return 2 * number


@task(retries=1)
def nests(number: int) -> int:
    if get_run_context().attempt == 1:
        raise OSError("at first")
    return double.submit(number).result()


@flow
def inner() -> int:
    return double.submit(3).result()


@task
def calls_a_flow() -> int:
    return inner()


@task
def fail() -> None:
    raise ValueError("seven: odd")


@task
def current() -> tuple[int, int]:
    """Return trace and span in which a body would make spans."""
    where = trace.get_current_span().get_span_context()
    return where.trace_id, where.span_id


@flow
def main() -> None:
    futures = [*nests.map([1, 2]), calls_a_flow.submit()]
    failed = fail.submit()
    lost = double.submit(failed)
    assert failed.exception()
    assert lost.exception()
    inner()
    for future in futures:
        future.result()


@pytest.mark.parametrize("word", WORDS)
def test_spans_are_within_each_other_as_runs_are(
    word: str, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    with provider.get_tracer("user").start_as_current_span("request"):
        main.with_options(task_runner=word)()
    assert paths(exporter) == [
        "request",
        "request/main",
        "request/main/calls_a_flow",
        "request/main/calls_a_flow/inner",
        "request/main/calls_a_flow/inner/double",
        "request/main/double",
        "request/main/fail",
        "request/main/inner",
        "request/main/inner/double",
        "request/main/nests",
        "request/main/nests",
        "request/main/nests/double",
        "request/main/nests/double",
    ]
    assert [each["turnout.attempt"] for each in attributes(exporter, "nests")] == [2, 2]
    (failed,) = (span for span in exporter.get_finished_spans() if span.name == "fail")
    assert failed.status.description == "ValueError: seven: odd"
    assert "in fail" in str((failed.events[0].attributes or {})["exception.stacktrace"])
    for span in exporter.get_finished_spans():
        assert (span.start_time or 0) <= (span.end_time or 0)


@flow
def shows_spans(provider: TracerProvider) -> list[tuple[int, int]]:
    plain = current.submit().result()
    with provider.get_tracer("user").start_as_current_span("phase"):
        return [plain, current.submit().result()]


@pytest.mark.parametrize("word", WORDS)
def test_a_body_is_in_the_span_in_which_it_was_submitted(
    word: str, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    in_flow, in_phase = shows_spans.with_options(task_runner=word)(provider)
    where = {
        span.name: (span.context.trace_id, span.context.span_id)
        for span in exporter.get_finished_spans()
        if span.context is not None
    }
    assert in_flow == where["shows_spans"]
    assert in_phase == where["phase"]


def test_async_flows_side_by_side(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    import asyncio

    @flow
    async def one(number: int) -> int:
        return await double.submit(number)

    async def both() -> None:
        await asyncio.gather(one(1), one(2))

    asyncio.run(both())
    assert paths(exporter) == ["one", "one", "one/double", "one/double"]


def test_between_the_items_of_a_generator_the_current_span_is_the_callers(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    @flow
    def numbers() -> Iterator[Any]:
        yield double.submit(1)
        yield double.submit(2)

    with provider.get_tracer("user").start_as_current_span("request") as request:
        for _ in numbers():
            assert trace.get_current_span() is request
    assert paths(exporter) == ["request", "request/numbers", "request/numbers/double", "request/numbers/double"]


def test_a_flow_that_fails(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    @flow
    def broken() -> None:
        raise LookupError("no stop")

    with pytest.raises(LookupError):
        broken()
    (span,) = exporter.get_finished_spans()
    assert span.status.description == "LookupError: no stop"
    assert [event.name for event in span.events] == ["exception"]


def test_after_it_is_closed_there_are_no_spans(exporter: InMemorySpanExporter) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentation = otel.instrument(provider)
    instrumentation.close()
    instrumentation.close()
    inner()
    assert exporter.get_finished_spans() == ()


PROGRAM: Final = """
import contextlib, sys
with contextlib.suppress(ImportError):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: f"span {span.name}\\n")))
    trace.set_tracer_provider(provider)
from turnout import flow, task
@task
def double(x):
    return 2 * x
@flow
def main():
    return double.submit(1)
main()
print(main())
"""


def ran(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TURNOUT_")}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=clean | variables, timeout=50, check=False)


@pytest.mark.parametrize(("value", "spans"), [("1", 2), ("", 0), ("0", 0)])
def test_the_environment_asks_for_spans(value: str, spans: int) -> None:
    ended = ran(PROGRAM, TURNOUT_OTEL=value)
    assert ended.stdout == "span double\nspan main\n" * spans + "2\n"
    assert ended.stderr == ""


ABSENT: Final = "import sys; sys.modules['opentelemetry'] = None\n"


def test_without_the_library_flows_run_and_somebody_is_told() -> None:
    ended = ran(ABSENT + PROGRAM, TURNOUT_OTEL="1")
    assert ended.stdout == "2\n"
    assert 'pip install "turnout[otel]"' in ended.stderr


def test_without_the_library_asking_for_it_is_an_error() -> None:
    ended = ran(ABSENT + "import turnout.otel; turnout.otel.instrument()")
    assert ended.returncode == 1
    assert 'ImportError: OpenTelemetry is not installed. Install it with: pip install "turnout[otel]"' in ended.stderr
