"""What runs in a Ray worker: one function for every batch, and what it tells while the batch runs."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from turnout._serialization import Parcel
from turnout._streams import Streams
from turnout.runner import Outcome, OutcomeKind
from turnout.worker import Ledger, run_batch

from ._nested import NestedRayRunner, wait_for_nested
from ._news import News
from ._orders import LARGE, Left, Order, Packed, completed, results, unpacked
from ._shipped import Code

__all__ = ["run", "run_and_leave"]

# How often the main thread looks whether an async batch submitted calls of its own, in seconds.
_LOOK_SECONDS: Final = 0.02


def run(order: Packed, *values: Any) -> bytes:
    """Run a batch; the body of the one remote function there is. Raises nothing that a call raised.

    Parameters
    ----------
    order
        The batch.
    values
        What went beside it as references.

    Returns
    -------
    bytes
        The outcomes, save those that went by way of the mailbox.
    """
    return run_and_leave(order, *values)[0]


def run_and_leave(order: Packed, *values: Any) -> tuple[bytes, dict[int, Parcel] | None]:
    """Run a batch whose large results may stay: they are the second of two values, by the index of their call."""
    return _worker().run(unpacked(order), values)


@functools.cache
def _worker() -> _Worker:
    return _Worker()


class _Worker:
    """The process, which runs one batch at a time."""

    def __init__(self) -> None:
        self._streams = Streams()
        self._news = News()
        self._async_thread = ThreadPoolExecutor(1, thread_name_prefix="turnout-ray-async")
        self._nested: NestedRayRunner | None = None
        self._code = Code()
        self._rest: _Rest | None = None
        # The Ray task that was to be cancelled when no batch ran: it is about to begin its batch, or has just ended it.
        self._cancelled: str | None = None
        self._before = signal.getsignal(signal.SIGINT)
        self._has_signals = threading.current_thread() is threading.main_thread()
        if self._has_signals:
            signal.signal(signal.SIGINT, self._interrupted)

    def run(self, order: Order, values: Sequence[Any]) -> tuple[bytes, dict[int, Parcel] | None]:
        if self._cancelled is not None and self._cancelled == _current_task():
            # For Ray, that is a task which was cancelled.
            raise KeyboardInterrupt
        shipment = None if order.shipment is None else bytes(values[order.shipment])
        self._code.replace(shipment)
        if sys.argv != list(order.argv):
            sys.argv[:] = order.argv
        teller = _Teller(order, self._news, self._streams)
        # Before anything of the user's is unpacked, which may end this process.
        self._news.begin(order, teller)
        self._rest = rest = _Rest()
        work = self._work(completed(order, values), teller, rest)
        try:
            with self._streams.text_to(teller.text), self._mortal():
                if order.is_async:
                    self._run_aside(work)
                else:
                    work()
        finally:
            self._rest = None
            # What other threads of the batch still log or print is this worker's own affair.
            parts = self._news.end()
        return results(parts, teller.take()), teller.left or None

    @contextlib.contextmanager
    def _mortal(self) -> Iterator[None]:
        """Have this process end at once when it is told to, as it is when the process that submitted the batch is gone.

        Ray makes that a SystemExit in the body, which would wait for the calls that it submitted; after five seconds
        Ray kills the process, and only then begins with those that run on for it, and so on downwards.
        """
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL) if self._has_signals else None
        try:
            yield
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def _interrupted(self, number: int, frame: types.FrameType | None) -> None:
        """Take Ray's request to cancel a task that runs here.

        If a batch of ours runs, it is meant for those of its calls that have not begun. It may come too late, and then
        must not hit another one; nor must it undo the end of a batch that has run, which would run a second time then,
        while Ray carries away what it returned. A driver that wants a running call to stop has this process ended.
        """
        if self._rest is not None:
            self._rest.is_wanted_back = True
        elif _is_ours():
            self._cancelled = _current_task()
        elif callable(self._before):
            self._before(number, frame)

    def _work(self, order: Order, teller: _Teller, rest: _Rest) -> Callable[[], None]:
        return functools.partial(
            run_batch,
            order.body,
            order.blobs(),
            order.upstream,
            teller.emit,
            nested=self._nested_runner(order.mailbox),
            ledger=rest,
        )

    def _nested_runner(self, mailbox: str) -> NestedRayRunner:
        """Return the runner for what tasks of one driver submit; always the same, for all that do."""
        if self._nested is None or self._nested != NestedRayRunner(mailbox, self._code.shipment):
            self._nested = NestedRayRunner(mailbox, self._code.shipment)
        return self._nested

    def _run_aside(self, work: Callable[[], None]) -> None:
        """Run async calls in another thread, always the same, while this one is there to give the slot away.

        Ray gives a task's processors to others only while its main thread waits for Ray, which an event loop in it
        could not do.
        """
        done: Future[None] = self._async_thread.submit(work)
        while not done.done():
            wait_for_nested(done, _LOOK_SECONDS)
        done.result()


def _is_ours() -> bool:
    """Return whether the Ray task of this moment, if there is one, runs a batch: workers may run others, too."""
    from ._library import ray

    name = ray.get_runtime_context().get_task_function_name()
    return not name or name in _OURS


def _current_task() -> str | None:
    """Return the id of the Ray task of this moment."""
    from ._library import ray

    found: str | None = ray.get_runtime_context().get_task_id()
    return found


_OURS: Final = frozenset(f"{function.__module__}.{function.__qualname__}" for function in (run, run_and_leave))


class _Rest(Ledger):
    """Whether those calls of a batch are wanted back that have not begun.

    Notes nothing else: what it knew would end with this process.
    """

    def __init__(self) -> None:
        self.is_wanted_back = False

    def begin(self, index: int) -> bool:
        return not self.is_wanted_back

    def note(self, outcome: Outcome) -> bool:
        return True

    def turn(self) -> None:
        pass

    def sent(self) -> None:
        pass


class _Teller:
    """Collects the outcomes of one batch, and has them sent early where that matters."""

    def __init__(self, order: Order, news: News, streams: Streams) -> None:
        self._may_stay = order.may_stay
        self._is_timed = order.is_timed
        self._news = news
        self._streams = streams
        self._lock = threading.RLock()
        self._outcomes: list[Outcome] = []
        self._last: list[Outcome] = []
        self._index = 0
        self.left: dict[int, Parcel] = {}

    def emit(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes, from any thread."""
        for outcome in outcomes:
            if outcome.kind == OutcomeKind.STARTED:
                self._index = outcome.index
            elif outcome.kind >= OutcomeKind.VALUE:
                self._streams.flush()
        urgent = begins = False
        with self._lock:
            for outcome in outcomes:
                urgent = urgent or outcome.kind == OutcomeKind.RECORD
                begins = begins or (self._is_timed and outcome.kind == OutcomeKind.STARTED)
                self._add(outcome)
        if begins:
            self._news.hurry_begin()
        elif urgent:
            self._news.hurry()

    def text(self, stream: str, text: str) -> None:
        """Take what was written to a standard stream."""
        self.emit([Outcome(self._index, OutcomeKind.RECORD, (stream, text))])

    def take(self, *, early: bool = False) -> list[Outcome]:
        """Return what has not been told yet; ``early`` leaves what must not be told before the end."""
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
            if not early:
                outcomes += self._last
                self._last = []
            return outcomes

    def put_back(self, outcomes: list[Outcome]) -> None:
        """Take outcomes back that reached nobody, to be told before all others."""
        with self._lock:
            self._outcomes[:0] = outcomes

    def _add(self, outcome: Outcome) -> None:
        parcel = outcome.data
        if (
            outcome.kind == OutcomeKind.VALUE
            and self._may_stay
            and isinstance(parcel, Parcel)
            and parcel.nbytes > LARGE
        ):
            # It is in the object store, and survives this process, only when the Ray task is over.
            self.left[outcome.index] = parcel
            self._last.append(outcome._replace(data=Left(parcel.nbytes)))
        else:
            self._outcomes.append(outcome)
