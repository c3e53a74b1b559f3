"""What is special to Ray, on a cluster of two nodes: options, resources, values, news, code, nodes that die."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pytest

from integration_tests.ray_clusters import Nodes
from turnout import flow, get_run_logger, task
from turnout.errors import CrashedRun, RunnerStartError
from turnout.testing import Signals
from turnout.testing._batches import batched
from turnout.testing._kit import eventually
from turnout.testing._open_calls import alive, until_stopped
from turnout_runners.ray import RayTaskRunner, _pump
from turnout_runners.ray._calls import Calls
from turnout_runners.ray._post import Post

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module", autouse=True)
def _by_value(request: pytest.FixtureRequest) -> None:
    cloudpickle.register_pickle_by_value(request.module)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head node with one processor, and another one with one processor and a licence."""
    nodes = Nodes()
    # Here and on the nodes: without Ray's own history of tasks, which takes 4 KB for each of the last 100,000.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_task_events_report_interval_ms", "0")
        try:
            nodes.start_head()
            nodes.start_node(resources='{"licence": 2}')
            yield nodes
        finally:
            nodes.stop()


@pytest.fixture(scope="module")
def runner(nodes: Nodes) -> Iterator[RayTaskRunner]:
    runner = RayTaskRunner(nodes.address)
    with runner:
        yield runner


@task
def add(left: Any, right: Any) -> Any:
    return left + right


@task
def node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def test_slots_are_the_processors_of_all_nodes(runner: RayTaskRunner) -> None:
    assert runner.slots() == 2


def test_calls_run_on_all_nodes(runner: RayTaskRunner, tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))

    @task
    def meet() -> str:
        import ray

        signals.note("there")
        signals.wait_count("there", 2)
        return str(ray.get_runtime_context().get_node_id())

    first, second = meet.submit(), meet.submit()
    assert first.result() != second.result()


def test_resources_lead_to_the_node_that_has_them(runner: RayTaskRunner) -> None:
    licensed = node.with_options(resources={"licence": 1})
    places = {future.result() for future in [licensed.submit() for _ in range(4)]}
    assert len(places) == 1


@pytest.mark.parametrize(
    ("resources", "text"),
    [({"cpu": 8}, "cpu=8"), ({"memory": "1PiB"}, "memory=1 PiB"), ({"gpu": 1}, "gpu=1"), ({"licence": 3}, "licence=3")],
)
def test_impossible_resources_name_what_there_is(runner: RayTaskRunner, resources: dict[str, Any], text: str) -> None:
    begin = time.monotonic()
    error = add.with_options(resources=resources).submit(1, 2).exception()
    assert time.monotonic() - begin < 5
    assert text in str(error)
    assert "which no node of the Ray cluster has" in str(error)
    assert "cpu=1" in str(error)
    assert "licence=2" in str(error)


def test_options_reach_ray(runner: RayTaskRunner) -> None:
    @task(ray_options={"num_cpus": 0.5, "runtime_env": {"env_vars": {"COLOUR": "green"}}})
    def look() -> Any:
        import ray

        context: Any = ray.get_runtime_context()
        return os.environ["COLOUR"], context.get_assigned_resources()

    colour, resources = look.submit().result()
    assert (colour, resources["CPU"]) == ("green", 0.5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"colour": "green"}, "no option 'colour' for tasks. It has .*num_cpus"),
        ({"max_retries": 3}, "'max_retries' is not yours to set.*crash_retries"),
        ({"num_cpus": "many"}, "ray_options of task 'add'"),
        ({"resources": {"CPU": 1}}, "ray_options of task 'add'"),
    ],
)
def test_options_that_ray_does_not_take(runner: RayTaskRunner, options: dict[str, Any], text: str) -> None:
    error = add.with_options(ray_options=options).submit(1, 2).exception()
    assert isinstance(error, CrashedRun)
    with pytest.raises(type(error), match=text):
        raise error
    assert add.submit(1, 2).result() == 3


def test_tasks_have_their_own_names_in_ray(runner: RayTaskRunner) -> None:
    @task
    def tell_name() -> str:
        import ray

        return str(ray.get_runtime_context().get_task_name())

    assert tell_name.submit().result() == "tell_name"


