"""What is made of events when flows are over: phases, lanes, the critical path, where time went, graph and trace."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from integration_tests.made_up_runs import made_up_run, write
from turnout import events
from turnout.history._comparison import as_record, task_lines, whole_lines
from turnout.history._critical_path import Step, critical_path
from turnout.history._graphs import graph_of
from turnout.history._lanes import busiest, lanes_of
from turnout.history._reading import history_of
from turnout.history._records import Call, History
from turnout.history._summary import Summary
from turnout.history._trace import save_trace, trace_events


class Flow:
    """Events of a flow, written down call by call."""

    def __init__(self, slots: int | None = 2) -> None:
        self.events: list[events.Event] = [events.FlowStarted(0.0, "f", "main-1", "main", "thread", slots)]

    def call(
        self,
        number: int,
        created: float,
        started: float,
        ended: float,
        *,
        needs: Sequence[int] = (),
        ready: float | None = None,
        parent: int | None = None,
        flow: str = "f",
        task: str = "step",
        slot: int = 0,
        state: str = "Completed",
    ) -> Flow:
        name = f"{task}-{number}"
        self.events += [
            events.CallCreated(created, number, flow, task, name, "thread", parent, tuple(needs)),
            events.CallReady(created if ready is None else ready, number, name),
            events.CallStarted(started, number, 1, "here:1", slot),
            events.CallFinished(ended, number, flow, task, name, state, 1, ended - started, "here:1", "here", 1, slot),
        ]
        return self

    def end(self, time: float, flow: str = "f") -> Flow:
        self.events.append(events.FlowFinished(time, flow, "Completed", time))
        return self

    @property
    def history(self) -> History:
        return history_of(self.events)


def phases(call: Call, end: float = 100.0) -> list[tuple[str, float, float]]:
    return [(name, begin, until) for name, begin, until in call.phases(end) if until > begin]


def told(steps: Sequence[Step]) -> list[tuple[str, float, float, int | None]]:
    return [(step.name, step.begin, step.end, step.call) for step in steps]


# Calls


def test_a_call_waits_is_queued_is_sent_and_runs() -> None:
    stream: list[events.Event] = [
        events.CallCreated(1.0, 5, "f", "load", "load", "process"),
        events.CallReady(2.0, 5, "load-five"),
        events.CallSent(4.0, 5, 1, 9, 800),
        events.CallStarted(7.0, 5, 1, "node1:3", 2),
        events.CallFinished(
            11.0, 5, "f", "load", "load-five", "Completed", 1, 4.0, "node1:3", "node1", 3, 2, 9, 800, 70
        ),
    ]
    (call,) = history_of(stream).calls
    assert phases(call) == [("waiting", 1, 2), ("queued", 2, 4), ("sending", 4, 7), ("running", 7, 11)]
    assert (call.name, call.state, call.bytes_in, call.bytes_out) == ("load-five", "Completed", 800, 70)
    assert (call.attempts[0].worker, call.attempts[0].slot) == ("node1:3", 2)


def test_a_call_that_is_run_again_has_phases_of_each_attempt() -> None:
    stream: list[events.Event] = [
        events.CallCreated(0.0, 1, "f", "load", "load-0", "thread"),
        events.CallReady(0.0, 1, "load-0"),
        events.CallStarted(1.0, 1, 1, "here:1"),
        events.CallRetrying(3.0, 1, 1, "Failed", 2.0, "ValueError: no"),
        events.CallReady(5.0, 1, "load-0"),
        events.CallStarted(6.0, 1, 2, "here:1"),
        events.CallFinished(8.0, 1, "f", "load", "load-0", "Completed", 2, 2.0, "here:1"),
    ]
    (call,) = history_of(stream).calls
    assert phases(call) == [
        ("queued", 0, 1),
        ("running", 1, 3),
        ("retrying", 3, 5),
        ("queued", 5, 6),
        ("running", 6, 8),
    ]
    assert [(attempt.state, attempt.message) for attempt in call.attempts] == [
        ("Failed", "ValueError: no"),
        ("Completed", ""),
    ]


def test_a_call_may_be_run_again_sooner_than_it_was_told() -> None:
    stream: list[events.Event] = [
        events.CallCreated(1.0, 1, "f", "load", "load-0", "thread"),
        events.CallStarted(1.0, 1, 1, "here:1"),
        events.CallRetrying(3.0, 1, 1, "Crashed", 5.0),
        events.CallStarted(4.0, 1, 2, "here:1"),
        events.CallFinished(8.0, 1, "f", "load", "load-0", "Completed", 2, 4.0, "here:1"),
    ]
    (call,) = history_of(stream).calls
    assert phases(call) == [("running", 1, 3), ("retrying", 3, 4), ("running", 4, 8)]


def test_a_call_without_a_body_waits_only() -> None:
    stream: list[events.Event] = [
        events.CallCreated(1.0, 1, "f", "load", "load-0", "thread"),
        events.CallFinished(4.0, 1, "f", "load", "load-0", "UpstreamFailed", 0, 0.0),
    ]
    (call,) = history_of(stream).calls
    assert phases(call) == [("waiting", 1, 4)]
    assert call.has_failed


def test_an_end_of_which_nothing_else_is_known_is_a_call() -> None:
    stream = [events.CallFinished(4.0, 1, "f", "load", "load-0", "Completed", 1, 3.0, "here:1")]
    (call,) = history_of(stream).calls
    assert phases(call) == [("running", 1, 4)]


def test_times_run_forwards_though_clocks_disagree() -> None:
    stream: list[events.Event] = [
        events.CallCreated(2.0, 1, "f", "load", "load-0", "process"),
        events.CallReady(2.0, 1, "load-0"),
        events.CallSent(3.0, 1, 1, 1, 10),
        events.CallStarted(1.5, 1, 1, "node1:3"),
        events.CallFinished(2.5, 1, "f", "load", "load-0", "Completed", 1, 1.0, "node1:3"),
    ]
    (call,) = history_of(stream).calls
    assert phases(call) == [("running", 1.5, 2.5)]


def test_calls_of_two_streams_in_one_file_are_told_apart() -> None:
    first = Flow().call(1, 0, 1, 2).end(2).events
    second = [event for event in Flow().call(1, 0, 1, 9).end(9).events if not isinstance(event, events.CallCreated)]
    begun = events.StreamStarted(0.0, 1, "0", "here", 1)
    assert [call.finished for call in history_of([begun, *first, begun, *second]).calls] == [2, 9]


@pytest.mark.parametrize("seed", range(5))
def test_phases_of_a_call_have_no_gaps_and_make_up_its_life(seed: int) -> None:
    history = history_of(made_up_run(300, seed=seed))
    for call in history.calls:
        found = list(call.phases(history.end))
        assert found[0].begin == call.created
        assert found[-1].end == call.finished
        assert all(one.end == other.begin for one, other in itertools.pairwise(found))
        assert all(phase.end >= phase.begin for phase in found)


def test_events_that_end_anywhere_are_understood() -> None:
    stream = made_up_run(200)
    dice = random.Random(3)
    for length in [0, 1, 2, *(dice.randrange(len(stream)) for _ in range(60))]:
        history = history_of(stream[:length])
        summary = Summary(history)
        steps = critical_path(history)
        assert history.is_cut == bool(history.flows)
        assert 0 <= summary.utilisation <= 1
        assert sum(step.seconds for step in steps) == pytest.approx(history.seconds if history.flows else 0)
        assert length < 2 or str(graph_of(history)).startswith("flowchart")
        assert list(trace_events(history))


def test_what_is_open_ends_where_the_events_do() -> None:
    stream = Flow().call(1, 0, 1, 50).events[:-1]
    history = history_of([*stream, events.LogRecord(9.0, "INFO", "turnout", "hello", "f", 1)])
    assert history.end == 9
    assert history.calls[0].state == "Running"
    assert phases(history.calls[0], history.end) == [("queued", 0, 1), ("running", 1, 9)]
    assert history.logs[0].call == 0


# Lanes


def test_calls_inside_of_others_are_deeper_and_count_once() -> None:
    history = (
        Flow().call(1, 0, 1, 9).call(2, 2, 2, 4, parent=1).call(3, 3, 3, 4, parent=2).call(4, 5, 5, 6).end(10).history
    )
    (lane,) = lanes_of(history)
    assert [(bar.call.number, bar.depth) for bar in lane.bars] == [(0, 0), (1, 1), (2, 2), (3, 1)]
    assert lane.busy == 8


def test_calls_that_overlap_in_one_slot_get_lanes_of_their_own() -> None:
    history = Flow().call(1, 0, 1, 5).call(2, 0, 3, 8).call(3, 0, 6, 7).end(10).history
    assert [[bar.call.number for bar in lane.bars] for lane in lanes_of(history)] == [[0, 2], [1]]
    assert busiest(lanes_of(history)) == 2


def test_slots_of_a_worker_are_beside_each_other() -> None:
    lanes = lanes_of(history_of(made_up_run(400, workers=3, slots=2)))
    workers = [lane.worker for lane in lanes]
    assert [name for name, _ in itertools.groupby(workers)] == list(dict.fromkeys(workers))
    assert len(lanes) == 6


# Where the time went


def test_the_summary_of_a_flow() -> None:
    flow = Flow(slots=2).call(1, 0, 1, 3).call(2, 0, 0, 6, slot=1, state="Failed").call(3, 0, 3, 4, task="other")
    summary = Summary(flow.call(4, 0, 4, 5).end(10).history)
    step, other = summary.tasks
    assert (step.task, step.calls, step.failures, step.median, step.longest) == ("step", 3, 1, 2, 6)
    assert (other.task, other.seconds["running"], other.per_call("queued")) == ("other", 1, 3)
    assert (summary.slots, summary.busy, summary.idle, summary.utilisation) == (2, 10, 10, 0.5)
    assert summary.states == {"Completed": 3, "Failed": 1}


def test_there_are_as_many_slots_as_were_busy_where_nobody_told() -> None:
    flow = Flow(slots=None).call(1, 0, 1, 3).call(2, 0, 0, 6, slot=1).call(3, 0, 2, 4, slot=2)
    assert Summary(flow.end(10).history).slots == 3


# The critical path


def test_the_path_leads_through_what_was_needed_last() -> None:
    flow = Flow().call(1, 0, 1, 3).call(2, 0, 0, 6, slot=1).call(3, 0, 7, 9, needs=(1, 2), ready=6.5)
    assert told(critical_path(flow.end(10).history)) == [
        ("running", 0, 6, 1),
        ("waiting", 6, 6.5, 2),
        ("queued", 6.5, 7, 2),
        ("running", 7, 9, 2),
        ("body", 9, 10, None),
    ]


def test_the_path_leads_through_what_the_body_waited_for() -> None:
    flow = Flow().call(1, 1, 1, 4).call(2, 5, 5, 8)
    assert told(critical_path(flow.end(8).history)) == [
        ("body", 0, 1, None),
        ("running", 1, 4, 0),
        ("body", 4, 5, None),
        ("running", 5, 8, 1),
    ]


def test_a_body_that_submits_without_waiting_waits_for_nothing() -> None:
    flow = Flow(slots=1)
    for number in range(100):
        flow.call(number, number * 0.0001, number * 0.0001 + 0.00005, number * 0.0001 + 0.00006)
    flow.call(100, 0.0101, 0.02, 1)
    assert [step.call for step in critical_path(flow.end(1).history)] == [None, 100, 100]


def test_the_path_leads_through_nested_calls() -> None:
    flow = Flow().call(1, 0, 1, 9).call(2, 2, 3, 7, parent=1, slot=1)
    assert told(critical_path(flow.end(9).history)) == [
        ("queued", 0, 1, 0),
        ("running", 1, 2, 0),
        ("queued", 2, 3, 1),
        ("running", 3, 7, 1),
        ("running", 7, 9, 0),
    ]


def test_the_path_leads_through_subflows() -> None:
    flow = Flow()
    flow.events.append(events.FlowStarted(1.0, "g", "inner-1", "inner", "thread", None, "f"))
    flow.call(1, 2, 2, 5, flow="g").end(6, "g").end(8)
    assert [(step.name, step.begin, step.end, step.flow) for step in critical_path(flow.history)] == [
        ("body", 0, 1, 0),
        ("body", 1, 2, 1),
        ("running", 2, 5, 1),
        ("body", 5, 6, 1),
        ("body", 6, 8, 0),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_path_has_no_gaps_from_the_beginning_to_the_end(seed: int) -> None:
    history = history_of(made_up_run(400, seed=seed, workers=seed % 4 + 1))
    steps = critical_path(history)
    assert steps[0].begin == history.begin
    assert steps[-1].end == history.end
    assert all(one.end == pytest.approx(other.begin, abs=1e-6) for one, other in itertools.pairwise(steps))
    assert {step.name for step in steps} >= {"body", "queued", "sending", "running"}


# The graph


def test_the_graph_of_a_run_has_times_and_failures() -> None:
    flow = Flow().call(1, 0, 0, 1, task="load").call(2, 0, 0, 3, task="load", slot=1, state="Failed")
    flow.call(3, 0, 3, 4, task="add", needs=(1, 2)).call(4, 3, 3.25, 3.5, task="inner", parent=3)
    assert str(graph_of(flow.end(4).history)) == (
        "flowchart TD\n"
        '    subgraph f0["main"]\n'
        "        direction TD\n"
        '        n0("load x 2<br/>4 s, median 2 s<br/>1 failed")\n'
        '        n1("add<br/>1 s")\n'
        '        n2("inner<br/>250 ms")\n'
        "    end\n"
        "    n0 --> n1\n"
        '    n1 -->|"submits"| n2'
    )


def test_a_call_that_submits_itself_ends_up_in_few_nodes() -> None:
    flow = Flow()
    for number in range(1, 200):
        flow.call(number, number, number, 400 - number, parent=number - 1 if number > 1 else None)
    text = str(graph_of(flow.end(500).history))
    assert '"submits"| n1' in text
    assert text.count("n") < 100
    assert "dotted" in graph_of(flow.history).dot()


# The trace


def trace(history: History) -> list[dict[str, Any]]:
    return list(trace_events(history))


def test_a_trace_is_json_in_the_format_of_chrome(tmp_path: Path) -> None:
    save_trace(history_of(made_up_run(300)), tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text())
    assert saved["displayTimeUnit"] == "ms"
    for event in saved["traceEvents"]:
        assert {"ph", "name", "pid", "tid"} <= set(event)
        assert event["ph"] in "MXsf"
        assert event["ph"] == "M" or event["ts"] >= 0
        assert event["ph"] != "X" or event["dur"] >= 0


def test_processes_of_a_trace_are_workers_and_threads_are_slots() -> None:
    history = history_of(made_up_run(300, workers=2, slots=3))
    names = {
        (event["name"], event["pid"], event["tid"]): event["args"]["name"]
        for event in trace(history)
        if event["ph"] == "M" and "name" in event["args"]
    }
    workers = {name for (what, _, _), name in names.items() if what == "process_name"}
    assert workers == {"flows", "node0:200", "node1:201"}
    assert names["thread_name", 1, 2] == "slot 2"
    assert names["thread_name", 0, 0] == "weather-7"


def test_calls_of_a_trace_are_nested_or_apart() -> None:
    history = history_of(made_up_run(400))
    threads: dict[tuple[int, int], list[float]] = {}
    count = 0
    for event in trace(history):
        if event["ph"] == "X" and event["cat"] == "call":
            count += 1
            around = threads.setdefault((event["pid"], event["tid"]), [])
            while around and around[-1] <= event["ts"] + 0.01:
                around.pop()
            assert not around or event["ts"] + event["dur"] <= around[-1] + 0.01
            around.append(event["ts"] + event["dur"])
    assert count == sum(len(call.attempts) for call in history.calls)


def test_an_arrow_of_a_trace_leads_from_the_call_that_was_waited_for() -> None:
    flow = Flow().call(1, 0, 1, 3).call(2, 0, 0, 6, slot=1).call(3, 0, 7, 9, needs=(1, 2), ready=6.5)
    begin, end = (event for event in trace(flow.end(9).history) if event["cat" if "cat" in event else "ph"] == "needs")
    assert (begin["ph"], begin["ts"], begin["tid"]) == ("s", 6e6, 1)
    assert (end["ph"], end["ts"], end["tid"], end["bp"]) == ("f", 7e6, 0, "e")
    assert begin["id"] == end["id"]


# Two runs


def test_two_runs_side_by_side() -> None:
    first = Flow(slots=1).call(1, 0, 1, 3, task="same").call(2, 0, 3, 7, task="slower").end(8)
    second = (
        Flow(slots=2)
        .call(1, 0, 1, 3, task="same")
        .call(2, 0, 3, 11, task="slower")
        .call(3, 0, 1, 2, task="new", slot=1)
    )
    pair = Summary(first.history), Summary(second.end(16).history)
    lines = {line.name: line[1:] for line in whole_lines(*pair)}
    assert lines["took"] == ("8 s", "16 s", "x 2")
    assert lines["calls"] == ("2", "3", "x 1.5")
    assert lines["flow"] == ("main", "main", "")
    assert lines["idle"] == ("2 s", "21 s", "x 10.5")
    names = [line[0] for line in task_lines(*pair)]
    assert names == ["slower", "new", "same"]
    assert task_lines(*pair)[0][1:4] == ("1", "4 s > 8 s", "4 s > 8 s")
    record = json.loads(json.dumps(as_record(*pair)))
    assert [run["seconds"] for run in record["runs"]] == [8, 16]
    assert record["tasks"][1]["runs"][0]["calls"] == 0


def test_events_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    stream = made_up_run(100)
    assert list(events.read(write(tmp_path / "run.jsonl", stream))) == stream
