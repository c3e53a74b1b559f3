"""What the engine sends and when, and what it makes of the news, against a backend that does what the test says."""

from __future__ import annotations

import contextvars
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import pytest

from turnout import (
    CancelledRun,
    CrashedRun,
    RunnerStartError,
    SerializationError,
    State,
    StateType,
    Task,
    TaskFuture,
    TaskRunTimeoutError,
    UpstreamFailed,
    allow_failure,
    flow,
    get_run_context,
    task,
    wait,
)
from turnout._failures import encode
from turnout.runner import Batch, Capabilities, Host, Outcome, OutcomeKind, TaskRunner
from turnout.worker import run_batch

VALUE, FAILURE, CRASHED = OutcomeKind.VALUE, OutcomeKind.FAILURE, OutcomeKind.CRASHED
LOST, RETURNED, STARTED, RECORD = OutcomeKind.LOST, OutcomeKind.RETURNED, OutcomeKind.STARTED, OutcomeKind.RECORD


class Depot(TaskRunner):
    """Collects batches; the test decides what becomes of each, when, and in which thread."""

    max_batch_seconds = 0

    def __init__(
        self,
        size: int = 1,
        *,
        streams: bool = True,
        cancel: Literal["none", "cooperative", "kill"] = "kill",
        isolates_crashes: bool = True,
        async_aside: bool = False,
    ) -> None:
        self.capabilities = Capabilities(
            streams=streams, cancel=cancel, isolates_crashes=isolates_crashes, async_aside=async_aside
        )
        self.size = size
        self.batches: list[Batch] = []
        self.cancelled: list[Batch] = []
        self.starts = self.stops = 0
        self.on_submit: Callable[[Batch], object] = lambda batch: None
        self.on_cancel: Callable[[Batch], object] = lambda batch: None

    def start(self, host: Host) -> None:
        self.host = host
        self.starts += 1

    def slots(self) -> int:
        return self.size

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.on_submit(batch)

    def cancel(self, batch: Batch) -> bool:
        self.cancelled.append(batch)
        self.on_cancel(batch)
        return True

    def stop(self) -> None:
        self.stops += 1

    def names(self) -> list[str]:
        """Return the names of the calls that were sent, in order."""
        return [call.future.name for batch in self.batches for call in batch.calls]

    def tell(self, batch: Batch | int, *outcomes: Outcome) -> None:
        self.host.report(self.batches[batch] if isinstance(batch, int) else batch, outcomes)

    def say(self, batch: Batch | int, kind: OutcomeKind, data: Any = None) -> None:
        self.tell(batch, Outcome(0, kind, data))

    def give(self, batch: Batch | int, value: Any = None) -> None:
        self.say(batch, VALUE, value)

    def fail(self, batch: Batch | int, error: BaseException) -> None:
        self.say(batch, FAILURE, encode(error))

    def work(self, batch: Batch) -> None:
        """Run a batch as a worker does."""
        run_batch(batch.body, batch.functions, batch.upstream, lambda outcomes: self.host.report(batch, outcomes))

    def work_off(self, begin: int = 0) -> None:
        """Run all batches from one on, and those that follow from them."""
        for batch in self.following(begin):
            self.work(batch)

    def following(self, begin: int = 0) -> Iterator[Batch]:
        while begin < len(self.batches):
            yield self.batches[begin]
            begin += 1


@task
def echo(value: Any = None) -> Any:
    return value


@task
def first(value: Any) -> Any:
    return value


@task
def second(value: Any) -> Any:
    return value


@task(crash_retries=1)
def fragile(value: Any = None) -> Any:
    return value


@task(crash_retries=0)
def once(value: Any = None) -> Any:
    return value


@task(crash_retries=0)
def number_of_attempt() -> int:
    return get_run_context().attempt


@task(retries=1)
def stubborn() -> None:
    raise AssertionError("the test says what becomes of it")


@task
async def ask(value: int = 0) -> int:
    return value


def together(*functions: Callable[[], object]) -> None:
    """Run functions at once, each on a thread of its own, and raise what one of them raises."""
    gate = threading.Barrier(len(functions))
    problems: list[BaseException] = []

    def act(function: Callable[[], object]) -> None:
        try:
            gate.wait(timeout=30)
            function()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=act, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for problem in problems:
        raise problem


def contextually(function: Callable[[], object]) -> Callable[[], object]:
    """Return a function that runs another one within the caller's scope, in whatever thread."""
    context = contextvars.copy_context()
    return lambda: context.run(function)


def cancelling(future: TaskFuture[Any], took: list[bool]) -> Callable[[], object]:
    """Return a function that cancels a future and notes whether that took."""
    return lambda: took.append(future.cancel())


