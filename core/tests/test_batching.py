"""Calls that travel together: which do, and what becomes of them when one fails, crashes, is slow, or is not wanted."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from turnout import TaskFuture, allow_failure, flow, task
from turnout._batching import Batching
from turnout._together import Teller
from turnout.runner import Batch, Capabilities, Host, Outcome, OutcomeKind, TaskRunner
from turnout.testing._batches import batched
from turnout.testing._depot import Depot
from turnout.worker import run_batch

STARTED, VALUE, FAILURE = OutcomeKind.STARTED, OutcomeKind.VALUE, OutcomeKind.FAILURE
CRASHED, LOST, RETURNED = OutcomeKind.CRASHED, OutcomeKind.LOST, OutcomeKind.RETURNED


@pytest.fixture
def _tiny() -> Iterator[None]:
    with batched("most"):
        yield


tiny = pytest.mark.usefixtures("_tiny")


@task
def echo(value: Any = None) -> Any:
    return value


@task
def add(left: Any, right: Any = 1) -> Any:
    return left + right


@task
def fail(*values: Any) -> Any:
    raise ValueError(*values)


# How many


def test_nobody_knows_how_long_the_first_calls_take() -> None:
    with Depot() as depot:
        for number in range(10):
            echo.submit(number)
        assert depot.sizes() == [1, 1]
        depot.work(0)
        assert depot.sizes() == [1, 1, 8]
        depot.work_off(1)


def test_calls_that_take_long_travel_alone() -> None:
    with Depot() as depot:
        for number in range(20):
            echo.submit(number)
        depot.tell(0, Outcome(0, VALUE, 0, seconds=0.1))
        assert depot.sizes() == [1, 1, 1]
        depot.work_off(1)
        assert max(depot.sizes()) > 1, "they take no time after all"


def test_together_they_are_no_more_work_than_allowed() -> None:
    with Depot() as depot:
        for number in range(100):
            echo.submit(number)
        depot.tell(0, Outcome(0, VALUE, 0, seconds=0.005))
        assert depot.sizes() == [1, 1, 4]
        depot.work_off(1)


class Far(Depot):
    """A backend whose workers wait for long when nothing is sent ahead."""

    capabilities = Capabilities(streams=True, cancel="kill", latency=0.02)


@pytest.mark.parametrize("options", [{"batch": False}, {"timeout_seconds": 60}, {"crash_retries": 0}], ids=str)
@pytest.mark.parametrize(("seconds", "ahead"), [(0.0001, 15), (0.0044, 5), (0.1, 1)])
def test_short_calls_that_go_alone_are_sent_ahead(seconds: float, ahead: int, options: dict[str, Any]) -> None:
    alone = echo.with_options(**options)
    with Far() as depot:
        for number in range(30):
            alone.submit(number)
        assert depot.sizes() == [1, 1], "nothing is known of them"
        depot.tell(0, Outcome(0, VALUE, 0, seconds=seconds))
        assert depot.sizes() == [1] * (1 + 1 + ahead)
        depot.tell(1, Outcome(0, VALUE, 1, seconds=seconds))
        alone.submit(30)
        assert depot.sizes() == [1] * (2 + 1 + ahead)
        depot.work_off(2)
        assert depot.sizes() == [1] * 31


def test_calls_that_need_something_are_not_sent_ahead() -> None:
    with Far() as depot:
        for number in range(30):
            echo.with_options(resources={"cpu": 1}).submit(number)
        depot.tell(0, Outcome(0, VALUE, 0, seconds=0.0001))
        assert depot.sizes() == [1, 1]
        depot.work_off(1)


def test_large_results_are_work_too() -> None:
    with Depot() as depot:
        for number in range(100):
            echo.submit(number)
        depot.tell(0, Outcome(0, VALUE, 0, seconds=0.0, size=10_000_000))
        assert depot.sizes() == [1, 1, 1]
        depot.work_off(1)


def test_behind_a_result_that_is_unexpectedly_large_the_rest_is_given_back() -> None:
    repeat = task(lambda size: b"x" * size)
    with Depot() as depot:
        for number in range(2):
            repeat.submit(number)
        for number in range(2):
            depot.tell(number, Outcome(0, VALUE, b"", seconds=0.0))
        busy = [task(lambda: None).submit() for _ in range(2)]
        sizes = [3, 100_000, 5, 200_000, 7]
        futures = [repeat.submit(size) for size in sizes]
        depot.work(2)
        assert [one.kind for one in depot.work(4)] == [VALUE, VALUE, RETURNED, RETURNED, RETURNED]
        assert depot.sizes()[4:] == [5, 3], "one alone does not say much"
        depot.work_off(5)
        assert [len(future.result(0)) for future in futures] == sizes
        depot.work(3)
        assert all(future.done() for future in busy)


def test_what_stays_where_it_was_made_travels_alone() -> None:
    with Depot() as depot:
        for number in range(20):
            echo.submit(number)
        depot.tell(0, Outcome(0, VALUE, 0, seconds=0.0, size=100_000))
        assert depot.sizes() == [1, 1, 1]
        depot.work_off(1)


def test_work_is_spread_over_the_slots() -> None:
    with Depot(4) as depot:
        for number in range(8 + 96):
            echo.submit(number)
        for number in range(8):
            depot.tell(number, Outcome(0, VALUE, 0, seconds=0.0009))
        # The first portion is a part of all; the last ones are small.
        assert depot.sizes()[8:12] == [1 + 95 // 8, 1 + 83 // 8, 1 + 72 // 8, 1 + 62 // 8]
        depot.work_off(8)


def test_what_is_hardly_worth_it_is_not_spread() -> None:
    with Depot(4) as depot:
        for number in range(8 + 100):
            echo.submit(number)
        depot.tell(0, Outcome(0, VALUE, 0, seconds=1e-6))
        assert depot.sizes()[8:] == [100]
        depot.work_off(1)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": False},
        {"timeout_seconds": 60},
        {"crash_retries": 0},
        {"resources": {"cpu": 1}},
        {"dask_options": {"priority": 1}},
    ],
)
@tiny
def test_some_always_travel_alone(options: dict[str, Any]) -> None:
    alone = echo.with_options(**options)
    with Depot() as depot:
        for number in range(4):
            echo.submit(number)
        alone.submit(4)
        for number in range(5, 9):
            echo.submit(number)
        alone.submit(9)
        depot.work_off()
        assert depot.sizes() == [1, 1, 2, 1, 4, 1]


def test_a_runner_may_want_none_to_travel_together() -> None:
    depot = Depot()
    depot.max_batch_seconds = 0
    with depot:
        for number in range(10):
            echo.submit(number)
        depot.work_off()
    assert depot.sizes() == [1] * 10


def test_a_call_that_gets_longer_is_noticed_at_once() -> None:
    batching = Batching(0.02)
    with Depot() as depot:
        echo.submit()
        (call,) = depot.batches[0].calls
        for _ in range(20):
            batching.learn(call, 1e-5, 0)
        assert batching.worth(call) == pytest.approx(2e-5)
        batching.learn(call, 0.1, 0)
        assert batching.worth(call) is None
        for _ in range(20):
            batching.learn(call, 1e-5, 0)
        assert batching.worth(call) is not None
        depot.work_off()


# What depends on each other


@tiny
def test_a_chain_travels_together() -> None:
    with Depot() as depot:
        last = echo.submit(0)
        for _ in range(20):
            last = add.submit(last)
        assert depot.sizes() == [1]
        depot.work(0)
        assert depot.sizes() == [1, 20]
        depot.work(1)
        assert last.result(0) == 20


@pytest.mark.parametrize(
    ("seconds", "shape"),
    # As wide at the base as it takes to be worth a batch; and all together if it never is.
    [(0.001, [4, 2]), (0.0001, [6, 4, 2]), (1e-6, [16] * 8)],
    ids=["long", "short", "tiny"],
)
def test_a_grid_goes_in_triangles_where_that_pays(seconds: float, shape: list[int]) -> None:
    unknown = task(lambda: None)
    cell = task(max)
    with Depot(2) as depot:
        for number in range(4):
            cell.submit(number, number)
        for number in range(4):
            depot.tell(number, Outcome(0, VALUE, number, seconds=seconds))
        busy = [unknown.submit() for _ in range(4)]
        row: list[Any] = [*range(16)]
        rows = [row := [cell.submit(row[i - 1], row[i], row[(i + 1) % 16]) for i in range(16)] for _ in range(8)]
        depot.work(4)
        place = {future: number for number, each in enumerate(rows) for future in each}
        counts = Counter(place[call.future] for call in depot.batches[8].calls)
        assert [counts[number] for number in sorted(counts)] == shape
        depot.work_off(5)
        assert [future.result(0) for future in row] == [15] * 16
        assert all(future.done() for future in busy)


def test_those_that_are_needed_together_go_together() -> None:
    with Depot(2) as depot:
        for number in range(4):
            echo.submit(number)
        add.submit(0)
        for number in range(4):
            depot.tell(number, Outcome(0, VALUE, number, seconds=0.0004))
        depot.tell(4, Outcome(0, VALUE, 1, seconds=0.0004))
        busy = [task(lambda: None).submit() for _ in range(4)]
        one, _, _, four = [echo.submit(number) for number in range(4)]
        both = add.submit(one, four)
        depot.work(5)
        assert depot.names(9) == ["echo-4", "echo-7", "add-1"]
        depot.work_off(6)
        assert both.result(0) == 3
        assert all(future.done() for future in busy)


@tiny
@pytest.mark.parametrize(("size", "batch"), [(1, ["echo-1"]), (2, ["echo-1", "echo-5", "echo-6"])])
def test_on_one_slot_none_is_taken_past_a_call_that_was_sent(size: int, batch: list[str]) -> None:
    with Depot(size) as depot:
        first = echo.submit()
        waited = echo.submit(wait_for=[first])
        sent = [echo.submit() for _ in range(2 * size - 1)]
        late = [echo.submit(), echo.submit()]
        assert depot.sizes() == [1] * (2 * size)
        depot.work(0)
        assert depot.names(2 * size) == batch
        depot.work_off(1)
        assert all(future.done() for future in (waited, *sent, *late))


class Watched(dict[Any, bool]):
    """What a call needs, and how much of that was looked at."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        Watched.looks += len(self)
        return super().__iter__()


