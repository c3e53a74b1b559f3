"""D2 and D5 to D8: graphs of any shape and size on few slots, parts of results, nested calls, large values."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

from turnout import allow_failure, as_completed, flow, get_run_context, task, wait
from turnout.errors import UpstreamFailed

from ._bodies import (
    Pair,
    add,
    describe,
    fail,
    fibonacci,
    gate,
    identity,
    note,
    total,
    where,
)
from ._depths import DepthConformance
from ._kit import Declare, Signals, run_on

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["ShapeConformance"]

_MANY = 5000


@task
def stretch(data: bytearray) -> bytearray:
    """Count up the first byte of a large buffer, in place."""
    data[0] += 1
    return data


@task
def squares_of(numbers: list[int]) -> list[int]:
    """Return squares that nested calls computed."""
    return square.map(numbers).result()


@task
def square(number: int) -> int:
    """Return a square."""
    return number * number


@task
def sum_of_squares(limit: int) -> int:
    """Submit calls that submit calls."""
    halves = [list(range(0, limit, 2)), list(range(1, limit, 2))]
    return sum(sum(part) for part in squares_of.map(halves).result())


class ShapeConformance(DepthConformance):
    """Graphs of any shape, parts of results, nested calls, large values."""

    def test_D2_a_chain_ends_on_one_slot(self, one_slot: TaskRunner) -> None:
        """A chain of calls ends on one slot."""

        @flow(task_runner=one_slot)
        def chain() -> Any:
            last: Any = 0
            for _ in range(200):
                last = add.submit(last, 1)
            return last

        assert chain() == 200

    def test_D2_a_tree_ends_on_one_slot(self, one_slot: TaskRunner) -> None:
        """A tree of merges ends on one slot."""

        @flow(task_runner=one_slot)
        def tree() -> Any:
            level: list[Any] = list(identity.map(range(128)))
            while len(level) > 1:
                level = [add.submit(level[place], level[place + 1]) for place in range(0, len(level), 2)]
            return level[0]

        assert tree() == sum(range(128))

    def test_D2_a_stencil_ends_on_one_slot(self, one_slot: TaskRunner) -> None:
        """A grid in which each call depends on three of the row before ends on one slot."""
        width, height = 12, 12

        @flow(task_runner=one_slot)
        def stencil() -> Any:
            row: list[Any] = [1] * width
            for _ in range(height):
                row = [total.submit([row[place - 1], row[place], row[(place + 1) % width]]) for place in range(width)]
            return row

        assert stencil() == [3**height] * width

    def test_D2_random_graphs_end_with_the_right_values(self, one_slot: TaskRunner, runner: TaskRunner) -> None:
        """Graphs of random shape, with arguments and ``wait_for``, give the same values as plain Python."""
        chance = random.Random(5)
        for used in (one_slot, runner):
            edges = [chance.sample(range(number), min(number, chance.randrange(5))) for number in range(150)]
            expected: list[int] = []
            for before in edges:
                expected.append(1 + sum(expected[each] for each in before))
            assert run_on(used, _graph, edges, chance) == expected

    def test_D2_waiting_calls_hold_no_slot(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """While hundreds of calls wait for one that runs, other calls run in the free slot."""
        if runner.capabilities.inline:
            declared("inline: nothing waits")
            return

        @flow(task_runner=runner)
        def build() -> Any:
            slow = gate.submit(signals, 1)
            waiting = [add.submit(slow, number) for number in range(500)]
            chained = [identity.submit(identity.submit(slow)) for _ in range(50)]
            signals.wait("begun")
            free = total.submit(identity.map(range(20))).result()
            assert not any(future.done() for future in (*waiting, *chained))
            signals.set("go")
            return free, total.submit(waiting)

        assert build() == (190, sum(range(500)) + 500)

    def test_D2_waiting_calls_hold_no_thread(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A thousand waiting calls cost the driver no thread."""
        if runner.capabilities.inline:
            declared("inline: nothing waits")
            return

        @flow(task_runner=runner)
        def build() -> int:
            slow = gate.submit(signals)
            signals.wait("begun")
            before = threading.active_count()
            for _ in range(1000):
                identity.submit(slow)
            more = threading.active_count() - before
            signals.set("go")
            return more

        assert build() <= 1

    def test_D2_waiting_in_the_flow_needs_no_slot(self, one_slot: TaskRunner) -> None:
        """Waiting for results in the flow's body, in the wrong order too, ends on one slot."""

        @flow(task_runner=one_slot)
        def backwards() -> Any:
            futures = [identity.submit(0)]
            for _ in range(30):
                futures.append(add.submit(futures[-1], 1))
            return [future.result() for future in reversed(futures)]

        assert backwards() == list(range(30, -1, -1))

    def test_D5_a_failing_chain_ends(self, runner: TaskRunner, signals: Signals) -> None:
        """A chain of 5,000 calls whose first fails ends, and its last names the first."""

        @flow(task_runner=runner)
        def chain() -> Any:
            last = fail.submit("first of many")
            for _ in range(_MANY):
                last = note.submit(signals, "ran", wait_for=[last])
            error = last.exception()
            return type(error), getattr(error, "root", None), str(error.__cause__ if error else None)

        assert chain() == (UpstreamFailed, "fail-0", "first of many")
        assert signals.count("ran") == 0

    def test_D5_a_chain_that_fails_late_ends(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """The same when all the calls are submitted before the first one fails."""
        if runner.capabilities.inline:
            declared("inline: the first has failed before")
            signals.set("go")

        @task
        def fail_later() -> None:
            signals.wait("go")
            raise ValueError("late")

        @flow(task_runner=runner)
        def chain() -> Any:
            last = fail_later.submit()
            for _ in range(_MANY):
                last = identity.submit(last)
            signals.set("go")
            error = last.exception()
            return type(error), str(error.__cause__ if error else None)

        assert chain() == (UpstreamFailed, "late")

    def test_D5_a_long_chain_ends(self, runner: TaskRunner) -> None:
        """A chain of 1,000 calls that work ends with the right value."""

        @flow(task_runner=runner)
        def chain() -> Any:
            last: Any = 0
            for _ in range(1000):
                last = add.submit(last, 1)
            return last

        assert chain() == 1000

    def test_D5_a_wide_fan_in_ends(self, runner: TaskRunner, signals: Signals) -> None:
        """One call that depends on 5,000 ends; one that also depends on a failed one never runs."""

        @flow(task_runner=runner)
        def gather() -> Any:
            futures = identity.map(range(_MANY))
            error = note.submit(signals, "ran", [*futures, fail.submit("one of many")]).exception()
            return total.submit(futures), str(error.__cause__ if error else None)

        assert gather() == (sum(range(_MANY)), "one of many")
        assert signals.count("ran") == 0

    def test_D5_a_wide_fan_out_ends(self, runner: TaskRunner) -> None:
        """5,000 calls that depend on one end with its value."""

        @flow(task_runner=runner)
        def spread() -> Any:
            one = identity.submit(1)
            return [add.submit(one, number) for number in range(_MANY)]

        assert spread() == list(range(1, _MANY + 1))

    def test_D5_a_failing_fan_out_ends(self, runner: TaskRunner, signals: Signals) -> None:
        """5,000 calls that depend on one that fails never run, and each says why."""

        @flow(task_runner=runner)
        def spread() -> Any:
            one = fail.submit("only one")
            futures = [note.submit(signals, "ran", one) for _ in range(_MANY)]
            return {str(getattr(future.exception(), "__cause__", None)) for future in futures}

        assert spread() == {"only one"}
        assert signals.count("ran") == 0

    def test_D5_all_to_all_ends(self, runner: TaskRunner) -> None:
        """500 calls that each depend on the same 500 end with the right values."""

        @flow(task_runner=runner)
        def exchange() -> Any:
            first = identity.map(range(500))
            return [total.submit(first) for _ in range(500)]

        assert exchange() == [sum(range(500))] * 500

    def test_D5_a_failing_all_to_all_ends(self, runner: TaskRunner, signals: Signals) -> None:
        """500 calls that each wait for the same 500, of which one fails, never run."""

        @flow(task_runner=runner)
        def exchange() -> Any:
            first = [*identity.map(range(499)), fail.submit("one of 500")]
            second = [note.submit(signals, "ran", wait_for=first) for _ in range(500)]
            return {type(future.exception()) for future in second}

        assert exchange() == {UpstreamFailed}
        assert signals.count("ran") == 0

    def test_D6_a_part_of_a_result_is_a_dependency(self, runner: TaskRunner) -> None:
        """``future[0]``, ``future["key"]`` and parts of parts arrive as those parts."""

        @flow(task_runner=runner)
        def pick() -> Any:
            pair, table = identity.submit((1, 2)), identity.submit({"a": 10, "deep": {"list": [7, 8]}})
            return [
                add.submit(pair[0], pair[1]),
                add.submit(pair[-1], table["a"]),
                identity.submit(table["deep"]["list"][1]),
            ]

        assert pick() == [3, 12, 8]

    def test_D6_parts_work_wherever_futures_do(self, runner: TaskRunner) -> None:
        """Parts may stand in containers, dataclasses, ``wait_for``, maps, ``allow_failure`` and returned values."""

        @flow(task_runner=runner)
        def pick() -> Any:
            table = identity.submit({"a": 1, "b": 2})
            return [
                describe.submit([table["a"], {"deep": table["b"]}]),
                describe.submit(Pair(table["a"], table["b"])),
                identity.submit(5, wait_for=[table["a"]]),
                add.map([table["a"], table["b"]], 10),
                identity.submit(allow_failure(table["a"])),
                table["b"],
            ]

        assert pick() == ["list: [1, {'deep': 2}]", "Pair: Pair(left=1, right=2)", 5, [11, 12], 1, 2]

    def test_D6_a_part_is_no_further_task(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """Taking a part adds no task run."""

        @flow(task_runner=runner)
        def pick() -> Any:
            table = identity.submit({"a": 1})
            return add.submit(table["a"], table["a"])

        with caplog.at_level(logging.INFO, logger="turnout"):
            assert pick() == 2
        ended = [record for record in caplog.records if record.name == "turnout.task_runs"]
        assert {getattr(record, "task_run_name", None) for record in ended} == {"add-0", "identity-0"}

    def test_D6_a_part_can_be_waited_for(self, runner: TaskRunner) -> None:
        """A part has a ``result`` of its own."""

        @flow(task_runner=runner)
        def pick() -> Any:
            table = identity.submit({"a": [1, 2]})
            return table["a"].result(), table["a"][1].result(timeout=30)

        assert pick() == ([1, 2], 2)

    def test_D6_a_missing_part_is_a_failure(self, runner: TaskRunner, signals: Signals) -> None:
        """A key that the result lacks is a KeyError for who asks, and stops who depends on it."""

        @flow(task_runner=runner)
        def pick() -> Any:
            table = identity.submit({"a": 1})
            with pytest.raises(KeyError, match="missing"):
                table["missing"].result()
            return note.submit(signals, "ran", table["missing"]).exception()

        error = pick()
        assert isinstance(error, KeyError) or isinstance(error.__cause__, KeyError)
        assert signals.count("ran") == 0

    def test_D6_a_part_of_a_failure_is_upstream_failed(self, runner: TaskRunner, signals: Signals) -> None:
        """A part of a result that never came stops who depends on it; allowed, it is the exception."""

        @flow(task_runner=runner)
        def pick() -> Any:
            bad = fail.submit("no parts")
            dependent = note.submit(signals, "ran", bad["a"])
            return type(dependent.exception()), describe.submit(allow_failure(bad["a"]))

        assert pick() == (UpstreamFailed, "ValueError: no parts")
        assert signals.count("ran") == 0

    def test_D6_futures_are_not_walked(self, runner: TaskRunner) -> None:
        """Unpacking a future is a TypeError that says what to do, not a loop without end."""

        @flow(task_runner=runner)
        def unpack() -> None:
            with pytest.raises(TypeError, match="map"):
                iter(identity.submit([1, 2]))
            with pytest.raises(TypeError):
                _ = 1 in identity.submit([1, 2])  # type: ignore[operator]

        unpack()

    def test_D7_a_task_submits_and_waits_on_one_slot(self, one_slot: TaskRunner) -> None:
        """A task may submit calls and wait for them where there is one slot."""
        assert run_on(one_slot, squares_of.submit, [1, 2, 3]) == [1, 4, 9]

    def test_D7_three_levels_deep_on_one_slot(self, one_slot: TaskRunner) -> None:
        """Tasks that submit tasks that submit tasks end on one slot, several at once."""
        expected = [sum(number * number for number in range(limit)) for limit in (5, 6, 7)]
        assert run_on(one_slot, sum_of_squares.map, [5, 6, 7]) == expected

    def test_D7_recursion_on_one_slot(self, one_slot: TaskRunner) -> None:
        """A task that submits itself, twice each time, ends on one slot."""
        assert run_on(one_slot, fibonacci.submit, 8) == 21

    def test_D7_more_outer_calls_than_slots(self, runner: TaskRunner) -> None:
        """Many calls that wait for nested ones, far more than slots, end."""
        numbers = [[number, number + 1] for number in range(40)]
        expected = [[number * number, (number + 1) * (number + 1)] for number in range(40)]
        assert run_on(runner, squares_of.map, numbers) == expected

    def test_D7_nested_calls_depend_on_each_other(self, one_slot: TaskRunner) -> None:
        """Futures, parts, ``wait`` and ``as_completed`` work inside of a task."""

        @task
        def outer() -> Any:
            first = identity.submit({"a": 1})
            chained = [add.submit(first["a"], number) for number in range(5)]
            done, not_done = wait(chained)
            in_turn = sorted(future.result() for future in as_completed(chained))
            return len(done), len(not_done), in_turn, total.submit(chained).result()

        assert run_on(one_slot, outer.submit) == (5, 0, [1, 2, 3, 4, 5], 15)

    def test_D7_nested_runs_are_named_after_the_outer_one(self, one_slot: TaskRunner) -> None:
        """A nested run's name begins with the outer run's."""

        @task
        def inner() -> Any:
            return get_run_context().task_run_name

        @task
        def outer() -> Any:
            return [inner.submit().result(), inner.submit().result()]

        @flow(task_runner=one_slot)
        def names() -> Any:
            return outer.submit(), outer.submit()

        assert names() == (["outer-0/inner-0", "outer-0/inner-1"], ["outer-1/inner-0", "outer-1/inner-1"])

    def test_D7_a_nested_failure_raises_in_the_task(self, one_slot: TaskRunner, signals: Signals) -> None:
        """A nested failure reaches the task that asks for the result, and its dependents never run."""

        @task
        def outer() -> Any:
            bad = fail.submit("nested")
            dependent = note.submit(signals, "ran", bad)
            return type(dependent.exception()).__name__, str(bad.exception())

        @task
        def careless() -> Any:
            return fail.submit("nested").result()

        assert run_on(one_slot, outer.submit) == ("UpstreamFailed", "nested")
        with pytest.raises(ValueError, match="nested"):
            run_on(one_slot, careless.submit)
        assert signals.count("ran") == 0

    def test_D7_nested_calls_nobody_waited_for_end_with_the_flow(self, one_slot: TaskRunner, signals: Signals) -> None:
        """A nested call is waited for by the flow, also when its task did not wait."""

        @task
        def outer() -> str:
            for number in range(5):
                note.submit(signals, "ran", number)
            return "done"

        assert run_on(one_slot, outer.submit) == "done"
        assert sorted(signals.notes("ran")) == ["0", "1", "2", "3", "4"]

    def test_D7_nested_calls_run_where_the_runner_says(self, runner: TaskRunner, declared: Declare) -> None:
        """Nested calls run on the same runner, or in the worker of the task that submitted them, as declared."""

        @task
        def outer() -> Any:
            return os.getpid(), [process for process, _ in where.map(range(5)).result()]

        mine, nested = run_on(runner, outer.submit)
        if runner.capabilities.nested == "in_place":
            declared("nested='in_place': nested calls run in the task's own worker")
            assert set(nested) == {mine}
        if runner.capabilities.in_process:
            assert {mine, *nested} == {os.getpid()}

    def test_D7_async_tasks_may_submit_too(self, one_slot: TaskRunner) -> None:
        """An async task may await the calls that it submits, on one slot."""

        @task
        async def outer(number: int) -> int:
            return await square.submit(number) + await square.submit(number + 1)

        assert run_on(one_slot, outer.map, [1, 2, 3]) == [5, 13, 25]

    def test_D8_a_large_value_passes_through_many_tasks(self, runner: TaskRunner, declared: Declare) -> None:
        """A value of 64 MB goes through ten tasks, each of which may write to it, and arrives whole."""
        size = 64 << 20
        if not runner.capabilities.shared_memory:
            declared("no shared_memory: large values are copied, or stay in one process")
            size = 8 << 20
        data = bytearray(size)
        data[-1] = 99

        @flow(task_runner=runner)
        def pass_on() -> Any:
            last: Any = data
            for _ in range(10):
                last = stretch.submit(last)
            return last

        result = pass_on()
        assert (type(result), len(result), result[0], result[-1]) == (bytearray, size, 10, 99)

    def test_D8_large_values_cross_each_other(self, runner: TaskRunner) -> None:
        """Large values that travel at the same time, to several dependents each, do not mix."""
        blocks = [random.Random(number).randbytes(3_000_000) for number in range(8)]

        @task
        def digest(block: bytes) -> str:
            return hashlib.sha256(block).hexdigest()

        @flow(task_runner=runner)
        def exchange() -> Any:
            sent = identity.map(blocks)
            return digest.map(sent), digest.map(sent), sent

        first, second, sent = exchange()
        expected = [hashlib.sha256(block).hexdigest() for block in blocks]
        assert first == second == expected
        assert sent == blocks

    def test_D8_a_large_result_is_kept_while_it_is_needed(self, runner: TaskRunner) -> None:
        """A large result may be used long after it was made, by calls and by the caller, when its flow has ended."""

        @flow(task_runner=runner)
        def make() -> Any:
            made = identity.submit(bytearray(5_000_000))
            for _ in range(5):
                identity.map(range(20)).wait()
            return stretch.submit(made), made

        later, made = make()
        assert (len(later), later[0], len(made)) == (5_000_000, 1, 5_000_000)
        assert made[-1] == 0


def _graph(edges: list[list[int]], chance: random.Random) -> list[Any]:
    """Submit a graph in which call ``n`` adds 1 to the sum of those in ``edges[n]``."""
    futures: list[Any] = []
    for before in edges:
        arguments = [futures[each] for each in before]
        others = chance.sample(futures, min(len(futures), 2))
        futures.append(add.submit(1, total.submit(arguments), wait_for=others))
    return futures
