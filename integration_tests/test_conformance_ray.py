"""Every guarantee on Ray."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration_tests.ray_clusters import Nodes
from integration_tests.shipping import ship_a_module
from turnout import TaskRunner
from turnout._backends import hold, release
from turnout.testing import (
    DependencyConformance,
    FaultConformance,
    RunnerConformance,
    run_script,
    runner_expression,
)
from turnout.testing._kit import Conformance, eventually, let_go
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
    _let_go_of_connections()


def _let_go_of_connections() -> None:
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


class OnNodes(Conformance):
    """On two nodes that were started by others."""

    @pytest.fixture(autouse=True)
    def _processors_come_back(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """See that no body outlives its test, and have new nodes if Ray has lost a processor.

        Ray 2.60 goes on counting the processor of a worker as used for ever if that is killed in the millisecond in
        which it gets its next task: 2 of 12 workers that were killed right after a task of a plain Ray program.
        """
        yield
        if not (_nodes and _held):
            return
        eventually(lambda: not _nodes[0].bodies(), "no body of the test runs any more", 15)
        try:
            eventually(_all_processors_are_free, timeout=3)
        except TimeoutError:
            request.node.user_properties.append(("ran", "Ray had lost a processor, and got new nodes"))
            let_go(request.node)
            _let_go_of_connections()
            _nodes.pop().stop()


def _all_processors_are_free() -> bool:
    import ray

    free, all_ = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
    return bool(free.get("CPU") == all_.get("CPU"))


@ray
class TestRayOwn(ScriptConformance):
    """On a Ray that the runner starts: scripts, each of which has its own, and who can reach it.

    The rest of the kit would start some two hundred of them.
    """

    def make_runner(self, slots: int) -> TaskRunner:
        return RayTaskRunner(num_cpus=slots)


class OnSomebodysRay(OnNodes, RunnerConformance):
    """What sounds a little different where the workers are somebody else's."""

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


@ray
class TestRayClient(OnSomebodysRay):
    """From outside of the cluster, by way of its client server."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(two_nodes().url, slots)

    def test_L4_module_beside_the_script(  # noqa: N802 - the kit's name
        self, fresh_runner: TaskRunner, tmp_path: Path
    ) -> None:
        """A module that lies beside the script can be imported by tasks, if it is shipped."""
        ship_a_module(tmp_path, "ray", "RayTaskRunner", {"address": two_nodes().url})


@ray
class TestRayCluster(OnSomebodysRay):
    """From a node."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(two_nodes().address, slots)


class InBatches(OnNodes, DependencyConformance, FaultConformance):
    """What depends on which calls travel together."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(two_nodes().address, slots)


@ray
class TestRayMost(InBatches):
    """As many calls together as can."""

    batches = "most"


@ray
class TestRayRandom(InBatches):
    """As it comes."""

    batches = "random"
