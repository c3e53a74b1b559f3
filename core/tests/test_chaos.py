"""The runner that has things go wrong: what it injects, what it tells, and that it does the same again."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from turnout import flow, register_context_variable, task
from turnout._serialization import Parcel, dumps
from turnout.errors import CrashedRun, RunnerOptionError
from turnout.runner import Batch, Capabilities, Host, Outcome, OutcomeKind, Stored, TaskRunner
from turnout.testing import ChaosError, ChaosTaskRunner
from turnout.testing._batches import batched
from turnout.worker import run_batch

LEVEL = contextvars.ContextVar("LEVEL", default=0)
register_context_variable(LEVEL)

NOTHING: dict[str, Any] = {
    "crashes": 0.0,
    "losses": 0.0,
    "returns": 0.0,
    "doubles": 0.0,
    "delays": 0.0,
    "slow_slots": False,
}


class Bench(TaskRunner):
    """Runs each batch on a thread of its own, packed; keeps results that are large."""

    capabilities = Capabilities(streams=True, cancel="kill", nested="in_place")

    def start(self, host: Host) -> None:
        self.host = host
        self.sent: list[Batch] = []
        self.cancelled: list[Batch] = []
        self.recalled: list[Batch] = []
        self.threads: list[threading.Thread] = []

    def slots(self) -> int:
        return 4

    def submit(self, batch: Batch) -> None:
        self.sent.append(batch)
        self.threads.append(threading.Thread(target=self.work, args=(batch,)))
        self.threads[-1].start()

    def work(self, batch: Batch) -> None:
        upstream = [self.values(item) for item in batch.upstream]
        run_batch(batch.body, batch.functions, upstream, lambda outcomes: self.host.report(batch, self.kept(outcomes)))

    def values(self, item: Any) -> Any:
        assert not isinstance(item, Stored) or item.runner is self
        return item.handle if isinstance(item, Stored) else item

    def kept(self, outcomes: Any) -> list[Outcome]:
        return [one._replace(data=self.stored(one.data)) if one.size > 1000 else one for one in outcomes]

    def stored(self, parcel: Parcel) -> Stored:
        return Stored(self, parcel.owned(), parcel.nbytes)

    def cancel(self, batch: Batch) -> bool:
        self.cancelled.append(batch)
        return True

    def recall(self, batch: Batch) -> None:
        self.recalled.append(batch)

    def fetch(self, stored: Stored) -> Parcel:
        parcel: Parcel = stored.handle
        return parcel

    def stop(self) -> None:
        for thread in self.threads:
            thread.join()


@task
def double(x: int) -> int:
    return 2 * x


@task
def level() -> int:
    return LEVEL.get()


@task
def long(number: int) -> list[int]:
    return [number] * 2000


@task
def total(*lists: list[int]) -> int:
    return sum(map(sum, lists))


@pytest.fixture(autouse=True, params=["measured", "most"])
def _batches(request: pytest.FixtureRequest) -> Iterator[None]:
    with batched(request.param):
        yield


def doubled(runner: TaskRunner, *, count: int = 60, **options: Any) -> list[Any]:
    @flow(task_runner=runner)
    def main() -> Any:
        return double.with_options(**options).map(range(count))

    results: list[Any] = main()
    return results


EXPECTED = [2 * number for number in range(60)]


@pytest.mark.parametrize(
    ("rate", "kind"),
    [
        ({"crashes": 0.3}, "crash"),
        ({"losses": 0.3}, "loss"),
        ({"returns": 0.5}, "return"),
        ({"doubles": 0.5}, "double"),
        ({"delays": 0.5}, "delay"),
    ],
)
def test_flows_end_as_they_do_without(rate: dict[str, float], kind: str) -> None:
    runner = ChaosTaskRunner(Bench(), **{**NOTHING, **rate})
    assert doubled(runner, crash_retries=50) == EXPECTED
    report = runner.report()
    assert set(report.injected) == {kind}
    assert report.injected[kind] > 0
    assert report.hit == report.survived
    assert (report.hit > 0) is (kind in ("crash", "loss"))
    assert f"{report.injected[kind]} x {kind}" in str(report)


def test_everything_at_once_and_by_default() -> None:
    runner = ChaosTaskRunner(Bench(), 3)
    assert doubled(runner, crash_retries=50) == EXPECTED
    assert {"double", "delay"} <= set(runner.report().injected)


def test_without_any_nothing_is_injected() -> None:
    runner = ChaosTaskRunner(Bench(), **NOTHING)
    assert doubled(runner) == EXPECTED
    assert runner.report().injected == {}
    assert str(runner.report()) == "chaos with seed 0: nothing; 0 of 0 calls hit survived"


def test_failures_are_tried_again_by_tasks_that_retry() -> None:
    runner = ChaosTaskRunner(Bench(), **NOTHING, failures=0.3)
    assert doubled(runner, retries=50) == EXPECTED
    assert runner.report().injected["failure"] > 0
    with pytest.raises(ChaosError, match=r"Task 'double-\d+' was chosen to fail"):
        doubled(ChaosTaskRunner(Bench(), **NOTHING, failures=1.0), count=1)


def test_a_crash_says_that_it_was_injected() -> None:
    with pytest.raises(CrashedRun, match="chaos"):
        doubled(ChaosTaskRunner(Bench(), **{**NOTHING, "crashes": 1.0}), count=1)


def test_the_flows_own_process_is_not_killed() -> None:
    """Where a runner's workers are threads of it, and nobody could know."""
    runner = ChaosTaskRunner(Bench(), **NOTHING, kills=1.0)
    assert doubled(runner) == EXPECTED
    assert runner.report().injected["kill"] == 60
    assert runner.report().hit == 0


