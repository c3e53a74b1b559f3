"""Results that stay on the backend, over a runner that keeps every large one."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest

from turnout import TaskFuture, flow, task
from turnout._serialization import Parcel
from turnout.errors import CrashedRun, UpstreamFailed
from turnout.runner import Batch, Capabilities, Host, Outcome, OutcomeKind, Stored, TaskRunner
from turnout.worker import run_batch

LARGE = 100_000


class Warehouse(TaskRunner):
    """Runs batches in the thread that submits them, and keeps large results in a shelf of its own."""

    capabilities = Capabilities(streams=True)

    def __init__(self) -> None:
        self.shelf: dict[int, Parcel] = {}
        self.fetched: list[int] = []
        self.given: list[list[str]] = []
        self.stops = 0
        self.burnt = False

    def start(self, host: Host) -> None:
        self.host = host

    def slots(self) -> int:
        return 2

    def submit(self, batch: Batch) -> None:
        self.given.append([type(item).__name__ for item in batch.upstream])
        upstream = [self.shelf[item.handle] if isinstance(item, Stored) else item for item in batch.upstream]

        def emit(outcomes: Sequence[Outcome]) -> None:
            self.host.report(batch, [self.kept(outcome) if batch.may_stay else outcome for outcome in outcomes])

        run_batch(batch.body, batch.functions, upstream, emit)

    def kept(self, outcome: Outcome) -> Outcome:
        if outcome.kind is not OutcomeKind.VALUE or outcome.size < LARGE:
            return outcome
        number = len(self.shelf)
        self.shelf[number] = outcome.data
        return outcome._replace(data=Stored(self, number, outcome.size))

    def fetch(self, stored: Stored) -> Parcel:
        if self.burnt:
            raise ConnectionError("the shelf burnt down")
        self.fetched.append(stored.handle)
        return self.shelf[stored.handle]

    def stop(self) -> None:
        self.stops += 1


class Elsewhere(Warehouse):
    """Another one, which is not equal to the first."""


@task
def make(size: int) -> bytearray:
    return bytearray(size)


@task
def size_of(value: bytearray) -> int:
    return len(value)


def test_a_stored_value_goes_to_its_dependents_as_it_is_and_not_by_way_of_the_driver() -> None:
    runner = Warehouse()

    @flow(task_runner=runner)
    def main() -> int:
        return size_of.submit(make.submit(LARGE)).result()

    assert main() == LARGE
    assert runner.given == [[], ["Stored"]]
    assert runner.fetched == []


def test_a_small_value_is_not_stored() -> None:
    runner = Warehouse()
    with runner:
        assert size_of.submit(make.submit(10)).result() == 10
    assert runner.shelf == {}


def test_a_stored_value_is_fetched_when_somebody_asks_and_only_once() -> None:
    runner = Warehouse()
    with runner:
        future = make.submit(LARGE)
        assert future.done()
        assert runner.fetched == []
        assert future.result() is future.result()
        assert future.state.is_completed()
    assert runner.fetched == [0]
    assert len(future.result()) == LARGE


def test_a_stored_value_is_fetched_for_a_task_that_runs_elsewhere() -> None:
    runner, other = Warehouse(), Elsewhere()
    with runner:
        assert size_of.with_options(task_runner=other).submit(make.submit(LARGE)).result() == LARGE
    assert runner.fetched == [0]
    assert other.given == [["Parcel"]]


def test_what_is_still_wanted_comes_home_before_the_backend_stops() -> None:
    runner = Warehouse()
    with runner:
        kept = make.submit(LARGE)
        dropped: TaskFuture[Any] | None = make.submit(LARGE)
        dropped = None  # noqa: F841
        gc.collect()
    assert runner.stops == 1
    assert runner.fetched == [0]
    assert len(kept.result()) == LARGE
    with runner:
        # The handle of an earlier start is worth nothing: the value itself travels.
        assert size_of.submit(kept).result() == LARGE
    assert runner.given[-1] == ["Parcel"]


def test_results_of_calls_that_must_not_run_twice_do_not_stay() -> None:
    runner = Warehouse()
    with runner:
        make.with_options(crash_retries=0).submit(LARGE).result()
    assert runner.shelf == {}


def test_a_value_that_is_lost_is_an_error_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    runner = Warehouse()
    with runner:
        lost = make.submit(LARGE)
        runner.burnt = True
        with pytest.raises(CrashedRun, match=r"The result of make-0 is lost: .*the shelf burnt down"):
            lost.result()
        with pytest.raises((CrashedRun, UpstreamFailed), match="make-0"):
            size_of.with_options(task_runner=Elsewhere()).submit(lost).result()
    assert "A result of" in caplog.text
    with pytest.raises(CrashedRun, match="has been stopped since"):
        lost.result()


def test_a_runner_that_stores_nothing_says_so_when_it_is_asked() -> None:
    with pytest.raises(NotImplementedError, match="stores no values"):
        TaskRunner.fetch(Warehouse(), Stored(Warehouse(), 0, 1))