def submit_into(futures: list[TaskFuture[Any]], root: TaskFuture[Any]) -> None:
    futures.append(first.submit(root))


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# How much is sent, and in which order


@pytest.mark.parametrize(("streams", "window"), [(True, 4), (False, 2)])
def test_no_more_is_sent_than_fits(streams: bool, window: int) -> None:
    with Depot(2, streams=streams) as depot:
        futures = [echo.submit(number) for number in range(10)]
        for ended in range(10):
            assert len(depot.batches) == min(10, window + ended)
            depot.give(ended, ended)
        assert [future.result(0) for future in futures] == list(range(10))


@pytest.mark.parametrize("options", [{"timeout_seconds": 600}, {"batch": False}, {"resources": {"cpu": 1}}])
def test_what_travels_alone_is_not_sent_before_there_is_a_slot(options: dict[str, Any]) -> None:
    with Depot(2) as depot:
        alone = echo.with_options(**options)
        for number in range(5):
            alone.submit(number)
        assert len(depot.batches) == 2
        depot.work_off()
    assert len(depot.batches) == 5


def test_calls_are_sent_in_order_of_submission() -> None:
    with Depot() as depot:
        for number in range(20):
            (first if number % 2 else second).submit(number)
        depot.work_off()
    assert depot.names() == [f"{'first' if number % 2 else 'second'}-{number // 2}" for number in range(20)]
    assert [batch.seq for batch in depot.batches] == sorted(batch.seq for batch in depot.batches)


def test_a_call_that_becomes_ready_goes_before_later_ones() -> None:
    with Depot(streams=False) as depot:
        root = echo.submit()
        first.submit(root)
        for number in range(3):
            second.submit(number)
        depot.work_off()
    assert depot.names() == ["echo-0", "first-0", "second-0", "second-1", "second-2"]


def test_a_call_is_sent_only_when_all_its_dependencies_are_over() -> None:
    with Depot(9) as depot:
        one, two = echo.submit(1), echo.submit(2)
        both = first.submit({"parts": [one, (two,)]})
        second.submit(wait_for=[both], value=3)
        depot.give(1, 2)
        assert len(depot.batches) == 2
        depot.give(0, 1)
        assert depot.names()[2:] == ["first-0"]
        depot.work(depot.batches[2])
        assert both.result(0) == {"parts": [1, (2,)]}
        assert depot.names()[3:] == ["second-0"]
        depot.give(3)


def test_a_backend_that_grows_is_filled() -> None:
    with Depot(streams=False) as depot:
        for number in range(6):
            echo.submit(number)
        assert len(depot.batches) == 1
        depot.size = 3
        depot.give(0)
        assert len(depot.batches) == 4
        depot.size = 1
        depot.give(1)
        depot.give(2)
        assert len(depot.batches) == 4, "three were under way, and one fits"
        depot.work_off(3)


def test_sessions_on_one_runner_share_its_window() -> None:
    depot = Depot(2, streams=False)
    with depot:
        echo.submit(0)
        with depot:
            echo.submit(1)
            echo.submit(2)
            assert len(depot.batches) == 2
            depot.give(0)
            assert len(depot.batches) == 3
            depot.give(1)
            depot.give(2)
    assert (depot.starts, depot.stops) == (1, 1)


def test_flows_on_one_runner_start_it_once() -> None:
    depot = Depot(4)
    depot.on_submit = depot.work

    @flow(task_runner=depot)
    def inner(number: int) -> Any:
        return echo.submit(number)

    @flow(task_runner=depot)
    def outer() -> Any:
        return [echo.submit(1), inner(2)]

    assert outer() == [1, 2]
    assert (depot.starts, depot.stops) == (1, 1)
    assert outer() == [1, 2]
    assert (depot.starts, depot.stops) == (2, 2)


def test_async_calls_travel_together() -> None:
    with Depot(streams=False) as depot:
        echo.submit()
        futures = [ask.submit(number) for number in range(5)]
        echo.submit()
        depot.give(0)
        assert [len(batch.calls) for batch in depot.batches] == [1, 5]
        assert depot.batches[1].is_async
        depot.work_off(1)
        assert [future.result(0) for future in futures] == list(range(5))


def test_async_calls_take_no_slot_where_the_backend_waits_for_them_aside() -> None:
    with Depot(streams=False, async_aside=True) as depot:
        echo.submit()
        futures = [ask.submit(number) for number in range(5)]
        assert [batch.is_async for batch in depot.batches] == [False] + 5 * [True]
        for number in range(5):
            depot.give(1 + number, number)
        echo.submit()
        assert len(depot.batches) == 6, "their ends make no room for others"
        depot.work_off()
        assert [future.result(0) for future in futures] == list(range(5))


