"""Turnout, on each of its local runners, with its default settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from turnout import Task, flow, task

from .. import functions
from .base import System
from .raw import NEEDS_SHARED_MEMORY, NO_BUSY_THREADS, Calls

T = TypeVar("T")


@task
def grow(depth: int, width: int) -> int:
    """Start further calls from within a call, and count them all."""
    calls = [grow.submit(depth - 1, width) for _ in range(width if depth > 1 else 0)]
    return 1 + sum(call.result() for call in calls)


class Turnout(System):
    runner: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]] = ("turnout",)

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._tasks: dict[Callable[..., Any], Task[..., Any]] = {}

    def __init_subclass__(cls) -> None:
        script = f"""
@turnout.task
def same(value): return value
@turnout.flow(task_runner={cls.runner!r})
def first(): return same.submit(1).result()
assert first() == 1
"""
        cls.cold = ("import turnout", script)

    def run(self, body: Callable[[], T]) -> T:
        return flow(body).with_options(task_runner=self.runner.format(workers=self.workers))()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._task(function).submit(*arguments)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return self._task(function).map(items).result()

    def nest(self, depth: int, width: int) -> Any:
        return grow.submit(depth, width)

    def _task(self, function: Callable[..., Any]) -> Task[..., Any]:
        if function not in self._tasks:
            self._tasks[function] = task(function, read_only=function in functions.READ_ONLY)
        return self._tasks[function]


class Sequential(Turnout):
    runner = "sequential"
    baseline = "raw-calls"
    lacks = Calls.lacks


class Thread(Turnout):
    runner = "thread?max_workers={workers}"
    baseline = "raw-threads"
    lacks: ClassVar = NO_BUSY_THREADS


class Process(Turnout):
    runner = "process?max_workers={workers}"
    baseline = "raw-processes"
    lacks: ClassVar = {"queued": NEEDS_SHARED_MEMORY}


class ProcessAlone(Process):
    """Each call travels alone."""

    runner = "process?max_workers={workers}&max_batch_seconds=0"


class ExecutorOfThreads(Turnout):
    runner = "executor?max_workers={workers}"
    baseline = "raw-threads"
    lacks: ClassVar = NO_BUSY_THREADS


class ExecutorOfProcesses(Turnout):
    runner = "executor?executor=concurrent.futures:ProcessPoolExecutor&max_workers={workers}"
    baseline = "raw-processes"
    lacks = Process.lacks
