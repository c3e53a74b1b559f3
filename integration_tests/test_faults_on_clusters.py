"""What goes wrong on clusters of our own: faults of workers, and programs that are interrupted."""

from __future__ import annotations

import pytest

from turnout import TaskRunner
from turnout.testing import FaultyWorkerConformance, InterruptedScriptConformance
from turnout_runners.dask import DaskTaskRunner
from turnout_runners.ray import RayTaskRunner

pytestmark = pytest.mark.cluster


@pytest.mark.xdist_group("dask: faults")
class TestDaskFaults(FaultyWorkerConformance):
    """Workers of a Dask cluster that the runner starts."""

    def make_runner(self, slots: int) -> TaskRunner:
        return DaskTaskRunner(n_workers=slots)


@pytest.mark.xdist_group("ray: faults")
class TestRayFaults(FaultyWorkerConformance):
    """Workers of a Ray that the runner starts."""

    def make_runner(self, slots: int) -> TaskRunner:
        return RayTaskRunner(num_cpus=slots)


@pytest.mark.xdist_group("ray: interrupts")
class TestRayInterrupted(InterruptedScriptConformance):
    """Programs that start a Ray, and are told to end."""

    def make_runner(self, slots: int) -> TaskRunner:
        return RayTaskRunner(num_cpus=slots)