@pytest.mark.parametrize("size", [50, 200])
def test_where_each_needs_all_each_need_is_looked_at_a_few_times(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "looks", 0)
    with Depot(2) as depot:
        first = echo.map(range(size))
        second = [echo.submit(first) for _ in range(size)]
        for future in second:
            assert future._call is not None
            future._call.dependencies = Watched(future._call.dependencies or {})
        depot.work_off(0)
        assert [future.result() for future in second] == [list(range(size))] * size
    assert Watched.looks < 20 * size**2, Watched.looks / size**2


def test_what_opens_out_is_spread() -> None:
    with Depot(4) as depot:
        for _ in range(8):
            echo.submit()
        for number in range(8):
            depot.tell(number, Outcome(0, VALUE, 0, seconds=0.001))
        unknown = task(lambda: None)
        busy = [unknown.submit() for _ in range(8)]
        root = echo.submit(1)
        one = echo.submit(root)
        wide = [echo.submit(one) for _ in range(16)]
        last = echo.submit([echo.submit(each) for each in wide])
        depot.work_off(8)
        assert last.result(0) == [1] * 16
        assert all(each.done() for each in busy)
        # The root with what follows it; then, of what can go on side by side, no more on one worker than its share.
        sizes = depot.sizes()[16:]
        assert sizes[0] == 2
        assert max(sizes[1:]) <= 8
        assert len(sizes) >= 5


