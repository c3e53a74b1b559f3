"""E2: what can't travel is an error that says what, of which task, and where in it."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from turnout import StateType, TaskFuture, flow, task
from turnout.errors import SerializationError

from ._bodies import add, identity, note
from ._kit import Conformance, Declare, Signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.runner import TaskRunner

__all__ = ["UnpicklableConformance"]


class UnpicklableConformance(Conformance):
    """E2."""

    def test_E2_argument(self, runner: TaskRunner, declared: Declare) -> None:
        """An argument that can't be pickled: the error names task, parameter and type."""
        with runner:
            future = open_door.submit(threading.Lock())
            if _works(runner, future, declared):
                return
            assert _complaint(future, "open_door", "key", "lock")

    def test_E2_keyword_argument(self, runner: TaskRunner, declared: Declare) -> None:
        """The same for an argument that was given by name."""
        with runner:
            future = open_door.submit(1, spare=threading.Lock())
            if _works(runner, future, declared):
                return
            assert _complaint(future, "open_door", "spare", "lock")

    def test_E2_part_of_an_argument(self, runner: TaskRunner, declared: Declare) -> None:
        """A part deep inside an argument: the error says where."""
        with runner:
            future = open_door.submit({"doors": [1, 2, {"front": threading.Lock()}]})
            if _works(runner, future, declared):
                return
            assert _complaint(future, "open_door", "key", "doors", "front", "lock")

    def test_E2_attribute_of_an_argument(self, runner: TaskRunner, declared: Declare) -> None:
        """A part that is an attribute of an object: the error names the attribute."""
        with runner:
            future = open_door.submit(Holder(threading.Lock()))
            if _works(runner, future, declared):
                return
            assert _complaint(future, "open_door", "key", "held", "lock")

    def test_E2_one_of_many(self, runner: TaskRunner, declared: Declare) -> None:
        """One bad item among 500: the error names its index."""
        with runner:
            future = open_door.submit([*range(321), threading.Lock(), *range(178)])
            if _works(runner, future, declared):
                return
            assert _complaint(future, "open_door", "key", "321", "lock")

    def test_E2_argument_that_refuses(self, runner: TaskRunner, declared: Declare) -> None:
        """An argument whose own pickling method raises: the error shows what it said."""
        with runner:
            future = open_door.submit(Refusing())
            if _works(runner, future, declared):
                return
            assert _complaint(future, "open_door", "key", "I stay at home")

    def test_E2_argument_that_cannot_be_unpacked(self, runner: TaskRunner, declared: Declare) -> None:
        """An argument that pickles, but can't be unpickled on the worker: the error names task and reason."""
        with runner:
            future = open_door.submit(OneWay())
            if _works(runner, future, declared):
                return
            assert _complaint(future, "open_door", "no way back")

    def test_E2_too_deep(self, runner: TaskRunner, declared: Declare) -> None:
        """An argument nested too deeply for pickle is such an error too, and kills nobody."""
        with runner:
            future = open_door.submit(_nested(100_000))
            if _works(runner, future, declared):
                return
            assert _complaint(future, "open_door", "key")

    def test_E2_function(self, runner: TaskRunner, declared: Declare) -> None:
        """A task whose function holds something that can't be pickled: the error names task and variable."""
        padlock = threading.Lock()

        @task
        def guarded() -> bool:
            return padlock.locked()

        with runner:
            future = guarded.submit()
            if _works(runner, future, declared):
                return
            assert _complaint(future, "guarded", "padlock", "lock")

    def test_E2_result(self, runner: TaskRunner, declared: Declare) -> None:
        """A result that can't be pickled: the error names the task and says that it is the result."""

        @task
        def make_lock() -> Any:
            return threading.Lock()

        with runner:
            future = make_lock.submit()
            if _works(runner, future, declared):
                return
            assert _complaint(future, "make_lock", "result", "lock")

    def test_E2_part_of_a_result(self, runner: TaskRunner, declared: Declare) -> None:
        """A part deep inside a result: the error says where."""

        @task
        def make_locks() -> Any:
            return {"rooms": [None, {"cellar": threading.Lock()}]}

        with runner:
            future = make_locks.submit()
            if _works(runner, future, declared):
                return
            assert _complaint(future, "make_locks", "result", "rooms", "cellar", "lock")

    def test_E2_result_that_cannot_be_unpacked(self, runner: TaskRunner, declared: Declare) -> None:
        """A result that pickles, but can't be unpickled by the driver, is an error that names task and reason."""

        @task
        def depart() -> Any:
            return OneWay()

        with runner:
            future = depart.submit()
            if _works(runner, future, declared):
                return
            with pytest.raises(SerializationError, match=r"depart-0.*no way back"):
                future.result()

    def test_E2_exception(self, runner: TaskRunner, declared: Declare) -> None:
        """An exception that can't be pickled: the error names task and attribute, and shows the exception's text."""

        @task
        def fail_with_lock() -> None:
            error = ValueError("the lock is jammed")
            error.jammed = threading.Lock()  # type: ignore[attr-defined]
            raise error

        with runner:
            future = fail_with_lock.submit()
            if runner.capabilities.in_process:
                declared("in_process: nothing is pickled")
                assert isinstance(future.exception(), ValueError)
                return
            assert _complaint(future, "fail_with_lock", "exception", "jammed", "lock", "the lock is jammed")

    def test_E2_exception_that_cannot_be_unpacked(self, runner: TaskRunner) -> None:
        """An exception whose class can't be made again is an error that shows class and text."""

        @task
        def fail_for_good() -> None:
            raise FailedOneWay("gone for good")

        with runner:
            error = fail_for_good.submit().exception()
        assert isinstance(error, (FailedOneWay, SerializationError))
        assert "gone for good" in str(error)

    def test_E2_upstream_result_does_travel(self, runner: TaskRunner) -> None:
        """A large result of one call can be the argument of the next, on every runner."""
        with runner:
            text = "x" * 300_000
            assert identity.submit(identity.submit({"large": [text]})).result() == {"large": [text]}

    def test_E2_body_never_runs(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call whose argument can't travel never begins, and is not tried again."""
        with runner:
            future = note.with_options(retries=3).submit(signals, "ran", Blank(threading.Lock()))
            if _works(runner, future, declared):
                return
            assert _complaint(future, "note", "text", "lock")
        assert signals.count("ran") == 0

    def test_E2_others_do_not_notice(self, runner: TaskRunner, declared: Declare) -> None:
        """Of a map over good and bad elements, the good ones have results."""
        elements = [threading.Lock() if number % 10 == 3 else number for number in range(50)]
        with runner:
            futures = identity.map(elements)
            errors = [future.exception() for future in futures]
            good = [future.result() for future, error in zip(futures, errors, strict=True) if error is None]
        if runner.capabilities.in_process:
            declared("in_process: nothing is pickled")
            assert good == elements
            return
        assert good == [number for number in range(50) if number % 10 != 3]
        assert {type(error) for error in errors if error} == {SerializationError}

    def test_E2_results_of_others_are_kept(self, runner: TaskRunner, declared: Declare) -> None:
        """Of a map with some results that can't travel, the other results do."""

        @task
        def lock_or_number(number: int) -> Any:
            return threading.Lock() if number % 10 == 3 else number

        with runner:
            futures = lock_or_number.map(range(50))
            errors = [future.exception() for future in futures]
            good = [future.result() for number, future in enumerate(futures) if number % 10 != 3]
        assert good == [number for number in range(50) if number % 10 != 3]
        if runner.capabilities.in_process:
            declared("in_process: nothing is pickled")
            assert set(errors) == {None}
        else:
            assert {type(error) for error in errors[3::10]} == {SerializationError}

    def test_E2_worker_lives_on(self, one_slot: TaskRunner, declared: Declare) -> None:
        """After each of these errors the same worker takes the next call."""

        @task
        def worker() -> int:
            import os

            return os.getpid()

        @task
        def make_lock() -> Any:
            return threading.Lock()

        bad: list[Callable[[], TaskFuture[Any]]] = [
            lambda: identity.submit(threading.Lock()),
            lambda: identity.submit(OneWay()),
            make_lock.submit,
        ]
        if one_slot.capabilities.in_process:
            declared("in_process: nothing is pickled")
        with one_slot:
            before = worker.submit().result()
            for submit in bad:
                error = submit().exception()
                assert isinstance(error, SerializationError) or one_slot.capabilities.in_process
            assert worker.submit().result() == before

    def test_E2_flow_says_it_too(self, runner: TaskRunner, declared: Declare) -> None:
        """An error of this kind at which nobody looked makes the flow fail, as other failures do."""

        @flow(task_runner=runner)
        def main() -> Any:
            identity.submit(threading.Lock())
            return add.submit(1, 2).result()

        if runner.capabilities.in_process:
            declared("in_process: nothing is pickled")
            assert main() == 3
            return
        with pytest.raises(ExceptionGroup) as caught:
            main()
        assert [type(error) for error in caught.value.exceptions] == [SerializationError]


@task
def open_door(key: Any, spare: Any = None) -> str:
    """Take a key and a spare one."""
    return "open"


class Holder:
    """Holds something in an attribute."""

    def __init__(self, held: Any) -> None:
        self.held = held


class Blank(Holder):
    """Holds something, and looks like nothing."""

    def __str__(self) -> str:
        return "blank"


class Refusing:
    """Does not want to be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("I stay at home")


class OneWay:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return _no_way_back, ()


class FailedOneWay(Exception):
    """An exception that can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return _no_way_back, ()


def _no_way_back() -> Any:
    raise RuntimeError("no way back")


def _nested(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def _works(runner: TaskRunner, future: TaskFuture[Any], declared: Declare) -> bool:
    """Return whether the runner pickles nothing; then the call must have worked."""
    if not runner.capabilities.in_process:
        return False
    declared("in_process: nothing is pickled")
    future.result()
    return True


def _complaint(future: TaskFuture[Any], *words: str) -> str:
    """Return the text of a call's SerializationError, in which all words must be."""
    error = future.exception()
    assert isinstance(error, SerializationError), repr(error)
    assert future.state.type is StateType.FAILED
    missing = [word for word in words if word not in str(error)]
    assert not missing, f"{missing} not in: {error}"
    return str(error)
