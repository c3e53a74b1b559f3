"""S1 and S2: what a future and a list of futures can be asked."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from turnout import TaskFuture, as_completed, flow, wait
from turnout.errors import CancelledRun, SerializationError, WouldDeadlockError

from ._bodies import add, fail, gate, identity
from ._kit import Declare, Signals, eventually
from ._open_calls import postponed, second_time
from ._states import StateConformance

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["FutureConformance"]


class FutureConformance(StateConformance):
    """Everything that is promised about futures and states: S1 to S4."""

    def test_S1_result_is_what_the_body_returned(self, runner: TaskRunner) -> None:
        """`result` waits and returns the value, the same object each time."""
        with runner:
            future = identity.submit(["a", {"b": 1}])
            assert future.result() == ["a", {"b": 1}]
            assert future.result() is future.result()

    def test_S1_result_raises_what_the_body_raised(self, runner: TaskRunner) -> None:
        """`result` of a failed call raises the body's exception, and `exception` returns it, each time."""
        with runner:
            future = fail.submit("no luck")
            for _ in range(3):
                with pytest.raises(ValueError, match=r"^no luck$") as caught:
                    future.result()
                assert future.exception() is caught.value

    def test_S1_looking_again_does_not_grow_the_traceback(self, runner: TaskRunner) -> None:
        """An exception that is raised by many looks keeps the traceback that it came with."""
        with runner:
            future = fail.submit()
            depths = []
            for _ in range(5):
                with pytest.raises(ValueError, match="broken") as caught:
                    future.result()
                depths.append(len(list(caught.traceback)))
        assert len(set(depths)) == 1

    def test_S1_result_too_early_raises_timeout_error(self, runner: TaskRunner) -> None:
        """`result(timeout)` and `exception(timeout)` of an open call raise TimeoutError, and the call stays open."""
        with runner:
            future = postponed(runner)
            for ask in (future.result, future.exception):
                with pytest.raises(TimeoutError, match="postponed-0"):
                    ask(timeout=0.01)
            assert not future.done()
            assert future.cancel()

    def test_S1_timeout_leaves_the_call_running(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A `result(timeout)` that gave up does nothing to the call: it ends as if nobody had asked."""
        if runner.capabilities.inline:
            declared("inline: a call that runs is over before anybody can ask")
            with runner:
                assert identity.submit(1).result(timeout=0) == 1
            return
        with runner:
            future = gate.submit(signals, "value")
            signals.wait("begun")
            with pytest.raises(TimeoutError):
                future.result(timeout=0.01)
            assert not future.done()
            signals.set("go")
            assert future.result() == "value"

    def test_S1_timeout_of_zero_asks_without_waiting(self, runner: TaskRunner) -> None:
        """With `timeout=0` a finished call answers, and an open one raises TimeoutError."""
        with runner:
            over, still_open = add.submit(1, 2), postponed(runner)
            over.wait()
            assert over.result(timeout=0) == 3
            with pytest.raises(TimeoutError):
                still_open.result(timeout=0)
            still_open.cancel()

    def test_S1_exception_of_a_result_is_none(self, runner: TaskRunner) -> None:
        """`exception` waits too, and returns None for a call that has a result."""
        with runner:
            assert add.submit(1, 2).exception() is None

    def test_S1_done_turns_true_at_the_end(self, runner: TaskRunner) -> None:
        """`done` is False while a call is open and True from its end on, whatever the end."""
        with runner:
            futures = [add.submit(1, 2), fail.submit(), postponed(runner)]
            assert not futures[2].done()
            futures[2].cancel()
            wait(futures)
            assert [future.done() for future in futures] == [True, True, True]
            futures[1].exception()

    def test_S1_running_while_the_body_runs(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """`running` is True while the body runs on runners that stream, and False before and after on all."""
        with runner:
            held_up = postponed(runner)
            waiting = identity.submit(held_up)
            assert not waiting.running()
            held_up.cancel()
            if runner.capabilities.inline:
                declared("inline: nobody can ask while the body runs")
                signals.set("go")
            future = gate.submit(signals)
            if not runner.capabilities.inline:
                signals.wait("begun")
                if runner.capabilities.streams:
                    eventually(future.running, "running() is True while the body runs")
                else:
                    declared("streams: whether a call has begun is not told")
                assert not future.done()
            signals.set("go")
            future.result()
            assert not future.running()

    def test_S1_cancelled_after_cancel_alone(self, runner: TaskRunner) -> None:
        """`cancelled` is True for a call that was cancelled, and for no other."""
        with runner:
            futures = [add.submit(1, 2), fail.submit(), postponed(runner)]
            assert not futures[2].cancelled()
            futures[2].cancel()
            wait(futures)
            assert [future.cancelled() for future in futures] == [False, False, True]
            futures[1].exception()

    def test_S1_callback_gets_the_future_once(self, runner: TaskRunner) -> None:
        """A callback is called once, with the future, which is done; however the call ended."""
        seen: list[tuple[TaskFuture[Any], bool]] = []
        with runner:
            futures: list[TaskFuture[Any]] = [add.submit(1, 2), fail.submit(), postponed(runner)]
            for future in futures:
                future.add_done_callback(lambda future: seen.append((future, future.done())))
            futures[2].cancel()
            wait(futures)
            futures[1].exception()
        assert len(seen) == 3
        assert dict(seen) == dict.fromkeys(futures, True)

    def test_S1_callback_added_late_runs_at_once(self, runner: TaskRunner) -> None:
        """A callback that is added to a finished call has run when `add_done_callback` returns."""
        seen: list[int] = []
        with runner:
            future = add.submit(1, 2)
            future.wait()
            future.add_done_callback(lambda future: seen.append(future.result()))
            assert seen == [3]

    def test_S1_callbacks_run_in_order(self, runner: TaskRunner) -> None:
        """Callbacks of one future run in the order in which they were added."""
        seen: list[int] = []
        with runner:
            future = postponed(runner)
            for number in range(20):
                future.add_done_callback(lambda _, number=number: seen.append(number))  # type: ignore[misc]
            future.cancel()
        assert seen == list(range(20))

    def test_S1_callback_error_is_logged(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """What a callback raises is logged, and neither harms the call nor the callbacks after it."""
        seen: list[str] = []

        def explode(_: TaskFuture[Any]) -> None:
            raise RuntimeError("callback went wrong")

        with runner:
            future = postponed(runner)
            future.add_done_callback(explode)
            future.add_done_callback(lambda _: seen.append("second"))
            future.cancel()
            over = add.submit(1, 2)
            over.add_done_callback(explode)
            assert over.result() == 3
        assert seen == ["second"]
        assert caplog.text.count("RuntimeError: callback went wrong") == 2

    def test_S1_waiting_in_a_callback_is_refused(self, runner: TaskRunner, signals: Signals) -> None:
        """Waiting for an open call in a callback raises WouldDeadlockError, instead of waiting for ever."""
        seen: list[BaseException | None] = []

        @flow(task_runner=runner)
        def main() -> None:
            still_open = postponed(runner)

            def ask(_: TaskFuture[Any]) -> None:
                try:
                    still_open.result(timeout=20)
                except Exception as error:
                    seen.append(error)

            future = second_time(runner).submit(signals)
            future.add_done_callback(ask)
            signals.set("go")
            future.result()
            still_open.cancel()

        main()
        assert [type(error) for error in seen] == [WouldDeadlockError]

    def test_S1_wait_tells_whether_the_call_is_over(self, runner: TaskRunner) -> None:
        """`wait` returns True for a finished call and False after its timeout; it raises nothing."""
        with runner:
            over, failed, still_open = add.submit(1, 2), fail.submit(), postponed(runner)
            assert (over.wait(), failed.wait(), still_open.wait(timeout=0.01)) == (True, True, False)
            still_open.cancel()
            failed.exception()

    def test_S1_wait_is_no_look_at_a_failure(self, runner: TaskRunner) -> None:
        """A failed call that was waited for, and no more, still makes the flow fail."""

        @flow(task_runner=runner)
        def main() -> None:
            fail.submit("unseen").wait()

        with pytest.raises(ExceptionGroup) as caught:
            main()
        assert [str(error) for error in caught.value.exceptions] == ["unseen"]

    def test_S1_state_can_be_asked_at_any_time(self, runner: TaskRunner) -> None:
        """`state` answers before and after the end, without waiting."""
        with runner:
            future = postponed(runner)
            assert not future.state.is_final()
            future.cancel()
            assert future.state.is_final()

    def test_S1_many_threads_may_wait(self, runner: TaskRunner) -> None:
        """`result` works from any thread, in any number of them at once, and all get the same object."""
        with runner, ThreadPoolExecutor(8) as threads:
            first = identity.submit([1, 2])
            answers = [threads.submit(first.result) for _ in range(8)]
            objects = [answer.result(30) for answer in answers]
            assert all(value is objects[0] for value in objects)

    def test_S1_threads_are_woken_by_cancel(self, runner: TaskRunner) -> None:
        """Every thread that waits in `result` is woken when the call is cancelled."""
        with runner, ThreadPoolExecutor(4) as threads:
            future = postponed(runner)
            answers = [threads.submit(future.exception, 30) for _ in range(4)]
            future.cancel()
            assert {type(answer.result(30)) for answer in answers} == {CancelledRun}

    def test_S1_future_outlives_its_flow(self, runner: TaskRunner) -> None:
        """A future can be asked for its result after its flow."""
        kept: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        def main() -> None:
            kept.extend([identity.submit("kept"), identity.submit(b"x" * 200_000)])

        main()
        assert kept[0].result() == "kept"
        assert kept[1].result() == b"x" * 200_000

    def test_S1_future_names_its_run(self, runner: TaskRunner) -> None:
        """Names count the calls of a task within a flow run; ids are unlike each other, in all flow runs."""
        kept: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        def main() -> None:
            kept.extend([add.submit(1, 1), add.submit(2, 2), identity.submit(3)])

        main()
        main()
        assert [future.name for future in kept] == ["add-0", "add-1", "identity-0"] * 2
        assert len({future.task_run_id for future in kept}) == 6

    def test_S1_walking_over_a_future_is_refused(self, runner: TaskRunner) -> None:
        """Iterating over a future is an error that names the ways to do it, not an endless loop."""
        with runner:
            future = identity.submit([1, 2])
            with pytest.raises(TypeError, match=r"map.*result"):
                list(future)

    def test_S1_future_hidden_in_an_object_is_refused(self, runner: TaskRunner, declared: Declare) -> None:
        """A future inside an object that is not searched can't travel: the error says how to pass it."""
        with runner:
            future = add.submit(1, 2)
            call = identity.submit(_Hiding(future))
            if runner.capabilities.in_process:
                declared("in_process: nothing travels, so nothing is refused")
                assert call.result().hidden is future
                return
            error = call.exception()
            assert isinstance(error, SerializationError)
            assert "identity" in str(error)
            assert "argument" in str(error)

    def test_S1_part_of_a_future_has_a_result(self, runner: TaskRunner) -> None:
        """`future[key].result()` is that part of the result."""
        with runner:
            future = identity.submit({"a": [5, 6]})
            assert future["a"][1].result() == 6

    def test_S1_await_gives_result_or_failure(self, runner: TaskRunner) -> None:
        """`await future` in an async flow gives the result, or raises as `result` does."""

        @flow(task_runner=runner)
        async def main() -> tuple[int, str]:
            failed = fail.submit("awaited")
            try:
                await failed
            except ValueError as error:
                return await add.submit(1, 2), str(error)
            raise AssertionError("nothing was raised")

        assert asyncio.run(main()) == (3, "awaited")

    def test_S1_await_leaves_the_loop_free(self, runner: TaskRunner) -> None:
        """While one coroutine awaits an open call, others run; `cancel` wakes it with CancelledRun."""

        @flow(task_runner=runner)
        async def main() -> str:
            future = postponed(runner)

            async def look() -> str:
                try:
                    await future
                except CancelledRun:
                    return "woken"
                return "had a result"

            looking = asyncio.create_task(look())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not looking.done()
            future.cancel()
            return await looking

        assert asyncio.run(main()) == "woken"

    def test_S1_await_sees_the_end_of_a_running_call(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """A coroutine that awaits a running call is woken at its end, by whichever thread delivers it."""
        if runner.capabilities.inline:
            declared("inline: the body blocks the loop, so it may wait for nothing there")
            signals.set("go")

        @flow(task_runner=runner)
        async def main() -> list[str]:
            future = gate.submit(signals, "value")

            async def look() -> str:
                return str(await future)

            looking = [asyncio.create_task(look()) for _ in range(10)]
            await asyncio.sleep(0)
            signals.set("go")
            return await asyncio.gather(*looking)

        assert asyncio.run(main()) == ["value"] * 10

    def test_S1_awaiting_with_a_timeout_leaves_the_call_open(self, runner: TaskRunner) -> None:
        """`asyncio.wait_for(future, ...)` gives up on its own: the call stays open."""

        @flow(task_runner=runner)
        async def main() -> bool:
            future = postponed(runner)

            async def look() -> int:
                return await future

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(look(), 0.01)
            still_open = not future.done()
            future.cancel()
            return still_open

        assert asyncio.run(main())

    def test_S1_futures_can_be_gathered(self, runner: TaskRunner) -> None:
        """`asyncio.gather(*futures)` gives the results in order."""

        @flow(task_runner=runner)
        async def main() -> list[int]:
            return list(await asyncio.gather(*add.map(range(20), 1)))

        assert asyncio.run(main()) == list(range(1, 21))

    def test_S2_wait_for_all(self, runner: TaskRunner) -> None:
        """`wait` returns when all are over, with all of them in `done`, failures too, and raises none."""
        with runner:
            futures = [add.submit(1, 2), fail.submit(), add.submit(3, 4)]
            done, not_done = wait(futures)
            assert done == set(futures)
            assert not_done == set()
            futures[1].exception()

    def test_S2_wait_for_the_first(self, runner: TaskRunner) -> None:
        """With FIRST_COMPLETED, `wait` returns as soon as one is over."""
        with runner:
            slow, quick = postponed(runner), add.submit(1, 2)
            result = wait([slow, quick], return_when="FIRST_COMPLETED")
            assert result.done == {quick}
            assert result.not_done == {slow}
            slow.cancel()

    def test_S2_wait_for_the_first_failure(self, runner: TaskRunner) -> None:
        """With FIRST_EXCEPTION, `wait` returns at the first failure, or when all are over without one."""
        with runner:
            slow, good, bad = postponed(runner), add.submit(1, 2), fail.submit()
            result = wait([slow, good, bad], return_when="FIRST_EXCEPTION")
            assert bad in result.done
            assert result.not_done >= {slow}
            bad.exception()
            slow.cancel()
            assert wait([good], return_when="FIRST_EXCEPTION").done == {good}

    def test_S2_wait_gives_up_after_its_timeout(self, runner: TaskRunner) -> None:
        """`wait(timeout=)` returns what is over and what is not."""
        with runner:
            slow, quick = postponed(runner), add.submit(1, 2)
            quick.wait()
            assert wait([slow, quick], timeout=0.01) == ({quick}, {slow})
            slow.cancel()

    def test_S2_wait_for_something_unknown_is_refused(self, runner: TaskRunner) -> None:
        """A misspelt `return_when` is a ValueError that names the possible words."""
        with runner, pytest.raises(ValueError, match="FIRST_COMPLETED"):
            wait([add.submit(1, 2)], return_when="FIRST")

    def test_S2_nothing_to_wait_for(self, runner: TaskRunner) -> None:
        """`wait` and `as_completed` of no futures return at once."""
        with runner:
            assert wait([]) == (set(), set())
            assert list(as_completed([])) == []

    def test_S2_as_completed_goes_by_the_end(self, runner: TaskRunner) -> None:
        """`as_completed` yields the finished call while an earlier one is open, and that one when it ends."""
        with runner:
            slow, quick = postponed(runner), add.submit(1, 2)
            in_turn = as_completed([slow, quick])
            assert next(in_turn) is quick
            slow.cancel()
            assert list(in_turn) == [slow]

    def test_S2_as_completed_follows_the_order_of_ends(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """Calls that run at once come in the order in which they end, not in which they were submitted."""
        if runner.capabilities.inline:
            declared("inline: calls end in order of submission")
            with runner:
                futures = add.map(range(5), 1)
                assert set(as_completed(futures)) == set(futures)
            return
        with runner:
            late = gate.submit(signals, "late")
            early = identity.submit("early")
            names = []
            for future in as_completed([late, early]):
                names.append(future.result())
                signals.set("go")
        assert names == ["early", "late"]

    def test_S2_as_completed_yields_each_once(self, runner: TaskRunner) -> None:
        """A future that is given twice comes once, and failed calls come like all others."""
        with runner:
            good, bad = add.submit(1, 2), fail.submit()
            seen = list(as_completed([good, bad, good, bad]))
            assert len(seen) == 2
            assert set(seen) == {good, bad}
            bad.exception()

    def test_S2_as_completed_gives_up_after_its_timeout(self, runner: TaskRunner) -> None:
        """`as_completed(timeout=)` raises TimeoutError, after it has yielded what was over."""
        with runner:
            slow, quick = postponed(runner), add.submit(1, 2)
            quick.wait()
            in_turn = as_completed([slow, quick], timeout=0.01)
            assert next(in_turn) is quick
            with pytest.raises(TimeoutError, match="1 of 2"):
                next(in_turn)
            slow.cancel()

    def test_S2_as_completed_may_be_left_early(self, runner: TaskRunner) -> None:
        """A loop over `as_completed` may break off; the calls go on."""
        with runner:
            futures = add.map(range(20), 1)
            for _ in as_completed(futures):
                break
            assert futures.result() == list(range(1, 21))

    def test_S2_list_of_futures_keeps_order(self, runner: TaskRunner) -> None:
        """`task.map(...).result()` gives the results in order of the elements."""
        with runner:
            assert add.map(range(100), 1).result() == list(range(1, 101))

    def test_S2_list_of_futures_raises_the_first_failure(self, runner: TaskRunner) -> None:
        """`task.map(...).result()` raises what the first failed element raised, first in order of the elements."""
        with runner:
            futures = fail.map(["one", "two", "three"])
            futures.wait()
            with pytest.raises(ValueError, match=r"^one$"):
                futures.result()
            for future in futures:
                future.exception()

    def test_S2_list_of_futures_waits(self, runner: TaskRunner) -> None:
        """`task.map(...).wait()` waits for all, raises nothing, and returns whether all are over."""
        with runner:
            futures = fail.map(["one", "two"])
            assert futures.wait()
            assert all(future.done() for future in futures)
            for future in futures:
                future.exception()

    def test_S2_list_of_futures_shares_one_timeout(self, runner: TaskRunner) -> None:
        """`result(timeout)` and `wait(timeout)` of a list give up when any of it is open at that time."""
        with runner:
            gone = postponed(runner)
            futures = identity.map([1, gone])
            assert not futures.wait(timeout=0.01)
            with pytest.raises(TimeoutError):
                futures.result(timeout=0.01)
            gone.cancel()


class _Hiding:
    """An object of the user's, in which nobody looks for futures."""

    def __init__(self, hidden: TaskFuture[Any]) -> None:
        self.hidden = hidden
