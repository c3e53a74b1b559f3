"""Calls that are sent before what they need is there, over a backend that orders by itself."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from turnout import TaskFuture, allow_failure, flow, task
from turnout._engine import Engine
from turnout._serialization import Parcel
from turnout.errors import UpstreamFailed
from turnout.runner import Batch, Capabilities, Coming, Host, Outcome, OutcomeKind, TaskRunner
from turnout.worker import run_batch

ABSENT = object()


class ByHand(TaskRunner):
    """Keeps batches until the test runs them, in whatever order."""

    capabilities = Capabilities(streams=True, orders=True, cancel="cooperative")
    max_batch_seconds = 0

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        # For each batch, numbers of batches that it came too early for, and the kinds of other values.
        self.needs: list[list[Any]] = []
        self.values: dict[Batch, dict[int, Any]] = {}
        self.cancelled: list[Batch] = []

    def start(self, host: Host) -> None:
        self.host = host

    def slots(self) -> int:
        return 2

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.needs.append(
            [
                self.batches.index(need.batch) if isinstance(need, Coming) else type(need).__name__
                for need in batch.upstream
            ]
        )

    def cancel(self, batch: Batch) -> bool:
        self.cancelled.append(batch)
        return True

    def run(self, number: int) -> list[Outcome]:
        """Run a batch, and return what is to be reported of it."""
        batch = self.batches[number]
        upstream = [
            self.values.get(u.batch, {}).get(u.call, ABSENT) if isinstance(u, Coming) else u for u in batch.upstream
        ]
        if ABSENT in upstream:
            return [Outcome(0, OutcomeKind.RETURNED)]
        outcomes: list[Outcome] = []
        run_batch(batch.body, batch.functions, upstream, outcomes.extend)
        self.values[batch] = {o.index: o.data for o in outcomes if o.kind is OutcomeKind.VALUE}
        return outcomes

    def report(self, number: int, outcomes: Sequence[Outcome]) -> None:
        self.host.report(self.batches[number], outcomes)

    def forget(self, number: int) -> None:
        self.values.pop(self.batches[number])
        self.batches[number] = Batch()

    def finish(self, number: int) -> None:
        self.report(number, self.run(number))

    def stop(self) -> None:
        pass


@task
def one() -> int:
    return 1


@task
def add(left: Any, right: Any) -> Any:
    return left + right


@task
def fail() -> int:
    raise ValueError("no")


@task
async def add_async(left: int, right: int) -> int:
    return left + right


@pytest.fixture
def runner() -> ByHand:
    return ByHand()


def test_a_chain_is_sent_while_its_first_call_runs(runner: ByHand) -> None:
    with runner:
        first = one.submit()
        second = add.submit(first, 1)
        third = add.submit(second, 1)
        assert runner.needs == [[], [0], [1]]
        for number in range(3):
            runner.finish(number)
        assert (first.result(), second.result(), third.result()) == (1, 2, 3)


def test_a_value_that_is_a_parcel_comes_too(runner: ByHand) -> None:
    with runner:
        first = add.submit([1], [2])
        second = add.submit(first, [3])
        assert runner.needs == [[], [0]]
        runner.finish(0)
        assert isinstance(runner.values[runner.batches[0]][0], Parcel)
        runner.finish(1)
        assert second.result() == [1, 2, 3]


def test_a_call_that_only_waits_for_another_comes_early_too(runner: ByHand) -> None:
    with runner:
        first, failed = one.submit(), fail.submit()
        second = add.submit(1, 1, wait_for=[first])
        never = add.submit(1, 1, wait_for=failed)
        assert runner.needs == [[], [], [0], [1]]
        runner.finish(1)
        runner.finish(3)
        assert isinstance(never.exception(), UpstreamFailed)
        assert runner.batches[3] not in runner.values
        runner.finish(0)
        runner.finish(2)
        assert second.result() == 2


def test_what_comes_of_an_early_call_is_told_at_its_turn(runner: ByHand) -> None:
    with runner:
        first = one.submit()
        second = add.submit(first, 1)
        of_first, of_second = runner.run(0), runner.run(1)
        runner.report(1, of_second)
        assert not second.done()
        assert second.state.is_pending()
        runner.report(0, of_first)
        assert second.done()
        assert second.result() == 2


def test_a_call_waits_for_its_turn_while_two_others_are_under_way(runner: ByHand) -> None:
    with runner:
        total = add.submit(one.submit(), one.submit())
        assert runner.needs == [[], []]
        runner.finish(0)
        # What was small and is over goes along; for the other it waits in the backend.
        assert runner.needs == [[], []] or runner.needs == [[], [], [1]]
        runner.finish(1)
        while len(runner.batches) > 2 and not total.done():
            runner.finish(2)
        assert total.result() == 2


def test_after_a_failure_the_early_call_never_runs(runner: ByHand) -> None:
    with runner:
        first = fail.submit()
        second = add.submit(first, 1)
        runner.finish(0)
        assert isinstance(first.exception(), ValueError)
        assert isinstance(second.exception(), UpstreamFailed)
        assert runner.cancelled == [runner.batches[1]]
        runner.finish(1)
        assert runner.batches[1] not in runner.values
        # Nothing of it is left over.
        again = one.submit()
        runner.finish(2)
        assert again.result() == 1


def test_after_a_crash_the_early_call_is_sent_again(runner: ByHand) -> None:
    with runner:
        first = one.submit()
        second = add.submit(first, 1)
        runner.report(0, [Outcome(0, OutcomeKind.CRASHED, "killed")])
        runner.report(1, [Outcome(0, OutcomeKind.RETURNED)])
        assert runner.needs == [[], [0], []]
        runner.finish(2)
        assert runner.needs == [[], [0], [], []]
        runner.finish(3)
        assert second.result() == 2


def test_an_early_call_that_is_given_back_after_its_turn_has_come(runner: ByHand) -> None:
    with runner:
        first = one.submit()
        second = add.submit(first, 1)
        runner.finish(0)
        runner.report(1, [Outcome(0, OutcomeKind.RETURNED)])
        assert runner.needs == [[], [0], []]
        runner.finish(2)
        assert second.result() == 2


def test_an_early_call_whose_worker_dies_is_run_again(runner: ByHand) -> None:
    with runner:
        first = one.submit()
        second = add.submit(first, 1)
        of_first = runner.run(0)
        runner.report(1, [Outcome(0, OutcomeKind.STARTED), Outcome(0, OutcomeKind.CRASHED, "killed")])
        assert not second.done()
        runner.report(0, of_first)
        assert runner.needs == [[], [0], []]
        runner.finish(2)
        assert second.result() == 2


@pytest.mark.parametrize("kind", [OutcomeKind.LOST, OutcomeKind.CRASHED])
def test_what_is_lost_runs_again_though_an_early_call_behind_it_has_ended(runner: ByHand, kind: OutcomeKind) -> None:
    """Its worker gave the value to another one, and died before it told."""
    with runner:
        first = one.submit()
        second = add.submit(first, 1)
        runner.run(0)
        runner.finish(1)
        runner.report(0, [Outcome(0, kind, "the worker is gone")])
        assert not second.done()
        assert len(runner.batches) == 3
        runner.finish(2)
        assert (first.result(0), second.result(0)) == (1, 2)


def test_an_early_call_that_is_given_back_twice(runner: ByHand) -> None:
    with runner:
        first = one.submit()
        second = add.submit(first, 1)
        for _ in range(2):
            runner.report(1, [Outcome(0, OutcomeKind.RETURNED)])
        runner.finish(0)
        assert len(runner.batches) == 3
        runner.report(1, [Outcome(0, OutcomeKind.RETURNED)])
        runner.finish(2)
        assert (first.result(0), second.result(0)) == (1, 2)
        # Nor has it made room for more than there is.
        others = [one.submit() for _ in range(10)]
        assert len(runner.batches) == 3 + 2 * runner.slots()
        for number in range(3, 13):
            runner.finish(number)
        assert [other.result(0) for other in others] == [1] * 10


def test_cancelling_an_early_call_tells_the_backend(runner: ByHand) -> None:
    with runner:
        first = one.submit()
        second = add.submit(first, 1)
        assert second.cancel()
        assert runner.cancelled == [runner.batches[1]]
        runner.report(1, [Outcome(0, OutcomeKind.RETURNED)])
        runner.finish(0)
        assert first.result() == 1
        assert second.cancelled()


def test_cancelling_what_an_early_call_waits_for(runner: ByHand) -> None:
    with runner:
        first = one.submit()
        second = add.submit(first, 1)
        of_first = runner.run(0)
        assert first.cancel()
        assert second.cancelled()
        runner.report(0, of_first)
        # It might have begun.
        assert runner.cancelled == [runner.batches[0], runner.batches[1]]
        runner.finish(1)


def test_no_more_are_early_than_there_is_room_for(runner: ByHand) -> None:
    with runner:
        futures: list[TaskFuture[Any]] = [one.submit()]
        for _ in range(20):
            futures.append(add.submit(futures[-1], 1))
        assert len(runner.batches) == 1 + 2 * runner.slots()
        for number in range(21):
            runner.finish(number)
        assert futures[-1].result() == 21
        assert runner.needs[1:] == [[number] for number in range(20)]


class Thing:
    """A result that can be counted."""

    alive: ClassVar[weakref.WeakSet[Thing]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)

    def __reduce__(self) -> Any:
        return Thing, ()


@task
def remake(thing: Thing) -> Thing:
    return thing


def test_a_chain_holds_no_results_that_nobody_needs(runner: ByHand) -> None:
    with runner:
        future = remake.submit(Thing())
        for _ in range(30):
            future = remake.submit(future)
        for number in range(31):
            runner.finish(number)
            if number:
                runner.forget(number - 1)
            assert len(Thing.alive) <= 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (one.with_options(retries=1), add),
        (one.with_options(crash_retries=0), add),
        (one, add.with_options(timeout_seconds=60)),
        (one, add.with_options(batch=False)),
        (one, add.with_options(task_run_name="sum of {left}")),
        (one, add_async),
    ],
)
def test_calls_that_wait_for_their_turn(runner: ByHand, first: Any, second: Any) -> None:
    with runner:
        future = second.submit(first.submit(), 1)
        assert runner.needs == [[]]
        runner.finish(0)
        runner.finish(1)
        assert future.result() == 2


def test_calls_that_take_failures_wait_for_their_turn(runner: ByHand) -> None:
    with runner:
        first = fail.submit()
        second = add.submit("", allow_failure([first]))
        assert runner.needs == [[]]
        runner.finish(0)
        assert isinstance(first.exception(), ValueError)
        assert len(runner.batches) == 2
        runner.finish(1)
        assert second.exception() is not None


# Races


class Orderly(TaskRunner):
    """Runs batches on threads, each when what it needs is there; loses some on the way."""

    capabilities = Capabilities(streams=True, orders=True, cancel="cooperative")
    max_batch_seconds = 0

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.early = 0

    def start(self, host: Host) -> None:
        self.host = host
        self.lock = threading.Lock()
        self.futures: dict[Batch, Future[Any]] = {}
        self.pool = ThreadPoolExecutor(3)

    def slots(self) -> int:
        return 3

    def submit(self, batch: Batch) -> None:
        with self.lock:
            done: Future[Any] = Future()
            self.futures[batch] = done
            comings = [item for item in batch.upstream if isinstance(item, Coming)]
            self.early += bool(comings)
            fate, pause = self.dice.random(), self.dice.random() * 0.002
            missing = [self.futures[item.batch] for item in comings]
        left = len(missing)
        run = self._runner(batch, done, fate, pause)

        def one_less(_: Future[Any]) -> None:
            nonlocal left
            with self.lock:
                left -= 1
                ready = not left
            if ready:
                self.pool.submit(run)

        for other in missing:
            other.add_done_callback(one_less)
        if not missing:
            self.pool.submit(run)

    def _runner(self, batch: Batch, done: Future[Any], fate: float, pause: float) -> Callable[[], None]:
        def run() -> None:
            time.sleep(pause)
            values: dict[int, Any] = {}
            upstream = [
                self.futures[item.batch].result().get(item.call, ABSENT) if isinstance(item, Coming) else item
                for item in batch.upstream
            ]
            news: list[Outcome] = []
            if ABSENT in upstream or fate < 0.05:
                news = [Outcome(0, OutcomeKind.RETURNED)]
            elif fate < 0.1:
                news = [Outcome(0, OutcomeKind.STARTED), Outcome(0, OutcomeKind.CRASHED, "bad luck")]
            else:
                run_batch(batch.body, batch.functions, upstream, news.extend)
                values = {o.index: o.data for o in news if o.kind is OutcomeKind.VALUE}
            if fate < 0.5:
                # Its dependents may be faster than the news of it.
                done.set_result(values)
                time.sleep(pause)
            self.host.report(batch, news)
            if not done.done():
                done.set_result(values)

        return run

    def stop(self) -> None:
        self.pool.shutdown()


def fails(number: int) -> bool:
    return number % 17 == 13


def only_waits(number: int) -> bool:
    return number % 5 == 0


@task(crash_retries=100)
def step(number: int, *before: int) -> int:
    if fails(number):
        raise ValueError(number)
    return number + sum(before)


def told(future: TaskFuture[int]) -> str:
    """Return result or failure, but not which of several failed dependencies a call missed first."""
    return repr(future.exception() or future.result()).partition(" did not run")[0]


def expected(edges: Sequence[Sequence[int]]) -> list[str]:
    """Return what is told of each call, worked out without a runner."""
    values: dict[int, int] = {}
    texts = []
    for number, before in enumerate(edges):
        if any(other not in values for other in before):
            texts.append(f"UpstreamFailed('step-{number}")
        elif fails(number):
            texts.append(f"ValueError({number})")
        else:
            values[number] = number + (0 if only_waits(number) else sum(values[other] for other in before))
            texts.append(str(values[number]))
    return texts


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_give_what_they_should(seed: int) -> None:
    dice = random.Random(seed)
    edges = [sorted(dice.sample(range(number), min(number, dice.choice((0, 1, 1, 1, 2))))) for number in range(60)]
    runner = Orderly(seed)

    @flow(task_runner=runner)
    def graph() -> list[str]:
        futures: list[TaskFuture[int]] = []
        for number, before in enumerate(edges):
            needed = [futures[other] for other in before]
            if only_waits(number):
                futures.append(step.submit(number, wait_for=needed))
            else:
                futures.append(step.submit(number, *needed))
        return [told(future) for future in futures]

    assert graph() == expected(edges)
    assert runner.early


def test_a_call_without_hope_does_not_begin_when_its_last_dependency_ends(
    runner: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may end it between the moment in which the failure is seen and that in which the call is over."""
    lost_upstream = Engine._lost_upstream

    def late(engine: Engine, call: Any, root: TaskFuture[Any]) -> None:
        runner.finish(1)
        lost_upstream(engine, call, root)

    with runner:
        failed = fail.submit()
        runner.finish(0)
        still_open = one.submit()
        monkeypatch.setattr(Engine, "_lost_upstream", late)
        call = add.submit(1, 1, wait_for=[failed, still_open])
        assert still_open.done()
        assert isinstance(call.exception(), UpstreamFailed)
        assert len(runner.batches) == 2
