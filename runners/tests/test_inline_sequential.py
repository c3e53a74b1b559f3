"""What is special to a runner whose ``submit`` runs the call: turns, threads, event loops, and retries in place."""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from turnout import CrashedRun, TaskFuture, TaskRunTimeoutError, flow, get_run_context, task
from turnout.runner import Batch, Capabilities, Host, TaskRunner
from turnout_runners.sequential import SequentialTaskRunner


@task
def echo(value: Any = None) -> Any:
    return value


@task
def thread_of_call(value: Any = None) -> str:
    return threading.current_thread().name


def here() -> str:
    return threading.current_thread().name


def in_threads(*functions: Callable[[], object]) -> None:
    """Run functions at once on threads that see this one's scope."""
    gate = threading.Barrier(len(functions))
    problems: list[BaseException] = []

    def act(function: Callable[[], object]) -> None:
        try:
            gate.wait(30)
            function()
        except BaseException as error:
            problems.append(error)

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(act, function), name=f"helper-{index}")
        for index, function in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    for problem in problems:
        raise problem


def in_time(function: Callable[[], Any]) -> Any:
    """Return what a function returns; fail if that takes too long."""
    results: list[Any] = []

    def act() -> None:
        results.append(function())

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it hangs"
    return results[0]


# In the thread that submits


def test_a_call_is_over_when_submit_returns() -> None:
    with SequentialTaskRunner():
        future = thread_of_call.submit()
        assert future.done()
        assert future.result() == here()