def test_a_call_that_cannot_be_packed_fails_and_makes_room() -> None:
    with Depot(streams=False) as depot:
        bad = echo.submit(threading.Lock())
        with pytest.raises(SerializationError, match="'value' of task 'echo-0'"):
            bad.result(0)
        good = echo.submit(1)
        depot.give(0, 1)
        assert good.result(0) == 1
    assert depot.names() == ["echo-1"]


# News, in whatever order


def test_batches_may_end_in_any_order() -> None:
    with Depot(50) as depot:
        futures = [echo.submit(number) for number in range(100)]
        order = list(range(100))
        random.Random(1).shuffle(order)
        for number in order:
            depot.give(number, number)
        assert [future.result(0) for future in futures] == list(range(100))


def test_news_of_one_batch_may_come_in_parts_and_in_any_order() -> None:
    with Depot(streams=False) as depot:
        echo.submit()
        futures = [ask.submit() for _ in range(3)]
        echo.submit()
        depot.give(0)
        depot.tell(1, Outcome(2, VALUE, "c"))
        depot.tell(1, Outcome(0, VALUE, "a"))
        assert [future.done() for future in futures] == [True, False, True]
        assert len(depot.batches) == 2, "there is room only when the whole batch is over"
        depot.tell(1, Outcome(1, FAILURE, encode(ValueError("b"))))
        assert len(depot.batches) == 3
        depot.give(2)
        assert repr(futures[1].exception(0)) == "ValueError('b')"


def test_an_outcome_may_come_before_submit_returns() -> None:
    with Depot() as depot:
        depot.on_submit = lambda batch: depot.give(batch, len(depot.batches))
        future: TaskFuture[Any] = echo.submit()
        for _ in range(3000):
            future = echo.submit(future)
        assert future.result(0) == 3001


def test_a_queue_may_be_worked_off_within_submit() -> None:
    with Depot() as depot:
        root = echo.submit()
        futures = [echo.submit(root) for _ in range(3000)]
        depot.on_submit = lambda batch: depot.give(batch, 1)
        depot.give(0)
        assert [future.result(0) for future in futures] == 3000 * [1]


def test_a_body_is_running_once_the_backend_says_so() -> None:
    with Depot(2) as depot:
        future = echo.submit()
        assert future.state.is_pending()
        depot.say(0, STARTED)
        assert future.running()
        depot.give(0)
        assert future.state.is_completed()


def test_a_body_is_running_once_it_is_sent_where_the_backend_says_nothing() -> None:
    with Depot(streams=False) as depot:
        sent, queued = echo.submit(), echo.submit()
        assert sent.running()
        assert queued.state.is_pending()
        depot.work_off()


def test_records_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Depot() as depot:
        future = echo.submit()
        depot.say(0, RECORD, ("log", {"name": "elsewhere", "levelno": logging.INFO, "msg": "hello"}))
        assert not future.done()
        depot.give(0)
    assert ("elsewhere", logging.INFO, "hello") in caplog.record_tuples


@pytest.mark.parametrize(
    ("kind", "data"),
    [(VALUE, 2), (FAILURE, encode(ValueError("late"))), (CRASHED, "late"), (LOST, "late"), (RETURNED, None)],
)
def test_the_first_outcome_counts(kind: OutcomeKind, data: Any) -> None:
    with Depot(2, streams=False) as depot:
        futures = [echo.submit(number) for number in range(4)]
        depot.give(0, 1)
        assert len(depot.batches) == 3
        depot.say(0, kind, data)
        assert futures[0].result(0) == 1
        assert len(depot.batches) == 3, "told twice is no more room"
        for batch in (1, 2, 3):
            depot.give(batch)


def test_the_first_outcome_counts_within_one_report() -> None:
    with Depot() as depot:
        future = echo.submit()
        depot.tell(0, Outcome(0, VALUE, 1), Outcome(0, VALUE, 2), Outcome(0, STARTED))
        assert future.result(0) == 1


def test_what_comes_of_an_earlier_attempt_changes_nothing() -> None:
    with Depot() as depot:
        future = stubborn.submit()
        depot.fail(0, ValueError("first"))
        assert len(depot.batches) == 2
        depot.say(0, STARTED)
        assert future.state.is_retrying(), "that was the first attempt"
        depot.give(0, "of the first")
        depot.say(0, CRASHED, "late")
        assert not future.done()
        depot.say(1, STARTED)
        depot.give(1, "of the second")
        assert future.result(0) == "of the second"


