"""Random programs on every runner, in peace and under chaos, beside what a simple count says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration_tests.programs import PEACEFUL, REPEATABLE, Ran, Step, check, check_with_chaos, programs
from turnout import TaskRunner
from turnout.registry import resolve
from turnout.testing import ChaosTaskRunner
from turnout_runners.executor import ExecutorTaskRunner

HOW: Final = st.sampled_from(("measured", "most", "random"))
SEEDS: Final = st.integers(0, 2**32)

TOTAL: Final = int(os.environ.get("TURNOUT_PROGRAMS", "0"))
"""How many programs to run in all, over all runners; 0 for the few of the ordinary lanes."""


def several(examples: int, percent: float) -> Callable[[Any], Any]:
    """Run so many programs, or this part of ``TOTAL``."""
    count = max(1, round(TOTAL * percent / 100)) if TOTAL else examples
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    its = settings(max_examples=count, deadline=None, suppress_health_check=checks)
    return lambda test: pytest.mark.timeout(300 + 5 * count if TOTAL else 300)(its(test))


@pytest.fixture
def ran(record_property: Callable[[str, object], None]) -> Iterator[Ran]:
    """Return what counts the programs of a test; ``conftest.py`` tells it at the end."""
    counts = Ran()
    yield counts
    record_property("ran", str(counts))


def held(runner: TaskRunner) -> Iterator[TaskRunner]:
    with runner:
        yield runner


@pytest.fixture(scope="module")
def thread() -> Iterator[TaskRunner]:
    yield from held(resolve("thread?max_workers=2"))


@pytest.fixture(scope="module")
def process() -> Iterator[TaskRunner]:
    yield from held(resolve("process?max_workers=2"))


@pytest.fixture(scope="module")
def executor() -> Iterator[TaskRunner]:
    yield from held(on_pool())


def on_pool() -> TaskRunner:
    return ExecutorTaskRunner(ProcessPoolExecutor, max_workers=2)


@pytest.fixture(scope="module")
def dask() -> Iterator[TaskRunner]:
    yield from held(resolve("dask?n_workers=2"))


@pytest.fixture(scope="module")
def ray() -> Iterator[TaskRunner]:
    yield from held(resolve("ray?num_cpus=2"))


@several(40, 16)
@given(program=programs(PEACEFUL), how=HOW)
def test_programs_in_turn(ran: Ran, program: list[Step], how: str) -> None:
    check(resolve("sequential"), program, how, ran, innocents_run_once=True)


@several(40, 18)
@given(program=programs(PEACEFUL), how=HOW)
def test_programs_on_threads(thread: TaskRunner, ran: Ran, program: list[Step], how: str) -> None:
    check(thread, program, how, ran, innocents_run_once=True)


@several(50, 14)
@given(program=programs(), how=HOW)
def test_programs_on_processes(process: TaskRunner, ran: Ran, program: list[Step], how: str) -> None:
    check(process, program, how, ran, innocents_run_once=True)


@several(25, 12)
@given(program=programs(PEACEFUL), how=HOW)
def test_programs_on_an_executor(executor: TaskRunner, ran: Ran, program: list[Step], how: str) -> None:
    check(executor, program, how, ran, innocents_run_once=True)


@pytest.mark.cluster
@several(15, 1)
@given(program=programs(), how=HOW)
def test_programs_on_dask(dask: TaskRunner, ran: Ran, program: list[Step], how: str) -> None:
    check(dask, program, how, ran, innocents_run_once=False)


@pytest.mark.cluster
@several(20, 2)
@given(program=programs(PEACEFUL), how=HOW)
def test_peaceful_programs_on_dask(dask: TaskRunner, ran: Ran, program: list[Step], how: str) -> None:
    check(dask, program, how, ran, innocents_run_once=True)


@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@several(10, 1)
@given(program=programs(), how=HOW)
def test_programs_on_ray(ray: TaskRunner, ran: Ran, program: list[Step], how: str) -> None:
    check(ray, program, how, ran, innocents_run_once=False)


@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@several(20, 2)
@given(program=programs(PEACEFUL), how=HOW)
def test_peaceful_programs_on_ray(ray: TaskRunner, ran: Ran, program: list[Step], how: str) -> None:
    check(ray, program, how, ran, innocents_run_once=True)


def chaotic(inner: TaskRunner | str, seed: int = 1, kills: float = 0.01) -> ChaosTaskRunner:
    return ChaosTaskRunner(inner, seed, crashes=0.1, kills=kills, losses=0.1)


@several(20, 6)
@given(program=programs(REPEATABLE), how=HOW, seed=SEEDS)
def test_chaos_in_turn(ran: Ran, program: list[Step], how: str, seed: int) -> None:
    """Which can only be late."""
    check_with_chaos(chaotic("sequential", seed), program, how, ran)


@several(20, 8)
@given(program=programs(REPEATABLE), how=HOW, seed=SEEDS)
def test_chaos_on_threads(ran: Ran, program: list[Step], how: str, seed: int) -> None:
    """Which can only be late."""
    check_with_chaos(chaotic("thread?max_workers=2", seed), program, how, ran)


@several(40, 8)
@given(program=programs(REPEATABLE), how=HOW, seed=SEEDS)
def test_chaos_on_processes(ran: Ran, program: list[Step], how: str, seed: int) -> None:
    check_with_chaos(chaotic("process?max_workers=2", seed), program, how, ran)


@several(25, 8)
@given(program=programs(REPEATABLE), how=HOW, seed=SEEDS)
def test_chaos_on_an_executor(ran: Ran, program: list[Step], how: str, seed: int) -> None:
    check_with_chaos(chaotic(on_pool(), seed), program, how, ran)


@pytest.fixture(scope="module")
def chaotic_dask() -> Iterator[ChaosTaskRunner]:
    with chaotic("dask?n_workers=2") as runner:
        yield runner


@pytest.mark.cluster
@several(30, 2)
@given(program=programs(REPEATABLE), how=HOW)
def test_chaos_on_dask(chaotic_dask: ChaosTaskRunner, ran: Ran, program: list[Step], how: str) -> None:
    check_with_chaos(chaotic_dask, program, how, ran)


@pytest.fixture(scope="module")
def chaotic_ray() -> Iterator[ChaosTaskRunner]:
    # Ray 2.60 may lose a processor for good with a killed worker. Some kills on Ray are in `test_chaos_kills.py`.
    with chaotic("ray?num_cpus=2", kills=0.0) as runner:
        yield runner


@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@several(30, 2)
@given(program=programs(REPEATABLE), how=HOW)
def test_chaos_on_ray(chaotic_ray: ChaosTaskRunner, ran: Ran, program: list[Step], how: str) -> None:
    check_with_chaos(chaotic_ray, program, how, ran)
