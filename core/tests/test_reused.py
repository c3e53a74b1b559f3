"""Large objects that read-only calls have: unpacked once for all that follow each other on a worker, and let go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turnout import task
from turnout._reused import _MOST_IDLE, _Reused
from turnout.runner import OutcomeKind
from turnout.testing._batches import batched
from turnout.testing._depot import Depot

VALUE = OutcomeKind.VALUE
LARGE = 100_000


class Loads:
    """How often tables were unpacked: here, for a depot's worker is this process."""

    count = 0


class Table:
    """Its pickle is a long stream."""

    def __init__(self, items: list[int]) -> None:
        self.items = items

    def __reduce__(self) -> tuple[Any, ...]:
        return _table, (list(self.items),)


def _table(items: list[int]) -> Table:
    Loads.count += 1
    return Table(items)


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Loads.count = 0
    # However slow the machine is, objects that go on being used stay.
    monkeypatch.setattr("turnout._reused._SECONDS", 10.0)
    with batched("most"):
        yield


@task(read_only=True)
def look(table: Table, key: int) -> int:
    return table.items[key]


@task
def pop(table: Table) -> tuple[int, int]:
    return table.items.pop(), len(table.items)


@task
def make(length: int) -> Table:
    return Table(list(range(length)))


def test_read_only_calls_of_several_batches_have_one_object() -> None:
    table = Table(list(range(LARGE)))
    with Depot() as depot:
        futures = [look.submit(table, key) for key in range(50)]
        depot.work_off()
        assert [future.result(0) for future in futures] == list(range(50))
        assert len(depot.batches) > 2
    # The first call can't know that others follow.
    assert Loads.count == 2


def test_others_have_objects_of_their_own() -> None:
    table = Table(list(range(LARGE)))
    with Depot() as depot:
        looked = [look.submit(table, key) for key in range(10)]
        popped = [pop.submit(table) for _ in range(3)]
        looked += [look.submit(table, LARGE - 1) for _ in range(3)]
        depot.work_off()
        assert [future.result(0) for future in popped] == [(LARGE - 1, LARGE - 1)] * 3
        assert [future.result(0) for future in looked] == [*range(10), *[LARGE - 1] * 3]
    assert Loads.count == 2 + 3


def test_one_that_changed_since_is_another() -> None:
    table = Table(list(range(LARGE)))
    with Depot() as depot:
        for value in range(3):
            table.items[0] = value
            futures = [look.submit(table, 0) for _ in range(5)]
            depot.work_off()
            assert [future.result(0) for future in futures] == [value] * 5


def test_a_result_is_unpacked_once_for_those_who_need_it() -> None:
    with Depot() as depot:
        made = make.submit(LARGE)
        futures = [look.submit(made, key) for key in range(50)]
        depot.work_off()
        assert [future.result(0) for future in futures] == list(range(50))
    assert Loads.count <= 2


def test_small_ones_are_not_kept() -> None:
    table = Table([1, 2])
    with Depot() as depot:
        futures = [look.submit(table, 0) for _ in range(5)]
        depot.work_off()
        assert [future.result(0) for future in futures] == [1] * 5
    assert Loads.count == 5


def test_what_is_used_once_is_not_kept() -> None:
    with Depot() as depot:
        for _ in range(3):
            look.submit(Table(list(range(LARGE))), 0)
        depot.work_off()
        assert all(not batch.body.load().keys for batch in depot.batches)
    assert Loads.count == 3


class Thing:
    """Can be watched."""


def test_objects_stay_while_they_are_used() -> None:
    reused = _Reused()
    numbers = range(_MOST_IDLE + 3)
    things = {str(number).encode(): reused.take(str(number).encode(), Thing) for number in numbers}
    assert all(reused.take(key, Thing) is thing for key, thing in things.items())
    reused.let_go(things)
    assert all(reused.take(key, Thing) is thing for key, thing in things.items())


def test_the_last_few_stay_for_a_moment() -> None:
    reused = _Reused()
    keys = [str(number).encode() for number in range(_MOST_IDLE + 3)]
    watched = [weakref.ref(reused.take(key, Thing)) for key in keys]
    reused.let_go(keys)
    gc.collect()
    assert [watch() is not None for watch in watched] == [False] * 3 + [True] * _MOST_IDLE


def test_nothing_stays_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout._reused._SECONDS", 0.0)
    sweeps: list[Callable[[], object]] = []
    monkeypatch.setattr("turnout._reused.after", lambda delay, action: sweeps.append(action))
    reused = _Reused()
    used, idle = reused.take(b"1", Thing), weakref.ref(reused.take(b"2", Thing))
    monkeypatch.setattr("turnout._reused._SECONDS", 60.0)
    reused.let_go([b"2"])
    assert len(sweeps) == 1
    assert idle() is not None
    monkeypatch.setattr("turnout._reused._SECONDS", 0.0)
    sweeps.pop()()
    gc.collect()
    assert idle() is None
    assert reused.take(b"1", Thing) is used
    # It sweeps as long as there is something, and no longer.
    assert not sweeps


def test_an_object_that_could_not_be_made_is_made_anew() -> None:
    reused = _Reused()

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        reused.take(b"1", fail)
    assert reused.take(b"1", lambda: 7) == 7


def test_time_to_unpack_counts_as_the_calls_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So calls that need long for it are not taken for short ones."""
    # A clock that stands still, save for each table that is unpacked.
    monkeypatch.setattr("turnout.worker.time.perf_counter", lambda: float(Loads.count))
    with Depot() as depot:
        pop.submit(Table(list(range(LARGE))))
        outcomes = depot.work(0)
    assert [outcome.seconds for outcome in outcomes if outcome.kind is VALUE] == [1.0]
