"""The elements that a map walks over: in step, whole or lazily, and never more of them than can be used."""

from __future__ import annotations

import io
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turnout import (
    FutureList,
    MappingLengthMismatch,
    MappingMissingIterable,
    MissingContextError,
    TaskFuture,
    allow_failure,
    as_completed,
    quote,
    task,
    unmapped,
)
from turnout._backends import Backends
from turnout._engine import Engine
from turnout._map import LazyMap, elements_of
from turnout._state import StateType
from turnout.runner import Batch, Capabilities, Host, TaskRunner

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@task
def echo(*values: Any, **named: Any) -> Any:
    return values, named


@task
def same(value: Any) -> Any:
    return value


def ended(value: Any) -> TaskFuture[Any]:
    """Return a future that is over, with a value."""
    made: TaskFuture[Any] = TaskFuture(echo, Engine(Backends()).flow_run, 0)
    made._data, made._type = value, StateType.COMPLETED
    return made


def rows(*args: Any, lazy: bool = False, **kwargs: Any) -> Calls:
    return list(elements_of("echo", args, kwargs, lazy=lazy))


class Shelf(TaskRunner):
    """Keeps calls until the test runs them."""

    capabilities = Capabilities(in_process=True, keeps_order=True, cancel="cooperative", streams=True)

    def __init__(self, at_once: bool = False) -> None:
        self.at_once = at_once
        self.batches: deque[Batch] = deque()
        self.filled = threading.Condition()
        self.most = 0

    def start(self, host: Host) -> None:
        self.host = host

    def slots(self) -> int:
        return 4

    def submit(self, batch: Batch) -> None:
        if self.at_once:
            self.host.execute(batch)
            return
        with self.filled:
            self.batches.append(batch)
            self.most = max(self.most, len(self.batches))
            self.filled.notify_all()

    def stop(self) -> None:
        pass

    def run(self, index: int = 0) -> None:
        batch = self.batches[index]
        del self.batches[index]
        self.host.execute(batch)

    def run_all(self) -> None:
        while self.batches:
            self.run()

    def wait_for(self, count: int) -> None:
        with self.filled:
            assert self.filled.wait_for(lambda: len(self.batches) >= count, 30)


# Eager


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        deque,
        iter,
        dict.fromkeys,
        lambda numbers: dict.fromkeys(numbers).keys(),
        lambda numbers: (number for number in numbers),
        lambda numbers: range(1, 3),
        ended,
        lambda numbers: ended({"part": numbers})["part"],
    ],
)
def test_what_is_walked_over(make: Callable[[list[int]], Any], lazy: bool) -> None:
    assert rows(make([1, 2]), lazy=lazy) == [((1,), {}), ((2,), {})]


@pytest.mark.parametrize(
    "whole", ["ab", b"ab", bytearray(b"ab"), 5, None, 2.5, object, list, dict, str, io.StringIO("a\nb"), print]
)
def test_what_each_call_gets_whole(whole: Any) -> None:
    assert rows([1, 2], whole, name=whole) == [((1, whole), {"name": whole}), ((2, whole), {"name": whole})]


@pytest.mark.parametrize("lazy", [True, False])
def test_several_arguments_are_walked_in_step(lazy: bool) -> None:
    calls = rows([1, 2], "x", iter("ab"), lazy=lazy, low=(3, 4), high=9)
    assert calls == [((1, "x", "a"), {"low": 3, "high": 9}), ((2, "x", "b"), {"low": 4, "high": 9})]


def test_named_arguments_keep_their_order() -> None:
    ((_, named),) = rows(zebra=[1], apple=2, mango=[3])
    assert list(named) == ["zebra", "apple", "mango"]


def test_unmapped_is_unwrapped_and_quote_is_left_to_the_call() -> None:
    inner = [1, 2, 3]
    marked = quote(inner)
    ((args, named),) = rows([0], unmapped(inner), marked, key=unmapped(inner))
    assert args[1] is inner
    assert args[2] is marked
    assert named["key"] is inner


