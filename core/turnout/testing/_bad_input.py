"""What can't work, or hardly: each is an error that says why, or works; nothing hangs, and nobody else notices."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import contextlib
import logging
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest

from turnout import StateType, TaskFuture, flow, get_run_context, quote, task, wait
from turnout.errors import SerializationError, UpstreamFailed, WouldDeadlockError

from ._bodies import add, fail, gate, identity, note
from ._kit import Conformance, Declare, Signals, run_script, runner_expression
from ._open_calls import beside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from turnout.runner import TaskRunner

__all__ = ["BadInputConformance"]

_DEPTH = 10_000
# Each has what could break a line, a terminal, a path, a key or an encoding.
_NAMES = ("two\nlines", "back\rward", "red \x1b[31m", "nul \x00", "half \udcff", "../up/*?", "long " + 10_000 * "x")


class BadInputConformance(Conformance):
    """Parts of E2, E4, D1, D3, S1 and C1."""

    # What can't be pickled, beside what is tested with E2 already

    def test_E2_generator_half_used(self, runner: TaskRunner, declared: Declare) -> None:
        """A generator as an argument can't travel; where nothing does, the task gets what is left of it."""
        half_used = (number for number in range(5))
        next(half_used)
        with runner:
            future: TaskFuture[Any] = task(list).submit(half_used)
            if runner.capabilities.in_process:
                declared("in_process: nothing is pickled")
                assert future.result() == [1, 2, 3, 4]
                return
            _complaint(future, "list-0", "generator")
        assert next(half_used) == 1

    def test_E2_argument_that_grows_as_it_is_packed(self, runner: TaskRunner, declared: Declare) -> None:
        """An argument that others change while it is packed: the error says so."""
        shared: dict[str, Any] = {"first": None, "second": None, "third": None}
        shared["first"] = _Growing(shared)
        with runner:
            future = task(len).submit(shared)
            if runner.capabilities.in_process:
                declared("in_process: nothing is pickled")
                assert future.result() == 3
                return
            _complaint(future, "len-0", "changed size")

    def test_E2_argument_nested_deeply(self, runner: TaskRunner, declared: Declare) -> None:
        """A list in a list, and so on 10,000 times, is nested too deeply for pickle: the error says that."""
        with runner:
            future = _depth.submit(_nested(_DEPTH))
            if runner.capabilities.in_process:
                declared("in_process: nothing is pickled")
                assert future.result() == _DEPTH
                return
            _complaint(future, "_depth-0", "'value'", "nested too deeply")

    def test_E2_result_nested_deeply(self, runner: TaskRunner, declared: Declare) -> None:
        """The same for a result; the worker lives on."""
        with runner:
            future = _dig.submit(_DEPTH)
            if runner.capabilities.in_process:
                declared("in_process: nothing is pickled")
                assert _depth.fn(future.result()) == _DEPTH
            else:
                _complaint(future, "_dig-0", "result", "nested too deeply")
            assert add.submit(1, 2).result() == 3

    def test_E2_exception_nested_deeply(self, runner: TaskRunner, declared: Declare) -> None:
        """The same for what an exception holds."""

        @task
        def fail_deeply() -> None:
            raise ValueError("at the bottom", _nested(_DEPTH))

        with runner:
            future = fail_deeply.submit()
            if runner.capabilities.in_process:
                declared("in_process: nothing is pickled")
                assert isinstance(future.exception(), ValueError)
            else:
                _complaint(future, "fail_deeply-0", "exception")
            assert add.submit(1, 2).result() == 3

    # Names

    @pytest.mark.parametrize("name", _NAMES, ids=lambda name: ascii(name)[1:9])
    def test_E4_strange_names_of_runs(self, runner: TaskRunner, caplog: pytest.LogCaptureFixture, name: str) -> None:
        """Runs may have any name, which arrives as it is; in our log lines it can't break the line."""
        caplog.set_level(logging.INFO, "turnout")

        def explode(*_: Any) -> None:
            raise RuntimeError("hook")

        @task(task_run_name=lambda: name, on_completion=[explode])
        def own_name() -> str | None:
            return get_run_context().task_run_name

        @flow(task_runner=runner, flow_run_name=lambda: name)
        def main() -> tuple[str, str | None, str | None]:
            future = own_name.submit()
            return future.name, future.result(), get_run_context().flow_run_name

        assert main() == (name, name, name)
        told = [record.getMessage() for record in caplog.records if record.name.startswith("turnout")]
        assert len(told) >= 3
        assert [line for line in told if not line.isprintable()] == []

    @pytest.mark.parametrize("name", _NAMES, ids=lambda name: ascii(name)[1:9])
    def test_E4_strange_names_of_tasks(self, runner: TaskRunner, name: str) -> None:
        """Tasks may have any name: their calls have results, and failures that can be told."""
        with runner:
            assert add.with_options(name=name).map(range(5), 1).result() == [1, 2, 3, 4, 5]
            assert isinstance(fail.with_options(name=name).submit().exception(), ValueError)
            needs = identity.with_options(name=name).submit(fail.with_options(name=name).submit())
            assert isinstance(needs.exception(), UpstreamFailed)

    # Dependencies

    @pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
    def test_D1_waiting_for_what_is_no_future_is_refused(
        self, runner: TaskRunner, signals: Signals, nested: bool
    ) -> None:
        """`wait_for` with anything else than futures is an error that names the task, and the call is not made."""
        with runner:
            done = add.submit(1, 2)
            for stranger in (3, "add-0", add, (future for future in [done]), threading.Event(), {"a": "b"}):
                given = [done, {"others": [stranger]}] if nested else stranger
                with pytest.raises(TypeError, match=r"wait_for of 'note' .*no future"):
                    note.submit(signals, "ran", wait_for=given)
                with pytest.raises(TypeError, match=r"wait_for of 'note' .*no future"):
                    note.map([signals], "ran", wait_for=given)
            assert note.submit(signals, "ran", "last", wait_for=[done, None]).result() == "last"
        assert signals.count("ran") == 1

    def test_D1_future_of_another_flow_that_runs(self, runner: TaskRunner, signals: Signals) -> None:
        """A future of one flow is a dependency in another, before it is over and afterwards."""
        kept: list[TaskFuture[Any]] = []
        submitted, used = threading.Event(), threading.Event()

        @flow(task_runner=runner)
        def one() -> None:
            kept.append(beside(gate, runner).submit(signals, "from one"))
            submitted.set()
            assert used.wait(30)

        @flow(task_runner=runner)
        def two() -> Any:
            open_one = identity.with_options(task_runner=beside(gate, runner).task_runner).submit(kept[0])
            assert not open_one.done()
            signals.set("go")
            return open_one.result(), identity.submit(kept[0]).result()

        with runner:
            thread = threading.Thread(target=one)
            thread.start()
            try:
                assert submitted.wait(30)
                assert two() == ("from one", "from one")
            finally:
                signals.set("go")
                used.set()
                thread.join(30)
        assert not thread.is_alive()

    def test_D1_future_of_a_flow_that_is_over(self, fresh_runner: TaskRunner) -> None:
        """A future stands for its result in a later flow, though its runner was stopped in between."""
        kept: list[TaskFuture[Any]] = []

        @flow(task_runner=fresh_runner)
        def first() -> None:
            kept.extend([identity.submit("small"), identity.submit(b"x" * 300_000)])

        @flow(task_runner=fresh_runner)
        def second() -> Any:
            return identity.submit([kept[0], {"large": kept[1]}], wait_for=kept)

        first()
        assert second() == ["small", {"large": b"x" * 300_000}]

    def test_D3_failed_future_of_a_flow_that_is_over(self, runner: TaskRunner) -> None:
        """A later flow that depends on a call that failed is told so, by the call's name."""
        kept: list[TaskFuture[Any]] = []

        @flow(task_runner=runner)
        def first() -> None:
            kept.append(fail.submit("long ago"))
            kept[0].exception()

        @flow(task_runner=runner)
        def second() -> BaseException | None:
            return identity.submit(kept).exception()

        first()
        error = second()
        assert isinstance(error, UpstreamFailed)
        assert error.root == "fail-0"
        assert str(error.__cause__) == "long ago"

    # Waiting that would never end

    @pytest.mark.parametrize("how", ["result", "wait"])
    def test_S1_waiting_for_oneself_is_refused(
        self, runner: TaskRunner, signals: Signals, declared: Declare, how: str
    ) -> None:
        """A body that waits for its own future gets an error; elsewhere the future does not even travel."""
        own: list[TaskFuture[Any]] = []
        with runner:
            own.append(_ask.submit(_go(runner, signals), quote(own), how))
            signals.set("go")
            error = own[0].exception()
        if not _is_out_of_reach(runner, error, declared):
            assert "'_ask-0' waits for its own end" in str(error)

    def test_S1_awaiting_oneself_is_refused(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """The same for an async body, which would wait for ever, and let others run meanwhile."""
        own: list[TaskFuture[Any]] = []
        go = _go(runner, signals)

        @task
        async def ask(own: list[TaskFuture[Any]]) -> Any:
            import asyncio

            while go is not None and not go.is_set("go"):  # noqa: ASYNC110 - another process may set it
                await asyncio.sleep(0.001)
            return await own[0]

        with runner:
            own.append(ask.submit(quote(own)))
            signals.set("go")
            error = own[0].exception()
        if not _is_out_of_reach(runner, error, declared):
            assert "'ask-0' waits for its own end" in str(error)

    @pytest.mark.parametrize("size", [2, 5])
    def test_S1_waiting_in_a_circle_is_refused(
        self, runner: TaskRunner, signals: Signals, declared: Declare, size: int
    ) -> None:
        """Bodies each of which waits for the next, and the last for the first, all end with the error."""
        if runner.capabilities.nested == "in_place":
            declared("in_place: a body that waits for calls of others keeps its slot")
            size = 2
        nexts: list[list[TaskFuture[Any]]] = [[] for _ in range(size)]
        with runner:
            futures = [_ask.submit(_go(runner, signals), quote(awaited), "result") for awaited in nexts]
            for number, awaited in enumerate(nexts):
                awaited.append(futures[(number + 1) % size])
            signals.set("go")
            for future in futures:
                if not _is_out_of_reach(runner, future.exception(), declared):
                    assert "neither would ever end" in str(future.exception())

    def test_S1_waiting_for_a_dependent_is_refused(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """A body that waits for a call which depends on its own result gets the error too."""
        awaited: list[TaskFuture[Any]] = []
        with runner:
            future = _ask.submit(_go(runner, signals), quote(awaited), "result")
            awaited.append(identity.submit(1, wait_for=identity.submit(future)))
            signals.set("go")
            assert isinstance(awaited[0].exception(), UpstreamFailed)
            if not _is_out_of_reach(runner, future.exception(), declared):
                assert "'_ask-0' waits for 'identity-1', which waits for '_ask-0'" in str(future.exception())

    # What bodies write

    def test_C1_prints_that_no_encoding_holds(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """Text that can't be encoded is printed with escapes, or fails its call as Python does; no line is lost."""
        out = _printed(fresh_runner, tmp_path, _SURROGATES, PYTHONIOENCODING="utf-8:strict").decode()
        failed = "UnicodeEncodeError" in out
        assert failed != ("half \\udcff" in out)
        # Where it failed, Python stops at what it can't encode.
        assert "first line" in out
        assert "from another call" in out
        assert out.endswith("end\n")

    def test_C1_records_that_no_encoding_holds(self, runner: TaskRunner) -> None:
        """Such text in a record, and in a print that becomes one, arrives as it was."""

        @task(log_prints=True)
        def body() -> None:
            print("half \udcff\nsecond line \x00")

        with _messages_aside() as messages, runner:
            body.submit().result()
        assert "half \udcff\nsecond line \x00" in messages

    def test_C1_values_that_no_encoding_holds(self, runner: TaskRunner) -> None:
        """Such text as an argument, a result or an exception's message arrives as it was."""
        with runner:
            assert identity.submit("half \udcff").result() == "half \udcff"
            assert str(fail.submit("half \udcff\x00\n").exception()) == "half \udcff\x00\n"

    def test_C1_bytes_that_are_no_text(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """Bytes written to `sys.stdout.buffer` and to descriptor 1 hurt nobody; prints before and after arrive."""
        out = _printed(fresh_runner, tmp_path, _BYTES)
        for line in (b"before", b"after", b"from another call", b"end"):
            assert line in out.replace(b"\xff", b"").splitlines(), out


@contextlib.contextmanager
def _messages_aside() -> Iterator[list[str]]:
    """Collect what is logged, and keep it from pytest, whose processes can't hand such text on."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("turnout")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _printed(runner: TaskRunner, folder: Path, script: str, **variables: str) -> bytes:
    """Return what a script and its workers write to standard output, as bytes."""
    whole = _SCRIPT.format(runner=runner_expression(runner), script=textwrap.dedent(script))
    done = run_script(whole, folder, environment=variables)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return (folder / "out").read_bytes()


_SCRIPT = """
import os, sys
os.dup2(os.open("out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
from turnout import flow, task
runner = {runner}
{script}
main()
print("end")
"""

_SURROGATES = r"""
@task
def bad():
    print("first line")
    print("half \udcff")
    return 1

@task
def good():
    print("from another call")

@flow(task_runner=runner)
def main():
    error = bad.submit().exception()
    if error is not None:
        print(type(error).__name__)
    good.submit().result()
"""

_BYTES = r"""
@task
def raw():
    print("before")
    sys.stdout.flush()
    sys.stdout.buffer.write(b"\xff\xff")
    sys.stdout.buffer.flush()
    os.write(1, b"\xff\n")
    print("after")
    return 1

@task
def good():
    print("from another call")

@flow(task_runner=runner)
def main():
    assert raw.submit().result() == 1
    good.submit().result()
"""


@task
def _depth(value: Any) -> int:
    """Return how deeply lists are nested."""
    depth = 0
    while value:
        value, depth = value[0], depth + 1
    return depth


@task
def _dig(depth: int) -> Any:
    """Return lists that are nested so deeply."""
    return _nested(depth)


@task
def _ask(go: Signals | None, awaited: list[TaskFuture[Any]], how: str) -> Any:
    """Wait for the first of some futures."""
    if go is not None:
        go.wait("go")
    return awaited[0].result() if how == "result" else wait([awaited[0]])


def _go(runner: TaskRunner, signals: Signals) -> Signals | None:
    """Return what a body is to wait for before it asks; an inline runner is through before anybody could set it."""
    return None if runner.capabilities.inline else signals


def _is_out_of_reach(runner: TaskRunner, error: BaseException | None, declared: Declare) -> bool:
    """Return whether a body had no future to wait for on this runner; either way it must have ended by an error."""
    if runner.capabilities.in_process and not runner.capabilities.inline:
        assert isinstance(error, WouldDeadlockError), repr(error)
        return False
    declared(
        "not in_process: a future that is no argument can't travel; or inline: the call is over before there is one"
    )
    # The list of futures was packed before there was one in it, or afterwards.
    assert isinstance(error, (SerializationError, IndexError)), repr(error)
    return True


def _nested(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


class _Growing:
    """Adds to the dictionary that holds it whenever it is pickled."""

    def __init__(self, holder: dict[str, Any]) -> None:
        self.holder = holder

    def __reduce__(self) -> Any:
        self.holder[f"more {len(self.holder)}"] = None
        return int, ()


def _complaint(future: TaskFuture[Any], *words: str) -> None:
    """Check that a call ended with a SerializationError in whose text all words are."""
    error = future.exception()
    assert isinstance(error, SerializationError), repr(error)
    assert future.state.type is StateType.FAILED
    missing = [word for word in words if word not in str(error)]
    assert not missing, f"{missing} not in: {error}"
