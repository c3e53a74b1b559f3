"""Futures and waiting for them, alone and many at once, while other threads bring calls to their end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from turnout import (
    CancelledRun,
    FutureList,
    StateType,
    TaskFuture,
    UpstreamFailed,
    WouldDeadlockError,
    as_completed,
    task,
    wait,
)
from turnout._serialization import dumps
from turnout._waiting import Arrivals, countdown, delivering, wait_for_gate
from turnout.errors import SerializationError
from turnout.runner import Batch, Capabilities, Host, TaskRunner

REPEATS = 150


class Rack(TaskRunner):
    """Keeps calls until the test runs them, in a thread of its choice."""

    capabilities = Capabilities(in_process=True, keeps_order=True, cancel="cooperative", streams=True)

    def start(self, host: Host) -> None:
        self.host = host
        self.batches: list[Batch] = []

    def slots(self) -> int:
        return 4

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)

    def stop(self) -> None:
        pass

    def run(self, index: int = 0) -> None:
        ready = [self.batches.pop(index)]
        while ready:
            ready.extend(self.host.execute(ready.pop()))

    def run_all(self) -> None:
        while self.batches:
            self.run()


@pytest.fixture
def rack() -> Iterator[Rack]:
    with Rack() as rack:
        yield rack
        rack.run_all()


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@task
def echo(value: Any = None) -> Any:
    return value


@task
def fail(text: str = "no") -> None:
    raise ValueError(text)


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
        assert not thread.is_alive()
    for problem in problems:
        raise problem


def into(results: list[Any], function: Callable[[], Any]) -> Callable[[], None]:
    """Return a function that puts what another one returns into a list."""
    return lambda: results.append(function())


def sorted_results(futures: list[TaskFuture[Any]]) -> list[Any]:
    return sorted(future.result(0) for future in as_completed(futures, 30))


def result_of_state(future: TaskFuture[Any]) -> Any:
    return future.state.result()


# Races between the end and those who wait for it


@pytest.mark.usefixtures("busy_threads")
def test_whoever_waits_is_woken(rack: Rack) -> None:
    for number in range(REPEATS):
        future = echo.submit(number)
        results: list[Any] = []
        ask = into(results, partial(future.result, 30))
        together(
            ask, rack.run, ask, into(results, partial(future.wait, 30)), into(results, partial(future.exception, 30))
        )
        assert sorted(map(repr, results)) == sorted(map(repr, [number, number, True, None]))


@pytest.mark.usefixtures("busy_threads")
def test_a_callback_added_as_the_call_ends_is_called_once(rack: Rack) -> None:
    for number in range(REPEATS):
        future = echo.submit(number)
        called: list[TaskFuture[Any]] = []
        add = partial(future.add_done_callback, called.append)
        together(add, rack.run, add)
        assert called == [future, future]


@pytest.mark.usefixtures("busy_threads")
def test_waiting_for_several_as_they_end(rack: Rack) -> None:
    for _ in range(REPEATS):
        futures = [echo.submit(number) for number in range(4)]
        results: list[Any] = []
        together(
            rack.run_all,
            into(results, partial(wait, futures, 30)),
            into(results, partial(sorted_results, futures)),
            into(results, partial(wait, futures, 30, "FIRST_COMPLETED")),
            into(results, partial(FutureList(futures).result, 30)),
        )
        all_done = next(result for result in results if isinstance(result, tuple) and not result[1])
        assert all_done[0] == set(futures)
        assert results.count([0, 1, 2, 3]) == 2
        assert all(result[0] for result in results if isinstance(result, tuple))


@pytest.mark.usefixtures("busy_threads")
def test_cancelling_as_the_call_is_run_is_one_or_the_other(rack: Rack) -> None:
    for number in range(REPEATS):
        future = echo.submit(number)
        took: list[bool] = []
        together(into(took, future.cancel), rack.run)
        assert future.done()
        assert future.cancelled() is took[0]
        if took[0]:
            assert isinstance(future.exception(), CancelledRun)
        else:
            assert future.result() == number


@pytest.mark.usefixtures("busy_threads")
def test_a_timeout_that_runs_out_as_the_call_ends_is_one_or_the_other(rack: Rack) -> None:
    def ask(future: TaskFuture[Any]) -> Any:
        try:
            return future.result(1e-5)
        except TimeoutError:
            return "too early"

    for number in range(REPEATS):
        future = echo.submit(number)
        results: list[Any] = []
        together(into(results, partial(ask, future)), rack.run)
        assert results[0] in (number, "too early")
        assert future.result(0) == number


@pytest.mark.usefixtures("busy_threads")
def test_all_see_one_object_however_many_unpack_it(rack: Rack) -> None:
    for _ in range(REPEATS):
        future = echo.submit()
        rack.run()
        future._data = dumps(["packed"])
        results: list[Any] = []
        together(*[into(results, future.result)] * 3, into(results, partial(result_of_state, future)))
        assert results[0] == ["packed"]
        assert all(result is results[0] for result in results)


class Meeting:
    """Unpacking it takes two, who do so at once."""

    gate = threading.Barrier(2)

    def __reduce__(self) -> Any:
        return meet, ()


def meet() -> list[str]:
    Meeting.gate.wait(30)
    return ["made anew"]


def test_two_who_unpack_at_once_see_one_object(rack: Rack) -> None:
    future = echo.submit()
    rack.run()
    future._data = dumps(Meeting())
    results: list[Any] = []
    together(into(results, future.result), into(results, future.result))
    assert results[0] is results[1] is future.result()


def test_a_result_that_cannot_be_unpacked_says_whose_it_is(rack: Rack) -> None:
    future = echo.submit()
    rack.run()
    future._data = dumps([1])
    future._data.data = b"broken"
    for ask in (future.result, lambda: future.state):
        with pytest.raises(SerializationError, match="result of 'echo-0' can't be unpacked"):
            ask()


# Timeouts


@pytest.mark.parametrize("timeout", [0, -1, 0.001])
def test_an_open_call_is_not_waited_for_longer_than_asked(rack: Rack, timeout: float) -> None:
    future = echo.submit(1)
    for ask in (future.result, future.exception, future["x"].result, FutureList([future]).result):
        with pytest.raises(TimeoutError, match="echo-0 is pending still, after"):
            ask(timeout)
    for tell in (future.wait, future["x"].wait, FutureList([future]).wait):
        assert tell(timeout) is False
    assert wait([future], timeout) == (set(), {future})
    with pytest.raises(TimeoutError, match="1 of 1 futures are not over after"):
        list(as_completed([future], timeout))
    rack.run()
    assert future.result(timeout) == 1
    assert list(as_completed([future], timeout)) == [future]


def test_a_timeout_longer_than_any_wait_is_fine(rack: Rack) -> None:
    future = echo.submit(1)
    worker = threading.Thread(target=rack.run)
    worker.start()
    assert future.result(threading.TIMEOUT_MAX * 2) == 1
    worker.join()


def test_nobody_is_remembered_who_waits_no_more(rack: Rack) -> None:
    future = echo.submit(1)
    for _ in range(3):
        future.wait(0)
        wait([future], 0)
        with pytest.raises(TimeoutError):
            next(as_completed([future], 0))
    left = as_completed([future, echo.submit(2)])
    rack.run(1)
    assert next(left).result() == 2
    left.close()  # type: ignore[attr-defined]  # it is a generator
    assert not future._listeners


def test_a_countdown_shares_one_timeout() -> None:
    assert countdown(None)() is None
    remaining = countdown(1000)
    first, second = remaining(), remaining()
    assert first is not None
    assert second is not None
    assert 0 < second <= first <= 1000
    assert countdown(-5)() == 0.0


# Failures


def test_every_look_raises_the_same_exception_with_the_same_traceback(rack: Rack) -> None:
    future = fail.submit("again")
    rack.run()
    lengths: list[int] = []
    for _ in range(5):
        with pytest.raises(ValueError, match="again") as caught:
            future.result()
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert caught.value is future.exception()
    assert len(set(lengths)) == 1


def test_a_failed_result_leaves_no_frames_behind(rack: Rack) -> None:
    class Large:
        pass

    def look() -> weakref.ref[Large]:
        large = Large()
        with pytest.raises(ValueError, match="no"):
            future.result()
        return weakref.ref(large)

    future = fail.submit()
    rack.run()
    gc.disable()
    try:
        alive = look()
        future.exception().__traceback__ = None  # type: ignore[union-attr]  # it has failed
        assert alive() is None
    finally:
        gc.enable()


def test_looking_at_an_upstream_failure_is_looking_at_its_root() -> None:
    with Rack() as rack:
        leaf = echo.submit(echo.submit(fail.submit("root")))
        rack.run()
        error = leaf.exception()
        assert isinstance(error, UpstreamFailed)
        assert (error.root, repr(error.__cause__)) == ("fail-0", "ValueError('root')")
        assert leaf.exception() is error


def test_waiting_is_not_looking() -> None:
    with pytest.raises(BaseExceptionGroup) as caught, Rack() as rack:  # noqa: PT012  (the end of the block raises)
        future = fail.submit("unseen")
        rack.run()
        assert future.wait()
        assert future.done()
        assert not future.cancelled()
        wait([future])
        list(as_completed([future]))
        FutureList([future]).wait()
    assert list(map(repr, caught.value.exceptions)) == ["ValueError('unseen')"]


@pytest.mark.parametrize("look", [lambda f: f.exception(), lambda f: f.state, lambda f: f.state.name])
def test_these_are_looks(look: Callable[[TaskFuture[Any]], Any]) -> None:
    with Rack() as rack:
        future = fail.submit()
        rack.run()
        look(future)


def test_a_list_raises_the_first_failure_in_order_of_elements(rack: Rack) -> None:
    futures: FutureList[Any] = FutureList([echo.submit(1), fail.submit("one"), fail.submit("two")])
    while rack.batches:
        rack.run(-1)
    with pytest.raises(ValueError, match="one"):
        futures.result()
    assert futures.wait()
    assert futures[2].exception() is not None


# Callbacks


def test_callbacks_come_in_order_and_errors_do_not_stop_them(rack: Rack, caplog: pytest.LogCaptureFixture) -> None:
    order: list[int] = []

    def note_and_raise(number: int, future: TaskFuture[Any]) -> None:
        order.append(number)
        raise LookupError(number) if number else SystemExit(3)

    future = echo.submit(1)
    for number in range(3):
        future.add_done_callback(partial(note_and_raise, number))
    with caplog.at_level(logging.ERROR, "turnout"):
        rack.run()
        future.add_done_callback(partial(note_and_raise, 3))
    assert order == [0, 1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == 4 * ["A done callback of 'echo-0' raised."]
    assert future.result() == 1


def test_a_callback_sees_a_future_that_is_over(rack: Rack) -> None:
    seen: list[Any] = []
    future = echo.submit(5)
    future.add_done_callback(lambda done: seen.extend([done.done(), done.result(), done.state.name]))
    rack.run()
    assert seen == [True, 5, "Completed"]


def test_a_callback_of_a_cancelled_call_is_called(rack: Rack) -> None:
    seen: list[bool] = []
    future = echo.submit()
    future.add_done_callback(lambda done: seen.append(done.cancelled()))
    future.cancel()
    assert seen == [True]


def test_a_callback_must_not_wait_for_an_open_call(rack: Rack) -> None:
    problems: list[str] = []
    other, future = echo.submit(1), echo.submit(2)

    def ask(_: TaskFuture[Any]) -> None:
        assert other.wait(0) is False, "asking is not waiting"
        waits: list[Callable[[], object]] = [
            other.result,
            other.wait,
            partial(wait, [other]),
            partial(list, as_completed([other])),
        ]
        for wait_for_it in waits:
            try:
                wait_for_it()
            except WouldDeadlockError as error:
                problems.append(str(error))

    future.add_done_callback(ask)
    rack.run(1)
    assert len(problems) == 4
    assert "Submit a task that depends on the future" in problems[0]


def test_a_callback_added_late_may_wait(rack: Rack) -> None:
    other, future = echo.submit(1), echo.submit(2)
    rack.run(1)
    worker = threading.Thread(target=rack.run)
    seen: list[int] = []

    def ask(_: TaskFuture[Any]) -> None:
        worker.start()
        seen.append(other.result(30))

    future.add_done_callback(ask)
    worker.join()
    assert seen == [1]


def test_a_callback_may_submit(rack: Rack) -> None:
    submitted: list[TaskFuture[Any]] = []
    context = contextvars.copy_context()
    future = echo.submit(1)
    future.add_done_callback(lambda done: submitted.append(context.run(echo.submit, done)))
    rack.run()
    rack.run_all()
    assert submitted[0].result(0) == 1


# Many at once


def test_wait_needs_to_know_for_what(rack: Rack) -> None:
    with pytest.raises(ValueError, match="return_when='SOME': use ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION"):
        wait([], return_when="SOME")


def test_waiting_for_nothing(rack: Rack) -> None:
    for when in ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"):
        assert wait([], return_when=when) == (set(), set())
    assert list(as_completed([])) == []
    empty: FutureList[int] = FutureList()
    assert empty.result() == []
    assert empty.wait()


def test_the_first_exception_ends_the_wait_and_a_cancel_is_one(rack: Rack) -> None:
    for bad in ("failed", "cancelled"):
        good, open_ = echo.submit(), echo.submit()
        ending = fail.submit() if bad == "failed" else echo.submit()
        rack.run()
        if bad == "failed":
            rack.run(1)
            assert ending.exception() is not None
        else:
            ending.cancel()
        assert wait([good, open_, ending], return_when="FIRST_EXCEPTION") == ({good, ending}, {open_})
        rack.run_all()


def test_without_exception_the_wait_is_for_all(rack: Rack) -> None:
    futures = [echo.submit(), echo.submit()]
    rack.run()
    assert wait(futures, 0, "FIRST_EXCEPTION") == ({futures[0]}, {futures[1]})
    rack.run()
    assert wait(futures, return_when="FIRST_EXCEPTION") == (set(futures), set())


def test_futures_come_as_they_end_each_once(rack: Rack) -> None:
    futures = [echo.submit(number) for number in range(5)]
    over = as_completed([*futures, *futures])
    seen: list[int] = []
    for index in (3, 0, 2, 0, 0):
        rack.run(index)
        seen.append(next(over).result(0))
    assert seen == [3, 0, 4, 1, 2]
    assert next(over, None) is None


def test_a_generator_of_futures_will_do(rack: Rack) -> None:
    futures = [echo.submit(number) for number in range(3)]
    rack.run_all()
    assert {future.result() for future in as_completed(future for future in futures)} == {0, 1, 2}
    assert wait(future for future in futures).done == set(futures)


# Awaiting


def test_awaiting_a_call_that_another_thread_ends(rack: Rack) -> None:
    async def main() -> list[Any]:
        future, failing = echo.submit({"a": 5}), fail.submit("awaited")
        worker = threading.Thread(target=rack.run_all)
        loop = asyncio.get_running_loop()
        loop.call_soon(worker.start)
        results = await asyncio.gather(future, future["a"], failing, return_exceptions=True)
        worker.join()
        return [*results, await future]

    results = asyncio.run(main())
    assert results[:2] == [{"a": 5}, 5]
    assert repr(results[2]) == "ValueError('awaited')"
    assert results[3] == {"a": 5}


def test_an_await_that_is_given_up_is_forgotten(rack: Rack) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.001)

    future = echo.submit(1)
    asyncio.run(main())
    assert not future._listeners
    rack.run()
    assert future.result() == 1


def test_a_loop_that_is_closed_before_the_end_is_no_trouble(rack: Rack) -> None:
    future = echo.submit(1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        waiting = loop.create_task(future._over())
        await asyncio.sleep(0)
        held.append(waiting)

    held: list[asyncio.Task[None]] = []
    asyncio.run(main())
    rack.run()
    assert future.result() == 1


# What waiting stands on


def test_arrivals_are_taken_in_order() -> None:
    arrivals = Arrivals[int]()
    assert not arrivals.wait(0)
    for number in range(3):
        arrivals.put(number)
    taken = []
    while arrivals.wait(0):
        taken.append(arrivals.take())
    assert taken == [0, 1, 2]
    arrivals.put(3)
    assert arrivals.wait(None)
    assert arrivals.wait(None), "waiting takes nothing"
    assert arrivals.take() == 3


@pytest.mark.usefixtures("busy_threads")
def test_no_arrival_is_missed() -> None:
    arrivals = Arrivals[int]()
    taken: list[int] = []

    def take() -> None:
        while len(taken) < 3000:
            assert arrivals.wait(30)
            taken.append(arrivals.take())

    def put(first: int) -> None:
        for number in range(1000):
            arrivals.put(first + number)

    together(take, partial(put, 0), partial(put, 1000), partial(put, 2000))
    assert sorted(taken) == list(range(3000))
    assert not arrivals.wait(0)


def test_a_gate_that_is_open_is_passed_even_by_whoever_delivers() -> None:
    gate = threading.Lock()
    with delivering():
        assert wait_for_gate(gate, None)
        assert not wait_for_gate(gate, 0)
        with pytest.raises(WouldDeadlockError), delivering():
            wait_for_gate(gate, None)
        with pytest.raises(WouldDeadlockError):
            wait_for_gate(gate, 1)
    assert not wait_for_gate(gate, 0.001)
    gate.release()
    assert wait_for_gate(gate, None, keep=True)
    assert not gate.locked()


# What a future tells


def test_a_future_shows_its_name_and_state(rack: Rack) -> None:
    future = echo.submit(1)
    assert repr(future) == "<TaskFuture echo-0 pending>"
    assert (future.name, future.path) == ("echo-0", "/echo-0")
    assert not future.done()
    assert future.state.type is StateType.PENDING
    rack.run()
    assert repr(future) == "<TaskFuture echo-0 completed>"


def test_a_future_is_running_while_its_body_runs(rack: Rack) -> None:
    seen: list[tuple[bool, bool, str]] = []

    @task
    def look() -> None:
        seen.append((future.running(), future.done(), future.state.name))

    future = look.submit()
    rack.run()
    assert seen == [(True, False, "Running")]
    assert not future.running()


def test_arguments_are_let_go_with_the_end_of_the_call(rack: Rack) -> None:
    class Large:
        pass

    @task
    def forget(value: Any) -> None: ...

    large = Large()
    alive = weakref.ref(large)
    future = forget.submit([large])
    del large
    assert alive() is not None
    rack.run()
    assert future.done()
    assert alive() is None


def test_a_million_must_fit(rack: Rack) -> None:
    future = echo.submit()
    rack.run()
    assert not hasattr(future, "__dict__")
    assert sys.getsizeof(future) <= 200
    assert future._call is None
