"""Every guarantee on Ray."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration_tests.ray_clusters import Nodes, bodies_of
from integration_tests.shipping import ship_a_module
from turnout import TaskRunner
from turnout._backends import hold, release
from turnout._sockets import descendants
from turnout.testing import (
    DependencyConformance,
    FaultConformance,
    FaultyWorkerConformance,
    InterruptedScriptConformance,
    RunnerConformance,
    run_script,
    runner_expression,
)
from turnout.testing._interrupts import _STUBBORN, _scripted, interrupted
from turnout.testing._kit import Conformance, Declare, Signals, eventually, let_go
from turnout_runners.ray import RayTaskRunner
from turnout_runners.ray._local import loopback_only, quietly

# The one connection to Ray that this process has, kept up while a class of tests runs, and the cluster.
_held: list[TaskRunner] = []
_nodes: list[Nodes] = []

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True, scope="class")
def _nothing_stays_behind() -> Iterator[None]:
    yield
    _let_go()


def _let_go() -> None:
    import ray

    while _held:
        release(_held.pop())
    if ray.is_initialized():
        ray.shutdown()
    while _nodes:
        _nodes.pop().stop()


def two_nodes() -> Nodes:
    """Return a cluster of two nodes with a processor each, which stays up for the tests of a class."""
    if not _nodes:
        nodes = Nodes()
        _nodes.append(nodes)
        nodes.start_head()
        nodes.start_node()
    return _nodes[0]


def connected(address: str | None, slots: int) -> TaskRunner:
    """Return a runner for an address to which this process stays connected while runners come and go.

    Each new connection would cost seconds, and have Ray open other log files in this process, which it keeps. Without
    an address it is a Ray of the runner's own, of two processors.
    """
    if not _held:
        runner = RayTaskRunner(address, num_cpus=2)
        hold(runner)
        _held.append(runner)
    return RayTaskRunner(address, num_cpus=slots)


class OnRay(Conformance):
    """On a Ray that the tests of a class share."""

    # Ray says so when it has told the worker to exit, a millisecond or two before that does.
    death_seconds = 1.0

    def bodies(self) -> list[str]:
        """Return what the workers run."""
        return _nodes[0].bodies()

    @pytest.fixture(autouse=True)
    def _processors_come_back(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """See that no body outlives its test, and have a new Ray if this one has lost a processor.

        Ray 2.60 goes on counting the processor of a worker as used for ever if that is killed in the millisecond in
        which it gets its next task: 2 of 12 workers that were killed right after a task of a plain Ray program.
        """
        yield
        if not _held:
            return
        eventually(lambda: not self.bodies(), "no body of the test runs any more", 15)
        try:
            eventually(_all_processors_are_free, timeout=3)
        except TimeoutError:
            request.node.user_properties.append(("ran", "Ray had lost a processor, and got new nodes"))
            let_go(request.node)
            _let_go()


def _all_processors_are_free() -> bool:
    import ray

    free, all_ = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
    return bool(free.get("CPU") == all_.get("CPU"))


@pytest.mark.xdist_group("ray: own")
class TestRayOwn(OnRay, RunnerConformance):
    """On a Ray that the runner starts."""

    # It has as many workers as it thinks right, and the runner that the class keeps up has it stay.
    kept = ("process ray::",)

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(None, slots)

    def bodies(self) -> list[str]:
        """Return what the workers run, which are below this process."""
        return bodies_of(descendants(os.getpid()))


@pytest.mark.xdist_group("ray: own")
class TestRayFaults(OnRay, FaultyWorkerConformance):
    """On a Ray that the runner starts, whose workers have more to bear than most."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(None, slots)

    @pytest.fixture
    def fresh_runner(self, request: pytest.FixtureRequest) -> TaskRunner:
        """Return a runner with a Ray of its own: there is one in a process, so the other one goes."""
        let_go(request.node)
        _let_go()
        return RayTaskRunner(num_cpus=2)

    def bodies(self) -> list[str]:
        """Return what the workers run, which are below this process."""
        return bodies_of(descendants(os.getpid()))


@pytest.mark.xdist_group("ray: own")
class TestRayInterrupted(InterruptedScriptConformance):
    """Programs that start a Ray, and are told to end."""

    moments = 2

    def make_runner(self, slots: int) -> TaskRunner:
        return RayTaskRunner(num_cpus=slots)

    def test_F10_second_ctrl_c(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path, declared: Declare
    ) -> None:
        """A second Ctrl-C ends a script at once. Ray's agents look for the rest of Ray now and then, and go later."""
        source = _scripted(fresh_runner, signals, _STUBBORN)
        ended = interrupted([source], tmp_path, signals, [("begun", signal.SIGINT), ("ending", signal.SIGINT)])
        signals.set("go")
        assert ended.was_ended_by(signal.SIGINT), ended
        assert ended.seconds < 2
        assert not [process for process in ended.processes if not process.endswith("Agent")]


class OnSomebodysRay(OnRay, RunnerConformance):
    """What sounds a little different where the workers are somebody else's."""

    def test_L4_arguments_and_directory(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
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


@pytest.mark.xdist_group("ray: two nodes")
class TestRayClient(OnSomebodysRay):
    """From outside of the cluster, by way of its client server."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(two_nodes().url, slots)

    def test_L4_module_beside_the_script(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """A module that lies beside the script can be imported by tasks, if it is shipped."""
        ship_a_module(tmp_path, "ray", "RayTaskRunner", {"address": two_nodes().url})


@pytest.mark.xdist_group("ray: two nodes")
class TestRayCluster(OnSomebodysRay):
    """From a node."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(two_nodes().address, slots)


@pytest.mark.xdist_group("ray: initialized")
class TestRayInitialized(OnSomebodysRay):
    """On a Ray to which the program has connected itself: the two nodes of a ``ray.cluster_utils.Cluster``."""

    def make_runner(self, slots: int) -> TaskRunner:
        import ray

        if not _nodes:
            _nodes.append(Nodes())
            _nodes[0].start_together()
        if not ray.is_initialized():
            with loopback_only(), quietly():
                ray.init(_nodes[0].address)
        return connected(_nodes[0].address, slots)


class InBatches(OnRay, DependencyConformance, FaultConformance):
    """What depends on which calls travel together."""

    def make_runner(self, slots: int) -> TaskRunner:
        return connected(two_nodes().address, slots)


@pytest.mark.xdist_group("ray: batches")
class TestRayMost(InBatches):
    """As many calls together as can."""

    batches = "most"


@pytest.mark.xdist_group("ray: batches")
class TestRayRandom(InBatches):
    """As it comes."""

    batches = "random"
