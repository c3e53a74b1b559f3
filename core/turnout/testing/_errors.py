"""E1: what a body raises is what arrives, whole; E2 to E4 stand in the modules that this one builds on."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from turnout import flow, task

from ._bad_input import BadInputConformance
from ._kit import run_script, runner_expression
from ._misbehaving import MisbehaviourConformance
from ._open_calls import failure_of
from ._unpicklable import UnpicklableConformance

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["ErrorConformance"]


class ErrorConformance(MisbehaviourConformance, UnpicklableConformance, BadInputConformance):
    """Everything that is promised about errors: E1 to E4, and about input that can't work."""

    def test_E1_type_and_arguments(self, runner: TaskRunner) -> None:
        """The exception that arrives is of the same class, with the same arguments."""

        def body() -> None:
            raise LookupError("what", 7, ("a", b"b"), None)

        error = failure_of(runner, body)
        assert type(error) is LookupError
        assert error.args == ("what", 7, ("a", b"b"), None)

    def test_E1_init_of_its_own(self, runner: TaskRunner) -> None:
        """An exception whose `__init__` takes other arguments than it hands on arrives whole."""

        def body() -> None:
            raise Refused(403, reason="too late")

        error = failure_of(runner, body)
        assert isinstance(error, Refused)
        assert (error.args, error.code, error.reason) == (("refused: too late",), 403, "too late")
        assert str(error) == "refused: too late"

    def test_E1_attributes(self, runner: TaskRunner) -> None:
        """What was set on the exception after it was made arrives, in objects and containers too."""

        def body() -> None:
            error = ValueError("see the attributes")
            error.details = {"where": [1, 2, {"deep": ("x",)}]}  # type: ignore[attr-defined]
            error.code = 404  # type: ignore[attr-defined]
            raise error

        error = failure_of(runner, body)
        assert vars(error)["details"] == {"where": [1, 2, {"deep": ("x",)}]}
        assert vars(error)["code"] == 404

    def test_E1_slots(self, runner: TaskRunner) -> None:
        """What an exception keeps in slots arrives."""

        def body() -> None:
            raise Slotted("seat", 12)

        error = failure_of(runner, body)
        assert isinstance(error, Slotted)
        assert (error.args, error.seat) == (("seat",), 12)

    def test_E1_dataclass(self, runner: TaskRunner) -> None:
        """An exception that is a dataclass arrives equal to the one that was raised."""

        def body() -> None:
            raise Overdrawn("A-17", ["rent", "phone"])

        assert failure_of(runner, body) == Overdrawn("A-17", ["rent", "phone"])

    def test_E1_class_made_in_a_function(self, runner: TaskRunner) -> None:
        """An exception of a class that no module holds can be caught by that class."""

        class Local(Exception):
            pass

        def body() -> None:
            raise Local("here")

        with runner, pytest.raises(Local, match="here"):
            task(body).submit().result()

    def test_E1_notes(self, runner: TaskRunner) -> None:
        """Notes arrive, in order, and none is added."""

        def body() -> None:
            error = ValueError("noted")
            error.add_note("first note")
            error.add_note("second\nnote")
            raise error

        assert failure_of(runner, body).__notes__ == ["first note", "second\nnote"]

    def test_E1_no_notes_unless_the_body_added_some(self, runner: TaskRunner) -> None:
        """An exception without notes arrives without notes."""

        def body() -> None:
            raise ValueError("plain")

        assert not hasattr(failure_of(runner, body), "__notes__")

    def test_E1_cause(self, runner: TaskRunner) -> None:
        """`raise ... from ...` arrives: the cause with type, arguments and its own cause."""

        def body() -> None:
            try:
                try:
                    raise KeyError("innermost")
                except KeyError as error:
                    raise Refused(1, reason="middle") from error
            except Refused as error:
                raise ValueError("outermost") from error

        error = failure_of(runner, body)
        assert isinstance(error.__cause__, Refused)
        assert (error.__cause__.code, error.__suppress_context__) == (1, True)
        assert isinstance(error.__cause__.__cause__, KeyError)
        assert error.__cause__.__cause__.args == ("innermost",)

    def test_E1_context(self, runner: TaskRunner) -> None:
        """What was being handled when the exception was raised arrives as its context, and is no cause."""

        def body() -> None:
            try:
                raise KeyError("handled")
            except KeyError:
                raise ValueError("while handling")  # noqa: B904 - the context is what is tested

        error = failure_of(runner, body)
        assert (error.__cause__, error.__suppress_context__) == (None, False)
        assert isinstance(error.__context__, KeyError)
        assert error.__context__.args == ("handled",)

    def test_E1_suppressed_context(self, runner: TaskRunner) -> None:
        """`raise ... from None` arrives as such: Python won't print the context."""

        def body() -> None:
            try:
                raise KeyError("hidden")
            except KeyError:
                raise ValueError("alone") from None

        error = failure_of(runner, body)
        assert (error.__cause__, error.__suppress_context__) == (None, True)
        assert "hidden" not in "".join(traceback.format_exception(error))

    def test_E1_long_chain_of_causes(self, runner: TaskRunner) -> None:
        """A chain of 1,500 causes, longer than Python's stack is deep, arrives whole."""

        def body() -> None:
            error: Exception | None = None
            for number in range(1500):
                new = ValueError(number)
                new.__cause__ = error
                error = new
            assert error is not None
            raise error

        found: BaseException | None = failure_of(runner, body)
        numbers = []
        while found is not None:
            numbers.append(found.args[0])
            found = found.__cause__
        assert numbers == list(range(1499, -1, -1))

    def test_E1_circle_of_contexts(self, runner: TaskRunner) -> None:
        """Exceptions that refer to each other in a circle arrive as a circle."""

        def body() -> None:
            one, other = ValueError("one"), KeyError("other")
            one.__cause__, other.__cause__ = other, one
            one.itself = one  # type: ignore[attr-defined]
            raise one

        error = failure_of(runner, body)
        assert error.__cause__ is not None
        assert error.__cause__.__cause__ is error
        assert vars(error)["itself"] is error

    def test_E1_groups(self, runner: TaskRunner) -> None:
        """An exception group arrives with its message, notes, and nested exceptions, each of them whole."""

        def body() -> None:
            inner = ExceptionGroup("inner", [KeyError("k"), Refused(2, reason="in a group")])
            inner.add_note("noted")
            raise ExceptionGroup("outer", [ValueError("v"), inner])

        error = failure_of(runner, body)
        assert isinstance(error, ExceptionGroup)
        value_error, inner = error.exceptions
        assert (error.message, value_error.args) == ("outer", ("v",))
        assert isinstance(inner, ExceptionGroup)
        assert (inner.message, inner.__notes__) == ("inner", ["noted"])
        assert isinstance(inner.exceptions[1], Refused)
        assert inner.exceptions[1].code == 2

    def test_E1_group_of_a_class_of_its_own(self, runner: TaskRunner) -> None:
        """A subclass of ExceptionGroup arrives as that class, and `except*` finds what is in it."""

        def body() -> None:
            raise Several("several", [KeyError("k")])

        error = failure_of(runner, body)
        assert type(error) is Several
        assert error.split(KeyError)[1] is None

    def test_E1_tracebacks_show_the_lines_of_a_script(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """An uncaught failure prints file and source line of the task's body, though the function is a script's."""
        done = run_script(_FAILING.format(runner=runner_expression(fresh_runner)), tmp_path)
        assert done.returncode == 1
        assert f'File "{tmp_path / "script.py"}", line 5, in spill\n    raise ValueError("milk")' in done.stderr
        assert done.stderr.endswith("ValueError: milk\n")

    def test_E1_message_of_a_megabyte(self, runner: TaskRunner) -> None:
        """A message of 1 MB arrives to the last letter."""

        def body() -> None:
            raise ValueError("m" * 1_000_000 + "end")

        assert str(failure_of(runner, body)) == "m" * 1_000_000 + "end"

    def test_E1_system_errors(self, runner: TaskRunner) -> None:
        """OSErrors keep number and file names, and so stay of the class that goes with the number."""

        def body() -> None:
            raise OSError(errno.ENOENT, "not there", "/one", None, "/other")

        error = failure_of(runner, body)
        assert type(error) is FileNotFoundError
        assert (error.errno, error.strerror, error.filename, error.filename2) == (
            errno.ENOENT,
            "not there",
            "/one",
            "/other",
        )

    @pytest.mark.parametrize("kind", ["decode", "json", "process", "import", "attribute", "syntax", "key"])
    def test_E1_errors_of_the_standard_library(self, runner: TaskRunner, kind: str) -> None:
        """Exceptions of the standard library with a shape of their own arrive with all their attributes."""

        def body() -> None:
            _raise(kind)

        arrived = failure_of(runner, body)
        with pytest.raises(type(arrived)) as caught:
            _raise(kind)
        assert type(arrived) is caught.type
        assert str(arrived) == str(caught.value)
        names = ("encoding", "start", "end", "pos", "doc", "returncode", "cmd", "output", "path", "lineno", "text")
        for name in (*names, "name", "args"):
            assert getattr(arrived, name, None) == getattr(caught.value, name, None)

    @pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, TimeoutError, MemoryError, RecursionError])
    def test_E1_exceptions_that_python_uses_itself(self, runner: TaskRunner, kind: type[Exception]) -> None:
        """Exceptions that mean something to Python's own machinery are a body's like all others: the call is Failed."""

        def body() -> None:
            raise kind("of the body's own")

        with runner:
            future = task(body).submit()
            future.wait()
            assert future.state.name == "Failed"
            error = future.exception()
        assert error is not None
        assert type(error) is kind
        assert error.args == ("of the body's own",)

    def test_E1_exception_of_an_async_task(self, runner: TaskRunner) -> None:
        """Async tasks fail as others do."""

        async def body() -> None:
            raise Refused(5, reason="async")

        error = failure_of(runner, body)
        assert isinstance(error, Refused)
        assert error.code == 5

    def test_E1_text_that_cannot_be_had(self, runner: TaskRunner) -> None:
        """An exception whose `__str__` raises arrives all the same, and states and logs can be made of it."""

        def body() -> None:
            raise Speechless("arguments are there")

        with runner:
            future = task(body).submit()
            error = future.exception()
            assert "Speechless" in repr(future.state)
        assert isinstance(error, Speechless)
        assert error.args == ("arguments are there",)

    def test_E1_traceback_of_the_worker(self, runner: TaskRunner) -> None:
        """A printed exception shows the frames of the body, with names, files and lines of source."""
        text = "".join(traceback.format_exception(failure_of(runner, _outer_step)))
        assert text.count("Traceback (most recent call last)") == 1
        assert "_outer_step" in text
        assert "_inner_step" in text
        assert __file__ in text
        assert 'raise ValueError("in the inner step")' in text
        assert text.rstrip().endswith("ValueError: in the inner step")

    def test_E1_traceback_of_the_cause(self, runner: TaskRunner) -> None:
        """A printed exception shows the frames of its cause as well."""

        def body() -> None:
            try:
                _outer_step()
            except ValueError as error:
                raise LookupError("because of it") from error

        text = "".join(traceback.format_exception(failure_of(runner, body)))
        assert "_inner_step" in text
        assert "direct cause" in text
        assert text.rstrip().endswith("LookupError: because of it")

    def test_E1_traceback_survives_a_second_raise(self, runner: TaskRunner) -> None:
        """The frames of the body are there in what the flow itself raises."""

        @flow(task_runner=runner)
        def main() -> None:
            task(_outer_step).submit().result()

        with pytest.raises(ValueError, match="inner step") as caught:
            main()
        text = "".join(traceback.format_exception(caught.value))
        assert "_inner_step" in text
        assert "main" in text

    def test_E1_arrays_in_attributes(self, runner: TaskRunner) -> None:
        """An array that an exception carries arrives equal."""
        numpy = pytest.importorskip("numpy")

        def body() -> None:
            error = ValueError("with an array")
            error.array = numpy.arange(100_000)  # type: ignore[attr-defined]
            raise error

        assert (vars(failure_of(runner, body))["array"] == numpy.arange(100_000)).all()

    def test_E1_failure_as_an_argument(self, runner: TaskRunner) -> None:
        """An exception object can be an argument and a result; it is a value then and nothing is raised."""

        @task
        def annotate(error: Refused) -> Refused:
            error.add_note(f"code {error.code}")
            return error

        with runner:
            returned = annotate.submit(Refused(9, reason="sent")).result()
        assert isinstance(returned, Refused)
        assert (returned.code, returned.__notes__) == (9, ["code 9"])