def test_retries_are_counted_in_failures_alone() -> None:
    with Depot() as depot:
        future = stubborn.submit()
        depot.say(0, RETURNED)
        depot.say(1, CRASHED, "signal 9")
        depot.fail(2, ValueError("one"))
        depot.fail(3, ValueError("two"))
        assert repr(future.exception(0)) == "ValueError('two')"
    assert len(depot.batches) == 4


def test_a_result_that_nobody_can_unpack_is_a_failure() -> None:
    with Depot() as depot:
        future = echo.submit()
        body = depot.batches[0].body
        body.data = b"not a pickle"
        depot.give(0, body)
        with pytest.raises(SerializationError, match="result of task 'echo-0'"):
            future.result(0)


def test_failures_of_nested_calls_make_the_flow_fail() -> None:
    depot = Depot()
    depot.on_submit = lambda batch: depot.tell(batch, Outcome(0, VALUE, 1, unlooked=(encode(ValueError("nested")),)))

    @flow(task_runner=depot)
    def main() -> Any:
        return echo.submit()

    with pytest.raises(BaseExceptionGroup) as caught:
        main()
    assert list(map(repr, caught.value.exceptions)) == ["ValueError('nested')"]


def test_hooks_run_once_whatever_is_told_twice() -> None:
    seen: list[tuple[str, int]] = []

    def note(task: Task[..., Any], run: Any, state: State) -> None:
        seen.append((state.name, run.attempt))

    with Depot() as depot:
        watched = stubborn.with_options(on_completion=[note], on_failure=[note], on_running=[note])
        watched.submit()
        depot.tell(0, Outcome(0, STARTED), Outcome(0, STARTED))
        depot.fail(0, ValueError())
        depot.fail(0, ValueError())
        depot.tell(1, Outcome(0, STARTED), Outcome(0, VALUE), Outcome(0, STARTED), Outcome(0, VALUE))
    assert seen == [("Running", 1), ("Running", 2), ("Completed", 2)]


# Workers that die, and calls that come back


def test_a_crash_is_charged_to_its_call_alone() -> None:
    with Depot(4) as depot:
        guilty, innocent = fragile.submit(), fragile.submit()
        depot.say(0, CRASHED, "signal 11")
        assert depot.names() == ["fragile-0", "fragile-1", "fragile-0"], "it is run again at once"
        depot.say(2, CRASHED, "signal 11")
        with pytest.raises(CrashedRun, match=r"fragile-0 died: signal 11\. It was begun 2 times \(crash_retries=1\)"):
            guilty.result(0)
        depot.give(1, "well")
        assert innocent.result(0) == "well"


def test_what_may_begin_once_is_not_run_again_after_a_crash() -> None:
    with Depot() as depot:
        future = once.submit()
        depot.say(0, CRASHED, "exit code 1")
        with pytest.raises(CrashedRun, match="exit code 1"):
            future.result(0)
    assert len(depot.batches) == 1


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("streams", [True, False])
def test_suspects_run_one_at_a_time_with_nothing_else_around(streams: bool, started: bool) -> None:
    with Depot(3, streams=streams) as depot:
        futures = [fragile.submit(number) for number in range(3)]
        for batch in range(3):
            if started:
                depot.say(batch, STARTED)
        for batch in range(3):
            depot.say(batch, LOST, "signal 9")
        bystander = echo.submit()
        assert depot.names()[3:] == ["fragile-0"]
        depot.say(3, STARTED)
        depot.give(3, 0)
        assert depot.names()[4:] == ["fragile-1"]
        depot.say(4, STARTED)
        depot.say(4, LOST, "signal 9")
        assert depot.names()[5:] == ["fragile-2"]
        depot.give(5, 2)
        assert depot.names()[6:] == ["fragile-1"]
        depot.say(6, STARTED)
        depot.say(6, LOST, "signal 9")
        with pytest.raises(CrashedRun, match="fragile-1 died: signal 9"):
            futures[1].result(0)
        depot.work_off(7)
        assert [futures[0].result(0), futures[2].result(0), bystander.result(0)] == [0, 2, None]


def test_a_crash_that_may_take_others_along_makes_a_suspect() -> None:
    with Depot(3, isolates_crashes=False) as depot:
        echo.submit()
        guilty = fragile.submit()
        depot.say(1, CRASHED, "signal 9")
        assert len(depot.batches) == 2, "it waits until nothing else is under way"
        echo.submit()
        assert len(depot.batches) == 2, "nothing new is sent until it has run"
        depot.give(0)
        assert depot.names()[2:] == ["fragile-0"]
        depot.give(2, "well")
        assert guilty.result(0) == "well"
        depot.give(3)


