"""Every guarantee on Ray."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration_tests.ray_clusters import Nodes
from turnout import TaskRunner
from turnout._backends import hold, release
from turnout.testing import (
    DependencyConformance,
    FaultConformance,
    RunnerConformance,
    run_script,
    runner_expression,
)
from turnout.testing._cancelling import CancelConformance
from turnout.testing._crashes import CrashConformance
from turnout.testing._records import RecordConformance
from turnout.testing._scripts import ScriptConformance
from turnout_runners.ray import RayTaskRunner

# The one connection to Ray that this process has, kept up while a class of tests runs, and the cluster.
_held: dict[str, TaskRunner] = {}
_nodes: list[Nodes] = []

ray = pytest.mark.xdist_group("ray")
pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True, scope="module")
def _no_cluster_stays_behind() -> Iterator[None]:
    yield
    while _nodes:
        _nodes.pop().stop()


@pytest.fixture(autouse=True, scope="class")
def _no_connection_stays_behind() -> Iterator[None]:
    yield
    while _held:
        release(_held.popitem()[1])


def two_nodes() -> Nodes:
    """Return a cluster of two nodes with a processor each, which stays up for all tests of this module."""
    if not _nodes:
        nodes = Nodes()
        _nodes.append(nodes)
        nodes.start_head()
        nodes.start_node()
    return _nodes[0]


def connected(address: str, slots: int) -> TaskRunner:
    """Return a runner for an address to which this process stays connected while runners come and go.

    Each new connection would cost seconds, and have Ray open other log files in this process, which it keeps.
    """
    if address not in _held:
        runner = RayTaskRunner(address)
        hold(runner)
        _held[address] = runner
    return RayTaskRunner(address, num_cpus=slots)


@ray
class TestRayOwn(ScriptConformance):
    """On a Ray that the runner starts: scripts, each of which has its own, and who can reach it.

    The rest of the kit would start some two hundred of them.
    """

    def make_runner(self, slots: int) -> TaskRunner:
        return RayTaskRunner(num_cpus=slots)


@ray
class TestRayClient(CrashConformance, CancelConformance, RecordConformance):
    """From outside of a cluster, by way of its client server: how calls fail, and what they tell."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(two_nodes().url, slots)


@ray
class TestRayCluster(RunnerConformance):
    """On two nodes that were started by others."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(two_nodes().address, slots)

    def test_L4_arguments_and_directory(  # noqa: N802 - the kit's name
        self, fresh_runner: TaskRunner, tmp_path: Path
    ) -> None:
        """Tasks see the script's arguments; folder and environment are those of the nodes."""
        script = f"""
            import sys
            from turnout import flow, task

            @task
            def look():
                return sys.argv[1:]

            @flow(task_runner={runner_expression(fresh_runner)})
            def main():
                return look.submit().result()

            print(main())
        """
        done = run_script(textwrap.dedent(script), tmp_path, arguments=["--fast", "x y"])
        assert (done.returncode, done.stdout) == (0, "['--fast', 'x y']\n"), done.stderr


class OnNodes(DependencyConformance, FaultConformance):
    """On two nodes."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(two_nodes().address, slots)


@ray
class TestRayMost(OnNodes):
    """As many calls together as can."""

    batches = "most"


@ray
class TestRayRandom(OnNodes):
    """As it comes."""

    batches = "random"
