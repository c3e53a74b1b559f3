"""Which worker gets which batch: the queue, the workers, and what happens when one of them dies.

All of it belongs to one thread, the pool's; there are no locks.
"""

from __future__ import annotations

import heapq
import logging
import selectors
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from turnout._failures import encode as encode_failure
from turnout.runner import Outcome, OutcomeKind

from ._wire import Message, Unreadable, encode
from ._worker import Assignment, Worker
from ._worker_main import CONTROL

if TYPE_CHECKING:
    from turnout._serialization import Parcel
    from turnout.runner import Batch, Host

    from ._launch import Interpreter

__all__ = ["Crew", "Settings"]

_logger: Final = logging.getLogger("turnout")

_LEAVING_SECONDS: Final = 2.0
_MOST_DEATHS: Final = 3
# How often it is looked whether somebody has stopped a worker that should begin something.
_LOOK_SECONDS: Final = 1.0
# How often it is tried to start a first worker for which the system has no room, and for how long; and how often it is
# tried again to have more than a few.
_FIRST_AGAIN_SECONDS: Final = 0.2
_FIRST_PATIENCE_SECONDS: Final = 2.0
_MORE_AGAIN_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Settings:
    """What the pool's workers are like."""

    max_workers: int
    max_tasks_per_worker: int | None
    interpreter: Interpreter
    setup: tuple[str, Parcel]
    """What a worker is told first: the driver's version of Turnout, and a packed :class:`Setup`."""


