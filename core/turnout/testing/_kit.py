"""What every part of the conformance kit stands on: runners held up, signals across processes, scripts, time limits."""

from __future__ import annotations

import abc
import contextlib
import faulthandler
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import cloudpickle  # type: ignore[import-untyped]
import pytest

from turnout import TaskFuture, flow
from turnout._backends import hold, release
from turnout.runner import TaskRunner

from ._batches import batched

__all__ = [
    "TIME_LIMIT",
    "Conformance",
    "Declare",
    "Signals",
    "eventually",
    "run_on",
    "run_script",
    "runner_expression",
    "time_limit",
    "until_retrying",
]

TIME_LIMIT = 60.0
"""Seconds that one behaviour may take, its set-up included."""

Declare: TypeAlias = Callable[[str], None]
"""What the fixture ``declared`` gives: call it with the capability that the runner says it lacks."""

_POLL_SECONDS = 0.002
_KEPT = pytest.StashKey["_Kept"]()


class Conformance(abc.ABC):
    """The base of every part of the kit: fixtures that give a test the runner it is to try.

    A test that finds a capability missing checks what the runner promises instead, and calls ``declared`` with the
    reason; it never skips.
    """

    batches: ClassVar[Literal["measured", "one", "most", "random"]] = "measured"
    """How many calls travel together: as the engine measures, one, as many as can, or as it comes."""

    kept: ClassVar[tuple[str, ...]] = ()
    """How the names begin, in a :class:`Footprint`, of what a backend that the class keeps up may add to itself."""

    death_seconds: ClassVar[float] = 0.0
    """How long the process of a worker may still be there when its backend has said that it is dead."""

    @abc.abstractmethod
    def make_runner(self, slots: int) -> TaskRunner:
        """Return a new runner that runs ``slots`` calls at once (an inline one may ignore the number)."""

    @pytest.fixture(autouse=True)
    def _limits(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        # The variable wins over a flow's own runner, and so would point the kit at another one.
        monkeypatch.delenv("TURNOUT_TASK_RUNNER", raising=False)
        with time_limit(TIME_LIMIT):
            yield

    @pytest.fixture
    def runner(self, request: pytest.FixtureRequest) -> Iterator[TaskRunner]:
        """Return a runner with two slots, whose backend stays up for the whole class."""
        with self._held(request, 2) as runner:
            yield runner

    @pytest.fixture(autouse=True)
    def _batched(self) -> Iterator[None]:
        with batched(self.batches):
            yield

    @pytest.fixture
    def one_slot(self, request: pytest.FixtureRequest) -> Iterator[TaskRunner]:
        """Return a runner with one slot, whose backend stays up for the whole class."""
        with self._held(request, 1) as runner:
            yield runner

    @pytest.fixture
    def fresh_runner(self) -> TaskRunner:
        """Return a runner with two slots that nothing has started yet."""
        return self.make_runner(2)

    @pytest.fixture
    def signals(self, tmp_path: Path) -> Signals:
        """Return signals of this test's own."""
        directory = tmp_path / "signals"
        directory.mkdir()
        return Signals(str(directory))

    @pytest.fixture
    def declared(self, record_property: Callable[[str, object], None]) -> Declare:
        """Return a function to tell the report that a declared lack was tested; see :data:`Declare`."""
        return functools.partial(record_property, "declared")

    @contextlib.contextmanager
    def _held(self, request: pytest.FixtureRequest, slots: int) -> Iterator[TaskRunner]:
        # Not a class-scoped fixture: pytest no longer likes those as methods, and `make_runner` is one.
        kept = _kept(request.node)
        if slots not in kept.runners:
            runner = self.make_runner(slots)
            hold(runner)
            kept.runners[slots] = runner
        failed_before = request.session.testsfailed
        yield kept.runners[slots]
        if request.session.testsfailed > failed_before:
            # Calls of the failed test may hang on it for ever: the next test shall not suffer for that.
            kept.doubtful.append(kept.runners.pop(slots))


class _Kept:
    """The runners that the tests of one class share."""

    def __init__(self) -> None:
        self.runners: dict[int, TaskRunner] = {}
        self.doubtful: list[TaskRunner] = []

    def let_go(self) -> None:
        """Stop all of them."""
        while self.runners:
            self.doubtful.append(self.runners.popitem()[1])
        while self.doubtful:
            release(self.doubtful.pop())


def _kept(node: pytest.Item) -> _Kept:
    parent = node.getparent(pytest.Class)
    assert parent is not None, "the kit's tests are methods"
    if _KEPT not in parent.stash:
        parent.stash[_KEPT] = _Kept()
        parent.addfinalizer(parent.stash[_KEPT].let_go)
    return parent.stash[_KEPT]


def let_go(node: pytest.Item) -> None:
    """Stop the runners that the tests of a class share; the next test gets new ones.

    Parameters
    ----------
    node
        One of these tests.
    """
    _kept(node).let_go()


@dataclass(frozen=True)
class Signals:
    """Events and notes that reach from one process to another, as files of one directory.

    Small enough to be handed to a task on any runner whose workers see the driver's temporary directory.

    Examples
    --------
    >>> import tempfile
    >>> signals = Signals(tempfile.mkdtemp())
    >>> signals.set("begun")
    >>> signals.wait("begun"), signals.is_set("over")
    (None, False)
    >>> signals.note("order", "first")
    >>> signals.note("order", "second")
    >>> signals.notes("order"), signals.count("order")
    (['first', 'second'], 2)
    """

    directory: str

    def set(self, name: str) -> None:
        """Set an event, for all processes and for good."""
        self._path("event", name).touch()

    def is_set(self, name: str) -> bool:
        """Return whether an event is set."""
        return self._path("event", name).exists()

    def wait(self, name: str, timeout: float = 30.0) -> None:
        """Wait until an event is set.

        Raises
        ------
        TimeoutError
            If that takes longer than ``timeout`` seconds.
        """
        eventually(lambda: self.is_set(name), f"{name!r} is set", timeout)

    def wait_count(self, name: str, count: int, timeout: float = 30.0) -> None:
        """Wait until there are at least ``count`` notes under a name.

        Raises
        ------
        TimeoutError
            If that takes longer than ``timeout`` seconds.
        """
        eventually(lambda: self.count(name) >= count, f"{name!r} has {count} notes", timeout)

    def note(self, name: str, text: str = "") -> None:
        """Append one line, whole, whoever else is writing."""
        path = self._path("notes", name)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{text}\n".encode())
        finally:
            os.close(descriptor)

    def notes(self, name: str) -> list[str]:
        """Return the lines noted so far, in order."""
        with contextlib.suppress(FileNotFoundError):
            return self._path("notes", name).read_text().splitlines()
        return []

    def count(self, name: str) -> int:
        """Return how many lines have been noted."""
        return len(self.notes(name))

    def _path(self, kind: str, name: str) -> Path:
        return Path(self.directory) / f"{name}.{kind}"


def eventually(condition: Callable[[], bool], what: str = "the condition holds", timeout: float = 30.0) -> None:
    """Wait until a condition holds.

    Raises
    ------
    TimeoutError
        If that takes longer than ``timeout`` seconds; the text says ``what`` should have come true.

    Examples
    --------
    >>> eventually(lambda: True)
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not within {timeout:g} s: {what}.")
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail the test that runs in this block, with the stacks of all threads, when it takes longer than ``seconds``.

    Leaves it alone if somebody (such as pytest-timeout) already holds the clock.
    """
    if not _clock_is_free():
        yield
        return
    before = signal.signal(signal.SIGALRM, functools.partial(_expire, seconds))
    # Again and again: a task that runs in this thread may catch the first one.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _clock_is_free() -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and hasattr(signal, "setitimer") and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def _expire(seconds: float, *_: Any) -> None:
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    pytest.fail(f"longer than {seconds:g} s; the stacks of all threads are on standard error")


def until_retrying(future: TaskFuture[Any]) -> None:
    """Wait until a call has failed and waits to be tried again."""
    eventually(lambda: future.state.is_retrying(), "the call waits to be tried again")  # noqa: PLW0108 - state is new each time


def run_on(runner: TaskRunner, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function as a flow on a runner.

    Examples
    --------
    >>> from turnout import task
    >>> from turnout_runners.thread import ThreadPoolTaskRunner
    >>> run_on(ThreadPoolTaskRunner(), task(abs).submit, -3)
    3
    """

    @flow(task_runner=runner)
    def run() -> Any:
        return function(*args, **kwargs)

    return run()


def runner_expression(runner: TaskRunner) -> str:
    """Return an expression that makes the same runner in a script; its class must be importable there.

    Examples
    --------
    >>> from turnout_runners.thread import ThreadPoolTaskRunner
    >>> eval(runner_expression(ThreadPoolTaskRunner(max_workers=3)))
    ThreadPoolTaskRunner(max_workers=3)
    """
    return f"__import__('cloudpickle').loads({cloudpickle.dumps(runner)!r})"


def run_script(
    source: str,
    directory: Path | str,
    *,
    how: Literal["file", "stdin", "-c"] = "file",
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 50.0,
) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python of its own, and return its exit status and output.

    Parameters
    ----------
    source
        The script. Needs no main guard.
    directory
        Where it runs, and where the file is written for ``how="file"``.
    how
        As a file, from standard input, or after ``-c``.
    arguments
        What it finds in ``sys.argv[1:]``.
    environment
        Variables to add to this process's own.
    timeout
        Seconds after which it is killed, with every process in its session.

    Raises
    ------
    subprocess.TimeoutExpired
        If it took longer than ``timeout``; holds the output so far.
    """
    command, text = _command(source, Path(directory), how)
    with subprocess.Popen(
        [*command, *arguments],
        cwd=directory,
        env=script_environment(environment or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(text, timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _command(source: str, directory: Path, how: str) -> tuple[list[str], str]:
    if how == "stdin":
        return [sys.executable, "-"], source
    if how == "-c":
        return [sys.executable, "-c", source], ""
    path = directory / "script.py"
    path.write_text(source)
    return [sys.executable, str(path)], ""


def script_environment(extra: Mapping[str, str]) -> dict[str, str]:
    # The script sees the modules that the test sees, so that it can make the same runner.
    inherited = {name: value for name, value in os.environ.items() if name != "TURNOUT_TASK_RUNNER"}
    return {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **extra}
