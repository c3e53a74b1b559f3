"""Every guarantee on every runner that works on this machine alone."""

from __future__ import annotations

from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import executorlib  # type: ignore[import-untyped]
import loky  # type: ignore[import-untyped]
import pytest

from turnout import TaskRunner
from turnout.testing import (
    ErrorConformance,
    FaultyWorkerConformance,
    FlowConformance,
    FutureConformance,
    InterruptedScriptConformance,
    RunnerConformance,
    TaskConformance,
)
from turnout_runners.executor import ExecutorTaskRunner
from turnout_runners.process import ProcessPoolTaskRunner
from turnout_runners.sequential import SequentialTaskRunner
from turnout_runners.thread import ThreadPoolTaskRunner


def group(name: str) -> pytest.MarkDecorator:
    """Keep a class of tests in one process, which then starts each backend once."""
    return pytest.mark.xdist_group(name)


class LocalConformance(RunnerConformance, FaultyWorkerConformance, InterruptedScriptConformance):
    """The kit, with what tasks do to the processes that run them, and Ctrl-C and SIGTERM to whole programs."""


@group("sequential")
class TestSequential(LocalConformance):
    """In the thread that submits."""

    def make_runner(self, slots: int) -> TaskRunner:
        return SequentialTaskRunner()


@group("thread")
class TestThread(LocalConformance):
    """On threads of our own."""

    def make_runner(self, slots: int) -> TaskRunner:
        return ThreadPoolTaskRunner(max_workers=slots)


@group("process")
class TestProcess(LocalConformance):
    """In worker processes of our own."""

    def make_runner(self, slots: int) -> TaskRunner:
        return ProcessPoolTaskRunner(max_workers=slots)


class ExecutorConformance(RunnerConformance):
    """On a pool that somebody else wrote."""

    factory: type[Executor]

    def make_runner(self, slots: int) -> TaskRunner:
        return ExecutorTaskRunner(self.factory, max_workers=slots)


@group("executor: threads")
class TestExecutorThreads(ExecutorConformance, LocalConformance):
    """On the standard library's threads."""

    factory = ThreadPoolExecutor


@group("executor: processes")
class TestExecutorProcesses(ExecutorConformance, LocalConformance):
    """On the standard library's processes."""

    factory = ProcessPoolExecutor


@group("executor: loky")
class TestExecutorLoky(ExecutorConformance):
    """On processes that end and come back as they are needed."""

    factory = loky.ProcessPoolExecutor


class BlockTaskRunner(ExecutorTaskRunner):
    """Runs calls in processes of executorlib that stay up from call to call."""

    def make_executor(self) -> Executor:
        """Return an executor with a worker for each slot."""
        made: Executor = executorlib.SingleNodeExecutor(max_workers=self.slots(), block_allocation=True)
        return made


@group("executor: executorlib")
class TestExecutorlib(FlowConformance, TaskConformance, FutureConformance, ErrorConformance):
    """On processes that are reached over sockets, by a runner derived from the one for executors.

    Not the parts about dying workers and about what is left behind: these processes don't tell of deaths, outlive what
    started them, and listen on every address. Nor dependencies, which are the engine's: each call takes 5 ms here.
    """

    def make_runner(self, slots: int) -> TaskRunner:
        return BlockTaskRunner(max_workers=slots)
