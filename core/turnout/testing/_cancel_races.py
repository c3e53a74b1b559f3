"""R4, under pressure: cancels that race with the end of their calls, and asyncio's own way to cancel."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from turnout import StateType, TaskFuture, flow, task
from turnout.errors import CancelledRun

from ._bodies import add, identity, note
from ._kit import Conformance, Declare, Signals, eventually
from ._open_calls import postponed, until_stopped

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["CancelRaceConformance"]


class CancelRaceConformance(Conformance):
    """R4: no cancel is half done."""

    races: ClassVar[int] = int(os.environ.get("TURNOUT_RACES", "300"))
    """How many calls are cancelled about when they end."""

    def test_R4_cancel_races_with_the_end(self, runner: TaskRunner, signals: Signals) -> None:
        """A cancel at the moment of completion takes, or it doesn't: True if and only if the call is Cancelled."""
        dice = random.Random(1)
        with runner:
            for burst in range(self.races // 20):
                futures = add.map(range(20), burst)
                dependents = [identity.submit(future) for future in futures]
                took: list[bool] = [False] * 20

                def cancel_all(futures: list[TaskFuture[Any]] = futures, took: list[bool] = took) -> None:
                    for index, future in enumerate(futures):
                        took[index] = future.cancel()

                thread = threading.Thread(target=cancel_all)
                # About when the first end: some are over, some run, some wait.
                if dice.random() < 0.7:
                    futures[dice.randrange(4)].wait()
                thread.start()
                _see_finals([*futures, *dependents])
                thread.join()
                for index, (future, dependent) in enumerate(zip(futures, dependents, strict=True)):
                    assert took[index] is (future.state.type is StateType.CANCELLED)
                    _agree(future, dependent, index + burst)
        _has_all_slots(runner, signals, 2)

    def test_R4_cancel_from_the_callback_of_another(self, runner: TaskRunner, signals: Signals) -> None:
        """So it is when the end of one call cancels another that ends beside it."""
        with runner:
            for _ in range(self.races // 4):
                first, second = add.submit(1, 2), add.submit(3, 4)
                took: list[bool] = []
                told = threading.Event()

                def cancel_second(
                    _: object,
                    second: TaskFuture[Any] = second,
                    took: list[bool] = took,
                    told: threading.Event = told,
                ) -> None:
                    took.append(second.cancel())
                    told.set()

                first.add_done_callback(cancel_second)
                assert first.result() == 3
                second.wait()
                assert told.wait(30)
                assert took == [second.state.type is StateType.CANCELLED]
        _has_all_slots(runner, signals, 2)

    def test_R4_cascades_race_with_the_end(self, runner: TaskRunner, signals: Signals) -> None:
        """A chain whose head is cancelled as it runs has results up to one call, and is Cancelled from there on."""
        dice = random.Random(2)
        with runner:
            for _ in range(max(1, self.races // 20)):
                chain = [add.submit(0, 1)]
                while len(chain) < 12:
                    chain.append(add.submit(chain[-1], 1))
                if dice.random() < 0.5:
                    chain[dice.randrange(6)].wait()
                victim = dice.randrange(12)
                took = chain[victim].cancel()
                _see_finals(chain)
                kinds = [future.state.type for future in chain]
                assert took is (kinds[victim] is StateType.CANCELLED)
                first = kinds.index(StateType.CANCELLED) if took else 12
                assert first == (victim if took else 12)
                assert set(kinds[:first]) <= {StateType.COMPLETED}
                assert set(kinds[first:]) <= {StateType.CANCELLED}
        _has_all_slots(runner, signals, 2)

    def test_R4_whole_flows_race_with_their_end(self, runner: TaskRunner, signals: Signals) -> None:
        """A body that raises as its calls end leaves each of them in one final state, and no slot taken."""
        for trial in range(max(1, self.races // 20)):
            futures: list[TaskFuture[Any]] = []

            @flow(task_runner=runner)
            def main(futures: list[TaskFuture[Any]] = futures, trial: int = trial) -> None:
                futures += add.map(range(12), 1)
                futures += [identity.submit(future) for future in futures]
                futures[trial % 5].wait()
                raise LookupError("enough")

            with pytest.raises(LookupError):
                main()
            assert all(future.done() for future in futures)
            assert {future.state.type for future in futures} <= {StateType.COMPLETED, StateType.CANCELLED}
        _has_all_slots(runner, signals, 2)

    def test_R4_no_call_runs_twice(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """Calls around cancelled ones run once, and cancelled ones once at most."""
        if not runner.capabilities.at_most_once:
            declared("at_most_once: with cancel, too, a call may begin twice if a worker dies")
        total = 60
        with runner:
            futures = [note.submit(signals, "ran", number) for number in range(total)]
            for future in futures[::3]:
                future.cancel()
            _see_finals(futures)
        counts = [signals.notes("ran").count(str(number)) for number in range(total)]
        assert max(counts) == 1
        assert all(count or future.cancelled() for count, future in zip(counts, futures, strict=True))

    def test_R4_waiting_body_is_cancelled(self, one_slot: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A body that waits for a call of its own gives its slot away once, also if it is cancelled meanwhile."""
        if one_slot.capabilities.inline or one_slot.capabilities.cancel == "none":
            declared("inline, or cancel: no running call is cancelled")
            return

        @task
        def outer() -> Any:
            return until_stopped.submit(signals).result()

        with one_slot:
            future = outer.submit()
            signals.wait("begun")
            assert future.cancel()
        signals.set("go")
        _has_all_slots(one_slot, signals, 1)

    # By asyncio

    def test_R4_cancelled_task_of_asyncio(self, runner: TaskRunner, signals: Signals) -> None:
        """Cancelling the asyncio task that runs a flow cancels its calls; the runner serves the next."""
        futures: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        async def main() -> None:
            futures.append(postponed(runner))
            futures.append(identity.submit(futures[0]))
            signals.set("submitted")
            await futures[1]

        async def drive() -> None:
            running = asyncio.create_task(_awaited(main()))
            while not signals.is_set("submitted"):  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.001)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        asyncio.run(drive())
        assert [future.state.type for future in futures] == [StateType.CANCELLED] * 2
        _has_all_slots(runner, signals, 2)

    def test_R4_time_limit_of_asyncio(self, runner: TaskRunner) -> None:
        """`asyncio.timeout` around a flow raises TimeoutError, when the flow's calls are over."""
        futures: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        async def main() -> None:
            futures.append(postponed(runner))
            await futures[0]

        async def drive() -> None:
            async with asyncio.timeout(0.5):
                await main()

        with pytest.raises(TimeoutError):
            asyncio.run(drive())
        assert all(future.cancelled() for future in futures)

    def test_R4_cancelled_await_leaves_the_call_alone(self, runner: TaskRunner, signals: Signals) -> None:
        """Cancelling an `await future` ends the wait, not the call."""

        @flow(task_runner=runner)
        async def main() -> Any:
            future = postponed(runner)
            waiting = asyncio.create_task(_awaited(future))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            still_open = not future.done()
            return still_open, future.cancel(), await add.submit(1, 2)

        assert asyncio.run(main()) == (True, True, 3)

    # By the flow's own time

    def test_R4_time_of_a_flow_is_up(self, runner: TaskRunner, signals: Signals) -> None:
        """When a flow's time is up its calls end, whether they wait for a slot, run, or wait to be tried again."""
        futures: list[TaskFuture[Any]] = []
        runs_aside = not runner.capabilities.inline

        @flow(task_runner=runner, timeout_seconds=1.0)
        def main() -> None:
            futures.append(postponed(runner))
            if runs_aside:
                futures.extend(until_stopped.submit(signals) for _ in range(6))
            futures.append(identity.submit(futures[0]))
            futures[-1].result()

        began = time.monotonic()
        with pytest.raises(TimeoutError):
            main()
        assert time.monotonic() - began < 30
        if runner.capabilities.cancel == "none":
            # Its bodies go on.
            signals.set("go")
            eventually(lambda: all(future.done() for future in futures), "the calls are over")
        assert futures[0].cancelled()
        assert futures[-1].cancelled()
        assert all(future.done() for future in futures)
        signals.set("go")
        _has_all_slots(runner, signals, 2)


async def _awaited(what: Any) -> Any:
    return await what


def _see_finals(futures: list[TaskFuture[Any]]) -> None:
    """Wait for the end of all; a final state is the last."""
    for future in futures:
        assert future.wait(30), future
    kinds = [future.state.type for future in futures]
    assert [future.state.type for future in futures] == kinds


def _agree(future: TaskFuture[Any], dependent: TaskFuture[Any], value: int) -> None:
    """See that a call and what depends on it have ended in the same way."""
    if future.cancelled():
        assert dependent.cancelled()
        with pytest.raises(CancelledRun):
            future.result()
    else:
        assert (future.result(), dependent.result()) == (value, value)


def _has_all_slots(runner: TaskRunner, signals: Signals, slots: int) -> None:
    """See that a runner runs as many calls at once as it has slots: no fewer, and no more."""
    if runner.capabilities.inline:
        return
    name = f"round {next(_rounds)}"
    with runner:
        meeting = [meet.submit(signals, name, slots) for _ in range(slots + 2)]
        seen = [future.result() for future in meeting]
    assert max(seen) == slots


def _counter() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


_rounds = _counter()


@task
def meet(signals: Signals, name: str, slots: int) -> int:
    """Wait until as many calls run as there are slots, or all have come; return how many run at once."""
    signals.note(f"{name} in")
    eventually(lambda: signals.count(f"{name} in") >= slots, "all slots are used")
    running = signals.count(f"{name} in") - signals.count(f"{name} out")
    # One that is too many would come now.
    time.sleep(0.02)
    running = max(running, signals.count(f"{name} in") - signals.count(f"{name} out"))
    signals.note(f"{name} out")
    return running
