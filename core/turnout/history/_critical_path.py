"""Why a flow ended when it did: the chain of calls and bodies that led to its end, without gaps.

It is found from the end backwards. A body, of a flow or of a call, goes on when what it waits for is there: that is
taken to be the last of its calls that ended since it last submitted something. A call begins when it has got to its
worker, is sent when there is room, and is ready when the last of the calls ended that it needs; else it had to be
submitted, by the body around it. So a shorter flow needs a shorter piece of this chain.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from typing import Final, Literal, NamedTuple, TypeAlias

from ._records import Call, FlowRun, History, PhaseName

__all__ = ["Step", "StepName", "critical_path"]

StepName: TypeAlias = PhaseName | Literal["body"]

# Between two submissions a body has been waiting if that took longer than it takes to submit, in seconds.
_SHORTEST_WAIT: Final = 0.001


class Step(NamedTuple):
    """One piece of the chain."""

    name: StepName
    """``"body"`` if the body of a flow ran, else what a call did."""
    begin: float
    end: float
    call: int | None
    """The number of the call; None for the body of a flow."""
    flow: int
    """The number of the flow run."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


class _Ended(NamedTuple):
    """A call or a flow run that a body has waited for, perhaps."""

    time: float
    number: int
    is_flow: bool


class _Body:
    """What the body of a flow or of a call has submitted."""

    def __init__(self) -> None:
        self.created: list[float] = []
        self.ended: list[_Ended] = []

    def add(self, created: float, ended: _Ended) -> None:
        self.created.append(created)
        self.ended.append(ended)

    def sort(self) -> None:
        self.created.sort()
        self.ended.sort()

    def waited_for(self, time: float, *, is_end: bool) -> tuple[float, _Ended | None]:
        """Return what a body at this time had been waiting for, or since when it had been busy without waiting."""
        while True:
            before = bisect.bisect_left(self.created, time)
            if not before:
                return float("-inf"), None
            submitted = self.created[before - 1]
            last = bisect.bisect_right(self.ended, (time, float("inf"))) - 1
            if last >= 0 and self.ended[last].time >= submitted and (is_end or time - submitted >= _SHORTEST_WAIT):
                return self.ended[last].time, self.ended[last]
            time, is_end = submitted, False


def critical_path(history: History) -> list[Step]:
    """Return the chain that explains the end of the flow run that ended last, in order of time."""
    last = max(history.roots, key=lambda flow: _end(flow, history.end), default=None)
    if last is None:
        return []
    walk = _Walk(history)
    walk.body_of_flow(last, _end(last, history.end))
    return walk.steps[::-1]


def _end(record: FlowRun | Call, end: float) -> float:
    return end if record.finished is None else record.finished


class _Walk:
    """The way back from an end. Each step leads to what began earlier, so that there is an end to it."""

    def __init__(self, history: History) -> None:
        self.steps: list[Step] = []
        self._history = history
        self._flows: defaultdict[int, _Body] = defaultdict(_Body)
        self._calls: defaultdict[int, _Body] = defaultdict(_Body)
        for call in history.calls:
            self._around(call).add(call.created, _Ended(_end(call, history.end), call.number, False))
        for flow in history.flows:
            around = self._around_flow(flow)
            if around is not None:
                around.add(flow.started, _Ended(_end(flow, history.end), flow.number, True))
        for body in (*self._flows.values(), *self._calls.values()):
            body.sort()
        self._seen: set[_Ended] = set()

    def _around(self, call: Call) -> _Body:
        if call.parent is not None and self._history.calls[call.parent].flow == call.flow:
            return self._calls[call.parent]
        return self._flows[call.flow]

    def _around_flow(self, flow: FlowRun) -> _Body | None:
        if flow.parent_call is not None:
            return self._calls[flow.parent_call]
        return None if flow.parent is None else self._flows[flow.parent]

    def body_of_flow(self, flow: FlowRun, time: float) -> None:
        """Go back from a time at which the body of a flow, or its end, was reached."""
        here: tuple[FlowRun | Call, float, bool] | None = (flow, time, True)
        while here is not None:
            here = self._before(*here)

    def _before(self, record: FlowRun | Call, time: float, is_end: bool) -> tuple[FlowRun | Call, float, bool] | None:
        """Go back in a body to what it waited for, or to where it began, and through that; return where that leads."""
        is_flow = isinstance(record, FlowRun)
        body = (self._flows if is_flow else self._calls)[record.number]
        begin = record.started if isinstance(record, FlowRun) else self._began(record)
        since, ended = body.waited_for(time, is_end=is_end)
        if ended is not None and since > begin and ended not in self._seen:
            self._seen.add(ended)
            self._add("body" if is_flow else "running", since, time, record)
            if ended.is_flow:
                return self._history.flows[ended.number], min(ended.time, time), True
            return self._history.calls[ended.number], min(ended.time, time), True
        self._add("body" if is_flow else "running", begin, time, record)
        if isinstance(record, FlowRun):
            return self._submitter(record, min(begin, time))
        return self._before_body(record, min(begin, time))

    def _began(self, call: Call) -> float:
        began = call.began()
        return _end(call, self._history.end) if began is None else began

    def _before_body(self, call: Call, time: float) -> tuple[FlowRun | Call, float, bool] | None:
        """Go back from the beginning of a call's body to the end of what it needs, or to where it was submitted."""
        needed = max((self._history.calls[need] for need in call.needs), key=self._end_of, default=None)
        limit = call.created if needed is None else max(call.created, min(self._end_of(needed), time))
        for name, begin, end in reversed(list(call.phases(self._history.end))):
            if begin < time and end > limit:
                self._add(name, max(begin, limit), min(end, time), call)
        limit = min(limit, time)
        if needed is not None and self._end_of(needed) > call.created:
            return needed, min(limit, self._end_of(needed)), True
        return self._submitter(call, limit)

    def _end_of(self, call: Call) -> float:
        return _end(call, self._history.end)

    def _submitter(self, record: FlowRun | Call, time: float) -> tuple[FlowRun | Call, float, bool] | None:
        """Return the body that submitted a call, or called a flow."""
        call = record.parent_call if isinstance(record, FlowRun) else record.parent
        if call is not None and (isinstance(record, FlowRun) or self._history.calls[call].flow == record.flow):
            return self._history.calls[call], time, False
        flow = record.parent if isinstance(record, FlowRun) else record.flow
        return None if flow is None else (self._history.flows[flow], time, False)

    def _add(self, name: StepName, begin: float, end: float, record: FlowRun | Call) -> None:
        if end > begin:
            call, flow = (None, record.number) if isinstance(record, FlowRun) else (record.number, record.flow)
            self.steps.append(Step(name, begin, end, call, flow))
