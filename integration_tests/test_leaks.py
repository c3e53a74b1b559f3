"""A thousand flows in one process, and a hundred thousand futures that nobody keeps: nothing grows."""

from __future__ import annotations

import gc
import importlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final

import pytest

from integration_tests.usage import Usage, shared_bytes
from turnout import TaskRunner, allow_failure, flow
from turnout.registry import resolve
from turnout.testing._bodies import add, fail, fibonacci, identity, total
from turnout.testing._kit import eventually
from turnout_runners.executor import ExecutorTaskRunner

LARGE: Final = 100_000
"""Bytes that travel outside of pickles, and stay on workers where results can."""
MEGABYTE: Final = 1 << 20
_ROUNDS: Final = 3


@pytest.fixture(autouse=True)
def _no_records() -> Iterator[None]:
    # pytest keeps every record of a test.
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def various() -> Any:
    """Have one call of each sort: plain, failed, large, nested, cancelled, allowed to fail."""
    bad, large, nested = fail.submit(), identity.submit(bytes(LARGE)), fibonacci.submit(3)
    late = add.submit(1, 2, wait_for=[large])
    late.cancel()
    bad.exception()
    numbers = add.map(range(6), 1)
    return total.submit([*numbers, nested]), identity.submit(allow_failure(bad)), identity.submit(large)


def run_flows(runner: TaskRunner, count: int) -> None:
    main = flow(task_runner=runner)(various)
    for _ in range(count):
        value, error, large = main()
        assert (value, type(error), len(large)) == (23, ValueError, LARGE)


def grows_by(before: Usage, flows: int, blocks_for_each: float = 0.5, megabytes: int = 8, few: int = 0) -> str:
    """Say what has grown since a measurement by more than chance, which is less for a flow than one object.

    Of threads, processes and descriptors a few may be more where a library starts and ends them as it sees fit.
    """
    after = Usage.now()
    grown = [
        after.threads > before.threads + few,
        after.processes > before.processes + few,
        after.descriptors > before.descriptors + few,
        # A worker may be about to close what came with its last call.
        after.worker_descriptors > before.worker_descriptors + (2 + few) * before.processes,
        after.blocks > before.blocks + blocks_for_each * flows,
        after.memory > before.memory + megabytes * MEGABYTE,
        after.worker_memory > before.worker_memory + megabytes * MEGABYTE * before.processes,
    ]
    return f"after {flows} flows: {after}; before: {before}" if any(grown) else ""