def test_a_suspect_whose_worker_dies_before_it_begins_ends_too() -> None:
    with Depot() as depot:
        future = fragile.submit()
        for batch in range(3):
            depot.say(batch, LOST, "signal 9")
        with pytest.raises(CrashedRun, match="fragile-0 died: signal 9"):
            future.result(0)


def test_what_may_begin_once_ends_if_it_was_lost_before_the_news_of_its_beginning() -> None:
    with Depot() as depot:
        future = once.submit()
        depot.say(0, LOST, "signal 9")
        with pytest.raises(CrashedRun, match="once-0 died: signal 9"):
            future.result(0)


def test_a_suspect_that_is_cancelled_holds_nobody_up() -> None:
    with Depot(2) as depot:
        echo.submit()
        suspect = fragile.submit()
        depot.say(1, LOST, "signal 9")
        waiting = echo.submit()
        assert suspect.cancel()
        depot.give(0)
        assert depot.names()[2:] == ["echo-1"]
        depot.give(2, "free")
        assert waiting.result(0) == "free"


def test_calls_that_come_back_go_out_again_at_no_charge() -> None:
    with Depot() as depot:
        future = number_of_attempt.submit()
        for batch in range(100):
            depot.say(batch, RETURNED)
        assert future.state.is_pending()
        depot.work_off(100)
        assert future.result(0) == 1


def test_calls_that_come_back_go_before_later_ones() -> None:
    with Depot(streams=False) as depot:
        first.submit(1)
        second.submit(2)
        depot.say(0, RETURNED)
        assert depot.names() == ["first-0", "first-0"]
        depot.work_off(1)


@pytest.mark.parametrize("kind", [LOST, RETURNED, CRASHED])
def test_calls_of_one_batch_are_told_apart(kind: OutcomeKind) -> None:
    with Depot(streams=False) as depot:
        echo.submit()
        futures: list[TaskFuture[Any]] = [ask.submit(number) for number in range(3)]
        depot.give(0)
        depot.tell(1, Outcome(1, VALUE, "done"))
        depot.tell(1, Outcome(0, kind, "x"), Outcome(2, kind, "x"))
        assert futures[1].result(0) == "done"
        depot.work_off(2)
        assert [future.result(0) for future in futures] == [0, "done", 2]


# A backend that refuses


def test_a_batch_that_is_refused_crashes_and_the_next_one_goes() -> None:
    def refuse(batch: Batch) -> None:
        if len(depot.batches) == 1:
            raise OSError("no paper")

    depot = Depot()
    depot.on_submit = refuse
    with depot:
        refused, taken = once.submit(), once.submit()
        with pytest.raises(CrashedRun, match="The runner did not run once-0: OSError: no paper"):
            refused.result(0)
        depot.give(1, "taken")
        assert taken.result(0) == "taken"


def test_a_backend_that_refuses_everything_ends_every_call() -> None:
    def refuse(batch: Batch) -> None:
        raise OSError("no paper")

    depot = Depot(2)
    depot.on_submit = refuse
    with depot:
        root = fragile.submit()
        leaf = echo.submit(root)
        assert isinstance(root.exception(0), CrashedRun)
        assert isinstance(leaf.exception(0), UpstreamFailed)
    assert len(depot.batches) == 1


class Closed(Depot):
    def start(self, host: Host) -> None:
        raise OSError("closed on Sundays")


def test_a_backend_that_does_not_start_is_stopped_and_named() -> None:
    depot = Closed(3)

    @flow(task_runner=depot)
    def main() -> None:
        echo.submit()

    with pytest.raises(RunnerStartError, match=r"Closed\(size=3\) did not start: OSError: closed on Sundays"):
        main()
    assert depot.stops == 1


def test_a_flow_that_submits_nothing_starts_nothing() -> None:
    depot = Depot()

    @flow(task_runner=depot)
    def main() -> int:
        return 1

    assert main() == 1
    assert depot.starts == 0


# Failures and their dependents


def test_dependents_of_a_failure_are_never_sent() -> None:
    with Depot(4) as depot:
        root = echo.submit()
        chain = [echo.submit(root)]
        for _ in range(2000):
            chain.append(echo.submit(chain[-1]))
        late = echo.submit([root])
        depot.fail(0, ValueError("root"))
        after = echo.submit(wait_for=root)
        for future in (chain[0], chain[-1], late, after):
            error = future.exception(0)
            assert isinstance(error, UpstreamFailed)
            assert error.root == "echo-0"
            assert repr(error.__cause__) == "ValueError('root')"
    assert len(depot.batches) == 1


