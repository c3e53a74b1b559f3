"""Every guarantee again, with batches of other sizes than those that the engine chooses for the kit's few calls."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest

from turnout import TaskRunner
from turnout.testing import DependencyConformance, FaultConformance, RunnerConformance
from turnout_runners.dask import DaskTaskRunner
from turnout_runners.executor import ExecutorTaskRunner
from turnout_runners.process import ProcessPoolTaskRunner


class OnProcesses(RunnerConformance):
    """In worker processes of our own."""

    def make_runner(self, slots: int) -> TaskRunner:
        return ProcessPoolTaskRunner(max_workers=slots)


@pytest.mark.xdist_group("process, one")
class TestProcessOne(OnProcesses):
    """Each call alone, whatever is known of it."""

    batches = "one"


@pytest.mark.xdist_group("process, most")
class TestProcessMost(OnProcesses):
    """As many calls together as can."""

    batches = "most"


@pytest.mark.xdist_group("process, random")
class TestProcessRandom(OnProcesses):
    """As it comes."""

    batches = "random"


@pytest.mark.xdist_group("executor, most")
class TestExecutorMost(RunnerConformance):
    """As many calls together as can, on a pool that somebody else wrote."""

    batches = "most"

    def make_runner(self, slots: int) -> TaskRunner:
        return ExecutorTaskRunner(ProcessPoolExecutor, max_workers=slots)


class OnDask(DependencyConformance, FaultConformance):
    """On a Dask cluster of our own."""

    def make_runner(self, slots: int) -> TaskRunner:
        return DaskTaskRunner(n_workers=slots)


@pytest.mark.cluster
@pytest.mark.xdist_group("dask, most")
class TestDaskMost(OnDask):
    """As many calls together as can."""

    batches = "most"


@pytest.mark.cluster
@pytest.mark.xdist_group("dask, random")
class TestDaskRandom(OnDask):
    """As it comes."""

    batches = "random"
