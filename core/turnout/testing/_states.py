"""S3 and S4: the states of a call, and the hooks that are told of them."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from turnout import State, StateType, TaskFuture, flow, task, wait
from turnout.errors import CancelledRun, CrashedRun, TaskRunTimeoutError, UpstreamFailed, WouldDeadlockError

from ._bodies import add, crash, fail, fail_until, gate, identity, spin
from ._kit import Conformance, Declare, Signals, eventually
from ._open_calls import postponed, stubborn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnout.runner import TaskRunner

__all__ = ["StateConformance"]


class StateConformance(Conformance):
    """S3 and S4."""

    def test_S3_completed(self, runner: TaskRunner) -> None:
        """A call whose body returned is Completed, and its state holds the result."""
        with runner:
            state = _final_state(add.submit(1, 2))
        assert (state.type, state.name, state.message, repr(state)) == (
            StateType.COMPLETED,
            "Completed",
            None,
            "Completed()",
        )
        assert state.result() == 3
        assert _predicates(state) == {"final", "completed"}

    def test_S3_failed(self, runner: TaskRunner) -> None:
        """A call whose body raised is Failed; the message is one line with type and text."""
        with runner:
            state = _final_state(fail.submit("no luck\nat all"))
        assert (state.type, state.name, state.message) == (StateType.FAILED, "Failed", "ValueError: no luck")
        assert _predicates(state) == {"final", "failed"}
        with pytest.raises(ValueError, match="no luck"):
            state.result()
        assert isinstance(state.result(raise_on_failure=False), ValueError)

    def test_S3_timed_out(self, runner: TaskRunner, signals: Signals) -> None:
        """A call that ran out of time is TimedOut, which counts as failed; the message names the time."""
        with runner:
            future = spin.with_options(timeout_seconds=0.1).submit(signals)
            state = _final_state(future)
            signals.set("go")
        assert (state.type, state.name) == (StateType.TIMED_OUT, "TimedOut")
        assert "0.1" in str(state.message)
        assert _predicates(state) == {"final", "failed"}
        assert isinstance(state.result(raise_on_failure=False), TaskRunTimeoutError)

    def test_S3_upstream_failed(self, runner: TaskRunner) -> None:
        """A call behind a failed one is UpstreamFailed, which counts as failed; the message names the root."""
        with runner:
            state = _final_state(identity.submit(identity.submit(fail.submit("rotten"))))
        assert (state.type, state.name) == (StateType.UPSTREAM_FAILED, "UpstreamFailed")
        assert "fail-0" in str(state.message)
        assert "rotten" in str(state.message)
        assert _predicates(state) == {"final", "failed"}
        assert isinstance(state.result(raise_on_failure=False), UpstreamFailed)

    def test_S3_crashed(self, runner: TaskRunner) -> None:
        """A call that ended by a BaseException is Crashed, and that is not Failed."""
        with runner:
            state = _final_state(crash.submit())
        assert (state.type, state.name) == (StateType.CRASHED, "Crashed")
        assert "SystemExit" in str(state.message)
        assert _predicates(state) == {"final", "crashed"}
        assert isinstance(state.result(raise_on_failure=False), CrashedRun)

    def test_S3_cancelled(self, runner: TaskRunner) -> None:
        """A cancelled call is Cancelled, and so is what depends on it; that is not Failed."""
        with runner:
            future = postponed(runner)
            dependent = identity.submit(future)
            future.cancel()
            states = [_final_state(future), _final_state(dependent)]
        for state in states:
            assert (state.type, state.name) == (StateType.CANCELLED, "Cancelled")
            assert _predicates(state) == {"final", "cancelled"}
            assert isinstance(state.result(raise_on_failure=False), CancelledRun)

    def test_S3_pending(self, runner: TaskRunner) -> None:
        """A call that waits for another is Pending; its state has no result yet and says so."""
        with runner:
            future = postponed(runner)
            state = identity.submit(future).state
            future.cancel()
        assert (state.type, state.name, _predicates(state)) == (StateType.PENDING, "Pending", {"pending"})
        with pytest.raises(RuntimeError, match="Pending"):
            state.result()

    def test_S3_running(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call whose body runs is Running, on runners that tell."""
        if runner.capabilities.inline or not runner.capabilities.streams:
            declared("inline or not streaming: nobody is told of a begin before the end")
            signals.set("go")
        with runner:
            future = gate.submit(signals)
            if not signals.is_set("go"):
                eventually(lambda: future.state.name == "Running", "the state is Running while the body runs")
                assert (future.state.name, _predicates(future.state)) == ("Running", {"running"})
            signals.set("go")
            assert _final_state(future).is_completed()

    def test_S3_retrying(self, runner: TaskRunner) -> None:
        """A call that failed and waits to be tried again is Retrying, which is not final."""
        with runner:
            future = postponed(runner)
            eventually(lambda: future.state.name == "Retrying", "the state is Retrying after the first attempt")
            assert (future.state.name, _predicates(future.state)) == ("Retrying", {"retrying"})
            future.cancel()

    def test_S3_states_have_times(self, runner: TaskRunner) -> None:
        """A state tells when the call came into it, in seconds since the epoch."""
        before = time.time()
        with runner:
            states = [_final_state(future) for future in (add.submit(1, 2), fail.submit(), crash.submit())]
        assert all(before - 1 <= state.timestamp <= time.time() + 1 for state in states)

    def test_S3_final_is_final(self, runner: TaskRunner) -> None:
        """Neither `cancel` nor anything else changes a final state."""
        with runner:
            futures: list[TaskFuture[Any]] = [
                add.submit(1, 2),
                fail.submit(),
                crash.submit(),
                postponed(runner),
            ]
            futures[3].cancel()
            wait(futures)
            before = [(future.state, future.state.timestamp) for future in futures]
            assert [future.cancel() for future in futures] == [False] * 4
            assert [(future.state, future.state.timestamp) for future in futures] == before

    def test_S3_late_end_changes_nothing(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call that is TimedOut stays so, whatever its body, if it can't be stopped, returns later."""
        if runner.capabilities.inline:
            declared("inline: nothing goes on before such a body ends")
            return
        with runner:
            future = stubborn.with_options(timeout_seconds=0.5).submit(signals)
            state = _final_state(future)
            signals.set("go")
            if runner.capabilities.cancel != "kill":
                signals.wait("ended")
            add.submit(1, 2).result()
        assert state.type is StateType.TIMED_OUT
        assert (future.state, future.state.timestamp) == (state, state.timestamp)

    def test_S3_states_only_go_forwards(self, runner: TaskRunner, signals: Signals) -> None:
        """Whoever watches a call sees Pending, Running, Retrying, Running and one final state, and never goes back."""
        with runner, _watching() as watch:
            attempts = fail_until.with_options(retries=2, retry_delay_seconds=0.01)
            futures = [attempts.submit(signals, f"call {number}", 3) for number in range(10)]
            for future in futures:
                watch(future)
            assert [future.result() for future in futures] == [3] * 10
            seen = [watch(future) for future in futures]
        for types in seen:
            assert [type_ for type_ in types if type_ >= StateType.COMPLETED] in ([], [StateType.COMPLETED])
            assert types.count(StateType.PENDING) <= 1
            assert StateType.PENDING not in types[1:]

    def test_S3_no_call_is_left_open(self, runner: TaskRunner) -> None:
        """After a flow each of its calls is final, whether the flow returned or raised."""
        kept: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        def main(good: bool) -> None:
            first = postponed(runner)
            kept.extend([first, identity.submit(first), add.submit(1, 2), fail.submit(), *identity.map(range(20))])
            kept.append(identity.submit(kept[-1], wait_for=kept[1:3]))
            if good:
                first.cancel()
                kept[3].exception()
            else:
                raise LookupError("the body raised")

        main(True)
        with pytest.raises(LookupError):
            main(False)
        assert len(kept) == 50
        assert [future for future in kept if not future.state.is_final()] == []

    def test_S3_states_compare(self, runner: TaskRunner) -> None:
        """Equal kinds with equal messages are equal states; all else is not."""
        with runner:
            futures = [add.submit(1, 2), add.submit(3, 4), fail.submit("a"), fail.submit("a"), fail.submit("b")]
            states = [_final_state(future) for future in futures]
        assert states[0] == states[1]
        assert states[2] == states[3]
        assert states[0] != states[2] != states[4]

    def test_S4_hooks_run_in_the_driver(self, runner: TaskRunner) -> None:
        """Hooks run in the driver's process, with task, task run and state, before the flow ends."""
        seen: list[tuple[Any, ...]] = []

        def hook(owner: Any, run: Any, state: State) -> None:
            seen.append((os.getpid(), owner.name, run.name, run.attempt, state.name, state.result()))

        @flow(task_runner=runner)
        def main() -> None:
            add.with_options(on_completion=[hook]).submit(1, 2)

        main()
        assert seen == [(os.getpid(), "add", "add-0", 1, "Completed", 3)]

    def test_S4_hooks_know_the_run(self, runner: TaskRunner) -> None:
        """The run that a hook is given has the id of the future."""
        seen: list[str] = []
        with runner:
            hooked = add.with_options(on_completion=[lambda _task, run, _state: seen.append(run.id)])
            futures = hooked.map(range(5), 1)
            futures.wait()
        assert sorted(seen) == sorted(future.task_run_id for future in futures)

    def test_S4_hooks_run_once_per_call(self, runner: TaskRunner) -> None:
        """Each call of a map has its hooks run once, those of its own end and no others."""
        completed: list[str] = []
        failed: list[str] = []

        def odd_fails(number: int) -> int:
            if number % 2:
                raise ValueError(number)
            return number

        hooked = task(
            on_completion=[lambda _task, run, _state: completed.append(run.name)],
            on_failure=[lambda _task, run, _state: failed.append(run.name)],
        )(odd_fails)
        with runner:
            futures = hooked.map(range(40))
            for future in futures:
                future.exception()
        assert sorted(completed) == sorted(future.name for future in futures[::2])
        assert sorted(failed) == sorted(future.name for future in futures[1::2])

    def test_S4_hooks_are_not_told_of_retried_attempts(self, runner: TaskRunner, signals: Signals) -> None:
        """Attempts that are tried again run no hook of an end; the last one does, and knows its number."""
        completed: list[int] = []
        failed: list[int] = []
        with runner:
            hooked = fail_until.with_options(
                retries=2,
                on_completion=[lambda _task, run, _state: completed.append(run.attempt)],
                on_failure=[lambda _task, run, _state: failed.append(run.attempt)],
            )
            assert hooked.submit(signals, "good", 3).result() == 3
            hooked.submit(signals, "bad", 4).exception()
        assert (completed, failed) == ([3], [3])

    def test_S4_failure_hooks_see_timeouts(self, runner: TaskRunner, signals: Signals) -> None:
        """`on_failure` runs once for a call that ran out of time."""
        seen: list[str] = []
        with runner:
            hooked = spin.with_options(timeout_seconds=0.1, on_failure=[lambda *told: seen.append(told[2].name)])
            hooked.submit(signals).exception()
            signals.set("go")
        assert seen == ["TimedOut"]

    def test_S4_cancelled_calls_have_not_completed(self, runner: TaskRunner) -> None:
        """A cancelled call runs neither `on_completion` nor `on_failure`."""
        seen: list[str] = []
        with runner:
            hooks = [lambda *told: seen.append(told[2].name)]
            future = postponed(runner, on_completion=hooks, on_failure=hooks)
            future.cancel()
        assert seen == []

    def test_S4_several_hooks_run_in_order(self, runner: TaskRunner) -> None:
        """All hooks of a list run, in order."""
        seen: list[int] = []
        with runner:
            hooks = [lambda *_, number=number: seen.append(number) for number in range(10)]
            add.with_options(on_completion=hooks).submit(1, 2).result()
        assert seen == list(range(10))

    def test_S4_running_hook_comes_first(self, runner: TaskRunner) -> None:
        """`on_running` runs before `on_completion`, with a state that is not final."""
        seen: list[str] = []
        with runner:
            hooks = [lambda *told: seen.append(told[2].name)]
            add.with_options(on_running=hooks, on_completion=hooks).submit(1, 2).result()
        assert seen == ["Running", "Completed"]

    def test_S4_hook_error_is_logged(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """What a hook raises is logged with its traceback; the call and the other hooks don't notice."""
        seen: list[str] = []

        def explode(*_: Any) -> None:
            raise RuntimeError("hook went wrong")

        with runner:
            hooked = add.with_options(on_completion=[explode, lambda *_: seen.append("second")])
            future = hooked.submit(1, 2)
            assert future.result() == 3
        assert future.state.is_completed()
        assert seen == ["second"]
        assert "RuntimeError: hook went wrong" in caplog.text

    def test_S4_hook_is_no_look_at_a_failure(self, runner: TaskRunner) -> None:
        """A failure that only a hook was told of still makes the flow fail."""

        @flow(task_runner=runner)
        def main() -> None:
            fail.with_options(on_failure=[lambda *told: told[2].result(raise_on_failure=False)]).submit("unseen")

        with pytest.raises(ExceptionGroup) as caught:
            main()
        assert [str(error) for error in caught.value.exceptions] == ["unseen"]

    def test_S4_waiting_in_a_hook_is_refused(self, runner: TaskRunner) -> None:
        """Waiting for an open call in a hook raises WouldDeadlockError."""
        seen: list[type[BaseException]] = []

        @flow(task_runner=runner)
        def main() -> None:
            still_open = postponed(runner)

            def ask(*_: Any) -> None:
                try:
                    still_open.result(timeout=20)
                except Exception as error:
                    seen.append(type(error))

            add.with_options(on_completion=[ask]).submit(1, 2).result()
            still_open.cancel()

        main()
        assert seen == [WouldDeadlockError]

    def test_S4_flow_hooks_run_once(self, runner: TaskRunner) -> None:
        """Hooks of a flow run in the driver, once per final state and not for attempts that are retried."""
        seen: list[tuple[int, str, str]] = []
        attempts: list[int] = []

        def hook(owner: Any, _run: Any, state: State) -> None:
            seen.append((os.getpid(), owner.name, state.name))

        @flow(task_runner=runner, retries=1, on_completion=[hook], on_failure=[hook])
        def main() -> None:
            attempts.append(1)
            if len(attempts) == 1:
                fail.submit().result()
            add.submit(1, 2).result()

        main()
        assert seen == [(os.getpid(), "main", "Completed")]
        assert len(attempts) == 2


def _final_state(future: TaskFuture[Any]) -> State:
    future.wait()
    return future.state


def _predicates(state: State) -> set[str]:
    names = ("final", "completed", "failed", "crashed", "cancelled", "pending", "running", "retrying")
    return {name for name in names if getattr(state, f"is_{name}")()}


@contextlib.contextmanager
def _watching() -> Iterator[Any]:
    """Give a function that begins to watch a future, and when called again returns the kinds of state seen."""
    seen: dict[TaskFuture[Any], list[StateType]] = {}
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for future, types in list(seen.items()):
                type_ = future.state.type
                if not types or types[-1] is not type_:
                    types.append(type_)
            # Lets the calls have the interpreter.
            over.wait(0.0005)

    def watch(future: TaskFuture[Any]) -> list[StateType]:
        return seen.setdefault(future, [])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