def test_a_failure_that_is_allowed_is_passed_on() -> None:
    with Depot(4) as depot:
        root = echo.submit()
        careful = first.submit(allow_failure(root))
        careless = second.submit([allow_failure(root), root])
        depot.fail(0, ValueError("root"))
        depot.work_off(1)
        assert repr(careful.result(0)) == "ValueError('root')"
        assert careless.state.type is StateType.UPSTREAM_FAILED
    assert depot.names() == ["echo-0", "first-0"]


def test_a_call_with_two_failed_dependencies_ends_once() -> None:
    ends: list[TaskFuture[Any]] = []
    with Depot(4) as depot:
        left, right = echo.submit(), echo.submit()
        both = first.submit([left, right])
        both.add_done_callback(ends.append)
        depot.fail(0, ValueError("left"))
        depot.fail(1, ValueError("right"))
        error = both.exception(0)
        assert repr(error.__cause__ if error else None) == "ValueError('left')"
        assert right.exception(0) is not None
    assert ends == [both]


# Cancelling, and running out of time


def test_a_queued_call_that_is_cancelled_is_never_sent() -> None:
    with Depot(streams=False) as depot:
        echo.submit()
        queued = first.submit(1)
        leaf = second.submit(queued)
        assert queued.cancel()
        assert not queued.cancel(), "it is over"
        assert leaf.cancelled()
        depot.give(0)
    assert depot.names() == ["echo-0"]
    assert depot.cancelled == []


def test_a_sent_call_that_is_cancelled_is_stopped_by_the_backend() -> None:
    with Depot() as depot:
        future = echo.submit()
        depot.say(0, STARTED)
        assert future.cancel()
        assert depot.cancelled == depot.batches
        depot.give(0, "too late")
        with pytest.raises(CancelledRun):
            future.result(0)


def test_a_slot_is_free_only_when_the_cancelled_call_was_reported() -> None:
    with Depot(streams=False) as depot:
        future = echo.submit()
        echo.submit()
        future.cancel()
        assert len(depot.batches) == 1
        depot.say(0, RETURNED)
        assert depot.names() == ["echo-0", "echo-1"], "what was cancelled is not sent again"
        depot.give(1)


def test_what_a_backend_cannot_stop_runs_on() -> None:
    with Depot(cancel="none") as depot:
        running, sent = first.submit(1), second.submit(2)
        depot.say(0, STARTED)
        assert not running.cancel()
        assert sent.cancel(), "it has not begun"
        assert depot.cancelled == [depot.batches[1]]
        depot.give(0, "on")
        assert running.result(0) == "on"


def test_a_call_cancelled_while_it_is_sent_is_stopped_by_the_backend() -> None:
    depot = Depot(2)
    depot.on_submit = lambda batch: batch.calls[0].future.cancel()
    with depot:
        assert echo.submit().cancelled()
    assert depot.batches[0] in depot.cancelled


class CancelsItsCall:
    """An argument that cancels the call while it is packed."""

    futures: ClassVar[list[TaskFuture[Any]]] = []

    def __reduce__(self) -> Any:
        assert self.futures[0].cancel()
        return int, ()


def test_a_call_cancelled_while_it_is_packed_is_stopped_by_the_backend() -> None:
    with Depot(streams=False) as depot:
        echo.submit()
        CancelsItsCall.futures[:] = [echo.submit([CancelsItsCall()])]
        depot.give(0)
        assert CancelsItsCall.futures.pop().cancelled()
        # It was on its way, so that the backend got it; but by then nobody wanted it.
        assert depot.cancelled == depot.batches[1:]
        depot.work_off(1)


def test_one_of_several_travelling_together_is_cancelled_without_the_others() -> None:
    with Depot(streams=False) as depot:
        echo.submit()
        futures = [ask.submit(number) for number in range(3)]
        depot.give(0)
        assert futures[1].cancel()
        assert depot.cancelled == []
        depot.work_off(1)
        assert [future.state.name for future in futures] == ["Completed", "Cancelled", "Completed"]


def test_a_body_that_raises_cancels_what_was_not_sent() -> None:
    depot = Depot(streams=False, cancel="kill")
    futures: list[TaskFuture[Any]] = []
    dead: list[Batch] = []

    def die(batch: Batch) -> None:
        dead.append(batch)
        depot.say(batch, CRASHED, "killed")

    @flow(task_runner=depot)
    def main() -> None:
        futures.extend(echo.submit(number) for number in range(5))
        raise ValueError("enough")

    depot.on_cancel = lambda batch: threading.Thread(target=die, args=(batch,)).start()
    with pytest.raises(ValueError, match="enough"):
        main()
    assert all(future.cancelled() for future in futures)
    assert len(depot.batches) == 1
    assert dead == depot.cancelled == depot.batches, "the flow has waited for the end of the body"