def test_on_one_slot_all_goes_along() -> None:
    with Depot(1) as depot:
        echo.submit()
        echo.submit()
        for number in range(2):
            depot.tell(number, Outcome(0, VALUE, 0, seconds=0.0001))
        busy = [echo.with_options(batch=False).submit() for _ in range(2)]
        root = echo.submit(1)
        wide = [echo.submit(root) for _ in range(60)]
        for number in (2, 3):
            # Told, for here they may take long, and then others would not go together.
            depot.tell(number, Outcome(0, VALUE, None, seconds=0.0001))
        depot.work_off(4)
        assert {each.result(0) for each in wide} == {1}
        assert max(depot.sizes()) == 61
        assert all(each.done() for each in busy)


@tiny
def test_calls_go_with_all_that_they_need_or_wait() -> None:
    with Depot() as depot:
        depot_is_busy = [echo.submit(None), echo.submit(None)]
        one, two = echo.submit([1]), echo.submit([2])
        elsewhere = depot_is_busy[1]
        both = add.submit(one, two)
        late = echo.submit([both, elsewhere])
        depot.work(0)
        assert depot.names(2) == ["echo-2", "echo-3", "add-0"]
        depot.work(2)
        assert both.result(0) == [1, 2]
        assert len(depot.batches) == 3
        depot.work_off(1)
        assert late.result(0) == [[1, 2], None]


