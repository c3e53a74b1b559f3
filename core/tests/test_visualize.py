"""Dry runs: which calls and needs they note, that no task runs, and what they say to bodies that look at results."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import os
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from turnout import (
    FutureList,
    Graph,
    MappingLengthMismatch,
    MappingMissingIterable,
    ParameterBindError,
    ParameterTypeError,
    StateType,
    TaskFuture,
    TaskRunner,
    VisualizationError,
    allow_failure,
    as_completed,
    flow,
    get_run_context,
    quote,
    task,
    unmapped,
    use_runner,
    wait,
)
from turnout.runner import Batch, Host


class Unstartable(TaskRunner):
    """A runner that no dry run may start."""

    def __init__(self, password: str | None = None) -> None:
        self.password = password

    def start(self, host: Host) -> None:
        raise AssertionError("a dry run started a runner")

    def slots(self) -> int:
        return 1

    def submit(self, batch: Batch) -> None:
        raise AssertionError("a dry run ran a call")

    def stop(self) -> None:
        pass


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a dry run ran what it must not run")


@pytest.fixture(autouse=True)
def _no_runner_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TURNOUT_TASK_RUNNER", raising=False)


@task
def load(*args: Any, **kwargs: Any) -> Any:
    return never()


@task
def add(*args: Any, **kwargs: Any) -> Any:
    return never()


@task
def save(*args: Any, **kwargs: Any) -> Any:
    return never()


@task(viz_return_value=["a", "b", "c"])
def names(*args: Any) -> Any:
    return never()


def drawn(body: Callable[..., Any], *args: Any, **options: Any) -> list[str]:
    """Return the lines of the mermaid text of a flow, without those around its own box."""
    lines = flow(task_runner=Unstartable, name="main", **options)(body).visualize(*args).mermaid().splitlines()
    assert lines[:2] == ["flowchart TD", '    subgraph f0["main on Unstartable()"]']
    lines.remove("    end")
    return [line.strip() for line in lines[2:] if "direction" not in line]


# What is noted


def test_a_result_that_is_an_argument_is_an_edge() -> None:
    assert drawn(lambda: add.submit(load.submit(1))) == ['n0("load")', 'n1("add")', "n0 --> n1"]


def test_futures_are_found_wherever_a_run_finds_them() -> None:
    @dataclass
    class Pair:
        left: Any
        right: Any

    def body() -> None:
        one = load.submit(1)
        two = save.submit(2)
        add.submit([{"x": one}], key=Pair((two,), None))

    assert drawn(body)[3:] == ["n0 --> n2", "n1 --> n2"]


def test_what_is_quoted_is_not_waited_for() -> None:
    assert drawn(lambda: add.submit(quote([load.submit(1)]))) == ['n0("load")', 'n1("add")']


def test_what_is_quoted_may_stand_beside_it() -> None:
    def body() -> None:
        loaded = load.submit(1)
        add.submit(quote([loaded]), loaded)
        add.submit(loaded, quote([loaded]))

    assert drawn(body)[3:] == ["n0 --> n1", "n0 --> n2"]


def test_a_result_that_is_quoted_is_a_result_all_the_same() -> None:
    assert "n0 --> n1" in drawn(lambda: add.submit(quote([load.submit(1).result()])))


def test_wait_for_is_dashed() -> None:
    assert drawn(lambda: add.submit(1, wait_for=[load.submit(1)]))[2:] == ["n0 -.-> n1"]


def test_wait_for_says_nothing_new_of_a_result_that_is_used() -> None:
    def body() -> None:
        loaded = load.submit(1)
        add.submit(loaded, wait_for=loaded)

    assert drawn(body)[2:] == ["n0 --> n1"]


def test_wait_for_refuses_what_a_run_refuses() -> None:
    with pytest.raises(TypeError, match="wait_for of 'add' holds a value of type int"):
        drawn(lambda: add.submit(wait_for=3))


def test_an_allowed_failure_is_told() -> None:
    assert drawn(lambda: add.submit(allow_failure(load.submit(1))))[2:] == ['n0 -->|"may fail"| n1']
    assert drawn(lambda: add.submit(wait_for=allow_failure(load.submit(1))))[2:] == ['n0 -.->|"may fail"| n1']


def test_a_failure_that_is_allowed_in_one_place_only_is_not() -> None:
    def body() -> None:
        loaded = load.submit(1)
        add.submit(loaded, allow_failure(loaded))
        add.submit(allow_failure(loaded), loaded)

    assert drawn(body)[3:] == ["n0 --> n1", "n0 --> n2"]


def test_parts_of_results_are_told() -> None:
    def body() -> None:
        loaded = load.submit(1)
        add.submit(loaded["stops"][0], loaded["name"])
        save.submit(loaded["stops"], loaded)

    assert drawn(body)[3:] == ['n0 -->|"stops.0, name"| n1', "n0 --> n2"]


def test_of_many_parts_a_few_are_told() -> None:
    def body() -> None:
        loaded = load.submit(1)
        for index in range(100):
            add.submit(loaded[index])

    assert drawn(body) == ['n0("load")', 'n1("add x 100")', 'n0 -->|"0, 1, 2, ..."| n1']


def test_a_task_that_names_its_runner_is_labelled() -> None:
    elsewhere = load.with_options(task_runner="tcp://me:secret@host:1")
    same = add.with_options(task_runner=Unstartable)
    assert drawn(lambda: same.submit(elsewhere.submit())) == [
        'n0("load<br/>on tcp#58;//#42;#42;#42;#64;host#58;1")',
        'n1("add")',
        "n0 --> n1",
    ]


def test_calls_in_a_block_of_a_runner_are_labelled_and_it_is_not_started() -> None:
    def body() -> None:
        with Unstartable(password="open sesame"):
            loaded = load.submit(1)
        save.submit(loaded)

    assert drawn(body) == [
        "n0(\"load<br/>on Unstartable(password='***')\")".replace("'", "#39;").replace("***", "#42;#42;#42;"),
        'n1("save")',
        "n0 --> n1",
    ]


def test_a_task_that_is_called_is_a_node() -> None:
    assert drawn(lambda: save(add(load(1), 2))) == ['n0("load")', 'n1("add")', 'n2("save")', "n0 --> n1", "n1 --> n2"]


def test_a_state_is_completed() -> None:
    def body() -> None:
        states = [load(1, return_state=True), load.submit(1, return_state=True), *load.map([1], return_state=True)]
        assert [state.name for state in states] == ["Completed"] * 3
        add.submit([state.result() for state in states])

    assert drawn(body)[-3:] == ["n0 --> n3", "n1 --> n3", "n2 --> n3"]


def test_methods_are_tasks_too() -> None:
    class Line:
        @task
        def length(self, stop: str) -> int:
            never()
            return len(stop)

        @flow
        def lengths(self, stops: list[str]) -> Any:
            return self.length.map(stops)

    assert 'n0("length x 2")' in Line().lengths.visualize(["Oslo", "Rome"]).mermaid()


def test_arguments_are_bound_as_for_a_run() -> None:
    with pytest.raises(ParameterBindError):
        flow(lambda x: x).visualize()  # type: ignore[call-arg]


# Maps


def test_a_map_is_one_node() -> None:
    assert drawn(lambda: add.submit(load.map(range(1000)))) == ['n0("load x 1,000")', 'n1("add")', "n0 --> n1"]


def test_a_map_over_the_futures_of_another_follows_it() -> None:
    assert drawn(lambda: add.map(load.map([1, 2]), 7))[2:] == ["n0 --> n1"]


def test_a_map_over_a_result_has_any_number_of_calls() -> None:
    expected = ['n0("load")', 'n1("add x ?")', "n0 --> n1"]
    assert drawn(lambda: add.map(load.submit(1))) == expected
    assert drawn(lambda: add.map(load(1))) == expected
    assert drawn(lambda: add.map(key=load.submit(1))) == expected
    assert drawn(lambda: add.map(7, load.submit(1), [1, 2, 3])) == expected
    assert drawn(lambda: list(add.map(load.submit(1), lazy=True))) == expected
    assert drawn(lambda: add.map(load.submit(1)["rows"]))[2:] == ['n0 -->|"rows"| n1']
    assert drawn(lambda: add.map(allow_failure(load.submit(1))))[2:] == ['n0 -->|"may fail"| n1']


def test_any_number_of_calls_stays_any_number() -> None:
    def body() -> None:
        loaded = load.map(names.with_options(viz_return_value=...).submit())
        added = add.map(loaded, unmapped([1, 2]))
        save.map(added.result())
        for future in added:
            save.submit(future, 1)
            save.submit(future.result()["x"], 2)
        save.submit(added)

    assert [line for line in drawn(body) if line.startswith("n") and "->" not in line] == [
        'n0("names")',
        'n1("load x ?")',
        'n2("add x ?")',
        'n3("save x ?")',
        'n4("save x ?")',
        'n5("save x ?")',
        'n6("save")',
    ]


def test_any_number_of_calls_and_another_one() -> None:
    def body() -> None:
        loaded = load.map(names.with_options(viz_return_value=...).submit())
        add.map([*loaded, save.submit(1)])

    assert drawn(body)[2:] == ['n2("save")', 'n3("add x ?")', 'n4("add")', "n0 --> n1", "n1 --> n3", "n2 --> n4"]


def test_any_number_of_calls_is_walked_over_in_step_with_a_list() -> None:
    def body() -> None:
        save.map([1, 2, 3], load.map(names.with_options(viz_return_value=...).submit()))

    assert drawn(body)[2] == 'n2("save x ?")'


def test_a_map_over_a_result_with_a_value_has_that_many_calls() -> None:
    expected = ['n0("names")', 'n1("load x 3")', "n0 --> n1"]
    assert drawn(lambda: load.map(names.submit())) == expected
    assert drawn(lambda: load.map(names())) == expected
    assert drawn(lambda: load.map(names.submit().result(), 1)) == expected


def test_a_value_that_is_no_list_is_given_whole() -> None:
    one = names.with_options(viz_return_value=1)
    assert drawn(lambda: load.map([1, 2], one.submit())) == ['n0("names")', 'n1("load x 2")', "n0 --> n1"]


def test_what_a_map_is_given_whole_is_no_number_of_calls() -> None:
    def body() -> None:
        load.map([1, 2], unmapped(names.with_options(viz_return_value=...).submit()))

    assert drawn(body) == ['n0("names")', 'n1("load x 2")', "n0 --> n1"]


def test_results_in_what_is_given_whole_are_found() -> None:
    def body() -> None:
        add.map([1, 2], unmapped([load(index) for index in range(100)]))

    assert drawn(body)[2:] == ["n0 --> n1"]


def test_a_map_is_refused_as_in_a_run() -> None:
    with pytest.raises(MappingLengthMismatch):
        drawn(lambda: add.map([1, 2], names.submit()))
    with pytest.raises(MappingMissingIterable):
        drawn(lambda: add.map(7))


def test_a_lazy_map_is_gone_through() -> None:
    def body() -> None:
        for future in as_completed(load.map(range(3000), lazy=True)):
            add.submit(future)

    assert drawn(body) == ['n0("load x 3,000")', 'n1("add x 3,000")', "n0 --> n1"]


# Flows of all kinds


def test_a_subflow_is_a_box() -> None:
    @flow
    def inner(x: Any) -> Any:
        return add.submit(x)

    def body() -> None:
        save.submit(inner(load.submit(1)))

    assert drawn(body) == [
        'n0("load")',
        'n2("save")',
        'subgraph f1["inner"]',
        'n1("add")',
        "end",
        "n0 --> n1",
        "n1 --> n2",
    ]


def test_a_subflow_that_names_its_runner_is_labelled() -> None:
    @flow(task_runner="process")
    def inner() -> None:
        load.submit(1)

    assert 'subgraph f1["inner on process"]' in drawn(inner)
    with use_runner(Unstartable):
        assert 'subgraph f1["inner"]' in drawn(inner)


def test_a_subflow_waits_for_what_it_does_not_use() -> None:
    @flow
    def inner(x: Any) -> None:
        load.submit(1)

    assert drawn(lambda: inner(add.submit(1)))[-1] == "n0 --> f1"


def test_a_subflow_that_submits_nothing_is_a_node() -> None:
    @flow
    def inner(x: Any) -> Any:
        return x

    def body() -> None:
        save.submit(inner(load.submit(1)))

    assert drawn(body) == ['n0("load")', 'n1("save")', 'n2[["inner"]]', "n0 --> n1", "n0 --> n2"]


def test_a_flow_that_submits_nothing_is_a_node() -> None:
    assert flow(name="main")(lambda: None).visualize().mermaid() == 'flowchart TD\n    n0[["main"]]'


def test_a_subflow_of_any_number_of_runs() -> None:
    @flow
    def inner(x: Any) -> None:
        add.submit(1)

    def body() -> None:
        for loaded in load.map(load(1)):
            inner(loaded)

    assert {'subgraph f1["inner x ?"]', 'n2("add x ?")'} <= set(drawn(body))


def test_a_subflow_gives_its_state() -> None:
    @flow
    def inner() -> Any:
        return load.submit(1)

    def body() -> None:
        add.submit(inner(return_state=True).result())

    assert drawn(body)[-1] == "n0 --> n1"


def test_a_flow_with_checked_parameters() -> None:
    pytest.importorskip("pydantic")

    @flow(validate_parameters=True)
    def inner(x: int) -> None:
        add.submit(x)

    assert drawn(lambda: inner(load(1)))[-1] == "n0 --> n1"
    with pytest.raises(ParameterTypeError):
        drawn(inner, "one")


async def body_that_awaits() -> Any:
    first = load.submit(1)
    second = add(await first)
    await asyncio.sleep(0)

    @flow
    async def inner(x: Any) -> Any:
        return await save.submit(x)

    @task
    async def later(x: Any) -> Any:
        never()

    done = await asyncio.gather(inner(second), inner(second))
    return later.submit(await later(done))


AWAITED = [
    'n0("load")',
    'n1("add")',
    'n3("later")',
    'n4("later")',
    'subgraph f1["inner x 2"]',
    'n2("save x 2")',
    "end",
    "n0 --> n1",
    "n1 --> n2",
    "n2 --> n3",
    "n3 --> n4",
]


def test_an_async_flow() -> None:
    assert drawn(body_that_awaits) == AWAITED


def test_an_async_flow_where_a_loop_runs() -> None:
    async def ask() -> list[str]:
        return drawn(body_that_awaits)

    assert asyncio.run(ask()) == AWAITED


def test_a_generator_flow_is_walked_over() -> None:
    def body() -> Iterator[Any]:
        for number in range(3):
            yield load.submit(number)
        save.submit(1)

    assert drawn(body) == ['n0("load x 3")', 'n1("save")']


def test_an_async_generator_flow_is_walked_over() -> None:
    async def body() -> AsyncIterator[Any]:
        for number in range(3):
            yield load.submit(number)
        save.submit(1)

    assert drawn(body) == ['n0("load x 3")', 'n1("save")']


def test_items_of_a_subflow_are_results() -> None:
    @flow
    def inner() -> Iterator[Any]:
        yield load.submit(1)

    def body() -> None:
        for item in inner():
            add.submit(item)

    assert drawn(body)[-1] == "n0 --> n1"


def test_a_thread_with_the_flow_s_context_is_in_the_flow() -> None:
    def body() -> None:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(load.submit, 1))
        thread.start()
        thread.join()

    assert drawn(body) == ['n0("load")']


# Nothing runs


def test_no_hook_runs_and_nothing_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    bodies = []

    def hooks(*ends: str) -> dict[str, Any]:
        return {f"on_{end}": [never] for end in ends}

    @task(**hooks("running", "completion", "failure"), task_run_name=never)
    def hooked() -> None:
        never()

    @flow(
        **hooks("running", "completion", "failure", "crashed", "cancellation"),
        retries=2,
        retry_delay_seconds=3600,
        flow_run_name=never,
    )
    def failing() -> None:
        bodies.append(hooked.submit())
        raise OSError("no luck")

    with caplog.at_level("DEBUG", logger="turnout"), pytest.raises(OSError, match="no luck"):
        failing.visualize()
    assert len(bodies) == 1
    assert caplog.records == []


def test_callbacks_are_not_called() -> None:
    called: list[TaskFuture[Any]] = []

    def body() -> None:
        load.submit(1).add_done_callback(called.append)

    assert drawn(body) == ['n0("load")']
    assert called == []


def test_a_time_limit_is_none() -> None:
    main = threading.current_thread()

    def body() -> None:
        assert threading.current_thread() is main, "a time limit needs a thread of its own"

    drawn_ = flow(timeout_seconds=0.001)(body).visualize()
    assert isinstance(drawn_, Graph)


def test_it_belongs_to_no_run_around_it() -> None:
    @flow
    def inner() -> None:
        load.submit(get_run_context().flow_run_name)

    @flow(task_runner=Unstartable)
    def outer() -> str:
        return inner.visualize().mermaid()

    assert outer() == inner.visualize().mermaid()


def test_what_waits_is_over() -> None:
    def body() -> None:
        futures = load.map([1, 2])
        assert isinstance(futures, FutureList)
        assert futures.wait()
        assert wait(futures, timeout=0).not_done == set()
        assert set(as_completed(futures)) == set(futures)
        (first, _) = futures
        assert first.done()
        assert first.exception(timeout=0) is None
        assert not first.cancel()
        assert not first.cancelled()
        assert not first.running()

    assert drawn(body) == ['n0("load x 2")']


# Looking into results


USES: dict[str, Callable[[Any], object]] = {
    "walks over": iter,
    "measures": len,
    "searches": lambda result: 3 in result,
    "asks for the truth of": bool,
    "compares": lambda result: result == 3,
    "computes with": lambda result: 3 - result,
    "calls": lambda result: result.upper(),
    "enters": lambda result: result.__enter__(),
    "changes": lambda result: result.__setitem__(0, 1),
    "reads": os.fspath,
}


@pytest.mark.parametrize("what", USES)
def test_looking_into_a_result_is_an_error(what: str) -> None:
    with pytest.raises(VisualizationError) as caught:
        drawn(lambda: USES[what](load.submit(1).result()))
    assert str(caught.value) == (
        f"The flow's body {what} the result of 'load-0', which is not there: no task runs when a flow is visualized. "
        "Say what the result shall be then: @task(viz_return_value=...) on 'load'."
    )


@pytest.mark.parametrize(
    "looked", [int, float, range, sorted, lambda result: f"{result + 1}", lambda result: [*result]]
)
def test_no_look_goes_through(looked: Callable[[Any], object]) -> None:
    with pytest.raises(VisualizationError, match="the result of 'load-0'"):
        drawn(lambda: looked(load(1)))


def test_an_error_that_the_body_catches_comes_back() -> None:
    def body() -> None:
        try:
            number = int(load.submit(1).result())
        except Exception:
            number = 0
        add.submit(number)

    with pytest.raises(VisualizationError, match="the result of 'load-0'"):
        drawn(body)


def test_what_else_a_body_raises_is_told_of_visualizing() -> None:
    with pytest.raises(TypeError) as caught:
        drawn(lambda: memoryview(load.submit(1).result()))
    (note,) = caught.value.__notes__
    assert note == (
        "Raised while 'main' was visualized. No task runs then, and a result is one that is not known, unless its task "
        "says what it shall be: @task(viz_return_value=...)."
    )


def test_parts_of_a_result_can_be_handed_on() -> None:
    def body() -> None:
        result = load.submit(1).result()
        add.submit(result["stops"].first, other=[result[0]])
        save.submit(load.submit(1)["x"].result())

    assert drawn(body)[-2:] == ['n0 -->|"stops.first, 0"| n1', 'n2 -->|"x"| n3']


def test_a_result_can_be_printed_and_be_in_a_set(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        result = load.submit(1).result()
        print(result, f"{result:.2f}", result["x"][0])
        assert len({result, load.submit(2).result()}) == 2
        assert copy.copy(result) is not None

    drawn(body)
    assert capsys.readouterr().out == "<result of load-0> <result of load-0> <result of load-0: x.0>\n"


def test_a_value_can_be_looked_into() -> None:
    def body() -> None:
        for name in names.submit().result():
            load.submit(name)

    assert drawn(body) == ['n0("names")', 'n1("load x 3")']


def test_a_value_stays_at_home() -> None:
    """It may be large, and need not pickle."""

    @task(viz_return_value=threading.Lock())
    def locked() -> None:
        never()

    there = pickle.loads(cloudpickle.dumps(locked))
    assert there.name == "locked"
    assert there.viz_return_value is ...
    assert locked.with_options(name="same").viz_return_value is locked.viz_return_value


def test_none_is_a_value() -> None:
    nothing = names.with_options(viz_return_value=None)

    def body() -> None:
        assert nothing.submit().result() is None
        assert nothing() is None

    assert drawn(body) == ['n0("names")', 'n1("names")']


def test_a_value_that_is_handed_on_whole_is_known_again() -> None:
    def body() -> None:
        first, second = names(), names()
        load.submit(first)
        add.submit({"x": second})
        assert first == second == ["a", "b", "c"]
        first.append("d")

    assert drawn(body)[4:] == ["n0 --> n2", "n1 --> n3"]
    assert names.viz_return_value == ["a", "b", "c"]


def test_objects_that_can_be_changed_are_known_again() -> None:
    @dataclass
    class Table:
        rows: list[int]

    table = Table([1, 2])
    tables = names.with_options(viz_return_value=table)

    def body() -> None:
        first, second = tables(), tables()
        load.submit(first)
        add.submit(second)
        assert first == second == table

    assert drawn(body)[4:] == ["n0 --> n2", "n1 --> n3"]


class Stubborn:
    """Can be changed, and not be copied."""

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> Stubborn:
        raise TypeError("no")


@pytest.mark.parametrize(
    ("value", "edges"), [(Stubborn(), ["n0 --> n1"]), (("a", "b"), []), (len, []), (StateType.FAILED, [])]
)
def test_objects_that_may_stand_anywhere_are_not_known_again(value: Any, edges: list[str]) -> None:
    one = names.with_options(viz_return_value=value)

    def body() -> None:
        assert one() is value
        load.submit(value)

    assert drawn(body)[2:] == edges


def test_futures_of_another_flow_are_no_part_of_the_graph() -> None:
    kept: list[TaskFuture[Any]] = []
    drawn(lambda: kept.append(load.submit(1)))
    assert drawn(lambda: add.submit(kept)) == ['n0("add")']


def test_a_body_may_read_and_write(tmp_path: Path) -> None:
    """It is the user's code, and what it does besides calls of tasks it does."""
    flow(lambda: (tmp_path / "file").write_text("text")).visualize()
    assert (tmp_path / "file").read_text() == "text"
