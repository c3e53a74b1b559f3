"""What each slot of each worker did, and when."""

from __future__ import annotations

from typing import NamedTuple

from ._records import Attempt, Call, History

__all__ = ["Bar", "Lane", "busiest", "lanes_of"]


class Bar(NamedTuple):
    """One attempt at a call, where it ran."""

    call: Call
    attempt: Attempt
    begin: float
    end: float
    depth: int
    """How many others of its lane it is inside of."""


class Lane(NamedTuple):
    """One slot of a worker."""

    worker: str
    slot: int
    bars: list[Bar]
    """In order of their beginnings."""
    busy: float
    """How long something ran in it, in seconds."""


def lanes_of(history: History) -> list[Lane]:
    """Return the lanes in which something ran, those of one worker together, workers in the order of their beginnings."""
    found: dict[str, dict[int, list[tuple[float, float, Call, Attempt]]]] = {}
    for call in history.calls:
        for attempt in call.attempts:
            if attempt.started is not None:
                ended = history.end if attempt.ended is None else attempt.ended
                slots = found.setdefault(attempt.worker, {})
                slots.setdefault(attempt.slot, []).append((attempt.started, -ended, call, attempt))
    lanes = [_lane(worker, slot, spans) for worker, slots in found.items() for slot, spans in sorted(slots.items())]
    first = {worker: min(begin for spans in slots.values() for begin, *_ in spans) for worker, slots in found.items()}
    return sorted(lanes, key=lambda lane: (first[lane.worker], lane.worker, lane.slot))


def _lane(worker: str, slot: int, spans: list[tuple[float, float, Call, Attempt]]) -> Lane:
    spans.sort(key=lambda span: (span[0], span[1], span[2].number))
    bars: list[Bar] = []
    # When those end that are around the next one, the outermost first.
    around: list[float] = []
    busy = 0.0
    until = float("-inf")
    for begin, minus_end, call, attempt in spans:
        end = -minus_end
        while around and around[-1] <= begin:
            around.pop()
        bars.append(Bar(call, attempt, begin, end, len(around)))
        around.append(end)
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return Lane(worker, slot, bars, busy)


def busiest(lanes: list[Lane]) -> int:
    """Return how many lanes were busy at once, at most."""
    steps = sorted(
        step
        for lane in lanes
        for bar in lane.bars
        if not bar.depth and bar.end > bar.begin
        for step in ((bar.begin, 1), (bar.end, -1))
    )
    count = most = 0
    for _, change in steps:
        count += change
        most = max(most, count)
    return most or bool(lanes)
