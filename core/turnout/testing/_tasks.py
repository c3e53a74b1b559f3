"""T3 to T5: submitting and mapping calls, and the order in which they start."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import contextvars
import itertools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from turnout import State, TaskFuture, as_completed, flow, task, unmapped
from turnout.errors import MappingLengthMismatch, MappingMissingIterable, MissingContextError, UpstreamFailed

from ._bodies import Pair, add, count_to, describe, fail, gate, identity, note, total
from ._kit import Declare, Signals, run_on
from ._needs import NeedConformance
from ._task_options import TaskOptionConformance
from ._values import ValueConformance

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["TaskConformance"]

_LAZY_CALLS = 3000


class TaskConformance(TaskOptionConformance, ValueConformance, NeedConformance):
    """Everything that is promised about tasks: T1 to T9."""

    def test_T3_submit_does_not_wait_for_dependencies(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """``submit`` returns a future at once, while what the call depends on still runs."""
        if runner.capabilities.inline:
            declared("inline: submit runs the call")
            assert run_on(runner, lambda: add.submit(1, 2).done()) is True
            return

        @flow(task_runner=runner)
        def build() -> Any:
            future = gate.submit(signals, 1)
            for _ in range(10):
                future = add.submit(future, 1)
                assert isinstance(future, TaskFuture)
                assert not future.done()
            signals.set("go")
            return future

        assert build() == 11

    def test_T3_submit_does_not_wait_for_a_slot(
        self, one_slot: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """``submit`` returns at once however many calls wait for a free slot."""
        if one_slot.capabilities.inline:
            declared("inline: submit runs the call")
            signals.set("go")

        @flow(task_runner=one_slot)
        def build() -> Any:
            gate.submit(signals)
            futures = [identity.submit(number) for number in range(1000)]
            waiting = sum(not future.done() for future in futures)
            signals.set("go")
            return waiting, futures

        waiting, results = build()
        assert waiting == (0 if one_slot.capabilities.inline else 1000)
        assert results == list(range(1000))

    def test_T3_without_a_flow_it_says_what_to_do(self) -> None:
        """``submit`` and ``map`` outside of a flow raise MissingContextError, which names the ways out."""
        with pytest.raises(MissingContextError, match=r"(?s)flow.*with"):
            add.submit(1, 2)
        with pytest.raises(MissingContextError, match=r"(?s)flow.*with"):
            add.map([1], [2])

    def test_T3_after_a_flow_there_is_none(self, runner: TaskRunner) -> None:
        """When a flow has ended its context is gone, whether it failed or not."""
        run_on(runner, add.submit, 1, 2)
        with pytest.raises(ExceptionGroup):
            run_on(runner, lambda: [fail.submit(), None][1])
        with pytest.raises(MissingContextError):
            add.submit(1, 2)

    def test_T3_a_runner_block_is_enough(self, runner: TaskRunner, signals: Signals) -> None:
        """Inside of ``with runner:`` no flow is needed, and the end of the block waits for all calls."""
        with runner:
            future = add.submit(1, 2)
            assert add.submit(future, 3).result() == 6
            many = [note.submit(signals, "ran") for _ in range(20)]
        assert signals.count("ran") == 20
        assert all(each.done() for each in many)

    def test_T3_a_block_that_raises_cancels(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """An exception in a ``with runner:`` block leaves it, and what has not begun is cancelled."""
        if runner.capabilities.inline:
            declared("inline: a call is over when submit returns, retries and all")
            return
        again_later = fail.with_options(retries=1, retry_delay_seconds=3600)
        futures: list[TaskFuture[Any]] = []
        with pytest.raises(KeyError, match="block"), runner:  # noqa: PT012 - what is tested
            futures.append(note.submit(signals, "ran", wait_for=[again_later.submit()]))
            raise KeyError("block")
        assert futures[0].cancelled()
        assert signals.count("ran") == 0

    def test_T3_return_state_waits_for_the_state(self, runner: TaskRunner) -> None:
        """``submit(return_state=True)`` waits and gives the final state, which counts as a look."""

        @flow(task_runner=runner)
        def ask() -> Any:
            good = add.submit(1, 2, return_state=True)
            bad = fail.submit("no", return_state=True)
            return type(good), type(bad), good.result()

        assert ask() == (State, State, 3)

    def test_T3_other_threads_of_a_flow_may_submit(self, runner: TaskRunner) -> None:
        """A thread that was started with a copy of the flow's context may submit to it, beside others."""
        futures: list[TaskFuture[Any]] = []

        def work(number: int) -> None:
            futures.extend(add.submit(number, each) for each in range(20))

        @flow(task_runner=runner)
        def spread() -> None:
            threads = [
                threading.Thread(target=contextvars.copy_context().run, args=(work, number)) for number in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)

        spread()
        results = sorted(future.result() for future in futures)
        assert results == sorted(number + each for number in range(4) for each in range(20))

    def test_T4_one_future_per_element_in_order(self, runner: TaskRunner) -> None:
        """``map`` gives a list with one future for each element, in order, whatever ends first."""

        @flow(task_runner=runner)
        def spread() -> Any:
            futures = identity.map(range(200))
            assert isinstance(futures, list)
            assert all(isinstance(future, TaskFuture) for future in futures)
            return [future.result() for future in futures]

        assert spread() == list(range(200))

    def test_T4_iterables_are_walked_in_step(self, runner: TaskRunner) -> None:
        """Several iterables are walked together, by position or keyword; what can't be walked goes to each call."""

        @flow(task_runner=runner)
        def spread() -> Any:
            return [
                add.map([1, 2, 3], (10, 20, 30)),
                add.map(left=[1, 2], right=[3, 4]),
                add.map([1, 2], right=5),
                add.map(range(2), {7: "a", 8: "b"}.keys()),
            ]

        assert spread() == [[11, 22, 33], [4, 6], [6, 7], [7, 9]]

    def test_T4_text_and_bytes_are_not_walked(self, runner: TaskRunner) -> None:
        """Strings and bytes go to each call whole."""

        @flow(task_runner=runner)
        def spread() -> Any:
            return add.map(["a", "b"], "xyz"), add.map([b"1", b"2"], b"00")

        assert spread() == (["axyz", "bxyz"], [b"100", b"200"])

    def test_T4_unmapped_passes_whole(self, runner: TaskRunner) -> None:
        """``unmapped(x)`` goes to each call whole, also when it holds futures."""

        @flow(task_runner=runner)
        def spread() -> Any:
            return add.map([[1], [2]], unmapped([8, 9])), add.map([1, 2], unmapped(identity.submit(10)))

        assert spread() == ([[1, 8, 9], [2, 8, 9]], [11, 12])

    def test_T4_unequal_lengths_are_an_error(self, runner: TaskRunner, signals: Signals) -> None:
        """Iterables of unequal length raise MappingLengthMismatch with the lengths, and nothing runs."""

        @flow(task_runner=runner)
        def spread() -> None:
            with pytest.raises(MappingLengthMismatch, match=r"(?s)2.*3"):
                note.map([signals, signals], ["ran", "ran", "ran"])

        spread()
        assert signals.count("ran") == 0

    def test_T4_nothing_to_walk_is_an_error(self, runner: TaskRunner) -> None:
        """Without anything to walk over ``map`` raises MappingMissingIterable that names the way out."""

        @flow(task_runner=runner)
        def spread() -> None:
            with pytest.raises(MappingMissingIterable, match="submit"):
                add.map(1, 2)
            with pytest.raises(MappingMissingIterable):
                identity.map(unmapped([1, 2]))
            with pytest.raises(MappingMissingIterable):
                identity.map("text")

        spread()

    def test_T4_an_empty_list_maps_to_nothing(self, runner: TaskRunner) -> None:
        """Mapping over nothing gives an empty list, with an empty result."""
        assert run_on(runner, lambda: identity.map([]).result()) == []
        assert run_on(runner, lambda: total.submit(identity.map([]))) == 0

    def test_T4_generators_can_be_mapped(self, runner: TaskRunner) -> None:
        """A generator or any iterator is walked once."""

        def numbers() -> Iterator[int]:
            yield from (1, 2, 3)

        assert run_on(runner, lambda: add.map(numbers(), iter([10, 20, 30]))) == [11, 22, 33]

    def test_T4_a_future_of_a_list_can_be_mapped(self, one_slot: TaskRunner) -> None:
        """Mapping over a future walks its result, on one slot too."""

        @flow(task_runner=one_slot)
        def spread() -> Any:
            return add.map(count_to.submit(4), 10), identity.map(identity.submit({"a": (5, 6)})["a"])

        assert spread() == ([10, 11, 12, 13], [5, 6])

    def test_T4_a_failed_future_of_a_list_can_not(self, runner: TaskRunner, signals: Signals) -> None:
        """Mapping over a future without a result raises, and nothing runs."""

        @flow(task_runner=runner)
        def spread() -> None:
            with pytest.raises((ValueError, UpstreamFailed), match="no list"):
                note.map(unmapped(signals), "ran", fail.submit("no list"))

        spread()
        assert signals.count("ran") == 0

    def test_T4_maps_over_maps(self, one_slot: TaskRunner) -> None:
        """A list of futures is walked like any list: each call depends on its own element only."""

        @flow(task_runner=one_slot)
        def spread() -> Any:
            first = identity.map(range(50))
            second = add.map(first, first)
            return total.submit(add.map(second, unmapped(1)))

        assert spread() == sum(2 * number + 1 for number in range(50))

    def test_T4_one_failure_leaves_the_others(self, runner: TaskRunner) -> None:
        """A failing element fails alone."""

        @task
        def odd_only(number: int) -> int:
            if number % 2 == 0:
                raise ValueError(f"{number} is even")
            return number

        @flow(task_runner=runner)
        def spread() -> Any:
            return [str(future.exception() or future.result()) for future in odd_only.map(range(4))]

        assert spread() == ["0 is even", "1", "2 is even", "3"]

    def test_T4_wait_for_holds_for_every_element(self, runner: TaskRunner, signals: Signals) -> None:
        """``map(wait_for=...)`` makes each call wait, for mapped futures too."""

        @task
        def count_first(number: int) -> int:
            return signals.count("first") if number >= 0 else 0

        @flow(task_runner=runner)
        def spread() -> Any:
            first = note.map(unmapped(signals), "first", range(10))
            return count_first.map(range(5), wait_for=[first])

        assert spread() == [10] * 5

    def test_T4_elements_may_be_containers_of_futures(self, runner: TaskRunner) -> None:
        """An element may hold futures deep inside."""

        @flow(task_runner=runner)
        def spread() -> Any:
            return describe.map([[add.submit(1, 2)], Pair(add.submit(3, 4))])

        assert spread() == ["list: [3]", "Pair: Pair(left=7, right=None)"]

    def test_T4_lazy_maps_take_what_they_can_use(self, runner: TaskRunner) -> None:
        """``map(lazy=True)`` over a long iterator holds a bounded number of elements, and loses none."""
        taken = itertools.count()
        last_taken = 0

        def numbers() -> Iterator[int]:
            nonlocal last_taken
            for number in itertools.islice(taken, _LAZY_CALLS):
                last_taken = number
                yield number

        @flow(task_runner=runner)
        def walk() -> tuple[list[int], int]:
            results: list[int] = []
            ahead = 0
            for future in as_completed(identity.map(numbers(), lazy=True)):
                ahead = max(ahead, last_taken - len(results))
                results.append(future.result())
            return results, ahead

        results, ahead = walk()
        assert sorted(results) == list(range(_LAZY_CALLS))
        assert ahead <= _LAZY_CALLS // 2

    def test_T4_lazy_maps_may_be_endless(self, runner: TaskRunner) -> None:
        """A lazy map over an endless iterator can be left; the flow ends then."""

        @flow(task_runner=runner)
        def walk() -> int:
            seen = 0
            for future in as_completed(identity.map(itertools.count(), lazy=True)):
                future.result()
                seen += 1
                if seen == 100:
                    break
            return seen

        assert walk() == 100

    def test_T4_lazy_maps_can_be_walked_in_order(self, runner: TaskRunner) -> None:
        """A lazy map is an iterator of futures in the order of the elements, with the same rules for arguments."""

        @flow(task_runner=runner)
        def walk() -> Any:
            return [future.result() for future in add.map(iter(range(100)), 10, lazy=True)]

        assert walk() == list(range(10, 110))

    def test_T4_failures_in_lazy_maps_are_seen(self, runner: TaskRunner) -> None:
        """Failures come with their futures; those at which nobody looked fail the flow."""

        @flow(task_runner=runner)
        def walk(*, look: bool) -> int:
            futures = as_completed(fail.map(["a", "b", "c"], lazy=True))
            return sum(look and future.exception() is not None for future in futures)

        assert walk(look=True) == 3
        with pytest.raises(ExceptionGroup) as caught:
            walk(look=False)
        assert sorted(str(error) for error in caught.value.exceptions) == ["a", "b", "c"]

    def test_T5_equal_calls_run_twice(self, runner: TaskRunner, signals: Signals) -> None:
        """Calls of the same task with the same arguments are as many runs."""

        @flow(task_runner=runner)
        def repeat() -> None:
            for _ in range(10):
                note.submit(signals, "ran", "same")
            note.map(unmapped(signals), ["ran"] * 5, "same")

        repeat()
        assert signals.count("ran") == 15

    def test_T5_equal_calls_have_results_of_their_own(self, runner: TaskRunner) -> None:
        """Each run makes its own result, which nobody shares."""

        @task
        def fresh() -> list[int]:
            return []

        @flow(task_runner=runner)
        def repeat() -> Any:
            first, second = fresh.submit().result(), fresh.submit().result()
            first.append(1)
            return first, second

        assert repeat() == ([1], [])

    def test_T5_one_slot_keeps_the_order_of_submission(self, one_slot: TaskRunner, signals: Signals) -> None:
        """On one slot calls start in the order in which they were submitted."""

        @flow(task_runner=one_slot)
        def in_order() -> None:
            for number in range(20):
                note.submit(signals, "order", number)
            note.map(unmapped(signals), "order", range(20, 40))

        in_order()
        assert signals.notes("order") == [str(number) for number in range(40)]

    def test_T5_calls_that_queued_keep_the_order(
        self, one_slot: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """Calls of several tasks that queued up behind a long one start in the order of submission."""
        if one_slot.capabilities.inline:
            declared("inline: no call queues")
            signals.set("go")
        other = note.with_options(name="other")

        @flow(task_runner=one_slot)
        def in_order() -> None:
            gate.submit(signals)
            for number in range(0, 40, 2):
                note.submit(signals, "order", number)
                other.submit(signals, "order", number + 1)
            signals.set("go")

        in_order()
        assert signals.notes("order") == [str(number) for number in range(40)]

    def test_T5_a_call_that_waited_comes_before_later_ones(
        self, one_slot: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """A call that becomes ready goes before calls that were submitted after it and have not begun."""
        if one_slot.capabilities.inline:
            declared("inline: no call queues")
            signals.set("go")

        @flow(task_runner=one_slot)
        def in_order() -> None:
            first = gate.submit(signals)
            note.submit(signals, "order", "waited", wait_for=[first])
            for number in range(300):
                note.submit(signals, "order", number)
            signals.set("go")

        in_order()
        order = signals.notes("order")
        assert order.index("waited") < 100
        assert [text for text in order if text != "waited"] == [str(number) for number in range(300)]
