"""D1 to D4: what a call waits for, and what becomes of it when that fails."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from turnout import TaskFuture, allow_failure, flow, quote, task, unmapped
from turnout.errors import CancelledRun, CrashedRun, SerializationError, TaskRunTimeoutError, UpstreamFailed

from ._bodies import Pair, Point, add, crash, describe, fail, fail_until, gate, identity, note, spin, total
from ._kit import Declare, Signals, run_on, until_retrying
from ._shapes import ShapeConformance

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["DependencyConformance"]


@dataclass(frozen=True, slots=True)
class Frozen:
    """A dataclass that can't be changed, with a field that ``__init__`` does not take."""

    value: Any
    size: int = field(init=False, default=1)


class DependencyConformance(ShapeConformance):
    """Everything that is promised about dependencies: D1 to D8."""

    def test_D1_a_future_is_replaced_by_its_result(self, runner: TaskRunner) -> None:
        """A future as positional or keyword argument arrives as its result."""

        @flow(task_runner=runner)
        def chain() -> Any:
            three = add.submit(1, 2)
            return add.submit(three, right=add.submit(left=three, right=4))

        assert chain() == 10

    def test_D1_futures_inside_containers_are_replaced(self, runner: TaskRunner) -> None:
        """Futures in nested lists, tuples, sets, dicts, named tuples and dataclasses arrive as results, kinds kept."""

        @task
        def kinds(value: Any) -> Any:
            return [type(each).__name__ for each in value.values()], value

        @flow(task_runner=runner)
        def send() -> Any:
            two = add.submit(1, 1)
            return kinds.submit(
                {
                    "list": [two, [two, [two]]],
                    "tuple": (two, 1),
                    "set": {two},
                    "frozenset": frozenset([two]),
                    "dict": {two: two},
                    "ordered": OrderedDict(a=two),
                    "named": Point(two, [two]),
                    "dataclass": Pair(two, {"deep": (two,)}),
                    "frozen": Frozen(two),
                }
            )

        names, value = send()
        assert names == ["list", "tuple", "set", "frozenset", "dict", "OrderedDict", "Point", "Pair", "Frozen"]
        assert value == {
            "list": [2, [2, [2]]],
            "tuple": (2, 1),
            "set": {2},
            "frozenset": frozenset([2]),
            "dict": {2: 2},
            "ordered": OrderedDict(a=2),
            "named": Point(2, [2]),
            "dataclass": Pair(2, {"deep": (2,)}),
            "frozen": Frozen(2),
        }

    def test_D1_the_callers_containers_stay_as_they_were(self, runner: TaskRunner) -> None:
        """Replacing futures does not change the caller's objects."""

        @flow(task_runner=runner)
        def send() -> Any:
            two = add.submit(1, 1)
            mine: list[Any] = [two, {"a": two}, Pair(two)]
            result = describe.submit(mine).result()
            return result, mine[0] is two and mine[1]["a"] is two and mine[2].left is two

        assert send() == ("list: [2, {'a': 2}, Pair(left=2, right=None)]", True)

    def test_D1_a_call_starts_after_all_its_dependencies(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """No call begins before the last of the futures in its arguments and in ``wait_for`` is done."""
        if runner.capabilities.inline:
            declared("inline: dependencies are over before the call is submitted")
            signals.set("go")

        @task
        def is_over(*_: Any) -> bool:
            signals.note("checked")
            return signals.is_set("over")

        @flow(task_runner=runner)
        def check() -> Any:
            quick, slow = identity.submit(1), gate.submit(signals, 2)
            checks = [
                is_over.submit(slow),
                is_over.submit(quick, slow),
                is_over.submit([quick, {"deep": (slow,)}]),
                is_over.submit(Pair(quick, slow)),
                is_over.submit(wait_for=[slow]),
                is_over.submit(quick, wait_for=[[quick], (slow,)]),
                *is_over.map([1, 2, 3], wait_for=[slow]),
            ]
            quick.result()
            early = signals.count("checked")
            signals.set("go")
            return early, checks

        early, checks = check()
        assert early == 0 or runner.capabilities.inline
        assert checks == [True] * 9

    def test_D1_wait_for_takes_a_list_of_mapped_futures(self, runner: TaskRunner, signals: Signals) -> None:
        """``wait_for`` waits for every future of a map, however deep the list is nested."""

        @task
        def count_notes() -> int:
            return signals.count("ran")

        @flow(task_runner=runner)
        def check() -> Any:
            mapped = note.map(unmapped(signals), "ran", range(25))
            return count_notes.submit(wait_for=mapped), count_notes.submit(wait_for=[{"a": [mapped]}])

        assert check() == (25, 25)

    def test_D1_wait_for_passes_nothing(self, runner: TaskRunner) -> None:
        """A future in ``wait_for`` is waited for and not passed; ``None`` there stands for no future."""

        @task
        def arguments(*args: Any, **kwargs: Any) -> Any:
            return args, kwargs

        @flow(task_runner=runner)
        def check() -> Any:
            return arguments.submit(1, wait_for=[identity.submit(2), None], key=3)

        assert check() == ((1,), {"key": 3})

    def test_D1_one_future_may_stand_in_many_places(self, runner: TaskRunner) -> None:
        """A future that stands several times in the arguments and in ``wait_for`` is one dependency."""

        @flow(task_runner=runner)
        def check() -> Any:
            two = add.submit(1, 1)
            return total.submit([two] * 50, wait_for=[two, two])

        assert check() == 100

    def test_D1_finished_futures_are_dependencies_too(self, runner: TaskRunner) -> None:
        """A future that is done already, of this flow or of one before, arrives as its result."""
        kept: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        def first() -> None:
            kept.append(add.submit(1, 2))

        @flow(task_runner=runner)
        def second() -> Any:
            done = add.submit(3, 4)
            done.result()
            return total.submit([done, kept[0]])

        first()
        assert second() == 10

    def test_D1_quote_is_left_alone(self, runner: TaskRunner) -> None:
        """What stands in ``quote`` arrives as it is, also beside futures."""
        table = [[1, 2], {"a": (3,)}]

        @flow(task_runner=runner)
        def check() -> Any:
            return identity.submit(quote(table)), identity.submit([quote(table), add.submit(1, 1)])

        assert check() == (table, [table, 2])

    def test_D1_futures_in_quote_are_not_looked_for(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """A quoted future is no dependency: it arrives as a future, or is refused where it can't travel."""

        @task
        def kind(value: Any) -> str:
            return type(value[0]).__name__

        @flow(task_runner=runner)
        def check() -> Any:
            return kind.submit(quote([add.submit(1, 1)]))

        if runner.capabilities.in_process:
            assert check() == "TaskFuture"
        else:
            declared("not in_process: futures don't travel")
            with pytest.raises(SerializationError, match="add-0"):
                check()
        assert signals.count("ran") == 0

    def test_D1_retried_dependencies_are_waited_for(self, runner: TaskRunner, signals: Signals) -> None:
        """A dependency that fails and is tried again counts when it is final."""
        flaky = fail_until.with_options(retries=2, retry_delay_seconds=0.02)

        @flow(task_runner=runner)
        def check() -> Any:
            return add.submit(flaky.submit(signals, "attempt", 3), 10)

        assert check() == 13

    def test_D3_dependent_of_failed_never_runs(self, runner: TaskRunner, signals: Signals) -> None:
        """The body of a call that depends on a failed one never runs, by argument or ``wait_for``, however far."""

        @flow(task_runner=runner)
        def check() -> Any:
            root = fail.submit("root")
            first = note.submit(signals, "ran", root)
            second = note.submit(signals, "ran", wait_for=[root])
            third = note.submit(signals, "ran", [{"deep": first}])
            fourth = note.submit(signals, "ran", wait_for=[identity.submit(1), third])
            return [future.exception() for future in (first, second, third, fourth)]

        assert [type(error) for error in check()] == [UpstreamFailed] * 4
        assert signals.count("ran") == 0

    def test_D3_state_is_upstream_failed(self, runner: TaskRunner) -> None:
        """Such a call ends in the state UpstreamFailed, which is a failure and is final."""

        @flow(task_runner=runner)
        def check() -> Any:
            future = identity.submit(fail.submit("root"))
            future.wait()
            return future.state

        state = check()
        assert (state.name, state.is_failed(), state.is_final()) == ("UpstreamFailed", True, True)

    def test_D3_result_names_the_root(self, runner: TaskRunner) -> None:
        """``result`` raises UpstreamFailed that names the call which failed first, with its exception as cause."""

        @flow(task_runner=runner)
        def check() -> str:
            root = fail.submit("the root")
            last = identity.submit(identity.submit(identity.submit(root)))
            with pytest.raises(UpstreamFailed, match="fail-0") as caught:
                last.result()
            assert caught.value.root == root.name == "fail-0"
            assert caught.value.__cause__ is root.exception()
            return repr(caught.value.__cause__)

        assert check() == "ValueError('the root')"

    def test_D3_dependent_of_crashed_never_runs(self, runner: TaskRunner, signals: Signals) -> None:
        """A crash stops dependents like a failure does."""

        @flow(task_runner=runner)
        def check() -> Any:
            last = note.submit(signals, "ran", note.submit(signals, "ran", crash.submit()))
            error = last.exception()
            return last.state.name, type(error), type(error.__cause__ if error else None)

        assert check() == ("UpstreamFailed", UpstreamFailed, CrashedRun)
        assert signals.count("ran") == 0

    def test_D3_dependent_of_timed_out_never_runs(self, runner: TaskRunner, signals: Signals) -> None:
        """Running out of time stops dependents too."""
        hurried = spin.with_options(timeout_seconds=0.2)

        @flow(task_runner=runner)
        def check() -> Any:
            late = hurried.submit(signals)
            late.add_done_callback(lambda _: signals.set("go"))
            error = note.submit(signals, "ran", late).exception()
            return type(error), type(error.__cause__ if error else None)

        assert check() == (UpstreamFailed, TaskRunTimeoutError)
        assert signals.count("ran") == 0

    def test_D3_dependent_of_cancelled_is_cancelled(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """Dependents of a cancelled call, however far, are Cancelled and never run."""
        if runner.capabilities.inline:
            declared("inline: a call is over when submit returns, retries and all")
            return
        again_later = fail.with_options(retries=1, retry_delay_seconds=3600)

        @flow(task_runner=runner)
        def check() -> Any:
            root = again_later.submit()
            first = note.submit(signals, "ran", root)
            second = note.submit(signals, "ran", wait_for=[first])
            until_retrying(root)
            assert root.cancel()
            with pytest.raises(CancelledRun):
                second.result()
            return [future.state.name for future in (root, first, second)]

        assert check() == ["Cancelled"] * 3
        assert signals.count("ran") == 0

    def test_D3_one_failed_dependency_is_enough(self, runner: TaskRunner, signals: Signals) -> None:
        """One failed dependency among many that worked stops the call, and the root is the failed one."""

        @flow(task_runner=runner)
        def check() -> Any:
            good = identity.map(range(10))
            bad = fail.with_options(name="bad").submit("one of many")
            error = note.submit(signals, "ran", [*good, bad]).exception()
            return getattr(error, "root", None)

        assert check() == "bad-0"
        assert signals.count("ran") == 0

    def test_D3_others_run_on(self, runner: TaskRunner, signals: Signals) -> None:
        """Only dependents are stopped: in mapped chains the other elements end as if nothing had happened."""

        @task
        def not_three(number: int) -> int:
            if number == 3:
                raise ValueError("three")
            return number

        @flow(task_runner=runner)
        def check() -> Any:
            last = note.map(unmapped(signals), "ran", identity.map(not_three.map(range(6))))
            return [type(future.exception()).__name__ for future in last]

        assert check() == ["NoneType"] * 3 + ["UpstreamFailed"] + ["NoneType"] * 2
        assert sorted(signals.notes("ran")) == ["0", "1", "2", "4", "5"]

    def test_D3_no_attempt_is_made(self, runner: TaskRunner, signals: Signals) -> None:
        """A dependent with retries of its own is not tried at all."""
        patient = note.with_options(retries=5, retry_delay_seconds=3600)

        @flow(task_runner=runner)
        def check() -> str:
            return type(patient.submit(signals, "ran", fail.submit("root")).exception()).__name__

        assert check() == "UpstreamFailed"
        assert signals.count("ran") == 0

    def test_D3_dependents_submitted_before_the_failure(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """It makes no difference whether the dependency fails before or after its dependents are submitted."""
        if runner.capabilities.inline:
            declared("inline: it has failed before")
            signals.set("go")

        @task
        def fail_later() -> None:
            signals.wait("go")
            raise ValueError("later")

        @flow(task_runner=runner)
        def check() -> Any:
            root = fail_later.submit()
            before = note.submit(signals, "ran", root)
            signals.set("go")
            root.wait()
            after = note.submit(signals, "ran", root)
            return [str(getattr(future.exception(), "__cause__", None)) for future in (before, after)]

        assert check() == ["later", "later"]
        assert signals.count("ran") == 0

    def test_D4_allow_failure_passes_the_exception(self, runner: TaskRunner) -> None:
        """A dependent by ``allow_failure`` runs and gets the exception object, with type and arguments."""

        @task
        def look(error: Any) -> Any:
            return type(error), error.args, isinstance(error, BaseException)

        @flow(task_runner=runner)
        def check() -> Any:
            return look.submit(allow_failure(fail.submit("allowed")))

        assert check() == (ValueError, ("allowed",), True)

    def test_D4_allow_failure_passes_results(self, runner: TaskRunner) -> None:
        """A dependency that worked arrives as its result."""
        assert run_on(runner, lambda: add.submit(allow_failure(add.submit(1, 2)), 1)) == 4

    def test_D4_a_timed_out_call_may_be_allowed(self, runner: TaskRunner, signals: Signals) -> None:
        """For a call that ran out of time TaskRunTimeoutError is passed."""
        hurried = spin.with_options(timeout_seconds=0.2)

        @flow(task_runner=runner)
        def check() -> Any:
            late = hurried.submit(signals)
            # Where the body can't be stopped it ends now, so that its slot is free for the dependent.
            late.add_done_callback(lambda _: signals.set("go"))
            return describe.submit(allow_failure(late))

        assert check().startswith("TaskRunTimeoutError")

    def test_D4_an_upstream_failure_may_be_allowed(self, runner: TaskRunner) -> None:
        """For a call that never ran UpstreamFailed is passed, with the root's exception as cause."""

        @task
        def look(error: Any) -> Any:
            return type(error).__name__, error.root, str(error.__cause__)

        @flow(task_runner=runner)
        def check() -> Any:
            return look.submit(allow_failure(identity.submit(identity.submit(fail.submit("root")))))

        assert check() == ("UpstreamFailed", "fail-0", "root")

    def test_D4_a_crash_may_be_allowed(self, runner: TaskRunner) -> None:
        """For a crashed call CrashedRun is passed."""
        assert run_on(runner, lambda: describe.submit(allow_failure(crash.submit()))).startswith("CrashedRun")

    def test_D4_a_cancel_is_not_allowed(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A cancelled dependency cancels its dependents, ``allow_failure`` or not."""
        if runner.capabilities.inline:
            declared("inline: a call is over when submit returns, retries and all")
            return
        again_later = fail.with_options(retries=1, retry_delay_seconds=3600)

        @flow(task_runner=runner)
        def check() -> Any:
            root = again_later.submit()
            dependent = note.submit(signals, "ran", allow_failure(root))
            until_retrying(root)
            assert root.cancel()
            dependent.wait()
            return dependent.state.name

        assert check() == "Cancelled"
        assert signals.count("ran") == 0

    def test_D4_allow_failure_works_inside_containers(self, runner: TaskRunner) -> None:
        """``allow_failure`` may stand deep inside of an argument, and around a container of futures."""

        @task
        def outline(value: Any) -> str:
            return repr(value)

        @flow(task_runner=runner)
        def check() -> Any:
            good, bad = identity.submit(1), fail.submit("deep")
            return [
                outline.submit([good, {"key": (allow_failure(bad),)}]),
                outline.submit(Pair(allow_failure(bad), good)),
                outline.submit(allow_failure([good, bad])),
            ]

        assert check() == [
            "[1, {'key': (ValueError('deep'),)}]",
            "Pair(left=ValueError('deep'), right=1)",
            "[1, ValueError('deep')]",
        ]

    def test_D4_allow_failure_works_in_wait_for(self, runner: TaskRunner, signals: Signals) -> None:
        """A call may wait for one that fails, and run then."""

        @flow(task_runner=runner)
        def check() -> Any:
            bad = fail.submit("waited for")
            return note.submit(signals, "ran", "value", wait_for=[allow_failure(bad), identity.submit(1)])

        assert check() == "value"
        assert signals.count("ran") == 1

    def test_D4_allow_failure_can_be_mapped(self, runner: TaskRunner) -> None:
        """Elements of a map may be wrapped one by one, or the whole list at once."""

        @flow(task_runner=runner)
        def check() -> Any:
            futures = [identity.submit(1), fail.submit("mapped")]
            return describe.map([allow_failure(future) for future in futures]), describe.map(allow_failure(futures))

        expected = ["int: 1", "ValueError: mapped"]
        assert check() == (expected, expected)

    def test_D4_other_dependencies_may_not_fail(self, runner: TaskRunner, signals: Signals) -> None:
        """``allow_failure`` allows one future to fail, not the others, nor the same one where it stands bare."""

        @flow(task_runner=runner)
        def check() -> Any:
            allowed, bare = fail.submit("allowed"), fail.submit("bare")
            futures = [
                note.submit(signals, "ran", [allow_failure(allowed), bare]),
                note.submit(signals, "ran", [allow_failure(bare), bare]),
            ]
            allowed.exception()
            return [str(getattr(future.exception(), "__cause__", None)) for future in futures]

        assert check() == ["bare", "bare"]
        assert signals.count("ran") == 0