def test_allowed_failures_are_allowed_for_each_element() -> None:
    calls = rows(allow_failure([1, 2]), allow_failure(5))
    assert [args[0].value for args, _ in calls] == [1, 2]
    assert all(type(args[0]) is allow_failure and type(args[1]) is allow_failure for args, _ in calls)


def test_nothing_to_walk_over_is_an_error_that_says_what_to_use() -> None:
    for lazy in (True, False):
        with pytest.raises(MappingMissingIterable, match=r"Give it a list .* or use echo\.submit\(\)"):
            rows(1, "text", unmapped([1]), lazy=lazy)


def test_unequal_lengths_name_the_arguments_and_their_lengths() -> None:
    with pytest.raises(MappingLengthMismatch) as caught:
        rows([1, 2], "x", iter([1, 2, 3]), lengths=[1])
    assert "argument 1 has 2, argument 3 has 3, 'lengths' has 1 elements" in str(caught.value)
    assert "unmapped(...)" in str(caught.value)


def test_no_elements_are_no_calls() -> None:
    assert rows([], x=()) == []
    assert rows(iter(()), lazy=True) == []


def test_errors_of_a_generator_are_the_generators() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("mine")

    for lazy in (True, False):
        with pytest.raises(ValueError, match=r"^mine$"):
            rows(broken(), [1, 2], lazy=lazy)


def test_errors_of_an_iterator_in_c_are_its_own() -> None:
    for lazy in (True, False):
        with pytest.raises(ValueError, match=r"^invalid literal") as caught:
            rows(map(int, ["1", "x"]), lazy=lazy)
        assert type(caught.value) is ValueError


def test_a_failed_future_cannot_be_walked_over() -> None:
    def fail() -> None:
        raise LookupError("nothing there")

    with Shelf(at_once=True):
        failed = task(fail).submit()
        with pytest.raises(LookupError, match="nothing there"):
            same.map(failed)


def test_a_future_is_waited_for_before_it_is_walked_over() -> None:
    shelf = Shelf()
    with shelf:
        numbers = same.submit([1, 2, 3])
        worker = threading.Thread(target=shelf.run)
        worker.start()
        futures = same.map(numbers)
        worker.join()
        shelf.run_all()
        assert futures.result() == [1, 2, 3]


def test_a_map_needs_a_flow_before_it_walks() -> None:
    elements = iter([1, 2])
    with pytest.raises(MissingContextError, match=r"same\.submit\(\) was called outside of a flow"):
        same.map(elements)
    assert list(elements) == [1, 2]


def test_a_map_returns_futures_in_order_of_the_elements() -> None:
    shelf = Shelf()
    with shelf:
        futures = echo.map([3, 1, 2], key=unmapped([9]))
        assert isinstance(futures, FutureList)
        while shelf.batches:
            shelf.run(-1)
        assert futures.result() == [((number,), {"key": [9]}) for number in (3, 1, 2)]


def test_each_call_of_a_map_waits_for_what_it_shall() -> None:
    shelf = Shelf()
    with shelf:
        gate = same.submit("open")
        futures = same.map([1, 2], wait_for=[gate])
        assert len(shelf.batches) == 1
        for batch in shelf.host.execute(shelf.batches.popleft()):
            shelf.host.execute(batch)
        assert futures.result() == [1, 2]


def test_a_map_may_return_states() -> None:
    with Shelf(at_once=True):
        states = same.map([1, 2], return_state=True)
        assert [(state.name, state.result()) for state in states] == [("Completed", 1), ("Completed", 2)]


# Lazy


class Counted:
    """Endless elements, and how many of them were taken."""

    def __init__(self, length: int | None = None) -> None:
        self.length = length
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.taken == self.length:
            raise StopIteration
        self.taken += 1
        return self.taken


def test_a_lazy_map_takes_nothing_before_it_is_consumed() -> None:
    elements = Counted()
    with Shelf():
        assert isinstance(same.map(elements, lazy=True), LazyMap)
    assert elements.taken == 0