def test_a_call_out_of_time_is_over_before_its_worker_is() -> None:
    with Depot(streams=False) as depot:
        future = echo.with_options(timeout_seconds=0.01).submit()
        echo.submit()
        with pytest.raises(TaskRunTimeoutError):
            future.result(30)
        assert depot.cancelled == depot.batches
        assert len(depot.batches) == 1, "the worker still has it"
        depot.give(0, "too late")
        depot.give(1)
        assert future.state.name == "TimedOut"


def test_the_attempt_after_one_out_of_time_is_not_confused_with_it() -> None:
    with Depot(2) as depot:
        again = threading.Event()
        depot.on_submit = lambda batch: again.set() if len(depot.batches) == 2 else None
        future = echo.with_options(timeout_seconds=0.01, retries=1).submit()
        depot.say(0, STARTED)
        assert again.wait(30)
        depot.give(0, "too late")
        assert not future.done()
        depot.give(1, "in time")
        assert future.result(0) == "in time"


def test_an_attempt_out_of_time_does_not_come_back_while_the_next_one_is_awaited() -> None:
    with Depot() as depot:
        future = echo.with_options(timeout_seconds=0.01, retries=1, retry_delay_seconds=600).submit()
        depot.say(0, STARTED)
        while not future.state.is_retrying():
            time.sleep(0)
        depot.say(0, STARTED)
        assert future.state.is_retrying()
        depot.give(0, "too late")
        assert future.state.is_retrying()
        assert future.cancel()


# Many threads


@pytest.mark.usefixtures("busy_threads")
def test_news_may_come_from_many_threads() -> None:
    with Depot(60) as depot:
        futures = [echo.submit(number) for number in range(400)]
        # A dependent on several of them each: these become ready in whatever thread comes last.
        sums = [first.submit(futures[start : start + 7]) for start in range(0, 394, 3)]
        lock = threading.Lock()
        sent = depot.following()

        def worker() -> None:
            while True:
                with lock:
                    batch = next(sent, None)
                if batch is None:
                    return
                depot.work(batch)
                depot.give(batch, "told twice")

        together(worker, worker, worker, worker)
        depot.work_off()
        assert [future.result(0) for future in futures] == list(range(400))
        assert [future.result(0) for future in sums] == [list(range(s, min(s + 7, 400))) for s in range(0, 394, 3)]
        assert len(depot.batches) == 400 + len(sums)


@pytest.mark.usefixtures("busy_threads")
def test_two_outcomes_at_once_are_one() -> None:
    with Depot(2) as depot:
        for number in range(200):
            future = echo.submit()
            ends: list[TaskFuture[Any]] = []
            future.add_done_callback(ends.append)
            together(partial(depot.give, number, "a"), partial(depot.give, number, "b"))
            assert future.result(0) in ("a", "b")
            assert ends == [future]
        assert len(depot.batches) == 200


@pytest.mark.usefixtures("busy_threads")
def test_cancelling_as_the_outcome_comes_is_one_or_the_other() -> None:
    with Depot(2) as depot:
        for number in range(200):
            future = echo.submit()
            leaf = first.submit(future)
            ends: list[TaskFuture[Any]] = []
            future.add_done_callback(ends.append)
            took: list[bool] = []
            together(
                partial(depot.give, depot.batches[-1], number),
                cancelling(future, took),
            )
            if took == [True]:
                assert future.cancelled()
                assert leaf.cancelled()
            else:
                assert future.result(0) == number
                depot.give(len(depot.batches) - 1, number)
                assert leaf.result(0) == number
            assert ends == [future]


@pytest.mark.usefixtures("busy_threads")
def test_two_cancels_at_once_take_once_each() -> None:
    with Depot(1, streams=False) as depot:
        echo.submit()
        for _ in range(200):
            future = echo.submit()
            took: list[bool] = []
            together(cancelling(future, took), cancelling(future, took))
            assert future.cancelled()
            assert True in took
        depot.give(0)
    assert len(depot.batches) == 1


@pytest.mark.usefixtures("busy_threads")
def test_a_dependent_submitted_as_its_dependency_ends_is_sent_once() -> None:
    with Depot(4) as depot:
        for number in range(200):
            root = echo.submit()
            batch = depot.batches[-1]
            leaves: list[TaskFuture[Any]] = []
            together(
                partial(depot.give, batch, number),
                contextually(partial(submit_into, leaves, root)),
            )
            assert depot.names().count(leaves[0].name) == 1
            depot.work(depot.batches[-1])
            assert leaves[0].result(0) == number


