"""What is made of runs that are over, from the command line: reports, traces, graphs, comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from integration_tests.commands import turnout_command
from integration_tests.made_up_runs import made_up_run, write

HALVES: Final = """
from turnout import flow, task

@task
def half(number):
    if number == 7:
        raise ValueError(f"{number} is odd")
    return number / 2

@flow
def halves(numbers: list[int]):
    print("the body runs")
    return half.map(numbers)
"""

# A Python that starts without these libraries, though they are installed.
BARE: Final = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("bokeh", "networkx") else find(name, *rest)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "halves.py").write_text(HALVES)
    write(tmp_path / "run.jsonl", made_up_run(200))
    write(tmp_path / "other.jsonl", made_up_run(200, workers=1, seed=3))
    return tmp_path


def test_a_report_is_written_beside_the_events(folder: Path) -> None:
    assert turnout_command("report", "run.jsonl", cwd=folder) == (0, "run.html\n", "")
    assert "<title>weather: Turnout report</title>" in (folder / "run.html").read_text()
    assert turnout_command("report", "run.jsonl", "-o", "page.html", cwd=folder).out == "page.html\n"
    assert (folder / "page.html").stat().st_size > 500_000


def test_a_trace_is_written_beside_the_events(folder: Path) -> None:
    assert turnout_command("trace", "run.jsonl", cwd=folder) == (0, "run.trace.json\n", "")
    assert json.loads((folder / "run.trace.json").read_text())["traceEvents"]


def test_the_graph_of_events_is_printed_or_saved(folder: Path) -> None:
    ended = turnout_command("graph", "run.jsonl", cwd=folder)
    assert ended.status == 0
    assert "median" in ended.out
    assert "1 failed" in ended.out
    assert turnout_command("graph", "run.jsonl", "-o", "run.mmd", cwd=folder) == (0, "", "")
    assert (folder / "run.mmd").read_text() == ended.out


def test_two_runs_are_compared(folder: Path) -> None:
    ended = turnout_command("compare", "run.jsonl", "other.jsonl", cwd=folder)
    assert ended.status == 0
    assert ended.out.splitlines()[0].split() == ["run.jsonl", "other.jsonl", "change"]
    assert any(
        line.startswith("workers") and line.split()[1:] == ["4", "1", "x", "0.25"] for line in ended.out.splitlines()
    )
    record = json.loads(turnout_command("compare", "run.jsonl", "other.jsonl", "--json", cwd=folder).out)
    assert [run["workers"] for run in record["runs"]] == [4, 1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "none.jsonl"], "none.jsonl can't be read as events: No such file or directory; "),
        (["trace", "halves.py"], "halves.py can't be read as events: Line 1 is no event"),
        (["compare", "run.jsonl", "empty.jsonl"], "empty.jsonl has no events of flows; such files are written by: "),
        (["graph", "run.jsonl", "-p", "x=1"], "run.jsonl tells of a run that had its parameters: leave out -p x=1"),
        (
            ["report", "run.jsonl", "-o", "nowhere/run.html"],
            "nowhere/run.html can't be written: there is no folder nowhere",
        ),
        (["run", "halves.py", "--trace", "nowhere/a"], "nowhere/a can't be written: there is no folder nowhere"),
    ],
)
def test_what_can_not_be_done_is_told_in_a_line(folder: Path, arguments: list[str], told: str) -> None:
    (folder / "empty.jsonl").write_text("")
    ended = turnout_command(*arguments, cwd=folder)
    assert (ended.status, ended.out) == (2, "")
    assert told in ended.line


@pytest.mark.parametrize("runner", ["sequential", "thread", "process"])
def test_a_run_leaves_a_report_and_a_trace_however_it_ends(folder: Path, runner: str) -> None:
    for numbers, status in (("[2, 4]", 0), ("[2, 7]", 1)):
        options = ("--runner", runner, "--report", "out.html", "--trace", "out.json", "--events", "out.jsonl")
        ended = turnout_command("run", "halves.py", "-p", f"numbers={numbers}", *options, cwd=folder)
        assert ended.status == status, ended.err
        assert "halves: Turnout report" in (folder / "out.html").read_text()
        events = json.loads((folder / "out.json").read_text())["traceEvents"]
        calls = [event for event in events if event.get("cat") == "call"]
        assert [event["name"] for event in calls] == ["half", "half"]
        assert {event["args"]["state"] for event in calls} == {"Completed"} | ({"Failed"} if status else set())
        # What was written meanwhile says the same.
        assert turnout_command("trace", "out.jsonl", "-o", "again.json", cwd=folder).status == 0
        assert len(json.loads((folder / "again.json").read_text())["traceEvents"]) == len(events)


def test_what_to_install_is_told_before_anything_runs(folder: Path) -> None:
    (folder / "bare").mkdir()
    (folder / "bare" / "sitecustomize.py").write_text(BARE)
    for arguments in (["report", "run.jsonl"], ["run", "halves.py", "-p", "numbers=[2]", "--report", "out.html"]):
        ended = turnout_command(*arguments, cwd=folder, environment={"PYTHONPATH": str(folder / "bare")})
        assert (ended.status, ended.out) == (2, "")
        assert "bokeh and networkx can't be imported. Install them: pip install 'turnout[report]'" in ended.line
    assert turnout_command("trace", "run.jsonl", cwd=folder).status == 0
