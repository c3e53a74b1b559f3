"""Workers that chaos kills, on every runner that has some."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from turnout import TaskRunner, flow, task
from turnout.registry import resolve
from turnout.testing import ChaosTaskRunner
from turnout_runners.executor import ExecutorTaskRunner

RUNNERS = [
    pytest.param(lambda: resolve("process?max_workers=2"), id="process"),
    pytest.param(lambda: ExecutorTaskRunner(ProcessPoolExecutor, max_workers=2), id="executor"),
    pytest.param(lambda: resolve("dask?n_workers=2"), id="dask", marks=pytest.mark.cluster),
    pytest.param(
        lambda: resolve("ray?num_cpus=2"), id="ray", marks=[pytest.mark.cluster, pytest.mark.xdist_group("ray")]
    ),
]


@task(crash_retries=50)
def process_of(number: int, payload: bytes) -> tuple[int, int]:
    assert len(payload) == 100_000
    return number, os.getpid()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", RUNNERS)
def test_workers_are_killed_and_flows_end_as_they_do_without(make: Callable[[], TaskRunner]) -> None:
    runner = ChaosTaskRunner(make(), 5, kills=0.15, crashes=0, losses=0, returns=0)

    @flow(task_runner=runner)
    def main() -> list[tuple[int, int]]:
        large = bytes(100_000)
        first = process_of.map(range(20), payload=large).result()
        return first + process_of.with_options(batch=False).map(range(20, 40), payload=large).result()

    told = main()
    assert [number for number, _ in told] == list(range(40))
    report = runner.report()
    assert report.injected["kill"] > 1
    assert report.hit == report.survived > 0
    # Each death is followed by another process.
    assert len({process for _, process in told}) > 2
    assert os.getpid() not in {process for _, process in told}


@task(crash_retries=50)
def make_large(number: int) -> bytes:
    return bytes([number]) * 3_000_000


@task(crash_retries=50)
def look_into(large: bytes) -> tuple[int, int]:
    return large[0], len(large)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", RUNNERS)
def test_results_that_stayed_on_a_killed_worker_are_made_again(make: Callable[[], TaskRunner]) -> None:
    """The call that killed it after its own end does not kill the next worker when it is run again."""
    runner = ChaosTaskRunner(make(), 1, kills=0.3, crashes=0, losses=0, returns=0, delays=0, max_delay=0.1)

    @flow(task_runner=runner)
    def main() -> Any:
        return [look_into.submit(make_large.submit(number)) for number in range(12)]

    assert main() == [(number, 3_000_000) for number in range(12)]
    assert runner.report().injected["kill"] > 1
