"""Large arguments that several calls have: packed once, carried as one, and let go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from turnout import quote, task
from turnout._packing import PackedBatch
from turnout._serialization import SharedParcel
from turnout.runner import Outcome, OutcomeKind
from turnout.testing._batches import batched
from turnout.testing._depot import Depot

VALUE = OutcomeKind.VALUE


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with batched("most"):
        yield


@task
def length(data: Any, number: int = 0, **others: Any) -> int:
    return len(data)


class Table:
    """Large, counts how often it is pickled, and can be watched."""

    def __init__(self) -> None:
        self.pickled = 0

    def __len__(self) -> int:
        return 7

    def __reduce__(self) -> tuple[Any, ...]:
        self.pickled += 1
        return _tabled, (bytearray(200_000),)


def _tabled(data: bytearray) -> bytearray:
    return data[:7]


def shared(depot: Depot, number: int) -> list[Any]:
    return [value for value in depot.batches[number].upstream if type(value) is SharedParcel]


def test_one_that_several_calls_have_is_packed_once() -> None:
    table = Table()
    with Depot() as depot:
        futures = [length.submit(table, number) for number in range(50)]
        depot.work_off()
        assert [future.result(0) for future in futures] == [7] * 50
        assert depot.sizes()[0] == 1
        assert sum(depot.sizes()) == 50
        # Together with the others, and apart; then no more.
        assert table.pickled == 2


def test_batches_carry_the_same_object() -> None:
    table = Table()
    with Depot() as depot:
        for number in range(20):
            length.submit(table, number)
        depot.tell(0, Outcome(0, VALUE, 7))
        (first,), (second,), (third,) = (shared(depot, number) for number in (1, 1, 2))
        assert first is second is third
        assert len(depot.batches[2].calls) == 18
        assert isinstance(depot.batches[2], PackedBatch)
        assert depot.batches[2].body.nbytes < 20_000
        depot.work_off(1)


def test_it_is_let_go_when_no_call_has_it() -> None:
    table = Table()
    watched = weakref.ref(table)
    with Depot() as depot:
        futures = [length.submit(table, number) for number in range(5)]
        parcel = weakref.ref(shared(depot, 0)[0])
        del table
        depot.work_off()
        depot.batches.clear()
        gc.collect()
        assert all(future.done() for future in futures)
        assert watched() is None
        assert parcel() is None


def test_one_that_may_have_changed_is_packed_again() -> None:
    data = bytearray(100_000)
    with Depot() as depot:
        first = length.submit(data)
        depot.work(0)
        data += b"more"
        second = length.submit(data)
        depot.work(1)
        assert (first.result(0), second.result(0)) == (100_000, 100_004)


def test_a_call_that_is_final_does_not_keep_it_as_it_was() -> None:
    data = bytearray(100_000)
    with Depot() as depot:
        first = length.submit(data)
        # Its batch is still under way.
        assert first.cancel()
        data += b"more"
        second = length.submit(data)
        depot.work(1)
        assert second.result(0) == 100_004
        depot.tell(0, Outcome(0, OutcomeKind.RETURNED))


def test_what_is_in_two_arguments_stays_one_object() -> None:
    inner = bytearray(100_000)

    @task
    def same(outer: list[bytearray], inner: bytearray) -> bool:
        return outer[0] is inner

    with Depot() as depot:
        future = same.submit([inner], inner)
        depot.work(0)
        assert future.result(0)


def test_future_and_large_argument_side_by_side() -> None:
    data = bytearray(100_000)

    @task
    def both(data: bytearray, number: int, *, numbers: list[int]) -> int:
        return len(data) + number + numbers[0]

    with Depot() as depot:
        root = length.submit(data)
        futures = [both.submit(data, root, numbers=[root]) for _ in range(10)]
        depot.work_off()
        assert {future.result(0) for future in futures} == {300_000}


def test_calls_that_bring_much_travel_alone_or_few_together() -> None:
    with Depot() as depot:
        futures = [length.submit(bytearray(3_000_000)) for _ in range(8)]
        depot.work_off()
        assert [future.result(0) for future in futures] == [3_000_000] * 8
        assert max(depot.sizes()) == 1


def test_a_batch_gets_no_larger_than_it_may() -> None:
    with Depot() as depot:
        small = [length.submit([number]) for number in range(10)]
        depot.work_off()
        # Nobody knows of these that they are large.
        futures = [length.submit(bytearray(3_000_000)) for _ in range(12)]
        chain = [length.submit([future]) for future in futures]
        depot.work_off(2)
        assert all(future.result(0) == 1 for future in small)
        assert [future.result(0) for future in futures] == [3_000_000] * 12
        assert [future.result(0) for future in chain] == [1] * 12
        for batch in depot.batches:
            bytes_own = sum(3_000_000 for call in batch.calls if call.future in futures)
            assert bytes_own <= 12_000_000


def test_calls_that_share_what_is_large_travel_together_again() -> None:
    data = bytearray(3_000_000)
    with Depot() as depot:
        futures = [length.submit(data, number) for number in range(100)]
        depot.work_off()
        assert {future.result(0) for future in futures} == {3_000_000}
        assert len(depot.sizes()) <= 5


def test_one_large_argument_does_not_keep_later_calls_apart() -> None:
    with Depot() as depot:
        length.submit([0])
        depot.work_off()
        heavy = length.submit(bytearray(3_000_000))
        depot.work_off(1)
        begin = len(depot.batches)
        light = [length.submit([number]) for number in range(100)]
        depot.work_off(begin)
        assert heavy.result(0) == 3_000_000
        assert [future.result(0) for future in light] == [1] * 100
        assert len(depot.sizes()) - begin <= 5


def test_one_that_is_quoted_counts_as_itself() -> None:
    table = list(range(50_000))
    with Depot() as depot:
        futures = [length.submit(quote(table), number) for number in range(20)]
        futures += [length.submit(data=quote(table), number=futures[0])]
        depot.work(0)
        assert len({id(value) for number in (1, 2) for value in shared(depot, number)}) == 1
        depot.work_off(1)
        assert [future.result(0) for future in futures] == [50_000] * 21
