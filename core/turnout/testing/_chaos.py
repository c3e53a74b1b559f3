"""A runner around any other that has things go wrong, by a seed."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .._failures import encode
from .._packing import PackedBatch
from ..errors import RunnerOptionError
from ..registry import resolve
from ..runner import Batch, Capabilities, Host, Outcome, OutcomeKind, Plan, Stored, TaskRunner
from ._killing import with_deaths

if TYPE_CHECKING:
    from .._serialization import Parcel

__all__ = ["ChaosError", "ChaosReport", "ChaosTaskRunner"]

_CAUSE: Final = "chaos: its worker is said to have died"


class ChaosError(Exception):
    """What a body is said to have raised; such a call is tried again if its task has ``retries``."""


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """What a runner injected so far, and what became of the calls that it hit."""

    seed: int
    injected: Mapping[str, int]
    """How often, by kind: ``crash``, ``kill``, ``failure``, ``double`` of a call; ``loss``, ``return``, ``delay`` of a
    batch."""
    hit: int
    """How many calls crashed, failed, or were lost at least once."""
    survived: int
    """How many of those returned something in the end."""

    def __str__(self) -> str:
        injected = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.injected.items()) if count)
        return f"chaos with seed {self.seed}: {injected or 'nothing'}; {self.survived} of {self.hit} calls hit survived"


class ChaosTaskRunner(TaskRunner):
    """Runs calls on another runner, and has things go wrong that do go wrong with backends, only more often.

    What befalls a call depends on the seed, the name of its run, and how often it was sent before; what befalls a whole
    batch, on its first call. Which calls travel together, and are sent again, also depends on time: where each travels
    alone (``batch=False``), the same seed hits the same calls. Flows whose tasks may run twice, and often enough
    (``crash_retries``, which is 3 unless a task says otherwise), end as they do without.

    Runners that share the flow's process (``sequential``, ``thread``) have no workers that could die and no messages
    that could get lost: there calls are only delayed.

    Parameters
    ----------
    inner
        The runner, or a word for one.
    seed
        Tells one course of events from another.
    crashes
        How many of the calls, from 0 to 1, run and are then said to have died with their worker.
    kills
        How many of the calls kill their worker with SIGKILL: as they begin, or up to ``max_delay`` later, when they may
        be over. Others may be on that worker, and crash with it.
    losses
        How many of the batches run, and nobody learns what came of them.
    returns
        How many of the batches are given back unseen. None, where batches may wait in the backend for each other.
    failures
        How many of the calls are said to have raised :class:`ChaosError`. Give the tasks ``retries``.
    doubles
        How many of the calls are told of twice.
    delays
        How many of the batches, and of the messages about them, are held back.
    max_delay
        For how long at most, in seconds.
    slow_slots
        Whether the number of slots goes up and down, between 1 and the runner's own.

    Examples
    --------
    >>> from turnout import flow, task
    >>> from turnout.testing import ChaosTaskRunner
    >>> @task(crash_retries=20)
    ... def double(x):
    ...     return 2 * x
    >>> @flow(task_runner=ChaosTaskRunner("process?max_workers=2", seed=1, crashes=0.2))
    ... def doubled():
    ...     return sum(double.map(range(50)).result())
    >>> doubled()
    2450
    """

    def __init__(
        self,
        inner: TaskRunner | str,
        seed: int = 0,
        *,
        crashes: float = 0.03,
        kills: float = 0.0,
        losses: float = 0.03,
        returns: float = 0.05,
        failures: float = 0.0,
        doubles: float = 0.1,
        delays: float = 0.2,
        max_delay: float = 0.02,
        slow_slots: bool = True,
    ) -> None:
        rates = {"crashes": crashes, "kills": kills, "losses": losses, "returns": returns, "failures": failures}
        for name, rate in {**rates, "doubles": doubles, "delays": delays}.items():
            if not _is_number(rate) or rate > 1:
                raise RunnerOptionError(f"{name}={rate!r}: give a share, from 0 (never) to 1 (always).")
        if not _is_number(max_delay):
            raise RunnerOptionError(f"max_delay={max_delay!r}: give seconds, 0 or more.")
        if sum(rates.values()) > 1:
            raise RunnerOptionError(
                f"{' + '.join(rates)} are {sum(rates.values())}: a call has one fate, so at most 1."
            )
        self.inner = resolve(inner)
        self.seed = seed
        self.max_batch_seconds = self.inner.max_batch_seconds
        self._doubles = doubles
        self._delays = delays
        self._max_delay = max_delay
        self._slow_slots = slow_slots
        self._crashes, self._kills, self._failures = crashes, kills, failures
        self._losses, self._returns = losses, returns
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._host: Host | None = None
        self._courier: _Courier | None = None
        self._asked = itertools.count()
        self._under_way: dict[Batch, _UnderWay] = {}
        self._times_sent: Counter[str] = Counter()
        self._injected: Counter[str] = Counter()
        self._hit: set[str] = set()
        self._survived: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]  # some runners know theirs only when started
        """What the inner runner can do."""
        return self.inner.capabilities

    def report(self) -> ChaosReport:
        """Return what was injected since the last start."""
        with self._lock:
            return ChaosReport(self.seed, dict(self._injected), len(self._hit), len(self._survived))

    def start(self, host: Host) -> None:
        """Start the inner runner."""
        self._forget()
        self._host = host
        self._courier = _Courier()
        self.inner.start(Host(self._execute, self._take_news))

    def plan(self) -> Plan:
        """Return what the inner runner would start."""
        return self.inner.plan()

    def slots(self) -> int:
        """Return how many calls can run at once, for the moment."""
        slots = self.inner.slots()
        if not self._slow_slots or slots < 2:
            return slots
        return self._random("slots", str(next(self._asked))).randint(1, slots)

    def submit(self, batch: Batch) -> object:
        """Pass a batch on, now or later, or give it back."""
        if self.capabilities.in_process:
            return self.inner.submit(batch)
        under_way = _UnderWay(batch, [self._fate(call.future.name) for call in batch.calls])
        with self._lock:
            self._under_way[batch] = under_way
        first = under_way.fates[0]
        # What waits in the backend for a batch that never gets there would wait for ever. And sending late would change
        # the order, where the runner is to keep it.
        if first.kind == "return" and not self.capabilities.orders:
            self._note("return")
            with self._lock:
                del self._under_way[batch]
            self._deliver(under_way, [Outcome(index, OutcomeKind.RETURNED) for index in range(len(batch.calls))])
        elif first.delay and not self.capabilities.keeps_order and not self.capabilities.orders:
            self._note("delay")
            under_way.is_sent = False
            self._at(time.monotonic() + first.delay, lambda: self._send_late(under_way))
        else:
            self._send(under_way)
        return None

    def cancel(self, batch: Batch) -> bool:
        """Stop a batch, or take it back if it was not sent."""
        return self._taken_back(batch) or self.inner.cancel(batch)

    def recall(self, batch: Batch) -> None:
        """Have given back what has not begun."""
        if not self._taken_back(batch):
            self.inner.recall(batch)

    def fetch(self, stored: Stored) -> Parcel:
        """Bring a value here from the inner runner."""
        inner: Stored = stored.handle
        return inner.fetch()

    def waiting(self) -> contextlib.AbstractContextManager[object]:
        """Return what the inner runner has for calls that wait."""
        return self.inner.waiting()

    def is_waiting(self, batch: Batch) -> bool:
        """Return what the inner runner says of a batch."""
        return self.inner.is_waiting(batch)

    def stop(self) -> None:
        """Tell what is still held back, and stop the inner runner."""
        if self._courier is not None:
            self._courier.stop()
        self.inner.stop()

    # Ways out

    def _execute(self, batch: Batch) -> Sequence[Batch]:
        fate = self._fate(batch.calls[0].future.name)
        if fate.delay:
            self._note("delay")
            time.sleep(fate.delay)
        return self._started_host.execute(batch)

    @property
    def _started_host(self) -> Host:
        assert self._host is not None, "nothing is submitted before the start"
        return self._host

    def _send(self, under_way: _UnderWay) -> None:
        batch = under_way.batch
        if isinstance(batch, PackedBatch):
            if kills := {index: fate.death for index, fate in enumerate(under_way.fates) if fate.kind == "kill"}:
                self._note("kill", len(kills))
                batch.body = with_deaths(batch.body, kills)
                # A backend would make a lost result again by running what is here, and lose that worker, too.
                batch.may_stay = False
            # Their handles are values of the inner runner.
            batch.upstream = [
                item.handle if isinstance(item, Stored) and item.runner is self else item for item in batch.upstream
            ]
        self.inner.submit(batch)

    def _send_late(self, under_way: _UnderWay) -> None:
        with self._lock:
            if self._under_way.get(under_way.batch) is not under_way:
                return
            under_way.is_sent = True
        try:
            self._send(under_way)
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            calls = range(len(under_way.batch.calls))
            self._take_news(under_way.batch, [Outcome(index, OutcomeKind.CRASHED, cause) for index in calls])

    def _taken_back(self, batch: Batch) -> bool:
        with self._lock:
            under_way = self._under_way.get(batch)
            if under_way is None or under_way.is_sent:
                return False
            del self._under_way[batch]
        self._deliver(under_way, [Outcome(index, OutcomeKind.RETURNED) for index in range(len(batch.calls))])
        return True

    # Ways back

    def _take_news(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        with self._lock:
            under_way = self._under_way.get(batch)
        if under_way is None:
            # Of a call in this process, that it never began.
            self._started_host.report(batch, outcomes)
            return
        with self._lock:
            told = [change for outcome in outcomes for change in self._changed(under_way, outcome)]
            delay = self._delay_of_news(under_way)
            if not under_way.left:
                del self._under_way[batch]
        self._deliver(under_way, told, delay)

    def _changed(self, under_way: _UnderWay, outcome: Outcome) -> Iterator[Outcome]:
        """Yield what is told in place of an outcome. With the lock held."""
        if outcome.kind < OutcomeKind.VALUE:
            yield outcome
            return
        under_way.left.discard(outcome.index)
        ran = outcome.kind in (OutcomeKind.VALUE, OutcomeKind.FAILURE)
        if under_way.fates[0].kind == "loss":
            if not under_way.left:
                self._injected["loss"] += 1
                self._hit.update(call.future.name for call in under_way.batch.calls)
                yield from (Outcome(index, OutcomeKind.LOST, _CAUSE) for index in range(len(under_way.fates)))
            return
        fate, name = under_way.fates[outcome.index], under_way.batch.calls[outcome.index].future.name
        if ran and fate.kind in ("crash", "failure"):
            self._injected[fate.kind] += 1
            self._hit.add(name)
            outcome = _instead(fate.kind, outcome, name)
        elif outcome.kind is OutcomeKind.VALUE:
            if name in self._hit:
                self._survived.add(name)
            if isinstance(outcome.data, Stored):
                outcome = outcome._replace(data=Stored(self, outcome.data, outcome.data.nbytes))
        elif self._kills and outcome.kind in (OutcomeKind.CRASHED, OutcomeKind.LOST):
            self._hit.add(name)
        yield outcome
        if fate.doubles:
            self._injected["double"] += 1
            yield outcome

    def _delay_of_news(self, under_way: _UnderWay) -> float:
        """Return for how many seconds some news are held back. With the lock held."""
        under_way.messages += 1
        key = f"{under_way.batch.calls[0].future.name} {under_way.fates[0].times} {under_way.messages}"
        draw = self._random("news", key)
        if draw.random() >= self._delays:
            return 0.0
        self._injected["delay"] += 1
        return draw.uniform(0, self._max_delay)

    def _deliver(self, under_way: _UnderWay, outcomes: list[Outcome], delay: float = 0.0) -> None:
        """Tell news of a batch, after those before them."""
        if not outcomes:
            return
        with self._lock:
            at_once = not (under_way.waiting or delay)
            if not at_once:
                under_way.waiting += 1
                # In order also with those that are due at the same moment.
                under_way.due = max(under_way.due, time.monotonic() + delay)
                self._at(under_way.due, lambda: self._deliver_late(under_way, outcomes))
        if at_once:
            self._started_host.report(under_way.batch, outcomes)

    def _deliver_late(self, under_way: _UnderWay, outcomes: list[Outcome]) -> None:
        try:
            self._started_host.report(under_way.batch, outcomes)
        finally:
            with self._lock:
                under_way.waiting -= 1

    def _at(self, when: float, action: Callable[[], None]) -> None:
        assert self._courier is not None, "nothing is submitted before the start"
        self._courier.at(when, action)

    # Fates

    def _fate(self, name: str) -> _Fate:
        with self._lock:
            self._times_sent[name] = times = self._times_sent[name] + 1
        draw = self._random("fate", f"{name} {times}")
        point = draw.random()
        kind = ""
        shares = (
            ("crash", self._crashes),
            ("kill", self._kills),
            ("loss", self._losses),
            ("return", self._returns),
            ("failure", self._failures),
        )
        for kind_of_share, share in shares:
            if point < share:
                kind = kind_of_share
                break
            point -= share
        delay = draw.uniform(0, self._max_delay) if draw.random() < self._delays else 0.0
        doubles = draw.random() < self._doubles
        death = draw.choice((0.0, draw.uniform(0, self._max_delay)))
        return _Fate(kind, doubles, delay, death, times)

    def _random(self, what: str, key: str) -> random.Random:
        return random.Random(f"{self.seed} {what} {key}")

    def _note(self, kind: str, count: int = 1) -> None:
        with self._lock:
            self._injected[kind] += count


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and value >= 0


def _instead(kind: str, outcome: Outcome, name: str) -> Outcome:
    if kind == "crash":
        return Outcome(outcome.index, OutcomeKind.CRASHED, _CAUSE)
    error = ChaosError(f"Task {name!r} was chosen to fail.")
    return Outcome(outcome.index, OutcomeKind.FAILURE, encode(error), outcome.seconds)


@dataclass(frozen=True, slots=True)
class _Fate:
    """What befalls a call, this time that it is sent."""

    kind: str
    doubles: bool
    delay: float
    death: float
    """How long after its beginning its worker dies, where that is its fate."""
    times: int


class _UnderWay:
    """A batch that has not come to its end, or of which there is more to tell."""

    __slots__ = ("batch", "due", "fates", "is_sent", "left", "messages", "waiting")

    def __init__(self, batch: Batch, fates: Sequence[_Fate]) -> None:
        self.batch = batch
        self.fates = fates
        self.is_sent = True
        # Which calls the inner runner still owes.
        self.left = set(range(len(fates)))
        # How many news there were, how many of them are held back, and when the last of those is told.
        self.messages = 0
        self.waiting = 0
        self.due = 0.0


class _Courier:
    """Does things later, in order of their times, on a thread of its own: what it does may take long."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._is_stopping = False
        self._thread = threading.Thread(target=self._serve, name="turnout-chaos", daemon=True)
        self._thread.start()

    def at(self, when: float, action: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._actions, (when, next(self._numbers), action))
            self._changed.notify()

    def stop(self) -> None:
        """Do at once what is left, and end."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _serve(self) -> None:
        while (action := self._next()) is not None:
            action()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while True:
                if self._is_stopping:
                    return heapq.heappop(self._actions)[2] if self._actions else None
                delay = self._actions[0][0] - time.monotonic() if self._actions else None
                if delay is not None and delay <= 0:
                    return heapq.heappop(self._actions)[2]
                self._changed.wait(delay)
