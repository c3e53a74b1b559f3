"""R3 and E3: what tasks do to the process that runs them, and what else may happen to it, short of its death."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from turnout import StateType, TaskFuture, flow, get_run_logger, task
from turnout.errors import CrashedRun, SerializationError, TaskRunTimeoutError

from ._bodies import add, fail, fail_until, identity, note, spin
from ._kit import Conformance, Declare, Signals, eventually, run_script, runner_expression
from ._open_calls import alive, note_pid_and_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from turnout.runner import TaskRunner

__all__ = ["FaultyWorkerConformance"]

PATIENCE = 30.0
"""Seconds in which every call comes to an end, whatever happened to its worker."""

_LARGE = 3_000_000
_HOUR = 3600.0
# How many workers die as results leave. A pool may need some seconds to notice each.
_DEATHS = 4
_WAYS_OF_A_CHILD = {"returns": 0, "raises": 1, "leaves": 7, "exits": 3}


class FaultyWorkerConformance(Conformance):
    """R3 and E3."""

    @pytest.fixture(autouse=True)
    def _changed_workers_end(self, signals: Signals) -> Iterator[None]:
        # Tests that come after shall have workers as new.
        yield
        _end(_changed(signals))

    @pytest.mark.parametrize("how", _WAYS_OF_A_CHILD)
    def test_E3_forked_child_ends_with_its_body(
        self, one_slot: TaskRunner, signals: Signals, tmp_path: Path, how: str
    ) -> None:
        """A process that a body forks ends where it leaves the body, as a program does; it runs no other call."""
        _run_apart(one_slot, fork_among_others, tmp_path, signals, how)
        assert sorted(map(int, signals.notes("ran"))) == list(range(20))
        assert signals.count("parent") == 1
        assert not any(alive(int(pid)) for pid in signals.notes("child"))

    def test_E3_forked_child_of_an_async_body(self, one_slot: TaskRunner, signals: Signals, tmp_path: Path) -> None:
        """The same in async tasks."""
        _run_apart(one_slot, fork_in_async_body, tmp_path, signals)
        assert signals.count("parent") == 1
        assert not any(alive(int(pid)) for pid in signals.notes("child"))

    @pytest.mark.parametrize("what", ["streams", "directory", "output", "handlers", "alarm", "threads"])
    def test_E3_changed_process_serves_on(
        self, one_slot: TaskRunner, signals: Signals, tmp_path: Path, what: str, declared: Declare
    ) -> None:
        """Calls have results, logs and time limits after a task that closed files, replaced streams or the like."""
        if what == "alarm" and one_slot.capabilities.in_process:
            declared("in_process: an alarm that a body leaves goes off in the flow's own process")
            return
        _run_apart(one_slot, change_process, tmp_path, signals, what)
        assert signals.is_set("served")

    @pytest.mark.parametrize("what", ["handlers", "threads"])
    def test_L3_changed_process_does_not_hold_up_the_end(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path, what: str
    ) -> None:
        """Nor does it hold up the flow's end; a worker of the flow's own is gone then."""
        begin = time.monotonic()
        _run_apart(fresh_runner, change_only, tmp_path, signals, what)
        assert time.monotonic() - begin < PATIENCE
        if fresh_runner.capabilities.ends_with_driver:
            eventually(lambda: not _changed(signals), "the worker is gone", 10)
        signals.set("go")

    @pytest.mark.parametrize("hours", [1, -1])
    def test_R1_clock_of_the_driver_jumps(
        self, runner: TaskRunner, signals: Signals, monkeypatch: pytest.MonkeyPatch, hours: int
    ) -> None:
        """Delays, time limits and waiting go by a clock that never jumps, in the driver."""
        begin, clock = time.monotonic(), time.time
        with runner:
            delayed = fail_until.with_options(retries=2, retry_delay_seconds=0.5).submit(signals, "try", 3)
            late = spin.with_options(timeout_seconds=1.5).submit(signals)
            monkeypatch.setattr(time, "time", lambda: clock() + hours * _HOUR)
            assert delayed.result(timeout=PATIENCE) == 3
            assert isinstance(late.exception(timeout=PATIENCE), TaskRunTimeoutError)
            with pytest.raises(ExceptionGroup, match="nobody"):
                _fail_unseen(runner)
        signals.set("go")
        assert 1.0 <= time.monotonic() - begin < PATIENCE

    @pytest.mark.parametrize("hours", [1, -1])
    def test_R2_clock_of_a_worker_jumps(
        self, one_slot: TaskRunner, signals: Signals, tmp_path: Path, hours: int
    ) -> None:
        """The same on a worker."""
        _run_apart(one_slot, change_process, tmp_path, signals, f"clock {hours}")
        assert signals.is_set("served")

    def test_R3_body_without_memory(self, one_slot: TaskRunner, tmp_path: Path, signals: Signals) -> None:
        """A body that is refused memory fails by its MemoryError; the worker takes the next call."""
        _run_apart(one_slot, use_up_memory, tmp_path, signals)
        assert signals.is_set("served")

    def test_R3_body_without_descriptors(self, one_slot: TaskRunner, tmp_path: Path, signals: Signals) -> None:
        """A body that can open no more files fails by its OSError; the worker takes the next call."""
        _run_apart(one_slot, use_up_descriptors, tmp_path, signals)
        assert signals.is_set("served")

    @pytest.mark.parametrize("what", ["memory", "descriptors"])
    def test_R3_worker_that_runs_short(
        self, one_slot: TaskRunner, signals: Signals, declared: Declare, what: str
    ) -> None:
        """Where a worker has no memory or no descriptors left, each call has its result or the cause, in good time."""
        if one_slot.capabilities.in_process:
            declared("in_process: it is the flow's process that runs short")
            return
        with one_slot:
            run_short.submit(signals, what).exception(timeout=PATIENCE)
            sent = size_of.with_options(crash_retries=1).map([bytes(12 * _LARGE)] * 2)
            made = make_large.with_options(crash_retries=1).map([12 * _LARGE] * 2)
            futures: list[TaskFuture[Any]] = [*sent, *made]
            for future in futures:
                error = future.exception(timeout=PATIENCE)
                assert error is None or isinstance(error, (MemoryError, OSError, SerializationError, CrashedRun))
            _end(_changed(signals))
            assert add.submit(1, 2).result(timeout=PATIENCE) == 3

    def test_R2_stopped_worker(self, fresh_runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call whose worker is stopped by a signal is TimedOut in time; the next call is served, the flow ends."""
        if _stops_the_driver(fresh_runner, declared):
            return
        begin = time.monotonic()
        with fresh_runner:
            late = stop_own_process.with_options(timeout_seconds=1, crash_retries=0).submit(signals)
            assert isinstance(late.exception(timeout=PATIENCE), TaskRunTimeoutError)
            assert add.submit(1, 2).result(timeout=PATIENCE) == 3
        _see_the_end(fresh_runner, signals, begin)

    def test_R3_stopped_worker_that_goes_on(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call whose worker is stopped for a while has its result when the worker goes on, and ran once."""
        if _stops_the_driver(runner, declared):
            return
        with runner:
            future = note_pid_and_wait.submit(signals, "stopped")
            signals.wait("stopped")
            pid = int(signals.notes("stopped")[0])
            os.kill(pid, signal.SIGSTOP)
            signals.set("go")
            assert add.submit(1, 2).result(timeout=PATIENCE) == 3
            assert not future.done()
            os.kill(pid, signal.SIGCONT)
            assert future.result(timeout=PATIENCE) == "stopped"
        assert signals.count("stopped") == 1

    def test_R4_stopped_worker(self, fresh_runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call whose worker is stopped can be cancelled where running calls can; the flow's end does not hang."""
        if _stops_the_driver(fresh_runner, declared):
            return
        begin = time.monotonic()
        with fresh_runner:
            future = stop_own_process.with_options(crash_retries=0).submit(signals)
            signals.wait("changed")
            eventually(lambda: _is_stopped(int(signals.notes("changed")[0])), "the worker is stopped")
            if fresh_runner.capabilities.cancel == "none":
                declared("cancel: a running call is not cancelled; it waits until its worker goes on")
                os.kill(int(signals.notes("changed")[0]), signal.SIGCONT)
                assert future.result(timeout=PATIENCE) == "went on"
            else:
                assert future.cancel()
                assert future.cancelled()
            assert add.submit(1, 2).result(timeout=PATIENCE) == 3
        _see_the_end(fresh_runner, signals, begin)

    def test_L3_stopped_idle_worker(self, fresh_runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A worker that is stopped while it has nothing to do does not hold up the end of the flow."""
        if _stops_the_driver(fresh_runner, declared):
            return
        begin = time.monotonic()
        with fresh_runner:
            note_pid.submit(signals).result(timeout=PATIENCE)
            os.kill(int(signals.notes("changed")[0]), signal.SIGSTOP)
        _see_the_end(fresh_runner, signals, begin)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["kill", "segfault"])
    def test_R3_workers_that_die_as_results_leave(
        self, runner: TaskRunner, signals: Signals, declared: Declare, number: signal.Signals
    ) -> None:
        """Workers die while results, small and large, are on their way: each call has its result in the end."""
        if runner.capabilities.in_process:
            declared("in_process: there is no worker that could die")
            return
        over = threading.Event()
        with runner, _deaths(signals, number, over):
            try:
                sizes = [10 if index % 2 else _LARGE for index in range(24)]
                futures = note_pid_and_make.with_options(crash_retries=30).map([signals] * 24, sizes)
                results = [future.result(timeout=PATIENCE) for future in futures]
                assert [len(result) for result in results] == sizes
                assert all(set(result) == {120} for result in results)
            finally:
                over.set()
        assert signals.count("killed") >= 1


# Flows: top-level functions, so that a program of their own can name them.


def fork_among_others(signals: Signals, how: str) -> None:
    """Fork in one of many calls, and see that all others have their results."""
    before = note.map([signals] * 10, "ran", range(10))
    forked = fork.submit(signals, how)
    after = note.map([signals] * 10, "ran", range(10, 20))
    assert forked.result(timeout=PATIENCE) == _WAYS_OF_A_CHILD[how]
    assert before.result() + after.result() == list(range(20))


def fork_in_async_body(signals: Signals) -> None:
    """Fork in an async call."""
    assert fork_async.submit(signals).result(timeout=PATIENCE) == 0
    assert add.submit(1, 2).result(timeout=PATIENCE) == 3


def change_process(signals: Signals, what: str) -> None:
    """Have a task change its process, and see that calls after it are served."""
    assert change.submit(signals, what).result(timeout=PATIENCE) == what
    values = [identity.submit(value) for value in (1, bytes(_LARGE))]
    assert [future.result(timeout=PATIENCE) for future in values] == [1, bytes(_LARGE)]
    assert fail_until.with_options(retries=1, retry_delay_seconds=0.1).submit(signals, "try", 2).result(PATIENCE) == 2
    with _told() as records:
        assert talk.submit().result(timeout=PATIENCE) == "talked"
    assert {"logged", "printed"} <= set(records)
    late = spin.with_options(timeout_seconds=0.5).submit(signals)
    assert isinstance(late.exception(timeout=PATIENCE), TaskRunTimeoutError)
    signals.set("go")
    assert add.submit(1, 2).result(timeout=PATIENCE) == 3
    signals.set("served")


def change_only(signals: Signals, what: str) -> None:
    """Have a task change its process."""
    assert change.submit(signals, what).result(timeout=PATIENCE) == what


def use_up_memory(signals: Signals) -> None:
    """Have a task ask for more memory than it may have."""
    future = ask_for_memory.submit(signals)
    assert isinstance(future.exception(timeout=PATIENCE), MemoryError)
    assert future.state.type is StateType.FAILED
    assert identity.submit(bytes(_LARGE)).result(timeout=PATIENCE) == bytes(_LARGE)
    signals.set("served")


def use_up_descriptors(signals: Signals) -> None:
    """Have a task open more files than it may."""
    error = ask_for_descriptors.submit(signals).exception(timeout=PATIENCE)
    assert isinstance(error, OSError)
    assert error.errno == errno.EMFILE
    assert identity.submit(bytes(_LARGE)).result(timeout=PATIENCE) == bytes(_LARGE)
    signals.set("served")


_APART = """
import os
from turnout import flow
from turnout.testing import Signals, _faulty_workers

main = flow(task_runner={runner})(_faulty_workers.{name})
main(*{arguments!r})
# Whatever the flow did to this process, such as to its streams, shall not count against it now.
os._exit(0)
"""


def _run_apart(runner: TaskRunner, body: Callable[..., None], directory: Path, signals: Signals, *more: str) -> None:
    """Run a flow that changes the process of a task: in a program of its own if that is the flow's, too."""
    if runner.capabilities.in_process:
        script = _APART.format(runner=runner_expression(runner), name=body.__name__, arguments=(signals, *more))
        done = run_script(script, directory)
        assert done.returncode == 0, done.stderr
    else:
        flow(task_runner=runner)(body)(signals, *more)


def _changed(signals: Signals) -> list[int]:
    """Return the processes that live and were changed, or stopped, by a task."""
    pids = {int(pid) for pid in signals.notes("changed")} - {os.getpid()}
    return [pid for pid in pids if alive(pid)]


def _end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, pids)), "the changed workers are gone")


