"""Steps of calls turned into counts: how many are done of each task, how fast, and how long the rest will take."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from .._tally import Steps

__all__ = ["Counts", "Progress", "TaskCounts", "added"]

# How far back the rate looks, and how often it takes note of what is done, in seconds.
_WINDOW: Final = 10.0
_STEP: Final = 0.5
# The names of the types of states in which flows end, the better first.
_WORSE: Final = ("Completed", "Cancelled", "Failed", "TimedOut", "Crashed")


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
    """Since the first flow began."""
    slots: int | None = None
    """How many calls can run at once; None if nobody knows."""
    rate: float = 0.0
    """How many calls get done in a second."""
    left: float | None = None
    """In how many seconds all that is known will be done, by a guess; None if there is no ground for one."""
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


class _Sums:
    """What is known of one task."""

    __slots__ = ("began", "retried", "states", "submitted", "work")

    def __init__(self) -> None:
        # When the first was about to be done.
        self.began = 0.0
        self.submitted = 0
        self.retried = 0
        self.states: Counter[str] = Counter()
        # For how many seconds its calls have run, all together.
        self.work = 0.0

    @property
    def done(self) -> int:
        return self.states.total()

    @property
    def total(self) -> int:
        # Some may have been submitted before anybody counted.
        return max(self.submitted, self.done)

    def counts(self, name: str, running: int, rate: float) -> TaskCounts:
        states, done = self.states, self.done
        completed, cached, cancelled = states["COMPLETED"], states["CACHED"], states["CANCELLED"]
        failed = done - completed - cached - cancelled
        # What runs was looked at a moment after what is done.
        running = min(running, self.total - done)
        return TaskCounts(name, self.total, completed, cached, failed, cancelled, running, self.retried, rate)


class Progress:
    """Adds up the steps of calls.

    Parameters
    ----------
    began
        When that began. All times are in seconds, by one clock, and follow each other.

    Examples
    --------
    >>> progress = Progress(began=0.0)
    >>> progress.take(Steps({"double": 3}, {("double", "COMPLETED"): 1}, {}), {"double": 2}, now=0.5)
    >>> (double,) = progress.counts(now=0.5).tasks
    >>> double.done, double.running, double.total
    (1, 2, 3)
    """

    def __init__(self, began: float) -> None:
        # By name, in the order in which they were heard of.
        self._sums: dict[str, _Sums] = {}
        self._running: Mapping[str, int] = {}
        self._began = self._looked = began
        # The names of the flows, and how those ended that have, with why.
        self._flows: list[str] = []
        self._endings: list[tuple[str, str]] = []
        self._runner = ""
        # What was done when, the oldest first.
        self._samples: deque[tuple[float, dict[str, int]]] = deque([(began, {})])

    @property
    def is_over(self) -> bool:
        """Whether flows began, and all have ended."""
        return bool(self._flows) and len(self._endings) == len(self._flows)

    def begin(self, flow: str, runner: str) -> None:
        """Take note that a flow begins."""
        self._flows.append(flow)
        self._runner = self._runner or runner

    def end(self, state: str, message: str = "") -> None:
        """Take note that a flow ends."""
        self._endings.append((state, message))

    def take(self, steps: Steps, running: Mapping[str, int], now: float) -> None:
        """Add what has happened since the last time, and how many calls of which tasks run now."""
        for name, count in steps.submitted.items():
            self._of(name).submitted += count
        for (name, state), count in steps.ended.items():
            sums = self._of(name)
            sums.began = sums.began if sums.done else self._looked
            sums.states[state] += count
        for name, count in steps.retried.items():
            self._of(name).retried += count
        # Those that ran have run since the last time. Who looks often knows well how long calls take.
        for name, count in self._running.items():
            self._of(name).work += count * max(now - self._looked, 0.0)
        self._running, self._looked = running, now
        if now - self._samples[-1][0] >= _STEP:
            self._samples.append((now, {name: sums.done for name, sums in self._sums.items()}))
        while len(self._samples) > 1 and now - self._samples[1][0] >= _WINDOW:
            self._samples.popleft()

    def _of(self, name: str) -> _Sums:
        return self._sums.setdefault(name, _Sums())

    def counts(self, now: float, slots: int | None = None) -> Counts:
        """Return what is known, with how many calls can run at once."""
        # In the end it is the mean that counts.
        then, before = (self._began, {}) if self.is_over else self._samples[0]
        gained = {name: sums.done - before.get(name, 0) for name, sums in self._sums.items()}
        running = self._running
        state, message = max(self._endings, key=_badness) if self.is_over else ("", "")
        more = f" and {len(self._flows) - 1} more" if len(self._flows) > 1 else ""
        return Counts(
            flow=self._flows[0] + more if self._flows else "",
            runner=self._runner,
            tasks=tuple(
                sums.counts(name, running.get(name, 0), gained[name] / _positive(now - max(then, sums.began)))
                for name, sums in self._sums.items()
            ),
            seconds=max(0.0, now - self._began),
            slots=slots,
            rate=sum(gained.values()) / _positive(now - then),
            left=self._left(gained, now - then),
            state=state,
            message=message,
        )

    def _left(self, gained: Mapping[str, int], seconds: float) -> float | None:
        """Guess from how long calls of each task take: a slow one that is yet to come weighs more than a fast one."""
        means = {name: sums.work / sums.done for name, sums in self._sums.items() if sums.done and sums.work}
        usual = sum(means.values()) / len(means) if means else 1.0
        work = sum(count * means.get(name, usual) for name, count in gained.items())
        rest = sum((sums.total - sums.done) * means.get(name, usual) for name, sums in self._sums.items())
        return rest / work * seconds if work else None


def _positive(number: float) -> float:
    return max(number, 1e-9)


def _badness(ending: tuple[str, str]) -> int:
    return _WORSE.index(ending[0]) if ending[0] in _WORSE else len(_WORSE)
