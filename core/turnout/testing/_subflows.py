"""F6, F8 and F9: flows in flows, async flows, several at once, and when a backend starts."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from turnout import TaskFuture, allow_failure, flow, task
from turnout.errors import CancelledRun, RunnerStartError

from ._bodies import add, describe, fail, gate, identity, note, total
from ._kit import Conformance, Declare, Signals, run_on
from ._open_calls import postponed

if TYPE_CHECKING:
    from turnout.runner import Host, TaskRunner

__all__ = ["Backends", "SubflowConformance", "backends"]


@dataclass
class Backends:
    """How often the backends of some runner objects were started and stopped, by ``id`` of the object."""

    started: list[int] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)

    def starts(self, runner: TaskRunner) -> int:
        """Return how often a runner was started."""
        return self.started.count(id(runner))

    def stops(self, runner: TaskRunner) -> int:
        """Return how often a runner was stopped."""
        return self.stopped.count(id(runner))


@contextlib.contextmanager
def backends(kind: type[TaskRunner]) -> Iterator[Backends]:
    """Count the starts and stops of all runners of a class."""
    counted = Backends()
    with pytest.MonkeyPatch.context() as patch:
        start, stop = kind.start, kind.stop

        def counted_start(self: TaskRunner, host: Host) -> None:
            counted.started.append(id(self))
            start(self, host)

        def counted_stop(self: TaskRunner) -> None:
            counted.stopped.append(id(self))
            stop(self)

        patch.setattr(kind, "start", counted_start)
        patch.setattr(kind, "stop", counted_stop)
        yield counted


class SubflowConformance(Conformance):
    """Flows in flows, async flows, flows side by side, and their backends."""

    def test_F6_a_subflow_is_called_like_a_function(self, runner: TaskRunner) -> None:
        """A flow called in a flow returns its result there, and its calls run."""

        @flow
        def inner(number: int) -> Any:
            return add.submit(number, 1)

        @flow(task_runner=runner)
        def outer() -> Any:
            return [inner(1), add.submit(inner(2), 10)]

        assert outer() == [2, 13]

    def test_F6_a_subflow_shares_the_parents_backend(self, fresh_runner: TaskRunner) -> None:
        """A subflow without a runner of its own uses the parent's, which starts once."""

        @flow
        def inner(number: int) -> Any:
            return add.submit(number, 1)

        @flow(task_runner=fresh_runner)
        def outer() -> Any:
            return add.submit(inner(1), inner(2)).result() + inner(3)

        with backends(type(fresh_runner)) as counted:
            assert outer() == 9
        assert (counted.starts(fresh_runner), counted.stops(fresh_runner)) == (1, 1)

    def test_F6_a_subflow_shares_a_backend_that_the_parent_has_not_used(self, fresh_runner: TaskRunner) -> None:
        """The backend that a subflow starts on the parent's runner stays up until the parent ends."""

        @flow
        def inner(number: int) -> Any:
            return add.submit(number, 1)

        @flow(task_runner=fresh_runner)
        def outer() -> Any:
            return inner(1) + inner(2)

        with backends(type(fresh_runner)) as counted:
            assert outer() == 5
        assert (counted.starts(fresh_runner), counted.stops(fresh_runner)) == (1, 1)

    def test_F6_a_subflow_may_name_its_own_runner(self, runner: TaskRunner, declared: Declare) -> None:
        """A subflow decorated with a runner uses that one, started once for the parent, and stopped with it."""
        other = self.make_runner(3)
        if other == runner:
            declared("inline: all runners are equal, and equal ones share a backend")

        @flow(task_runner=other)
        def inner(number: Any) -> Any:
            return add.submit(number, 1)

        @flow(task_runner=runner)
        def outer() -> Any:
            first = add.submit(1, 2)
            return add.submit(inner(first), inner(5))

        with backends(type(other)) as counted:
            assert outer() == 10
        assert counted.starts(other) == counted.stops(other) == (other != runner)

    def test_F6_a_subflow_takes_futures_of_the_parent(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """Futures of the parent are arguments of a subflow's calls like any other, done or not."""
        if runner.capabilities.inline:
            declared("inline: the parent's call is done when the subflow begins")
            signals.set("go")

        @flow
        def inner(one: Any, many: Any) -> Any:
            signals.set("go")
            return total.submit([add.submit(one, 1), *many])

        @flow(task_runner=runner)
        def outer() -> Any:
            later = gate.submit(signals, 10)
            return inner(identity.submit(4), [add.submit(1, 1)]) + later.result()

        assert outer() == 17

    def test_F6_a_subflow_takes_failures_that_are_allowed(self, runner: TaskRunner) -> None:
        """A subflow gets an exception for a future that may fail, as a call does, but not for a cancelled one."""

        @flow
        def inner(one: Any, many: Any) -> Any:
            return describe.submit(one), describe.map([many[0], many[0]])

        @flow(task_runner=runner)
        def outer() -> Any:
            bad, good = fail.submit("allowed"), identity.submit({"a": 1})
            unwanted = postponed(runner)
            unwanted.cancel()
            with pytest.raises(CancelledRun):
                inner(allow_failure(unwanted), [0])
            with pytest.raises(ValueError, match="allowed"):
                inner(bad, [0])
            return inner(allow_failure(bad), [allow_failure(good["a"])]), inner(allow_failure(bad["a"]), [good["a"]])

        told = ("ValueError: allowed", ["int: 1", "int: 1"])
        assert outer() == (told, told)

    def test_F6_five_deep(self, one_slot: TaskRunner) -> None:
        """Flows in flows in flows, five deep with calls on each level, end on one slot."""

        @flow
        def nested(depth: int, below: Any) -> Any:
            mine = add.submit(below, 1)
            return mine if depth == 1 else add.submit(nested(depth - 1, mine), 100)

        assert nested.with_options(task_runner=one_slot)(5, 0) == 405

    def test_F6_a_failing_subflow_raises_in_its_parent(self, runner: TaskRunner) -> None:
        """The parent may catch what a subflow raises, and completes then."""

        @flow
        def inner() -> Any:
            return fail.submit("inside")

        @flow(task_runner=runner)
        def outer() -> str:
            with pytest.raises(ValueError, match="inside"):
                inner()
            return "recovered"

        assert outer() == "recovered"
        with pytest.raises(ValueError, match="inside"):
            run_on(runner, inner)

    def test_F6_a_subflow_can_return_its_state(self, runner: TaskRunner) -> None:
        """``return_state=True`` works for subflows, and a state is no failure of the parent."""

        @flow
        def inner() -> Any:
            fail.submit("inside")

        @flow(task_runner=runner)
        def outer() -> str:
            return str(inner(return_state=True).name)

        assert outer() == "Failed"

    def test_F6_a_subflow_waits_for_its_own_calls_only(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """A subflow ends when its own calls have, whatever the parent still has under way."""
        if runner.capabilities.inline:
            declared("inline: the parent has nothing under way")
            return

        @flow
        def inner() -> None:
            note.submit(signals, "inner")

        @flow(task_runner=runner)
        def outer() -> bool:
            unfinished = gate.submit(signals)
            signals.wait("begun")
            inner()
            over = unfinished.done()
            signals.set("go")
            return over

        assert outer() is False
        assert signals.count("inner") == 1

    def test_F6_a_flow_can_be_called_in_a_task(self, one_slot: TaskRunner) -> None:
        """A flow called in the body of a task runs its calls without deadlock, on one slot too."""

        @flow
        def inner(number: int) -> Any:
            return total.submit([add.submit(number, 1), add.submit(number, 2)])

        @task
        def call_it(number: int) -> Any:
            return inner(number)

        @flow(task_runner=one_slot)
        def outer() -> Any:
            return call_it.map([1, 10])

        assert outer() == [5, 23]

    def test_F8_async_flows_are_awaited(self, runner: TaskRunner) -> None:
        """An async flow is a coroutine that returns the body's value, futures replaced."""

        @flow(task_runner=runner)
        async def calculate() -> Any:
            first = await add.submit(1, 2)
            return [first, add.submit(first, 4)]

        assert asyncio.run(calculate()) == [3, 7]

    def test_F8_async_flows_fail_like_others(self, runner: TaskRunner) -> None:
        """Awaiting raises the body's exception or the group of unseen failures; a state raises nothing."""

        @flow(task_runner=runner)
        async def bad(*, in_body: bool) -> None:
            fail.submit("call")
            if in_body:
                raise KeyError("body")

        with pytest.raises(KeyError, match="body"):
            asyncio.run(bad(in_body=True))
        with pytest.raises(ExceptionGroup) as caught:
            asyncio.run(bad(in_body=False))
        assert [str(error) for error in caught.value.exceptions] == ["call"]
        untyped: Any = bad
        assert asyncio.run(untyped(in_body=False, return_state=True)).name == "Failed"

    def test_F8_awaiting_a_failed_future_raises(self, runner: TaskRunner) -> None:
        """``await future`` raises what the call raised, and is a look."""

        @flow(task_runner=runner)
        async def careful() -> str:
            with pytest.raises(ValueError, match="awaited"):
                await fail.submit("awaited")
            return "fine"

        assert asyncio.run(careful()) == "fine"

    def test_F8_an_async_flow_leaves_the_loop_free(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """While an async flow waits for its calls, for slots and for its end, the event loop runs on."""
        if runner.capabilities.inline:
            declared("inline: calls of an async flow run beside the loop all the same")

        async def tick() -> None:
            # The call can't end before the loop has come back here several times.
            while not signals.is_set("begun"):  # noqa: ASYNC110 - another process sets it
                await asyncio.sleep(0.001)
            for _ in range(5):
                await asyncio.sleep(0.001)
            signals.set("go")

        @flow(task_runner=runner)
        async def patient() -> Any:
            return gate.submit(signals, "passed")

        async def both() -> Any:
            return (await asyncio.gather(patient(), tick()))[0]

        assert asyncio.run(both()) == "passed"

    def test_F8_two_async_flows_at_once_on_one_runner(self, runner: TaskRunner) -> None:
        """Two async flows run at once on one runner object: each needs the other to go on."""

        async def both() -> Any:
            turns = [asyncio.Event(), asyncio.Event()]

            @flow(task_runner=runner)
            async def half(mine: int) -> Any:
                first = await add.submit(mine, 1)
                turns[mine].set()
                await turns[1 - mine].wait()
                return add.submit(first, 10)

            return await asyncio.gather(half(0), half(1))

        assert asyncio.run(both()) == [11, 12]

    def test_F8_async_subflows(self, runner: TaskRunner) -> None:
        """An async flow awaits its subflows, also several at once."""

        @flow
        async def inner(number: int) -> Any:
            return await add.submit(number, 1)

        @flow(task_runner=runner)
        async def outer() -> Any:
            return total.submit(await asyncio.gather(*(inner(number) for number in range(5))))

        assert asyncio.run(outer()) == 15

    @pytest.mark.parametrize("runners", [1, 2])
    def test_F8_two_flows_at_once_in_threads(self, runner: TaskRunner, one_slot: TaskRunner, runners: int) -> None:
        """Two flows run at once in two threads, on one runner object or on two, and keep their calls apart."""
        meeting = threading.Barrier(2)

        def half(mine: int) -> Any:
            first = add.submit(mine, 1).result()
            meeting.wait(30)
            return identity.map(range(first, first + 50))

        with ThreadPoolExecutor(2) as pool:
            used = [runner, runner if runners == 1 else one_slot]
            running = [pool.submit(run_on, each, half, number * 1000) for number, each in enumerate(used)]
            results = [future.result(50) for future in running]
        assert results == [list(range(1, 51)), list(range(1001, 1051))]

    def test_F8_two_flows_share_one_backend(self, fresh_runner: TaskRunner) -> None:
        """A runner object that two flows use at once starts one backend, and stops it after the last."""
        meeting = threading.Barrier(2)

        @flow(task_runner=fresh_runner)
        def half(number: int) -> Any:
            meeting.wait(30)
            first = add.submit(number, 1).result()
            meeting.wait(30)
            return first

        with backends(type(fresh_runner)) as counted, ThreadPoolExecutor(2) as pool:
            assert list(pool.map(half, [1, 2])) == [2, 3]
        assert (counted.starts(fresh_runner), counted.stops(fresh_runner)) == (1, 1)

    def test_F8_a_failing_flow_leaves_the_other_alone(self, runner: TaskRunner) -> None:
        """A flow that fails beside another one does not touch the other's calls."""
        meeting = threading.Barrier(2)

        @flow(task_runner=runner)
        def half(*, good: bool) -> Any:
            futures = identity.map(range(50))
            meeting.wait(30)
            if not good:
                raise KeyError("bad half")
            return futures

        with ThreadPoolExecutor(2) as pool:
            good, bad = pool.submit(half, good=True), pool.submit(half, good=False)
            assert isinstance(bad.exception(50), KeyError)
            assert good.result(50) == list(range(50))

    def test_F9_a_flow_that_submits_nothing_starts_nothing(self, fresh_runner: TaskRunner) -> None:
        """Neither an empty flow nor one that only calls tasks directly starts a backend."""

        @flow(task_runner=fresh_runner)
        def idle() -> Any:
            return add(1, 2)

        with backends(type(fresh_runner)) as counted:
            assert idle() == 3
        assert (counted.starts(fresh_runner), counted.stops(fresh_runner)) == (0, 0)

    def test_F9_the_first_call_starts_the_backend_and_the_end_stops_it(self, fresh_runner: TaskRunner) -> None:
        """A backend lives from the first submit of its flow to the flow's end, and the next flow starts another."""
        seen: list[tuple[int, int]] = []

        @flow(task_runner=fresh_runner)
        def work() -> Any:
            seen.append((counted.starts(fresh_runner), counted.stops(fresh_runner)))
            futures = [add.submit(1, 2), add.submit(3, 4)]
            seen.append((counted.starts(fresh_runner), counted.stops(fresh_runner)))
            return futures

        with backends(type(fresh_runner)) as counted:
            assert work() == work() == [3, 7]
        assert seen == [(0, 0), (1, 0), (1, 1), (2, 1)]
        assert (counted.starts(fresh_runner), counted.stops(fresh_runner)) == (2, 2)

    def test_F9_a_failed_flow_stops_its_backend(self, fresh_runner: TaskRunner) -> None:
        """The backend is stopped however its flow ends."""

        @flow(task_runner=fresh_runner)
        def bad() -> None:
            add.submit(1, 2)
            raise KeyError("body")

        with backends(type(fresh_runner)) as counted, pytest.raises(KeyError):
            bad()
        assert (counted.starts(fresh_runner), counted.stops(fresh_runner)) == (1, 1)

    def test_F9_an_error_of_start_names_runner_and_reason(
        self, fresh_runner: TaskRunner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A backend that doesn't come up is a RunnerStartError that names the runner and says why."""
        kind = type(fresh_runner)
        futures: list[TaskFuture[Any]] = []

        def start(self: TaskRunner, host: Host) -> None:
            raise OSError("no room in this inn")

        @flow(task_runner=fresh_runner)
        def work() -> Any:
            futures.append(add.submit(1, 2))
            return futures

        with monkeypatch.context() as patch:
            patch.setattr(kind, "start", start)
            with pytest.raises(RunnerStartError) as caught:
                work()
        assert kind.__name__ in str(caught.value)
        assert "no room in this inn" in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)

    def test_F9_a_runner_can_be_used_after_it_failed_to_start(
        self, fresh_runner: TaskRunner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A start that failed leaves nothing behind: the next flow starts the runner again."""

        def start(self: TaskRunner, host: Host) -> None:
            raise OSError("not yet")

        @flow(task_runner=fresh_runner)
        def work() -> Any:
            return add.submit(1, 2)

        with monkeypatch.context() as patch:
            patch.setattr(type(fresh_runner), "start", start)
            with pytest.raises(RunnerStartError):
                work()
        assert work() == 3
