"""F10: Ctrl-C and SIGTERM, at every moment of a flow."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest

from turnout import flow

from ._bodies import add, gate, note
from ._kit import Conformance, Declare, Signals, eventually, runner_expression, script_environment
from ._open_calls import alive, postponed

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["InterruptConformance", "InterruptedScriptConformance"]

_LIMIT: Final = 15.0
"""Seconds that a flow may take to end: three times what is promised, for a machine on which other tests run. What is
interrupted would take twice as long, or for ever."""
_MARK: Final = "TURNOUT_TEST_MARK"

_both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: str(number.name))


@dataclass(frozen=True)
class Ended:
    """What became of a program that was told to end."""

    status: int
    out: str
    err: str
    seconds: float
    processes: list[str]
    files: list[str]

    def was_ended_by(self, number: int) -> bool:
        """Whether it ended as a program does that a signal ended, or that has answered it with a KeyboardInterrupt."""
        return self.status == -number

    def left_nothing(self) -> bool:
        """Whether none of its processes and temporary files is left."""
        return not self.processes and not self.files


class InterruptedScriptConformance(Conformance):
    """F10, in programs of their own. Not part of the whole kit: pools may keep a program until their calls are over."""

    moments: ClassVar[int] = 4
    """How many moments are tried at random."""

    @_both
    @pytest.mark.parametrize("moment", ["starting", "submitting", "waiting", "in a hook", "stopping"])
    def test_F10_script(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path, moment: str, number: signal.Signals
    ) -> None:
        """A script ends within 5 s, by the signal, whatever its flow does, and leaves no process and no file."""
        source = _scripted(fresh_runner, signals, _MAIN, moment=moment)
        ended = interrupted([source], tmp_path, signals, [(moment, number)])
        _check(ended, number, fresh_runner)

    def test_F10_random_moments(self, fresh_runner: TaskRunner, tmp_path: Path) -> None:
        """So it is at any moment; and if it came too late, the flow has ended well."""
        dice = random.Random(type(self).__name__)
        for trial in range(self.moments):
            directory = tmp_path / str(trial)
            (directory / "signals").mkdir(parents=True)
            signals = Signals(str(directory / "signals"))
            number = dice.choice([signal.SIGINT, signal.SIGTERM])
            moment = dice.choice(["starting", "submitting", "stopping"])
            source = _scripted(fresh_runner, signals, _MAIN, moment=moment)
            ended = interrupted([source], directory, signals, [(moment, number)], delay=dice.uniform(0, 0.2))
            _check(ended, number, fresh_runner)

    @_both
    def test_F10_session(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path, number: signal.Signals
    ) -> None:
        """So does a script in a `with runner:` block."""
        source = _scripted(fresh_runner, signals, _SESSION)
        ended = interrupted([source], tmp_path, signals, [("waiting", number)])
        _check(ended, number, fresh_runner)

    @_both
    def test_F10_async_flow(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path, number: signal.Signals
    ) -> None:
        """So does a script with an async flow."""
        source = _scripted(fresh_runner, signals, _ASYNC)
        ended = interrupted([source], tmp_path, signals, [("waiting", number)])
        _check(ended, number, fresh_runner, tracebacks=2)

    def test_F10_flow_with_a_time_limit(self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path) -> None:
        """So does a script whose flow has a time limit, and whose body runs in a thread for that."""
        source = _scripted(fresh_runner, signals, _LIMITED)
        ended = interrupted([source], tmp_path, signals, [("waiting", signal.SIGINT)])
        _check(ended, signal.SIGINT, fresh_runner)

    def test_F10_flow_in_another_thread(self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path) -> None:
        """A flow in another thread is ended when Ctrl-C has ended the main one."""
        source = _scripted(fresh_runner, signals, _THREAD)
        ended = interrupted([source], tmp_path, signals, [("waiting", signal.SIGINT)])
        # Python forgets why it ends if a thread loads a module meanwhile.
        assert ended.status in (-signal.SIGINT, 1), ended
        assert ended.seconds < _LIMIT
        assert ended.left_nothing(), ended
        assert ended.err.count("Traceback") == 1, ended.err

    @_both
    def test_F10_command(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path, number: signal.Signals
    ) -> None:
        """`turnout run` ends with the status 130 or 143, and shows no traceback."""
        source = _scripted(fresh_runner, signals, _COMMAND)
        ended = interrupted([source, "run"], tmp_path, signals, [("waiting", number)])
        assert ended.status == 128 + number, ended
        assert ended.seconds < _LIMIT
        assert ended.left_nothing(), ended
        assert "Traceback" not in ended.err or not fresh_runner.capabilities.ends_with_driver, ended.err

    def test_F10_body_that_resists(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path, declared: Declare
    ) -> None:
        """A body that can't be stopped does not keep a script that was told to end."""
        capabilities = fresh_runner.capabilities
        if capabilities.inline or (capabilities.in_process and not capabilities.frees_slot):
            declared("inline, or frees_slot: such a body holds the program's own thread, or one that Python waits for")
            signals.set("go")
        source = _scripted(fresh_runner, signals, _STUBBORN)
        ended = interrupted([source], tmp_path, signals, [("begun", signal.SIGINT)])
        if not signals.is_set("go"):
            assert ended.was_ended_by(signal.SIGINT), ended
            assert ended.seconds < _LIMIT
            assert ended.left_nothing(), ended

    def test_F10_second_ctrl_c(
        self, fresh_runner: TaskRunner, signals: Signals, tmp_path: Path, declared: Declare
    ) -> None:
        """A second Ctrl-C ends a script at once, though its flow still waits for bodies that can't be stopped."""
        source = _scripted(fresh_runner, signals, _STUBBORN)
        orders = [("begun", signal.SIGINT), ("ending", signal.SIGINT)]
        ended = interrupted([source], tmp_path, signals, orders, leaves=not fresh_runner.capabilities.ends_with_driver)
        assert ended.was_ended_by(signal.SIGINT), ended
        assert ended.seconds < 2
        if fresh_runner.capabilities.ends_with_driver:
            assert not ended.processes
        else:
            declared("ends_with_driver: a pool of somebody else's may outlive a driver that ends at once")
        signals.set("go")


