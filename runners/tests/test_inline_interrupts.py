"""Ctrl-C and SIGTERM between any two instructions: what they strike, what has to wait, and what becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest

from turnout import flow, task
from turnout._signals import INTERRUPTS, call_inner, calls_flow, waits
from turnout._waiting import LOCK


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@calls_flow
def as_flow(body: Callable[[], Any]) -> Any:
    return body()


@task
def identity(value: Any) -> Any:
    return value


@pytest.fixture(autouse=True)
def _default_handler() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def handled() -> Any:
    return INTERRUPTS.handled(lambda: None)


def ours(source: str, names: dict[str, Any]) -> Callable[[], Any]:
    """Return a function of this source as if it were one of Turnout's own modules."""
    space: dict[str, Any] = {"__name__": "turnout._made_for_a_test", **names}
    exec(textwrap.dedent(source), space)
    function: Callable[[], Any] = space["function"]
    return function


def test_our_own_code_is_finished_first() -> None:
    steps: list[str] = []
    function = ours(
        """
        def function():
            interrupt()
            steps.append("after")
        """,
        {"interrupt": interrupt_in_c, "steps": steps},
    )

    def body() -> None:
        function()
        for _ in range(1_000_000_000):
            pass

    with pytest.raises(KeyboardInterrupt), handled():
        as_flow(body)
    assert steps == ["after"]


def _interrupt_after(begun: threading.Event) -> None:
    begun.wait(30)
    interrupt()


def interrupt_in_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_flow_is_struck_at_once() -> None:
    steps: list[str] = []

    def body() -> None:
        interrupt()
        steps.append("never")

    with pytest.raises(KeyboardInterrupt), handled():
        as_flow(body)
    assert steps == []


def test_our_waits_are_struck() -> None:
    gate = threading.Lock()
    gate.acquire()
    function = ours("def function():\n    return gate.acquire(timeout=30)\n", {"gate": gate})
    waits(function)
    thread = threading.Timer(0.05, interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), handled():
        function()
    thread.join()


def test_an_interrupt_ends_one_body_and_then_the_flow() -> None:
    seen: list[str] = []

    def hook() -> None:
        interrupt()
        seen.append("never")

    def body() -> None:
        for number in range(2):
            try:
                call_inner(hook if number == 0 else lambda: seen.append("second"))
            except KeyboardInterrupt:
                seen.append("first")
        INTERRUPTS.check()
        seen.append("never")

    with pytest.raises(KeyboardInterrupt), handled():
        as_flow(body)
    assert seen == ["first", "second"] or seen == ["first"]


def test_what_is_due_comes_at_the_end_of_the_block() -> None:
    function = ours("def function():\n    interrupt()\n", {"interrupt": interrupt_in_c})
    with pytest.raises(KeyboardInterrupt), handled():
        function()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_lock_of_all_futures_is_never_left_held() -> None:
    """A KeyboardInterrupt between the moment that the lock is had and the beginning of its block would do that."""

    @flow(task_runner="sequential")
    def main() -> None:
        futures = [identity.submit(number) for number in range(10)]
        begun.set()
        while True:
            for future in futures:
                _ = future.state

    for _ in range(100):
        begun = threading.Event()
        thread = threading.Thread(target=_interrupt_after, args=(begun,))
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            main()
        thread.join()
        free = threading.Event()

        def take(free: threading.Event = free) -> None:
            with LOCK:
                free.set()

        threading.Thread(target=take, daemon=True).start()
        assert free.wait(10)


def test_nothing_starts_behind_a_body_that_was_interrupted() -> None:
    ran: list[int] = []

    @task
    def body(number: int) -> None:
        ran.append(number)
        if number == 1:
            interrupt()

    @flow(task_runner="sequential")
    def main() -> None:
        for future in body.map(range(5)):
            future.wait()

    with pytest.raises(KeyboardInterrupt):
        main()
    assert ran == [0, 1]


def test_a_task_that_is_called_is_interrupted_too() -> None:
    @task
    def body() -> None:
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        body()


def test_a_subflow_in_a_task_does_not_keep_the_interrupt() -> None:
    ran: list[str] = []

    @flow(task_runner="sequential")
    def inner() -> None:
        interrupt()

    @task
    def calls_inner_flow() -> None:
        inner()

    @flow(task_runner="sequential")
    def main() -> None:
        calls_inner_flow.submit()
        ran.append("went on")

    with pytest.raises(KeyboardInterrupt):
        main()
    assert ran == []


def run(source: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(source)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_sigterm_runs_hooks_and_ends_the_process_by_itself() -> None:
    done = run("""
        import os, signal
        from turnout import flow

        @flow(task_runner="sequential", on_crashed=[lambda *_: print("hook", flush=True)])
        def main():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                print("finally", flush=True)

        main()
        print("never")
    """)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "finally\nhook\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_ignored_signals_stay_ignored() -> None:
    done = run("""
        import os, signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from turnout import flow

        @flow(task_runner="sequential")
        def main():
            os.kill(os.getpid(), signal.SIGINT)
            return "went on"

        print(main())
    """)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def test_the_second_ends_a_flow_that_ends() -> None:
    done = run("""
        import os, signal, time
        from turnout import flow

        def hook(*_):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)

        @flow(task_runner="sequential", on_crashed=[hook])
        def main():
            os.kill(os.getpid(), signal.SIGINT)

        main()
    """)
    assert done.returncode == -signal.SIGINT
    assert "Traceback" not in done.stderr