def test_large_values_stay_in_the_store_and_go_with_their_futures(runner: RayTaskRunner) -> None:
    import ray
    from ray._private.internal_api import memory_summary

    references: Any = memory_summary

    @task
    def make(size: int) -> Any:
        return np.ones(size)

    @task
    def bump(array: Any) -> Any:
        array += 1
        return array

    future = make.submit(1_000_000)
    last = bump.submit(bump.submit(future))
    last.wait()
    handle = future._data.handle
    assert isinstance(handle[0], ray.ObjectRef)
    assert last.result()[0] == 3
    # What a task changes is its own.
    assert future.result()[0] == 1
    name = handle[0].hex()
    del handle, future, last
    deadline = time.monotonic() + 10
    while name in references():
        assert time.monotonic() < deadline, "the value is still there"
        time.sleep(0.1)


def test_logs_of_a_long_task_arrive_while_it_runs(
    runner: RayTaskRunner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "turnout")
    signals = Signals(str(tmp_path))

    @task
    def talk() -> None:
        for number in range(3):
            get_run_logger().info("word %d", number)
            time.sleep(0.1)
        signals.wait("go")
        get_run_logger().info("word 3")

    future = talk.submit()
    deadline = time.monotonic() + 20
    while "word 2" not in caplog.text:
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.01)
    assert not future.done()
    signals.set("go")
    future.result()
    words = [record.getMessage() for record in caplog.records if record.getMessage().startswith("word")]
    assert words == [f"word {number}" for number in range(4)]


def test_nested_calls_spread_over_the_nodes(runner: RayTaskRunner, tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))

    @task
    def meet() -> str:
        import ray

        signals.note("there")
        signals.wait_count("there", 2)
        return str(ray.get_runtime_context().get_node_id())

    @task
    def outer() -> Any:
        return len({future.result() for future in [meet.submit(), meet.submit()]})

    assert outer.submit().result() == 2


def test_a_value_of_a_nested_call_stays_too(runner: RayTaskRunner) -> None:
    @task
    def make() -> Any:
        return np.ones(500_000)

    @task
    def outer() -> Any:
        return float(add.submit(make.submit(), make.submit()).result().sum())

    assert outer.submit().result() == 1_000_000


def test_a_cancelled_call_is_killed_with_what_it_submitted(runner: RayTaskRunner, tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))

    @task
    def inner() -> None:
        signals.note("pid", str(os.getpid()))
        time.sleep(100)

    @task
    def outer() -> None:
        signals.note("pid", str(os.getpid()))
        inner.submit().result()

    future = outer.submit()
    signals.wait_count("pid", 2)
    assert future.cancel()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/exe").exists() for pid in signals.notes("pid")):
        assert time.monotonic() < deadline, "a body still runs"
        time.sleep(0.05)


def test_a_worker_that_is_told_to_end_waits_for_nothing(runner: RayTaskRunner, tmp_path: Path) -> None:
    """As Ray tells those whose owner is gone, from level to level."""
    signals = Signals(str(tmp_path))

    @task(crash_retries=0)
    def descend(levels: int) -> None:
        signals.note("pid", str(os.getpid()))
        if levels:
            descend.submit(levels - 1).result()
        signals.wait("never")

    future = descend.submit(2)
    signals.wait_count("pid", 3)
    os.kill(int(signals.notes("pid")[0]), signal.SIGTERM)
    assert "The worker that ran descend-0 died" in str(future.exception())
    eventually(lambda: not any(alive(int(pid)) for pid in signals.notes("pid")), "what it submitted has ended", 10)


