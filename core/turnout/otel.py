"""Flows and calls as spans of OpenTelemetry, exported by whatever tracer provider the program has set up.

Needs the extra ``otel``: ``pip install turnout[otel]``.
"""

from __future__ import annotations

import contextlib
import contextvars
import copyreg
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ._context import register_context_variable
from ._onlookers import onlookers, wanted
from ._spans import Spans
from ._version import __version__
from .events import subscribe

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.trace import TracerProvider

    from ._flow_run import FlowRun

__all__ = ["ENVIRONMENT_VARIABLE", "Instrumentation", "begin_by_environment", "instrument"]

logger = logging.getLogger("turnout")

ENVIRONMENT_VARIABLE: Final = "TURNOUT_OTEL"

_lock: Final = threading.Lock()
# What the environment asked for, once.
_by_environment: Instrumentation | None = None


class Instrumentation:
    """Makes spans of flows and calls, until it is closed. Made by :func:`instrument`."""

    def __init__(self, tracer: Any) -> None:
        self._spans = Spans(tracer)
        onlookers.append(self._beginning)
        self._subscription = subscribe(self._spans.take)

    def close(self) -> None:
        """Make no more spans. Those of flows that run are ended when the flows are, if that is before."""
        with contextlib.suppress(ValueError):  # a second time
            onlookers.remove(self._beginning)
        self._subscription.close()

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _beginning(self, run: FlowRun, is_own: bool) -> Iterator[None]:
        # Here, because only this thread knows what the current span is.
        span = self._spans.began(run.id, run.flow.name)
        if is_own:
            with span:
                yield
        else:
            with span:
                pass
            yield


def instrument(tracer_provider: TracerProvider | None = None) -> Instrumentation:
    """Make a span of each flow run and of each call, from now on.

    Parameters
    ----------
    tracer_provider
        Where the spans go. By default it is the one that OpenTelemetry has for the whole program.

    Returns
    -------
    Instrumentation
        Close it, or use it in a ``with`` statement, to end it.

    Raises
    ------
    ImportError
        If OpenTelemetry is not installed.

    Examples
    --------
    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    >>> from turnout import flow, otel, task
    >>> exporter, provider = InMemorySpanExporter(), TracerProvider()
    >>> provider.add_span_processor(SimpleSpanProcessor(exporter))
    >>> @task
    ... def double(x):
    ...     return 2 * x
    >>> @flow
    ... def main():
    ...     return double.submit(1)
    >>> with otel.instrument(provider):
    ...     main()
    2
    >>> [span.name for span in exporter.get_finished_spans()]
    ['double', 'main']
    """
    try:
        from opentelemetry import trace
    except ImportError as error:
        raise ImportError('OpenTelemetry is not installed. Install it with: pip install "turnout[otel]"') from error
    _let_context_travel()
    return Instrumentation(trace.get_tracer("turnout", __version__, tracer_provider))


def begin_by_environment() -> None:
    """Make spans from now on, if ``TURNOUT_OTEL`` says so."""
    global _by_environment
    with _lock:
        if wanted(ENVIRONMENT_VARIABLE) and _by_environment is None:
            try:
                _by_environment = instrument()
            except ImportError as error:
                # The flow can do without.
                logger.warning("%s has no effect: %s", ENVIRONMENT_VARIABLE, error)


# What bodies on workers know of the span in which they were submitted


def _let_context_travel() -> None:
    """Have OpenTelemetry's context travel with calls to other processes, as far as its propagators carry it."""
    from opentelemetry.context import Context

    variable = _variable()
    if variable is not None:
        copyreg.pickle(Context, _reduce_context)
        # Somebody else may have registered one of this name.
        with contextlib.suppress(ValueError):
            register_context_variable(variable)


def _variable() -> contextvars.ContextVar[Any] | None:
    """Return the context variable in which OpenTelemetry keeps its context, if it keeps it in one."""
    from opentelemetry import context

    token = context.attach(context.Context({"turnout": "is looking for this"}))
    try:
        current = context.get_current()
        return next((each for each, value in contextvars.copy_context().items() if value is current), None)
    finally:
        context.detach(token)


def _reduce_context(context: Any) -> tuple[Any, tuple[dict[str, str]]]:
    """Pickle a context as the headers that would go with a request."""
    from opentelemetry.propagate import inject

    headers: dict[str, str] = {}
    inject(headers, context)
    return _arrived, (headers,)


def _arrived(headers: dict[str, str]) -> Any:
    """Return the context for a worker, and let it be the one in which OpenTelemetry looks there."""
    try:
        from opentelemetry.propagate import extract
    except ImportError:  # this worker can do without
        return None
    _let_context_travel()
    return extract(headers)
