"""Events turned into counts: how many calls of each task are done, how fast they get done, and how long it will take.

At full speed a flow tells of hundreds of thousands of events a second, so they are counted many at a time, by functions
of the interpreter's own.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any, Final, NamedTuple

from ..events import (
    CallCreated,
    CallFinished,
    CallRetrying,
    CallStarted,
    Event,
    FlowFinished,
    FlowStarted,
    WorkerDown,
)

__all__ = ["Counts", "Progress", "TaskCounts"]

# How far back the rate looks, and how often it takes note of what is done, in seconds.
_WINDOW: Final = 10.0
_STEP: Final = 0.5
# Of so many calls at a time it is asked how long they took, which is enough for a mean.
_SAMPLE: Final = 200

# The states of flows, the better first.
_WORSE: Final = ("Completed", "Cancelled", "Failed", "TimedOut", "Crashed")

_CALL: Final = attrgetter("call")
_TASK: Final = attrgetter("task")
_CALL_AND_TASK: Final = attrgetter("call", "task")
_TASK_AND_STATE: Final = attrgetter("task", "state")


class TaskCounts(NamedTuple):
    """What is known of the calls of one task, by its name."""

    name: str
    total: int
    """How many were submitted so far."""
    completed: int = 0
    cached: int = 0
    failed: int = 0
    """Those that crashed, ran out of time or lost what they need are among them."""
    cancelled: int = 0
    running: int = 0
    retried: int = 0
    """How many attempts were not the last."""
    rate: float = 0.0
    """How many got done in a second of late."""

    @property
    def done(self) -> int:
        """How many are final."""
        return self.completed + self.cached + self.failed + self.cancelled


class Counts(NamedTuple):
    """What is known of all calls at one moment."""

    flow: str
    """The name of the flow, or of the first and how many there are beside it; empty for calls without one."""
    runner: str
    tasks: tuple[TaskCounts, ...]
    seconds: float
    """Since the first event."""
    slots: int | None = None
    """How many calls can run at once; None if nobody knows."""
    rate: float = 0.0
    """How many calls get done in a second."""
    left: float | None = None
    """In how many seconds all that is known will be done, by a guess; None if there is no ground for one."""
    lost_workers: int = 0
    state: str = ""
    """What became of the flow, or of the one that ended worst; empty as long as one runs."""
    message: str = ""

    @property
    def all(self) -> TaskCounts:
        """The sum over all tasks."""
        return added("", self.tasks)


def added(name: str, tasks: Iterable[TaskCounts]) -> TaskCounts:
    """Return the sum over some tasks, under a name."""
    numbers = [task[1:] for task in tasks]
    return TaskCounts(name, *map(sum, zip(*numbers, strict=True))) if numbers else TaskCounts(name, 0)


class _Tally:
    """What is counted of one task."""

    __slots__ = ("began", "mean", "measured", "retried", "states", "total")

    def __init__(self) -> None:
        # When the first call that is done began.
        self.began = 0.0
        self.total = 0
        self.retried = 0
        self.states: Counter[str] = Counter()
        # Of how many calls it was asked how long they took, and the mean, in seconds.
        self.measured = 0
        self.mean = 0.0

    @property
    def done(self) -> int:
        return self.states.total()

    def measure(self, event: CallFinished) -> None:
        self.began = self.began or event.time - event.seconds
        self.measured += 1
        self.mean += (event.seconds - self.mean) / self.measured

    def counts(self, name: str, running: int, rate: float) -> TaskCounts:
        states = self.states
        completed, cached, cancelled = states["Completed"], states["Cached"], states["Cancelled"]
        failed = self.done - completed - cached - cancelled
        return TaskCounts(name, self.total, completed, cached, failed, cancelled, running, self.retried, rate)


class Progress:
    """Counts events.

    Examples
    --------
    >>> from turnout.events import CallCreated, CallFinished, CallStarted
    >>> progress = Progress()
    >>> progress.take([CallCreated(0.0, number, "", "double", f"double-{number}", "thread") for number in range(3)])
    >>> progress.take([CallStarted(0.0, 0, 1), CallStarted(0.1, 1, 1)])
    >>> progress.take([CallFinished(0.5, 0, "", "double", "double-0", "Completed", 1, 0.5)])
    >>> (double,) = progress.counts(0.5).tasks
    >>> double.done, double.running, double.total
    (1, 1, 3)
    """

    def __init__(self) -> None:
        # By name, in the order in which they were heard of.
        self._tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
        # The tasks of calls that are not final.
        self._open: dict[int, str] = {}
        # The attempts that run.
        self._running: dict[int, int] = {}
        # The flows that no other one called, those of them that run, and how those ended that don't.
        self._roots: dict[str, FlowStarted] = {}
        self._open_roots: set[str] = set()
        self._endings: list[FlowFinished] = []
        self._slots: dict[str, int | None] = {}
        self._lost_workers = 0
        self._began: float | None = None
        # What was done when, the oldest first.
        self._samples: deque[tuple[float, dict[str, int]]] = deque()

    @property
    def has_begun(self) -> bool:
        """Whether a flow began, or a call was submitted."""
        return bool(self._roots or self._tallies)

    @property
    def is_over(self) -> bool:
        """Whether flows began, and all have ended."""
        return bool(self._roots) and not self._open_roots

    def take(self, events: Sequence[Event]) -> None:
        """Count events, which are told in the order in which they happened."""
        if self._began is None and events:
            self._began = events[0].time
        kinds: defaultdict[type[Any], list[Any]] = defaultdict(list)
        for event in events:
            kinds[type(event)].append(event)
        for event in kinds[FlowStarted]:
            self._flow_started(event)
        self._created(kinds[CallCreated])
        for event in kinds[CallRetrying]:
            if event.call in self._open:
                self._tallies[self._open[event.call]].retried += 1
        self._finished(kinds[CallFinished])
        self._started(kinds[CallStarted])
        for event in kinds[CallRetrying]:
            # The next attempt may have begun.
            if self._running.get(event.call) == event.attempt:
                del self._running[event.call]
        for event in kinds[FlowFinished]:
            self._flow_finished(event)
        self._lost_workers += sum(event.reason != "stopped" for event in kinds[WorkerDown])

    def _flow_started(self, event: FlowStarted) -> None:
        # Flows that share a runner share its slots.
        self._slots[event.runner] = event.slots
        if event.parent_flow is None and event.parent_call is None:
            self._roots[event.flow] = event
            self._open_roots.add(event.flow)

    def _flow_finished(self, event: FlowFinished) -> None:
        if event.flow in self._open_roots:
            self._open_roots.remove(event.flow)
            self._endings.append(event)

    def _created(self, events: Sequence[CallCreated]) -> None:
        self._open.update(map(_CALL_AND_TASK, events))
        for task, count in Counter(map(_TASK, events)).items():
            self._tallies[task].total += count

    def _started(self, events: Sequence[CallStarted]) -> None:
        # Most are final by now. And the news that a call began may come after that of its end, when it was cancelled.
        self._running.update([(event.call, event.attempt) for event in events if event.call in self._open])

    def _finished(self, events: Sequence[CallFinished]) -> None:
        calls = [*map(_CALL, events)]
        known = [*map(self._open.pop, calls, repeat(None))]
        if None in known:
            # Submitted before anybody listened.
            for event, task in zip(events, known, strict=True):
                self._tallies[event.task].total += task is None
        for call in self._running.keys() & calls:
            del self._running[call]
        for (task, state), count in Counter(map(_TASK_AND_STATE, events)).items():
            self._tallies[task].states[state] += count
        for event in events[:: len(events) // _SAMPLE + 1]:
            self._tallies[event.task].measure(event)

    def counts(self, now: float) -> Counts:
        """Return what is known at a moment, in seconds since 1970; moments have to follow each other."""
        # In the end it is the mean that counts.
        then, before = (now if self._began is None else self._began, {}) if self.is_over else self._sampled(now)
        gained = {name: tally.done - before.get(name, 0) for name, tally in self._tallies.items()}
        running = Counter(map(self._open.__getitem__, self._running))
        roots = [*self._roots.values()]
        worst = max(self._endings, key=_badness, default=None) if self.is_over else None
        more = f" and {len(roots) - 1} more" if len(roots) > 1 else ""
        known = [slots for slots in self._slots.values() if slots is not None]
        return Counts(
            flow=roots[0].flow_name + more if roots else "",
            runner=roots[0].runner if roots else "",
            tasks=tuple(
                each.counts(name, running[name], gained[name] / _positive(now - max(then, each.began)))
                for name, each in self._tallies.items()
            ),
            rate=sum(gained.values()) / _positive(now - then),
            seconds=max(0.0, now - (now if self._began is None else self._began)),
            slots=sum(known) if known else None,
            left=self._left(gained, now - then),
            lost_workers=self._lost_workers,
            state=worst.state if worst else "",
            message=worst.message if worst else "",
        )

    def _sampled(self, now: float) -> tuple[float, dict[str, int]]:
        """Take note of what is done, and return when that was done last of which the rates are reckoned, and what."""
        samples = self._samples
        if not samples:
            samples.append((now if self._began is None else min(self._began, now), {}))
        if now - samples[-1][0] >= _STEP:
            samples.append((now, {name: tally.done for name, tally in self._tallies.items()}))
        while len(samples) > 1 and now - samples[1][0] >= _WINDOW:
            samples.popleft()
        return samples[0]

    def _left(self, gained: dict[str, int], seconds: float) -> float | None:
        """Guess from how long calls of each task take: a slow one that is yet to come weighs more than a fast one."""
        measured = [tally.mean for tally in self._tallies.values() if tally.measured]
        usual = sum(measured) / len(measured) if measured else 0.0
        weights = {name: _positive(each.mean if each.measured else usual) for name, each in self._tallies.items()}
        work = sum(gained[name] * weight for name, weight in weights.items())
        rest = sum((self._tallies[name].total - self._tallies[name].done) * weight for name, weight in weights.items())
        return rest / work * seconds if work else None


def _positive(number: float) -> float:
    return max(number, 1e-9)


def _badness(ending: FlowFinished) -> int:
    return _WORSE.index(ending.state) if ending.state in _WORSE else len(_WORSE)