def test_what_waits_behind_calls_that_are_given_back_is_recalled_where_order_counts() -> None:
    for size, recalled in ((1, True), (2, False)):
        with Depot(size) as depot:
            futures = [echo.submit(number) for number in range(2 * size + 5)]
            for number in range(2 * size):
                depot.tell(number, Outcome(0, VALUE, 0, seconds=0.0))
            futures += [echo.submit(number) for number in range(5)]
            first, second = 2 * size, 2 * size + 1
            assert len(depot.batches[second].calls) == 1
            depot.tell(first, Outcome(0, STARTED), Outcome(1, RETURNED, seconds=0.04))
            assert (depot.batches[second] in depot.recalled) is recalled
            depot.work_off(first)
            assert all(future.done() for future in futures)


@tiny
def test_what_needs_a_call_that_failed_never_begins() -> None:
    with Depot() as depot:
        root = echo.submit(0)
        broken = fail.submit(root)
        behind = add.submit(broken)
        far = add.submit(behind)
        beside = add.submit(root)
        depot.work(0)
        assert len(depot.batches[1].calls) == 4
        outcomes = depot.work(1)
        assert [(one.index, one.kind) for one in outcomes] == [(0, FAILURE), (1, RETURNED), (2, RETURNED), (3, VALUE)]
        assert behind.state.name == far.state.name == "UpstreamFailed"
        assert beside.result(0) == 1
        assert len(depot.batches) == 2
        broken.exception()


@tiny
def test_what_needs_a_call_that_is_tried_again_waits_for_that() -> None:
    tries: list[int] = []

    @task(retries=1)
    def second_time(value: int) -> int:
        tries.append(value)
        if len(tries) == 1:
            raise ValueError
        return value + 10

    with Depot() as depot:
        root = echo.submit(0)
        late = second_time.submit(root)
        behind = add.submit(late)
        depot.work(0)
        depot.work(1)
        assert not behind.done()
        depot.work_off(2)
        assert behind.result(0) == 11


@tiny
def test_failures_that_are_allowed_come_by_way_of_the_engine() -> None:
    with Depot() as depot:
        root = echo.submit(0)
        broken = fail.submit(root)
        told = echo.submit(allow_failure(broken))
        depot.work(0)
        depot.work_off(1)
        assert isinstance(told.result(0), ValueError)
        assert depot.sizes() == [1, 2, 1]


@tiny
def test_what_only_waits_waits_in_the_batch_too() -> None:
    with Depot() as depot:
        root = echo.submit(0)
        broken = fail.submit(root)
        never = echo.submit(1, wait_for=[broken])
        then = echo.submit(2, wait_for=[root])
        depot.work(0)
        depot.work_off(1)
        assert then.result(0) == 2
        assert never.state.name == "UpstreamFailed"
        broken.exception()


@tiny
def test_parts_and_keywords_and_containers_find_their_values() -> None:
    @task
    def gather(*values: Any, **named: Any) -> Any:
        return values, named

    with Depot() as depot:
        root = echo.submit({"a": [1, 2], "b": 3})
        first = echo.submit(root["a"])
        everything = gather.submit(first, [first, {"deep": root["b"]}], here=first, there=(root["a"][0],))
        depot.work(0)
        depot.work_off(1)
        assert everything.result(0) == (([1, 2], [[1, 2], {"deep": 3}]), {"here": [1, 2], "there": (1,)})
        assert depot.sizes() == [1, 2]


