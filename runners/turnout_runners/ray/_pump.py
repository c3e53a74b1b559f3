"""What is under way at Ray: sends batches, waits for all of them in one thread, and reports what became of each."""

from __future__ import annotations

import functools
import heapq
import logging
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, Final

from turnout._timers import after
from turnout.errors import RunnerBrokenError
from turnout.runner import Batch, Capabilities, Host, Outcome, OutcomeKind, TaskRunner

from ._calls import Calls
from ._cluster import Cluster
from ._entry import Entry, for_each
from ._mailbox import Message
from ._post import Post

__all__ = ["CAPABILITIES", "Pump", "under_way"]

logger = logging.getLogger("turnout")

CAPABILITIES: Final = Capabilities(
    cancel="kill",
    frees_slot=True,
    nested="shared",
    explains_crashes=False,
    streams=True,
    latency=0.003,
    batch_seconds=0.0027,
    shared_memory=True,
    knows_resources=True,
)

# How long one wait in Ray takes at most, in seconds: a batch that is sent meanwhile is not part of it. More for many
# batches, because each wait costs something for each of them.
_WAIT: Final = 0.005
_WAIT_FOR_EACH: Final = 50e-6
# How often a batch may find a dead worker in the place of one, before that is a crash like any other.
_RETURNS: Final = 3
# How long a batch may be silent after a node was lost, in seconds. One that runs is so for a tenth of that at most.
_SILENCE: Final = 2.0
# How long Ray has to give back what was asked back then, in seconds. It mostly does at once; but once nothing was heard
# again of a task that was on its way to a worker of the lost node, neither its end nor that it was cancelled.
_ASKED_BACK: Final = 10.0
# How long a cancelled batch has to end by itself before its worker is ended, in seconds: short calls do. Ray takes some
# milliseconds to end a worker, and if the task is over meanwhile, that hits the next one, which is not to blame.
_GRACE: Final = 0.05
# How long it may take after that until it is asked for again, in seconds.
_AGAIN: Final = 2.0
# How long stopping waits for batches that were cancelled, in seconds.
_STOP_PATIENCE: Final = 5.0


# The pumps of this process: in a worker, a body may wait for calls of several.
_pumps: Final[weakref.WeakSet[Pump]] = weakref.WeakSet()


def under_way() -> list[Any]:
    """Return references to the outcomes of everything that this process has under way at Ray."""
    return [reference for pump in list(_pumps) for reference in pump.references()]