def stays_flat(runner: TaskRunner, flows: int, **limits: Any) -> None:
    """Run flows that share the backend, up to three times as many: what flows leave, all of them leave.

    What the first ones leave may be made once and kept, such as code that Python has adapted to what it does.
    """
    with runner:
        run_flows(runner, flows // 5)
        problem = ""
        for _ in range(_ROUNDS):
            before = Usage.now()
            run_flows(runner, flows)
            problem = settled(before, flows, **limits)
            if not problem:
                return
        pytest.fail(problem)


def settled(before: Usage, flows: int, **limits: Any) -> str:
    """Say what has grown, and not just because the last worker to run something still lets go of it."""
    problem = grows_by(before, flows, **limits)
    deadline = time.monotonic() + 3
    while problem and time.monotonic() < deadline:
        time.sleep(0.1)
        problem = grows_by(before, flows, **limits)
    return problem


@pytest.mark.parametrize("word", ["sequential", "thread?max_workers=2", "executor?max_workers=2"])
def test_a_thousand_flows_on_one_runner_in_this_process(word: str) -> None:
    stays_flat(resolve(word), 1000)


@pytest.mark.timeout(180)
def test_flows_on_processes() -> None:
    """A thousand are too many for each run of the tests: two hundred show one object that each leaves."""
    stays_flat(resolve("process?max_workers=2"), 200)


@pytest.mark.timeout(180)
def test_flows_on_a_pool_of_the_standard_library() -> None:
    stays_flat(ExecutorTaskRunner(ProcessPoolExecutor, max_workers=2), 400)


@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(300)
def test_flows_on_ray() -> None:
    """Here workers and Ray's own processes may keep something of each flow, too."""
    stays_flat(resolve("ray?num_cpus=2"), 100, blocks_for_each=20, megabytes=30, few=5)


@pytest.mark.parametrize(("word", "flows"), [("sequential", 200), ("thread?max_workers=2", 200)])
def test_flows_that_each_have_a_backend(word: str, flows: int) -> None:
    runner = resolve(word)
    run_flows(runner, flows // 4)
    before = Usage.now()
    run_flows(runner, flows)
    assert not grows_by(before, flows)


def test_flows_that_each_have_processes() -> None:
    """A thread or a descriptor that each leaves would show; so few tell little of single objects."""
    runner = resolve("process?max_workers=1")
    run_flows(runner, 2)
    before = Usage.now()
    run_flows(runner, 5)
    assert not grows_by(before, 5, blocks_for_each=50)


# Futures that nobody keeps


def drop_futures(small: int, large: int) -> None:
    """Submit calls, look at each result, and keep none of their futures."""
    for number, future in enumerate(add.map(range(small), 1, lazy=True), 1):
        assert future.result() == number
    for future in identity.map((bytes(MEGABYTE) for _ in range(large)), lazy=True):
        future.wait()


def is_back(measure: Callable[[], int], least: float) -> Callable[[], bool]:
    def look() -> bool:
        gc.collect()
        return measure() <= least

    return look


@pytest.mark.timeout(180)
@pytest.mark.parametrize("word", ["thread?max_workers=2", "process?max_workers=2"])
def test_dropped_futures_let_go_of_what_they_had(word: str) -> None:
    with resolve(word):
        drop_futures(5000, 20)
        before, shared = Usage.now(), shared_bytes()
        drop_futures(100_000, 100)
        # Each worker keeps the piece of its last value for the next one; one of them may have had none before.
        eventually(is_back(shared_bytes, shared + 2.5 * MEGABYTE), "the shared memory is free", 10)
        assert not grows_by(before, 1000, megabytes=24)


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_dask_forgets_what_nobody_keeps() -> None:
    """Tasks that the scheduler knows, and values that workers hold, as their futures are dropped."""
    from turnout_runners.dask import get_dask_client

    with resolve("dask?n_workers=2"):
        drop_futures(5000, 20)
        before = Usage.now()
        drop_futures(100_000, 100)
        client: Any = get_dask_client()
        eventually(lambda: not client.run_on_scheduler(_tasks_of_scheduler), "the scheduler has no task left", 10)
        eventually(lambda: not any(client.run(_values_of_worker).values()), "the workers have no value left", 10)
        # Dask's scheduler, which is in this process, has its own records of what went by.
        assert not grows_by(before, 1000, blocks_for_each=100, megabytes=100, few=5)


def _tasks_of_scheduler(dask_scheduler: Any) -> list[str]:
    return [str(key) for key in dask_scheduler.tasks]


def _values_of_worker(dask_worker: Any) -> list[str]:
    return [str(key) for key in dask_worker.data]


@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(300)
def test_ray_forgets_what_nobody_keeps() -> None:
    """References that this process holds to objects of Ray, as their futures are dropped."""

    def references() -> int:
        gc.collect()
        internal: Any = importlib.import_module("ray._private.worker")
        return len(internal.global_worker.core_worker.get_all_reference_counts())

    with resolve("ray?num_cpus=2"):
        drop_futures(5000, 20)
        before, known = Usage.now(), references()
        drop_futures(100_000, 100)
        # The last batches are let go of by the next that Ray is told.
        eventually(lambda: references() <= known + 10, "Ray's references are gone", 10)
        assert not grows_by(before, 1000, blocks_for_each=5, megabytes=100, few=5)