def test_calls_run_in_the_order_of_submission() -> None:
    order: list[int] = []

    @task
    def note(number: int, _: Any = None) -> int:
        order.append(number)
        return number

    with SequentialTaskRunner():
        futures = [note.submit(0)]
        for number in range(1, 50):
            futures.append(note.submit(number, futures[number // 2]))
    assert order == list(range(50))


def test_retries_happen_in_place() -> None:
    attempts: list[int] = []

    @task(retries=3, retry_delay_seconds=[0, 0.001])
    def flaky() -> str:
        attempts.append(get_run_context().attempt)
        if len(attempts) < 3:
            raise ValueError
        return here()

    with SequentialTaskRunner():
        future = flaky.submit()
        assert future.done()
        assert future.result() == here()
    assert attempts == [1, 2, 3]


def test_a_failure_does_not_raise_in_submit() -> None:
    @task
    def fail() -> None:
        raise SystemExit(3)

    with SequentialTaskRunner():
        future = fail.submit()
        assert future.state.is_crashed()


def test_a_call_out_of_time_is_left_and_the_next_one_runs() -> None:
    release = threading.Event()

    @task(timeout_seconds=0.01)
    def stuck() -> None:
        release.wait(30)

    with SequentialTaskRunner():
        future = stuck.submit()
        assert isinstance(future.exception(0), TaskRunTimeoutError)
        assert echo.submit(1).result(0) == 1
        release.set()


def test_async_calls_are_over_when_submit_returns() -> None:
    @task
    async def ask(number: int) -> int:
        await asyncio.sleep(0)
        return number

    with SequentialTaskRunner():
        assert ask.submit(3).result(0) == 3


def test_nested_calls_run_at_once() -> None:
    order: list[str] = []

    @task
    def inner(name: str) -> None:
        order.append(name)

    @task
    def outer(name: str) -> None:
        order.append(f"{name} begins")
        inner.submit(f"{name} inner")
        order.append(f"{name} ends")

    with SequentialTaskRunner():
        outer.submit("a")
        outer.submit("b")
    assert order == ["a begins", "a inner", "a ends", "b begins", "b inner", "b ends"]


def test_deep_recursion_of_calls_works() -> None:
    @task
    def descend(depth: int) -> int:
        return descend.submit(depth - 1).result() + 1 if depth else 0

    with SequentialTaskRunner():
        assert descend.submit(20).result() == 20


def test_a_chain_that_hangs_on_one_call_needs_no_stack() -> None:
    @flow(task_runner=SequentialTaskRunner())
    async def main() -> int:
        # On an event loop nothing runs before the loop is left: the chain becomes ready link by link.
        future = echo.submit(1)
        for _ in range(2000):
            future = echo.submit(future)
        return int(await future)

    assert asyncio.run(main()) == 1


# In turn


def test_threads_that_submit_take_turns() -> None:
    now: list[int] = []
    most: list[int] = []

    @task
    def alone(number: int) -> int:
        now.append(number)
        most.append(len(now))
        time.sleep(0)
        now.remove(number)
        return number

    with SequentialTaskRunner():
        results: list[int] = []

        def submit(first: int) -> None:
            results.extend(alone.submit(number).result() for number in range(first, first + 50))

        in_threads(partial(submit, 0), partial(submit, 100), partial(submit, 200))
    assert len(results) == 150
    assert set(most) == {1}


# On an event loop


def test_calls_of_an_async_flow_do_not_block_the_loop() -> None:
    order: list[str] = []
    release = threading.Event()

    @task
    def block(name: str) -> str:
        order.append(f"{name} begins")
        assert release.wait(30)
        order.append(f"{name} ends")
        return threading.current_thread().name

    @flow(task_runner=SequentialTaskRunner())
    async def main() -> list[str]:
        futures = [block.submit("a"), block.submit("b")]
        await asyncio.sleep(0)
        release.set()
        return [await future for future in futures]

    names = asyncio.run(main())
    assert order == ["a begins", "a ends", "b begins", "b ends"]
    assert len(set(names)) == 1
    assert names[0] != here()


def test_async_calls_of_an_async_flow_run_in_turn_off_the_flows_loop() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @task
    async def where() -> bool:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return True

    @flow(task_runner=SequentialTaskRunner())
    async def main() -> None:
        for future in [where.submit(), where.submit()]:
            await future
        assert asyncio.get_running_loop() not in loops

    asyncio.run(main())
    assert loops[0] is loops[1]


def test_no_thread_is_left() -> None:
    @task(timeout_seconds=30)
    def timed() -> None: ...

    @task
    async def ask() -> None: ...

    @flow(task_runner=SequentialTaskRunner())
    async def main() -> None:
        timed.submit()
        ask.submit()
        echo.submit()

    @flow(task_runner=SequentialTaskRunner())
    def plain() -> None:
        timed.submit()
        ask.submit()

    before = set(threading.enumerate())
    asyncio.run(main())
    plain()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)  # the timers' thread ends by itself, a moment later
        assert not thread.is_alive()


def test_a_hook_that_submits_does_not_hang() -> None:
    submitted: list[TaskFuture[Any]] = []

    def hook(*_: Any) -> None:
        submitted.append(echo.submit())  # hooks run outside of the flow: this raises, which is logged

    @task(on_completion=[hook])
    def work() -> int:
        return 1

    @flow(task_runner=SequentialTaskRunner())
    def main() -> int:
        return work.submit().result()

    assert in_time(main) == 1
    assert submitted == []


# A stranger's inline runner, and the recipe


class Counting(TaskRunner):
    """Hands each batch to the engine, and counts."""

    capabilities = Capabilities(in_process=True, inline=True, cancel="cooperative", nested="shared", streams=True)

    def __init__(self) -> None:
        self.count = 0

    def start(self, host: Host) -> None:
        self.host = host

    def slots(self) -> int:
        return 1

    def submit(self, batch: Batch) -> None:
        self.count += 1
        for ready in self.host.execute(batch):
            self.submit(ready)

    def stop(self) -> None:
        pass


def test_a_strangers_inline_runner_gets_every_attempt() -> None:
    @task(retries=2)
    def flaky() -> int:
        if get_run_context().attempt < 3:
            raise ValueError
        return 1

    runner = Counting()
    with runner:
        assert flaky.submit().result(0) == 1
        assert echo.submit(2).result(0) == 2
    assert runner.count == 4


class Refusing(Counting):
    def submit(self, batch: Batch) -> None:
        raise OSError("no paper")


@pytest.mark.parametrize("timeout", [None, 600])
def test_an_inline_runner_that_refuses_crashes_the_call(timeout: float | None) -> None:
    @task(timeout_seconds=timeout)
    def work() -> None: ...

    def run() -> BaseException | None:
        with Refusing():
            return work.submit().exception(0)

    error = in_time(run)
    assert isinstance(error, CrashedRun)
    assert "no paper" in str(error)


def test_a_recipe_has_no_settings() -> None:
    with pytest.raises(TypeError):
        SequentialTaskRunner(max_workers=2)
    with pytest.raises(TypeError):
        SequentialTaskRunner(2)
    runner = SequentialTaskRunner()
    assert repr(runner) == "SequentialTaskRunner()"
    assert pickle.loads(pickle.dumps(runner)) == runner
    assert runner.slots() == 1
    runner.stop()
    runner.stop()