class InterruptConformance(Conformance):
    """F10, in this process."""

    def test_F10_nothing_new_starts(self, one_slot: TaskRunner, signals: Signals) -> None:
        """After Ctrl-C no call begins that had not, the caller gets the KeyboardInterrupt, and the runner goes on."""

        @flow(task_runner=one_slot)
        def main() -> None:
            threading.Thread(target=_interrupt_when, args=(signals, "begun")).start()
            gate.submit(signals)
            for future in note.map([signals] * 20, "ran", range(20)):
                future.wait()

        with pytest.raises(KeyboardInterrupt):
            main()
        signals.set("go")
        with one_slot:
            assert add.map(range(5), 1).result() == [1, 2, 3, 4, 5]
        # What an executor has taken it runs: one batch for each slot.
        assert signals.count("ran") <= (1 if one_slot.capabilities.cancel == "none" else 0)

    def test_F10_interrupts_are_not_lost(self, runner: TaskRunner, signals: Signals) -> None:
        """Wherever Ctrl-C comes while a flow submits, it arrives, the flow ends, and the runner goes on."""
        for _ in range(10):
            begun = threading.Event()

            @flow(task_runner=runner)
            def main(begun: threading.Event = begun) -> None:
                while True:
                    futures = add.map(range(20), 1)
                    begun.set()
                    assert sum(futures.result()) == 210

            thread = threading.Thread(target=_interrupt_after, args=(begun,))
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                main()
            thread.join()
        with runner:
            assert add.map(range(5), 1).result() == [1, 2, 3, 4, 5]

    def test_F10_signal_that_another_thread_gets(self, runner: TaskRunner, signals: Signals) -> None:
        """Ctrl-C ends an async flow that sleeps, even if the system interrupts another thread for it."""

        @flow(task_runner=runner)
        async def main() -> None:
            threading.Thread(target=_interrupt_asleep, args=(signals, threading.get_ident())).start()
            await gate.submit(signals)

        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
        signals.set("go")

    def test_F10_handlers_are_given_back(self, runner: TaskRunner) -> None:
        """The handlers of both signals are what they were when a flow or a block has ended; those of others stay."""
        numbers = (signal.SIGINT, signal.SIGTERM)

        def theirs(*_: object) -> None:
            """Do nothing."""

        @flow(task_runner=runner)
        def main() -> list[Any]:
            assert add.submit(1, 2).result() == 3
            return [signal.getsignal(number) for number in numbers]

        before = [signal.getsignal(number) for number in numbers]
        main()
        with runner:
            add.submit(1, 2).result()
        assert [signal.getsignal(number) for number in numbers] == before
        with contextlib.ExitStack() as stack:
            for number in numbers:
                stack.callback(signal.signal, number, signal.signal(number, theirs))
            assert main() == [theirs, theirs]

    def test_F10_caught_in_the_body(self, runner: TaskRunner) -> None:
        """A body may take Ctrl-C as its cue: it goes on, submits more, and returns."""

        @flow(task_runner=runner)
        def main() -> int:
            waiting = postponed(runner)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                waiting.wait(30)
            except KeyboardInterrupt:
                waiting.cancel()
            return int(add.submit(1, 2).result())

        assert main() == 3


