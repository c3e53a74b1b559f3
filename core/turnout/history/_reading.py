"""From events to what became of flows. Some may be missing: a run may have been killed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from .. import events
from ._records import Attempt, Call, FlowRun, History, Log, Worker

__all__ = ["history_of"]


def history_of(stream: Iterable[events.Event]) -> History:
    """Return what some events tell.

    Examples
    --------
    >>> stream = [
    ...     events.FlowStarted(1.0, "f", "sums-1", "sums", "thread"),
    ...     events.CallCreated(1.0, 7, "f", "add", "add-0", "thread"),
    ...     events.CallReady(1.0, 7, "add-0"),
    ...     events.CallStarted(1.5, 7, 1, "here:1"),
    ...     events.CallFinished(3.0, 7, "f", "add", "add-0", "Completed", 1, 1.5, "here:1"),
    ...     events.FlowFinished(3.0, "f", "Completed", 2.0),
    ... ]
    >>> history = history_of(stream)
    >>> history.seconds, [(phase.name, phase.seconds) for phase in history.calls[0].phases(history.end)]
    (2.0, [('waiting', 0.0), ('queued', 0.5), ('running', 1.5)])
    """
    reader = _Reader()
    for event in stream:
        reader.take(event)
    return reader.ended()


class _Reader:
    def __init__(self) -> None:
        self._history = History()
        # By what events call them. Numbers of calls begin anew with each stream, if a file holds several.
        self._calls: dict[int, Call] = {}
        self._flows: dict[str, FlowRun] = {}
        self._last = 0.0

    def take(self, event: events.Event) -> None:
        """Note one event."""
        self._last = max(self._last, event.time)
        _TAKERS[type(event)](self, event)

    def ended(self) -> History:
        """Return what has been noted, with times that run forwards only."""
        history = self._history
        for call in history.calls:
            _straighten(call)
        begins = [*(flow.started for flow in history.flows), *(call.created for call in history.calls)]
        history.begin = min(begins, default=self._last)
        ends = [*(flow.finished for flow in history.flows), *(call.finished for call in history.calls)]
        known = [end for end in ends if end is not None]
        history.end = max([*known, history.begin]) if len(known) == len(ends) else max([*known, self._last])
        return history

    # Flows

    def stream_started(self, event: events.StreamStarted) -> None:
        self._calls.clear()

    def flow_started(self, event: events.FlowStarted) -> None:
        flow = self._flow(event.flow, event.time)
        flow.started = event.time
        flow.name, flow.flow_name, flow.runner, flow.slots = event.name, event.flow_name, event.runner, event.slots
        if event.parent_flow is not None:
            flow.parent = self._flow(event.parent_flow, event.time).number
        if event.parent_call is not None and event.parent_call in self._calls:
            flow.parent_call = self._calls[event.parent_call].number

    def flow_finished(self, event: events.FlowFinished) -> None:
        flow = self._flow(event.flow, event.time - event.seconds)
        flow.finished, flow.state, flow.message = max(event.time, flow.started), event.state, event.message

    def _flow(self, id: str, time: float) -> FlowRun:
        flow = self._flows.get(id)
        if flow is None:
            flow = self._flows[id] = FlowRun(len(self._history.flows), id, time)
            self._history.flows.append(flow)
        return flow

    # Calls

    def call_created(self, event: events.CallCreated) -> None:
        call = self._new_call(event.call, event.flow, event.task, event.name, event.time)
        call.runner = event.runner
        if event.parent in self._calls:
            call.parent = self._calls[event.parent].number
        call.needs = tuple(self._calls[need].number for need in event.needs if need in self._calls)

    def _new_call(self, number: int, flow: str, task: str, name: str, time: float) -> Call:
        call = Call(len(self._history.calls), self._flow(flow, time).number, task, name, time)
        self._history.calls.append(call)
        self._calls[number] = call
        return call

    def call_ready(self, event: events.CallReady) -> None:
        call = self._calls.get(event.call)
        if call is not None:
            call.name = event.name
            # It is told again before each attempt.
            call.ready = event.time if call.ready is None else call.ready

    def call_sent(self, event: events.CallSent) -> None:
        call = self._calls.get(event.call)
        if call is not None:
            _attempt(call, event.attempt).sent = event.time
            call.bytes_in = event.bytes_in

    def call_started(self, event: events.CallStarted) -> None:
        call = self._calls.get(event.call)
        if call is not None:
            attempt = _attempt(call, event.attempt)
            attempt.started, attempt.worker, attempt.slot = event.time, event.worker, event.slot
            if call.finished is None:
                call.state = "Running"

    def call_retrying(self, event: events.CallRetrying) -> None:
        call = self._calls.get(event.call)
        if call is not None:
            attempt = _attempt(call, event.attempt)
            attempt.ended, attempt.state, attempt.delay = event.time, event.state, event.delay
            attempt.message = event.message
            call.state = "Retrying"

    def call_finished(self, event: events.CallFinished) -> None:
        call = self._calls.get(event.call)
        if call is None:
            # It was created before anybody listened.
            begin = event.time - event.seconds
            call = self._new_call(event.call, event.flow, event.task, event.name, begin)
        call.finished, call.state, call.name = event.time, event.state, event.name
        call.bytes_in, call.bytes_out = event.bytes_in or call.bytes_in, event.bytes_out
        call.message, call.traceback = event.message, event.traceback
        if event.attempt:
            attempt = _attempt(call, event.attempt)
            attempt.ended, attempt.state = event.time, event.state
            attempt.worker, attempt.slot = event.worker or attempt.worker, event.slot if event.worker else attempt.slot
            if attempt.started is None:
                attempt.started = event.time - event.seconds

    # What stands beside them

    def log(self, event: events.LogRecord) -> None:
        flow = self._flows.get(event.flow or "")
        call = None if event.call is None else self._calls.get(event.call)
        numbers = (None if flow is None else flow.number, None if call is None else call.number)
        self._history.logs.append(Log(event.time, event.level, event.message, *numbers))

    def worker_up(self, event: events.WorkerUp) -> None:
        worker = self._history.workers.setdefault(event.worker, Worker(event.worker))
        worker.host, worker.pid, worker.runner, worker.up = event.host, event.pid, event.runner, event.time

    def worker_down(self, event: events.WorkerDown) -> None:
        worker = self._history.workers.setdefault(event.worker, Worker(event.worker))
        worker.down, worker.reason = event.time, event.reason


_TAKERS: Final[dict[type[Any], Callable[[_Reader, Any], None]]] = {
    events.StreamStarted: _Reader.stream_started,
    events.FlowStarted: _Reader.flow_started,
    events.FlowFinished: _Reader.flow_finished,
    events.CallCreated: _Reader.call_created,
    events.CallReady: _Reader.call_ready,
    events.CallSent: _Reader.call_sent,
    events.CallStarted: _Reader.call_started,
    events.CallRetrying: _Reader.call_retrying,
    events.CallFinished: _Reader.call_finished,
    events.LogRecord: _Reader.log,
    events.WorkerUp: _Reader.worker_up,
    events.WorkerDown: _Reader.worker_down,
}


def _attempt(call: Call, number: int) -> Attempt:
    for attempt in reversed(call.attempts):
        if attempt.number == number:
            return attempt
    call.attempts.append(Attempt(number))
    call.attempts.sort(key=lambda attempt: attempt.number)
    return call.attempts[-1] if call.attempts[-1].number == number else _attempt(call, number)


def _straighten(call: Call) -> None:
    """Have no time of a call be before an earlier one: clocks of hosts are put right to some microseconds only.

    A body that another process ran has begun and ended when that process says so, so that what led to it gives way.
    """
    limit = call.finished
    for attempt in reversed(call.attempts):
        attempt.ended = limit if attempt.ended is None else _at_most(attempt.ended, limit)
        if attempt.ended is not None and limit is not None:
            attempt.delay = min(attempt.delay, limit - attempt.ended)
        if attempt.started is not None:
            limit = attempt.started = _at_most(attempt.started, attempt.ended)
        if attempt.sent is not None:
            limit = attempt.sent = _at_most(attempt.sent, limit)
    if call.ready is not None:
        limit = call.ready = _at_most(call.ready, limit)
    call.created = _at_most(call.created, limit)


def _at_most(time: float, limit: float | None) -> float:
    return time if limit is None else min(time, limit)
