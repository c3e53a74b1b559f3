"""R2: calls that run out of time."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest

from turnout import StateType, allow_failure, cancelled, flow, task
from turnout.errors import TaskRunTimeoutError, UpstreamFailed

from ._bodies import add, describe, gate, identity, note, spin
from ._kit import Conformance, Declare, Signals, eventually
from ._open_calls import alive, note_pid_and_wait, stubborn, until_stopped

if TYPE_CHECKING:
    from pathlib import Path

    from turnout.runner import TaskRunner

__all__ = ["TimeoutConformance"]


class TimeoutConformance(Conformance):
    """R2."""

    def test_R2_call_is_timed_out(self, runner: TaskRunner, signals: Signals) -> None:
        """A call that runs for longer than `timeout_seconds` raises TaskRunTimeoutError, a TimeoutError."""
        with runner:
            future = spin.with_options(timeout_seconds=0.1).submit(signals)
            error = future.exception()
            signals.set("go")
            assert isinstance(error, TaskRunTimeoutError)
            assert isinstance(error, TimeoutError)
            assert future.state.type is StateType.TIMED_OUT

    def test_R2_error_names_call_and_time(self, runner: TaskRunner, signals: Signals) -> None:
        """The error names the call and the seconds that it had."""
        with runner:
            error = spin.with_options(timeout_seconds=0.125).submit(signals).exception()
            signals.set("go")
        assert "spin-0" in str(error)
        assert "0.125" in str(error)

    def test_R2_in_time(self, runner: TaskRunner) -> None:
        """A call that ends in time is none the worse."""
        with runner:
            assert add.with_options(timeout_seconds=50).map(range(10), 1).result() == list(range(1, 11))

    def test_R2_at_the_deadline(self, runner: TaskRunner, tmp_path: Path) -> None:
        """The call is TimedOut within half a second of its deadline, whether or not its body can be stopped."""
        # The best of some tries: a busy machine may delay any one of them.
        lateness = []
        for number in range(10):
            directory = tmp_path / str(number)
            directory.mkdir()
            signals = Signals(str(directory))
            with runner:
                future = note_time_and_spin.with_options(timeout_seconds=0.1).submit(signals)
                future.exception()
                signals.set("go")
            if not signals.count("time"):
                continue  # its time was up before its first line
            lateness.append(future.state.timestamp - float(signals.notes("time")[0]) - 0.1)
            if lateness[-1] <= 0.5:
                return
        pytest.fail(f"seconds after the deadline: {lateness}")

    def test_R2_body_is_stopped(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """The body is stopped or asked to stop; a runner that can do neither says so."""
        with runner:
            future = until_stopped.with_options(timeout_seconds=0.2).submit(signals)
            assert isinstance(future.exception(), TaskRunTimeoutError)
            if runner.capabilities.cancel == "none":
                declared("cancel: the body runs on")
                assert not signals.is_set("ended")
                signals.set("go")
            _see_it_end(runner, signals)

    def test_R2_body_that_resists(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A body that ignores being asked is TimedOut all the same; where bodies are killed, it is gone."""
        if runner.capabilities.inline:
            declared("inline: the flow's own thread is held until such a body ends")
            return
        with runner:
            future = stubborn.with_options(timeout_seconds=0.5).submit(signals)
            assert isinstance(future.exception(), TaskRunTimeoutError)
            assert not signals.is_set("ended")
            if runner.capabilities.cancel == "kill":
                _see_it_killed(signals)
                return
            declared("cancel: the body runs on")
            signals.set("go")
            signals.wait("ended")

    def test_R2_slot_is_used_by_others(self, one_slot: TaskRunner, signals: Signals, declared: Declare) -> None:
        """The slot of a call that ran out of time is used by others, even if its body can't be stopped."""
        runner = one_slot
        if runner.capabilities.inline:
            declared("inline: the flow's own thread is held until such a body ends")
            return
        with runner:
            late = stubborn.with_options(timeout_seconds=0.5).submit(signals)
            after = note.submit(signals, "after", "ran")
            assert isinstance(late.exception(), TaskRunTimeoutError)
            if not runner.capabilities.frees_slot:
                declared("frees_slot: the slot is free when the body has ended")
                signals.set("go")
            assert after.result() == "ran"
            assert signals.is_set("ended") is not runner.capabilities.frees_slot
            signals.set("go")

    def test_R2_many_bodies_that_resist(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """More such bodies than there are slots don't block a runner that frees slots."""
        if runner.capabilities.inline or not runner.capabilities.frees_slot:
            declared("frees_slot: slots are free when the bodies have ended")
            signals.set("go")
        with runner:
            late = [stubborn.with_options(timeout_seconds=0.1).submit(signals) for _ in range(6)]
            for future in late:
                future.wait()
            assert add.submit(1, 2).result() == 3
            signals.set("go")
            for future in late:
                future.exception()

    def test_R2_waiting_does_not_count(self, one_slot: TaskRunner, signals: Signals, declared: Declare) -> None:
        """The time runs from the begin of the body, not while the call waits for a slot."""
        with one_slot:
            if one_slot.capabilities.inline:
                declared("inline: no call waits for a slot")
                signals.set("go")
            first = gate.submit(signals)
            queued = add.with_options(timeout_seconds=1).submit(1, 2)
            if not one_slot.capabilities.inline:
                signals.wait("begun")
                # Longer than the queued call's own time.
                time.sleep(1.2)
                signals.set("go")
            first.result()
            assert queued.result() == 3

    def test_R2_waiting_for_a_dependency_does_not_count(self, runner: TaskRunner, signals: Signals) -> None:
        """Nor does the time run while the call waits for what it depends on."""

        @task(retries=1, retry_delay_seconds=1.2)
        def slow_to_succeed() -> int:
            signals.note("try")
            if signals.count("try") == 1:
                raise ValueError("not yet")
            return 1

        with runner:
            assert add.with_options(timeout_seconds=1).submit(slow_to_succeed.submit(), 2).result() == 3

    def test_R2_tried_again(self, runner: TaskRunner, signals: Signals) -> None:
        """A call that ran out of time is tried again like one that raised, with its full time each time."""

        @task(retries=2, timeout_seconds=1)
        def slow_at_first() -> str:
            signals.note("try")
            if signals.count("try") == 1:
                signals.wait("go")
            return "in time"

        with runner:
            assert slow_at_first.submit().result() == "in time"
            signals.set("go")
        assert signals.count("try") == 2

    def test_R2_last_timeout_is_raised(self, runner: TaskRunner, signals: Signals) -> None:
        """When no retries are left the call is TimedOut."""

        @task(retries=1, timeout_seconds=0.5)
        def always_slow() -> None:
            signals.note("try")
            signals.wait(f"go {signals.count('try')}", timeout=2)

        with runner:
            future = always_slow.submit()
            assert isinstance(future.exception(), TaskRunTimeoutError)
        assert signals.count("try") == 2

    def test_R2_dependents(self, runner: TaskRunner, signals: Signals) -> None:
        """Dependents are UpstreamFailed with the timeout as the cause, or get it with `allow_failure`."""
        with runner:
            late = spin.with_options(timeout_seconds=0.1).submit(signals)
            lost, told = identity.submit(late), describe.submit(allow_failure(late))
            error = lost.exception()
            signals.set("go")
            assert isinstance(error, UpstreamFailed)
            assert isinstance(error.__cause__, TaskRunTimeoutError)
            assert told.result().startswith("TaskRunTimeoutError: spin-0")

    def test_R2_others_do_not_notice(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call beside one that runs out of time goes on, and ran once."""
        if runner.capabilities.inline:
            declared("inline: nothing runs beside a call")
            return
        with runner:
            beside = note_pid_and_wait.submit(signals, "beside")
            signals.wait("beside")
            late = until_stopped.with_options(timeout_seconds=0.2).submit(signals)
            assert isinstance(late.exception(), TaskRunTimeoutError)
            assert not beside.done()
            signals.set("go")
            assert beside.result() == "beside"
        assert signals.count("beside") == 1

    def test_R2_async_body(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """An async body is stopped where it awaits; a runner that can't do that says so."""

        @task(timeout_seconds=0.2)
        async def slow() -> None:
            try:
                signals.note("pid", str(os.getpid()))
                while not signals.is_set("go"):  # noqa: ASYNC110 - set by another process
                    await asyncio.sleep(0.005)
            finally:
                signals.set("ended")

        with runner:
            future = slow.submit()
            assert isinstance(future.exception(), TaskRunTimeoutError)
            if runner.capabilities.cancel == "none":
                declared("cancel: the body runs on")
                signals.set("go")
            _see_it_end(runner, signals)

    def test_R2_body_can_ask(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """`cancelled()` tells a body that it is out of time, on runners that ask bodies to stop."""

        @task(timeout_seconds=0.5)
        def asks() -> None:
            try:
                signals.note("asked", str(cancelled()))
                signals.wait("go")
            finally:
                signals.note("asked", str(cancelled()))

        if runner.capabilities.cancel != "cooperative":
            declared("cancel: bodies are not asked")
            assert cancelled() is False
            return
        with runner:
            asks.submit().exception()
            eventually(lambda: signals.count("asked") == 2, "the body is asked to stop")
            signals.set("go")
        assert signals.notes("asked") == ["False", "True"]

    def test_R2_own_timeout_error_is_a_failure(self, runner: TaskRunner) -> None:
        """A TimeoutError that the body raised itself is Failed, not TimedOut."""

        @task(timeout_seconds=50)
        def gives_up() -> None:
            raise TimeoutError("the body gave up")

        with runner:
            future = gives_up.submit()
            assert str(future.exception()) == "the body gave up"
            assert future.state.type is StateType.FAILED

    def test_R2_runner_serves_the_next_flow(self, runner: TaskRunner, signals: Signals) -> None:
        """After timeouts in one flow the runner has all its slots for the next."""

        @flow(task_runner=runner)
        def slow() -> None:
            for future in [spin.with_options(timeout_seconds=0.1).submit(signals) for _ in range(4)]:
                if runner.capabilities.cancel == "none":
                    future.wait()
                    signals.set("go")
                future.exception()

        @flow(task_runner=runner)
        def quick() -> list[int]:
            return add.map(range(20), 1).result()

        slow()
        signals.set("go")
        assert quick() == list(range(1, 21))


@task
def note_time_and_spin(signals: Signals) -> None:
    """Note when the body began, in seconds since the epoch, and run on until "go" is set."""
    signals.note("time", repr(time.time()))
    signals.wait("go")


def _see_it_end(runner: TaskRunner, signals: Signals) -> None:
    """Wait until the body has ended by itself, or its process is gone."""
    if runner.capabilities.cancel == "kill":
        eventually(lambda: signals.is_set("ended") or _gone(signals), "the body has been stopped")
    else:
        signals.wait("ended")


def _see_it_killed(signals: Signals) -> None:
    eventually(lambda: _gone(signals), "the process of the body is gone")
    assert not signals.is_set("ended")


def _gone(signals: Signals) -> bool:
    return not any(alive(int(pid)) for pid in signals.notes("pid"))
