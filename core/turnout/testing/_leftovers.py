"""L3: what is left behind: nothing."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import contextlib
import gc
import os
import time
import weakref
from typing import TYPE_CHECKING

import pytest

from turnout import flow, task

from ._bodies import add, fail, identity
from ._crashes import die
from ._footprint import Footprint
from ._kit import Conformance, Declare, Signals, eventually, run_script, runner_expression
from ._open_calls import alive, postponed, until_stopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from turnout.runner import TaskRunner

__all__ = ["LeftoverConformance", "leaves_nothing"]

_ROUNDS = 3


class LeftoverConformance(Conformance):
    """L3."""

    def test_L3_flow_leaves_nothing(self, fresh_runner: TaskRunner) -> None:
        """After flows there are no threads, processes, open files or shared memory more than before."""
        self._leaves_nothing(fresh_runner, lambda: _ignore(add.map(range(50), 1).result()))

    def test_L3_large_values_leave_nothing(self, fresh_runner: TaskRunner) -> None:
        """Nor after flows that moved large values."""

        def move() -> None:
            values = identity.map([bytes(2_000_000)] * 4)
            assert [len(value) for value in identity.map(values).result()] == [2_000_000] * 4

        self._leaves_nothing(fresh_runner, move)

    def test_L3_failing_flow_leaves_nothing(self, fresh_runner: TaskRunner) -> None:
        """Nor after flows that failed."""

        def break_down() -> None:
            futures = [fail.submit(), identity.submit(postponed(fresh_runner)), *add.map(range(10), 1)]
            futures[0].result()

        self._leaves_nothing(fresh_runner, break_down, ValueError)

    def test_L3_async_tasks_leave_nothing(self, fresh_runner: TaskRunner) -> None:
        """Nor after flows with async tasks."""

        @task
        async def nap() -> None:
            import asyncio

            await asyncio.sleep(0.001)

        self._leaves_nothing(fresh_runner, lambda: _ignore([nap.submit().result() for _ in range(5)]))

    def test_L3_retries_leave_nothing(self, fresh_runner: TaskRunner) -> None:
        """Nor after flows with calls that were tried again, or still waited for it."""

        def retry() -> None:
            future = fail.with_options(retries=2, retry_delay_seconds=0.01).submit()
            waiting = postponed(fresh_runner)
            future.exception()
            waiting.cancel()

        self._leaves_nothing(fresh_runner, retry)

    def test_L3_timeouts_leave_nothing(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """Nor after flows with calls that ran out of time, once their bodies have ended."""
        numbers = iter(range(100))

        def time_out() -> None:
            signals = _fresh_signals(tmp_path, next(numbers))
            until_stopped.with_options(timeout_seconds=0.2).submit(signals).exception()
            signals.set("go")

        self._leaves_nothing(fresh_runner, time_out)

    def test_L3_cancelled_calls_leave_nothing(
        self, fresh_runner: TaskRunner, tmp_path: Path, declared: Declare
    ) -> None:
        """Nor after flows whose running calls were cancelled."""
        if fresh_runner.capabilities.inline or fresh_runner.capabilities.cancel == "none":
            declared("inline, or cancel: no running call is cancelled")
            self._leaves_nothing(fresh_runner, lambda: _ignore(postponed(fresh_runner).cancel()))
            return
        numbers = iter(range(100))

        def cancel() -> None:
            signals = _fresh_signals(tmp_path, next(numbers))
            future = until_stopped.submit(signals)
            signals.wait("begun")
            assert future.cancel()

        self._leaves_nothing(fresh_runner, cancel)

    def test_L3_crashes_leave_nothing(self, fresh_runner: TaskRunner, declared: Declare) -> None:
        """Nor after flows in which workers died."""
        if fresh_runner.capabilities.in_process:
            declared("in_process: there is no worker that could die")
            self._leaves_nothing(fresh_runner, lambda: _ignore(add.submit(1, 2).result()))
            return
        breaks = not fresh_runner.capabilities.isolates_crashes
        if breaks:
            declared("isolates_crashes: a pool that breaks may keep what it had open")
        doomed = die.with_options(crash_retries=1)
        self._leaves_nothing(fresh_runner, lambda: _ignore(doomed.submit("kill").exception()), breaks=breaks)

    def test_L3_base_exceptions_leave_nothing(self, fresh_runner: TaskRunner) -> None:
        """Nor after flows in whose body the user pressed Ctrl-C."""

        def interrupt() -> None:
            postponed(fresh_runner)
            raise KeyboardInterrupt

        self._leaves_nothing(fresh_runner, interrupt, KeyboardInterrupt)

    def test_L3_results_are_let_go(self, fresh_runner: TaskRunner) -> None:
        """After a flow nothing of Turnout's keeps arguments or results alive."""
        seen: list[weakref.ref[Thing]] = []

        @flow(task_runner=fresh_runner)
        def main() -> None:
            thing = Thing()
            result = identity.submit(identity.submit(thing)).result()
            seen.extend([weakref.ref(thing), weakref.ref(result)])

        main()
        gc.collect()
        assert [ref() for ref in seen] == [None, None]

    def test_L3_arguments_are_let_go_when_a_call_is_over(self, runner: TaskRunner) -> None:
        """The arguments of a call can go when it is over, while the flow goes on and its future is kept."""
        with runner:
            thing = Thing()
            ref = weakref.ref(thing)
            future = size_of_thing.submit(thing)
            assert future.result() == 1
            del thing

            def is_gone() -> bool:
                gc.collect()
                return ref() is None

            # The worker may still be busy letting go of its own reference.
            eventually(is_gone, "the argument is gone")

    def test_L3_dropped_results_are_let_go(self, runner: TaskRunner) -> None:
        """A result can go when nobody holds its future any more, while the flow goes on."""
        with runner:
            result = identity.submit(Thing()).result()
            ref = weakref.ref(result)
            del result

            def is_gone() -> bool:
                gc.collect()
                return ref() is None

            eventually(is_gone, "the result is gone")

    def test_L3_script_leaves_no_files(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """A script that ran flows leaves nothing in the directory for temporary files."""
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        done = run_script(
            _ORDINARY.format(runner=runner_expression(fresh_runner)), tmp_path, environment={"TMPDIR": str(temporary)}
        )
        assert (done.returncode, done.stdout) == (0, "45\n"), done.stderr
        assert list(temporary.iterdir()) == []

    def test_L3_killed_driver_leaves_no_worker(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path, declared: Declare
    ) -> None:
        """Ten seconds after SIGKILL of the driver none of its workers is left, busy or idle."""
        if not fresh_runner.capabilities.ends_with_driver:
            declared("ends_with_driver: its workers are somebody else's, and may outlive a driver that is killed")
            return
        script = _KILLED.format(runner=runner_expression(fresh_runner), signals=signals)
        # Returns when nobody holds the script's standard output any more.
        done = run_script(script, tmp_path)
        assert done.returncode == -9, done.stderr
        killed_at = float(signals.notes("killed")[0])
        eventually(lambda: not any(alive(int(pid)) for pid in signals.notes("pid")), "the workers are gone", 10)
        assert time.monotonic() - killed_at < 10
        assert signals.count("pid") >= 1

    def test_L3_failed_script_leaves_no_worker(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path
    ) -> None:
        """A script that an exception ends prints it once, has exit status 1, and leaves no worker."""
        script = _FAILING.format(runner=runner_expression(fresh_runner), signals=signals)
        done = run_script(script, tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("Traceback (most recent call last)") == 1
        assert done.stderr.endswith("LookupError: the end\n")
        assert not any(alive(int(pid)) for pid in signals.notes("pid"))
        assert signals.count("pid") == 4

    def test_L3_script_may_end_with_a_runner_up(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path
    ) -> None:
        """A script that never leaves its `with runner:` ends all the same, in good order, and leaves no worker."""
        script = _LEFT_UP.format(runner=runner_expression(fresh_runner), signals=signals)
        done = run_script(script, tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "last line\n", "")
        eventually(lambda: not any(alive(int(pid)) for pid in signals.notes("pid")), "the workers are gone", 10)
        assert signals.count("pid") == 4

    def _leaves_nothing(
        self,
        runner: TaskRunner,
        body: Callable[[], None],
        raises: type[BaseException] | None = None,
        *,
        breaks: bool = False,
    ) -> None:
        """Run a body as a flow, twice more after a first time, and compare what the process holds.

        With ``breaks`` the body breaks a pool of somebody else's, whose files and memory are not looked at then.
        """
        main = flow(task_runner=runner)(body)

        def run() -> None:
            if raises is None:
                main()
            else:
                with pytest.raises(raises):
                    main()

        # The first time may import modules and start what the standard library keeps, such as its resource tracker.
        at_first = Footprint.now()
        run()

        def threads() -> list[str]:
            return [name for name in Footprint.now().beyond(at_first) if name.startswith("thread turnout")]

        # The one of the timers takes a moment to see that there are none any more.
        eventually(lambda: not threads(), "the threads are gone", 5)

        def twice() -> None:
            run()
            run()

        # loky 3.5 keeps a pipe and a semaphore of each pool that broke: nothing that we could close.
        known = (*self.kept, *(("file", "memory") if breaks else ()))
        # A pool of somebody else's may let go of what it had a little later than it says.
        leaves_nothing(twice, known=known, patience=0.0 if runner.capabilities.ends_with_driver else 10.0)


class Thing:
    """Can be referred to weakly."""

    size = 1


@task
def size_of_thing(thing: Thing) -> int:
    """Return the size of a thing."""
    return thing.size


@task
def note_pid(signals: Signals, _: object) -> None:
    """Note the process that runs this, if it is not the driver."""
    signals.note("pid", str(os.getpid()))


@task
def note_pid_and_stay(signals: Signals, _: object) -> None:
    """Note the process, and stay for longer than a test lasts."""
    signals.note("pid", str(os.getpid()))
    signals.set("busy")
    time.sleep(100)


def leaves_nothing(run: Callable[[], object], known: tuple[str, ...] = (), patience: float = 0.0) -> None:
    """Assert that this process holds no more after ``run`` than before.

    What it leaves, it leaves each time. What is left once only may be somebody else's: a runner that the class keeps up
    looks after its cluster meanwhile, and may open a connection more.

    Parameters
    ----------
    run
        What is to leave nothing.
    known
        How names begin of what is known to stay.
    patience
        For how many seconds things may go after the end.
    """
    rest: list[str] = []
    for _ in range(_ROUNDS):
        before = Footprint.now()
        run()

        def left(before: Footprint = before) -> list[str]:
            return [name for name in Footprint.now().beyond(before) if not name.startswith(known)]

        with contextlib.suppress(TimeoutError):
            eventually(lambda: patience == 0 or not left(), timeout=patience)
        rest = left()
        if not rest:
            return
    assert rest == []


def _fresh_signals(directory: Path, number: int) -> Signals:
    path = directory / f"signals {number}"
    path.mkdir()
    return Signals(str(path))


def _ignore(_: object) -> None:
    """Return nothing, as the body of a flow whose result doesn't matter."""


_ORDINARY = """
from turnout import flow, task

@task
def double(x):
    return 2 * x

@flow(task_runner={runner})
def main():
    large = double.map([bytes(1_000_000)] * 3).result()
    return sum(double.map(range(10)).result()) // 2 * (len(large) // 3)

print(main())
"""

_KILLED = """
import os, signal, threading, time
from turnout import flow
from turnout.testing import Signals
from turnout.testing._leftovers import note_pid, note_pid_and_stay

signals = {signals!r}

def kill():
    signals.wait("busy")
    signals.note("killed", repr(time.monotonic()))
    os.kill(os.getpid(), signal.SIGKILL)

@flow(task_runner={runner})
def main():
    note_pid.map([signals] * 4, range(4)).result()
    threading.Thread(target=kill).start()
    note_pid_and_stay.submit(signals, 0).result()

main()
"""

_FAILING = """
from turnout import flow
from turnout.testing import Signals
from turnout.testing._leftovers import note_pid

@flow(task_runner={runner})
def main():
    note_pid.map([{signals!r}] * 4, range(4)).result()
    raise LookupError("the end")

main()
"""

_LEFT_UP = """
from turnout.testing import Signals
from turnout.testing._leftovers import note_pid

runner = {runner}
runner.__enter__()
for future in note_pid.map([{signals!r}] * 4, range(4)):
    future.result()
print("last line")
"""
