"""R4: calls that are cancelled."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from turnout import StateType, TaskFuture, allow_failure, cancelled, flow, task, unmapped
from turnout.errors import CancelledRun

from ._bodies import add, fail, gate, identity, note
from ._kit import Conformance, Declare, Signals, eventually
from ._open_calls import alive, note_pid_and_wait, postponed, second_time, stubborn, until_stopped

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["CancelConformance"]


class SlowToPack:
    """Tells when it is packed in another thread than that which made it, and takes until "go" for it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self._thread = threading.current_thread()

    def __reduce__(self) -> Any:
        if threading.current_thread() is not self._thread:
            self.begun.set()
            self.go.wait(30)
        return str, ()


@task
def fail_below(signals: Signals) -> Any:
    """Submit a call that fails, and wait to be stopped before anybody looks at it."""
    fail.submit().wait()
    return until_stopped.fn(signals)


class CancelConformance(Conformance):
    """R4."""

    def test_R4_queued_call_never_starts(self, one_slot: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call that waits for a slot and is cancelled never begins; the others do."""
        if one_slot.capabilities.inline:
            declared("inline: no call waits for a slot")
            return
        with one_slot:
            first = gate.submit(signals)
            signals.wait("begun")
            queued = note.map([signals] * 50, "ran", range(50))
            took = [future.cancel() for future in queued[::2]]
            signals.set("go")
            first.result()
            for future in queued:
                future.wait()
        if one_slot.capabilities.cancel == "none":
            declared("cancel: a call that the backend has taken may run")
            assert any(took)
        else:
            assert all(took)
        gone = {2 * number for number, cancelled in enumerate(took) if cancelled}
        assert set(map(int, signals.notes("ran"))) == set(range(50)) - gone
        assert {number for number, future in enumerate(queued) if future.cancelled()} == gone

    def test_R4_waiting_call_never_starts(self, runner: TaskRunner, signals: Signals) -> None:
        """A call that waits for a dependency and is cancelled never begins, and its dependency goes on."""
        with runner:
            first = second_time(runner).submit(signals, "value")
            waiting = note.submit(signals, "ran", first)
            assert waiting.cancel()
            assert waiting.cancelled()
            signals.set("go")
            assert first.result() == "value"
        assert signals.count("ran") == 0

    def test_R4_call_that_is_being_packed_never_starts(
        self, runner: TaskRunner, tmp_path: Path, declared: Declare
    ) -> None:
        """A call that is cancelled while its arguments are made ready to be sent never begins."""
        if runner.capabilities.in_process:
            declared("in_process: nothing is packed")
            return
        with runner:
            # Many times: a backend may get the word in time, by chance.
            for number in range(30):
                signals, packing = Signals(str(tmp_path / str(number))), SlowToPack()
                Path(signals.directory).mkdir()
                first = gate.submit(signals)
                future = note.submit(signals, "ran", [first, packing])
                signals.set("go")
                eventually(lambda: packing.begun.is_set() or future.done(), "the call is packed")  # noqa: B023
                if not packing.begun.is_set():
                    declared("orders: it was sent before what it needs had ended")
                    continue
                try:
                    assert future.cancel() is True
                finally:
                    packing.go.set()
                assert note.submit(signals, "after").result() == ""
                assert signals.count("ran") == 0, f"in round {number}"

    def test_R4_result_raises_cancelled(self, runner: TaskRunner) -> None:
        """`result` of a cancelled call raises CancelledRun, a concurrent.futures.CancelledError, naming the call."""
        with runner:
            future = postponed(runner)
            assert future.cancel() is True
            with pytest.raises(CancelledRun, match="postponed-0"):
                future.result()
            with pytest.raises(concurrent.futures.CancelledError):
                future.result()
            assert future.state.type is StateType.CANCELLED

    def test_R4_running_call_is_stopped(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """The body of a cancelled call is killed or asked to stop; a runner that can do neither refuses."""
        if runner.capabilities.inline:
            declared("inline: nobody can cancel a first attempt while it runs")
            return
        with runner:
            future = until_stopped.submit(signals)
            signals.wait("begun")
            if runner.capabilities.cancel == "none":
                declared("cancel: a running call goes on")
                assert future.cancel() is False
                assert not future.done()
                signals.set("go")
                assert future.result() == "went on"
                return
            assert future.cancel() is True
            assert future.done()
            _see_it_end(runner, signals)
            with pytest.raises(CancelledRun):
                future.result()

    def test_R4_running_attempt_is_stopped_from_another_thread(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """Another thread can cancel a running call, even while the flow waits in `result`."""
        with runner:
            future = second_time(runner).submit(signals, "value")

            def cancel_it() -> None:
                signals.wait("again")
                took.append(future.cancel())
                if not took[0]:
                    signals.set("go")

            took: list[bool] = []
            thread = threading.Thread(target=cancel_it)
            thread.start()
            error = future.exception()
            thread.join()
        if runner.capabilities.cancel == "none":
            declared("cancel: a running call goes on")
            assert (took, error) == ([False], None)
        else:
            assert took == [True]
            assert isinstance(error, CancelledRun)

    def test_R4_running_body_that_resists(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A body that ignores being asked is Cancelled all the same; where bodies are killed, it is gone."""
        if runner.capabilities.inline or runner.capabilities.cancel == "none":
            declared("inline, or cancel: no running call is cancelled")
            return
        with runner:
            future = stubborn.submit(signals)
            signals.wait("begun")
            assert future.cancel() is True
            assert future.state.type is StateType.CANCELLED
            assert not signals.is_set("ended")
            if runner.capabilities.cancel == "kill":
                eventually(lambda: _gone(signals), "the process of the body is gone")
                assert not signals.is_set("ended")
            else:
                declared("cancel: a body that ignores being asked runs on")
                signals.set("go")
                signals.wait("ended")
            assert future.state.type is StateType.CANCELLED

    def test_R4_flow_ends_after_bodies_that_are_killed(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """When a flow is over, no body of it runs on that was cancelled, where bodies are killed."""
        if runner.capabilities.cancel != "kill":
            declared("cancel: no running call is cancelled, or its body runs on if it resists")
            return

        @flow(task_runner=runner)
        def leaves(name: str) -> None:
            future = note_pid_and_wait.submit(signals, name)
            signals.wait(name)
            future.cancel()

        with runner:
            for number in range(5):
                leaves(f"body-{number}")
                (pid,) = signals.notes(f"body-{number}")
                deadline = time.monotonic() + self.death_seconds
                while alive(int(pid)):
                    assert time.monotonic() < deadline, "the body lives on"

    def test_R4_slot_is_used_by_others(self, one_slot: TaskRunner, signals: Signals, declared: Declare) -> None:
        """The slot of a running call that was cancelled is used by others."""
        if one_slot.capabilities.inline or one_slot.capabilities.cancel == "none":
            declared("inline, or cancel: no running call is cancelled")
            return
        with one_slot:
            future = until_stopped.submit(signals)
            signals.wait("begun")
            queued = note.submit(signals, "after", "ran")
            assert future.cancel()
            assert queued.result() == "ran"
            assert not signals.is_set("go")

    def test_R4_others_do_not_notice(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call beside one that is cancelled goes on, and ran once."""
        if runner.capabilities.inline or runner.capabilities.cancel == "none":
            declared("inline, or cancel: no running call is cancelled")
            return
        with runner:
            beside = note_pid_and_wait.submit(signals, "beside")
            future = until_stopped.submit(signals)
            signals.wait("beside")
            signals.wait("begun")
            assert future.cancel()
            _see_it_end(runner, signals)
            assert not beside.done()
            signals.set("go")
            assert beside.result() == "beside"
        assert signals.count("beside") == 1

    def test_R4_dependents_are_cancelled(self, runner: TaskRunner, signals: Signals) -> None:
        """What depends on a cancelled call, by argument or `wait_for`, directly or not, is Cancelled and never runs."""
        with runner:
            first = postponed(runner)
            by_argument = note.submit(signals, "ran", [first])
            by_wait_for = note.submit(signals, "ran", wait_for=[first])
            indirectly = note.submit(signals, "ran", by_argument)
            first.cancel()
            late = note.submit(signals, "ran", first)
            for future in (by_argument, by_wait_for, indirectly, late):
                assert future.cancelled()
                assert isinstance(future.exception(), CancelledRun)
        assert signals.count("ran") == 0

    def test_R4_cancelled_is_no_failure_to_allow(self, runner: TaskRunner, signals: Signals) -> None:
        """`allow_failure` does not run what depends on a cancelled call."""
        with runner:
            first = postponed(runner)
            tolerant = note.submit(signals, "ran", allow_failure(first))
            first.cancel()
            assert tolerant.cancelled()
        assert signals.count("ran") == 0

    def test_R4_dependent_of_others_too(self, runner: TaskRunner) -> None:
        """A call with several dependencies is cancelled with any of them; the others have results."""
        with runner:
            first, second = postponed(runner), add.submit(1, 2)
            both = identity.submit([first, second])
            first.cancel()
            assert both.cancelled()
            assert second.result() == 3

    def test_R4_dependent_alone(self, runner: TaskRunner, signals: Signals) -> None:
        """Cancelling a dependent leaves its siblings and what it depends on alone."""
        with runner:
            first = second_time(runner).submit(signals, 1)
            one, other = add.submit(first, 1), add.submit(first, 2)
            assert one.cancel()
            signals.set("go")
            assert (first.result(), other.result()) == (1, 3)

    def test_R4_finished_call_refuses(self, runner: TaskRunner) -> None:
        """`cancel` of a call that is over returns False and changes nothing."""
        with runner:
            future = add.submit(1, 2)
            future.wait()
            assert future.cancel() is False
            assert future.result() == 3

    def test_R4_cancel_in_a_callback(self, runner: TaskRunner) -> None:
        """A callback may cancel other calls."""
        with runner:
            others = [postponed(runner) for _ in range(5)]
            first = postponed(runner)
            first.add_done_callback(lambda _: [other.cancel() for other in others])
            done = add.submit(1, 2)
            done.add_done_callback(lambda _: first.cancel())
            assert all(isinstance(other.exception(), CancelledRun) for other in others)

    def test_R4_cancel_in_a_hook(self, runner: TaskRunner) -> None:
        """A hook may cancel other calls."""
        with runner:
            other = postponed(runner)
            hooked = add.with_options(on_completion=[lambda *_: other.cancel()])
            assert hooked.submit(1, 2).result() == 3
            assert isinstance(other.exception(), CancelledRun)

    def test_R4_cancel_while_others_are_awaited(self, runner: TaskRunner) -> None:
        """An async flow may cancel one call while it awaits another."""

        @flow(task_runner=runner)
        async def main() -> tuple[bool, int]:
            waiting, quick = postponed(runner), add.submit(1, 2)

            async def cancel_it() -> bool:
                await asyncio.sleep(0)
                return waiting.cancel()

            async def look() -> bool:
                try:
                    await waiting
                except CancelledRun:
                    return True
                return False

            took, woken, value = await asyncio.gather(cancel_it(), look(), quick)
            return took and woken, value

        assert asyncio.run(main()) == (True, 3)

    def test_R4_many_threads_cancel_at_once(self, runner: TaskRunner) -> None:
        """When several threads cancel one call, it took for one of them at least, and callbacks run once."""
        with runner, concurrent.futures.ThreadPoolExecutor(8) as threads:
            for _ in range(20):
                calls: list[Any] = []
                future = postponed(runner)
                future.add_done_callback(calls.append)
                barrier = threading.Barrier(8)

                def cancel_it(future: TaskFuture[int] = future, barrier: threading.Barrier = barrier) -> bool:
                    barrier.wait(30)
                    return future.cancel()

                took = [answer.result(30) for answer in [threads.submit(cancel_it) for _ in range(8)]]
                assert any(took)
                assert calls == [future]

    def test_R4_body_can_ask(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """`cancelled()` is False in a body until its call is cancelled, and True from then on."""

        @task
        def asks() -> None:
            signals.note("asked", str(cancelled()))
            try:
                signals.set("begun")
                signals.wait("go")
            finally:
                signals.note("asked", str(cancelled()))

        if runner.capabilities.inline or runner.capabilities.cancel != "cooperative":
            declared("inline, or cancel: bodies are not asked")
            signals.set("go")
        with runner:
            future = asks.submit()
            if not signals.is_set("go"):
                signals.wait("begun")
                assert future.cancel()
                eventually(lambda: signals.count("asked") == 2, "the body is asked to stop")
                assert signals.notes("asked") == ["False", "True"]
            else:
                future.wait()
                assert signals.notes("asked") == ["False", "False"]

    def test_R4_nobody_asks_outside_of_a_run(self) -> None:
        """`cancelled()` is False where no task runs."""
        assert cancelled() is False

    def test_R4_async_body_is_stopped(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """An async body that is cancelled stops where it awaits, and the others on its loop go on."""
        if runner.capabilities.inline:
            declared("inline: nobody can cancel a first attempt while it runs")
            return

        @task
        async def wait_async(name: str) -> str:
            signals.note("pid", str(os.getpid()))
            signals.set(f"begun {name}")
            try:
                while not signals.is_set("go"):  # noqa: ASYNC110 - set by another process
                    await asyncio.sleep(0.005)
            finally:
                signals.set("ended" if name == "one" else "other")
            return name

        with runner:
            one, other = wait_async.submit("one"), wait_async.submit("other")
            signals.wait("begun one")
            signals.wait("begun other")
            if one.cancel():
                assert runner.capabilities.cancel != "none"
                eventually(lambda: signals.is_set("ended") or _any_gone(signals), "the body has been stopped")
                assert one.cancelled()
            else:
                declared("cancel: a running call goes on")
                assert runner.capabilities.cancel == "none"
            assert not other.done()
            signals.set("go")
            assert other.result() == "other"

    def test_R4_cancelled_calls_do_not_fail_the_flow(self, runner: TaskRunner) -> None:
        """A flow whose calls were cancelled, and looked at by nobody, ends well."""

        @flow(task_runner=runner)
        def main() -> str:
            first = postponed(runner)
            identity.submit(first)
            first.cancel()
            return "well"

        assert main() == "well"

    def test_R4_failures_that_a_stopped_body_has_not_seen(
        self, one_slot: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """Failures of what a stopped body had submitted don't fail the flow: it may have been about to look."""
        if one_slot.capabilities.inline or one_slot.capabilities.cancel == "none":
            declared("inline or cancel: no body is stopped")
            return

        @flow(task_runner=one_slot)
        def main() -> Any:
            future = fail_below.submit(signals)
            signals.wait("begun")
            assert future.cancel()
            # Begins when what the stopped body has to tell is on its way.
            return identity.submit("well").result()

        assert main() == "well"

    def test_R4_many_waiting_calls(self, runner: TaskRunner, signals: Signals) -> None:
        """A thousand waiting calls can be cancelled, one by one, and none begins."""
        with runner:
            first = postponed(runner)
            waiting = note.map([signals] * 1000, "ran", unmapped(first))
            assert [future.cancel() for future in waiting] == [True] * 1000
            assert not first.done()
            first.cancel()
        assert signals.count("ran") == 0

    def test_R4_runner_serves_the_next_flow(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """After cancels in one flow the runner has all its slots for the next."""
        if runner.capabilities.inline or runner.capabilities.cancel == "none":
            declared("inline, or cancel: no running call is cancelled")

            @flow(task_runner=runner)
            def undecided() -> None:
                postponed(runner).cancel()

            undecided()
        else:
            with runner:
                running = [until_stopped.submit(signals) for _ in range(2)]
                eventually(lambda: signals.count("pid") == 2, "both run")
                assert [future.cancel() for future in running] == [True, True]
        with runner:
            assert add.map(range(20), 1).result() == list(range(1, 21))


def _see_it_end(runner: TaskRunner, signals: Signals) -> None:
    if runner.capabilities.cancel == "kill":
        eventually(lambda: signals.is_set("ended") or _gone(signals), "the body has been stopped")
    else:
        signals.wait("ended")


def _gone(signals: Signals) -> bool:
    return not any(alive(int(pid)) for pid in signals.notes("pid"))


def _any_gone(signals: Signals) -> bool:
    return not all(alive(int(pid)) for pid in signals.notes("pid"))
