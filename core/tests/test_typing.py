"""What type checkers make of tasks and flows. Most of this only has to type-check; it runs all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Literal, assert_type

import pytest

from turnout import (
    Flow,
    FutureList,
    State,
    Task,
    TaskFuture,
    TaskRunner,
    allow_failure,
    as_completed,
    flow,
    quote,
    task,
    unmapped,
    use_runner,
    wait,
)
from turnout._map import LazyMap
from turnout.runner import Batch, Capabilities, Host


class Straight(TaskRunner):
    """Runs each call in ``submit``."""

    capabilities = Capabilities(in_process=True, inline=True, nested="shared", streams=True)

    def start(self, host: Host) -> None:
        self.host = host

    def slots(self) -> int:
        return 1

    def submit(self, batch: Batch) -> None:
        ready = [batch]
        while ready:
            ready.extend(self.host.execute(ready.pop()))

    def stop(self) -> None:
        pass


@task
def double(number: int) -> float:
    """Return twice a number."""
    return 2.0 * number


@task(retries=1, tags=["named"])
def describe(number: int, *, unit: str = "m") -> str:
    return f"{number} {unit}"


@task
async def fetch(address: str) -> bytes:
    await asyncio.sleep(0)
    return address.encode()


@task
async def measure(text: str) -> int:
    return len(text)


@task
def count(limit: int) -> Iterator[int]:
    yield from range(limit)


@task
async def count_slowly(limit: int) -> AsyncIterator[int]:
    for number in range(limit):
        yield number


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @task
    def apply(self, number: int) -> int:
        return self.factor * number

    @flow(task_runner=Straight())
    def all(self, numbers: list[int]) -> list[int]:
        return [self.apply(number) for number in numbers]


@flow(task_runner=Straight())
def total(numbers: list[int]) -> float:
    return sum(double.map(numbers).result())


@flow(name="named", task_runner=Straight, retries=2)
def named(text: str = "") -> str:
    return text


@flow(task_runner=Straight())
async def ask(address: str) -> bytes:
    return await fetch(address)


def test_decorated_functions_keep_their_types() -> None:
    plain: Task[[int], float] = double
    assert_type(double(1), float)
    assert_type(describe(1, unit="km"), str)
    assert_type(double(1, return_state=True), State)
    assert_type(total([1]), float)
    assert_type(total([1], return_state=True), State)
    assert_type(named(), str)
    function: Callable[[list[int]], float] = total
    assert plain(2) == 4.0
    assert function([1, 2]) == 6.0


def test_wrong_arguments_are_errors() -> None:
    with pytest.raises(TypeError):
        double(number="1", x=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(TypeError):
        total()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def test_async_tasks_and_flows_return_coroutines() -> None:
    called: Coroutine[Any, Any, bytes] = fetch("a")
    asked: Coroutine[Any, Any, bytes] = ask("b")

    async def main() -> tuple[bytes, bytes]:
        return await called, await asked

    assert asyncio.run(main()) == (b"a", b"b")


def test_options_keep_the_types() -> None:
    again = double.with_options(retries=3)
    assert_type(again(1), float)
    elsewhere = total.with_options(task_runner=Straight())
    assert_type(elsewhere([1]), float)


def test_submitting_gives_futures_of_the_result() -> None:
    with Straight():
        future = double.submit(1)
        assert_type(future, TaskFuture[float])
        assert_type(future.result(), float)
        assert_type(future.exception(), BaseException | None)
        assert_type(future.state, State)
        assert_type(double.submit(future, wait_for=[future]), TaskFuture[float])
        assert_type(double.submit(1, return_state=True), State)
        future.add_done_callback(takes_future_of_float)
        assert future.result() == 2.0


def test_submitting_async_tasks_gives_futures_of_what_they_return() -> None:
    with Straight():
        assert_type(measure.submit("abc"), TaskFuture[int])
        assert_type(measure.map(["a", "bc"]), FutureList[int])
        assert_type(measure.submit("abc", return_state=True), State)
        assert_type(measure.with_options(retries=1).submit("abc"), TaskFuture[int])
        assert_type(measure.submit("abc").result(), int)
        assert measure.map(["a", "bc"]).result() == [1, 2]
        lazy = measure.map(["abc"], lazy=True)
        assert_type(lazy, LazyMap[int])
        assert [future.result() for future in lazy] == [3]


def takes_future_of_float(future: TaskFuture[float]) -> None:
    assert_type(future.result(), float)


def test_mapping_gives_lists_of_futures() -> None:
    with Straight():
        futures = double.map([1, 2])
        assert_type(futures, FutureList[float])
        assert_type(futures.result(), list[float])
        assert_type(futures[0], TaskFuture[float])
        assert_type(describe.map([1], unit=unmapped("km")), FutureList[str])
        assert_type(double.map([1], return_state=True), list[State])
        lazy = double.map([1], lazy=True)
        assert_type(lazy, LazyMap[float])
        assert [future.result() for future in lazy] == [2.0]


def test_collections_keep_the_type_of_their_futures() -> None:
    with Straight():
        futures = double.map([1, 2])
        for future in as_completed(futures):
            assert_type(future, TaskFuture[float])
        done, not_done = wait(futures)
        assert done == set(futures)
        assert not_done == set()


def test_words_around_values_keep_their_type() -> None:
    assert_type(unmapped(1).value, int)
    assert_type(quote([1]).value, list[int])
    with Straight():
        assert_type(allow_failure(double.submit(1)).value, TaskFuture[float])


def test_methods() -> None:
    scale = Scale(3)
    assert_type(scale.apply(2), int)
    assert_type(scale.all([1]), list[int])
    with Straight():
        assert_type(scale.apply.submit(1), TaskFuture[int])
        assert_type(scale.apply.map([1, 2]), FutureList[int])
        assert scale.apply.map([1, 2]).result() == [3, 6]


def test_awaiting_a_future_gives_the_result() -> None:
    @flow(task_runner=Straight())
    async def main() -> float:
        value = await double.submit(4)
        assert_type(value, float)
        return value

    assert asyncio.run(main()) == 8.0


def test_hooks_take_what_they_are_given() -> None:
    def on_task(task: Task[..., Any], run: Any, state: State) -> None:
        seen.append(state.name)

    def on_flow(flow: Flow[..., Any], run: Any, state: State) -> None:
        seen.append(state.name)

    seen: list[str] = []

    @task(on_completion=[on_task], retry_delay_seconds=[0, 1], retries=2)
    def one() -> int:
        return 1

    @flow(on_completion=[on_flow], task_runner=Straight)
    def main() -> int:
        return one()

    assert_type(main(), int)
    assert seen == ["Completed", "Completed"]


def test_choosing_a_runner() -> None:
    @flow(task_runner="a word")
    def elsewhere() -> int:
        return 1

    assert_type(elsewhere.with_options(task_runner=Straight)(), int)
    runner = Straight()
    with use_runner(runner) as chosen, runner as entered:
        assert_type(chosen, TaskRunner)
        assert_type(entered, Straight)
    cancels: Literal["none", "cooperative", "kill"] = runner.capabilities.cancel
    assert cancels == "none"


def test_generators_can_be_tasks() -> None:
    with Straight():
        assert list(count.submit(3).result()) == [0, 1, 2]
        assert count_slowly.is_async
