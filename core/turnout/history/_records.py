"""What is known of flows that have run: flow runs, calls and their attempts, workers and logs.

Times are seconds since 1970, as in the events. Records are numbered in order of their beginnings, from 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

__all__ = ["FAILURES", "PHASES", "Attempt", "Call", "FlowRun", "History", "Log", "Phase", "PhaseName", "Worker"]

PhaseName: TypeAlias = Literal["waiting", "queued", "sending", "running", "retrying"]
PHASES: Final[tuple[PhaseName, ...]] = ("waiting", "queued", "sending", "running", "retrying")

FAILURES: Final = frozenset({"Failed", "TimedOut", "UpstreamFailed", "Crashed"})
"""The states of what went wrong."""


class Phase(NamedTuple):
    """A stretch of the life of a call."""

    name: PhaseName
    """``"waiting"`` for what it needs; ``"queued"`` for room at its runner; ``"sending"``: on its way to a worker, and
    behind others of its batch; ``"running"``; ``"retrying"``: until it is run again."""
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(slots=True)
class Attempt:
    """One attempt at a call."""

    number: int
    sent: float | None = None
    """When it left for another process; None if it didn't."""
    started: float | None = None
    ended: float | None = None
    worker: str = ""
    slot: int = 0
    state: str = "Running"
    delay: float = 0.0
    """How long the call waits then before it is run again, in seconds."""
    message: str = ""
    """Why it is run again."""


@dataclass(slots=True)
class Call:
    """One call of a task."""

    number: int
    flow: int
    """The number of its flow run."""
    task: str
    name: str
    created: float
    runner: str = ""
    parent: int | None = None
    """The number of the call in whose body it was submitted."""
    needs: tuple[int, ...] = ()
    """The numbers of the calls for which it waits."""
    ready: float | None = None
    finished: float | None = None
    """None if it was not over when the events end."""
    state: str = "Pending"
    attempts: list[Attempt] = field(default_factory=list)
    bytes_in: int = 0
    bytes_out: int = 0
    message: str = ""
    traceback: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether it ended without a result, and nobody cancelled it."""
        return self.state in FAILURES

    def began(self) -> float | None:
        """Return when its body began for the last time; None if it never did."""
        for attempt in reversed(self.attempts):
            if attempt.started is not None:
                return attempt.started
        return None

    def phases(self, end: float) -> Iterator[Phase]:
        """Yield what its life was made of, in order, without gaps.

        Parameters
        ----------
        end
            When the events end: until then at most goes the life of a call that is not over.
        """
        over = end if self.finished is None else self.finished
        if self.ready is None:
            yield Phase("waiting", self.created, self._first_step(over))
        else:
            yield Phase("waiting", self.created, self.ready)
        time = self._first_step(over) if self.ready is None else self.ready
        for attempt in self.attempts:
            for phase in _phases_of(attempt, time, over):
                yield phase
                time = phase.end
        if time < over:
            yield Phase("queued", time, over)

    def _first_step(self, over: float) -> float:
        """Return when something happened to it though nobody said that it was ready."""
        for attempt in self.attempts:
            step = attempt.sent if attempt.sent is not None else attempt.started
            if step is not None:
                return step
        return over


def _phases_of(attempt: Attempt, time: float, over: float) -> Iterator[Phase]:
    if attempt.sent is not None:
        yield Phase("queued", time, attempt.sent)
        time = attempt.sent
    ended = over if attempt.ended is None else attempt.ended
    begin = ended if attempt.started is None else attempt.started
    yield Phase("queued" if attempt.sent is None else "sending", time, begin)
    yield Phase("running", begin, ended)
    if attempt.delay and ended < over:
        yield Phase("retrying", ended, min(ended + attempt.delay, over))


@dataclass(slots=True)
class FlowRun:
    """One run of a flow."""

    number: int
    id: str
    started: float
    name: str = ""
    flow_name: str = "?"
    runner: str = ""
    slots: int | None = None
    parent: int | None = None
    """The number of the flow run around it."""
    parent_call: int | None = None
    """The number of the call in whose body it was called."""
    finished: float | None = None
    """None if it was not over when the events end."""
    state: str = "Running"
    message: str = ""


@dataclass(slots=True)
class Worker:
    """Where calls ran."""

    name: str
    host: str = ""
    pid: int = 0
    runner: str = ""
    up: float | None = None
    down: float | None = None
    reason: str = ""


class Log(NamedTuple):
    """A line that somebody logged."""

    time: float
    level: str
    message: str
    flow: int | None
    call: int | None


@dataclass(slots=True)
class History:
    """Everything that some events tell."""

    flows: list[FlowRun] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    workers: dict[str, Worker] = field(default_factory=dict)
    logs: list[Log] = field(default_factory=list)
    begin: float = 0.0
    """When the first flow run or call began."""
    end: float = 0.0
    """When the last of them ended; if one is not over, when the events end."""

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return self.end - self.begin

    @property
    def roots(self) -> list[FlowRun]:
        """The flow runs that no other one called."""
        return [flow for flow in self.flows if flow.parent is None]

    @property
    def is_cut(self) -> bool:
        """Whether the events end before the flows do."""
        return any(flow.finished is None for flow in self.flows)
