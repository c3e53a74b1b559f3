"""E3 and E4: bodies that raise what ends programs, and errors in hooks, callbacks, conditions and templates."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest

from turnout import StateType, TaskFuture, flow, task
from turnout.errors import CrashedRun

from ._bodies import add, crash, fail, fail_until, identity, note, where
from ._kit import Conformance, Signals
from ._open_calls import failure_of, postponed

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["MisbehaviourConformance"]


class Outrage(BaseException):
    """What no library expects."""


class MisbehaviourConformance(Conformance):
    """E3 and E4."""

    def test_E3_system_exit(self, runner: TaskRunner) -> None:
        """`sys.exit` in a body makes the call Crashed, with the SystemExit and its code as the cause."""

        def body() -> None:
            sys.exit(7)

        error = failure_of(runner, body)
        assert isinstance(error, CrashedRun)
        assert isinstance(error.__cause__, SystemExit)
        assert error.__cause__.code == 7
        assert "SystemExit" in str(error)

    @pytest.mark.parametrize(
        "kind", [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Outrage], ids=lambda kind: str(kind.__name__)
    )
    def test_E3_other_base_exceptions(self, runner: TaskRunner, kind: type[BaseException]) -> None:
        """Every other BaseException makes the call Crashed too, with itself as the cause."""

        def body() -> None:
            raise kind("from the body")

        error = failure_of(runner, body)
        assert isinstance(error, CrashedRun)
        assert error.__cause__ is not None
        assert type(error.__cause__) is kind
        assert error.__cause__.args == ("from the body",)

    def test_E3_group_of_base_exceptions(self, runner: TaskRunner) -> None:
        """A BaseExceptionGroup that is no ExceptionGroup makes the call Crashed."""

        def body() -> None:
            raise BaseExceptionGroup("mixed", [ValueError("v"), KeyboardInterrupt()])

        error = failure_of(runner, body)
        assert isinstance(error, CrashedRun)
        assert isinstance(error.__cause__, BaseExceptionGroup)
        assert [type(one) for one in error.__cause__.exceptions] == [ValueError, KeyboardInterrupt]

    @pytest.mark.parametrize(
        "kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, Outrage], ids=lambda kind: str(kind.__name__)
    )
    def test_E3_in_an_async_body(self, runner: TaskRunner, kind: type[BaseException]) -> None:
        """The same in async tasks: the event loop that they share lives on."""

        async def body() -> None:
            await asyncio.sleep(0)
            raise kind("from the body")

        @task
        async def after() -> str:
            await asyncio.sleep(0)
            return "alive"

        error = failure_of(runner, body)
        assert isinstance(error, CrashedRun)
        assert type(error.__cause__) is kind
        with runner:
            assert after.submit().result() == "alive"

    def test_E3_crashes_so_are_not_retried(self, runner: TaskRunner, signals: Signals) -> None:
        """Neither `retries` nor `crash_retries` run such a body again: it asked for its own end."""

        def body() -> None:
            signals.note("ran")
            raise KeyboardInterrupt

        with runner:
            future = task(retries=2, crash_retries=2)(body).submit()
            assert isinstance(future.exception(), CrashedRun)
            assert future.state.type is StateType.CRASHED
        assert signals.count("ran") == 1

    def test_E3_worker_lives_on(self, one_slot: TaskRunner) -> None:
        """The worker that ran such a body takes the next call, and is the same process still."""
        with one_slot:
            before = where.submit().result()[0]
            for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, Outrage):

                def body(kind: type[BaseException] = kind) -> None:
                    raise kind

                assert isinstance(task(body).submit().exception(), CrashedRun)
            assert where.submit().result()[0] == before

    def test_E3_others_do_not_notice(self, runner: TaskRunner, signals: Signals) -> None:
        """Calls beside such a one have results, and ran once each."""
        with runner:
            crashes = [crash.submit() for _ in range(3)]
            others = note.map([signals] * 20, "ran", range(20))
            assert others.result() == list(range(20))
            assert all(isinstance(future.exception(), CrashedRun) for future in crashes)
        assert sorted(map(int, signals.notes("ran"))) == list(range(20))

    def test_E3_unseen_crash_fails_the_flow(self, runner: TaskRunner) -> None:
        """A crash at which nobody looked makes the flow fail; the driver gets an Exception, not the SystemExit."""

        @flow(task_runner=runner)
        def main() -> None:
            crash.submit()

        with pytest.raises(ExceptionGroup) as caught:
            main()
        assert [type(error) for error in caught.value.exceptions] == [CrashedRun]

    def test_E4_hook(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """Errors in hooks of all kinds are logged on "turnout", and change no outcome."""

        def explode(*told: Any) -> None:
            raise RuntimeError(f"hook of {told[2].name}")

        with runner:
            hooked = {"on_running": [explode], "on_completion": [explode], "on_failure": [explode]}
            good, bad = add.with_options(**hooked).submit(1, 2), fail.with_options(**hooked).submit()
            assert good.result() == 3
            assert isinstance(bad.exception(), ValueError)
        for name in ("Running", "Completed", "Failed"):
            assert f"RuntimeError: hook of {name}" in caplog.text
        assert {record.name for record in caplog.records if "hook" in record.getMessage()} <= {"turnout"}

    def test_E4_hook_of_a_flow(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """Errors in hooks of flows are logged, and the flow has its result."""

        def explode(*told: Any) -> None:
            raise RuntimeError(f"hook of {told[2].name}")

        @flow(task_runner=runner, on_completion=[explode], on_running=[explode])
        def main() -> Any:
            return add.submit(1, 2).result()

        assert main() == 3
        for name in ("Running", "Completed"):
            assert f"RuntimeError: hook of {name}" in caplog.text

    def test_E4_hook_that_exits(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """`sys.exit` in a hook is logged like any other error: nothing ends by it, and nothing hangs."""

        def leave(*_: Any) -> None:
            sys.exit("hook leaves")

        with runner:
            assert add.with_options(on_completion=[leave], on_running=[leave]).map(range(5), 1).result() == [
                1,
                2,
                3,
                4,
                5,
            ]
            assert identity.submit("alive").result() == "alive"
        assert "hook leaves" in caplog.text

    def test_E4_callback_that_exits(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """`sys.exit` in a callback is logged like any other error: the callbacks after it run, and nothing hangs."""
        seen: list[str] = []

        def leave(_: TaskFuture[Any]) -> None:
            sys.exit("callback leaves")

        with runner:
            future = postponed(runner)
            future.add_done_callback(leave)
            future.add_done_callback(lambda _: seen.append("second"))
            future.cancel()
            other = add.submit(1, 2)
            other.add_done_callback(leave)
            assert other.result() == 3
            assert identity.submit("alive").result() == "alive"
        assert seen == ["second"]
        assert caplog.text.count("callback leaves") >= 2

    def test_E4_retry_condition(self, runner: TaskRunner, signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
        """A `retry_condition_fn` that raises is logged, and the call is not run again: it fails with its own error."""

        def undecided(*_: Any) -> bool:
            raise RuntimeError("condition went wrong")

        with runner:
            future = fail_until.with_options(retries=3, retry_condition_fn=undecided).submit(signals, "try", 3)
            assert str(future.exception()) == "attempt 1"
        assert signals.count("try") == 1
        assert "RuntimeError: condition went wrong" in caplog.text

    def test_E4_retry_delay(self, runner: TaskRunner, signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
        """A `retry_delay_seconds` function that raises is logged or is the failure; the call ends."""

        def undecided(_: int) -> list[float]:
            raise RuntimeError("delay went wrong")

        said = ""
        with runner:
            try:
                hasty = fail_until.with_options(retries=3, retry_delay_seconds=undecided)
                hasty.submit(signals, "try", 5).result()
            except Exception as error:
                said = repr(error)
        assert "delay went wrong" in caplog.text + said

    def test_E4_name_template(self, runner: TaskRunner, signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
        """A `task_run_name` that names no parameter is logged or is the failure, in words that name it."""
        said = _said_of_naming(runner, signals, "{text} of {nobody}")
        assert "nobody" in caplog.text + said

    def test_E4_name_function(self, runner: TaskRunner, signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
        """A `task_run_name` function that raises is logged or is the failure."""

        def nameless() -> str:
            raise RuntimeError("no name comes to mind")

        said = _said_of_naming(runner, signals, nameless)
        assert "no name comes to mind" in caplog.text + said

    def test_E4_name_of_a_flow(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """A `flow_run_name` that names no parameter is logged or raised, in words that name it."""

        @flow(task_runner=runner, flow_run_name="for {nobody}")
        def main() -> Any:
            return add.submit(1, 2).result()

        said = ""
        try:
            assert main() == 3
        except Exception as error:
            said = repr(error)
        assert "nobody" in caplog.text + said

    def test_E4_bad_name_harms_only_its_call(self, runner: TaskRunner) -> None:
        """A template that fits some calls of a map and not others harms at most those."""
        with runner:
            named = identity.with_options(task_run_name="{value.real}")
            futures = named.map([1, "no number", 3])
            outcomes = [future.exception() or future.result() for future in futures]
        assert outcomes[::2] == [1, 3]

    def test_E4_errors_of_several_hooks_are_all_logged(
        self, runner: TaskRunner, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each of several hooks that raise is logged."""

        def hook(number: int) -> Any:
            def explode(*_: Any) -> None:
                raise RuntimeError(f"hook number {number}")

            return explode

        with runner:
            add.with_options(on_completion=[hook(number) for number in range(5)]).submit(1, 2).result()
        assert all(f"hook number {number}" in caplog.text for number in range(5))


def _said_of_naming(runner: TaskRunner, signals: Signals, name: Any) -> str:
    """Return what a call with a bad name failed with, if it failed; it must end either way."""
    with runner:
        try:
            note.with_options(task_run_name=name).submit(signals, "ran", "word").result()
        except Exception as error:
            return repr(error) + "".join(getattr(error, "__notes__", ()))
    return ""