def _check(ended: Ended, number: int, runner: TaskRunner, tracebacks: int = 1) -> None:
    assert ended.seconds < _LIMIT, ended
    assert ended.left_nothing(), ended
    if ended.out == "done\n":
        # It came too late for the flow; it may have met the end of the program.
        assert ended.status in (0, -number), ended
        return
    assert ended.was_ended_by(number), ended
    if runner.capabilities.ends_with_driver:
        # No more than Python's own.
        assert ended.err.count("Traceback") <= (tracebacks if number == signal.SIGINT else 0), ended.err
        assert number != signal.SIGINT or ended.err.endswith("KeyboardInterrupt\n"), ended.err


def interrupted(
    command: Sequence[str],
    directory: Path,
    signals: Signals,
    orders: Sequence[tuple[str, int]],
    *,
    delay: float = 0.0,
    leaves: bool = False,
) -> Ended:
    """Run a script, send it signals, as a terminal does, and return what became of it.

    Parameters
    ----------
    command
        Its source; and ``"run"`` after that, if it is to be run by ``turnout run``.
    directory
        Where it runs.
    signals, orders
        Which signal is sent to its process group after which event.
    delay
        How long after, in seconds.
    leaves
        It may leave processes, which are ended then.
    """
    source, *how = command
    script, temporary, mark = directory / "script.py", directory / "temporary", uuid.uuid4().hex
    script.write_text(source)
    temporary.mkdir()
    words = ["-m", "turnout", "run", f"{script}:main", "--log-level", "CRITICAL"] if how else [str(script)]
    with (directory / "out").open("w+") as out, (directory / "err").open("w+") as err:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=directory,
            env=script_environment({_MARK: mark, "TMPDIR": str(temporary)}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            sent = _send_all(process, signals, orders, delay)
            process.wait(20)
            seconds = time.monotonic() - sent
            if not leaves:
                with contextlib.suppress(TimeoutError):
                    eventually(lambda: not list(_marked(mark)), timeout=10)
            left = [f"{pid} {_command(pid)}" for pid in _marked(mark)]
        finally:
            for pid in [process.pid, *_marked(mark)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        files = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*"))
        return Ended(process.returncode, out.read(), err.read(), seconds, left, files)


def _send_all(
    process: subprocess.Popen[bytes], signals: Signals, orders: Sequence[tuple[str, int]], delay: float
) -> float:
    """Send each signal after its event; return when the last was sent."""
    for event, number in orders:
        eventually(lambda event=event: signals.is_set(event) or process.poll() is not None, event)  # type: ignore[misc]
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    return time.monotonic()


def _marked(mark: str) -> Iterator[int]:
    """Yield the living processes that have a mark in their environment; none where the system doesn't tell."""
    wanted = f"{_MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0") and alive(int(path.parent.name)):
                yield int(path.parent.name)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _interrupt_when(signals: Signals, event: str) -> None:
    signals.wait(event)
    os.kill(os.getpid(), signal.SIGINT)


def _interrupt_asleep(signals: Signals, main: int) -> None:
    signals.wait("begun")
    eventually(lambda: sys._current_frames()[main].f_code.co_name == "select", "the loop sleeps")
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


def _interrupt_after(begun: threading.Event) -> None:
    begun.wait(30)
    time.sleep(random.uniform(0, 0.005))
    os.kill(os.getpid(), signal.SIGINT)


def _scripted(runner: TaskRunner, signals: Signals, source: str, **words: str) -> str:
    head = _HEAD.format(runner=runner_expression(runner), signals=signals)
    return head + textwrap.dedent(source).format(**words)


_HEAD: Final = """
import asyncio, threading, time
from turnout import flow, task
from turnout.testing import Signals
from turnout.testing._bodies import add
from turnout.testing._open_calls import stubborn, until_stopped

signals = {signals!r}
runner = {runner}

def seconds_in_python(count):
    end = time.monotonic() + count
    while time.monotonic() < end:
        time.sleep(0.001)
"""

_MAIN: Final = """
moment = "{moment}"

def at(name):
    if moment == name:
        signals.set(name)

def hook(*_):
    at("in a hook")
    if moment == "in a hook":
        seconds_in_python(30)

@task(on_completion=[hook])
def hooked():
    return 1

@task
def wait_for_go():
    signals.set("begun")
    at("waiting")
    signals.wait("go")

@flow(task_runner=runner)
def main():
    at("starting")
    add.map(range(50), 1).result()
    at("submitting")
    for _ in range(20 if moment in ("starting", "submitting") else 1):
        add.map(add.map(range(20), 1), 1).result()
    hooked.submit().result()
    if moment == "waiting":
        wait_for_go.submit().result()
    at("stopping")

main()
print("done", flush=True)
"""

_SESSION: Final = """
with runner:
    signals.set("waiting")
    until_stopped.submit(signals)
    seconds_in_python(30)
print("done", flush=True)
"""

_ASYNC: Final = """
@flow(task_runner=runner)
async def main():
    signals.set("waiting")
    await until_stopped.submit(signals)

asyncio.run(main())
print("done", flush=True)
"""

_LIMITED: Final = """
@flow(task_runner=runner, timeout_seconds=60)
def main():
    signals.set("waiting")
    until_stopped.submit(signals).result()

main()
print("done", flush=True)
"""

_THREAD: Final = """
@flow(task_runner=runner)
def main():
    add.map(range(5), 1).result()
    signals.wait("started")
    signals.set("waiting")
    until_stopped.submit(signals).result()

thread = threading.Thread(target=main)
thread.start()
# Interrupted in start(), Python would wait for the thread, and show its error, too.
signals.set("started")
thread.join()
"""

_COMMAND: Final = """
@flow(task_runner=runner)
def main():
    signals.set("waiting")
    until_stopped.submit(signals).result()
"""

_STUBBORN: Final = """
@task
def resist():
    while True:
        try:
            signals.set("begun")
            signals.wait("go")
            break
        except BaseException:
            signals.set("ending")
    signals.set("ended")

@flow(task_runner=runner)
def main():
    try:
        resist.submit().result()
    finally:
        signals.set("ending")

main()
print("done", flush=True)
"""
