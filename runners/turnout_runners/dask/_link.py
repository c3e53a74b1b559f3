"""A client of Dask in use: batches go out through it, and news of them come back."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from turnout._failures import encode
from turnout._serialization import Parcel
from turnout.errors import RunnerOptionError, RunnerStoppedError
from turnout.runner import Batch, Host, Outcome, OutcomeKind, Stored, TaskRunner

from ._asking import Asking
from ._ended import Ended
from ._journal import entries, journal_path
from ._orders import Orders
from ._placement import Placement, Unplaced, Worker, checked_options, place, why_nowhere
from ._reporter import Reporter
from ._sent import Sent, verdicts
from ._terms import Terms
from ._wire import Kept, News, number_of

__all__ = ["Link"]

logger = logging.getLogger("turnout")

# A cluster grows by what waits for it: it has to be shown that there is more to do than it can.
_LEAST_OF_ELASTIC: Final = 50
# Who has sent so many calls leaves the interpreter to others for so many seconds. A thread that goes on computing gives
# it up after 5 ms, and Dask's loop, often with the scheduler in it, needs it several times until the batch is on its
# way. Of 5,000 tiny calls, it makes 30.5 us each of 34 in a chain, and 41 of 44 in a stencil.
_MANY: Final = 100
_COURTESY: Final = 0.001
# How long to wait for the news of a batch that is over, in seconds.
_NEWS_PATIENCE: Final = 2.0


def _overhear(_: object) -> None:
    """Take an event that comes too late."""


class Link:
    """Sends batches to a cluster and reports what becomes of them, until it is closed.

    Parameters
    ----------
    client
        A :class:`distributed.Client` that is connected.
    host
        Takes the outcomes.
    runner
        Whose values the stored ones are.
    terms
        What is particular about the cluster.
    """

    def __init__(self, client: Any, host: Host, runner: TaskRunner, terms: Terms) -> None:
        self.client = client
        self.workers: dict[str, Worker] = {}
        self._host = host
        self._runner = runner
        self._terms = terms
        self._orders = Orders(client, uuid.uuid4().hex[:16], terms.base, terms.journal, is_nested=terms.is_nested)
        self._topic = self._orders.topic
        self._asking = Asking(client, self._topic)
        self._comm = client.scheduler_comm
        # Guards what follows.
        self._lock = threading.Lock()
        self._number = 0
        self._open: dict[int, Sent] = {}
        self._numbers: dict[Batch, int] = {}
        self._unplaced = Unplaced()
        self._ended = Ended()
        self._lost: str | None = None
        self._slots = 1
        self._most_workers = 0
        self._reporter = Reporter(self._ended.let_go, self._look_around)

    def open(self) -> None:
        """Listen for news, and learn what workers there are."""
        self.client.subscribe_topic(self._topic, self._take_event)
        self.client.subscribe_topic(self._terms.base, self._take_event)
        self.learn(self.client.sync(self.client.scheduler.identity)["workers"])
        self._reporter.start()

    def await_ends(self) -> None:
        """Wait until Dask has heard that all batches are over which are: their news came before that word."""
        self._ended.wait(self.client)

    def close(self) -> None:
        """Let go of everything; the client stays open."""
        self._reporter.stop()
        with self._lock:
            self._lost = self._lost or "it has been stopped"
            self._open.clear()
            self._numbers.clear()
            self._orders.forget()
            self._ended.clear()
        for topic in (self._topic, self._terms.base):
            with contextlib.suppress(Exception):
                self.client.unsubscribe_topic(topic)
                # What is on its way would be an error of the client's if nobody took it.
                self.client._event_handlers[topic] = _overhear
                self.client.loop.add_callback(
                    self.client.loop.call_later, _NEWS_PATIENCE, self.client._event_handlers.pop, topic, None
                )

    def slots(self) -> int:
        """Return how many threads the workers have together, or more where that makes a cluster grow."""
        if not self._terms.is_nested:
            return self._slots
        # What a batch waits for may have to go this way, too.
        return self._slots + sum(sent.is_waiting for sent in list(self._open.values()))

    def learn(self, workers: Mapping[str, Mapping[str, Any]]) -> None:
        """Take note of the workers that there are."""
        self.workers = {address: Worker.told(address, told) for address, told in workers.items()}
        self._most_workers = max(self._most_workers, len(self.workers))
        threads = sum(worker.threads for worker in self.workers.values())
        self._slots = max(_LEAST_OF_ELASTIC if self._terms.is_elastic else 1, threads)

    # Sending

    def submit(self, batch: Batch) -> None:
        """Send a batch, or keep it until there is a worker for it.

        Raises
        ------
        RunnerOptionError
            If the task has options that Dask doesn't, or needs what no worker has.
        RunnerStoppedError
            If the connection is lost.
        """
        checked_options(batch)
        placement = place(batch, self.workers)
        if placement is not None:
            self._send(batch, placement)
            return
        if not self._terms.is_elastic and self.workers and len(self.workers) >= self._most_workers:
            # No worker is missing that might come back.
            raise RunnerOptionError(why_nowhere(batch, self.workers))
        self._unplaced.add(batch)
        # Since the looks above a worker may have come, or the cluster gone, when nobody knew that this batch waits.
        self._place_again([batch])
        if self._lost is not None and self._unplaced.take(batch):
            raise self._stopped()

    def _send(self, batch: Batch, placement: Placement) -> None:
        try:
            order = self._orders.packed(batch, self._future_of, has_workers=bool(self.workers))
        except LookupError:
            # What it needs is over. Sent again, it has that.
            self._reporter.put(lambda: self._host.report(batch, _each(batch, OutcomeKind.RETURNED, None)))
            return
        with self._lock:
            if self._lost is not None:
                raise self._stopped()
            self._number += 1
            sent = self._open[self._number] = Sent(self._number, batch)
            self._numbers[batch] = sent.number
            sent.only_on = placement.only_on
        try:
            sent.future = self._orders.send(order, sent.number, placement.keywords, has_workers=bool(self.workers))
        except BaseException:
            self._forget(sent)
            raise
        self._recall_from_nowhere(sent)
        if len(batch.calls) >= _MANY:
            time.sleep(_COURTESY)

    def _recall_from_nowhere(self, sent: Sent) -> None:
        """Have a batch back that may only run on workers which have gone: Dask would wait for one to come back."""
        if sent.only_on and not sent.only_on & self.workers.keys() and not sent.running:
            self._recall(sent, stops=False)

    def _stopped(self) -> RunnerStoppedError:
        return RunnerStoppedError(f"The Dask cluster can't be reached: {self._lost}. Start the flow again.")

    def _future_of(self, batch: Batch) -> Any:
        with self._lock:
            sent = self._open.get(self._numbers.get(batch, 0))
            if sent is None or sent.future is None or sent.is_recalled:
                raise LookupError("it is not under way")
            return sent.future

    def fetch(self, stored: Stored) -> Parcel:
        """Bring a value here."""
        future, index = stored.handle
        kept = future.result()
        assert isinstance(kept, Kept)
        value = kept.values[index]
        assert isinstance(value, Parcel), "plain values are small, and come with the news"
        return value

    def is_waiting(self, batch: Batch) -> bool:
        """Return whether a batch waits for others that may come this way."""
        sent = self._open.get(self._numbers.get(batch, 0))
        # In a driver, what it waits for goes another way, by the worker's own link.
        return self._terms.is_nested and sent is not None and sent.is_waiting

    # Cancelling

    def cancel(self, batch: Batch) -> bool:
        """Have a batch stopped, or not begun; return whether it is under way."""
        waited = self._unplaced.take(batch)
        with self._lock:
            sent = self._open.get(self._numbers.get(batch, 0))
        if waited:
            self._reporter.put(lambda: self._host.report(batch, _each(batch, OutcomeKind.RETURNED, None)))
        elif sent is not None:
            self._recall(sent, stops=True)
        return waited or sent is not None

    def _recall(self, sent: Sent, *, stops: bool) -> None:
        """Ask all workers not to begin a batch, and to stop it if it has begun and ``stops``."""
        with self._lock:
            if sent.is_recalled:
                return
            sent.is_recalled = True
        if stops and sent.future is not None:
            # The shortest way to a worker that has not begun it. Dask tells no more of it from then on.
            sent.future.release()
            sent.is_released = True
            # Its end may have been told a moment ago.
            self._reporter.put(lambda: self._collect(sent))

        def answered(have_it: frozenset[str], _: bool) -> None:
            sent.stops_on = have_it
            if not have_it:
                self._give_back(sent)

        self._asking.ask(sent.number, "stop" if stops else "refuse", answered)

    def recall(self, batch: Batch) -> None:
        """Have those calls of a batch given back that have not begun."""
        with self._lock:
            sent = self._open.get(self._numbers.get(batch, 0))
        if sent is None or sent.is_recalled:
            return

        def answered(have_it: frozenset[str], is_answer: bool) -> None:
            if is_answer and not have_it:
                self._give_back(sent)

        self._asking.ask(sent.number, "recall", answered)

    def _give_back(self, sent: Sent) -> None:
        """Take note that no worker has a batch, and none will begin it."""
        self._reporter.put(lambda: self._report(sent, sent.rest(OutcomeKind.RETURNED)))

    # News

    def _take_event(self, event: tuple[float, Any]) -> None:
        """Take an event. Called in the client's loop, where nothing may wait."""
        message = event[1]
        if isinstance(message, bytes):
            self._reporter.put(lambda: self._take_news(News.unpacked(message)))
        elif message.get("op") == "lost":
            self._reporter.put(lambda: self._worker_died(message["from"], message["pid"], message["keys"]))
        elif message.get("op") == "workers":
            self._reporter.put(lambda: self._workers_changed(message["workers"]))

    def _take_news(self, news: News) -> None:
        sent = self._open.get(news.number)
        if sent is not None:
            waited = sent.is_waiting
            outcomes = sent.take(news)
            if sent.is_waiting and not waited:
                # There is more room.
                self._host.report(sent.batch, ())
            if sent.staying and sent.future is not None:
                sent.future.add_done_callback(lambda _: self._reporter.put(lambda: self._collect(sent)))
            self._report(sent, outcomes)
            if sent.is_released:
                self._collect(sent)

    def _collect(self, sent: Sent) -> None:
        """Report results that stay on a worker, now that Dask has them."""
        if sent.is_released and sent.staying:
            # Dask will never have them. Whoever released them does not want them.
            self._report(sent, sent.unkept())
            return
        if sent.future is None or sent.future.status != "finished":
            return
        outcomes = [outcome._replace(data=self._stored(sent, outcome)) for outcome in sent.staying.values()]
        sent.left -= sent.staying.keys()
        sent.staying.clear()
        self._report(sent, outcomes)

    def _stored(self, sent: Sent, outcome: Outcome) -> Any:
        stored = Stored(self._runner, (sent.future, outcome.index), outcome.data.nbytes)
        # What must not run twice must not be lost with a worker.
        return stored if sent.batch.may_stay else self.fetch(stored)

    def _worker_died(self, worker: str, pid: int, keys: Sequence[str]) -> None:
        for message in self._last_words(worker):
            news = News.unpacked(message)
            if news.topic == self._topic:
                self._take_news(news)
        held = [sent for key in keys if (sent := self._open.get(number_of(key))) is not None]
        if held:
            told_all = bool(self._terms.journal)
            cause = self._terms.cause_of_death(worker, pid) if worker else "its worker is being closed"
            for sent, outcomes in verdicts(held, cause, told_all=told_all):
                self._report(sent, outcomes)

    def _last_words(self, worker: str) -> list[bytes]:
        return list(entries(journal_path(self._terms.journal, worker))) if self._terms.journal and worker else []

    def _workers_changed(self, workers: Mapping[str, Any]) -> None:
        before = self._slots
        self.learn(workers)
        with self._lock:
            open_ = list(self._open.values())
        for sent in open_:
            self._recall_from_nowhere(sent)
        self._place_again(self._unplaced.all())
        if open_ and self._slots > before:
            # Nothing new of it: but there is room for more.
            self._host.report(open_[0].batch, ())

    def _place_again(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            placement = place(batch, self.workers)
            if placement is None or not self._unplaced.take(batch):
                continue
            try:
                self._send(batch, placement)
            except Exception as error:
                self._host.report(batch, _each(batch, OutcomeKind.CRASHED, str(error)))

    def _report(self, sent: Sent, outcomes: Sequence[Outcome]) -> None:
        if not sent.left:
            # Before: what is reported may start it anew.
            self._forget(sent)
        if outcomes:
            self._host.report(sent.batch, outcomes)

    def _forget(self, sent: Sent) -> None:
        with self._lock:
            self._open.pop(sent.number, None)
            if self._numbers.get(sent.batch) == sent.number:
                del self._numbers[sent.batch]
        self._ended.add(sent.future)
        sent.future = None

    # What no news tells of

    def _look_around(self) -> None:
        problem = self._terms.check_connection()
        if self.client.scheduler_comm is not self._comm or self.client.status != "running":
            problem = problem or "the connection to the scheduler is lost"
        if problem is not None and self._lost is None:
            self._connection_lost(problem)
            return
        # Here, because it needs distributed, which a recipe does not load.
        from ._watch import wake_overslept

        self.client.loop.add_callback(wake_overslept, self._comm)
        now = time.monotonic()
        self._give_up_unplaced()
        for sent in list(self._open.values()):
            # A worker that was asked to stop it may have died meanwhile, of which Dask does not tell then.
            is_orphan = bool(sent.stops_on) and not sent.stops_on & self.workers.keys()
            if not is_orphan and (sent.future is None or sent.future.status == "pending"):
                continue
            sent.odd_since = sent.odd_since or now
            if sent.staying and sent.future.status == "finished":
                # Its news came before `submit` returned the future.
                self._collect(sent)
            elif now - sent.odd_since > _NEWS_PATIENCE:
                self._settle_odd(sent, "orphan" if is_orphan else sent.future.status)

    def _settle_odd(self, sent: Sent, status: str) -> None:
        """Settle a batch that Dask is done with, and of which no news came."""
        if status == "orphan":
            self._report(sent, sent.rest(OutcomeKind.RETURNED))
        elif sent.is_early and not sent.is_unpacked and not sent.is_recalled:
            # Dask doesn't run what needs a value that will not be.
            self._report(sent, sent.rest(OutcomeKind.RETURNED))
        elif status in ("cancelled", "lost"):
            # A value that it needs went with its worker; but it may have begun.
            self._recall(sent, stops=False)
        elif status == "error" and not sent.is_recalled:
            error = sent.future.exception(timeout=5)
            cause = f"Dask did not run it: {type(error).__name__}: {error}"
            self._report(sent, sent.rest(OutcomeKind.CRASHED, cause))
        elif not sent.is_recalled:
            self._report(sent, sent.rest(OutcomeKind.CRASHED, "Dask says that it is over, but its outcome is lost"))

    def _give_up_unplaced(self) -> None:
        if self._terms.is_elastic:
            for batch in self._unplaced.late():
                logger.warning("Waiting for the cluster to grow: %s.", why_nowhere(batch, self.workers))
            return
        for batch in self._unplaced.late():
            if self._unplaced.take(batch):
                error = encode(RunnerOptionError(why_nowhere(batch, self.workers)))
                self._host.report(batch, _each(batch, OutcomeKind.FAILURE, error))

    def _connection_lost(self, problem: str) -> None:
        with self._lock:
            self._lost = problem
            open_ = list(self._open.values())
        for sent in open_:
            self._report(sent, sent.rest(OutcomeKind.CRASHED, problem))
        for batch in filter(self._unplaced.take, self._unplaced.all()):
            self._host.report(batch, _each(batch, OutcomeKind.CRASHED, problem))


def _each(batch: Batch, kind: OutcomeKind, data: Any) -> list[Outcome]:
    return [Outcome(index, kind, data) for index in range(len(batch.calls))]
