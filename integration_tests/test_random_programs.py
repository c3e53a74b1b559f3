"""Random programs on real workers: results, states, and how often each body ran, beside what a simple count says."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnout import Task, TaskFuture, TaskRunner, allow_failure, flow, task
from turnout.errors import CancelledRun, CrashedRun, UpstreamFailed
from turnout.registry import resolve
from turnout.testing import ChaosTaskRunner
from turnout.testing._batches import batched

KINDS: Final = ("value", "value", "value", "value", "fails", "fails once", "slow", "dies once", "dies")
LARGE: Final = 100_000


@dataclass(frozen=True)
class Step:
    """One call of a program: what it does, which earlier ones it needs in which way, and which are cancelled then."""

    kind: str
    needs: tuple[int, ...]
    waits: tuple[int, ...]
    allows: tuple[int, ...]
    cancels: tuple[int, ...]


@st.composite
def programs(draw: st.DrawFn, kinds: Sequence[str] = KINDS) -> list[Step]:
    """Draw a program of up to sixty calls."""
    steps: list[Step] = []
    for number in range(draw(st.integers(5, 60))):
        others = (
            st.lists(st.integers(max(0, number - 12), number - 1), max_size=2, unique=True) if number else st.just([])
        )
        drawn = draw(others)
        roles = [draw(st.sampled_from(("needs", "needs", "needs", "waits", "allows"))) for _ in drawn]

        def of(role: str, drawn: list[int] = drawn, roles: list[str] = roles) -> tuple[int, ...]:
            return tuple(other for other, its in zip(drawn, roles, strict=True) if its == role)

        cancels = () if draw(st.integers(0, 9)) or not number else (draw(st.integers(0, number - 1)),)
        steps.append(Step(draw(st.sampled_from(kinds)), of("needs"), of("waits"), of("allows"), cancels))
    return steps


def allowed(number: int, one: Step, known: Sequence[str | int], *, cancelled: bool) -> set[str | int]:
    """Return what may become of a call, given what became of those before it."""
    if cancelled:
        return {"CancelledRun"}
    lost = {known[other] for other in one.needs + one.waits if isinstance(known[other], str)}
    lost |= {"CancelledRun" for other in one.allows if known[other] == "CancelledRun"}
    if lost:
        # Whichever ended first.
        endings = {"CancelledRun" if ending == "CancelledRun" else "UpstreamFailed" for ending in lost}
        return set(endings)
    if one.kind in ("fails", "dies"):
        return {"ValueError" if one.kind == "fails" else "CrashedRun"}
    values = [known[other] for other in one.needs + one.allows]
    return {number + sum(value if isinstance(value, int) else 1000 for value in values)}


@task(crash_retries=2)
def step(folder: str, number: int, kind: str, *values: Any) -> Any:
    # A byte for each run, in one go, so that none is lost with the process.
    path = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(path, b".")
    runs = os.fstat(path).st_size
    os.close(path)
    if kind == "dies" or (kind == "dies once" and runs == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fails" or (kind == "fails once" and runs == 1):
        raise ValueError(number)
    if kind == "slow":
        time.sleep(0.03)
    total = number + sum(value["value"] if isinstance(value, dict) else 1000 for value in values)
    # Some results are too large to come along, some are no plain values.
    return {"value": total, "weight": bytes(LARGE if number % 11 == 5 else 2000 if number % 5 == 2 else 0)}


def told(future: TaskFuture[Any]) -> str | int:
    error = future.exception()
    if error is None:
        value: int = future.result()["value"]
        return value
    for cls in (UpstreamFailed, CrashedRun, CancelledRun):
        if isinstance(error, cls):
            return cls.__name__
    return type(error).__name__


def run(
    runner: TaskRunner, program: Sequence[Step], folder: str, step: Task[..., Any] = step
) -> tuple[list[str | int], set[int]]:
    """Run a program as a flow; return what became of each call, and which were cancelled."""

    @flow(task_runner=runner)
    def main() -> tuple[list[str | int], set[int]]:
        futures: list[TaskFuture[Any]] = []
        cancelled: set[int] = set()
        for number, one in enumerate(program):
            needs = [futures[other] for other in one.needs]
            allows = [allow_failure(futures[other]) for other in one.allows]
            waits = [futures[other] for other in one.waits]
            its = step.with_options(retries=1) if one.kind == "fails once" else step
            futures.append(its.submit(folder, number, one.kind, *needs, *allows, wait_for=waits))
            cancelled.update(other for other in one.cancels if futures[other].cancel())
        return [told(future) for future in futures], cancelled

    return main()


def check_endings(known: Sequence[str | int], program: Sequence[Step], cancelled: set[int]) -> None:
    for number, one in enumerate(program):
        may_be = allowed(number, one, known, cancelled=number in cancelled)
        assert known[number] in may_be, f"call {number} is {known[number]}, not {may_be}"


def runs_of(folder: str, number: int) -> int:
    path = Path(folder, str(number))
    return path.stat().st_size if path.exists() else 0


def check(runner: TaskRunner, program: Sequence[Step], how: str, *, innocents_run_once: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, batched(how):
        known, cancelled = run(runner, program, folder)
        check_endings(known, program, cancelled)
        # A worker that dies may take others of its batch along: each of those runs once more for each death at most.
        deaths = sum({"dies once": 1, "dies": 3}.get(one.kind, 0) for one in program)
        spare = 0 if innocents_run_once else deaths
        for number, (one, outcome) in enumerate(zip(program, known, strict=True)):
            runs = runs_of(folder, number)
            most = {"fails once": 2, "dies once": 2, "dies": 3}.get(one.kind, 1)
            if outcome == "CancelledRun":
                # It may have begun before, or just when what it needs was cancelled that had ended on its worker.
                assert runs <= most + spare, f"call {number} ran {runs} times"
                continue
            least = 0 if outcome == "UpstreamFailed" else most
            assert runs <= least + (spare if least else 0), f"call {number} ran {runs} times"
            assert runs >= least or one.kind.startswith(("dies", "fails once")), f"call {number} ran {runs} times"


def held(word: str) -> Iterator[TaskRunner]:
    runner = resolve(word)
    with runner:
        yield runner


@pytest.fixture(scope="module")
def process() -> Iterator[TaskRunner]:
    yield from held("process?max_workers=2")


@pytest.fixture(scope="module")
def dask() -> Iterator[TaskRunner]:
    yield from held("dask?n_workers=2")


@pytest.fixture(scope="module")
def ray() -> Iterator[TaskRunner]:
    yield from held("ray?num_cpus=2")


def several(examples: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


HOW: Final = st.sampled_from(("measured", "most", "random"))
PEACEFUL: Final = tuple(kind for kind in KINDS if "dies" not in kind)


@pytest.mark.timeout(300)
@several(60)
@given(program=programs(), how=HOW)
def test_programs_on_processes(process: TaskRunner, program: list[Step], how: str) -> None:
    check(process, program, how, innocents_run_once=True)


@pytest.mark.cluster
@pytest.mark.timeout(400)
@several(15)
@given(program=programs(), how=HOW)
def test_programs_on_dask(dask: TaskRunner, program: list[Step], how: str) -> None:
    check(dask, program, how, innocents_run_once=False)


@pytest.mark.cluster
@pytest.mark.timeout(300)
@several(20)
@given(program=programs(PEACEFUL), how=HOW)
def test_peaceful_programs_on_dask(dask: TaskRunner, program: list[Step], how: str) -> None:
    check(dask, program, how, innocents_run_once=True)


@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(400)
@several(10)
@given(program=programs(), how=HOW)
def test_programs_on_ray(ray: TaskRunner, program: list[Step], how: str) -> None:
    check(ray, program, how, innocents_run_once=False)


@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(300)
@several(20)
@given(program=programs(PEACEFUL), how=HOW)
def test_peaceful_programs_on_ray(ray: TaskRunner, program: list[Step], how: str) -> None:
    check(ray, program, how, innocents_run_once=True)


# Chaos has calls run again that could not know that they ran: what counts their runs can't tell the outcome.
REPEATABLE: Final = tuple(kind for kind in KINDS if kind not in ("fails once", "dies", "dies once"))
SEEDS: Final = st.integers(0, 2**32)


def chaotic(word: str, seed: int = 1) -> ChaosTaskRunner:
    return ChaosTaskRunner(word, seed, crashes=0.1, losses=0.1)


def check_with_chaos(runner: ChaosTaskRunner, program: Sequence[Step], how: str) -> None:
    """What becomes of each call is what may become of it without chaos."""
    with tempfile.TemporaryDirectory() as folder, batched(how):
        known, cancelled = run(runner, program, folder, step.with_options(crash_retries=50))
        check_endings(known, program, cancelled)


@pytest.mark.timeout(300)
@several(40)
@given(program=programs(REPEATABLE), how=HOW, seed=SEEDS)
def test_chaos_on_processes(program: list[Step], how: str, seed: int) -> None:
    check_with_chaos(chaotic("process?max_workers=2", seed), program, how)


@pytest.mark.timeout(300)
@several(40)
@given(program=programs(REPEATABLE), how=HOW, seed=SEEDS)
def test_chaos_on_an_executor(program: list[Step], how: str, seed: int) -> None:
    check_with_chaos(chaotic("executor?max_workers=2", seed), program, how)


@pytest.mark.timeout(300)
@several(20)
@given(program=programs(REPEATABLE), how=HOW, seed=SEEDS)
def test_chaos_on_threads(program: list[Step], how: str, seed: int) -> None:
    """Which can only be late."""
    check_with_chaos(chaotic("thread?max_workers=2", seed), program, how)


@pytest.fixture(scope="module")
def chaotic_dask() -> Iterator[ChaosTaskRunner]:
    with chaotic("dask?n_workers=2") as runner:
        yield runner


@pytest.mark.cluster
@pytest.mark.timeout(400)
@several(30)
@given(program=programs(REPEATABLE), how=HOW)
def test_chaos_on_dask(chaotic_dask: ChaosTaskRunner, program: list[Step], how: str) -> None:
    check_with_chaos(chaotic_dask, program, how)


@pytest.fixture(scope="module")
def chaotic_ray() -> Iterator[ChaosTaskRunner]:
    with chaotic("ray?num_cpus=2") as runner:
        yield runner


@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(400)
@several(30)
@given(program=programs(REPEATABLE), how=HOW)
def test_chaos_on_ray(chaotic_ray: ChaosTaskRunner, program: list[Step], how: str) -> None:
    check_with_chaos(chaotic_ray, program, how)
