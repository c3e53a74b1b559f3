"""What runs on Dask's workers: one coroutine per batch, whose bodies run in threads of our own.

A coroutine, because it can end while a body goes on that can't be stopped, and because a body that waits for others can
give its slot away: both only take a word to Dask's loop.
"""

from __future__ import annotations

import contextlib
import contextvars
import pickle
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from turnout._failures import decode, encode
from turnout._serialization import Parcel, SharedParcel
from turnout.runner import Outcome, OutcomeKind
from turnout.worker import Stopper, run_batch, this_process

from ._outbox import Outbox
from ._spent import end_if_spent
from ._streams import forward_streams, writer_of_body
from ._threads import Permits, run_in_thread
from ._wire import LARGE, Header, Kept, News, Package, Place, Stays

if TYPE_CHECKING:
    import asyncio

    from ._nested import WorkerDaskRunner

__all__ = ["What", "ask", "current_work", "run", "same", "stop_all"]

# How long a body that is asked to stop keeps its slot, in seconds.
_GRACE: Final = 0.2
_REMEMBERED: Final = 10_000


async def run(header: bytes, package: bytes, *values: Any) -> Kept | None:
    """Run a batch on this worker, and return its results, if they may stay here.

    Parameters
    ----------
    header, package
        A packed :class:`Header` and a packed :class:`Package`.
    values
        The functions and values of Dask that the package names.

    Raises
    ------
    RuntimeError
        If a call failed, for Dask's dashboard to show. The exception itself is among the news.
    """
    from distributed import get_worker

    work = Work(site_of(get_worker()), Header(*pickle.loads(header)), package, values)
    return await work.result()


async def same(blob: bytes) -> bytes:
    """Return a function's packed form: as a value of Dask, it reaches each worker once."""
    return blob


What: TypeAlias = Literal["refuse", "stop", "recall"]
"""What is asked about a batch: not to begin it, and if it is here already, nothing, to stop it, or to begin no more."""


async def ask(topic: str, wishes: Sequence[tuple[int, What]], dask_worker: Any = None) -> list[bool]:
    """Do what is asked about batches, in order; return of each whether it is or was here."""
    site = site_of(dask_worker)
    return [site.ask(topic, number, what) for number, what in wishes]


async def stop_all(base: str, dask_worker: Any = None) -> None:
    """Ask all bodies of a run to stop, whose driver is gone."""
    site_of(dask_worker).stop_all(base)


class Lately(OrderedDict[tuple[str, int], None]):
    """Batches by topic and number, no more than the last ten thousand."""

    def add(self, key: tuple[str, int]) -> None:
        """Remember a batch, and forget the oldest if there are too many."""
        self[key] = None
        if len(self) > _REMEMBERED:
            self.popitem(last=False)


class Site:
    """What all batches on one Dask worker share."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.outbox = Outbox(worker)
        self.permits = Permits(max(1, worker.state.nthreads))
        # Both belong to the worker's loop.
        self.works: dict[tuple[str, int], Work] = {}
        self.refused = Lately()
        # An answer from here may overtake the news of what has ended, and must not deny that it was here.
        self.ended = Lately()
        self._nested: dict[str, WorkerDaskRunner] = {}

    def nested(self, header: Header) -> WorkerDaskRunner:
        """Return the runner for what the bodies of a run submit. Called in the worker's loop."""
        from ._nested import WorkerDaskRunner

        runner = self._nested.get(header.base)
        if runner is None:
            runner = self._nested[header.base] = WorkerDaskRunner(self.worker, header.base, header.journal)
        return runner

    def ask(self, topic: str, number: int, what: What) -> bool:
        """Do what is asked about a batch, or refuse it when it comes; return whether it is or was here."""
        key = topic, number
        work = self.works.get(key)
        if work is None and key not in self.ended:
            self.refused.add(key)
            return False
        if work is not None and what == "stop":
            work.stop()
        elif work is not None and what == "recall":
            work.is_recalled = True
        return True

    def stop_all(self, base: str) -> None:
        """Stop all batches of a run."""
        for work in list(self.works.values()):
            if work.header.base == base:
                work.stop()


_sites: Final[weakref.WeakKeyDictionary[Any, Site]] = weakref.WeakKeyDictionary()


def site_of(worker: Any) -> Site:
    """Return what the batches on a worker share. Called in the worker's loop."""
    site = _sites.get(worker)
    if site is None:
        site = _sites[worker] = Site(worker)
    return site


