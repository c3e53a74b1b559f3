"""A whole task runner: calls run in a pool of threads."""

from concurrent.futures import ThreadPoolExecutor

from turnout import TaskRunner
from turnout.runner import Batch, Capabilities, Host


class CrewTaskRunner(TaskRunner):
    """Runs calls in ``max_workers`` threads."""

    capabilities = Capabilities(in_process=True)

    def __init__(self, max_workers: int = 4) -> None:
        self.max_workers = max_workers
        self._pool: ThreadPoolExecutor | None = None

    def start(self, host: Host) -> None:
        self._host = host
        self._pool = ThreadPoolExecutor(self.max_workers, thread_name_prefix="crew")

    def slots(self) -> int:
        return self.max_workers

    def submit(self, batch: Batch) -> None:
        assert self._pool is not None
        self._pool.submit(self._run, batch)

    def _run(self, batch: Batch) -> None:
        for ready in self._host.execute(batch):
            self.submit(ready)

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
