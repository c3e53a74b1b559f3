"""What ran where, in Chrome's trace format, which Perfetto and ``chrome://tracing`` open.

A process of the trace is a worker, a thread of it is a slot, and the first process has the flow runs as its threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ._lanes import Bar, Lane, lanes_of
from ._records import Call, FlowRun, History

__all__ = ["save_trace", "trace_events"]

# The number of the process that holds the flow runs.
_FLOWS: Final = 0


def save_trace(history: History, path: Path) -> None:
    """Write the trace of some flow runs to a file, of JSON.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        # One by one: there may be a million.
        for number, event in enumerate(trace_events(history)):
            file.write(f"{',' if number else ''}{json.dumps(event)}\n")
        file.write("]}\n")


def trace_events(history: History) -> Iterator[dict[str, Any]]:
    """Yield the events of a trace. Their times are in microseconds since the first flow run began."""
    yield _named("process_name", _FLOWS, 0, "flows")
    for flow in history.flows:
        yield _named("thread_name", _FLOWS, flow.number, flow.name)
        yield _flow_event(history, flow)
    lanes = lanes_of(history)
    processes: dict[str, int] = {}
    threads: dict[int, int] = {}
    places: dict[int, tuple[int, int, Bar]] = {}
    for lane in lanes:
        process = processes.setdefault(lane.worker, len(processes) + 1)
        thread = threads[process] = threads.get(process, -1) + 1
        yield from _lane_events(history, lane, process, thread)
        # Later attempts at a call replace earlier ones.
        places |= {bar.call.number: (process, thread, bar) for bar in lane.bars if bar.attempt is bar.call.attempts[-1]}
    for worker, process in processes.items():
        yield _named("process_name", process, 0, worker or "unknown worker")
        yield {**_event("M", "process_sort_index", process, 0), "args": {"sort_index": process}}
    for call in history.calls:
        yield from _arrow(history, call, places)


def _event(phase: str, name: str, process: int, thread: int) -> dict[str, Any]:
    return {"ph": phase, "name": name, "pid": process, "tid": thread}


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {**_event("M", what, process, thread), "args": {"name": name}}


def _micros(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _flow_event(history: History, flow: FlowRun) -> dict[str, Any]:
    finished = history.end if flow.finished is None else flow.finished
    return {
        **_event("X", flow.flow_name, _FLOWS, flow.number),
        "cat": "flow",
        "ts": _micros(flow.started - history.begin),
        "dur": _micros(finished - flow.started),
        "args": {"run": flow.name, "runner": flow.runner, "state": flow.state, "message": flow.message},
    }


def _lane_events(history: History, lane: Lane, process: int, thread: int) -> Iterator[dict[str, Any]]:
    yield _named("thread_name", process, thread, f"slot {lane.slot}")
    for bar in lane.bars:
        arguments: dict[str, Any] = {"run": bar.call.name, "state": bar.attempt.state, "attempt": bar.attempt.number}
        for phase in bar.call.phases(history.end):
            arguments[phase.name] = arguments.get(phase.name, 0.0) + phase.seconds
        message = bar.attempt.message or bar.call.message
        yield {
            **_event("X", bar.call.task, process, thread),
            "cat": "call",
            "ts": _micros(bar.begin - history.begin),
            "dur": _micros(bar.end - bar.begin),
            "args": {**arguments, **({"message": message} if message else {})},
        }


def _arrow(history: History, call: Call, places: dict[int, tuple[int, int, Bar]]) -> Iterator[dict[str, Any]]:
    """Yield an arrow from the last of the calls that another one waited for: from all, there might be very many."""
    ended = [(places[need][2].end, need) for need in call.needs if need in places]
    if not ended or call.number not in places:
        return
    _, last = max(ended)
    for phase, number in (("s", last), ("f", call.number)):
        process, thread, bar = places[number]
        time = bar.end if phase == "s" else bar.begin
        where = {**_event(phase, "needs", process, thread), "cat": "needs", "id": call.number}
        yield {**where, "ts": _micros(time - history.begin), **({"bp": "e"} if phase == "f" else {})}
