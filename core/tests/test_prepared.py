"""Batches that stand ready: they go before the news that complete them are taken in, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turnout import TaskFuture, get_run_context, task
from turnout.runner import Outcome, OutcomeKind
from turnout.testing._batches import batched
from turnout.testing._depot import Depot
from turnout.worker import run_batch

VALUE, FAILURE, RETURNED, LOST = OutcomeKind.VALUE, OutcomeKind.FAILURE, OutcomeKind.RETURNED, OutcomeKind.LOST


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with batched("most"):
        yield


@task
def echo(value: Any = None) -> Any:
    return value


@task
def add(left: Any, right: Any = 1) -> Any:
    return left + right


@task
def fail(*values: Any) -> Any:
    raise ValueError(*values)


def work_in_parts(depot: Depot, number: int, *parts: int) -> None:
    """Run a batch as a worker does, and tell what came of it in as many outcomes at a time."""
    batch = depot.batches[number]
    outcomes: list[Outcome] = []
    run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
    begin = 0
    for part in parts:
        depot.tell(number, *outcomes[begin : begin + part])
        begin += part
    depot.tell(number, *outcomes[begin:])


def started(depot: Depot, count: int) -> list[TaskFuture[Any]]:
    """Have a batch of so many independent calls under way, as number 2, and return their futures."""
    first = [echo.submit(), echo.submit()]
    futures = [echo.submit(number) for number in range(count)]
    depot.work(0)
    depot.work(1)
    assert depot.sizes() == [1, 1, count]
    assert [one.result(0) for one in first] == [None, None]
    return futures


def test_a_batch_goes_before_the_news_that_complete_it_are_taken_in() -> None:
    with Depot() as depot:
        _, last = started(depot, 2)
        sent: list[list[int]] = []
        last.add_done_callback(lambda _: sent.append(depot.sizes()))
        end = add.submit(add.submit(last, 1), 2)
        work_in_parts(depot, 2, 1)
        assert sent == [[1, 1, 2, 2]]
        depot.work(3)
        assert end.result(0) == 4
        assert depot.sizes() == [1, 1, 2, 2]


def test_a_chain_of_such_batches() -> None:
    with Depot() as depot:
        _, last = started(depot, 2)
        for number in range(1, 6):
            last = add.submit(add.submit(last, number), number)
            work_in_parts(depot, 1 + number, 1)
        depot.work(7)
        assert last.result(0) == 1 + 2 * sum(range(1, 6))
        assert depot.sizes() == [1, 1] + [2] * 6


def test_each_call_gets_a_value_of_its_own() -> None:
    @task
    def spoil(values: list[int]) -> list[int]:
        values.append(99)
        return values

    with Depot() as depot:
        root, _ = started(depot, 2)
        lists = [echo.submit([root]) for _ in range(2)]
        depot.work(2)
        spoilt = [spoil.submit(lists[1]) for _ in range(3)]
        work_in_parts(depot, 3, 1)
        assert depot.sizes() == [1, 1, 2, 2, 3]
        depot.work(4)
        assert [one.result(0) for one in spoilt] == [[0, 99]] * 3
        assert lists[1].result(0) == [0]


@pytest.mark.parametrize("kind", [RETURNED, LOST])
def test_it_does_not_go_if_what_it_needs_must_run_again(kind: OutcomeKind) -> None:
    with Depot() as depot:
        _, last = started(depot, 2)
        behind = add.submit(last, 7)
        depot.tell(2, Outcome(0, VALUE, 0))
        depot.tell(2, Outcome(1, kind, "bad luck"))
        assert depot.names(3)[0] == "echo-3"
        depot.work_off(3)
        assert behind.result(0) == 8


def test_it_does_not_go_if_what_it_needs_fails() -> None:
    with Depot() as depot:
        root, _ = started(depot, 2)
        broken = fail.submit(root)
        depot.work(2)
        behind = add.submit(broken)
        tail = add.submit(behind)
        depot.work(3)
        assert tail.state.name == behind.state.name == "UpstreamFailed"
        assert depot.sizes() == [1, 1, 2, 1]
        broken.exception()


def test_a_call_whose_turn_has_come_waits_for_nothing_else() -> None:
    with Depot() as depot:
        _, one, two = started(depot, 3)
        first, second = add.submit(one, 5), add.submit(two, 6)
        depot.tell(2, Outcome(0, VALUE, 0))
        depot.tell(2, Outcome(1, VALUE, 1))
        assert depot.names(3) == ["add-0"]
        depot.work(3)
        assert first.result(0) == 6
        depot.tell(2, Outcome(2, VALUE, 2))
        depot.work_off(4)
        assert second.result(0) == 8


def test_it_counts_as_the_first_attempt_after_all() -> None:
    @task
    def attempt(_: Any) -> int:
        return get_run_context().attempt

    with Depot() as depot:
        _, one, two = started(depot, 3)
        first, second = attempt.submit(one), attempt.submit(two)
        depot.tell(2, Outcome(0, VALUE, 0))
        depot.tell(2, Outcome(1, VALUE, 1))
        depot.tell(2, Outcome(2, VALUE, 2))
        depot.work_off(3)
        assert [first.result(0), second.result(0)] == [1, 1]


def test_a_cancelled_call_does_not_go_with_it() -> None:
    with Depot() as depot:
        _, last = started(depot, 2)
        unwanted, wanted = add.submit(last, 1), add.submit(last, 2)
        depot.tell(2, Outcome(0, VALUE, 0))
        assert unwanted.cancel()
        depot.tell(2, Outcome(1, VALUE, 1))
        assert depot.names(3) == ["add-1"]
        depot.work(3)
        assert wanted.result(0) == 3


def test_what_was_submitted_before_goes_before() -> None:
    with Depot() as depot:
        root, last = started(depot, 2)
        alone = echo.with_options(batch=False, name="alone")
        long = [alone.submit(None, wait_for=[root]) for _ in range(2)]
        behind = add.submit(last, 1)
        depot.tell(2, Outcome(0, VALUE, 0))
        # They travel one at a time.
        assert depot.sizes() == [1, 1, 2]
        depot.tell(2, Outcome(1, VALUE, 1))
        depot.work_off(3)
        assert [depot.names(number) for number in (3, 4, 5)] == [["alone-0"], ["alone-1"], ["add-0"]]
        assert behind.result(0) == 2
        assert [one.result(0) for one in long] == [None, None]


def test_what_only_waits_is_waited_for() -> None:
    with Depot() as depot:
        _, last = started(depot, 2)
        other = echo.submit("other", wait_for=[last])
        both = echo.submit([last], wait_for=[last])
        depot.tell(2, Outcome(0, VALUE, 0))
        assert len(depot.batches) == 3
        depot.tell(2, Outcome(1, VALUE, 1))
        assert depot.names(3) == ["echo-4", "echo-5"]
        depot.work(3)
        assert other.result(0) == "other"
        assert both.result(0) == [1]


def test_what_needs_others_too_waits_for_them() -> None:
    with Depot() as depot:
        alone = echo.with_options(batch=False)
        _, last = started(depot, 2)
        other = alone.submit(8)
        both = add.submit(last, other)
        work_in_parts(depot, 2, 1)
        assert depot.sizes() == [1, 1, 2, 1]
        depot.work_off(3)
        assert both.result(0) == 9


def test_what_can_not_be_packed_is_refused_in_its_turn() -> None:
    with Depot() as depot:
        _, last = started(depot, 2)
        bad, good = echo.submit([last, threading.Lock()]), add.submit(last, 1)
        work_in_parts(depot, 2, 1)
        depot.work_off(3)
        assert "can't be pickled" in str(bad.exception())
        assert good.result(0) == 2


class Meanwhile:
    """Something is done while this is pickled."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def __reduce__(self) -> tuple[type[list[Any]], tuple[()]]:
        self.action()
        return list, ()


