"""A thousand flows in one process, and a hundred thousand futures that nobody keeps: nothing grows."""

from __future__ import annotations

import gc
from collections.abc import Callable
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


def grows_by(before: Usage, flows: int, blocks_for_each: float = 0.5, megabytes: int = 8) -> str:
    """Say what has grown since a measurement by more than chance, which is less for a flow than one object."""
    after = Usage.now()
    grown = [
        after.threads > before.threads,
        after.processes > before.processes,
        after.descriptors > before.descriptors,
        # A worker may be about to close what came with its last call.
        after.worker_descriptors > before.worker_descriptors + 2 * before.processes,
        after.blocks > before.blocks + blocks_for_each * flows,
        after.memory > before.memory + megabytes * MEGABYTE,
        after.worker_memory > before.worker_memory + megabytes * MEGABYTE * before.processes,
    ]
    return f"after {flows} flows: {after}; before: {before}" if any(grown) else ""


def stays_flat(runner: TaskRunner, flows: int, **limits: Any) -> None:
    """Run flows that share the backend; a part of them first, for what is made once and kept."""
    with runner:
        run_flows(runner, flows // 5)
        before = Usage.now()
        run_flows(runner, flows)
        # The last worker to have run something may still be letting go of it.
        problem = ""

        def is_flat() -> bool:
            nonlocal problem
            problem = grows_by(before, flows, **limits)
            return not problem

        try:
            eventually(is_flat, timeout=5)
        except TimeoutError:
            pytest.fail(problem)


@pytest.mark.parametrize("word", ["sequential", "thread?max_workers=2", "executor?max_workers=2"])
def test_a_thousand_flows_on_one_runner_in_this_process(word: str) -> None:
    stays_flat(resolve(word), 1000)


@pytest.mark.timeout(180)
def test_a_thousand_flows_on_processes() -> None:
    stays_flat(resolve("process?max_workers=2"), 1000)


@pytest.mark.timeout(180)
def test_flows_on_a_pool_of_the_standard_library() -> None:
    stays_flat(ExecutorTaskRunner(ProcessPoolExecutor, max_workers=2), 500)


@pytest.mark.parametrize(("word", "flows"), [("sequential", 200), ("thread?max_workers=2", 200)])
def test_flows_that_each_have_a_backend(word: str, flows: int) -> None:
    runner = resolve(word)
    run_flows(runner, flows // 4)
    before = Usage.now()
    run_flows(runner, flows)
    assert not grows_by(before, flows)


def test_flows_that_each_have_processes() -> None:
    """A leak of a descriptor or a thread for each would show; ten flows tell little of single objects."""
    runner = resolve("process?max_workers=1")
    run_flows(runner, 2)
    before = Usage.now()
    run_flows(runner, 10)
    assert not grows_by(before, 10, blocks_for_each=30)


# Futures that nobody keeps


def drop_futures(small: int, large: int) -> None:
    """Submit calls, look at each result, and keep none of their futures."""
    for number, future in enumerate(add.map(range(small), 1, lazy=True), 1):
        assert future.result() == number
    for future in identity.map((bytes(MEGABYTE) for _ in range(large)), lazy=True):
        future.wait()


def is_back(measure: Callable[[], int], least: int) -> Callable[[], bool]:
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
        eventually(is_back(shared_bytes, shared + MEGABYTE), "the shared memory is free", 10)
        assert not grows_by(before, 1000, megabytes=24)
