"""The process runner as the engine sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from turnout.errors import RunnerStartError, RunnerStoppedError
from turnout.runner import (
    DEFAULT_BATCH_SECONDS,
    Batch,
    Capabilities,
    Host,
    Plan,
    TaskRunner,
    check_batch_seconds,
    check_count,
    usable_processors,
)

if TYPE_CHECKING:
    from turnout._serialization import Parcel

    from ._pool import Pool

__all__ = ["ProcessPoolTaskRunner"]


class ProcessPoolTaskRunner(TaskRunner):
    """Runs calls in worker processes of this machine.

    Scripts need no ``if __name__ == "__main__":`` guard, and tasks may be functions of the script, lambdas and
    closures. A call that is cancelled or out of time is stopped, whatever it does; a worker that dies takes only its
    own call with it. Large arrays travel through shared memory. Linux and macOS only.

    Parameters
    ----------
    max_workers
        How many calls run at once. By default, as many as there are processors that this process may use.
    max_tasks_per_worker
        After how many calls a worker is replaced by a new one, for code that leaks. By default, never. Calls travel
        alone then.
    initializer, initargs
        Called in each new worker before its first call. If it raises, the runner can't start.
    env
        Environment variables for the workers, added to those of the driver.
    python
        Path or name of the workers' interpreter, which must be of the driver's minor version and find the modules that
        tasks need: its own come first, then the driver's. By default, the driver's.
    max_batch_seconds
        How much work, in seconds, short calls may be that travel together; with 0 each travels alone.

    Raises
    ------
    RunnerOptionError
        If a number is not whole, or less than 1.

    Examples
    --------
    >>> runner = ProcessPoolTaskRunner(max_workers=2)
    >>> runner
    ProcessPoolTaskRunner(max_workers=2)
    >>> runner.slots()
    2
    """

    capabilities: Capabilities = Capabilities(
        cancel="kill", frees_slot=True, nested="in_place", streams=True, keeps_ledger=True, shared_memory=True
    )

    def __init__(
        self,
        max_workers: int | None = None,
        max_tasks_per_worker: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        env: Mapping[str, str] | None = None,
        python: str | None = None,
        max_batch_seconds: float = DEFAULT_BATCH_SECONDS,
    ) -> None:
        check_count("max_workers", max_workers)
        check_count("max_tasks_per_worker", max_tasks_per_worker)
        self._max_workers = max_workers
        self._max_tasks_per_worker = max_tasks_per_worker
        self._initializer = initializer
        self._initargs = initargs
        self._env = env
        self._python = python
        self.max_batch_seconds = 0 if max_tasks_per_worker else check_batch_seconds(max_batch_seconds)
        self._pool: Pool | None = None

    def start(self, host: Host) -> None:
        """Make ready for calls; workers start when there is something for them to do."""
        if sys.platform == "win32":
            raise RunnerStartError(
                "The process runner needs Linux or macOS: it passes sockets and shared memory to its workers in a way "
                'that Windows lacks. Use task_runner="thread", or task_runner=ExecutorTaskRunner('
                "concurrent.futures.ProcessPoolExecutor())."
            )
        from ._crew import Settings
        from ._launch import Interpreter
        from ._pool import Pool

        interpreter = Interpreter(self._python, dict(self._env or {}))
        interpreter.check()
        setup = self._setup()
        self._pool = Pool(Settings(self.slots(), self._max_tasks_per_worker, interpreter, setup), host)

    def plan(self) -> Plan:
        """Return a plan of as many slots as workers."""
        return Plan(self.slots())

    def slots(self) -> int:
        """Return how many workers there are at most."""
        return self._max_workers or usable_processors()

    def submit(self, batch: Batch) -> None:
        """Take a batch for the next worker that is free."""
        if self._pool is None:
            raise RunnerStoppedError("The process runner has not been started.")
        self._pool.submit(batch)

    def cancel(self, batch: Batch) -> bool:
        """Drop a batch that waits, or end the worker that runs it; other calls don't notice."""
        return self._pool is not None and self._pool.cancel(batch)

    def recall(self, batch: Batch) -> None:
        """Give back what has not begun of a batch of several calls."""
        if self._pool is not None:
            self._pool.recall(batch)

    def stop(self) -> None:
        """End all workers, and return when they are gone."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()

    def _setup(self) -> tuple[str, Parcel]:
        """Return what a worker is told first."""
        from turnout._serialization import dumps, explain
        from turnout._version import __version__
        from turnout.worker import run_batch

        from ._worker_main import Setup

        setup = Setup(tuple(sys.argv), run_batch, self._initializer, self._initargs)
        try:
            parcel = dumps(setup)
        except Exception as error:
            raise explain(setup, error, "The initializer of ProcessPoolTaskRunner") from error
        return __version__, parcel