def _stops_the_driver(runner: TaskRunner, declared: Declare) -> bool:
    if runner.capabilities.in_process:
        declared("in_process: who stops the process of a body stops the flow")
    return runner.capabilities.in_process


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"


def _see_the_end(runner: TaskRunner, signals: Signals, begin: float) -> None:
    """See that a flow with a stopped worker has ended in time, with the worker if that was its own."""
    assert time.monotonic() - begin < PATIENCE
    if runner.capabilities.ends_with_driver:
        eventually(lambda: not _changed(signals), "the worker is gone", 10)


@contextlib.contextmanager
def _deaths(signals: Signals, number: signal.Signals, over: threading.Event) -> Iterator[None]:
    """Kill some workers meanwhile, as their bodies return: every third that says so."""

    def kill() -> None:
        seen = 0
        while not over.wait(0.001):
            pids = signals.notes("returns")
            for index in range(seen, len(pids)):
                if index % 3 == 2 and signals.count("killed") < _DEATHS:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pids[index]), number)
                        signals.note("killed")
            seen = len(pids)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _told() -> Iterator[list[str]]:
    """Collect what the logger of task runs is told meanwhile."""
    records: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logger, handler = logging.getLogger("turnout.task_runs"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _fail_unseen(runner: TaskRunner) -> None:
    @flow(task_runner=runner)
    def unseen() -> None:
        fail.with_options(retries=1, retry_delay_seconds=0.1).submit("nobody looks")

    unseen()


# Tasks.


@task
def fork(signals: Signals, how: str) -> int:
    """Fork; the child leaves the body in one of several ways. Return its exit status."""
    pid = os.fork()
    if pid:
        signals.note("parent")
        return _status_of(pid)
    signals.note("child", str(os.getpid()))
    # Nobody shall have to read of an error that is on purpose.
    sys.stderr = io.StringIO()
    if how == "raises":
        raise ValueError("of the child")
    if how == "leaves":
        sys.exit(_WAYS_OF_A_CHILD[how])
    if how == "exits":
        os._exit(_WAYS_OF_A_CHILD[how])
    return -1


@task
async def fork_async(signals: Signals) -> int:
    """Fork in a coroutine, and return the exit status of the child, which returns."""
    pid = os.fork()
    if pid:
        signals.note("parent")
        return await asyncio.to_thread(_status_of, pid)
    signals.note("child", str(os.getpid()))
    return -1


def _status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@task
def change(signals: Signals, what: str) -> str:
    """Do something to the process that outlasts the call."""
    signals.note("changed", str(os.getpid()))
    if what == "streams":
        _close_standard_streams()
    elif what == "directory":
        gone = Path(signals.directory) / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
    elif what == "output":
        sys.stdout, sys.stderr = io.StringIO(), None
        sys.stdout.close()
    elif what == "handlers":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
            _handle(number)
    elif what == "alarm":
        _handle(signal.SIGALRM)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
    elif what == "threads":
        for daemon in (True, False):
            threading.Thread(target=signals.wait, args=("never", 100), daemon=daemon).start()
    else:
        clock, seconds = time.time, float(what.removeprefix("clock ")) * _HOUR
        time.time = lambda: clock() + seconds
    return what


def _close_standard_streams() -> None:
    for number in range(3):
        with contextlib.suppress(OSError):
            os.close(number)


def _handle(number: signal.Signals) -> None:
    # Bodies that don't run in the main thread can't.
    with contextlib.suppress(ValueError):
        signal.signal(number, _refuse)


def _refuse(*_: object) -> None:
    raise RuntimeError("a signal for a task that is over")


@task(log_prints=True)
def talk() -> str:
    """Log and print something."""
    get_run_logger().info("logged")
    print("printed")
    return "talked"


@task
def note_pid(signals: Signals) -> None:
    """Note the process."""
    signals.note("changed", str(os.getpid()))


@task
def stop_own_process(signals: Signals) -> str:
    """Stop the process that runs this, as Ctrl-Z does."""
    signals.note("changed", str(os.getpid()))
    signals.set("changed")
    os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


@task
def note_pid_and_make(signals: Signals, size: int) -> bytes:
    """Note the process at the very end, and return some bytes."""
    value = b"x" * size
    signals.note("returns", str(os.getpid()))
    return value


@task
def make_large(size: int) -> bytes:
    """Return some bytes."""
    return bytes(size)


@task
def size_of(value: bytes) -> int:
    """Return the size of some bytes."""
    return len(value)


@task
def ask_for_memory(signals: Signals) -> int:
    """Ask for much more memory than the process may have."""
    with _limit(resource.RLIMIT_AS, _address_space() + 64_000_000):
        return len(bytearray(4_000_000_000))


@task
def ask_for_descriptors(signals: Signals) -> None:
    """Open more files than the process may."""
    files = []
    with _limit(resource.RLIMIT_NOFILE, _next_descriptor() + 4):
        try:
            while True:
                files.append(os.open(os.devnull, os.O_RDONLY))
        finally:
            for file in files:
                os.close(file)


@task
def run_short(signals: Signals, what: str) -> None:
    """Leave the process next to nothing."""
    signals.note("changed", str(os.getpid()))
    if what == "memory":
        kind, value = resource.RLIMIT_AS, _address_space() + 8_000_000
    else:
        kind, value = resource.RLIMIT_NOFILE, _next_descriptor()
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


@contextlib.contextmanager
def _limit(kind: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _next_descriptor() -> int:
    number = os.open(os.devnull, os.O_RDONLY)
    os.close(number)
    return number
