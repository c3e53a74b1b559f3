"""C1: what a run knows about itself, and what it logs, prints and warns of."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from turnout import TaskFuture, flow, get_run_context, get_run_logger, task
from turnout.errors import CrashedRun, MissingContextError

from ._bodies import fail, identity
from ._kit import Conformance, Declare, Signals, run_script, runner_expression

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["RecordConformance"]


class RecordConformance(Conformance):
    """C1."""

    def test_C1_context_of_a_task(self, runner: TaskRunner) -> None:
        """A task knows ids and names of its flow run and task run."""
        kept: list[TaskFuture[dict[str, Any]]] = []

        @flow(task_runner=runner, name="census", flow_run_name="first census")
        def main() -> str | None:
            kept.append(tell_context.submit())
            return get_run_context().flow_run_id

        flow_run_id = main()
        (future,) = kept
        assert future.result() == {
            "flow_run_id": flow_run_id,
            "flow_run_name": "first census",
            "flow_name": "census",
            "task_run_id": future.task_run_id,
            "task_run_name": "tell_context-0",
            "task_name": "tell_context",
            "attempt": 1,
            "tags": frozenset(),
        }

    def test_C1_context_of_a_flow(self, runner: TaskRunner) -> None:
        """The body of a flow knows its flow run, and has no task run."""

        @flow(task_runner=runner, name="census")
        def main() -> tuple[Any, ...]:
            context = get_run_context()
            return context.flow_name, context.task_run_id, context.task_run_name, context.task_name, context.attempt

        assert main() == ("census", None, None, None, 1)

    def test_C1_calls_of_one_flow_run(self, runner: TaskRunner) -> None:
        """All calls of a flow run have its id, each has an id of its own, and another flow run has another."""

        @flow(task_runner=runner)
        def main() -> list[dict[str, Any]]:
            return [tell_context.submit().result() for _ in range(5)]

        first, second = main(), main()
        assert len({context["flow_run_id"] for context in first}) == 1
        assert len({context["task_run_id"] for context in first + second}) == 10
        assert first[0]["flow_run_id"] != second[0]["flow_run_id"]

    def test_C1_attempts_are_counted(self, runner: TaskRunner, signals: Signals) -> None:
        """`attempt` is 1 at first and rises with each retry."""

        @task(retries=2)
        def flaky() -> None:
            signals.note("attempt", str(get_run_context().attempt))
            raise ValueError("again")

        with runner:
            flaky.submit().exception()
        assert signals.notes("attempt") == ["1", "2", "3"]

    def test_C1_run_names_of_ones_own(self, runner: TaskRunner) -> None:
        """`task_run_name` is what the task sees as its name."""
        with runner:
            future = tell_context.with_options(task_run_name="tells of itself").submit()
            assert future.result()["task_run_name"] == "tells of itself"
            assert future.name == "tells of itself"

    def test_C1_context_of_a_nested_call(self, runner: TaskRunner) -> None:
        """A call that a task submits has a run name below that task's, and the same flow run."""

        @task
        def outer() -> tuple[dict[str, Any], str | None]:
            return tell_context.submit().result(), get_run_context().flow_run_id

        @flow(task_runner=runner)
        def main() -> Any:
            return outer.submit().result()

        inner, flow_run_id = main()
        assert inner["task_run_name"] == "outer-0/tell_context-0"
        assert inner["flow_run_id"] == flow_run_id

    def test_C1_context_of_an_async_task(self, runner: TaskRunner) -> None:
        """Async tasks that share a loop know each its own run, before and after they awaited."""

        @task
        async def names() -> set[str | None]:
            seen = set()
            for _ in range(5):
                seen.add(get_run_context().task_run_name)
                await asyncio.sleep(0.001)
            return seen

        with runner:
            futures = [names.submit() for _ in range(10)]
            assert [future.result() for future in futures] == [{future.name} for future in futures]

    def test_C1_no_context_outside(self) -> None:
        """Outside of a run, asking for context or logger is an error that says what to do."""
        for ask in (get_run_context, get_run_logger):
            with pytest.raises(MissingContextError, match="flow"):
                ask()

    def test_C1_records_reach_the_driver(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """A record arrives on "turnout.task_runs" with level, message, function and line."""
        caplog.set_level(logging.INFO, "turnout")
        with runner:
            log_words.submit("hello").result()
        (record,) = _of(caplog, "hello")
        assert (record.name, record.levelno, record.getMessage()) == (
            "turnout.task_runs",
            logging.WARNING,
            "says hello",
        )
        assert (record.funcName, Path(record.pathname)) == ("log_words", Path(__file__))
        assert record.lineno > 0

    def test_C1_records_carry_ids(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """A record carries ids and names of flow run and task run."""
        caplog.set_level(logging.INFO, "turnout")
        kept: list[TaskFuture[None]] = []

        @flow(task_runner=runner, flow_run_name="loud")
        def main() -> str | None:
            kept.append(log_words.submit("hello"))
            return get_run_context().flow_run_id

        flow_run_id = main()
        (record,) = _of(caplog, "hello")
        assert {name: vars(record)[name] for name in vars(record) if name.endswith(("run_id", "run_name"))} == {
            "flow_run_id": flow_run_id,
            "flow_run_name": "loud",
            "task_run_id": kept[0].task_run_id,
            "task_run_name": "log_words-0",
        }

    def test_C1_records_of_a_flow(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """A flow's own logger is "turnout.flow_runs", and its records carry the flow run's id and name."""
        caplog.set_level(logging.INFO, "turnout")

        @flow(task_runner=runner, flow_run_name="loud")
        def main() -> None:
            get_run_logger().info("says %s", "hello")

        main()
        (record,) = _of(caplog, "hello")
        assert (record.name, vars(record)["flow_run_name"]) == ("turnout.flow_runs", "loud")
        assert vars(record)["task_run_id"] is None

    def test_C1_records_come_in_order_before_the_end(
        self, runner: TaskRunner, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All records of a call have arrived, in order, when its future is done."""
        caplog.set_level(logging.INFO, "turnout")
        with runner:
            for _ in range(5):
                caplog.clear()
                log_numbers.submit(200).result()
                assert [record.getMessage() for record in _of(caplog, "number")] == [f"number {n}" for n in range(200)]

    def test_C1_records_of_calls_that_run_at_once(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """The records of each of many calls come in order, with that call's name."""
        caplog.set_level(logging.INFO, "turnout")
        with runner:
            futures = log_numbers.map([20] * 20)
            futures.result()
        for future in futures:
            own = [record for record in _of(caplog, "number") if vars(record)["task_run_name"] == future.name]
            assert [record.getMessage() for record in own] == [f"number {n}" for n in range(20)]

    def test_C1_levels_are_the_driver_s(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """The level that is set in the driver decides what is heard from tasks."""
        caplog.set_level(logging.DEBUG, "turnout")
        with runner:
            log_levels.submit().result()
        assert [record.levelname for record in _of(caplog, "level")] == ["DEBUG", "INFO", "ERROR"]
        caplog.clear()
        caplog.set_level(logging.ERROR, "turnout")
        with runner:
            log_levels.submit().result()
        assert [record.levelname for record in _of(caplog, "level")] == ["ERROR"]

    def test_C1_exceptions_in_records(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """`logger.exception` in a task arrives with the traceback's text."""
        caplog.set_level(logging.INFO, "turnout")

        def body() -> None:
            try:
                raise KeyError("lost key")
            except KeyError:
                get_run_logger().exception("went on without")

        with runner:
            task(body).submit().result()
        assert "went on without" in caplog.text
        assert "KeyError: 'lost key'" in caplog.text
        assert "Traceback" in caplog.text

    def test_C1_arguments_that_cannot_travel(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """A record about something that can't be pickled arrives as text, and harms nobody."""
        caplog.set_level(logging.INFO, "turnout")

        def body() -> str:
            import threading

            get_run_logger().info("holding %r", threading.Lock())
            return "done"

        with runner:
            assert task(body).submit().result() == "done"
        assert "holding <unlocked _thread.lock" in caplog.text

    def test_C1_records_of_a_call_that_fails(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """What a call logged before it raised arrives as well, for each attempt."""
        caplog.set_level(logging.INFO, "turnout")

        @task(retries=1)
        def body() -> None:
            get_run_logger().info("attempt number %d", get_run_context().attempt)
            raise ValueError("and out")

        with runner:
            body.submit().exception()
        assert [record.getMessage() for record in _of(caplog, "attempt number")] == [
            "attempt number 1",
            "attempt number 2",
        ]

    def test_C1_records_before_a_crash(
        self, runner: TaskRunner, caplog: pytest.LogCaptureFixture, declared: Declare
    ) -> None:
        """What a call logged before its worker died arrives, on runners that stream."""
        caplog.set_level(logging.INFO, "turnout")

        @task(crash_retries=0)
        def body() -> None:
            get_run_logger().info("last words")
            os._exit(1)

        if runner.capabilities.in_process:
            declared("in_process: there is no worker that could die")
            with runner:
                log_words.submit("last words").result()
        else:
            with runner:
                assert isinstance(body.submit().exception(), CrashedRun)
        if runner.capabilities.streams:
            assert "last words" in caplog.text
        else:
            declared("streams: records come with the outcome")

    def test_C1_prints_become_records(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """With `log_prints` each print is a record of level INFO, with the call's ids."""
        caplog.set_level(logging.INFO, "turnout")

        @task(log_prints=True)
        def body() -> None:
            print("printed", 1, 2, sep="-")
            print("printed again", end="")

        with runner:
            future = body.submit()
            future.result()
        records = _of(caplog, "printed")
        assert [record.getMessage() for record in records] == ["printed-1-2", "printed again"]
        assert {record.levelname for record in records} == {"INFO"}
        assert {vars(record)["task_run_name"] for record in records} == {future.name}

    def test_C1_prints_and_records_keep_their_order(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """Prints and records of one call come in the order in which they were made."""
        caplog.set_level(logging.INFO, "turnout")

        @task(log_prints=True)
        def body() -> None:
            for number in range(0, 20, 2):
                print("said", number)
                get_run_logger().info("said %d", number + 1)

        with runner:
            body.submit().result()
        assert [record.getMessage() for record in _of(caplog, "said")] == [f"said {number}" for number in range(20)]

    def test_C1_prints_to_files_are_left_alone(
        self, runner: TaskRunner, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        """`print(file=...)` goes to its file, `log_prints` or not."""
        caplog.set_level(logging.INFO, "turnout")
        path = tmp_path / "printed"

        @task(log_prints=True)
        def body() -> None:
            with path.open("w") as file:
                print("to the file", file=file)
            print("to standard error", file=sys.stderr)

        with runner:
            body.submit().result()
        assert path.read_text() == "to the file\n"
        assert _of(caplog, "to ") == []

    def test_C1_prints_of_a_flow(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """`@flow(log_prints=True)` makes records of the flow's prints, and its tasks' unless they say otherwise."""
        caplog.set_level(logging.INFO, "turnout")

        @task
        def inherits() -> None:
            print("printed by the task")

        @flow(task_runner=runner, log_prints=True)
        def main() -> None:
            print("printed by the flow")
            inherits.submit().result()

        main()
        assert [record.name for record in _of(caplog, "printed by")] == ["turnout.flow_runs", "turnout.task_runs"]

    def test_C1_other_prints_reach_standard_output(self, runner: TaskRunner, tmp_path: Path) -> None:
        """Without `log_prints` what a task prints appears on the driver's standard output and error, once."""
        done = run_script(_PRINTS.format(runner=runner_expression(runner)), tmp_path)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.split()) == sorted([*(f"printed-{number}" for number in range(10)), "end"])
        assert done.stderr.count("complained") == 1

    def test_C1_warnings_reach_the_driver(self, runner: TaskRunner) -> None:
        """A warning in a task is a warning in the driver, with category, text, file and line."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with runner:
                warn_of.submit("the cliff").result()
        (warning,) = [warning for warning in caught if "cliff" in str(warning.message)]
        assert warning.category is UserWarning
        assert Path(warning.filename) == Path(__file__)
        assert warning.lineno > 0

    def test_C1_warnings_keep_their_class(self, runner: TaskRunner) -> None:
        """A warning of a class of the user's own arrives as that class."""

        class Beware(UserWarning):
            pass

        def body() -> None:
            _warn(Beware("of the dog"))

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with runner:
                task(body).submit().result()
        assert [warning.category for warning in caught if "dog" in str(warning.message)] == [Beware]

    def test_C1_engine_tells_of_ends(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
        """The end of every run is a line on the standard loggers, at level ERROR for failures."""
        caplog.set_level(logging.INFO, "turnout")

        @flow(task_runner=runner, flow_run_name="told")
        def main() -> None:
            identity.submit(1).result()
            fail.submit("no luck").exception()

        main()
        lines = [(record.levelname, record.name, record.getMessage()) for record in caplog.records]
        assert ("INFO", "turnout.task_runs", "Task run 'identity-0' - Finished in state Completed()") in lines
        assert ("INFO", "turnout.flow_runs", "Flow run 'told' - Finished in state Completed()") in lines
        assert [
            line[:2] for line in lines if "'fail-0' - Finished in state Failed('ValueError: no luck')" in line[2]
        ] == [("ERROR", "turnout.task_runs")]


@task
def tell_context() -> dict[str, Any]:
    """Return what the run knows about itself, without its seed."""
    context = get_run_context()
    return {name: getattr(context, name) for name in context.__slots__ if name != "seed"}


@task
def log_words(words: str) -> None:
    """Log a warning."""
    get_run_logger().warning("says %s", words)


@task
def log_numbers(count: int) -> None:
    """Log numbers in order."""
    logger = get_run_logger()
    for number in range(count):
        logger.info("number %d", number)


@task
def log_levels() -> None:
    """Log at three levels."""
    logger = get_run_logger()
    logger.debug("level debug")
    logger.info("level info")
    logger.error("level error")


@task
def warn_of(what: str) -> None:
    """Warn."""
    _warn(UserWarning(f"beware of {what}"))


def _warn(warning: Warning) -> None:
    # A worker may be a fork of a process in which warnings are errors.
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(warning, stacklevel=1)


def _of(caplog: pytest.LogCaptureFixture, words: str) -> list[logging.LogRecord]:
    """Return the records about something, without those in which the engine tells how runs ended."""
    told = [record for record in caplog.records if words in record.getMessage()]
    return [record for record in told if " - Finished in state " not in record.getMessage()]


_PRINTS = """
import sys
from turnout import flow, task

@task
def say(number):
    # In one piece: what threads print at once is mixed between pieces.
    print(f"printed-{{number}}\\n", end="")
    if number == 3:
        print("complained", file=sys.stderr)

@flow(task_runner={runner})
def main():
    say.map(range(10)).result()

main()
print("end")
"""