def test_a_lazy_map_is_never_far_ahead_of_its_consumer() -> None:
    elements = Counted()
    with Shelf(at_once=True):
        futures = same.map(elements, lazy=True)
        for consumed in range(1, 5000):
            assert next(futures).result() == consumed
            assert elements.taken - consumed <= 1000


def test_a_lazy_map_is_walked_in_order_and_waits_for_each() -> None:
    shelf = Shelf()

    def run_backwards() -> None:
        shelf.wait_for(10)
        for _ in range(10):
            shelf.run(-1)

    with shelf:
        futures = same.map(Counted(10), lazy=True)
        worker = threading.Thread(target=run_backwards)
        worker.start()
        assert [future.result(0) for future in futures] == list(range(1, 11))
        worker.join()


def test_a_lazy_map_that_is_left_early_is_no_trouble() -> None:
    elements = Counted()
    with Shelf(at_once=True):
        assert next(same.map(elements, lazy=True)).result() == 1
        assert next(as_completed(same.map(elements, lazy=True))).result() > 1


def test_completed_calls_of_a_lazy_map_make_room_for_others() -> None:
    shelf = Shelf()
    elements = Counted(5000)

    def run_one() -> None:
        shelf.wait_for(1000)
        shelf.run(500)

    with shelf:
        over = as_completed(same.map(elements, lazy=True))
        worker = threading.Thread(target=run_one)
        worker.start()
        assert next(over).result() == 501, "the first that is over, not the first of all"
        worker.join()
        assert elements.taken == 1000
        results = {501}
        while len(results) < 5000:
            while shelf.batches:
                shelf.run()
            results.update(future.result() for future in itertools.islice(over, 999))
            assert elements.taken - len(results) <= 1000
        assert next(over, None) is None
    assert results == set(range(1, 5001))
    assert shelf.most == 1000


def test_a_lazy_map_gives_up_after_its_timeout() -> None:
    shelf = Shelf()
    with shelf:
        over = as_completed(same.map([1, 2, 3], lazy=True), timeout=0)
        with pytest.raises(TimeoutError, match="3 of the calls that were submitted are not over after 0 s"):
            next(over)
        shelf.run_all()


def test_unequal_lengths_of_a_lazy_map_are_found_where_they_end() -> None:
    with Shelf(at_once=True):
        futures = echo.map([1, 2, 3], iter([1, 2]), lazy=True)
        with pytest.raises(MappingLengthMismatch, match=r"argument 2 is shorter than argument 1"):
            list(futures)


def test_failures_do_not_end_a_lazy_map() -> None:
    @task
    def odd(number: int) -> int:
        if number % 2 == 0:
            raise ValueError(number)
        return number

    with Shelf(at_once=True):
        errors = [repr(future.exception()) for future in as_completed(odd.map(range(4), lazy=True))]
    assert sorted(errors) == ["None", "None", "ValueError(0)", "ValueError(2)"]


def test_elements_are_taken_as_they_are_asked_for() -> None:
    elements = Counted()
    calls = elements_of("echo", (elements, itertools.repeat("x")), {}, lazy=True)
    assert [args for args, _ in itertools.islice(calls, 3)] == [(1, "x"), (2, "x"), (3, "x")]
    assert elements.taken == 3


@pytest.mark.parametrize("lazy", [False, True])
def test_large_containers_are_searched_once_for_all_calls(*, lazy: bool) -> None:
    large, nested, future = list(range(1000)), [[1]], ended(1)
    named = {"nested": unmapped(nested), "small": unmapped([1]), "held": unmapped([future, *large])}
    for args, given in rows([1, 2], unmapped(large), lazy=lazy, **named):
        for marked, value in ((args[1], large), (given["nested"], nested)):
            assert type(marked) is quote
            assert marked.value is value
        # Small ones are not worth the marks. Where there are futures, each call has to find them.
        assert given["small"] == [1]
        assert given["held"] == [future, *large]
