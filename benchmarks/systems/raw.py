"""The raw backends, driven by hand: the caller waits for what a call needs before submitting it, as users do."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ClassVar, Final, TypeVar

from ..functions import each
from .base import System

T = TypeVar("T")

CHUNK = 1000
DEADLOCK = "a call that waits for its own full pool never ends"
NEEDS_SHARED_MEMORY = "calls can't be held back from outside their processes"
NOT_INDEPENDENT = "only independent calls can be put in chunks by hand"
IN_TURN = "calls run in turn in one thread"
# Two busy loops that share the lock each see the other's time pass as their own.
ONE_AT_A_TIME = "threads run Python code one at a time, whatever the system"
BUSY: Final[Sequence[str]] = ("metg-fan", "metg-stencil")
NO_BUSY_THREADS: Final[Mapping[str, str]] = dict.fromkeys(BUSY, ONE_AT_A_TIME)


class Calls(System):
    """No system at all: plain function calls."""

    baseline = "raw-calls"
    lacks: ClassVar = {"queued": "nothing waits", **dict.fromkeys(BUSY, IN_TURN)}
    cold = ("", "assert (lambda value: value)(1) == 1")

    def run(self, body: Callable[[], T]) -> T:
        return body()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(handles)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(map(function, items))

    def nest(self, depth: int, width: int) -> int:
        return 1 + sum(self.nest(depth - 1, width) for _ in range(width if depth > 1 else 0))


class Pool(System):
    """Any executor."""

    executor: Executor
    map_options: ClassVar[dict[str, int]] = {}

    @abc.abstractmethod
    def make(self) -> Executor:
        """Return a new executor."""

    def run(self, body: Callable[[], T]) -> T:
        with self.make() as self.executor:
            return body()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        values = [argument.result() if isinstance(argument, Future) else argument for argument in arguments]
        return self.executor.submit(function, *values)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.executor.map(function, items, **self.map_options))


class Threads(Pool):
    baseline = "raw-threads"
    lacks: ClassVar = {"nested": DEADLOCK, **NO_BUSY_THREADS}
    cold = (
        "from concurrent.futures import ThreadPoolExecutor",
        "with ThreadPoolExecutor({workers}) as pool: assert pool.submit(abs, -1).result() == 1",
    )

    def make(self) -> Executor:
        return ThreadPoolExecutor(self.workers)


class Processes(Pool):
    baseline = "raw-processes"
    lacks: ClassVar = {"nested": DEADLOCK, "queued": NEEDS_SHARED_MEMORY}
    cold = (
        "from concurrent.futures import ProcessPoolExecutor",
        "with ProcessPoolExecutor({workers}) as pool: assert pool.submit(abs, -1).result() == 1",
    )

    def make(self) -> Executor:
        return ProcessPoolExecutor(self.workers)


def in_chunks(items: Iterable[Any], workers: int) -> list[list[Any]]:
    """Return the items by the thousand, or each worker's share if that is less."""
    listed = list(items)
    size = max(1, min(CHUNK, -(-len(listed) // workers)))
    return [listed[start : start + size] for start in range(0, len(listed), size)]


class Chunked(Pool):
    """Chunks made by hand, for those workloads of which chunks can be made."""

    lacks: ClassVar = {
        **dict.fromkeys(("chain", "tree", "stencil", "metg-stencil", "payload", "payload-own"), NOT_INDEPENDENT),
        **dict.fromkeys(("queued", "nested", "cold"), "as without chunks"),
    }
    map_options: ClassVar = {"chunksize": CHUNK}

    def fan(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        chunks = in_chunks(items, self.workers)
        futures = [self.executor.submit(each, function, chunk) for chunk in chunks]
        return [value for future in futures for value in future.result()]


class ThreadChunks(Chunked, Threads):
    # An executor of threads ignores the option, so its map is what it is without.
    lacks: ClassVar = {**Chunked.lacks, **NO_BUSY_THREADS, "map": "a thread pool's map makes no chunks"}


class ProcessChunks(Chunked, Processes):
    pass


class Loky(Pool):
    baseline = "raw-processes"
    distributions = ("loky",)
    lacks = Processes.lacks
    cold = (
        "from loky import ProcessPoolExecutor",
        "with ProcessPoolExecutor({workers}) as pool: assert pool.submit(abs, -1).result() == 1",
    )

    def make(self) -> Executor:
        from loky import ProcessPoolExecutor as LokyExecutor  # type: ignore[import-untyped]

        executor: Executor = LokyExecutor(self.workers)
        return executor
