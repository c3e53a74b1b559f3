"""A runner over the one interface that all pools of the Python world share: ``submit``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import connection
from typing import Any, ClassVar, Final

from turnout._timers import after
from turnout.errors import RunnerBrokenError, RunnerStartError, RunnerStoppedError
from turnout.runner import (
    DEFAULT_BATCH_SECONDS,
    Batch,
    Capabilities,
    Host,
    Outcome,
    OutcomeKind,
    Plan,
    TaskRunner,
    check_batch_seconds,
    check_count,
    usable_processors,
)

from ._remote import forget_signals_of_the_driver, run_packed

__all__ = ["ExecutorTaskRunner"]

logger = logging.getLogger("turnout")

Factory = Callable[..., Executor]

_OTHER_PROCESS: Final = Capabilities(
    isolates_crashes=False, explains_crashes=False, at_most_once=False, ends_with_driver=False
)
# The engine itself asks a body in this process to stop.
_SAME_PROCESS: Final = dataclasses.replace(
    _OTHER_PROCESS,
    in_process=True,
    cancel="cooperative",
    streams=True,
    batch_seconds=0.0,
    ends_with_driver=True,
)
# How long `stop` waits for bodies that ran out of time and go on, and then for workers to leave, in seconds.
_PATIENCE: Final = 1.0
_LEAVING_SECONDS: Final = 5.0
# How often it is looked whether a pool has overlooked that a worker died, and how often in a row makes it certain.
_LOOK_SECONDS: Final = 1.0
_LOOKS: Final = 4


class ExecutorTaskRunner(TaskRunner):
    """Calls run on an executor of somebody else's.

    What can be known of an executor from outside is little: a running call can't be stopped, and when the pool breaks,
    not whose fault it was. So a broken pool is built again, and the calls that it held run one at a time until the
    guilty one is found; the others are run again though they may have begun.

    To make a runner of your own from an executor, derive from this class and define :meth:`make_executor`.

    Parameters
    ----------
    executor
        An executor, which stays up; or a class or function that makes one, or its place as ``"module:name"``. With
        those the runner builds a pool for itself, builds it again when it breaks, and shuts it down. Default: the
        standard library's ``ThreadPoolExecutor``.
    max_workers
        How many calls are sent at once; handed on to an executor's class. Default: as many as the executor says that
        it has workers, else the number of processors.
    pickle
        Whether calls are pickled on their way. Default: not for the standard library's thread pool, where functions
        and values are shared; for everything else.
    max_batch_seconds
        How much work, in seconds, short calls may be that travel together; with 0 each travels alone.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from turnout import flow, task
    >>> from turnout_runners.executor import ExecutorTaskRunner
    >>> @task
    ... def double(x):
    ...     return 2 * x
    >>> @flow(task_runner=ExecutorTaskRunner(ThreadPoolExecutor, max_workers=2))
    ... def doubled():
    ...     return double.map([1, 2, 3])
    >>> doubled()
    [2, 4, 6]
    """

    # Of an executor in other processes; `__init__` puts what is known of a particular one in its place.
    capabilities: Capabilities = _OTHER_PROCESS
    default_executor: ClassVar[Factory] = ThreadPoolExecutor

    def __init__(
        self,
        executor: Executor | Factory | str | None = None,
        *,
        max_workers: int | None = None,
        pickle: bool | None = None,
        max_batch_seconds: float = DEFAULT_BATCH_SECONDS,
    ) -> None:
        check_count("max_workers", max_workers)
        self._source = _found(executor) if isinstance(executor, str) else executor
        self._max_workers = max_workers
        if self._source is None and type(self).make_executor is ExecutorTaskRunner.make_executor:
            self._source = type(self).default_executor
        if self._source is not None and not (_is_executor(self._source) or callable(self._source)):
            raise TypeError(f"executor={executor!r}: give an Executor, or a class or function that makes one.")
        shared = _is_thread_pool(self._source) if pickle is None else not pickle
        self.capabilities = _SAME_PROCESS if shared else _OTHER_PROCESS
        self.max_batch_seconds = check_batch_seconds(max_batch_seconds)
        self._pool: _Pool | None = None

    def make_executor(self) -> Executor:
        """Return a new executor. Called at the start, and again when the one before broke."""
        assert self._source is not None, "a runner without a source overrides this"
        if isinstance(self._source, type):
            settings: dict[str, Any] = {} if self._max_workers is None else {"max_workers": self._max_workers}
            if self._source is ProcessPoolExecutor:
                settings["initializer"] = forget_signals_of_the_driver
            made = self._source(**settings)
        else:
            made = self._source()  # type: ignore[operator]
        return made  # type: ignore[no-any-return]

    def start(self, host: Host) -> None:
        """Build the pool, if it was not handed in."""
        handed_in: Any = self._source if _is_executor(self._source) else None
        executor: Executor = handed_in if handed_in is not None else self.make_executor()
        if not _is_executor(executor):
            raise RunnerStartError(f"The factory of {self!r} returned {executor!r}, which has no submit().")
        rebuild = None if handed_in is not None else self.make_executor
        self._pool = _Pool(host, executor, rebuild, in_process=self.capabilities.in_process)

    def plan(self) -> Plan:
        """Return ``max_workers``, or what the executor says of itself, if there is one or it is made of threads."""
        if self._max_workers is None and isinstance(self._source, type) and _is_thread_pool(self._source):
            # Which starts no thread before it has something to run.
            with self.make_executor() as pool:
                return Plan(_workers_of(pool))
        return Plan(self._max_workers or _workers_of(self._source))

    def slots(self) -> int:
        """Return ``max_workers``, or what the executor says of itself."""
        executor = self._pool.executor if self._pool is not None else self._source
        return self._max_workers or _workers_of(executor) or usable_processors()

    def submit(self, batch: Batch) -> None:
        """Hand a batch to the executor."""
        if self._pool is None:
            raise RunnerStoppedError(f"{self!r} is not running. Submit in a flow, or inside of `with runner:`.")
        self._pool.submit(batch)

    def cancel(self, batch: Batch) -> bool:
        """Take a batch back that the executor has not begun, if it lets us."""
        return self._pool is not None and self._pool.cancel(batch)

    def stop(self) -> None:
        """Shut the pool down, if it was not handed in."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()


