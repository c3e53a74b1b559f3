"""What is told, as events, of calls that travel to workers in other processes, by the driver's clock."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, Final

from ._event_stream import STREAM
from ._future import COMPLETED
from ._locks import LOCK
from ._places import Place
from ._shipment import this_process
from ._telling import Begun, tell_begun, tell_ready_at, tell_sent, tell_worker
from .events import CallCreated, LogRecord, WorkerDown, WorkerUp
from .runner import OutcomeKind

if TYPE_CHECKING:
    from ._call import Call
    from ._packing import PackedBatch
    from .runner import Outcome

__all__ = ["Clock", "Trip", "tell_departure", "tell_loss", "tell_news", "tell_record", "tell_returned"]

_batches: Final = itertools.count()


class Clock:
    """How far the clock of a worker is from ours: as little as goes with what is known.

    A body can't begin before its batch was sent, nor end after the news of it came.

    Examples
    --------
    >>> clock = Clock()
    >>> clock.corrected(105.0, 106.0, 100.0, 102.0)
    (101.0, 102.0)
    >>> clock.corrected(107.5, 108.0, 102.0, 105.0)
    (103.5, 104.0)
    """

    __slots__ = ("_highest", "_lowest", "shift")

    def __init__(self) -> None:
        self.shift = 0.0
        """What is added to its times, in seconds."""
        self._lowest = float("-inf")
        self._highest = float("inf")

    def corrected(self, begin: float, end: float, sent: float, heard: float) -> tuple[float, float]:
        """Return by our clock when a body began and ended, given when its batch was sent, and when that was heard."""
        low, high = sent - begin, heard - end
        if self._lowest < low:
            self._lowest = low
        if self._highest > high:
            self._highest = high
        if self._lowest > self._highest:
            # One of the clocks was set meanwhile, or they drift: what is known is no longer true.
            self._lowest, self._highest = low, max(low, high)
        self.shift = min(max(0.0, self._lowest), self._highest)
        # Clocks may run at different speeds.
        begin = max(sent, begin + self.shift)
        return begin, max(begin, min(heard, end + self.shift))


class Trip:
    """What is known of a batch under way."""

    __slots__ = ("clock", "number", "place", "sent")

    def __init__(self, number: int | None, sent: float) -> None:
        self.number = number
        self.sent = sent
        self.place: Place | None = None
        """Where it arrived; None as long as nobody knows."""
        self.clock = Clock()


def tell_departure(batch: PackedBatch) -> None:
    """Tell that a batch is about to leave. Of calls whose turn has not come it is told later that they were sent."""
    now = time.time()
    number = next(_batches)
    batch.trip = Trip(number, now)
    with LOCK:
        for call, attempt in zip(batch.calls, batch.attempts, strict=True):
            if call.label is not None and call.future._type < COMPLETED:
                tell_sent(call, attempt, now, number, batch.sizes.get(call, 0))


def tell_news(batch: PackedBatch, call: Call, attempt: int, outcome: Outcome) -> None:
    """Tell what an outcome says of when, and where, the body of a call began; and keep when it ended."""
    with LOCK:
        if call.future._type < COMPLETED:
            tell_returned(batch, call, outcome, attempt)


def tell_returned(batch: PackedBatch, call: Call, outcome: Outcome, attempt: int | None = None) -> None:
    """Do as `tell_news`, for a call of which nobody else will tell anything any more, or with the lock held."""
    now = time.time()
    trip = batch.trip
    if trip is None:
        # Nobody listened when it was sent.
        trip = batch.trip = Trip(None, 0.0)
    if attempt is None:
        attempt = call.attempt
    stamp = outcome.stamp
    if type(stamp) is tuple:
        _arrived(call, trip, stamp)
        stamp = stamp[0]
    seconds = outcome.seconds
    end = stamp or now
    begin, end = trip.clock.corrected(end - seconds, end, trip.sent, now)
    told = call.told
    if told is None or told.attempt != attempt or told.ended:
        told = _begun(batch, call, attempt, begin, trip)
    if outcome.kind is not OutcomeKind.STARTED:
        begin, _, place, number, bytes_in, _, _, _ = told
        end = max(begin, end)
        call.told = Begun(begin, attempt, place, number, bytes_in, end, seconds, outcome.size)


def _begun(batch: PackedBatch, call: Call, attempt: int, begin: float, trip: Trip) -> Begun:
    bytes_in = batch.sizes.get(call, 0)
    if call.label is None:
        # It was sent together with what it needs.
        tell_ready_at(call, begin)
        tell_sent(call, attempt, begin, trip.number or 0, bytes_in)
    begun = Begun(begin, attempt, trip.place, trip.number, bytes_in)
    tell_begun(call, begun)
    return begun


def _arrived(call: Call, trip: Trip, stamp: tuple[Any, ...]) -> None:
    """Take note of where a batch is, or a call of several that run at once."""
    trip.place = place = Place(*stamp[1:])
    dispatcher = call.dispatcher
    trip.clock = dispatcher.clocks.setdefault(place.worker, trip.clock)
    if place.worker not in dispatcher.workers:
        at = max(trip.sent, stamp[0] + trip.clock.shift)
        tell_worker(call, WorkerUp(at, place.worker, place.host, place.pid, dispatcher.name))


def tell_loss(batch: PackedBatch, call: Call, attempt: int, outcome: Outcome) -> None:
    """Tell that the worker of a batch died, and that a call may have begun there."""
    trip = batch.trip
    if trip is None:
        return
    with LOCK:
        told = call.told
        is_told = told is not None and told.attempt == attempt and not told.ended
        if outcome.kind is OutcomeKind.CRASHED and call.future._type < COMPLETED and not is_told:
            # Nobody heard that it began; it counts as if it had.
            _begun(batch, call, attempt, trip.sent, trip)
    place, workers = trip.place, call.dispatcher.workers
    if place is not None and place.worker in workers:
        workers.discard(place.worker)
        if call.engine.events is STREAM:
            STREAM.leave_worker(WorkerDown(time.time(), place.worker, str(outcome.data or "lost")), None)


def tell_record(batch: PackedBatch, call: Call, message: tuple[Any, ...]) -> bool:
    """Tell what a worker sent besides outcomes; return whether that was for those who listen only."""
    is_events = bool(message[0] == "events")
    put = call.engine.events.put
    if put is not None and is_events:
        shift = 0.0 if batch.trip is None else batch.trip.clock.shift
        for event in message[2]:
            _forward(call, event, message[1], shift)
    elif put is not None and message[0] == "log":
        put(_log_record(batch, call, *message[1:]))
    return is_events


# The numbers of calls that were submitted on workers begin at multiples of this, one for each process.
_SERIES: Final = 1 << 32
_series: Final[dict[tuple[Any, int], int]] = {}
_next_series: Final = itertools.count(1)


def _here(number: int | None, origin: tuple[int, str]) -> int | None:
    """Return our number for a call that another process told of, or that another process knows by ours."""
    if number is None:
        return None
    if number < 0:
        return -1 - number
    if origin == this_process():
        return number
    of_worker, number = divmod(number, _SERIES)
    key = origin, of_worker
    series = _series.get(key)
    if series is None:
        series = _series.setdefault(key, next(_next_series))
    return series * _SERIES + number


def _forward(call: Call, event: Any, origin: tuple[int, str], shift: float) -> None:
    """Tell of what happened within a call on a worker."""
    if isinstance(event, WorkerUp):
        if event.worker not in call.dispatcher.workers:
            tell_worker(call, event._replace(time=event.time + shift))
        return
    changes: dict[str, Any] = {"time": event.time + shift}
    for name in ("call", "parent", "parent_call", "batch"):
        if name in event._fields:
            changes[name] = _here(getattr(event, name), origin)
    if isinstance(event, CallCreated):
        changes["needs"] = tuple(_here(need, origin) for need in event.needs)
    put = call.engine.events.put
    if put is not None:
        put(event._replace(**changes))


def _log_record(
    batch: PackedBatch,
    call: Call,
    record: dict[str, Any],
    origin: tuple[int, str] | None = None,
    number: int | None = None,
    flow: str | None = None,
) -> LogRecord:
    trip = batch.trip
    shift = 0.0 if trip is None else trip.clock.shift
    worker = "" if trip is None or trip.place is None else trip.place.worker
    number = call.seq if origin is None else _here(number, origin)
    flow = call.engine.flow_run.id if flow is None else flow
    return LogRecord(
        record["created"] + shift, record["levelname"], record["name"], str(record["msg"]), flow, number, worker
    )
