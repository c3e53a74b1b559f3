"""T6 to T8: what becomes of values on their way, async tasks and generators, and tasks with a runner of their own."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import array
import asyncio
import collections
import datetime as dt
import decimal
import enum
import fractions
import hashlib
import importlib.util
import os
import pathlib
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from turnout import flow, get_run_context, task
from turnout.errors import UpstreamFailed

from ._bodies import (
    Pair,
    Point,
    add,
    asleep_together,
    count_to,
    count_to_slowly,
    fail,
    identity,
    total,
    where,
)
from ._kit import Conformance, Declare, Signals, run_on
from ._subflows import backends

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["ValueConformance"]


class Colour(enum.Enum):
    """A class whose members are single objects."""

    RED = 1
    BLUE = 2


_VALUES: list[Any] = [
    None,
    True,
    -(2**200),
    1.5,
    float("inf"),
    complex(1, -2),
    "text with \u00e9, \U0001f686 and \ud800",
    b"\x00\xff",
    bytearray(b"abc"),
    (),
    (1, (2, [3])),
    [1, "a", None],
    {"b": 1, "a": 2},
    {1, 2, 3},
    frozenset({"x"}),
    range(1, 10, 3),
    slice(1, 2, 3),
    Ellipsis,
    int,
    len,
    Colour.BLUE,
    Point(1, 2),
    Pair([1], {"k": (2,)}),
    decimal.Decimal("1.10"),
    fractions.Fraction(1, 3),
    dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC),
    dt.timedelta(days=1),
    pathlib.PurePosixPath("a/b"),
    uuid.UUID(int=7),
    collections.OrderedDict(b=1, a=2),
    collections.Counter("hello"),
    collections.deque([1, 2], maxlen=5),
    collections.defaultdict(list, {"k": [1]}),
    array.array("d", [1.0, 2.0]),
]


@task
def examine(value: Any) -> tuple[str, str, Any]:
    """Return type, text and value as they arrived."""
    return f"{type(value).__module__}.{type(value).__qualname__}", repr(value), value


@task
def overwrite(buffer: Any) -> Any:
    """Write to a buffer in place, and return it with its digest before."""
    before = hashlib.sha256(memoryview(buffer).cast("B")).hexdigest()
    buffer[0] = 7
    return before, buffer


def _large(size: int) -> bytearray:
    return bytearray(random.Random(size).randbytes(size))


class ValueConformance(Conformance):
    """Values on their way, async tasks and generators, tasks on other runners."""

    def test_T6_values_of_all_kinds_arrive_unchanged(self, runner: TaskRunner) -> None:
        """Arguments and results keep type and value, one by one and all in one list."""

        @flow(task_runner=runner)
        def send() -> Any:
            return examine.map(_VALUES), identity.submit(_VALUES)

        examined, together = send()
        for value, (kind, text, back) in zip(_VALUES, examined, strict=True):
            assert (kind, text) == (f"{type(value).__module__}.{type(value).__qualname__}", repr(value))
            assert (type(back), back) == (type(value), value)
        assert [type(value) for value in together] == [type(value) for value in _VALUES]
        assert together == _VALUES

    def test_T6_values_that_equal_nothing_arrive_too(self, runner: TaskRunner) -> None:
        """NaN stays NaN, and members of an enumeration stay single objects."""

        @flow(task_runner=runner)
        def send() -> Any:
            return identity.submit(float("nan")), identity.submit(Colour.RED)

        nan, red = send()
        assert nan != nan
        assert red is Colour.RED

    @pytest.mark.parametrize("size", [0, 100, 70_000, 8_000_000])
    def test_T6_buffers_arrive_writable(self, runner: TaskRunner, size: int) -> None:
        """Byte arrays of any size arrive with the same bytes, and both task and caller may write to theirs."""
        data = _large(size + 1)
        before = hashlib.sha256(data).hexdigest()

        @flow(task_runner=runner)
        def send() -> Any:
            return overwrite.submit(bytearray(data))

        digest, back = send()
        assert digest == before
        assert type(back) is bytearray
        assert (back[0], back[1:]) == (7, data[1:])
        back[0] = 9

    def test_T6_arrays_arrive_writable(self, runner: TaskRunner, declared: Declare) -> None:
        """Large arrays keep type, shape and order, and both task and caller may write to theirs."""
        if importlib.util.find_spec("numpy") is None:
            declared("numpy is not installed")
            return
        import numpy as np

        arrays = [
            np.arange(1_000_000, dtype="f8"),
            np.asfortranarray(np.arange(600_000, dtype="i4").reshape(600, 1000)),
            np.zeros((0, 3)),
            np.array([(1, 2.5)], dtype=[("a", "i8"), ("b", "f4")]),
            np.arange(100_000)[::-2],
        ]

        @task
        def scale(values: Any) -> Any:
            assert values.flags.writeable
            original = values.copy()
            values *= 0 if values.dtype.names is None else 1
            return original

        @flow(task_runner=runner)
        def send() -> Any:
            numeric = [each for each in arrays if each.dtype.names is None]
            return scale.map([each.copy(order="K") for each in numeric]), identity.map(arrays)

        scaled, back = send()
        assert [each.shape for each in scaled] == [each.shape for each in arrays if each.dtype.names is None]
        for sent, received in zip(arrays, back, strict=True):
            assert (received.dtype, received.shape) == (sent.dtype, sent.shape)
            assert np.array_equal(received, sent)
            assert received.flags.writeable
            assert received.flags.f_contiguous == sent.flags.f_contiguous or not sent.flags.contiguous

    def test_T6_a_task_cannot_change_the_callers_object(self, runner: TaskRunner, declared: Declare) -> None:
        """Away from the driver's process a task gets a copy; within it, as documented, the object itself."""
        mine: dict[str, list[int]] = {"items": [1]}

        @task
        def change(theirs: dict[str, list[int]]) -> None:
            theirs["items"].append(2)

        run_on(runner, change.submit, mine)
        if runner.capabilities.in_process:
            declared("in_process: tasks share the caller's objects")
            assert mine == {"items": [1, 2]}
        else:
            assert mine == {"items": [1]}

    @pytest.mark.parametrize("keyword", [False, True])
    def test_T6_a_large_argument_of_many_calls(self, runner: TaskRunner, declared: Declare, *, keyword: bool) -> None:
        """Each of many calls gets a copy of one large object, which it may change; the caller's stays as it is."""
        data = bytearray(_large(300_000))
        listed = list(range(40_000))

        @task
        def spoil(data: bytearray, number: int, listed: list[int], again: bytearray) -> tuple[Any, ...]:
            found = sum(data[:1000]), data is again, sum(listed)
            data[:1000] = bytes(1000)
            listed.clear()
            return (*found, number)

        @task(read_only=True)
        def look(data: bytearray, number: int) -> tuple[int, int]:
            return sum(data[:1000]), number

        if runner.capabilities.in_process:
            declared("in_process: tasks share the caller's objects")
            return

        @flow(task_runner=runner)
        def share() -> Any:
            if keyword:
                spoilt = [spoil.submit(data, number=n, listed=listed, again=data) for n in range(60)]
            else:
                spoilt = [spoil.submit(data, n, listed, data) for n in range(60)]
            return spoilt, [look.submit(data, n) for n in range(60)]

        begin, total = sum(data[:1000]), sum(listed)
        spoilt, looked = share()
        assert spoilt == [(begin, True, total, number) for number in range(60)]
        assert looked == [(begin, number) for number in range(60)]
        assert (sum(data[:1000]), sum(listed)) == (begin, total)

    def test_T6_read_only_tasks_may_share_objects(self, runner: TaskRunner) -> None:
        """What ``read_only`` tasks look at is right, though others change theirs."""

        @task
        def table_of(length: int) -> dict[int, int]:
            return {number: 3 * number for number in range(length)}

        @task(read_only=True)
        def look(table: dict[int, int], key: int) -> int:
            return table[key]

        @task
        def forget(table: dict[int, int]) -> int:
            size = len(table)
            table.clear()
            return size

        keys = range(0, 30_000, 500)

        @flow(task_runner=runner)
        def share() -> Any:
            mine = {number: 2 * number for number in range(30_000)}
            theirs = table_of.submit(30_000)
            looked = [look.submit(table, key) for key in keys for table in (mine, theirs)]
            if runner.capabilities.in_process:
                return looked, []
            forgot = [forget.submit(table) for _ in range(3) for table in (mine, theirs)]
            return looked + [look.submit(table, 1, wait_for=forgot) for table in (mine, theirs)], forgot

        looked, forgot = share()
        expected = [factor * key for key in keys for factor in (2, 3)]
        assert looked == ([*expected, 2, 3] if forgot else expected)
        assert set(forgot) <= {30_000}

    def test_T6_a_large_argument_that_changed_since(self, runner: TaskRunner) -> None:
        """When the calls that have an object are over, it may change: later ones get it as it is then."""
        data = bytearray(_large(300_000))

        @task
        def first(data: bytearray) -> int:
            return data[0]

        with runner:
            for value in range(5):
                data[0] = value
                assert first.map([data] * 1 if value % 2 else [data, data]).result() == [value] * (2 - value % 2)

    def test_T6_dependents_do_not_see_each_others_changes(self, runner: TaskRunner, declared: Declare) -> None:
        """Away from the driver's process two dependents of one result get a copy each."""

        @task
        def append(items: list[int], item: int) -> list[int]:
            items.append(item)
            return list(items)

        @flow(task_runner=runner)
        def share() -> Any:
            items = count_to.submit(1)
            first = append.submit(items, 10)
            return first, append.submit(items, 20, wait_for=[first]), items

        if runner.capabilities.in_process:
            declared("in_process: dependents share one object")
            assert share() == ([0, 10], [0, 10, 20], [0, 10, 20])
        else:
            assert share() == ([0, 10], [0, 20], [0])

    def test_T6_read_only_tasks_cannot_write(self, runner: TaskRunner, declared: Declare) -> None:
        """A ``read_only`` task gets large arrays as they are; away from the driver's process it can't write to them."""
        if importlib.util.find_spec("numpy") is None:
            declared("numpy is not installed")
            return
        import numpy as np

        @task
        def make(length: int) -> Any:
            return np.arange(length)

        @task(read_only=True)
        def total(left: Any, right: Any) -> Any:
            return int(left.sum() + right.sum()), left.flags.writeable, right.flags.writeable

        @task
        def spoil(values: Any) -> int:
            values[:] = 0
            return len(values)

        @flow(task_runner=runner)
        def share() -> Any:
            made = make.submit(200_000)
            sums = total.submit(made, np.arange(200_000))
            # Sees no array but its own.
            spoilt = spoil.submit(made, wait_for=[sums])
            return sums, spoilt, total.submit(made, 0 * made.result()[:1], wait_for=[spoilt])

        sums, spoilt, again = share()
        expected = 199_999 * 200_000 // 2
        if runner.capabilities.in_process:
            declared("in_process: tasks share the caller's objects, which stay as they are")
            assert (sums, spoilt, again[0]) == ((2 * expected, True, True), 200_000, 0)
        else:
            assert (sums, spoilt, again[0]) == ((2 * expected, False, False), 200_000, expected)

    def test_T6_an_object_passed_twice_stays_one_object(self, runner: TaskRunner) -> None:
        """What is one object in the arguments is one object in the task, also in a cycle."""
        part = [1]
        cycle: list[Any] = [part, part]
        cycle.append(cycle)

        @task
        def compare(values: Any) -> Any:
            return values[0] is values[1], values[2] is values

        assert run_on(runner, compare.submit, cycle) == (True, True)

    def test_T6_deep_values_arrive(self, runner: TaskRunner) -> None:
        """A value nested a hundred levels deep arrives, and so does a future at its bottom."""
        deep: Any = "bottom"
        for _ in range(100):
            deep = [deep]

        @task
        def depth(value: Any) -> int:
            levels = 0
            while isinstance(value, list):
                value, levels = value[0], levels + 1
            return levels if value == "bottom" else -1

        @flow(task_runner=runner)
        def send() -> Any:
            holder: Any = identity.submit("bottom")
            for _ in range(100):
                holder = [holder]
            return depth.submit(deep), depth.submit(holder)

        assert send() == (100, 100)

    def test_T7_a_generator_gives_a_list(self, runner: TaskRunner) -> None:
        """A task that yields gives a list of its items, for the caller and for dependents."""

        @flow(task_runner=runner)
        def numbers() -> Any:
            return count_to.submit(4), total.submit(count_to.submit(5)), count_to.submit(0)

        assert numbers() == ([0, 1, 2, 3], 10, [])

    def test_T7_a_returned_generator_gives_a_list(self, runner: TaskRunner) -> None:
        """A task that returns a generator gives a list of its items too."""

        @task
        def squares(limit: int) -> Iterator[int]:
            return (number * number for number in range(limit))

        assert run_on(runner, squares.submit, 4) == [0, 1, 4, 9]

    def test_T7_a_generator_that_raises_fails(self, runner: TaskRunner) -> None:
        """An exception between two items is the call's exception."""

        @task
        def broken() -> Iterator[int]:
            yield 1
            raise ValueError("midway")

        with pytest.raises(ValueError, match="midway"):
            run_on(runner, broken.submit)

    def test_T7_async_tasks(self, runner: TaskRunner) -> None:
        """An async task gives what its coroutine returns, depends and is depended on like any other."""

        @task
        async def double(number: int) -> int:
            await asyncio.sleep(0.001)
            return 2 * number

        @flow(task_runner=runner)
        def calculate() -> Any:
            return add.submit(double.submit(add.submit(1, 2)), 1), double.map([1, 2, 3])

        assert calculate() == (7, [2, 4, 6])

    def test_T7_async_tasks_fail_like_others(self, runner: TaskRunner, signals: Signals) -> None:
        """Exceptions of async tasks arrive, after the same retries."""

        @task(retries=1)
        async def broken() -> None:
            signals.note("attempt")
            await asyncio.sleep(0)
            raise ValueError("async")

        with pytest.raises(ValueError, match="async"):
            run_on(runner, broken.submit)
        assert signals.count("attempt") == 2

    def test_T7_async_generators_give_lists(self, runner: TaskRunner) -> None:
        """An async generator gives a list of its items."""
        assert run_on(runner, count_to_slowly.map, [3, 0]) == [[0, 1, 2], []]

    def test_T7_many_async_tasks_share_a_thread(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """Async tasks wait together: each of many needs all others to have begun, on far fewer slots."""
        if runner.capabilities.inline:
            declared("inline: one call after the other, on a loop")
            assert len(set(run_on(runner, asleep_together.map, [signals] * 3, 1))) == 1
            return
        if not (runner.capabilities.in_process or runner.capabilities.async_aside):
            declared("async_aside: an async call takes a slot")
            assert len(run_on(runner, asleep_together.map, [signals] * 2, 2)) == 2
            return
        threads = run_on(runner, asleep_together.map, [signals] * 40, 40)
        assert len(threads) == 40
        if runner.capabilities.in_process:
            assert len(set(threads)) == 1

    def test_T7_async_tasks_know_their_own_run(self, runner: TaskRunner) -> None:
        """Async tasks that run at once on one thread each see their own run context."""

        @task
        async def ask(number: int) -> Any:
            before = get_run_context().task_run_name
            await asyncio.sleep(0.001 * (number % 3))
            return before, get_run_context().task_run_name

        results = run_on(runner, lambda: ask.map(range(20)))
        assert results == [(f"ask-{number}", f"ask-{number}") for number in range(20)]

    def test_T7_async_generators_fail_like_others(self, runner: TaskRunner) -> None:
        """An exception between two items of an async generator is the call's exception."""

        @task
        async def broken() -> AsyncIterator[int]:
            yield 1
            await asyncio.sleep(0)
            raise ValueError("midway")

        with pytest.raises(ValueError, match="midway"):
            run_on(runner, broken.submit)

    def test_T8_a_task_may_run_elsewhere(self, runner: TaskRunner) -> None:
        """``task_runner="process"`` runs that task in another process; values pass both ways."""
        elsewhere = where.with_options(task_runner="process")
        doubled = add.with_options(task_runner="process")

        @flow(task_runner=runner)
        def mixed() -> Any:
            first = add.submit(1, 2)
            second = doubled.submit(first, first)
            return elsewhere.submit(second), add.submit(second, 1)

        (process, _), result = mixed()
        assert process != os.getpid()
        assert result == 7

    def test_T8_a_task_may_run_in_the_driver(self, runner: TaskRunner) -> None:
        """``task_runner="thread"`` runs that task in the driver's process, whatever the flow's runner is."""
        here = where.with_options(task_runner="thread")
        assert run_on(runner, lambda: here.submit(identity.submit(1)))[0] == os.getpid()

    def test_T8_large_values_pass_between_runners(self, runner: TaskRunner) -> None:
        """Large values pass from one runner to the other and back, with the same bytes."""
        copy = identity.with_options(task_runner="process")
        data = _large(2_000_000)

        @flow(task_runner=runner)
        def mixed() -> Any:
            return identity.submit(copy.submit(identity.submit(copy.submit(data))))

        assert mixed() == data

    def test_T8_the_other_backend_starts_once(self, runner: TaskRunner, declared: Declare) -> None:
        """A runner named by tasks starts with the first of its calls, serves all, and stops with the flow."""
        other = self.make_runner(3)
        if other == runner:
            declared("inline: all runners are equal, and equal ones share a backend")
        elsewhere = add.with_options(task_runner=other)

        @flow(task_runner=runner)
        def mixed() -> Any:
            return [elsewhere.submit(identity.submit(number), 1) for number in range(10)]

        with backends(type(other)) as counted:
            assert mixed() == list(range(1, 11))
        assert counted.starts(other) == counted.stops(other) == (other != runner)

    def test_T8_failures_pass_between_runners(self, runner: TaskRunner) -> None:
        """A failure on one runner is UpstreamFailed for its dependents on the other."""
        fails_elsewhere = fail.with_options(task_runner="sequential")
        uses_elsewhere = identity.with_options(task_runner="sequential")

        @flow(task_runner=runner)
        def mixed() -> Any:
            return [
                identity.submit(fails_elsewhere.submit("there")).exception(),
                uses_elsewhere.submit(fail.submit("here")).exception(),
            ]

        errors = mixed()
        assert [type(error) for error in errors] == [UpstreamFailed, UpstreamFailed]
        assert [str(error.__cause__) for error in errors] == ["there", "here"]

    def test_T8_long_ways_between_runners(self, one_slot: TaskRunner) -> None:
        """A chain that changes the runner at every step, and a map over both, end on one slot."""
        elsewhere = add.with_options(task_runner="thread?max_workers=1")

        @flow(task_runner=one_slot)
        def mixed() -> Any:
            last: Any = 0
            for _ in range(25):
                last = elsewhere.submit(add.submit(last, 1), 1)
            return last, total.submit(elsewhere.map(identity.map(range(20)), 1))

        assert mixed() == (50, 210)