def elsewhere(action: Callable[[], object]) -> Callable[[], object]:
    def act() -> None:
        thread = threading.Thread(target=action)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    return act


@pytest.mark.parametrize("told", [Outcome(1, VALUE, 1), Outcome(1, RETURNED)])
def test_news_that_come_while_it_is_packed_are_not_missed(told: Outcome) -> None:
    with Depot() as depot:
        _, last = started(depot, 2)
        # The second time, when it is packed for good, there is nothing more to tell.
        news = iter([told])

        def tell() -> None:
            for one in news:
                depot.tell(2, one)

        behind = echo.submit([last, Meanwhile(elsewhere(tell))])
        depot.tell(2, Outcome(0, VALUE, 0))
        depot.work_off(3)
        assert behind.result(0) == [1, []]
        names = [name for number in range(3, len(depot.batches)) for name in depot.names(number)]
        assert names.count("echo-4") == 1, "it runs once"


def test_a_call_that_is_cancelled_while_it_is_packed() -> None:
    with Depot() as depot:
        _, last = started(depot, 2)
        futures: list[Any] = []
        unwanted = echo.submit([last, Meanwhile(elsewhere(lambda: futures[0].cancel()))])
        futures.append(unwanted)
        wanted = add.submit(last, 1)
        work_in_parts(depot, 2, 1)
        depot.work_off(3)
        assert unwanted.cancelled()
        assert wanted.result(0) == 2
        assert [depot.names(number) for number in range(3, len(depot.batches))] == [["add-0"]]


@pytest.mark.parametrize(("count", "sizes", "sent"), [(6000, [2000] * 3, [4, 5, 5]), (2100, [2000, 100], [3, 4])])
def test_behind_a_batch_that_is_all_to_come_only_a_full_one_stands_ready(
    count: int, sizes: list[int], sent: list[int]
) -> None:
    with Depot() as depot:
        last: TaskFuture[Any] = echo.submit(0)
        echo.submit()
        chain = [last := add.submit(last) for _ in range(count)]
        depot.work(0)
        depot.work(1)
        seen: list[int] = []
        for number in range(2, 2 + len(sizes)):
            calls = depot.batches[number].calls
            calls[-1].future.add_done_callback(lambda _: seen.append(len(depot.batches)))
            depot.tell(number, *(Outcome(index, VALUE, number) for index in range(len(calls))))
        assert depot.sizes() == [1, 1, *sizes]
        # Each went before the end of the one before it was taken in, but for what was too little to stand ready.
        assert seen == sent
        assert all(one.done() for one in chain)


def test_nothing_is_kept_of_those_that_went_or_did_not() -> None:
    with Depot() as depot:
        _, last = started(depot, 2)
        behind = add.submit(last, 1)
        assert behind._call is not None
        dispatcher: Any = behind._call.dispatcher
        work_in_parts(depot, 2, 1)
        _, one, two = (echo.submit(behind) for _ in range(3))
        depot.work(3)
        futures = [add.submit(one, 1), add.submit(two, 1)]
        for index in range(3):
            depot.tell(4, Outcome(index, VALUE, 2))
        depot.work_off(5)
        assert [future.result(0) for future in futures] == [3, 3]
        prepared = dispatcher._prepared
        assert not prepared
        assert not prepared._of
        assert not dispatcher._sent
        assert not dispatcher._in_flight