_of_thread: Final = threading.local()


def current_work() -> Work | None:
    """Return the batch that this thread runs, if it runs one."""
    return getattr(_of_thread, "work", None)


class Work:
    """One batch on a worker."""

    def __init__(self, site: Site, header: Header, package: bytes, values: tuple[Any, ...]) -> None:
        import asyncio

        self.site = site
        self.header = header
        self._package = package
        self._values = values
        self._stopper = Stopper()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # Guards what follows. Re-entrant, because a destructor that logs or prints may come in between.
        self._lock = threading.RLock()
        self._serial = 0
        self._index = 0
        self._open = set(range(header.calls))
        self._abandoned = False
        self.is_recalled = False
        """Whether no more calls of it are to begin."""
        self._kept: dict[int, Any] = {}
        self._failure: str | None = None
        self._lines: dict[str, str] = {}
        self._has_permit = False
        self._is_waiting = False
        self._began = time.monotonic()
        self._context = contextvars.copy_context()
        self._nested = site.nested(header)

    async def result(self) -> Kept | None:
        """Run the batch in a thread, and wait until it is over or given up."""
        key = (self.header.topic, self.header.number)
        if self.site.refused.pop(key, self) is None:
            self._stopper.ask()
        self.site.works[key] = self
        try:
            run_in_thread(self._run)
            await self._ended
        finally:
            del self.site.works[key]
            self.site.ended.add(key)
            # Dask must hear of the news before it hears of the end.
            self.site.outbox.flush_last()
            if self.header.journal and self.header.origin != this_process():
                # A worker process of our own. What was told is in its journal.
                end_if_spent()
        if self._failure is not None:
            raise RuntimeError(self._failure)
        # The context leads back here, so this object lives until garbage is collected; large results must not.
        kept, self._kept = self._kept, {}
        return Kept(kept) if kept else None

    def stop(self) -> None:
        """Ask the bodies to stop, and give up those that don't. Called in the loop."""
        # Not here: what they submitted is cancelled by it, and code of users' may run.
        run_in_thread(self._stopper.ask)
        self._loop.call_later(_GRACE, self._abandon)

    def _abandon(self) -> None:
        """Take the slot from a body that doesn't stop; it runs on, and nobody hears of it any more."""
        with self._lock:
            self.emit([Outcome(index, OutcomeKind.RETURNED) for index in self._open])
            self._abandoned = True
            self._release()
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    # In the thread of the bodies

    def _run(self) -> None:
        _of_thread.work = self
        try:
            # A word before anything is unpacked: whoever looks for what killed this worker shall know of it.
            self.emit([])
            if not self.header.journal:
                self.site.outbox.wait_until_sent()
            self._acquire(returning=False)
            self._run_bodies()
        except BaseException as error:
            self.emit([Outcome(index, OutcomeKind.FAILURE, encode(error)) for index in sorted(self._open)])
        finally:
            _of_thread.work = None
            with self._lock:
                self._release()
                self._package, self._values = b"", ()
            # The loop is closed when the worker is: then nobody waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end)

    def _run_bodies(self) -> None:
        package = Package(*pickle.loads(self._package))
        functions = {**package.functions, **dict(zip(package.digests, self._values, strict=False))}
        upstream = _placed(package.upstream, self._values[len(package.digests) :])
        self._package, self._values = b"", ()
        if _ABSENT in upstream:
            # What it waited for ended otherwise than with a value.
            self.emit([Outcome(index, OutcomeKind.RETURNED) for index in sorted(self._open)])
            return
        self._context.run(writer_of_body.set, self)
        at_home = self.header.origin == this_process()
        with contextlib.nullcontext() if at_home else forward_streams(self):
            run_batch(
                package.body,
                functions,
                upstream,
                self.emit,
                stopper=self._stopper,
                nested=self._nested,
                context=self._context,
                ledger=self,
            )

    # As a ledger of several calls: it has no more to say than what is sent.

    def begin(self, index: int) -> bool:
        """Return whether a call may begin."""
        return not self.is_recalled

    def note(self, outcome: Outcome) -> bool:
        """Keep nothing."""
        return True

    def turn(self) -> None:
        """Keep nothing."""

    def sent(self) -> None:
        """Keep nothing."""

    def emit(self, outcomes: Sequence[Outcome]) -> None:
        """Send outcomes, from any thread; large results stay."""
        with self._lock:
            if self._abandoned:
                return
            self._flush_lines(outcomes)
            self._serial += 1
            noted = [self._noted(outcome) for outcome in outcomes]
            news = News(self.header.topic, self.header.number, self._serial, self._is_waiting, noted)
            # A thread that a body left behind may have more to say when the end has been told.
            is_last = not self._open and not self._ended.done()
            self.site.outbox.send(news, self.header.journal, is_last=is_last)

    def _noted(self, outcome: Outcome) -> Outcome:
        if outcome.kind is OutcomeKind.STARTED:
            self._index = outcome.index
        if outcome.kind < OutcomeKind.VALUE:
            return outcome
        self._open.discard(outcome.index)
        if outcome.kind is OutcomeKind.FAILURE and self.header.calls == 1:
            self._failure = _described(outcome.data)
        if outcome.kind is not OutcomeKind.VALUE:
            return outcome
        data = outcome.data
        # If its worker dies, Dask makes a value again by running the whole batch; but one of several calls may give
        # some of them back, and not the same ones each time. What is large there comes along.
        is_whole = self.header.calls == 1 or self.header.is_async
        is_large = is_whole and isinstance(data, Parcel) and data.nbytes > LARGE
        # A small one for a batch that goes early, and so follows a single call.
        if is_large or (self.header.may_stay and self.header.calls == 1):
            self._kept[outcome.index] = data
        return outcome._replace(data=Stays(data.nbytes)) if is_large else outcome

    def write_text(self, stream: str, text: str) -> None:
        """Take what was written to a standard stream; whole lines go on."""
        with self._lock:
            lines, end, rest = (self._lines.pop(stream, "") + text).rpartition("\n")
            if rest:
                self._lines[stream] = rest
            if end:
                self.emit([Outcome(self._index, OutcomeKind.RECORD, (stream, lines + end))])

    def _flush_lines(self, outcomes: Sequence[Outcome]) -> None:
        """Send the lines that were begun, before a call is over."""
        if self._lines and any(outcome.kind >= OutcomeKind.VALUE for outcome in outcomes):
            lines, self._lines = self._lines, {}
            self.emit([Outcome(self._index, OutcomeKind.RECORD, line) for line in lines.items()])

    # Slots

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Give the slot to others meanwhile. Entered in the thread of the bodies."""
        self.give_slot_away()
        try:
            yield
        finally:
            if not self._abandoned:
                self._acquire(returning=True)
                self._tell_waiting(False)

    def will_submit(self) -> None:
        """Note that a body is about to submit a call."""
        # Coroutines wait for it by `await`, of which nobody is told.
        if self.header.is_async and not self._is_waiting:
            self.give_slot_away()

    def give_slot_away(self) -> None:
        """Let Dask start another task on this worker."""
        from distributed.worker_state_machine import SecedeEvent

        with self._lock:
            self._release()
        # Not by a clock that may be set meanwhile: Dask would take what it gets for a duration.
        seconds = time.monotonic() - self._began
        event = SecedeEvent(key=self.header.key, compute_duration=seconds, stimulus_id=f"secede-{time.time()}")
        self.site.worker.loop.add_callback(self.site.worker.handle_stimulus, event)
        self._tell_waiting(True)

    def _tell_waiting(self, is_waiting: bool) -> None:
        with self._lock:
            self._is_waiting = is_waiting
            self.emit([])

    def _acquire(self, *, returning: bool) -> None:
        if self._has_permit:
            return
        self.site.permits.acquire(returning=returning)
        with self._lock:
            self._has_permit = True
            if self._abandoned:
                self._release()

    def _release(self) -> None:
        if self._has_permit:
            self._has_permit = False
            self.site.permits.release()


_ABSENT: Final = object()


def _placed(upstream: Sequence[Any], values: Sequence[Kept | None]) -> list[Any]:
    """Return what the calls need."""
    return [_value(values[item.argument], item.call) if isinstance(item, Place) else item for item in upstream]


def _value(kept: Kept | None, call: int) -> Any:
    value = _ABSENT if kept is None else kept.values.get(call, _ABSENT)
    # Others on this worker may get it, too.
    return SharedParcel(value.data, value.buffers) if isinstance(value, Parcel) else value


def _described(failure: Any) -> str:
    """Return a line about an exception for Dask's dashboard."""
    error = decode(failure)
    try:
        text = str(error)
    except Exception:
        text = "its text can't be had"
    return f"{type(error).__name__}: {text[:500]}"
