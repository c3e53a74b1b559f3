"""What each slot of each worker did, and when."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from ._records import Attempt, Call, History

__all__ = ["Bar", "Lane", "busiest", "lanes_of"]

# When it began, and ended, as a negative number: what is around others comes before them.
_Span: TypeAlias = tuple[float, float, Call, Attempt]


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
    """Return the lanes in which something ran, those of one worker together, first the worker that began first."""
    found: dict[str, dict[int, list[_Span]]] = {}
    for call in history.calls:
        for attempt in call.attempts:
            if attempt.started is not None:
                ended = history.end if attempt.ended is None else attempt.ended
                slots = found.setdefault(attempt.worker, {})
                slots.setdefault(attempt.slot, []).append((attempt.started, -ended, call, attempt))
    lanes = [
        lane
        for worker, slots in found.items()
        for slot, spans in slots.items()
        for lane in _tracks(worker, slot, spans)
    ]
    first = {worker: min(begin for spans in slots.values() for begin, *_ in spans) for worker, slots in found.items()}
    return sorted(lanes, key=lambda lane: (first[lane.worker], lane.worker, lane.slot))


def _tracks(worker: str, slot: int, spans: list[_Span]) -> list[Lane]:
    """Return the lane of a slot; several if what ran there was neither one after the other nor one inside the other.

    That is so where nobody knows who ran it.
    """
    spans.sort(key=lambda span: (span[0], span[1], span[2].number))
    tracks: list[_Track] = []
    for begin, minus_end, call, attempt in spans:
        track = next((track for track in tracks if track.has_room(begin, -minus_end)), None)
        if track is None:
            track = _Track()
            tracks.append(track)
        track.add(begin, -minus_end, call, attempt)
    return [Lane(worker, slot, track.bars, track.busy) for track in tracks]


class _Track:
    """What is in a lane so far."""

    def __init__(self) -> None:
        self.bars: list[Bar] = []
        self.busy = 0.0
        # When those end that are around the next one, the outermost first.
        self._around: list[float] = []

    def has_room(self, begin: float, end: float) -> bool:
        """Return whether something can be added: it begins after what is there, or is all inside of it."""
        while self._around and self._around[-1] <= begin:
            self._around.pop()
        return not self._around or end <= self._around[-1]

    def add(self, begin: float, end: float, call: Call, attempt: Attempt) -> None:
        """Add something that there is room for."""
        self.bars.append(Bar(call, attempt, begin, end, len(self._around)))
        if not self._around:
            self.busy += end - begin
        self._around.append(end)


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
