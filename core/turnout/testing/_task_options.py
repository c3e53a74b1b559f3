"""T1 and T2: what ``@task`` takes, what can be a task, and what calling one directly does."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from turnout import State, exponential_backoff, flow, get_run_context, tags, task
from turnout.errors import TaskRunTimeoutError

from ._bodies import add, fail, fail_until, identity, where
from ._kit import Conformance, Signals, eventually, run_on, run_script, runner_expression
from ._subflows import backends

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["TaskOptionConformance"]

_SCRIPT = """
from dataclasses import dataclass
from turnout import flow, task

@dataclass
class Box:
    content: int

FACTOR = 2

def helper(number):
    return Box(number * FACTOR)

@task
def double(number):
    return helper(number)

@task
def unpack(box):
    assert type(box) is Box, type(box)
    return box.content

triple = task(lambda number: number * 3)

@flow(task_runner={runner})
def main():
    doubled = double.map([1, 2, 3])
    return unpack.map(doubled), triple.submit(unpack.submit(doubled[0]))

print(main())
"""


class Counter:
    """A class whose methods are tasks."""

    step = 10

    def __init__(self, start: int) -> None:
        self.start = start

    @task
    def of_instance(self, number: int) -> int:
        """Use self."""
        return self.start + number

    @task
    @classmethod
    def of_class(cls, number: int) -> int:
        """Use the class."""
        return cls.step + number

    @task
    @staticmethod
    def of_nothing(number: int) -> int:
        """Use neither."""
        return number


def _power(base: int, exponent: int) -> int:
    return int(base**exponent)


class TaskOptionConformance(Conformance):
    """The options of tasks, what can be a task, and direct calls."""

    def test_T1_bare_decorator_keeps_name_and_text(self, runner: TaskRunner) -> None:
        """``@task`` without arguments takes name and description from the function."""

        @task
        def double(number: int) -> int:
            """Twice the number."""
            return 2 * number

        assert (double.name, double.description) == ("double", "Twice the number.")
        assert run_on(runner, double.submit, 4) == 8

    def test_T1_name_description_version_and_tags_are_kept(self, runner: TaskRunner) -> None:
        """What the decorator is told can be read from the task, and name and tags from inside its run."""

        @task(name="Twice", description="Doubles", version="3", tags=["math", "small"])
        def double() -> Any:
            context = get_run_context()
            return context.task_name, sorted(context.tags)

        assert (double.name, double.description, double.version) == ("Twice", "Doubles", "3")
        assert set(double.tags) == {"math", "small"}

        @flow(task_runner=runner)
        def ask() -> Any:
            with tags("outer"):
                return double.submit()

        assert ask() == ("Twice", ["math", "outer", "small"])

    def test_T1_fn_is_the_plain_function(self) -> None:
        """``.fn`` is the function that was decorated."""

        def plain(number: int) -> int:
            return number + 1

        decorated = task(plain)
        assert decorated.fn is plain
        assert decorated.fn(1) == 2

    def test_T1_with_options_returns_a_changed_copy(self, runner: TaskRunner, signals: Signals) -> None:
        """``with_options`` changes what it is told, keeps the rest, and leaves the original alone."""
        patient = fail_until.with_options(retries=2, name="patient")
        renamed = patient.with_options(name="renamed")

        @flow(task_runner=runner)
        def both() -> Any:
            assert renamed.submit(signals, "copy", 3).result() == 3
            return fail_until.submit(signals, "original", 3)

        with pytest.raises(ValueError, match="attempt 1"):
            both()
        assert (fail_until.name, patient.name, renamed.name) == ("fail_until", "patient", "renamed")
        assert (signals.count("copy"), signals.count("original")) == (3, 1)

    def test_T1_runs_are_numbered_per_task(self, runner: TaskRunner) -> None:
        """The runs of a task are named after it and numbered from 0 in each flow run."""

        @flow(task_runner=runner)
        def names() -> list[str]:
            futures = [add.submit(1, 2), identity.submit(1), add.submit(1, 2), *identity.map([1, 2])]
            return [future.name for future in futures]

        assert names() == names() == ["add-0", "identity-0", "add-1", "identity-1", "identity-2"]

    def test_T1_task_run_name_is_a_template_of_parameters(self, runner: TaskRunner) -> None:
        """``task_run_name`` may name parameters, defaults included; body and future agree on it."""

        @task(task_run_name="{place} in {year}")
        def visit(year: int, place: str = "Rome") -> str | None:
            return get_run_context().task_run_name

        @flow(task_runner=runner)
        def travel() -> Any:
            futures = [visit.submit(1999), visit.submit(identity.submit(2000), place="Oslo")]
            return [future.result() for future in futures], [future.name for future in futures]

        assert travel() == (["Rome in 1999", "Oslo in 2000"], ["Rome in 1999", "Oslo in 2000"])

    def test_T1_task_run_name_may_be_a_function(self, runner: TaskRunner) -> None:
        """``task_run_name`` may be a function that makes the name."""

        @task(task_run_name=lambda: "made up")
        def named() -> str | None:
            return get_run_context().task_run_name

        assert run_on(runner, named.submit) == "made up"

    def test_T1_retries_until_it_works(self, runner: TaskRunner, signals: Signals) -> None:
        """``retries`` counts further attempts; the body knows which one it is."""

        @task(retries=4)
        def third_time() -> int:
            signals.note("attempt", str(get_run_context().attempt))
            if get_run_context().attempt < 3:
                raise ValueError("not yet")
            return get_run_context().attempt

        assert run_on(runner, third_time.submit) == 3
        assert signals.notes("attempt") == ["1", "2", "3"]

    @pytest.mark.parametrize(
        "delay",
        [0.02, [0.02, 0.01], exponential_backoff(backoff_factor=0.01), lambda retries: [0.02] * retries],
        ids=["number", "list", "backoff", "function"],
    )
    def test_T1_retry_delays_are_waited_for(self, runner: TaskRunner, signals: Signals, delay: Any) -> None:
        """``retry_delay_seconds`` may be a number, a list or a function, and no attempt comes sooner."""

        @task(retries=2, retry_delay_seconds=delay)
        def hopeless() -> None:
            signals.note("began", repr(time.monotonic()))
            raise ValueError("no")

        @flow(task_runner=runner)
        def try_it() -> Any:
            return str(hopeless.submit().exception())

        assert try_it() == "no"
        began = [float(text) for text in signals.notes("began")]
        assert len(began) == 3
        assert began[1] - began[0] >= 0.009

    def test_T1_backoff_doubles(self) -> None:
        """``exponential_backoff`` gives as many delays as asked for, each twice the one before."""
        assert list(exponential_backoff(backoff_factor=2)(4)) == [2, 4, 8, 16]

    def test_T1_retry_jitter_is_accepted(self, runner: TaskRunner, signals: Signals) -> None:
        """``retry_jitter_factor`` spreads the delays and changes nothing else."""
        flaky = fail_until.with_options(retries=3, retry_delay_seconds=0.01, retry_jitter_factor=0.5)
        assert run_on(runner, flaky.submit, signals, "attempt", 4) == 4

    def test_T1_retry_condition_decides(self, runner: TaskRunner, signals: Signals) -> None:
        """``retry_condition_fn`` gets task, run and state, and no attempt follows when it says no."""
        asked: list[tuple[str, str, bool]] = []

        def only_first(task: Any, task_run: Any, state: State) -> bool:
            asked.append((task.name, task_run.name, state.is_failed()))
            return "attempt 1" in str(state.result(raise_on_failure=False))

        flaky = fail_until.with_options(retries=5, retry_condition_fn=only_first)

        @flow(task_runner=runner)
        def try_it() -> Any:
            return str(flaky.submit(signals, "attempt", 9).exception())

        assert try_it() == "attempt 2"
        assert asked == [("fail_until", "fail_until-0", True)] * 2

    def test_T1_hooks_of_a_call_that_completes(self, runner: TaskRunner) -> None:
        """``on_running`` and ``on_completion`` are called in the driver with task, run and state."""
        seen: list[str] = []
        watched = add.with_options(**_hooks(seen))
        assert run_on(runner, watched.submit, 1, 2) == 3
        assert seen == ["on_running add add-0 Running", "on_completion add add-0 Completed"]

    def test_T1_hooks_of_a_call_that_fails(self, runner: TaskRunner) -> None:
        """``on_failure`` is called once, after the last attempt."""
        seen: list[str] = []
        watched = fail.with_options(retries=2, **_hooks(seen))

        @flow(task_runner=runner)
        def try_it() -> None:
            watched.submit().exception()

        try_it()
        assert [line for line in seen if "on_running" not in line] == ["on_failure fail fail-0 Failed"]

    def test_T1_options_for_the_runner_are_accepted(self, runner: TaskRunner) -> None:
        """``crash_retries``, ``batch`` and ``timeout_seconds`` change nothing for a call that goes well."""
        careful = add.with_options(crash_retries=0, batch=False, timeout_seconds=30)
        assert run_on(runner, careful.map, [1, 2], [4, 4]) == [5, 6]

    def test_T1_unknown_options_are_an_error(self) -> None:
        """A misspelt option is a TypeError where it stands, not ignored."""
        untyped: Any = task
        with pytest.raises(TypeError, match="retry"):
            untyped(retry=3)(_power)

    def test_T1_lambdas(self, runner: TaskRunner) -> None:
        """A lambda can be a task."""
        square = task(lambda number: number * number)
        assert run_on(runner, square.map, [1, 2, 3]) == [1, 4, 9]

    def test_T1_closures(self, runner: TaskRunner) -> None:
        """Functions that use variables around them can be tasks, each with its own values."""

        def adder(amount: int) -> Any:
            @task
            def add_amount(number: int) -> int:
                return number + amount

            return add_amount

        adders = [adder(amount) for amount in (1, 10, 100)]
        assert run_on(runner, lambda: [each.submit(5) for each in adders]) == [6, 15, 105]

    def test_T1_partials(self, runner: TaskRunner) -> None:
        """A partial function can be a task."""
        cube = task(functools.partial(_power, exponent=3))
        assert run_on(runner, cube.map, [1, 2, 3]) == [1, 8, 27]

    def test_T1_methods(self, runner: TaskRunner) -> None:
        """Methods, class methods and static methods can be tasks, through instance and class."""
        counter: Any = Counter(100)

        @flow(task_runner=runner)
        def count() -> Any:
            return [
                counter.of_instance.submit(1),
                counter.of_class.submit(2),
                Counter.of_class.submit(3),
                Counter.of_nothing.submit(4),
                *counter.of_instance.map([5, 6]),
            ]

        assert count() == [101, 12, 13, 4, 105, 106]
        assert counter.of_instance(7) == 107

    def test_T1_functions_that_call_themselves(self, runner: TaskRunner) -> None:
        """A local function may refer to itself and to other local functions."""

        def factorial(number: int) -> int:
            return 1 if number < 2 else number * factorial(number - 1)

        @task
        def compute(number: int) -> int:
            return factorial(number)

        assert run_on(runner, compute.submit, 10) == 3628800

    def test_T1_functions_without_a_source_file(self, runner: TaskRunner) -> None:
        """A function typed into a notebook or an interpreter has no file, and is a task all the same."""
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec("FACTOR = 6\ndef typed(number):\n    return number * FACTOR", namespace)
        typed = task(namespace["typed"])
        assert run_on(runner, typed.submit, 7) == 42

    @pytest.mark.parametrize("how", ["file", "stdin", "-c"])
    def test_T1_functions_of_main(
        self, fresh_runner: TaskRunner, tmp_path: Path, how: Literal["file", "stdin", "-c"]
    ) -> None:
        """Functions, lambdas and classes of ``__main__`` travel, whatever way the script was started."""
        script = _SCRIPT.format(runner=runner_expression(fresh_runner))
        done = run_script(script, tmp_path, how=how)
        assert (done.stdout.strip(), done.returncode) == ("([2, 4, 6], 6)", 0), done.stderr

    def test_T1_every_kind_of_parameter(self, runner: TaskRunner) -> None:
        """Positional-only, default, variable and keyword-only parameters arrive as in a plain call."""

        @task
        def collect(first: int, /, second: int = 2, *rest: int, key: str = "k", **more: Any) -> Any:
            return first, second, rest, key, more

        @flow(task_runner=runner)
        def gather() -> Any:
            return [
                collect.submit(1),
                collect.submit(1, 5, 6, 7, key="x", extra=9),
                collect.submit(1, first=2, self=3),
            ]

        assert gather() == [
            (1, 2, (), "k", {}),
            (1, 5, (6, 7), "x", {"extra": 9}),
            (1, 2, (), "k", {"first": 2, "self": 3}),
        ]

    def test_T1_parameters_named_like_options_reach_the_body(self, runner: TaskRunner) -> None:
        """Keywords such as ``retries``, ``name``, ``key``, ``workers`` or ``timeout`` belong to the body."""
        named: dict[str, Any] = dict.fromkeys(
            ("retries", "name", "key", "workers", "priority", "resources", "timeout", "fn", "args", "task", "pure"), 1
        )

        @task
        def collect(**keywords: Any) -> Any:
            return keywords

        assert run_on(runner, collect.submit, **named) == named

    def test_T1_wrong_arguments_are_a_type_error(self, runner: TaskRunner, signals: Signals) -> None:
        """Arguments that don't fit the signature are a TypeError that names the parameter, in the flow or the call."""

        @task
        def strict(needed: int) -> int:
            signals.note("ran")
            return needed

        @flow(task_runner=runner)
        def bad() -> Any:
            with pytest.raises(TypeError, match="needed"):
                strict.submit().result()

        bad()
        assert signals.count("ran") == 0

    def test_T2_a_direct_call_runs_here(self, runner: TaskRunner) -> None:
        """Calling a task runs it in this very thread, in a flow and outside of one."""
        here = (os.getpid(), threading.get_ident())

        @flow(task_runner=runner)
        def ask() -> Any:
            return where()

        assert where() == ask() == here

    def test_T2_a_direct_call_starts_no_backend(self, fresh_runner: TaskRunner) -> None:
        """A direct call needs no runner."""
        with backends(type(fresh_runner)) as counted:
            assert run_on(fresh_runner, lambda: add(1, 2)) == 3
        assert counted.starts(fresh_runner) == 0

    @pytest.mark.parametrize("inside", [True, False], ids=["in a flow", "alone"])
    def test_T2_a_direct_call_is_tried_again(self, runner: TaskRunner, signals: Signals, inside: bool) -> None:
        """Direct calls have the same retries and know their attempt."""

        @task(retries=2, retry_delay_seconds=0.01)
        def third_time() -> int:
            signals.note("attempt", str(get_run_context().attempt))
            if get_run_context().attempt < 3:
                raise ValueError("not yet")
            return 3

        assert _call(third_time, runner, inside=inside) == 3
        assert signals.notes("attempt") == ["1", "2", "3"]

    @pytest.mark.parametrize("inside", [True, False], ids=["in a flow", "alone"])
    def test_T2_a_direct_call_raises_what_the_body_raised(self, runner: TaskRunner, inside: bool) -> None:
        """The exception of a direct call is the very object that the body raised."""
        error = KeyError("direct")

        @task
        def bad() -> None:
            raise error

        with pytest.raises(KeyError) as caught:
            _call(bad, runner, inside=inside)
        assert caught.value is error

    def test_T2_a_caught_failure_is_no_failure_of_the_flow(self, runner: TaskRunner) -> None:
        """Who calls a task directly sees its exception: the flow goes on."""

        @flow(task_runner=runner)
        def careful() -> str:
            with pytest.raises(ValueError, match="seen"):
                fail("seen")
            return "fine"

        assert careful() == "fine"

    @pytest.mark.parametrize("inside", [True, False], ids=["in a flow", "alone"])
    def test_T2_a_direct_call_has_hooks(self, runner: TaskRunner, inside: bool) -> None:
        """Direct calls call the same hooks with the same states."""
        seen: list[str] = []
        watched = identity.with_options(**_hooks(seen))
        assert _call(functools.partial(watched, 5), runner, inside=inside) == 5
        assert [line.split()[0] for line in seen] == ["on_running", "on_completion"]

    def test_T2_a_direct_call_can_return_its_state(self, runner: TaskRunner) -> None:
        """``return_state=True`` gives a final State and raises nothing."""

        @flow(task_runner=runner)
        def ask() -> Any:
            good = add(1, 2, return_state=True)
            bad = fail("no", return_state=True)
            return good.name, good.result(), bad.name, str(bad.result(raise_on_failure=False))

        assert ask() == ("Completed", 3, "Failed", "no")

    @pytest.mark.parametrize("inside", [True, False], ids=["in a flow", "alone"])
    def test_T2_a_direct_call_runs_out_of_time(self, runner: TaskRunner, inside: bool) -> None:
        """A direct call that takes longer than ``timeout_seconds`` raises TaskRunTimeoutError."""

        @task(timeout_seconds=0.2)
        def slow() -> None:
            eventually(lambda: False)

        with pytest.raises(TaskRunTimeoutError):
            _call(slow, runner, inside=inside)

    def test_T2_a_direct_call_takes_futures(self, runner: TaskRunner) -> None:
        """Futures given to a direct call are waited for and replaced, also inside of containers."""

        @flow(task_runner=runner)
        def calculate() -> Any:
            return add(add.submit(1, 2), 3), identity([{"a": add.submit(4, 5)}])

        assert calculate() == (6, [{"a": 9}])

    def test_T2_a_direct_call_knows_its_run(self, runner: TaskRunner) -> None:
        """A direct call in a flow has a run context of its own, within the flow's."""

        @task
        def ask() -> Any:
            context = get_run_context()
            return context.flow_name, context.task_name, context.task_run_name

        @flow(task_runner=runner)
        def direct() -> Any:
            return ask(), get_run_context().task_name

        assert direct() == (("direct", "ask", "ask-0"), None)

    def test_T2_async_tasks_are_awaited(self, runner: TaskRunner) -> None:
        """A direct call of an async task is a coroutine, tried again like any other."""
        attempts: list[int] = []

        @task(retries=1)
        async def flaky(number: int) -> int:
            await asyncio.sleep(0)
            attempts.append(get_run_context().attempt)
            if len(attempts) == 1:
                raise ValueError("once")
            return number

        @flow(task_runner=runner)
        async def call_it() -> Any:
            return await flaky(5)

        assert asyncio.run(call_it()) == 5
        assert attempts == [1, 2]

    def test_T2_generators_give_lists(self) -> None:
        """A direct call of a task that is a generator gives a list of its items."""

        @task
        def numbers() -> Iterator[int]:
            yield from range(3)

        assert list(numbers()) == [0, 1, 2]


def _call(call: Any, runner: TaskRunner, *, inside: bool) -> Any:
    return run_on(runner, call) if inside else call()


def _hooks(seen: list[str]) -> dict[str, Any]:
    """Return all the hooks of a task, each of which appends what it was told."""

    def hook(word: str) -> Any:
        return lambda task, task_run, state: seen.append(f"{word} {task.name} {task_run.name} {state.name}")

    return {word: [hook(word)] for word in ("on_running", "on_completion", "on_failure")}