class _Pool:
    """An executor in use, and what it holds."""

    def __init__(
        self, host: Host, executor: Executor, rebuild: Callable[[], Executor] | None, *, in_process: bool
    ) -> None:
        self.executor = executor
        self._host = host
        self._rebuild = rebuild
        self._in_process = in_process
        self._futures: dict[Batch, Any] = {}
        # Batches that broke an executor for certain, for it held no other.
        self._guilty: set[Batch] = set()
        # Executors that broke, whose threads and descriptors go when they are shut down.
        self._broken_ones: list[Executor] = []
        # Guards the end, and replacing a broken executor: all that it held find out at once, and one of them does it.
        self._lock = threading.Lock()
        # Notified when it holds a batch less.
        self._changed = threading.Condition(threading.Lock())
        # The next look at the workers of a pool of our own; in how many looks one was dead.
        self._cancel_look: Callable[[], None] | None = None
        self._dead_looks = 0
        self._stopped = False

    def submit(self, batch: Batch) -> None:
        with self._lock:
            # Another thread stops this meanwhile: either that is seen here, or the batch is seen there.
            if self._stopped:
                raise RunnerStoppedError("The executor runner has been stopped, and takes no more calls.")
            # Known before it is sent: if the executor breaks, it is one of those that may have done it.
            self._futures[batch] = None
        if self._cancel_look is None and self._rebuild is not None and not self._in_process:
            self._look_later()
        try:
            executor = self.executor
            try:
                future = self._send(executor, batch)
            except BrokenExecutor:
                self._replace(executor)
                executor = self.executor
                future = self._send(executor, batch)
        except BaseException:
            del self._futures[batch]
            raise
        self._futures[batch] = future
        future.add_done_callback(functools.partial(self._done, batch, executor))

    def _send(self, executor: Executor, batch: Batch) -> Any:
        if self._in_process:
            return executor.submit(self._host.execute, batch)
        return executor.submit(run_packed, pickle.dumps((batch.body, batch.functions, batch.upstream), protocol=5))

    def cancel(self, batch: Batch) -> bool:
        future = self._futures.get(batch)
        # Executors differ in what they do when asked, from nothing to raising.
        with contextlib.suppress(Exception):
            return future is not None and bool(future.cancel())
        return False

    def stop(self) -> None:
        """Shut a pool down that was built here. Bodies that ran out of time and go on are not waited for long."""
        with self._lock:
            self._stopped = True
            if self._cancel_look is not None:
                self._cancel_look()
        if self._rebuild is None:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._futures, _PATIENCE)
            stuck = len(self._futures)
        if stuck:
            logger.warning("%d calls that ran out of time go on; their workers are killed, or left.", stuck)
            _kill(_processes_of(self.executor))
            self.executor.shutdown(wait=False)
        else:
            _shut_down(self.executor)
        for broken in self._broken_ones:
            # What is left of one runs nothing that anybody waits for, and may have refused to end.
            _kill(_processes_of(broken))
            _shut_down(broken)

    def _look_later(self) -> None:
        with self._lock:
            if self._cancel_look is None and not self._stopped:
                self._cancel_look = after(_LOOK_SECONDS, functools.partial(self._look, self.executor))

    def _look(self, executor: Executor) -> None:
        """Break a pool with a dead worker that it does not notice.

        If the worker died while it sent a large result, those of the standard library and of loky wait for the rest.
        """
        is_same = executor is self.executor
        self._dead_looks = self._dead_looks + 1 if is_same and _has_dead_process(executor) else 0
        if self._dead_looks >= _LOOKS:
            self._dead_looks = 0
            logger.warning("A worker of %r died, and the pool did not notice; all of it is ended.", executor)
            _break(executor)
        # In this order: who submits meanwhile either is seen here, or sees that there is no next look.
        self._cancel_look = None
        if self._futures:
            self._look_later()

    def _done(self, batch: Batch, executor: Executor, future: Any) -> None:
        """Report what became of a batch. May run in any thread, also in the one that submits."""
        try:
            result = future.result()
            outcomes = [] if self._in_process else pickle.loads(result)
        except CancelledError:
            outcomes = _for_each(batch, OutcomeKind.RETURNED, None)
        except BrokenExecutor as error:
            outcomes = self._broken(batch, executor, error)
        except BaseException as error:
            outcomes = _for_each(batch, OutcomeKind.CRASHED, f"{type(error).__name__}: {error}")
        with self._changed:
            # A call of this process is its own batch, and may have been sent again by now.
            if self._futures.get(batch) is future:
                del self._futures[batch]
            self._changed.notify_all()
        if outcomes:
            self._host.report(batch, outcomes)

    def _broken(self, batch: Batch, executor: Executor, error: BrokenExecutor) -> list[Outcome]:
        cause = f"{type(error).__name__}: {error}"
        try:
            self._replace(executor)
        except Exception as problem:
            return _for_each(batch, OutcomeKind.CRASHED, f"{cause} ({problem})")
        guilty = batch in self._guilty
        self._guilty.discard(batch)
        return _for_each(batch, OutcomeKind.CRASHED if guilty else OutcomeKind.LOST, cause)

    def _replace(self, broken: Executor) -> None:
        with self._lock:
            if self.executor is not broken:
                return
            if self._rebuild is None:
                raise RunnerBrokenError(
                    "The executor that was handed in is broken and can't be built again. "
                    "Hand in its class or a function that makes one: ExecutorTaskRunner(lambda: SomeExecutor(...))"
                )
            if len(self._futures) == 1:
                self._guilty.update(self._futures)
            self.executor = self._rebuild()
            # Not shut down here, which may be a thread of its own that can't wait for itself.
            self._broken_ones.append(broken)