@tiny
def test_what_can_not_be_packed_takes_its_dependents_along_and_no_others() -> None:
    with Depot() as depot:
        root = echo.submit(0)
        bad = add.submit(root, threading.Lock())
        behind = add.submit(bad)
        good = add.submit(root)
        depot.work(0)
        depot.work_off(1)
        assert good.result(0) == 1
        assert behind.state.name == "UpstreamFailed"
        assert "can't be pickled" in str(bad.exception())


@tiny
def test_later_calls_do_not_change_what_earlier_ones_returned() -> None:
    shared = np.zeros(1000)

    @task
    def count(_: Any) -> Any:
        shared[:] += 1
        return shared

    with Depot() as depot:
        root = echo.submit(0)
        counts = [count.submit(root) for _ in range(5)]
        doubled = [add.submit(each, each) for each in counts]
        depot.work(0)
        depot.work(1)
        first = counts[0].result(0)[0]
        assert [each.result(0)[0] for each in counts] == [first + number for number in range(5)]
        assert [each.result(0)[0] for each in doubled] == [2 * (first + number) for number in range(5)]


@tiny
def test_a_value_may_be_told_of_after_those_that_needed_it() -> None:
    with Depot() as depot:
        futures = [echo.submit(0)]
        for _ in range(4):
            futures.append(add.submit(futures[-1]))
        depot.work(0)
        batch = depot.batches[1]
        outcomes: list[Outcome] = []
        run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
        depot.tell(1, *outcomes[1:])
        assert not any(future.done() for future in futures[1:])
        depot.tell(1, outcomes[0])
        assert [future.result(0) for future in futures] == [0, 1, 2, 3, 4]
        assert len(depot.batches) == 2


@tiny
def test_a_value_that_is_lost_is_made_again_and_what_came_of_it_counts() -> None:
    with Depot() as depot:
        root = echo.submit(0)
        large, small = add.submit(root, 1), echo.submit(None)
        behind = add.submit(large, 1)
        depot.work(0)
        assert depot.names(2) == ["add-0", "add-1"]
        depot.tell(2, Outcome(1, VALUE, 2), Outcome(0, LOST, "signal 9"))
        depot.work_off(1)
        assert (large.result(0), behind.result(0), small.result(0)) == (1, 2, None)
        assert depot.sizes() == [1, 1, 2, 1]


@tiny
def test_what_came_of_a_call_whose_need_was_cancelled_is_forgotten() -> None:
    with Depot() as depot:
        root = echo.submit(0)
        middle = add.submit(root, 1)
        last = add.submit(middle, 1)
        depot.work(0)
        depot.tell(1, Outcome(1, VALUE, 2))
        assert middle.cancel()
        depot.tell(1, Outcome(0, VALUE, 1))
        assert last.state.name == "Cancelled"
        assert sum(depot.sizes()) == 3


# Crashes


@tiny
def test_nobody_knows_who_killed_a_worker_so_each_goes_alone() -> None:
    with Depot() as depot:
        futures = [echo.submit(number) for number in range(7)]
        depot.work(0)
        assert depot.sizes() == [1, 1, 5]
        depot.tell(2, Outcome(0, VALUE, 2), *(Outcome(index, LOST, "signal 9") for index in range(1, 5)))
        depot.work(1)
        depot.work_off(3)
        assert depot.sizes() == [1, 1, 5, 1, 1, 1, 1]
        assert [future.result(0) for future in futures] == list(range(7))


@tiny
def test_who_is_known_to_have_killed_it_pays() -> None:
    with Depot() as depot:
        [echo.submit(number) for number in range(2)]
        guilty, innocent = echo.with_options(crash_retries=1).submit(2), echo.submit(3)
        depot.work(0)
        depot.tell(2, Outcome(0, CRASHED, "signal 9"), Outcome(1, RETURNED))
        assert not guilty.done()
        depot.work(1)
        assert depot.sizes()[3:] == [1, 1]
        depot.tell(3, Outcome(0, CRASHED, "signal 9"))
        depot.work(4)
        assert "signal 9" in str(guilty.exception(0))
        assert innocent.result(0) == 3


# What is not wanted any more