def test_code_that_workers_lack_travels_along(nodes: Nodes, tmp_path: Path) -> None:
    package = tmp_path / "shipped_words"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import word\n")
    (package / "inner.py").write_text("def word():\n    return 'shipped'\n")
    script = f"""
import os, sys
from turnout import flow, task
from turnout_runners.ray import RayTaskRunner

@task
def inner():
    import shipped_words
    return shipped_words.word()

@task
def say():
    import shipped_words
    return shipped_words.word(), inner.submit().result(), os.path.dirname(os.path.dirname(shipped_words.__file__))

@flow(task_runner=RayTaskRunner({nodes.address!r}, ship=[{str(package)!r}]))
def main():
    return say.submit().result()

for word in main():
    print(word)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/", capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    *words, folder = done.stdout.split()
    assert words == ["shipped", "shipped"]
    deadline = time.monotonic() + 10
    while Path(folder).exists():
        assert time.monotonic() < deadline, "the code is still there"
        time.sleep(0.1)


def test_another_cluster_is_refused(runner: RayTaskRunner) -> None:
    @flow(task_runner=RayTaskRunner("127.0.0.1:1"))
    def main() -> Any:
        return add.submit(1, 2).result()

    with pytest.raises(RunnerStartError, match="A process can have one connection to Ray"):
        main()


@pytest.mark.timeout(120)
def test_ten_thousand_calls_leave_nothing_in_the_head_node(runner: RayTaskRunner, nodes: Nodes) -> None:
    one_by_one = add.with_options(batch=False)
    one_by_one.map(range(500), 1).result()
    before = nodes.head_memory()
    assert before > 0
    assert sum(one_by_one.map(range(10_000), 1).result()) == sum(range(1, 10_001))
    # A kilobyte a call would be 10 MB.
    assert nodes.head_memory() - before < 8 * 2**20


@pytest.mark.timeout(150)  # Ray takes its time to find out
def test_a_node_that_dies_costs_its_calls_one_run(runner: RayTaskRunner, nodes: Nodes, tmp_path: Path) -> None:
    """Calls on it run again elsewhere; a value that was there is lost, and that is said."""
    signals = Signals(str(tmp_path))
    number = nodes.start_node(resources='{"doomed": 1}')
    deadline = time.monotonic() + 20
    while runner.slots() < 3:
        assert time.monotonic() < deadline, "a node that joins is counted"
        time.sleep(0.1)

    @task(resources={"doomed": 0.1})
    def make() -> Any:
        return np.ones(1_000_000)

    @task
    def meet(number: int) -> int:
        signals.note("there")
        signals.wait("go", timeout=100)
        return number

    stays_there = make.submit()
    stays_there.wait()
    running = meet.map(range(3))
    signals.wait_count("there", 3)
    nodes.kill(number)
    signals.set("go")
    assert running.result() == [0, 1, 2]
    assert signals.count("there") == 4
    error = add.with_options(crash_retries=0).submit(stays_there, 1).exception()
    assert "a value that it needs is lost" in str(error)
    with pytest.raises(Exception, match="Failed to retrieve object"):
        stays_there.result()
    del stays_there


ONE_AFTER_THE_OTHER = """
import sys
from turnout import flow, get_run_logger, task
from turnout_runners.ray import RayTaskRunner

@task
def double(number):
    get_run_logger().info("doubling")
    return 2 * number

@flow
def main():
    return double.map(range(3))

for runner in (RayTaskRunner(num_cpus=1), RayTaskRunner(sys.argv[1])):
    print(main.with_options(task_runner=runner)())
"""


def test_a_ray_of_our_own_and_then_one_of_others(nodes: Nodes, tmp_path: Path) -> None:
    """The first wants a token; if Ray went on to want one of the second, its head node would take us for dead."""
    script = tmp_path / "one_after_the_other.py"
    script.write_text(ONE_AFTER_THE_OTHER)
    done = subprocess.run([sys.executable, str(script), nodes.address], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[0, 2, 4]\n[0, 2, 4]\n"), done.stderr


IN_TWO_PARTS = """
import sys, time
from turnout import flow, task
from turnout_runners.ray import RayTaskRunner

@task
def late(number):
    time.sleep(0.05)
    return number

# What a call needs decides whom Ray asks for a worker: the code that is sent along is on all nodes.
@flow(task_runner=RayTaskRunner(sys.argv[1], ship=[__file__]))
def in_two_parts():
    assert late.map(range(4)).result() == list(range(4))
    print("begun", flush=True)
    sys.stdin.readline()
    return sum(late.map(range(40)).result())

if __name__ == "__main__":
    print(in_two_parts())