def _workers_of(executor: object) -> int | None:
    """Return how many workers an executor says that it has, or None."""
    for name in ("_max_workers", "max_workers"):
        count = getattr(executor, name, None)
        if isinstance(count, int) and count > 0:
            return count
    return None


def _shut_down(executor: Executor) -> None:
    """Shut a pool down. What processes have not left after some seconds are killed.

    One may have been stopped by a signal, or be held up by a thread that a task left behind; pools wait for ever.
    """
    # First: pools forget them at their end.
    processes = _processes_of(executor)
    # Told in words: some have no default.
    shut_down = functools.partial(executor.shutdown, wait=True)
    if not processes:
        shut_down()
        return
    leaving = threading.Thread(target=shut_down, name="turnout-executor-shutdown", daemon=True)
    leaving.start()
    leaving.join(_LEAVING_SECONDS)
    if leaving.is_alive():
        logger.warning("Workers of %r have not left after %g s; they are killed.", executor, _LEAVING_SECONDS)
        _kill(processes)
        leaving.join(_LEAVING_SECONDS)


def _processes_of(executor: Executor) -> list[Any]:
    """Return the processes of a pool, if it has any and we know how; there is no common word for it."""
    processes = getattr(executor, "_processes", None)
    return list(processes.values()) if isinstance(processes, dict) else []


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        with contextlib.suppress(Exception):
            process.kill()