def test_context_variables_arrive_with_calls_that_kill() -> None:
    @flow(task_runner=ChaosTaskRunner(Bench(), **NOTHING, kills=1.0))
    def main() -> Any:
        LEVEL.set(7)
        return level.submit()

    assert main() == 7


def test_the_same_seed_hits_the_same_calls() -> None:
    def crashed(seed: int) -> list[bool]:
        @flow(task_runner=ChaosTaskRunner(Bench(), seed, **{**NOTHING, "crashes": 0.5}))
        def main() -> list[bool]:
            futures = double.with_options(crash_retries=0).map(range(40))
            return [future.exception() is not None for future in futures]

        hit: list[bool] = main()
        return hit

    first = crashed(1)
    assert crashed(1) == first
    assert crashed(2) != first
    assert 0 < sum(first) < 40


def test_stored_results_are_those_of_the_inner_runner() -> None:
    @flow(task_runner=ChaosTaskRunner(Bench(), 5, crashes=0.2))
    def main() -> Any:
        lists = long.with_options(crash_retries=50).map(range(20))
        return lists, total.with_options(crash_retries=50).submit(*lists)

    lists, added = main()
    assert lists == [[number] * 2000 for number in range(20)]
    assert added == 2000 * sum(range(20))


class Recorder:
    """A host that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, OutcomeKind, int]] = []
        self.host = Host(lambda batch: [], self.report)

    def report(self, batch: Any, outcomes: Any) -> None:
        self.told += [(batch, outcome.kind, outcome.index) for outcome in outcomes]


class Named:
    def __init__(self, name: str) -> None:
        self.future = self
        self.name = name


class Two:
    """A batch of two calls."""

    def __init__(self) -> None:
        self.calls = [Named("a"), Named("b")]
        self.upstream: list[Any] = []


class Silent(Bench):
    """Runs nothing."""

    def work(self, batch: Batch) -> None:
        pass


def held(recorder: Recorder) -> tuple[ChaosTaskRunner, Silent]:
    """Return a runner that holds back whatever it is given, for ever."""
    inner = Silent()
    runner = ChaosTaskRunner(inner, **{**NOTHING, "delays": 1.0}, max_delay=1e9)
    runner.start(recorder.host)
    return runner, inner


@pytest.mark.parametrize("how", ["cancel", "recall"])
def test_what_was_not_sent_is_taken_back(how: str) -> None:
    recorder = Recorder()
    runner, inner = held(recorder)
    batch: Any = Two()
    runner.submit(batch)
    getattr(runner, how)(batch)
    assert recorder.told == [(batch, OutcomeKind.RETURNED, 0), (batch, OutcomeKind.RETURNED, 1)]
    runner.stop()
    assert inner.sent == inner.cancelled == inner.recalled == []


def test_what_was_sent_is_the_inner_runners_to_cancel() -> None:
    inner = Silent()
    runner = ChaosTaskRunner(inner, **NOTHING)
    runner.start(Recorder().host)
    batch: Any = Two()
    runner.submit(batch)
    assert runner.cancel(batch)
    runner.recall(batch)
    assert inner.sent == inner.cancelled == inner.recalled == [batch]
    runner.stop()


def test_news_of_a_batch_keep_their_order() -> None:
    recorder, inner = Recorder(), Silent()
    runner = ChaosTaskRunner(inner, **{**NOTHING, "delays": 0.5}, max_delay=0.01)
    runner.start(recorder.host)
    batch: Any = Two()
    batch.calls *= 200
    runner.submit(batch)
    # Sent late, or at once; it is told either way.
    for number in range(400):
        inner.host.report(batch, [Outcome(number, OutcomeKind.VALUE, number)])
    runner.stop()
    assert [index for _, _, index in recorder.told] == list(range(400))


def test_slots_go_up_and_down() -> None:
    runner = ChaosTaskRunner(Bench(), **{**NOTHING, "slow_slots": True})
    assert {runner.slots() for _ in range(200)} == {1, 2, 3, 4}
    steady = ChaosTaskRunner(Bench(), **NOTHING)
    assert {steady.slots() for _ in range(20)} == {4}


def test_rates_are_shares_and_a_call_has_one_fate() -> None:
    with pytest.raises(RunnerOptionError, match="crashes=2: give a share, from 0"):
        ChaosTaskRunner(Bench(), crashes=2)
    with pytest.raises(RunnerOptionError, match=r"crashes \+ kills .* are 1\.5"):
        ChaosTaskRunner(Bench(), crashes=0.5, losses=0.5, returns=0.5)


@pytest.mark.parametrize(
    ("name", "value"), [("crashes", "often"), ("doubles", -0.1), ("max_delay", -1), ("delays", None)]
)
def test_a_setting_that_is_no_number_is_named(name: str, value: Any) -> None:
    with pytest.raises(RunnerOptionError, match=f"{name}={value!r}: give"):
        ChaosTaskRunner(Bench(), **{name: value})


def test_it_is_a_recipe_like_others() -> None:
    one = ChaosTaskRunner(Bench(), 7, crashes=0.5)
    assert one == ChaosTaskRunner(Bench(), seed=7, crashes=0.5)
    assert one != ChaosTaskRunner(Bench(), seed=8, crashes=0.5)
    assert repr(one) == "ChaosTaskRunner(inner=Bench(), seed=7, crashes=0.5)"


def test_dumps_and_values_are_as_before() -> None:
    """Values that stayed are fetched by way of the inner runner."""
    runner = ChaosTaskRunner(Bench(), **NOTHING)
    stored = Stored(runner, Stored(runner.inner, dumps([1]), 10), 10)
    assert runner.fetch(stored).load() == [1]