@pytest.mark.usefixtures("busy_threads")
def test_threads_of_a_body_may_submit_at_once() -> None:
    with Depot(8) as depot:
        futures: list[TaskFuture[Any]] = []

        def submit() -> None:
            futures.extend(echo.submit(number) for number in range(100))

        together(*[contextually(submit) for _ in range(4)])
        depot.work_off()
        assert wait(futures, timeout=0).not_done == set()
    assert len({future.name for future in futures}) == 400


# Backends in this process


class Yard(Depot):
    """Keeps batches that run in this process until the test executes them."""

    def __init__(self, size: int = 1, *, keeps_order: bool = True) -> None:
        super().__init__(size)
        self.capabilities = Capabilities(
            in_process=True, keeps_order=keeps_order, cancel="cooperative", nested="shared", streams=True
        )

    def execute(self, batch: Batch | int) -> Sequence[Batch]:
        return self.host.execute(self.batches[batch] if isinstance(batch, int) else batch)


@pytest.fixture
def ran() -> list[Any]:
    return []


def noting(ran: list[Any]) -> Task[[Any], Any]:
    @task
    def note(value: Any) -> Any:
        ran.append(value)
        return value

    return note


def test_all_ready_calls_go_at_once_to_a_backend_that_keeps_order() -> None:
    with Yard() as yard:
        futures = [echo.submit(number) for number in range(100)]
        assert len(yard.batches) == 100
        for batch in reversed(yard.batches):
            assert yard.execute(batch) == ()
        assert [future.result(0) for future in futures] == list(range(100))


def test_what_becomes_ready_is_handed_to_the_executing_thread(ran: list[Any]) -> None:
    note = noting(ran)
    with Yard() as yard:
        root = note.submit(1)
        leaves = [note.submit([root, number]) for number in range(3)]
        assert len(yard.batches) == 1
        ready = yard.execute(0)
        assert [batch.calls[0].future for batch in ready] == leaves
        assert len(yard.batches) == 1, "they are the thread's now"
        for batch in ready:
            assert yard.execute(batch) == ()
    assert ran == [1, [1, 0], [1, 1], [1, 2]]


def test_executing_twice_runs_the_body_once(ran: list[Any]) -> None:
    note = noting(ran)
    with Yard() as yard:
        future = note.submit(1)
        yard.execute(0)
        assert yard.execute(0) == ()
        assert future.result(0) == 1
    assert ran == [1]


@pytest.mark.usefixtures("busy_threads")
def test_executing_in_two_threads_runs_the_body_once(ran: list[Any]) -> None:
    note = noting(ran)
    with Yard() as yard:
        for number in range(200):
            note.submit(number)
            together(partial(yard.execute, number), partial(yard.execute, number))
    assert ran == list(range(200))


def test_executing_never_raises() -> None:
    @task
    def leave() -> None:
        raise SystemExit(3)

    with Yard() as yard:
        future = leave.submit()
        assert yard.execute(0) == ()
        with pytest.raises(CrashedRun, match="raised SystemExit: 3"):
            future.result(0)


def test_a_cancelled_call_does_not_run_though_it_is_executed(ran: list[Any]) -> None:
    note = noting(ran)
    with Yard() as yard:
        note.submit(1).cancel()
        assert yard.execute(0) == ()
    assert ran == []


def test_a_failed_attempt_comes_back_as_a_batch_of_its_own() -> None:
    @task(retries=1)
    def flaky() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError
        return 7

    attempts: list[int] = []
    with Yard() as yard:
        future = flaky.submit()
        assert yard.execute(0) == ()
        assert future.state.is_retrying()
        assert len(yard.batches) == 2
        yard.execute(1)
        assert future.result(0) == 7


def test_a_batch_that_cannot_be_executed_crashes_with_the_reason() -> None:
    with Yard() as yard:
        future = echo.submit()
        yard.say(0, CRASHED, "the floor is wet")
        with pytest.raises(CrashedRun, match="the floor is wet"):
            future.result(0)


def test_a_window_holds_in_this_process_too(ran: list[Any]) -> None:
    note = noting(ran)
    with Yard(2, keeps_order=False) as yard:
        root = note.submit(0)
        note.submit([root])
        for number in range(2, 8):
            note.submit(number)
        assert len(yard.batches) == 4
        for batch in yard.following():
            yard.execute(batch)
    assert ran == [0, 2, 3, 4, [0], 5, 6, 7]