"""


@pytest.mark.timeout(150)
def test_a_host_that_is_cut_off_holds_up_no_calls_for_long(tmp_path: Path) -> None:
    """Ray would wait for an answer of a node that it has long declared dead: here for ever."""
    checks = {"initial_delay": "1000", "period": "500", "timeout": "500"}
    environment = {f"RAY_health_check_{name}_ms": value for name, value in checks.items()}
    nodes = Nodes(environment=environment | {"RAY_health_check_failure_threshold": "3"})
    script = tmp_path / "in_two_parts.py"
    script.write_text(IN_TWO_PARTS)
    try:
        nodes.start_head()
        number = nodes.start_node()
        with subprocess.Popen(
            [sys.executable, str(script), nodes.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as driver:
            try:
                assert driver.stdout
                assert driver.stdout.readline() == "begun\n"
                nodes.freeze(number)
                out, _ = driver.communicate("go on\n", timeout=60)
            finally:
                driver.kill()
        assert out == f"{sum(range(40))}\n"
    finally:
        nodes.stop()


def test_what_ray_neither_ends_nor_gives_back_after_the_loss_of_a_node_is_sent_again(
    runner: RayTaskRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signals = Signals(str(tmp_path))
    monkeypatch.setattr(_pump, "_SILENCE", 0.0)
    monkeypatch.setattr(_pump, "_ASKED_BACK", 0.1)

    @task
    def hold() -> None:
        signals.note("holds")
        signals.wait("go")

    @task(batch=False)
    def wait_for_a_processor() -> int:
        return 7

    with runner:
        pump: Any = runner._pump
        sent: list[int] = []
        real = Calls.send

        def send(calls: Calls, batch: Any, number: int) -> Any:
            sent.append(number)
            return real(calls, batch, number)

        monkeypatch.setattr(Calls, "send", send)
        holding = [hold.submit() for _ in range(runner.slots())]
        signals.wait_count("holds", len(holding))
        waiting = wait_for_a_processor.submit()
        eventually(lambda: len(sent) > len(holding), "it waits at Ray")
        # As Ray did once: it took no notice of the wish, and told of no end.
        monkeypatch.setattr(Post, "cancel", lambda post, reference, *, force: None)
        monkeypatch.setattr(pump._cluster, "lost_at", time.monotonic())
        eventually(lambda: len(sent) > len(holding) + 1, "it is sent again")
        signals.set("go")
        assert waiting.result() == 7


def test_a_large_argument_is_put_once(runner: RayTaskRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    array = np.ones(1_000_000)
    values: list[Any] = []
    real = ray.put

    def put(value: Any, **options: Any) -> Any:
        values.append(value)
        return real(value, **options)

    monkeypatch.setattr(ray, "put", put)

    signals = Signals(str(tmp_path))

    @task
    def hold(array: Any) -> None:
        signals.wait("go")

    @task
    def total(array: Any, number: int) -> float:
        # Its own, though the others have it too.
        array += number
        return float(array[0])

    with runner:
        # As long as this one is open, nobody may change it.
        held = hold.submit(array)
        futures = [total.submit(array, number) for number in range(50)]
        assert [future.result() for future in futures] == [1.0 + number for number in range(50)]
        signals.set("go")
        held.result()
    assert sum(isinstance(value, dict) for value in values) == 1
    assert array[0] == 1.0


def test_a_body_sees_no_signal_when_others_of_its_batch_are_cancelled(runner: RayTaskRunner, tmp_path: Path) -> None:
    signals = Signals(str(tmp_path))

    @task
    def step(number: int) -> int:
        signals.note("ran", str(number))
        if number == 1:
            signals.set("begun")
            signals.wait("go")
        return number

    with batched("most"), runner:
        futures = [step.submit(number) for number in range(40)]
        signals.wait("begun")
        taken = [future for future in futures[2::2] if future.cancel()]
        signals.set("go")
        for future in futures:
            future.wait()
    assert all(future.cancelled() for future in taken)
    for number, future in enumerate(futures):
        assert future.cancelled() or future.result() == number
    ran = signals.notes("ran")
    assert len(ran) == len(set(ran)), "none ran twice"


def test_a_cancel_that_ray_loses_is_asked_for_again(
    runner: RayTaskRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signals, cancel = Signals(str(tmp_path)), Post.cancel
    lost: list[bool] = []

    def lose_two(post: Post, reference: Any, *, force: bool) -> None:
        if len(lost) < 2:
            lost.append(force)
        else:
            cancel(post, reference, force=force)

    monkeypatch.setattr(Post, "cancel", lose_two)
    with runner:
        future = until_stopped.submit(signals)
        signals.wait("begun")
        assert future.cancel()
        pid = int(signals.notes("pid")[0])
        eventually(lambda: not alive(pid), "the worker of the body is gone", 20)
    assert lost == [False, True]


def test_a_cancel_that_comes_too_late_hits_no_others(
    runner: RayTaskRunner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signals = Signals(str(tmp_path))
    dice = random.Random(1)

    @task
    def step(turn: int, number: int, seconds: float) -> int:
        signals.note("ran", f"{turn}.{number}")
        time.sleep(seconds)
        return number

    with batched("most"), runner:
        for turn in range(60):
            futures = [step.submit(turn, number, dice.choice([0, 0, 0, 0.001])) for number in range(12)]
            # Cancels meet batches that wait, run, and are just over: any moment is as good as another.
            time.sleep(dice.random() * 0.02)
            for future in futures[2:-1:2]:
                future.cancel()
            assert [future.result() for future in futures[1::2]] == [1, 3, 5, 7, 9, 11]
    ran = signals.notes("ran")
    assert len(ran) == len(set(ran)), "none ran twice"
    assert not [record for record in caplog.records if "worker died" in record.getMessage()]
