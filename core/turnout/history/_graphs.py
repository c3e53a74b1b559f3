"""The graph of calls that have run, with their times."""

from __future__ import annotations

from .._graph import Graph
from .._graph_records import CallRecord, FlowRecord, Need
from ._records import Call, FlowRun, History

__all__ = ["graph_of", "records_of"]


def graph_of(history: History) -> Graph:
    """Return the graph of what some flow runs submitted, and what waited for what.

    Examples
    --------
    >>> from turnout import events
    >>> from turnout.history._reading import history_of
    >>> stream = [
    ...     events.FlowStarted(1.0, "f", "sums-1", "sums", "thread"),
    ...     events.CallCreated(1.0, 7, "f", "load", "load-0", "thread"),
    ...     events.CallCreated(1.0, 8, "f", "add", "add-0", "thread", needs=(7,)),
    ...     events.CallFinished(3.0, 7, "f", "load", "load-0", "Completed", 1, 1.5),
    ... ]
    >>> print(graph_of(history_of(stream)))
    flowchart TD
        subgraph f0["sums"]
            direction TD
            n0("load<br/>1.5 s")
            n1("add")
        end
        n0 --> n1
    """
    return Graph(*records_of(history))


def records_of(history: History) -> tuple[list[FlowRecord], list[CallRecord]]:
    """Return what a graph is made of.

    Events don't tell which piece of the code submitted a call; the task in whose body that was stands for it.
    """
    return [_flow(history, flow) for flow in history.flows], [_call(history, call) for call in history.calls]


def _flow(history: History, flow: FlowRun) -> FlowRecord:
    needs = () if flow.parent_call is None else (Need(flow.parent_call, submits=True),)
    around = None if flow.parent is None else history.flows[flow.parent].runner
    return FlowRecord(
        flow.flow_name, flow.parent, needs, None if flow.runner in ("", around) or not around else flow.runner
    )


def _call(history: History, call: Call) -> CallRecord:
    needs = tuple(map(Need, dict.fromkeys(call.needs)))
    place = None
    if call.parent is not None:
        needs += (Need(call.parent, submits=True),)
        place = history.calls[call.parent].task
    began = call.began()
    seconds = None if began is None or call.finished is None else call.finished - began
    return CallRecord(call.task, call.flow, needs, place=place, seconds=seconds, has_failed=call.has_failed)
