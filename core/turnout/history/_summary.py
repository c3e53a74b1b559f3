"""Where the time went: for each task, and for the slots of the runners."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from ._lanes import Lane, busiest, lanes_of
from ._records import PHASES, History, PhaseName

__all__ = ["Summary", "TaskSummary"]


@dataclass(slots=True)
class TaskSummary:
    """What the calls of one task did."""

    task: str
    calls: int = 0
    states: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    failures: int = 0
    seconds: dict[PhaseName, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """How long all calls together were in each phase."""
    bodies: list[float] = field(default_factory=list)
    """How long each body ran, over all attempts; of calls that began."""
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def median(self) -> float:
        """How long a body ran, in seconds; 0 if none did."""
        return statistics.median(self.bodies) if self.bodies else 0.0

    @property
    def longest(self) -> float:
        """How long the longest body ran, in seconds."""
        return max(self.bodies, default=0.0)

    def per_call(self, phase: PhaseName) -> float:
        """Return how long a call was in a phase, on average."""
        return self.seconds[phase] / self.calls if self.calls else 0.0


class Summary:
    """Where the time of some flow runs went.

    Parameters
    ----------
    history
        What they did.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.lanes: list[Lane] = lanes_of(history)
        self.tasks = _tasks(history)

    @cached_property
    def slots(self) -> int:
        """How many calls could run at once: as many as the runners said, or as did."""
        told = sum(flow.slots or 0 for flow in self.history.roots[:1])
        return max(told, busiest(self.lanes))

    @property
    def busy(self) -> float:
        """How long slots were busy, all together, in seconds."""
        return sum(lane.busy for lane in self.lanes)

    @property
    def idle(self) -> float:
        """How long slots had nothing to run, all together, in seconds."""
        return max(0.0, self.slots * self.history.seconds - self.busy)

    @property
    def utilisation(self) -> float:
        """Which part of the time slots were busy, from 0 to 1."""
        whole = self.slots * self.history.seconds
        return min(1.0, self.busy / whole) if whole else 0.0

    @property
    def states(self) -> Counter[str]:
        """How many calls ended in which state."""
        return sum((task.states for task in self.tasks), Counter())

    @property
    def seconds(self) -> dict[PhaseName, float]:
        """How long all calls together were in each phase."""
        return {phase: sum(task.seconds[phase] for task in self.tasks) for phase in PHASES}


def _tasks(history: History) -> list[TaskSummary]:
    """Return what the tasks did, first the one whose bodies ran longest."""
    tasks: dict[str, TaskSummary] = {}
    for call in history.calls:
        task = tasks.get(call.task)
        if task is None:
            task = tasks[call.task] = TaskSummary(call.task)
        task.calls += 1
        task.states[call.state] += 1
        task.failures += call.has_failed
        task.retries += max(0, len(call.attempts) - 1)
        task.bytes_in += call.bytes_in
        task.bytes_out += call.bytes_out
        body = 0.0
        for name, begin, end in call.phases(history.end):
            task.seconds[name] += end - begin
            if name == "running":
                body += end - begin
        if call.began() is not None:
            task.bodies.append(body)
    return sorted(tasks.values(), key=lambda task: -task.seconds["running"])
