"""Calls that stay open for as long as a test wants, and other things that the tests of futures and faults share."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from turnout import Task, TaskFuture, flow, task

from ._kit import until_retrying

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.runner import TaskRunner

    from ._kit import Signals

__all__ = [
    "alive",
    "beside",
    "failure_of",
    "note_pid_and_wait",
    "postponed",
    "second_time",
    "stubborn",
    "until_stopped",
]

P = ParamSpec("P")
R = TypeVar("R")


def postponed(runner: TaskRunner, **options: Any) -> TaskFuture[int]:
    """Submit a call that fails at once, to be tried again in an hour: it is open until somebody cancels it."""
    future = beside(_postponed, runner).with_options(**options).submit()
    # Where nobody tells that a body begins, a call that was sent counts as running, and can't be cancelled.
    until_retrying(future)
    return future


def second_time(runner: TaskRunner) -> Task[..., object]:
    """Return a task whose calls fail at first; the second time they set "again", wait for "go", and return a value."""
    return beside(_second_time, runner)


def beside(this: Task[P, R], runner: TaskRunner) -> Task[P, R]:
    """Return a task whose calls may be open while the flow goes on.

    An inline runner is through with a call before ``submit`` returns. So there the call runs on threads instead, and
    the test sees how the rest of the flow, which does run on the runner, gets along with it.
    """
    return this.with_options(task_runner="thread") if runner.capabilities.inline else this


@task(name="postponed", retries=1, retry_delay_seconds=3600)
def _postponed() -> int:
    raise ConnectionError("try again in an hour")


@task(name="second_time", retries=1, retry_delay_seconds=0.02)
def _second_time(signals: Signals, value: object = None) -> object:
    signals.note("attempt")
    if signals.count("attempt") == 1:
        raise ConnectionError("try again at once")
    signals.set("again")
    signals.wait("go")
    return value


@task
def until_stopped(signals: Signals) -> str:
    """Set "begun", wait for "go", and set "ended" however the wait ends."""
    signals.note("pid", str(os.getpid()))
    try:
        # Inside: whoever waits for it may have the body stopped before it comes to the next line.
        signals.set("begun")
        signals.wait("go")
    finally:
        signals.set("ended")
    return "went on"


@task
def stubborn(signals: Signals) -> str:
    """Set "begun" and wait for "go", whatever is done to the thread, as C code does."""
    signals.note("pid", str(os.getpid()))
    while True:
        # "begun" in here: who waits for it may have the body stopped before it comes to the next line.
        with contextlib.suppress(BaseException):
            signals.set("begun")
            signals.wait("go")
            break
    signals.set("ended")
    return "went on"


@task
def note_pid_and_wait(signals: Signals, name: str) -> str:
    """Note the process under ``name``, set the signal of that name, wait for "go" and return the name."""
    signals.note(name, str(os.getpid()))
    signals.set(name)
    signals.wait("go")
    return name


def failure_of(runner: TaskRunner, body: Callable[[], object]) -> BaseException:
    """Return the exception that the call of a task with this body ends with."""
    found: list[BaseException | None] = []

    @flow(task_runner=runner)
    def look() -> None:
        found.append(task(body).submit().exception())

    look()
    (error,) = found
    assert error is not None, "the call has a result"
    return error


def alive(pid: int) -> bool:
    """Return whether a process runs; one that is dead but not yet reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"
