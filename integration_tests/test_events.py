"""Events: who is told, when, and what becomes of them in a file."""

from __future__ import annotations

import gc
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from turnout import TaskFuture, events, flow, task
from turnout._call_notes import in_brief
from turnout._event_file import FILE
from turnout._event_stream import EVENT, STREAM
from turnout._trips import Clock
from turnout.errors import EventFileError

DOCS = Path(__file__).resolve().parents[1] / "docs"
NEVER = 3600.0


@task
def double(number: int) -> int:
    return 2 * number


@flow(task_runner="sequential")
def doubled(count: int) -> list[int]:
    return [future.result() for future in double.map(range(count))]


@pytest.fixture(autouse=True)
def _nobody_listens() -> Iterator[None]:
    assert STREAM.put is None
    assert not STREAM.is_elsewhere
    yield
    FILE.end()
    assert STREAM.put is None


# Who listens


def test_what_a_callback_raises_is_logged_and_ends_its_subscription(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    def broken(some: Sequence[events.Event]) -> None:
        told.append(len(some))
        raise ValueError("no ears")

    with events.subscribe(broken, interval_seconds=NEVER) as subscription:
        assert doubled(2) == [0, 2]
        assert STREAM.put is None
        assert doubled(2) == [0, 2]
        subscription.flush()
    assert len(told) == 1
    assert "no ears" in caplog.text


def test_several_are_told_the_same() -> None:
    one: list[events.Event] = []
    other: list[events.Event] = []
    with events.subscribe(one.extend, interval_seconds=NEVER):
        with events.subscribe(other.extend, interval_seconds=NEVER):
            doubled(3)
        doubled(1)
    assert [event for event in one if not isinstance(event, events.StreamStarted)][: len(other) - 1] == other[1:]
    assert len([event for event in one if isinstance(event, events.CallFinished)]) == 4
    assert len([event for event in other if isinstance(event, events.CallFinished)]) == 3


def test_a_callback_may_run_flows() -> None:
    told: list[events.Event] = []

    def run_another(some: Sequence[events.Event]) -> None:
        told.extend(some)
        if any(isinstance(event, events.FlowFinished) for event in some) and len(flows(told)) == 1:
            assert doubled(1) == [0]

    with events.subscribe(run_another, interval_seconds=NEVER):
        assert doubled(2) == [0, 2]
    assert len(flows(told)) == 2


def test_events_are_told_while_a_flow_runs() -> None:
    heard, go = threading.Event(), threading.Event()

    @flow(task_runner="thread")
    def main() -> None:
        double.submit(1).wait()
        assert go.wait(20)

    def listen(some: Sequence[events.Event]) -> None:
        if any(isinstance(event, events.CallFinished) for event in some):
            heard.set()

    with events.subscribe(listen, interval_seconds=0.01):
        running = threading.Thread(target=main)
        running.start()
        assert heard.wait(20)
        go.set()
        running.join()


def test_an_event_keeps_no_argument_or_result_alive() -> None:
    class Value:
        pass

    value: Any = Value()
    seen = weakref.ref(value)

    @task
    def same(given: Any) -> Any:
        return given

    @flow(task_runner="thread")
    def main(values: list[Any]) -> bool:
        future: TaskFuture[Any] | None = same.submit(values.pop())
        assert future is not None
        future.wait()
        del future
        gc.collect()
        return seen() is None

    values = [value]
    del value
    with events.subscribe(lambda _: None, interval_seconds=NEVER):
        assert main(values)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_tells_nobody(tmp_path: Path) -> None:
    script = """
import os, sys
from turnout import events, flow, task

@task
def double(number):
    return 2 * number

@flow(task_runner="thread")
def main():
    return double.submit(1).result()

told = []
with events.subscribe(told.extend):
    main()
    before = len(told)
    child = os.fork()
    if not child:
        assert main() == 2
        os._exit(0 if len(told) == before else 1)
    assert os.waitpid(child, 0)[1] == 0
    main()
assert len(told) > before
"""
    path = tmp_path / "events.jsonl"
    environment = {**os.environ, "TURNOUT_EVENTS": str(path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=50)
    assert len(flows(events.read(path))) == 2


# In a file


def test_a_file_holds_all_flows_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("what was there before")
    path.chmod(0o644)
    monkeypatch.setenv("TURNOUT_EVENTS", str(path))
    doubled(2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = list(events.read(path))
    assert isinstance(first[0], events.StreamStarted)
    assert (first[0].version, first[0].pid) == (events.VERSION, os.getpid())
    assert len([event for event in first if isinstance(event, events.CallFinished)]) == 2
    with pytest.raises(ValueError, match="broken"):
        broken()
    assert flows(events.read(path))[1] == "broken"
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    states = [event.state for event in events.read(path) if isinstance(event, events.FlowFinished)]
    assert states == ["Completed", "Failed", "Crashed"]


@flow(task_runner="sequential")
def broken() -> None:
    raise ValueError("broken")


@flow(task_runner="sequential")
def interrupted() -> None:
    raise KeyboardInterrupt


def test_a_path_that_cant_be_written_is_told_before_the_flow_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int] = []

    @flow(task_runner="sequential")
    def main() -> None:
        began.append(1)

    monkeypatch.setenv("TURNOUT_EVENTS", str(tmp_path / "nowhere" / "events.jsonl"))
    with pytest.raises(EventFileError, match="No such file or directory"):
        main()
    assert began == []
    monkeypatch.delenv("TURNOUT_EVENTS")
    main()


def test_one_process_writes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv("TURNOUT_EVENTS", str(path))
    doubled(1)
    before = path.read_bytes()
    script = "from turnout import flow\n@flow\ndef main(): print('ran')\nmain()"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 1
    assert "ran" not in ended.stdout
    assert "EventFileError: Another process writes its events to" in ended.stderr
    assert path.read_bytes() == before
    monkeypatch.setenv("TURNOUT_EVENTS", str(tmp_path / "{pid}.jsonl"))
    doubled(1)
    assert flows(events.read(tmp_path / f"{os.getpid()}.jsonl")) == ["doubled"]


def test_a_line_is_read_as_it_was_told() -> None:
    told: list[events.Event] = []
    with events.subscribe(told.extend):
        doubled(3)
    assert list(events.parse([f"{events.as_json(event)}\n" for event in told])) == told
    kinds = {type(event) for event in told}
    assert {events.StreamStarted, events.FlowStarted, events.CallCreated, events.WorkerUp} < kinds


def test_what_is_new_in_a_file_is_passed_over() -> None:
    line = json.dumps({"kind": "call_ready", "time": 1.0, "call": 2, "name": "a-0", "colour": "green"})
    assert list(events.parse([f"{line}\n", '{"kind": "tea_break"}\n', '{"kind": "call_rea'])) == [
        events.CallReady(1.0, 2, "a-0")
    ]


def test_the_table_of_the_schema_is_true() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*) \|$", (DOCS / "events.md").read_text(), re.MULTILINE)
    real = [
        (kind.kind.fget(None), kind.__name__, ", ".join(f"`{field}`" for field in kind._fields))
        for kind in get_args(events.Event)
    ]
    assert rows == real


# Clocks


def test_a_right_clock_is_left_alone() -> None:
    clock = Clock()
    assert clock.corrected(10.1, 10.2, 10.0, 10.3) == (10.1, 10.2)
    assert clock.shift == 0


def test_a_wrong_clock_is_corrected_by_as_little_as_can_be() -> None:
    clock = Clock()
    # It is ahead by an hour, and messages take up to 0.1 s.
    assert clock.corrected(3610.1, 3610.2, 10.0, 10.3) == pytest.approx((10.2, 10.3))
    assert clock.corrected(3620.05 + clock.shift, 3620.2 + clock.shift, 20.0, 20.25) == pytest.approx((20.1, 20.25))
    assert clock.shift == pytest.approx(-3599.95)


def test_a_clock_that_is_set_is_corrected_anew() -> None:
    clock = Clock()
    clock.corrected(3610.1, 3610.2, 10.0, 10.3)
    shift = clock.shift
    begin, end = clock.corrected(30.1 + shift, 30.2 + shift, 30.0, 30.3)
    assert 30.0 <= begin <= end <= 30.3
    assert abs(clock.shift) <= 0.1 + 1e-6


# Arguments in brief


class Shy:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Long:
    def __repr__(self) -> str:
        return "long\n" * 100_000


def test_arguments_are_short_and_safe() -> None:
    def load(path: str, *more: object, token: str = "", options: object = None) -> None:
        pass

    deep: list[Any] = []
    deep.append(deep)
    text = in_brief("load", load, ("a" * 100_000, Shy(), Long(), deep), {"options": {"password": "hunter2"}})
    assert len(text) < 320
    assert "Shy whose repr raised RuntimeError" in text
    assert "hunter2" not in text
    assert "hunter2" not in in_brief("load", load, ("tls://me:hunter2@host" + "/x" * 1000,), {"token": "hunter2"})
    assert in_brief("load", load, (10**5000,), {}) == "load(path=<int whose repr raised ValueError>)"


def flows(told: Sequence[events.Event] | Iterator[events.Event]) -> list[str]:
    return [event.flow_name for event in told if isinstance(event, events.FlowStarted)]


def test_rows_hold_events_whole() -> None:
    up = events.WorkerUp(time.time(), "node:1", "node", 1, "dask")
    told: list[events.Event] = []
    with events.subscribe(told.extend):
        assert STREAM.put is not None
        STREAM.put((EVENT, up))
    assert told[1:] == [up]
