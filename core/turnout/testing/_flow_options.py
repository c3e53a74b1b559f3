"""F1 and F7: what ``@flow`` takes, and how a flow is tried again."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from turnout import TaskFuture, exponential_backoff, flow, get_run_context, use_runner
from turnout.errors import FlowRunTimeoutError, ParameterTypeError

from ._bodies import add, fail, fail_until, flow_run_name, gate, identity, note
from ._kit import Conformance, Declare, Signals

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["FlowOptionConformance"]


class Survey:
    """A class whose methods are flows."""

    factor = 2

    def __init__(self, runner_name: str) -> None:
        self.runner_name = runner_name

    @flow
    def of_instance(self, number: int) -> Any:
        """Use self."""
        return self.runner_name, add.submit(number, self.factor)

    @flow
    @classmethod
    def of_class(cls, number: int) -> Any:
        """Use the class."""
        return add.submit(number, cls.factor)

    @flow
    @staticmethod
    def of_nothing(number: int) -> Any:
        """Use neither."""
        return add.submit(number, 2)


def _hooks(seen: list[str]) -> dict[str, Any]:
    """Return all the hooks of a flow, each of which appends what it was told."""

    def hook(word: str) -> Any:
        return lambda flow, flow_run, state: seen.append(f"{word} {flow.name} {state.name}") if flow_run.id else None

    words = ("on_running", "on_completion", "on_failure", "on_crashed", "on_cancellation")
    return {word: [hook(word)] for word in words}


class FlowOptionConformance(Conformance):
    """The options of flows, and their retries."""

    def test_F1_bare_decorator_keeps_name_and_text(self, runner: TaskRunner) -> None:
        """``@flow`` without arguments takes name and description from the function."""

        @flow
        def report() -> Any:
            """Make the report."""
            return add.submit(1, 2)

        assert (report.name, report.description) == ("report", "Make the report.")
        assert report.with_options(task_runner=runner)() == 3

    def test_F1_name_description_and_version_are_kept(self, runner: TaskRunner) -> None:
        """What the decorator is told about the flow can be read from it, and its name from inside."""

        @flow(name="Yearly report", description="All of it", version="7", task_runner=runner)
        def report() -> str | None:
            return get_run_context().flow_name

        assert (report.name, report.description, report.version) == ("Yearly report", "All of it", "7")
        assert report() == "Yearly report"

    def test_F1_fn_is_the_plain_function(self, runner: TaskRunner) -> None:
        """``.fn`` is the function itself, and calling it opens no flow."""

        def plain(number: int) -> int:
            return number + 1

        decorated = flow(task_runner=runner)(plain)
        assert decorated.fn is plain
        assert decorated.fn(1) == decorated(1) == 2

    def test_F1_call_looks_like_the_function(self, runner: TaskRunner) -> None:
        """Positional, keyword and default parameters arrive as in a plain call, and wrong ones are a TypeError."""

        @flow(task_runner=runner)
        def collect(first: int, /, second: int = 2, *rest: int, key: str = "k", **more: int) -> Any:
            return identity.submit((first, second, rest, key, more))

        assert collect(1) == (1, 2, (), "k", {})
        assert collect(1, 5, 6, 7, key="x", extra=9) == (1, 5, (6, 7), "x", {"extra": 9})
        untyped: Any = collect
        with pytest.raises(TypeError, match="first"):
            untyped()

    def test_F1_with_options_returns_a_changed_copy(self, runner: TaskRunner) -> None:
        """``with_options`` changes what it is told, keeps the rest, and leaves the original alone."""

        @flow(name="first", version="1", task_runner=runner)
        def original() -> Any:
            return add.submit(1, 1)

        changed = original.with_options(name="second", retries=2)
        assert (changed.name, changed.version, changed.fn) == ("second", "1", original.fn)
        assert (original.name, original.version) == ("first", "1")
        assert original() == changed() == 2

    def test_F1_flow_run_name_is_a_template_of_parameters(self, runner: TaskRunner) -> None:
        """``flow_run_name`` may name parameters, defaults included, and tasks see the name."""

        @flow(flow_run_name="{place}-{year}", task_runner=runner)
        def report(year: int, place: str = "Rome") -> Any:
            return get_run_context().flow_run_name, flow_run_name.submit()

        assert report(1999) == ("Rome-1999", "Rome-1999")

    def test_F1_flow_run_name_may_be_a_function(self, runner: TaskRunner) -> None:
        """``flow_run_name`` may be a function that makes the name."""

        @flow(flow_run_name=lambda: "made up", task_runner=runner)
        def report() -> str | None:
            return get_run_context().flow_run_name

        assert report() == "made up"

    def test_F1_log_prints_sends_prints_to_the_logger(
        self, runner: TaskRunner, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With ``log_prints`` what the body prints is logged, with the ids of the flow run."""

        @flow(log_prints=True, task_runner=runner)
        def talk() -> str | None:
            print("hello from the flow")
            return get_run_context().flow_run_id

        with caplog.at_level(logging.INFO, logger="turnout"):
            run_id = talk()
        records = [record for record in caplog.records if "hello from the flow" in record.getMessage()]
        assert [(record.name, getattr(record, "flow_run_id", None)) for record in records] == [
            ("turnout.flow_runs", run_id)
        ]

    def test_F1_timeout_stops_the_body(self, runner: TaskRunner) -> None:
        """A body that runs for longer than ``timeout_seconds`` raises FlowRunTimeoutError, a TimeoutError."""

        @flow(timeout_seconds=0.2, task_runner=runner)
        def slow() -> None:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                time.sleep(0.005)

        with pytest.raises(FlowRunTimeoutError) as caught:
            slow()
        assert isinstance(caught.value, TimeoutError)

    def test_F1_timeout_is_the_state_timed_out(self, runner: TaskRunner) -> None:
        """A flow that ran out of time is TimedOut, and what it submitted is over."""
        futures: list[TaskFuture[Any]] = []

        @flow(timeout_seconds=0.2, task_runner=runner)
        async def slow() -> None:
            futures.append(add.submit(1, 2))
            await asyncio.sleep(30)

        untyped: Any = slow
        state = asyncio.run(untyped(return_state=True))
        assert (state.name, state.is_failed()) == ("TimedOut", True)
        assert [future.done() for future in futures] == [True]

    def test_F1_timeout_ends_a_wait_for_a_result(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """The time of a flow also runs out while its body waits for a call."""
        if runner.capabilities.inline:
            declared("inline: the call runs in the body's own thread, before there is anything to wait for")
            signals.set("go")

        @flow(timeout_seconds=0.2, task_runner=runner)
        def slow() -> None:
            try:
                gate.submit(signals).result()
                while runner.capabilities.inline:
                    time.sleep(0.01)
            finally:
                signals.set("go")

        with pytest.raises(FlowRunTimeoutError):
            slow()
        # Where no running call can be cancelled, the body still waits for it.
        signals.set("go")

    def test_F1_validate_parameters_converts_and_refuses(self, runner: TaskRunner) -> None:
        """``validate_parameters=True`` converts by annotation with pydantic, and names what does not fit."""

        @flow(validate_parameters=True, task_runner=runner)
        def double(number: int) -> int:
            return 2 * number

        untyped: Any = double
        if importlib.util.find_spec("pydantic") is None:
            with pytest.raises(ImportError, match="pydantic"):
                double(1)
            return
        assert untyped("21") == 42
        with pytest.raises(ParameterTypeError, match="number"):
            untyped("many")

    def test_F1_parameters_are_not_validated_unasked(self, runner: TaskRunner) -> None:
        """Without ``validate_parameters`` the arguments arrive as they are."""

        @flow(task_runner=runner)
        def same(number: int) -> Any:
            return number

        untyped: Any = same
        assert untyped("21") == "21"

    def test_F1_hooks_of_a_flow_that_completes(self, runner: TaskRunner) -> None:
        """``on_running`` and ``on_completion`` are called with flow, run and state, and no other hook is."""
        seen: list[str] = []

        @flow(task_runner=runner, **_hooks(seen))
        def good() -> Any:
            seen.append("body")
            return add.submit(1, 2)

        assert good() == 3
        assert seen == ["on_running good Running", "body", "on_completion good Completed"]

    def test_F1_hooks_of_a_flow_that_fails(self, runner: TaskRunner) -> None:
        """``on_failure`` is called for a body that raises, and for a failed call at which nobody looked."""
        seen: list[str] = []

        @flow(task_runner=runner, **_hooks(seen))
        def bad(*, in_body: bool) -> None:
            if in_body:
                raise KeyError("body")
            fail.submit()

        for in_body in (True, False):
            seen.clear()
            assert bad(in_body=in_body, return_state=True).is_failed()
            assert seen == ["on_running bad Running", "on_failure bad Failed"]

    def test_F1_hooks_of_a_flow_that_crashes(self, runner: TaskRunner) -> None:
        """``on_crashed`` is called for a body that raises ``SystemExit``, which reaches the caller."""
        seen: list[str] = []

        @flow(task_runner=runner, **_hooks(seen))
        def leaves() -> None:
            raise SystemExit(4)

        with pytest.raises(SystemExit):
            leaves()
        assert seen == ["on_running leaves Running", "on_crashed leaves Crashed"]

    def test_F1_generators_give_their_items(self, runner: TaskRunner) -> None:
        """A flow that is a generator gives its items, with futures replaced by results."""

        @flow(task_runner=runner)
        def numbers() -> Iterator[Any]:
            yield 1
            yield add.submit(1, 1)
            yield 3

        assert list(numbers()) == [1, 2, 3]

    def test_F1_methods_can_be_flows(self, runner: TaskRunner) -> None:
        """A flow works as a method, a class method and a static method, through instance and class."""
        survey = Survey("here")
        with use_runner(runner):
            assert survey.of_instance(1) == ("here", 3)
            assert Survey.of_class(2) == survey.of_class(2) == 4
            through_instance: Any = survey.of_nothing  # type checkers take it for a method
            assert Survey.of_nothing(3) == through_instance(3) == 5

    def test_F7_a_flow_is_tried_again(self, runner: TaskRunner) -> None:
        """``retries`` counts further tries, and the first that works is the result."""
        tries: list[int] = []

        @flow(retries=3, task_runner=runner)
        def flaky() -> Any:
            tries.append(get_run_context().attempt)
            if len(tries) < 3:
                raise ValueError(f"try {len(tries)}")
            return add.submit(1, 2)

        assert (flaky(), tries) == (3, [1, 2, 3])

    def test_F7_the_last_exception_is_raised(self, runner: TaskRunner) -> None:
        """When no try is left the exception of the last one reaches the caller."""
        tries: list[int] = []

        @flow(retries=2, task_runner=runner)
        def hopeless() -> None:
            tries.append(1)
            raise ValueError(f"try {len(tries)}")

        with pytest.raises(ValueError, match="try 3"):
            hopeless()
        assert len(tries) == 3

    def test_F7_finished_calls_run_again(self, runner: TaskRunner, signals: Signals) -> None:
        """A new try reuses nothing: calls that had finished run once more."""
        tries: list[int] = []

        @flow(retries=1, task_runner=runner)
        def flaky() -> object:
            tries.append(1)
            value = note.submit(signals, "ran", "value").result()
            if len(tries) == 1:
                raise ValueError("once")
            return value

        assert flaky() == "value"
        assert signals.count("ran") == 2

    def test_F7_a_failed_call_is_a_reason_to_try_again(self, runner: TaskRunner, signals: Signals) -> None:
        """A flow that fails because nobody looked at a failed call is tried again too."""

        @flow(retries=1, task_runner=runner)
        def flaky() -> None:
            fail_until.submit(signals, "attempt", 2)

        flaky()
        assert signals.count("attempt") == 2

    def test_F7_hooks_wait_for_the_last_try(self, runner: TaskRunner) -> None:
        """Hooks for the end of a flow are called once, not for tries that are repeated."""
        seen: list[str] = []

        @flow(retries=2, task_runner=runner, on_failure=[lambda *_: seen.append("failed")])
        def hopeless() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            hopeless()
        assert seen == ["failed"]

    @pytest.mark.parametrize(
        "delay", [0.01, [0.01, 0.02], exponential_backoff(backoff_factor=0.005)], ids=["number", "list", "function"]
    )
    def test_F7_delays_are_waited_for(self, runner: TaskRunner, delay: Any) -> None:
        """``retry_delay_seconds`` may be a number, a list or a function, as for tasks, and no try comes sooner."""
        began: list[float] = []

        @flow(retries=2, retry_delay_seconds=delay, retry_jitter_factor=0.1, task_runner=runner)
        def hopeless() -> None:
            began.append(time.monotonic())
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            hopeless()
        assert len(began) == 3
        assert began[1] - began[0] >= 0.004