def _has_dead_process(executor: Executor) -> bool:
    # Only of multiprocessing's kind: what others call a process need not be a child of this one.
    processes = [process for process in _processes_of(executor) if hasattr(process, "sentinel")]
    with contextlib.suppress(Exception):
        return any(map(_is_dead, processes))
    return False


def _is_dead(process: Any) -> bool:
    # Not by asking the process, which would take note of its end in the place of the pool's own thread.
    if sys.platform == "darwin":
        return bool(connection.wait([process.sentinel], 0))
    # Nor by its sentinel where there is better: a child that a task has forked holds that open.
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _break(executor: Any) -> None:
    """Kill all of a pool, and end the wait of its thread for the rest of a result.

    The pipe has no end while anybody holds the other side, such as a process that a task has forked. So the descriptor
    is made to read from nowhere, and one byte has the thread, which waits in a read, come back and look again.
    """
    _kill(_processes_of(executor))
    with contextlib.suppress(Exception):
        results = executor._result_queue
        nowhere = os.open(os.devnull, os.O_RDONLY)
        try:
            os.dup2(nowhere, results._reader.fileno(), inheritable=False)
        finally:
            os.close(nowhere)
        # Full if the thread is not reading: then it needs no byte either.
        os.set_blocking(results._writer.fileno(), False)
        os.write(results._writer.fileno(), b"\0")


def _for_each(batch: Batch, kind: OutcomeKind, data: Any) -> list[Outcome]:
    return [Outcome(index, kind, data) for index in range(len(batch.calls))]


def _is_executor(thing: object) -> bool:
    return not isinstance(thing, type) and callable(getattr(thing, "submit", None))


def _is_thread_pool(source: object) -> bool:
    """Return whether an executor, or what makes it, is surely a pool of threads of this process."""
    made = source.func if isinstance(source, functools.partial) else source
    cls = made if isinstance(made, type) else type(made)
    # Python 3.14's pool of interpreters is derived from the thread pool, and shares nothing.
    return issubclass(cls, ThreadPoolExecutor) and cls.__name__ != "InterpreterPoolExecutor"


def _found(place: str) -> Factory:
    module, _, name = place.partition(":")
    if not name:
        raise ValueError(f"executor={place!r}: name a place as 'module:name', such as 'loky:ProcessPoolExecutor'.")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