class Crew:
    """The workers of a pool and the batches that it has.

    Parameters
    ----------
    settings
        What the workers are like.
    host
        Where outcomes go.
    selector
        Where what the workers say is waited for. Events carry a function to call as their data.
    """

    def __init__(self, settings: Settings, host: Host, selector: selectors.BaseSelector) -> None:
        self._settings = settings
        self._host = host
        self._selector = selector
        self._limit = settings.max_workers
        self._queue: list[Assignment] = []
        self._failed_starts = 0
        self._looked = 0.0
        # Since when there has been no room for a first worker; when to try again to start some.
        self._short_since: float | None = None
        self._grows_at = 0.0
        self._mends_at = float("inf")
        self.open: dict[int, Assignment] = {}
        """What has no last outcome yet, by the id of its batch. Other threads may look."""
        self.workers: list[Worker] = []
        self.broken: str | None = None
        """Why no worker can be started, if so. Other threads may look."""

    def enlist(self, batch: Batch) -> Assignment:
        """Return the record of a new batch. Any thread may call."""
        assignment = self.open[id(batch)] = Assignment(batch)
        return assignment

    def add(self, assignment: Assignment) -> None:
        """Take a batch, to be given to a worker by :meth:`balance`."""
        if self.broken is None:
            heapq.heappush(self._queue, assignment)
        else:
            self._finish(assignment, assignment.outcomes_of_end(OutcomeKind.RETURNED))

    def cancel(self, batch: Batch) -> None:
        """Drop a batch, or stop the worker that runs it."""
        assignment = self.open.get(id(batch))
        if assignment is None or assignment.stopping:
            return
        worker = self._has_begun(assignment)
        if worker is not None:
            assignment.stopping = True
            if not worker.is_frozen:
                worker.freeze()

    def recall(self, batch: Batch) -> None:
        """Give back what has not begun of a batch."""
        assignment = self.open.get(id(batch))
        if assignment is None or assignment.stopping:
            return
        worker = self._has_begun(assignment)
        if worker is not None:
            worker.recall(assignment)

    def _has_begun(self, assignment: Assignment) -> Worker | None:
        """Return the worker that has begun a batch; give one back as a whole that none has."""
        worker = assignment.worker
        if worker is None or worker.take_back(assignment):
            self._finish(assignment, assignment.outcomes_of_end(OutcomeKind.RETURNED))
            return None
        return worker

    def balance(self) -> None:
        """Give out what waits, move what waits behind a long call to an idle worker, start workers that are needed."""
        self.give_out()
        self._even_out()
        self._grow()

    def check(self, now: float) -> None:
        """Look after workers that are being frozen, that stand still or are overdue, or whose death nothing tells."""
        for worker in list(self.workers):
            if worker.is_frozen and (worker.is_halted() or worker.is_dead()):
                self._decide(worker)
            if now >= worker.deadline:
                worker.kill()
            if worker.exit is None and worker.is_dead():
                self.bury(worker)
        if now >= self._looked + _LOOK_SECONDS:
            self._looked = now
            self._replace_stopped()
        if now >= self._mends_at:
            self.broken, self._mends_at = None, float("inf")

    def _replace_stopped(self) -> None:
        """End workers that somebody else has stopped, if they run nothing; what they should have begun others get.

        One that was stopped in a call has the call wait, as it would for a body that takes long.
        """
        for worker in self.workers:
            waits = bool(worker.held) or not worker.is_ready
            if waits and not worker.is_frozen and worker.runs_nothing() and worker.is_halted():
                for held in list(worker.held):
                    if worker.take_back(held):
                        heapq.heappush(self._queue, held)
                if not worker.held:
                    worker.kill()

    def patience(self) -> float | None:
        """Return how many seconds may pass until :meth:`check` is called, None for any number."""
        if any(worker.is_frozen for worker in self.workers):
            return 0.001
        if any(worker.exit is None for worker in self.workers):
            return 0.05
        first = min((worker.deadline for worker in self.workers), default=float("inf"))
        if self.open:
            first = min(first, self._looked + _LOOK_SECONDS)
            if self._short_since is not None:
                first = min(first, self._grows_at)
        first = min(first, self._mends_at)
        return max(0.0, first - time.monotonic()) if first < float("inf") else None

    def disband(self) -> None:
        """Give up all batches, and tell all workers to go."""
        self._break("it has been stopped")
        deadline = time.monotonic() + _LEAVING_SECONDS
        for worker in self.workers:
            worker.leave(deadline)
            if worker.held:
                worker.kill()

    def bury_all(self) -> None:
        """End what is left of workers and batches at once, and wait for the processes."""
        for worker in list(self.workers):
            worker.kill()
            worker.process.wait()
            self.bury(worker)
        for assignment in list(self.open.values()):
            self._finish(assignment, assignment.outcomes_of_end(OutcomeKind.RETURNED))

    def abandon(self) -> None:
        """Let go of workers that belong to the parent, in a process that was forked from the driver."""
        self.broken = "it belongs to the process that this one was forked from"
        for worker in self.workers:
            worker.process.returncode = 0
            worker.close()

    # Giving out.

    def give_out(self) -> None:
        """Give what waits to workers that have room. May be called while news are told."""
        while self._queue:
            if not self._queue[0].left:
                heapq.heappop(self._queue)
                continue
            worker = max(self.workers, key=Worker.room, default=None)
            if worker is None or worker.room() <= 0:
                return
            self._give(worker, heapq.heappop(self._queue))

    def _give(self, worker: Worker, assignment: Assignment) -> None:
        try:
            worker.give(assignment)
        except Exception as error:
            error.add_note("There was no room to send this call's arguments to a worker.")
            self._finish(assignment, assignment.outcomes_of_end(OutcomeKind.FAILURE, encode_failure(error)))
            return
        self._watch_writing(worker)

    def _even_out(self) -> None:
        idle = [worker for worker in self.workers if not worker.held and worker.room()]
        while idle and not self._queue:
            taken = self._taken_back()
            if taken is None:
                return
            self._give(idle.pop(), taken)

    def _taken_back(self) -> Assignment | None:
        """Return the first batch that waits at a worker behind another one."""
        for assignment in sorted(waiting for worker in self.workers for waiting in worker.held[1:]):
            if assignment.worker is not None and assignment.worker.take_back(assignment):
                return assignment
        return None

    def _grow(self) -> None:
        staying = self._staying()
        limit = self._limit if time.monotonic() < self._grows_at else self._settings.max_workers
        for _ in range(staying, min(limit, len(self.open))):
            if self.broken is not None or not self._hire():
                return

    def _staying(self) -> int:
        return sum(not worker.is_leaving for worker in self.workers)

    def _hire(self) -> bool:
        """Start a worker, and return whether the system had room for it."""
        try:
            # First: if there is no room for that, no process is to be ended for it.
            setup = encode(CONTROL, 0, self._settings.setup)
            worker = self._launch()
        except OSError as error:
            problem = f"starting an interpreter failed: {error}"
        else:
            self._short_since = None
            self.workers.append(worker)
            worker.channel.send(setup)
            self._watch_writing(worker)
            return True
        # Out here, for errors that calls get now would keep that one as their context, with the files in its frames.
        self._make_do(self._staying(), problem)
        return False

    def _launch(self) -> Worker:
        launched = self._settings.interpreter.launch()
        try:
            worker = Worker(launched, self._settings.max_tasks_per_worker)
            try:
                self._watch(worker)
            except OSError:
                self._unwatch(worker)
                worker.close()
                raise
        except OSError:
            launched.end()
            raise
        return worker

    def _watch(self, worker: Worker) -> None:
        self._selector.register(worker.channel, selectors.EVENT_READ, lambda events: self._heard(worker, events))
        if worker.exit is not None:
            self._selector.register(worker.exit, selectors.EVENT_READ, lambda _: self.bury(worker))

    def _unwatch(self, worker: Worker) -> None:
        for watched in (worker.channel, worker.exit):
            if watched is not None and watched in self._selector.get_map():
                self._selector.unregister(watched)

    def _make_do(self, count: int, problem: str) -> None:
        """Start no more workers than there are for a while, for the system has no room; with none, give up."""
        now = time.monotonic()
        if not count:
            self._short_since = now if self._short_since is None else self._short_since
            if now >= self._short_since + _FIRST_PATIENCE_SECONDS:
                self._break(problem)
                # Not at once: what is given back now, and comes again, shall learn why.
                self._short_since, self._mends_at = None, now + _FIRST_AGAIN_SECONDS
        elif count != self._limit:
            _logger.warning("The process runner makes do with %d workers: %s", count, problem)
        self._limit = count
        self._grows_at = now + (_MORE_AGAIN_SECONDS if count else _FIRST_AGAIN_SECONDS)

    # Hearing from workers.

    def _heard(self, worker: Worker, events: int) -> None:
        if worker not in self.workers:
            # Buried by an event that came along with this one.
            return
        if events & selectors.EVENT_WRITE:
            worker.channel.flush()
            self._watch_writing(worker)
        if events & selectors.EVENT_READ:
            self._deliver(worker, worker.channel.receive())
            if worker.channel.ended:
                self._selector.unregister(worker.channel)
                worker.deadline = min(worker.deadline, time.monotonic() + _LEAVING_SECONDS)

    def _watch_writing(self, worker: Worker) -> None:
        if worker.writes != worker.channel.has_outgoing and not worker.channel.ended:
            worker.writes = not worker.writes
            key = self._selector.get_key(worker.channel)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.writes else 0)
            self._selector.modify(worker.channel, events, key.data)

    def _deliver(self, worker: Worker, messages: Iterable[Message]) -> None:
        for number, group in groupby(messages, key=lambda message: message.number):
            if number == CONTROL:
                self._started(worker, *(message.content for message in group))
            else:
                self._report(worker, number, group)

    def _report(self, worker: Worker, number: int, messages: Iterable[Message]) -> None:
        assignment = next((held for held in worker.held if held.number == number), None)
        if assignment is None:
            return
        outcomes = assignment.outcomes(row for message in messages for row in _rows(message))
        if assignment.left:
            self._tell(assignment, outcomes)
            return
        worker.held.remove(assignment)
        self._finish(assignment, outcomes)
        if worker.is_spent() and not worker.held:
            worker.leave(time.monotonic() + _LEAVING_SECONDS)

    def _finish(self, assignment: Assignment, outcomes: Sequence[Outcome]) -> None:
        # First, so that what is submitted while outcomes are told finds the room.
        del self.open[id(assignment.batch)]
        self._tell(assignment, outcomes)

    def _tell(self, assignment: Assignment, outcomes: Sequence[Outcome]) -> None:
        try:
            self._host.report(assignment.batch, outcomes)
        except Exception:
            _logger.exception("Telling the outcomes of a batch failed")

    def _started(self, worker: Worker, problem: str | None) -> None:
        if problem is not None:
            worker.leave(time.monotonic() + _LEAVING_SECONDS)
            self._break(problem)
            return
        worker.is_ready = True
        self._failed_starts = 0
        if text := worker.log_text():
            print(text, file=sys.stderr)

    # Deaths.

    def _decide(self, worker: Worker) -> None:
        """End a frozen worker if it is in a call that is to stop; let it go on if that call is over."""
        self._deliver(worker, worker.channel.receive_all())
        if any(held.stopping and not worker.is_past(held) for held in worker.held):
            worker.kill()
        else:
            worker.thaw()

    def bury(self, worker: Worker) -> None:
        """Take leave of a dead worker, and see to the batches that it had."""
        if not worker.is_leaving:
            # What its tasks started must not outlive it.
            worker.kill()
        if not worker.is_dead():
            return
        self._deliver(worker, worker.channel.receive_all())
        self.workers.remove(worker)
        self._unwatch(worker)
        cause = worker.cause_of_death()
        if not worker.is_ready and not worker.is_leaving:
            self._start_failed(worker, cause)
        self._inherit(worker, cause)
        worker.close()

    def _inherit(self, worker: Worker, cause: str) -> None:
        guilty = [held for held in worker.held if worker.has_begun(held)]
        for held in worker.held:
            held.deaths += not guilty and not worker.is_leaving
            if held in guilty:
                if noted := worker.noted(held):
                    self._tell(held, noted)
                self._finish(held, held.outcomes_of_death(cause, worker.calls_begun(held)))
            elif held.stopping or self.broken is not None:
                self._finish(held, held.outcomes_of_end(OutcomeKind.RETURNED))
            elif held.deaths >= _MOST_DEATHS:
                self._finish(held, held.outcomes_of_end(OutcomeKind.LOST, cause))
            else:
                held.worker = None
                heapq.heappush(self._queue, held)

    def _start_failed(self, worker: Worker, cause: str) -> None:
        self._failed_starts += 1
        problem = "\n".join(filter(None, [cause, worker.log_text()]))
        if (worker.process.returncode or 0) >= 0:
            # Who gives up by itself will give up again; who was killed may have better luck next time.
            self._break(problem)
        elif self._failed_starts >= _MOST_DEATHS:
            ready = sum(worker.is_ready for worker in self.workers)
            if ready:
                self._make_do(ready, problem)
            else:
                self._break(problem)

    def _break(self, problem: str) -> None:
        self.broken, self._mends_at = problem, float("inf")
        self._drop_queue()

    def _drop_queue(self) -> None:
        queue, self._queue = self._queue, []
        for assignment in queue:
            if assignment.left:
                self._finish(assignment, assignment.outcomes_of_end(OutcomeKind.RETURNED))


def _rows(message: Message) -> Sequence[tuple[Any, ...]]:
    """Return the rows of a message; one that there was no room for was the outcome of its call."""
    content: Sequence[tuple[Any, ...]] | Unreadable = message.content
    if not isinstance(content, Unreadable):
        return content
    error = content.error
    error.add_note("The driver had no room to receive this call's result.")
    return [(message.index, OutcomeKind.FAILURE, encode_failure(error))]
