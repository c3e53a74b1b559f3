"""A pool of threads whose finishing thread runs the next ready call itself."""

from __future__ import annotations

import contextlib
import heapq
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from turnout._locks import PoliteLock, start_thread
from turnout.errors import RunnerStoppedError
from turnout.runner import Batch, Capabilities, Host, Plan, TaskRunner, check_count, usable_processors

__all__ = ["ConcurrentTaskRunner", "ThreadPoolTaskRunner"]

# As in the pool of the standard library: calls on threads mostly wait.
_MOST_BY_DEFAULT: Final = 32
_MORE_THAN_PROCESSORS: Final = 4
# How long `stop` waits for bodies that were told to stop and don't, in seconds.
_PATIENCE: Final = 0.5


class ThreadPoolTaskRunner(TaskRunner):
    """Calls run on threads of this process, which share its memory: nothing is pickled.

    A call that is cancelled or out of time is asked to stop: an exception is raised in its thread, which ends Python
    code at once and C code (such as ``time.sleep``) when it returns. Its slot serves others meanwhile.

    Parameters
    ----------
    max_workers
        How many calls run at once, at least 1. Default: the processors that this process may use plus 4, at most 32.
        Calls that wait for other calls don't count, nor do async ones: those all run on one event loop.
    thread_name_prefix
        What the names of the threads begin with.

    Examples
    --------
    >>> from turnout import flow, task
    >>> from turnout_runners.thread import ThreadPoolTaskRunner
    >>> @task
    ... def double(x):
    ...     return 2 * x
    >>> @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
    ... def doubled():
    ...     return double.map([1, 2, 3])
    >>> doubled()
    [2, 4, 6]
    """

    capabilities: Capabilities = Capabilities(
        in_process=True,
        keeps_order=True,
        cancel="cooperative",
        frees_slot=True,
        nested="shared",
        streams=True,
        batch_seconds=0.0,
    )

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "turnout") -> None:
        check_count("max_workers", max_workers)
        self._max_workers = max_workers
        self._prefix = thread_name_prefix
        self._pool: _Pool | None = None

    def start(self, host: Host) -> None:
        """Start nothing yet: threads start when there is something to run."""
        self._pool = _Pool(host, self.slots(), self._prefix)

    def plan(self) -> Plan:
        """Return a plan of as many slots as threads."""
        return Plan(self.slots())

    def slots(self) -> int:
        """Return how many threads there are at most."""
        return self._max_workers or min(_MOST_BY_DEFAULT, usable_processors() + _MORE_THAN_PROCESSORS)

    def submit(self, batch: Batch) -> None:
        """Queue a batch by its number."""
        if self._pool is None:
            raise RunnerStoppedError(f"{self!r} is not running. Submit in a flow, or inside of `with runner:`.")
        self._pool.submit(batch)

    def cancel(self, batch: Batch) -> bool:
        """Give the slot of a running batch to others."""
        return self._pool is not None and self._pool.abandon(batch)

    def waiting(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the calling thread's slot serves others."""
        return self._pool.waiting() if self._pool is not None else contextlib.nullcontext()

    def stop(self) -> None:
        """End the threads."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()


ConcurrentTaskRunner = ThreadPoolTaskRunner


class _Worker:
    """A thread, what it runs, and the gate at which it waits for more."""

    __slots__ = ("away", "batch", "gate", "left", "thread")

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.batch: Batch | None = None
        self.gate = threading.Lock()
        self.gate.acquire()
        # Its slot was given away: it ends when its body does.
        self.left = False
        # Its body waits, or has waited and needs a slot to go on: it has none.
        self.away = False


class _Pool:
    """Started threads and the queue that they share.

    A slot is the right to run a batch. It is held by a thread that runs one; it is given to the next thread in line
    when that thread waits for other calls, and taken again before it goes on, so that never more than ``slots`` bodies
    run.
    """

    def __init__(self, host: Host, slots: int, prefix: str) -> None:
        self._execute = host.execute
        self._prefix = prefix
        self._lock = PoliteLock()
        # Batches as they are submitted come in order by themselves; those that became ready later are sorted in.
        self._fresh: deque[Batch] = deque()
        self._released: list[tuple[int, Batch]] = []
        self._free = slots
        self._idle: list[_Worker] = []
        # Threads whose wait is over, and which need a slot to go on, with their gates.
        self._resuming: deque[tuple[_Worker, threading.Lock]] = deque()
        self._workers: set[_Worker] = set()
        self._own = threading.local()
        self._started = 0
        self._stopping = False

    def submit(self, batch: Batch) -> None:
        """Queue a batch, and wake or start a thread if a slot is free. Hot path: called for each call of a flow."""
        fresh = self._fresh
        try:
            # Numbers rise, but threads that submit may overtake one another, and retries come with their old number.
            in_order = not fresh or batch.seq > fresh[-1].seq
        except IndexError:  # another thread took the last one between the two looks
            in_order = True
        if in_order:
            fresh.append(batch)
        else:
            with self._lock:
                heapq.heappush(self._released, (batch.seq, batch))
        if self._free:
            self._occupy()

    def abandon(self, batch: Batch) -> bool:
        """Give away the slot of the thread that runs a batch."""
        with self._lock:
            for worker in self._workers:
                if worker.batch is batch and not worker.left:
                    worker.left = True
                    break
            else:
                return False
            has_slot = not worker.away
            for entry in self._resuming:
                if entry[0] is worker:
                    # It has been told to stop, and needs no slot for that.
                    self._resuming.remove(entry)
                    entry[1].release()
                    break
        if has_slot:
            self._give_slot()
        return True

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        worker = getattr(self._own, "worker", None)
        if worker is None or not self._goes_away(worker):
            yield
            return
        self._give_slot()
        try:
            yield
        finally:
            self._take_slot(worker)

    def _goes_away(self, worker: _Worker) -> bool:
        with self._lock:
            if not worker.left:
                worker.away = True
            return worker.away

    def stop(self) -> None:
        """End all threads; wait for bodies, but not long for those that were told to stop."""
        with self._lock:
            self._stopping = True
            workers, idle = list(self._workers), self._idle
            self._idle = []
        for worker in idle:
            worker.gate.release()
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            if worker.thread is not None and worker.thread is not threading.current_thread():
                # One that is still busy was told to stop, or is in a hook that a flow which was interrupted left.
                is_busy = worker.left or worker.batch is not None
                worker.thread.join(max(0.0, deadline - time.monotonic()) if is_busy else None)

    def _occupy(self) -> None:
        """Have a thread take a free slot, if there is one and something to run."""
        with self._lock:
            if not self._free or not (self._fresh or self._released) or self._stopping:
                return
            self._free -= 1
            worker = self._idle.pop() if self._idle else None
        if worker is not None:
            worker.gate.release()
        else:
            self._start()

    def _start(self) -> None:
        worker = _Worker()
        # Under the lock: `stop` joins the threads that there are, and one that has not been started can't be joined.
        with self._lock:
            if self._stopping:
                self._free += 1
                return
            self._started += 1
            name = f"{self._prefix}-{self._started}"
            worker.thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
            self._workers.add(worker)
            try:
                start_thread(worker.thread)
            except BaseException:
                self._workers.discard(worker)
                self._free += 1
                raise

    def _work(self, worker: _Worker) -> None:
        """Run batches while there are any and the slot is held."""
        self._own.worker = worker
        execute = self._execute
        batch = self._next(worker)
        while batch is not None:
            worker.batch = batch
            ready = execute(batch)
            worker.batch = None
            if worker.left:
                # The slot is somebody else's by now.
                self._release(ready, len(ready))
                break
            # The last arguments must not live on while this thread waits for the next.
            batch = None
            batch = (self._continued(ready) if ready else None) or self._next(worker)
        with self._lock:
            self._workers.discard(worker)

    def _continued(self, ready: Sequence[Batch]) -> Batch | None:
        """Queue what became ready, or return it if it is next anyhow."""
        if len(ready) == 1 and not self._released and not self._resuming:
            with contextlib.suppress(IndexError):  # another thread took the last one between the two looks
                if not self._fresh or ready[0].seq < self._fresh[0].seq:
                    return ready[0]
        # The first needs no other thread: this one is about to look.
        self._release(ready, len(ready) - 1)
        return None

    def _release(self, ready: Sequence[Batch], for_others: int) -> None:
        """Queue what became ready, and wake as many threads as it is for."""
        with self._lock:
            for batch in ready:
                heapq.heappush(self._released, (batch.seq, batch))
            wanted = min(for_others, self._free)
        for _ in range(wanted):
            self._occupy()

    def _next(self, worker: _Worker) -> Batch | None:
        """Return the batch of the lowest number; wait for one; or return None if the thread shall end."""
        while True:
            if not self._released and not self._resuming:
                # No lock: taking from a deque is one step by itself, and most batches come this way.
                with contextlib.suppress(IndexError):
                    return self._fresh.popleft()
            with self._lock:
                if self._resuming:
                    # Those who have begun go first. This thread becomes idle in their favour.
                    self._resume_next()
                else:
                    batch = self._pop()
                    if batch is not None:
                        return batch
                    self._free += 1
                if self._stopping:
                    return None
                self._idle.append(worker)
            # Between the two somebody may have queued a batch and seen no free slot.
            if self._fresh or self._released:
                self._occupy()
            worker.gate.acquire()
            # `stop` opens all gates, and may do so before the look above was over.
            if self._is_stopping():
                return None

    def _is_stopping(self) -> bool:
        return self._stopping

    def _pop(self) -> Batch | None:
        fresh, released = self._fresh, self._released
        if released and (not fresh or released[0][0] < fresh[0].seq):
            return heapq.heappop(released)[1]
        return fresh.popleft() if fresh else None

    def _give_slot(self) -> None:
        with self._lock:
            if self._resuming:
                self._resume_next()
                return
            self._free += 1
        self._occupy()

    def _resume_next(self) -> None:
        """Give a slot to the thread that has waited for one longest. With the lock held."""
        worker, gate = self._resuming.popleft()
        # Noted by who gives: the thread may be told to stop before it can note anything.
        worker.away = False
        gate.release()

    def _take_slot(self, worker: _Worker) -> None:
        with self._lock:
            if worker.left:
                return
            if self._free:
                self._free -= 1
                worker.away = False
                return
            gate = threading.Lock()
            gate.acquire()
            self._resuming.append((worker, gate))
        gate.acquire()