_FAILING = """
from turnout import flow, task
@task
def spill():
    raise ValueError("milk")
@flow(task_runner={runner})
def main():
    spill.submit().result()
main()
"""


class Refused(Exception):
    """Takes other arguments than it hands on, which breaks Python's own pickling of exceptions."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"refused: {reason}")
        self.code = code
        self.reason = reason


class Slotted(Exception):
    """Keeps a part of itself in a slot."""

    __slots__ = ("seat",)

    def __init__(self, message: str, seat: int) -> None:
        super().__init__(message)
        self.seat = seat


@dataclass
class Overdrawn(Exception):
    """Is a dataclass, and never calls the `__init__` of its base."""

    account: str
    payments: list[str] = field(default_factory=list)


class Several(ExceptionGroup[Exception]):
    """A group with a name of its own."""


class Speechless(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("nothing to say")


def _raise(kind: str) -> None:
    if kind == "decode":
        b"abc\xff".decode()
    elif kind == "json":
        json.loads("{nothing}")
    elif kind == "process":
        raise subprocess.CalledProcessError(7, ["make", "all"], output="out", stderr="err")
    elif kind == "import":
        raise ModuleNotFoundError("no such thing", name="thing", path="/nowhere")
    elif kind == "attribute":
        _: Any = "text".colour  # type: ignore[attr-defined]
    elif kind == "syntax":
        compile("a = = 1\n", "typed.py", "exec")
    else:
        dict[str, int]()["missing key"]


def _outer_step() -> None:
    with contextlib.suppress(KeyError):
        _inner_step()


def _inner_step() -> None:
    raise ValueError("in the inner step")