@tiny
def test_a_call_that_is_cancelled_has_the_rest_given_back() -> None:
    with Depot() as depot:
        futures = [echo.submit(number) for number in range(6)]
        depot.work(0)
        assert depot.sizes() == [1, 1, 4]
        assert futures[4].cancel()
        assert futures[5].cancel()
        assert (depot.recalled, depot.cancelled) == ([depot.batches[2]], [])
        depot.tell(2, Outcome(0, VALUE, 2), Outcome(1, RETURNED), Outcome(2, RETURNED), Outcome(3, RETURNED))
        depot.work(1)
        depot.work_off(3)
        assert [future.result(0) for future in futures[:4]] == [0, 1, 2, 3]
        assert sum(depot.sizes()) == 7, "those that were cancelled were not sent again"


class Unready(Depot):
    """Knows nothing of a batch before it is submitted, and something is done just then."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def submit(self, batch: Batch) -> None:
        if len(batch.calls) > 1:
            self.meanwhile()
        super().submit(batch)

    def recall(self, batch: Batch) -> None:
        if batch in self.batches:
            super().recall(batch)


@tiny
def test_a_call_that_is_cancelled_while_its_batch_is_submitted() -> None:
    futures: list[TaskFuture[Any]] = []
    with Unready(lambda: futures[3].cancel()) as depot:
        assert isinstance(depot, Unready)
        futures += [echo.submit(), echo.submit()]
        futures += [echo.submit(number) for number in range(4)]
        depot.work(0)
        assert futures[3].cancelled()
        assert depot.recalled == [depot.batches[2]]
        depot.tell(2, Outcome(0, VALUE, 0), *(Outcome(index, RETURNED) for index in range(1, 4)))
        depot.work_off(3)
        depot.work(1)
        assert [future.cancelled() for future in futures] == [False, False, False, True, False, False]


def test_a_cancel_waits_until_what_was_sent_can_not_begin_any_more() -> None:
    class Slow(Depot):
        def cancel(self, batch: Batch) -> bool:
            threading.Thread(target=self.give_back, args=(batch,)).start()
            return True

        def give_back(self, batch: Batch) -> None:
            time.sleep(0.05)
            returned.append(batch)
            self.host.report(batch, [Outcome(0, RETURNED)])

    returned: list[Batch] = []
    with Slow() as depot:
        echo.submit(0)
        waiting = echo.submit(1)
        assert waiting.cancel()
        assert returned == [depot.batches[1]]
        depot.work(0)


@tiny
def test_a_running_call_is_stopped_once_the_others_are_safe() -> None:
    with Depot() as depot:
        futures = [echo.submit(number) for number in range(5)]
        depot.work(0)
        depot.tell(2, Outcome(1, STARTED))
        assert futures[3].cancel()
        assert not depot.cancelled
        depot.tell(2, Outcome(0, VALUE, 2), Outcome(2, RETURNED))
        assert depot.cancelled == [depot.batches[2]]
        depot.tell(2, Outcome(1, CRASHED, "stopped"))
        depot.work(1)
        depot.work_off(3)
        assert futures[4].result(0) == 4


@tiny
def test_a_chain_that_is_cancelled_in_its_middle() -> None:
    with Depot() as depot:
        futures = [echo.submit(0)]
        for _ in range(9):
            futures.append(add.submit(futures[-1]))
        depot.work(0)
        futures[5].cancel()
        depot.work(1)
        assert [future.state.name for future in futures] == ["Completed"] * 5 + ["Cancelled"] * 5
        assert len(depot.batches) == 2


# What the worker says, and when


class Ear:
    """Takes outcomes, and lets a test wait for them."""

    def __init__(self) -> None:
        self.heard: list[list[tuple[int, OutcomeKind]]] = []
        self.changed = threading.Condition()

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        with self.changed:
            self.heard.append([(outcome.index, outcome.kind) for outcome in outcomes])
            self.changed.notify_all()

    def all(self) -> list[tuple[int, OutcomeKind]]:
        return [item for heard in self.heard for item in heard]

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 10)


def test_short_calls_are_told_of_together() -> None:
    ear = Ear()
    teller = Teller(ear, 3, patience=60)
    for index in range(3):
        assert teller.may_begin(index)
        teller.started(index)
        teller.add([Outcome(index, VALUE)])
    teller.end()
    assert [item for item in ear.all() if item[1] is not STARTED] == [(index, VALUE) for index in range(3)]


def test_of_a_longer_call_it_is_told_that_it_runs_and_what_was_before_it() -> None:
    ear = Ear()
    teller = Teller(ear, 2, patience=60)
    teller.may_begin(0)
    teller.started(0)
    teller.add([Outcome(0, VALUE)])
    teller.may_begin(1)
    teller.started(1)
    ear.wait(lambda: (1, STARTED) in ear.all())
    assert (0, VALUE) in ear.all()
    teller.add([Outcome(1, VALUE)])
    teller.end()
    assert ear.all()[-1] == (1, VALUE)


def test_what_waits_behind_a_long_call_is_given_back_while_that_runs() -> None:
    ear = Ear()
    teller = Teller(ear, 3, patience=0.03)
    teller.may_begin(0)
    teller.started(0)
    ear.wait(lambda: (2, RETURNED) in ear.all())
    assert (1, RETURNED) in ear.all()
    assert not teller.may_begin(1)
    teller.add([Outcome(0, VALUE)])
    teller.end()
    assert ear.all().count((0, STARTED)) == 1
    assert ear.all().count((1, RETURNED)) == 1
    assert ear.all()[-1] == (0, VALUE)


def test_large_results_do_not_wait() -> None:
    ear = Ear()
    teller = Teller(ear, 2, patience=60)
    teller.may_begin(0)
    teller.add([Outcome(0, VALUE, size=10_000_000)])
    assert ear.heard == [[(0, VALUE)]]
    teller.end()
    assert ear.heard[1:] == [[(1, RETURNED)]]


def test_what_calls_log_is_sent_at_once_and_after_what_was_before_it() -> None:
    ear = Ear()
    teller = Teller(ear, 2, patience=60)
    teller.may_begin(0)
    teller.add([Outcome(0, VALUE)])
    teller.may_begin(1)
    teller.add([Outcome(1, OutcomeKind.RECORD)])
    assert ear.heard == [[(0, VALUE), (1, OutcomeKind.RECORD)]]
    teller.end()


class Book:
    """A ledger that writes down what it is told."""

    def __init__(self, last: int, room: int = 100) -> None:
        self.last, self.room = last, room
        self.entries: list[Any] = []

    def begin(self, index: int) -> bool:
        self.entries.append(("begin", index))
        return index <= self.last

    def note(self, outcome: Outcome) -> bool:
        self.entries.append(("note", outcome.index))
        return len(self.entries) < self.room

    def turn(self) -> None:
        self.entries.append("turn")

    def sent(self) -> None:
        self.entries.append("sent")


def test_a_ledger_knows_what_is_to_be_sent() -> None:
    ear, book = Ear(), Book(last=0)
    teller = Teller(ear, 3, 60, book)
    assert teller.may_begin(0)
    teller.add([Outcome(0, VALUE)])
    assert not teller.may_begin(1)
    teller.end()
    assert book.entries == [("begin", 0), ("note", 0), ("begin", 1), "turn", "sent"]
    assert ear.heard == [[(0, VALUE), (1, RETURNED), (2, RETURNED)]]


def test_a_ledger_that_is_full_has_everything_sent() -> None:
    ear, book = Ear(), Book(last=9, room=1)
    teller = Teller(ear, 2, 60, book)
    teller.may_begin(0)
    teller.add([Outcome(0, VALUE)])
    assert ear.heard == [[(0, VALUE)]]
    teller.end()


def test_a_call_that_holds_up_others_is_known_to_be_long() -> None:
    with Depot() as depot:
        for number in range(12):
            echo.submit(number)
        depot.work(0)
        assert depot.sizes() == [1, 1, 10]
        depot.tell(2, Outcome(3, STARTED), *(Outcome(i, RETURNED, seconds=0.05 * (i == 4)) for i in range(4, 10)))
        depot.tell(2, *(Outcome(index, VALUE, index) for index in range(3)))
        assert depot.sizes() == [1, 1, 10]
        depot.tell(1, Outcome(0, VALUE, 1, seconds=0.05))
        assert depot.sizes() == [1, 1, 10, 1], "they are long now"
        depot.tell(2, Outcome(3, VALUE, 3, seconds=0.5))
        depot.work_off(3)


# Races


class Careless(TaskRunner):
    """Runs batches on threads; loses some outcomes, gives some batches back, tells the rest in pieces."""

    capabilities = Capabilities(streams=True, cancel="cooperative")

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.losses: Counter[str] = Counter()
        self.largest = 0

    def start(self, host: Host) -> None:
        self.host = host
        self.pool = ThreadPoolExecutor(3)

    def slots(self) -> int:
        return 3

    def submit(self, batch: Batch) -> None:
        self.largest = max(self.largest, len(batch.calls))
        fate, pause, cut = self.dice.random(), self.dice.random() * 0.002, self.dice.random()
        self.pool.submit(self._run, batch, fate, pause, cut)

    def _run(self, batch: Batch, fate: float, pause: float, cut: float) -> None:
        time.sleep(pause)
        count = len(batch.calls)
        if fate < 0.1:
            self.host.report(batch, [Outcome(index, RETURNED) for index in range(count)])
            return
        news: list[Outcome] = []
        run_batch(batch.body, batch.functions, batch.upstream, news.extend)
        if fate < 0.3:
            kept = news[: int(cut * len(news))]
            told = {outcome.index for outcome in kept if outcome.kind >= VALUE}
            lost = [Outcome(index, LOST, "bad luck") for index in range(count) if index not in told]
            self.losses.update(batch.calls[outcome.index].future.name for outcome in lost)
            self.host.report(batch, [*kept, *lost])
            return
        if fate < 0.6:
            # Large values are told of last.
            late = {index for index in range(count) if (index * 7 + count) % 5 == 0}
            news.sort(key=lambda outcome: outcome.kind is VALUE and outcome.index in late)
        while news:
            piece, news = news[:7], news[7:]
            self.host.report(batch, piece)

    def stop(self) -> None:
        self.pool.shutdown()


RUNS: Counter[str] = Counter()
NUMBERS = itertools.count()


@task(crash_retries=100)
def step(graph: int, number: int, *before: int) -> int:
    RUNS[f"{graph}/{number}"] += 1
    if number % 17 == 13:
        raise ValueError(number)
    return number + sum(before)


def told(future: TaskFuture[int]) -> str:
    return repr(future.exception() or future.result()).partition(" did not run")[0]


def expected(edges: Sequence[Sequence[int]]) -> list[str]:
    values: dict[int, int] = {}
    texts = []
    for number, before in enumerate(edges):
        if any(other not in values for other in before):
            texts.append(f"UpstreamFailed('step-{number}")
        elif number % 17 == 13:
            texts.append(f"ValueError({number})")
        else:
            values[number] = number + sum(values[other] for other in before)
            texts.append(str(values[number]))
    return texts


@pytest.mark.parametrize("how", ["most", "random"])
@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_give_what_they_should(seed: int, how: str) -> None:
    dice = random.Random(seed)
    edges = [sorted(dice.sample(range(number), min(number, dice.choice((0, 1, 1, 2))))) for number in range(150)]
    runner = Careless(seed)
    me = next(NUMBERS)

    @flow(task_runner=runner)
    def graph() -> list[str]:
        futures: list[TaskFuture[int]] = []
        for number, before in enumerate(edges):
            futures.append(step.submit(me, number, *(futures[other] for other in before)))
        return [told(future) for future in futures]

    with batched(how):
        assert graph() == expected(edges)
    assert runner.largest > 1
    for number in range(150):
        assert RUNS[f"{me}/{number}"] <= 1 + runner.losses[f"step-{number}"], "once, and once for each loss"


@pytest.mark.parametrize("seed", range(20))
def test_random_cancels_end_everything(seed: int) -> None:
    dice = random.Random(seed)
    runner = Careless(seed)
    me = next(NUMBERS)

    @flow(task_runner=runner)
    def graph() -> list[str]:
        futures: list[TaskFuture[int]] = []
        for number in range(120):
            before = dice.sample(range(number), min(number, dice.choice((0, 1, 2))))
            futures.append(step.submit(me, number, *(futures[other] for other in before)))
            if dice.random() < 0.1:
                dice.choice(futures).cancel()
        for future in futures:
            future.wait()
        return [future.state.name for future in futures]

    with batched("most"):
        names = set(graph())
    assert names <= {"Completed", "Failed", "UpstreamFailed", "Cancelled"}
