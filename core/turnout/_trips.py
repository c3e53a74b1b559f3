"""What is told, as events, of calls that travel to workers in other processes, by the driver's clock."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, Final

from ._event_stream import BEGUN, EVENT, FOLLOWED, RETURNED, SENT, STREAM
from ._future import COMPLETED
from ._locks import LOCK
from ._places import NOWHERE
from ._shipment import this_process
from ._telling import tell_finished, tell_ready_at, tell_worker
from .runner import OutcomeKind

if TYPE_CHECKING:
    from ._call import Call
    from ._packing import PackedBatch
    from .events import LogRecord
    from .runner import Outcome

__all__ = ["Clock", "Trip", "tell_departure", "tell_loss", "tell_news", "tell_news_of", "tell_record", "tell_returned"]

_batches: Final = itertools.count()


class Clock:
    """How far the clock of a worker is from ours: as little as goes with what is known.

    A body can't begin before its batch was sent, nor end after the news of it came.

    Examples
    --------
    >>> clock = Clock()
    >>> clock.corrected(105.0, 106.0, 100.0, 102.0)
    (101.0, 102.0)
    >>> clock.shift
    -4.0
    """

    __slots__ = ("_highest", "_lowest", "shift")

    def __init__(self) -> None:
        self.shift = 0.0
        """What is added to its times, in seconds."""
        self._lowest = float("-inf")
        self._highest = float("inf")

    def corrected(self, begin: float, end: float, sent: float, heard: float) -> tuple[float, float]:
        """Return when a body began and ended, given these times by our clock as far as it was known.

        Parameters
        ----------
        begin, end
            The times, with the shift added.
        sent, heard
            When the batch was sent, and when the end was heard of.
        """
        low, high = self.shift + sent - begin, self.shift + heard - end
        begin, end = begin - self.shift, end - self.shift
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
        self.place = NOWHERE
        """Where it arrived, as far as that is known."""
        self.clock = Clock()


def tell_departure(batch: PackedBatch) -> None:
    """Tell that a batch is about to leave. Of calls whose turn has not come it is told later that they were sent."""
    now = time.time()
    number = next(_batches)
    batch.trip = Trip(number, now)
    with LOCK:
        for call, attempt in zip(batch.calls, batch.attempts, strict=True):
            put = call.engine.events.put
            if put is not None and call.is_known_ready and call.future._type < COMPLETED:
                put((SENT, now, call.seq, attempt, number, batch.sizes.get(call, 0)))


def tell_news(batch: PackedBatch, call: Call, attempt: int, outcome: Outcome, now: float) -> None:
    """Tell what an outcome says of when, and where, the body of a call began; and keep when it ended."""
    with LOCK:
        if call.future._type < COMPLETED:
            tell_news_of(batch, call, attempt, outcome, now)


def tell_news_of(batch: PackedBatch, call: Call, attempt: int, outcome: Outcome, now: float) -> None:
    """Do so for a call of which nobody else tells anything now."""
    if _took_news(batch, call, attempt, outcome, now):
        _tell_begun(call)


def tell_returned(batch: PackedBatch, call: Call, outcome: Outcome, now: float) -> None:
    """Tell what `tell_news` tells of a call that is completed, and that it is. Hot path.

    Nobody else tells anything of the call any more.
    """
    trip, told = batch.trip, call.told
    if trip is None or told is not None:
        tell_news_of(batch, call, call.attempt, outcome, now)
        tell_finished(call, COMPLETED)
        return
    begin, end = _times(call, trip, outcome, now)
    engine, future, task = call.engine, call.future, call.task
    put = engine.events.put
    if put is not None:
        # Made at once, as the row of `tell_finished`, though that is long: it is done for each call.
        put(
            (
                RETURNED if call.is_known_ready else FOLLOWED,
                end,
                call.seq,
                engine.flow_run.id or "",
                task.name,
                call.scope.prefix,
                future._index,
                future._name,
                "Completed",
                call.attempt,
                end - begin,
                trip.place,
                trip.number,
                batch.sizes.get(call, 0),
                outcome.size,
                "",
                "",
            )
        )


def _times(call: Call, trip: Trip, outcome: Outcome, now: float) -> tuple[float, float]:
    """Return when a body began, and when it ended or, if it runs, began."""
    stamp = outcome.stamp
    if type(stamp) is tuple:
        _arrived(call, trip, stamp)
        stamp = stamp[0]
    end = (stamp or now) + trip.clock.shift
    begin = end - outcome.seconds
    if begin < trip.sent or end > now:
        return trip.clock.corrected(begin, end, trip.sent, now)
    return begin, end


def _took_news(batch: PackedBatch, call: Call, attempt: int, outcome: Outcome, now: float) -> bool:
    """Keep when, and where, a body began and ended; return whether nobody knew that it began."""
    trip = batch.trip
    if trip is None:
        # Nobody listened when it was sent.
        trip = batch.trip = Trip(None, 0.0)
    begin, end = _times(call, trip, outcome, now)
    told = call.told
    is_new = told is None or told[1] != attempt or bool(told[5])
    if outcome.kind is OutcomeKind.STARTED:
        if is_new:
            call.told = (begin, attempt, trip.place, trip.number, batch.sizes.get(call, 0), 0.0, 0.0, 0)
    elif is_new or told is None:
        bytes_in = batch.sizes.get(call, 0)
        call.told = (begin, attempt, trip.place, trip.number, bytes_in, end, outcome.seconds, outcome.size)
    else:
        call.told = (*told[:5], max(told[0], end), outcome.seconds, outcome.size)
    return is_new


def _tell_begun(call: Call) -> None:
    """Tell that a body began, as it is kept. With the lock held."""
    told, put = call.told, call.engine.events.put
    if told is None or put is None:
        return
    begin, attempt, place, number, bytes_in = told[:5]
    if not call.is_known_ready:
        _tell_sent_ahead(call, attempt, begin, number, bytes_in)
    put((BEGUN, begin, call.seq, attempt, place[0], place[3]))


def _tell_sent_ahead(call: Call, attempt: int, at: float, batch: int | None, bytes_in: int) -> None:
    """Tell of a call that was sent together with what it needs, or before that was there. Nobody else does now."""
    put = call.engine.events.put
    tell_ready_at(call, at)
    if put is not None and batch is not None:
        put((SENT, at, call.seq, attempt, batch, bytes_in))


def _arrived(call: Call, trip: Trip, stamp: tuple[Any, ...]) -> None:
    """Take note of where a batch is, or a call of several that run at once."""
    worker, host, pid, _ = trip.place = stamp[1:]
    dispatcher = call.dispatcher
    trip.clock = dispatcher.clocks.setdefault(worker, trip.clock)
    if worker not in dispatcher.workers:
        from .events import WorkerUp

        tell_worker(call, WorkerUp(max(trip.sent, stamp[0] + trip.clock.shift), worker, host, pid, dispatcher.name))


def tell_loss(batch: PackedBatch, call: Call, attempt: int, outcome: Outcome) -> None:
    """Tell that the worker of a batch died, and that a call may have begun there."""
    trip = batch.trip
    if trip is None:
        return
    with LOCK:
        told = call.told
        is_told = told is not None and told[1] == attempt and not told[5]
        if outcome.kind is OutcomeKind.CRASHED and call.future._type < COMPLETED and not is_told:
            # Nobody heard that it began; it counts as if it had.
            call.told = (trip.sent, attempt, trip.place, trip.number, batch.sizes.get(call, 0), 0.0, 0.0, 0)
            _tell_begun(call)
    worker, workers = trip.place[0], call.dispatcher.workers
    if worker in workers:
        workers.discard(worker)
        if call.engine.events is STREAM:
            from .events import WorkerDown

            down = WorkerDown(time.time(), worker, str(outcome.data or "lost"))
            STREAM.leave_worker(worker, (EVENT, down), None)


def tell_record(batch: PackedBatch, call: Call, message: tuple[Any, ...]) -> bool:
    """Tell what a worker sent besides outcomes; return whether that was for those who listen only."""
    is_events = bool(message[0] == "events")
    put = call.engine.events.put
    if put is not None and is_events:
        shift = 0.0 if batch.trip is None else batch.trip.clock.shift
        for event in message[2]:
            _forward(call, event, message[1], shift)
    elif put is not None and message[0] == "log":
        put((EVENT, _log_record(batch, call, *message[1:])))
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
    from .events import CallCreated, WorkerUp

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
        put((EVENT, event._replace(**changes)))


def _log_record(
    batch: PackedBatch,
    call: Call,
    record: dict[str, Any],
    origin: tuple[int, str] | None = None,
    number: int | None = None,
    flow: str | None = None,
) -> LogRecord:
    from .events import LogRecord

    trip = batch.trip
    shift = 0.0 if trip is None else trip.clock.shift
    worker = "" if trip is None else trip.place[0]
    number = call.seq if origin is None else _here(number, origin)
    flow = call.engine.flow_run.id if flow is None else flow
    return LogRecord(
        record["created"] + shift, record["levelname"], record["name"], str(record["msg"]), flow, number, worker
    )
