"""Two runs side by side: of the same flow on two runners, say, or before and after a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .._units import shown_seconds
from ._summary import Summary, TaskSummary

__all__ = ["Line", "as_record", "task_lines", "whole_lines"]


class Line(NamedTuple):
    """A line of a table: what is compared, and what it is in either run."""

    name: str
    first: str
    second: str
    change: str = ""


def whole_lines(first: Summary, second: Summary) -> list[Line]:
    """Return the lines about the whole of two runs.

    Examples
    --------
    >>> from turnout.history._records import History
    >>> [line for line in whole_lines(Summary(History(end=2.0)), Summary(History(end=3.0))) if line.name == "took"]
    [Line(name='took', first='2 s', second='3 s', change='x 1.5')]
    """
    both = _whole(first), _whole(second)
    lines = [Line(name, _of_flows(first, name), _of_flows(second, name)) for name in ("flow", "runner", "state")]
    return [*lines, *(_line(name, *(one[name] for one in both)) for name in _SHOWN)]


def task_lines(first: Summary, second: Summary) -> list[tuple[str, ...]]:
    """Return a line for each task, first that in which all calls together differ most.

    Each has its name; its calls, how long a body ran, and all of them; per call how long it waited for others, was
    queued for room and sent.
    """
    return [_task_line(name, *pair) for name, *pair in _pairs(first, second)]


def as_record(first: Summary, second: Summary) -> dict[str, Any]:
    """Return the comparison as JSON can hold it; times are in seconds."""
    return {
        "runs": [_run_record(first), _run_record(second)],
        "tasks": [
            {"task": name, "runs": [_task_record(one), _task_record(other)]}
            for name, one, other in _pairs(first, second)
        ],
    }


# The whole


def _whole(summary: Summary) -> dict[str, float]:
    history = summary.history
    return {
        "took": history.seconds,
        "calls": len(history.calls),
        "failed": sum(task.failures for task in summary.tasks),
        "attempts made again": sum(task.retries for task in summary.tasks),
        **{str(phase): seconds for phase, seconds in summary.seconds.items()},
        "workers": len({lane.worker for lane in summary.lanes}),
        "slots": summary.slots,
        "idle": summary.idle,
        "slots busy": summary.utilisation,
    }


def _percent(part: float) -> str:
    return f"{part:.1%}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


# How each of these is written. Times of calls are those of all of them together.
_SHOWN: Final[dict[str, Callable[[float], str]]] = {
    "took": shown_seconds,
    "calls": _count,
    "failed": _count,
    "attempts made again": _count,
    "running": shown_seconds,
    "waiting": shown_seconds,
    "queued": shown_seconds,
    "sending": shown_seconds,
    "retrying": shown_seconds,
    "idle": shown_seconds,
    "slots busy": _percent,
    "slots": _count,
    "workers": _count,
}


def _line(name: str, first: float, second: float) -> Line:
    shown = _SHOWN[name]
    change = "" if first == second or not first else f"x {second / first:.3g}"
    return Line(name, shown(first), shown(second), change)


def _of_flows(summary: Summary, name: str) -> str:
    attribute = "flow_name" if name == "flow" else name
    return ", ".join(dict.fromkeys(getattr(flow, attribute) for flow in summary.history.roots))


def _run_record(summary: Summary) -> dict[str, Any]:
    whole = {name.replace(" ", "_"): value for name, value in _whole(summary).items()}
    told: dict[str, Any] = {name: _of_flows(summary, name) for name in ("flow", "runner", "state")}
    return told | {"seconds": whole.pop("took")} | whole


# Tasks


def _pairs(first: Summary, second: Summary) -> list[tuple[str, TaskSummary, TaskSummary]]:
    ones, others = ({task.task: task for task in summary.tasks} for summary in (first, second))
    names = dict.fromkeys([*ones, *others])
    pairs = [(name, ones.get(name, TaskSummary(name)), others.get(name, TaskSummary(name))) for name in names]
    return sorted(pairs, key=lambda pair: -_difference(*pair[1:]))


def _difference(first: TaskSummary, second: TaskSummary) -> float:
    """Return how much two runs differ in a task: in what its calls cost, not in how long they had to wait."""
    return sum(abs(first.seconds[phase] - second.seconds[phase]) for phase in ("running", "sending", "retrying"))


def _task_line(name: str, *pair: TaskSummary) -> tuple[str, ...]:
    times: list[Callable[[TaskSummary], float]] = [
        lambda task: task.median,
        lambda task: task.seconds["running"],
        lambda task: task.per_call("waiting"),
        lambda task: task.per_call("queued"),
        lambda task: task.per_call("sending"),
    ]
    calls = _both(*(f"{task.calls:,}" for task in pair))
    return name, calls, *(_both(*(shown_seconds(time(task)) for task in pair)) for time in times)


def _both(first: str, second: str) -> str:
    return first if first == second else f"{first} > {second}"


def _task_record(task: TaskSummary) -> dict[str, Any]:
    counts = {"calls": task.calls, "failed": task.failures, "attempts_made_again": task.retries}
    return counts | {"median": task.median, "longest": task.longest} | task.seconds
