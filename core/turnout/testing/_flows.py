"""F2 to F5: what a flow returns, what it waits for, and how it fails."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest

from turnout import State, TaskFuture, allow_failure, as_completed, flow, task, wait
from turnout.errors import CrashedRun, TaskRunTimeoutError, UpstreamFailed

from ._bodies import Pair, Point, add, crash, describe, fail, fail_until, gate, identity, note
from ._flow_options import FlowOptionConformance
from ._kit import Declare, Signals, until_retrying
from ._open_calls import beside, postponed
from ._subflows import SubflowConformance

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["FlowConformance"]


class FlowConformance(FlowOptionConformance, SubflowConformance):
    """Everything that is promised about flows: F1 to F9."""

    @pytest.mark.parametrize("value", [None, 0, "text", [1, 2], {"a": 1}], ids=repr)
    def test_F2_plain_values_are_returned_as_they_are(self, runner: TaskRunner, value: Any) -> None:
        """What the body returns is what the caller gets."""

        @flow(task_runner=runner)
        def give() -> Any:
            return value

        assert give() is value

    def test_F2_a_future_becomes_its_result(self, runner: TaskRunner) -> None:
        """A returned future, a part of one, and a mapped list are replaced by results."""

        @flow(task_runner=runner)
        def one() -> Any:
            return add.submit(1, 2)

        @flow(task_runner=runner)
        def part() -> Any:
            return identity.submit({"a": [5, 6]})["a"][1]

        @flow(task_runner=runner)
        def many() -> Any:
            return add.map([1, 2, 3], [10, 20, 30])

        assert (one(), part(), many()) == (3, 6, [11, 22, 33])

    def test_F2_futures_inside_containers_become_results(self, runner: TaskRunner) -> None:
        """Futures in nested lists, tuples, sets, dicts, named tuples and dataclasses are replaced; the kinds stay."""

        @flow(task_runner=runner)
        def nested() -> Any:
            return {
                "list": [add.submit(1, 1), [add.submit(1, 2)]],
                "tuple": (add.submit(2, 2), 5),
                "set": {add.submit(3, 3)},
                "frozenset": frozenset({add.submit(3, 4)}),
                "ordered": OrderedDict(a=add.submit(4, 4)),
                "named": Point(add.submit(4, 5), 10),
                "dataclass": Pair(add.submit(5, 6), [add.submit(6, 6)]),
                add.submit(0, 0): "key",
            }

        result = nested()
        assert result == {
            "list": [2, [3]],
            "tuple": (4, 5),
            "set": {6},
            "frozenset": frozenset({7}),
            "ordered": OrderedDict(a=8),
            "named": Point(9, 10),
            "dataclass": Pair(11, [12]),
            0: "key",
        }
        kinds = [type(result[key]) for key in ("tuple", "set", "frozenset", "ordered", "named", "dataclass")]
        assert kinds == [tuple, set, frozenset, OrderedDict, Point, Pair]

    def test_F2_the_caller_keeps_its_own_container(self, runner: TaskRunner) -> None:
        """Replacing futures in what is returned does not change the body's own object."""
        mine: list[Any] = []

        @flow(task_runner=runner)
        def give() -> Any:
            mine.append(add.submit(1, 2))
            return mine

        assert give() == [3]
        assert isinstance(mine[0], TaskFuture)

    def test_F2_return_state_of_a_flow_that_works(self, runner: TaskRunner) -> None:
        """``return_state=True`` gives a Completed state with the result, futures replaced."""

        @flow(task_runner=runner)
        def good() -> Any:
            return [add.submit(1, 2)]

        state = good(return_state=True)
        assert isinstance(state, State)
        assert (state.name, state.is_completed(), state.result()) == ("Completed", True, [3])

    def test_F2_return_state_of_a_flow_that_fails(self, runner: TaskRunner) -> None:
        """``return_state=True`` raises nothing; the state has the exception and raises it on request."""
        error = KeyError("mine")

        @flow(task_runner=runner)
        def bad() -> None:
            raise error

        state = bad(return_state=True)
        assert (state.name, state.is_failed()) == ("Failed", True)
        assert state.result(raise_on_failure=False) is error
        with pytest.raises(KeyError, match="mine"):
            state.result()

    def test_F2_a_returned_failure_is_raised(self, runner: TaskRunner) -> None:
        """Returning a future that failed raises the call's own exception, not a group."""

        @flow(task_runner=runner)
        def bad() -> Any:
            return {"deep": [fail.submit("returned")]}

        with pytest.raises(ValueError, match="returned"):
            bad()

    def test_F3_flow_waits_for_calls_nobody_waited_for(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """Calls that still run, or have not begun, when the body ends are over when the flow is."""
        if runner.capabilities.inline:
            declared("inline: no call outlasts its submit")
            signals.set("go")
        futures: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        def leave_early() -> str:
            futures.append(gate.submit(signals))
            futures.extend(note.submit(signals, "ran", wait_for=[futures[0]]) for _ in range(10))
            signals.set("go")
            return "left"

        assert leave_early() == "left"
        assert all(future.done() for future in futures)
        assert (signals.is_set("over"), signals.count("ran")) == (True, 10)

    def test_F3_flow_waits_for_chains(self, one_slot: TaskRunner, signals: Signals) -> None:
        """The flow also waits for dependents that nothing has started when the body ends."""

        @flow(task_runner=one_slot)
        def leave_early() -> None:
            last: Any = None
            for _ in range(50):
                last = note.submit(signals, "ran", wait_for=[last])

        leave_early()
        assert signals.count("ran") == 50

    def test_F3_flow_waits_for_retries(self, runner: TaskRunner, signals: Signals) -> None:
        """A call that waits to be tried again belongs to the calls that the flow waits for."""
        flaky = fail_until.with_options(retries=2, retry_delay_seconds=0.05)

        @flow(task_runner=runner)
        def leave_early() -> None:
            flaky.submit(signals, "attempt", 3)

        leave_early()
        assert signals.count("attempt") == 3

    def test_F3_flow_waits_for_calls_of_a_callback(self, runner: TaskRunner) -> None:
        """The callbacks of its calls have run when the flow is over."""
        seen: list[int] = []

        @flow(task_runner=runner)
        def leave_early() -> None:
            for number in range(20):
                add.submit(number, 0).add_done_callback(lambda future: seen.append(future.result()))

        leave_early()
        assert sorted(seen) == list(range(20))

    def test_F4_a_failure_nobody_saw_fails_the_flow(self, runner: TaskRunner) -> None:
        """A failed call at whose outcome nobody looked makes the flow raise an ExceptionGroup of its exception."""

        @flow(task_runner=runner)
        def careless() -> str:
            fail.submit("unseen")
            return "fine"

        with pytest.raises(ExceptionGroup) as caught:
            careless()
        assert _texts(caught.value) == ["ValueError: unseen"]
        assert careless(return_state=True).name == "Failed"

    def test_F4_the_group_holds_every_failure(self, runner: TaskRunner) -> None:
        """All unseen failures are in the group, and nothing that went well."""

        @flow(task_runner=runner)
        def careless() -> None:
            for number in range(3):
                fail.submit(f"no {number}")
                add.submit(number, number)

        with pytest.raises(ExceptionGroup) as caught:
            careless()
        assert sorted(_texts(caught.value)) == ["ValueError: no 0", "ValueError: no 1", "ValueError: no 2"]

    @pytest.mark.parametrize("look", ["result", "exception", "state", "allow_failure"])
    def test_F4_a_look_makes_it_no_failure_of_the_flow(self, runner: TaskRunner, look: str) -> None:
        """Who looks by ``result``, ``exception``, a final ``state`` or ``allow_failure`` takes the failure over."""

        @flow(task_runner=runner)
        def careful() -> Any:
            return _look(fail.submit("seen"), look)

        assert careful() == "ValueError: seen"

    def test_F4_waiting_is_not_a_look(self, runner: TaskRunner) -> None:
        """``wait``, ``done`` and ``as_completed`` tell that a call is over, not how: the flow fails still."""

        @flow(task_runner=runner)
        def careless() -> None:
            futures = [fail.submit("one"), fail.submit("two"), fail.submit("three")]
            futures[0].wait()
            wait(futures)
            list(as_completed(futures))
            assert all(future.done() for future in futures)

        with pytest.raises(ExceptionGroup) as caught:
            careless()
        assert len(caught.value.exceptions) == 3

    def test_F4_a_state_that_is_not_final_is_no_look(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """Who asked for the state before the call was over has not seen its failure."""
        if runner.capabilities.inline:
            declared("inline: a call is over before anybody can ask")
            return

        @task
        def fail_later() -> None:
            signals.wait("go")
            raise ValueError("later")

        @flow(task_runner=runner)
        def careless() -> None:
            assert not fail_later.submit().state.is_final()
            signals.set("go")

        with pytest.raises(ExceptionGroup) as caught:
            careless()
        assert _texts(caught.value) == ["ValueError: later"]

    def test_F4_a_failed_dependent_is_not_a_look(self, runner: TaskRunner) -> None:
        """That a dependent could not run does not hide the failure that stopped it."""

        @flow(task_runner=runner)
        def careless() -> None:
            identity.submit(identity.submit(fail.submit("root")))

        with pytest.raises(ExceptionGroup) as caught:
            careless()
        assert "ValueError: root" in _texts(caught.value)

    def test_F4_looking_at_a_dependent_is_looking_at_its_root(self, runner: TaskRunner) -> None:
        """Whoever sees UpstreamFailed has been told of the root's exception."""

        @flow(task_runner=runner)
        def careful() -> str:
            error = identity.submit(identity.submit(fail.submit("root"))).exception()
            assert isinstance(error, UpstreamFailed)
            return str(error.__cause__)

        assert careful() == "root"

    def test_F4_a_crash_nobody_saw_fails_the_flow(self, runner: TaskRunner) -> None:
        """A crashed call counts like a failed one."""

        @flow(task_runner=runner)
        def careless() -> None:
            crash.submit()

        with pytest.raises(ExceptionGroup) as caught:
            careless()
        assert [type(error) for error in caught.value.exceptions] == [CrashedRun]

    def test_F4_a_call_that_worked_at_last_is_no_failure(self, runner: TaskRunner, signals: Signals) -> None:
        """Attempts that were repeated are not failures."""
        flaky = fail_until.with_options(retries=3)

        @flow(task_runner=runner)
        def patient() -> str:
            flaky.submit(signals, "attempt", 3)
            return "fine"

        assert patient() == "fine"

    def test_F4_a_cancelled_call_is_no_failure(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """Who cancels a call knows: the flow completes."""
        if runner.capabilities.inline:
            declared("inline: a call is over when submit returns, retries and all")
            return
        again_later = fail.with_options(retries=1, retry_delay_seconds=3600)

        @flow(task_runner=runner)
        def undecided() -> str:
            unwanted = again_later.submit()
            note.submit(signals, "ran", wait_for=[unwanted])
            until_retrying(unwanted)
            assert unwanted.cancel()
            return "fine"

        assert undecided() == "fine"
        assert signals.count("ran") == 0

    def test_F4_failures_of_nested_calls_count(self, runner: TaskRunner) -> None:
        """A failure that a task's own nested call had, and at which the task did not look, fails the flow too."""

        @task
        def outer() -> str:
            fail.submit("nested")
            return "fine"

        @flow(task_runner=runner)
        def careless() -> Any:
            return outer.submit().result()

        with pytest.raises(ExceptionGroup) as caught:
            careless()
        assert _texts(caught.value) == ["ValueError: nested"]

    @pytest.mark.parametrize("how", ["cancelled", "out of time"])
    def test_F4_failures_within_a_stopped_call_do_not_count(
        self, runner: TaskRunner, signals: Signals, how: str
    ) -> None:
        """What failed inside of a call that was cancelled or ran out of time: its body could not look any more."""

        @task
        def outer() -> str:
            future = fail.submit("nested")
            future.wait()
            signals.set("begun")
            signals.wait("go")
            future.exception()
            return "looked"

        @flow(task_runner=runner)
        def main() -> Any:
            if how == "out of time":
                return type(outer.with_options(timeout_seconds=0.3).submit().exception())
            future = beside(outer, runner).submit()
            signals.wait("begun")
            took = future.cancel()
            signals.set("go")
            return took or future.result()

        assert main() in (TaskRunTimeoutError, True, "looked")
        signals.set("go")

    def test_F5_the_bodys_exception_reaches_the_caller(self, runner: TaskRunner) -> None:
        """The exception that the body raised is raised, the very object, even when calls failed besides."""
        error = KeyError("body")

        @flow(task_runner=runner)
        def bad() -> None:
            fail.submit("call")
            raise error

        with pytest.raises(KeyError) as caught:
            bad()
        assert caught.value is error

    def test_F5_calls_that_have_not_begun_are_cancelled(
        self, one_slot: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """When the body raises, calls that wait for a slot never run."""
        if one_slot.capabilities.inline:
            declared("inline: nothing waits for a slot")
            return
        queued: list[TaskFuture[Any]] = []

        @flow(task_runner=one_slot)
        def bad() -> None:
            if one_slot.capabilities.cancel == "none":
                # Calls are cancelled last first: when it is the turn of this one, all others have been told.
                postponed(one_slot).add_done_callback(lambda _: signals.set("go"))
            gate.submit(signals)
            signals.wait("begun")
            queued.extend(note.submit(signals, "ran") for _ in range(30))
            raise KeyError("body")

        with pytest.raises(KeyError):
            bad()
        assert all(future.cancelled() for future in queued)
        assert signals.count("ran") == 0

    def test_F5_calls_that_wait_for_others_are_cancelled(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """When the body raises, retries that are due later and their dependents are given up, at once."""
        if runner.capabilities.inline:
            declared("inline: a call is over when submit returns, retries and all")
            return
        again_later = fail.with_options(retries=1, retry_delay_seconds=3600)
        futures: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        def bad() -> None:
            futures.append(again_later.submit())
            futures.append(note.submit(signals, "ran", wait_for=[futures[0]]))
            until_retrying(futures[0])
            raise KeyError("body")

        with pytest.raises(KeyError):
            bad()
        assert all(future.cancelled() for future in futures)
        assert signals.count("ran") == 0

    def test_F5_running_calls_are_stopped_or_awaited(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """When the body raises, running calls are cancelled as far as the runner can, and awaited otherwise."""
        if runner.capabilities.inline:
            declared("inline: nothing runs while the body does")
            return
        stops = runner.capabilities.cancel != "none"
        futures: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        def bad() -> None:
            futures.append(gate.submit(signals))
            signals.wait("begun")
            futures.append(identity.submit(futures[0]))
            if not stops:
                declared("cancel='none': the running call is awaited")
                futures[1].add_done_callback(lambda _: signals.set("go"))
            raise KeyError("body")

        with pytest.raises(KeyError):
            bad()
        assert all(future.done() for future in futures)
        assert futures[1].cancelled()
        assert futures[0].cancelled() or not stops
        assert signals.is_set("over") is not stops

    def test_F5_what_runs_on_is_not_tried_again(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call that fails while its flow is ending is not repeated, however many retries it has left."""
        if runner.capabilities.inline:
            declared("inline: nothing runs while the body does")
            return

        @task(retries=5, retry_delay_seconds=3600)
        def fail_at_last() -> None:
            signals.note("attempt")
            signals.wait("go")
            raise ValueError("at last")

        @flow(task_runner=runner)
        def bad() -> None:
            running = fail_at_last.submit()
            signals.wait_count("attempt", 1)
            identity.submit(running).add_done_callback(lambda _: signals.set("go"))
            raise KeyError("body")

        with pytest.raises(KeyError):
            bad()
        assert signals.count("attempt") == 1

    def test_F5_leaving_the_program_is_let_through(self, runner: TaskRunner) -> None:
        """``SystemExit`` in the body ends the flow in the same orderly way, and goes on to the caller."""
        futures: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        def leave() -> None:
            futures.extend(identity.map(range(100)))
            raise SystemExit(7)

        with pytest.raises(SystemExit) as caught:
            leave()
        assert caught.value.code == 7
        assert all(future.done() for future in futures)

    def test_F5_the_runner_is_as_good_as_before(self, runner: TaskRunner) -> None:
        """After a flow that failed the runner serves the next one."""

        @flow(task_runner=runner)
        def bad() -> None:
            identity.map(range(100))
            raise KeyError("body")

        @flow(task_runner=runner)
        def good() -> Any:
            return identity.map(range(100))

        for _ in range(5):
            with pytest.raises(KeyError):
                bad()
            assert good() == list(range(100))


def _texts(group: ExceptionGroup[Any]) -> list[str]:
    return [f"{type(error).__name__}: {error}" for error in group.exceptions]


def _look(future: TaskFuture[Any], way: str) -> Any:
    """Look at a failed call in one of the ways there are, and describe what was seen."""
    if way == "result":
        try:
            return future.result()
        except ValueError as error:
            return f"ValueError: {error}"
    if way == "exception":
        return f"ValueError: {future.exception()}"
    if way == "state":
        future.wait()
        return f"ValueError: {future.state.result(raise_on_failure=False)}"
    return describe.submit(allow_failure(future))
