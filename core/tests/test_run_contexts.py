"""What a run can ask about itself, where no runner is needed: called tasks, flows, threads and variables."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from turnout import (
    MissingContextError,
    RunContext,
    SerializationError,
    cancelled,
    flow,
    get_run_context,
    get_run_logger,
    register_context_variable,
    tags,
    task,
    use_runner,
)
from turnout import _context as context_module
from turnout._context import registered_values, seed_of, set_registered
from turnout.runner import Batch, Host, TaskRunner


class Nowhere(TaskRunner):
    """Is chosen, and never started: nothing here is submitted."""

    def start(self, host: Host) -> None:
        raise AssertionError("nothing is submitted")

    def slots(self) -> int:
        return 1

    def submit(self, batch: Batch) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture(autouse=True)
def _nowhere() -> Iterator[None]:
    with use_runner(Nowhere()):
        yield


@task(tags=["always"])
def describe(value: Any = None) -> RunContext:
    return get_run_context()


@flow
def around() -> tuple[RunContext, RunContext, RunContext]:
    return get_run_context(), describe(), describe(1)


# Contexts


@pytest.mark.parametrize("ask", [get_run_context, get_run_logger])
def test_there_is_nothing_to_ask_outside_of_a_run(ask: Any) -> None:
    with pytest.raises(MissingContextError, match="There is no run here"):
        ask()


def test_a_task_called_alone_has_no_flow() -> None:
    context = describe()
    assert (context.flow_run_id, context.flow_run_name, context.flow_name) == (None, None, None)
    assert (context.task_name, context.task_run_name, context.attempt) == ("describe", "describe-0", 1)
    assert context.tags == {"always"}
    assert context.task_run_id == "//describe-0"


def test_a_flow_and_its_calls_know_each_other() -> None:
    body, first, second = around()
    assert body.flow_name == "around"
    assert (body.task_run_id, body.task_run_name, body.task_name) == (None, None, None)
    for call in (first, second):
        assert (call.flow_run_id, call.flow_run_name) == (body.flow_run_id, body.flow_run_name)
    assert [call.task_run_name for call in (first, second)] == ["describe-0", "describe-1"]
    assert len({body.seed, first.seed, second.seed}) == 3


def test_ids_differ_from_run_to_run_and_seeds_do_not() -> None:
    one, two = around(), around()
    for before, after in zip(one, two, strict=True):
        assert before.seed == after.seed
        assert before.flow_run_id != after.flow_run_id
    assert one[1].task_run_id != two[1].task_run_id


def test_seeds_are_64_bits_of_the_place() -> None:
    seeds = {seed_of(f"flow/task-{number}") for number in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**63
    assert seed_of("around/describe-0") == around()[1].seed


def test_a_nested_call_is_named_after_the_one_around_it() -> None:
    @task
    def outer() -> list[str | None]:
        return [get_run_context().task_run_name, describe().task_run_name, describe().task_run_name]

    @flow
    def main() -> list[str | None]:
        return outer()

    assert main() == ["outer-0", "outer-0/describe-0", "outer-0/describe-1"]


def test_contexts_can_not_be_changed_and_pickle() -> None:
    context = describe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.attempt = 2  # type: ignore[misc]  # what the test is about
    assert pickle.loads(pickle.dumps(context)) == context


def test_each_attempt_knows_its_number() -> None:
    attempts: list[int] = []

    @task(retries=2)
    def flaky() -> int:
        attempts.append(get_run_context().attempt)
        if len(attempts) < 3:
            raise ValueError
        return len(attempts)

    assert flaky() == 3
    assert attempts == [1, 2, 3]


def test_each_attempt_of_a_flow_knows_its_number() -> None:
    attempts: list[int] = []

    @flow(retries=1)
    def flaky() -> None:
        attempts.append(get_run_context().attempt)
        if len(attempts) < 2:
            raise ValueError

    flaky()
    assert attempts == [1, 2]


def test_the_context_ends_with_the_run() -> None:
    around()
    with pytest.raises(MissingContextError):
        get_run_context()


def test_a_thread_of_a_body_has_no_run_unless_it_is_given_one() -> None:
    names: list[str | None] = []

    def ask() -> None:
        try:
            names.append(get_run_context().task_run_name)
        except MissingContextError:
            names.append("no run")

    @task
    def start_threads() -> None:
        copy = contextvars.copy_context()
        for target in (ask, lambda: copy.run(ask)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()

    start_threads()
    assert names == ["no run", "start_threads-0"]


def test_async_tasks_on_one_loop_know_which_they_are() -> None:
    @task
    async def who(number: int) -> tuple[int, str | None]:
        await asyncio.sleep(0)
        return number, get_run_context().task_run_name

    @flow
    async def main() -> list[tuple[int, str | None]]:
        return await asyncio.gather(*[who(number) for number in range(5)])

    assert asyncio.run(main()) == [(number, f"who-{number}") for number in range(5)]


# Loggers


def test_records_carry_the_ids_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    @task
    def speak() -> None:
        get_run_logger().warning("from the %s", "task")

    @flow
    def main() -> str | None:
        get_run_logger().warning("from the flow")
        speak()
        return get_run_context().flow_run_id

    with caplog.at_level(logging.WARNING):
        flow_run_id = main()
    flow_record, task_record = caplog.records
    assert (flow_record.name, flow_record.getMessage()) == ("turnout.flow_runs", "from the flow")
    assert (task_record.name, task_record.getMessage()) == ("turnout.task_runs", "from the task")
    assert vars(flow_record)["flow_run_id"] == vars(task_record)["flow_run_id"] == flow_run_id
    assert vars(flow_record)["task_run_name"] is None
    assert vars(task_record)["task_run_name"] == "speak-0"
    assert vars(task_record)["task_run_id"] == f"{flow_run_id}/main/speak-0"


def test_prints_become_records_of_their_run(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    @task(log_prints=True)
    def talk() -> None:
        print("a", 1, sep="-")
        quiet()
        print("b", end="")

    @task(log_prints=False)
    def quiet() -> None:
        print("aside")

    with caplog.at_level(logging.INFO, "turnout.task_runs"):
        talk()
        print("afterwards")
    said = [(vars(record)["task_run_name"], record.getMessage()) for record in caplog.records if record.levelno == 20]
    assert [entry for entry in said if "Finished" not in entry[1]] == [("talk-0", "a-1"), ("talk-0", "b")]
    assert capsys.readouterr().out == "aside\nafterwards\n"


# Asked to stop


def test_nobody_is_cancelled_outside_of_a_run() -> None:
    assert cancelled() is False
    assert task(cancelled)() is False


def test_a_flow_that_ends_badly_tells_the_threads_of_its_body() -> None:
    told: list[bool] = []
    raised, over = threading.Event(), threading.Event()

    def look_when_raised() -> None:
        told.append(cancelled())
        raised.wait(30)
        told.append(cancelled())
        over.set()

    @flow
    def main() -> None:
        copy = contextvars.copy_context()
        threading.Thread(target=copy.run, args=(look_when_raised,)).start()
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        main()
    raised.set()
    assert over.wait(30)
    assert told[1]


# Tags


def test_tags_add_up_and_go_with_their_block() -> None:
    with tags("a", "b") as outer:
        with tags("c") as inner:
            assert inner == {"a", "b", "c"}
            assert describe().tags == {"always", "a", "b", "c"}
        with pytest.raises(LookupError), tags("d"):
            raise LookupError
        assert outer == {"a", "b"}
        assert describe().tags == {"always", "a", "b"}
    assert describe().tags == {"always"}


def test_tags_of_a_flow_reach_its_calls() -> None:
    with tags("nightly"):
        body, call, _ = around()
    assert body.tags == {"nightly"}
    assert call.tags == {"nightly", "always"}


def test_tags_belong_to_one_thread() -> None:
    seen: list[frozenset[str]] = []
    with tags("here"):
        thread = threading.Thread(target=lambda: seen.append(describe().tags))
        thread.start()
        thread.join()
    assert seen == [frozenset({"always"})]


# Context variables


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> contextvars.ContextVar[str]:
    monkeypatch.setattr(context_module, "_registered", {})
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("turnout_tests_city")
    register_context_variable(variable)
    register_context_variable(variable)  # twice is fine
    return variable


def test_another_variable_of_the_name_is_refused(registered: contextvars.ContextVar[str]) -> None:
    with pytest.raises(ValueError, match=r"named 'turnout_tests_city' is registered\. Give this one a name of its own"):
        register_context_variable(contextvars.ContextVar("turnout_tests_city"))


def test_values_of_registered_variables_are_taken_from_a_context(registered: contextvars.ContextVar[str]) -> None:
    context = contextvars.Context()
    assert registered_values(context) == {}
    context.run(registered.set, "Bern")
    assert registered_values(context) == {"turnout_tests_city": "Bern"}
    other = contextvars.Context()
    other.run(set_registered, {"turnout_tests_city": "Genoa"})
    assert other[registered] == "Genoa"


def test_a_worker_makes_the_variables_that_it_does_not_know(registered: contextvars.ContextVar[str]) -> None:
    context = contextvars.Context()
    context.run(set_registered, {"turnout_tests_unknown": 7})
    assert registered_values(context) == {"turnout_tests_unknown": 7}


def test_registered_variables_pickle_by_name_and_others_do_not(registered: contextvars.ContextVar[str]) -> None:
    assert pickle.loads(pickle.dumps(registered)) is registered
    others: list[contextvars.ContextVar[str]] = [
        contextvars.ContextVar("turnout_tests_other"),
        contextvars.ContextVar("turnout_tests_city"),
    ]
    for other in others:
        with pytest.raises(SerializationError, match=r"Call turnout\.register_context_variable\(variable\) once"):
            pickle.dumps(other)


def test_what_a_called_task_sets_stays_in_it() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("turnout_tests_scratch", default="before")

    @task
    def change() -> str:
        seen = variable.get()
        variable.set("inside")
        return seen

    variable.set("outside")
    assert change() == "outside"
    assert variable.get() == "outside"