class Pump:
    """The batches of one started runner.

    Parameters
    ----------
    runner
        Whose stored values they leave.
    host
        Where to report.
    post
        What brings news of running batches.
    cluster
        What there is to run on.
    shipment
        Code that travels along.
    limit
        How many batches Ray gets at once, or None for as many as come.
    """

    def __init__(
        self,
        runner: TaskRunner,
        host: Host,
        post: Post,
        cluster: Cluster,
        shipment: bytes | None = None,
        limit: int | None = None,
    ) -> None:
        self._runner = runner
        self._host = host
        self._post = post
        self._calls = Calls(post.channel, post.name, cluster, shipment)
        self._cluster = cluster
        # Which loss of a node has left nothing to ask back.
        self._settled = cluster.lost_at
        # What was asked back, and when. Belongs to the thread.
        self._asked_back: list[tuple[float, Entry]] = []
        self._limit = limit
        # Guards what follows.
        self._changed = threading.Condition(threading.Lock())
        self._entries: dict[Any, Entry] = {}
        self._by_batch: dict[Batch, Entry] = {}
        self._by_number: dict[int, Entry] = {}
        self._queue: list[tuple[int, int, Batch]] = []
        self._numbers = 0
        self._sending = 0
        # What is to be cancelled, or to be asked for its rest, as soon as it is sent.
        self._cancelled: set[Batch] = set()
        self._recalled: set[Batch] = set()
        # How often batches never began, by what they keep when they are sent again.
        self._returned: dict[int, int] = {}
        self._lost: str | None = None
        # Whether it is known that the mailbox is lost.
        self._is_without_post = False
        self._is_stopping = False
        _pumps.add(self)
        self._thread = threading.Thread(target=self._serve, name="turnout-ray", daemon=True)
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        """Send a batch, or queue it if Ray has as many as it may have.

        Raises
        ------
        RunnerBrokenError
            If Ray is lost.
        RunnerOptionError
            If Ray has no such option, or no node what the batch needs.
        """
        self._calls.check(batch)
        with self._changed:
            if self._lost is not None:
                raise RunnerBrokenError(f"{self._lost} Start the flow again when Ray is back.")
            self._numbers += 1
            number = self._numbers
            if self._limit is None:
                self._sending += 1
            else:
                # Even if there is room: another thread may be about to fill it from the queue.
                heapq.heappush(self._queue, (batch.seq, number, batch))
        if self._limit is None:
            self._send(batch, number)
        else:
            self._refill()

    def cancel(self, batch: Batch) -> bool:
        """Take a batch back, or end the worker that runs it."""
        with self._changed:
            entry = self._by_batch.get(batch)
            was_queued = self._unqueued(batch)
            if entry is not None and entry.is_cancelled:
                # Its end is asked for already, as often as it takes.
                return True
            if entry is not None:
                entry.is_cancelled = True
            elif not was_queued and self._sending:
                # It may be on its way out of the queue in another thread.
                self._cancelled.add(batch)
        if was_queued:
            self._host.report(batch, for_each(batch, OutcomeKind.RETURNED))
            return True
        if entry is None:
            return False
        # Ray drops what waits. What runs is not told by that, but has a moment to end.
        self._post.cancel(entry.sent.outcomes, force=False)
        # By its number: a reference that outlives the connection to Ray ends the process.
        entry.ask_no_more = after(_GRACE, functools.partial(self._kill, entry.number))
        return True

    def _kill(self, number: int, *, again: bool = False) -> None:
        """End the worker that runs a batch, if it still does."""
        # Under the lock: stopping waits for what is under way, and Ray must not be asked afterwards.
        with self._changed:
            entry = self._by_number.get(number)
            if entry is None or entry.is_over:
                return
            if again and entry.process:
                # Ray asks a worker to end itself, which one that was stopped (SIGSTOP) doesn't.
                self._cluster.end_worker(entry.process)
            self._post.cancel(entry.sent.outcomes, force=True)
            # As often as it takes: what is asked of Ray may be lost with whoever it was on its way to.
            entry.ask_no_more = after(_AGAIN, functools.partial(self._kill, number, again=True))
            del entry

    def recall(self, batch: Batch) -> None:
        """Have those calls of a batch given back that have not begun."""
        with self._changed:
            entry = self._by_batch.get(batch)
            was_queued = self._unqueued(batch)
            if entry is not None:
                entry.is_asked_for_rest = True
            elif not was_queued and self._sending:
                self._recalled.add(batch)
        if was_queued:
            self._host.report(batch, for_each(batch, OutcomeKind.RETURNED))
        elif entry is not None:
            # Without force: Ray drops a task that waits, and sends the worker of one that runs a signal, see _remote.
            self._post.cancel(entry.sent.outcomes, force=False)

    def _unqueued(self, batch: Batch) -> bool:
        """Return whether a batch was in the queue, and now is not. With the lock held."""
        queued = [item for item in self._queue if item[2] is batch]
        for item in queued:
            self._queue.remove(item)
            heapq.heapify(self._queue)
        return bool(queued)

    def references(self) -> list[Any]:
        """Return what to wait for."""
        with self._changed:
            return [reference for reference, entry in self._entries.items() if not entry.is_over]

    def lose(self, cause: str) -> None:
        """Give up everything under way: Ray is gone, and tells of nothing any more."""
        with self._changed:
            self._lost = cause
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread, once cancelled batches have ended, which they soon do."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()
        with self._changed:
            for entry in self._by_number.values():
                entry.ask_no_more()
            self._by_number.clear()
        _pumps.discard(self)
        if self._lost is None:
            self._post.close()

    # Sending

    def _send(self, batch: Batch, number: int) -> None:
        try:
            sent = self._calls.send(batch, number)
        except BaseException:
            with self._changed:
                self._sending -= 1
            raise
        entry = Entry(batch, number, sent)
        with self._changed:
            self._sending -= 1
            self._entries[sent.outcomes] = entry
            self._by_batch[batch] = self._by_number[number] = entry
            is_cancelled, is_recalled = batch in self._cancelled, batch in self._recalled
            if not self._sending:
                self._cancelled.clear()
                self._recalled.clear()
            self._changed.notify()
        if is_cancelled:
            self.cancel(batch)
        elif is_recalled:
            self.recall(batch)

    def _refill(self) -> None:
        """Send from the queue what there is room for."""
        while True:
            with self._changed:
                assert self._limit is not None or not self._queue, "without a limit nothing is queued"
                if not self._queue or len(self._entries) + self._sending >= (self._limit or 0):
                    return
                _, number, batch = heapq.heappop(self._queue)
                self._sending += 1
            try:
                self._send(batch, number)
            except Exception as error:
                cause = f"{type(error).__name__}: {error}"
                self._host.report(batch, for_each(batch, OutcomeKind.CRASHED, cause))

    # The thread

    def _serve(self) -> None:
        deadline: float | None = None
        while True:
            with self._changed:
                while not (self._entries or self._is_stopping or self._lost):
                    self._changed.wait()
                if self._is_stopping and deadline is None:
                    deadline = time.monotonic() + _STOP_PATIENCE
                is_over = self._is_stopping and not self._entries
                lost = self._lost
            if is_over or (deadline is not None and time.monotonic() > deadline):
                return
            if lost is not None:
                self._give_up(lost)
                continue
            try:
                self._turn()
            except Exception as error:
                # Ray is not what it was: shut down under our feet, or a connection that broke.
                self.lose(f"Ray is lost ({type(error).__name__}: {error}).")

    def _turn(self) -> None:
        """Wait for some news, and report them."""
        from ._library import ray

        if self._cluster.lost_at > self._settled:
            self._ask_back(self._cluster.lost_at)
        if self._asked_back:
            self._end_asked_back()
        references = self.references()
        if self._is_newsworthy():
            self._post.ask()
        waited = references + self._post.requests
        timeout = _WAIT + _WAIT_FOR_EACH * len(waited)
        ready, _ = ray.wait(waited, num_returns=1, timeout=timeout, fetch_local=False) if waited else ([], [])
        if ready:
            ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0, fetch_local=False)
            for message in self._post.take():
                self._take_in(message)
            self._end([reference for reference in ready if reference in self._entries])
        self._report_ends()
        if self._post.is_lost and not self._is_without_post:
            self._is_without_post = True
            self._cancel_again()

    def _cancel_again(self) -> None:
        """Cancel by ourselves what may have been asked of the mailbox when it was lost."""
        with self._changed:
            entries = [entry for entry in self._entries.values() if not entry.is_over]
        for entry in entries:
            if entry.is_cancelled or entry.is_recalled:
                self._post.cancel(entry.sent.outcomes, force=True)
            elif entry.is_asked_for_rest:
                self._post.cancel(entry.sent.outcomes, force=False)

    def _ask_back(self, lost_at: float) -> None:
        """Take back what was sent before a node was lost and shows no sign of life, so that it is sent again.

        Ray asks nodes for workers. If a host is cut off, the question has no answer, and Ray waits for one for minutes
        longer than it takes to declare the node dead.
        """
        with self._changed:
            silent = [entry for entry in self._entries.values() if entry.is_silent and entry.sent_at <= lost_at]
            waiting = [entry for entry in silent if not (entry.is_recalled or entry.is_cancelled)]
            now = time.monotonic()
            late = [entry for entry in waiting if now - entry.sent_at > _SILENCE]
            for entry in late:
                entry.is_recalled = True
        if not waiting:
            self._settled = lost_at
        if late:
            self._calls.begin_afresh()
        for entry in late:
            # If it has just begun, only the end of its worker ends it for sure.
            self._post.cancel(entry.sent.outcomes, force=True)
            self._asked_back.append((now, entry))

    def _end_asked_back(self) -> None:
        """Take for cancelled what was asked back, and of which Ray says nothing."""
        from ._library import ray

        now = time.monotonic()
        self._asked_back = [(since, entry) for since, entry in self._asked_back if entry.is_silent]
        for since, entry in self._asked_back:
            if now - since > _ASKED_BACK:
                entry.end(ray.exceptions.TaskCancelledError(), self._post)

    def _is_newsworthy(self) -> bool:
        with self._changed:
            return any(entry.is_newsworthy for entry in self._entries.values())

    def _take_in(self, message: Message) -> None:
        with self._changed:
            entry = self._by_number.get(message.number)
        if entry is not None:
            for outcomes in entry.accept(message):
                self._report(entry, outcomes)

    def _end(self, references: Sequence[Any]) -> None:
        """Learn how Ray tasks ended."""
        for reference, result in zip(references, _results(references), strict=True):
            entry = self._entries[reference]
            if isinstance(result, BaseException) and entry.sent.values is not None:
                # Looked at, or Ray would complain that nobody did.
                _result(entry.sent.values)
            entry.end(result, self._post)

    def _report_ends(self) -> None:
        with self._changed:
            ended = [entry for entry in self._entries.values() if entry.may_be_told(self._post)]
        for entry in ended:
            self._report(entry, self._last_outcomes(entry))
            if entry.left:
                # They were told by way of the mailbox, and never arrived.
                left = sorted(entry.left)
                self._report(entry, [Outcome(index, OutcomeKind.LOST, "its outcome was lost") for index in left])
            # Not before: what became ready by it may come before what is in the queue.
            with self._changed:
                del self._entries[entry.sent.outcomes]
                del self._by_number[entry.number]
                self._by_batch.pop(entry.batch, None)
                entry.ask_no_more()
        if ended:
            self._refill()

    def _last_outcomes(self, entry: Entry) -> list[Outcome]:
        seq = entry.batch.seq
        # Without the post nobody knows what has begun.
        never_began = entry.never_began and not self._post.is_lost
        if never_began and (entry.is_recalled or entry.is_asked_for_rest):
            return for_each(entry.batch, OutcomeKind.RETURNED)
        if never_began:
            self._returned[seq] = times = self._returned.get(seq, 0) + 1
            if times <= _RETURNS:
                return for_each(entry.batch, OutcomeKind.RETURNED)
        self._returned.pop(seq, None)
        return entry.last_outcomes(self._runner)

    def _report(self, entry: Entry, outcomes: Sequence[Outcome]) -> None:
        entry.left.difference_update(outcome.index for outcome in outcomes if outcome.kind >= OutcomeKind.VALUE)
        try:
            self._host.report(entry.batch, outcomes)
        except Exception:
            logger.exception("What became of a batch could not be taken in.")

    def _give_up(self, cause: str) -> None:
        with self._changed:
            entries = list(self._entries.values())
            queued = [batch for _, _, batch in self._queue]
            for entry in entries:
                entry.ask_no_more()
            self._entries.clear()
            self._by_batch.clear()
            self._by_number.clear()
            self._queue.clear()
        for entry in entries:
            left = sorted(entry.left)
            self._report(entry, [Outcome(index, OutcomeKind.CRASHED, cause) for index in left])
        for batch in queued:
            self._host.report(batch, for_each(batch, OutcomeKind.CRASHED, cause))
        with self._changed:
            while self._lost and not (self._entries or self._queue or self._is_stopping):
                self._changed.wait()


def _results(references: Sequence[Any]) -> list[Any]:
    """Return what is behind references, or the errors why it is not."""
    from ._library import ray

    try:
        return list(ray.get(list(references)))
    except Exception:
        # One of them, and Ray doesn't say which.
        return [_result(reference) for reference in references]


def _result(reference: Any) -> Any:
    from ._library import ray

    try:
        return ray.get(reference)
    except Exception as error:
        return error
