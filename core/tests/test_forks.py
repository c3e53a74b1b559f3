"""Processes that are forked from a driver in which other threads are at work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest

from turnout import _backends, _forwarding, _prints, _serialization, _timers, _waiting, task
from turnout._bodies import call_async_body, call_body
from turnout._timers import after
from turnout.runner import Outcome, OutcomeKind
from turnout.testing._batches import batched
from turnout.testing._depot import Depot
from turnout.worker import run_batch

if TYPE_CHECKING:
    from turnout._context import Scope

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

LOCKS = {
    "timers": _timers._timers._changed,
    "functions": _serialization._functions_lock,
    "forwarding": _forwarding._lock,
    "prints": _prints._lock,
}


@contextlib.contextmanager
def held_elsewhere(lock: Any) -> Iterator[None]:
    """Have another thread hold a lock meanwhile."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            let_go.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    try:
        yield
    finally:
        let_go.set()
        thread.join()


def in_a_fork(body: Callable[[], bool]) -> bool:
    """Return what a function returns in a forked process, False also if it doesn't end."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.write(writer, b"1" if body() else b"0")
        os._exit(0)
    os.close(writer)
    killer = threading.Timer(20, os.kill, (child, 9))
    killer.start()
    told = os.read(reader, 1)
    killer.cancel()
    os.close(reader)
    os.waitpid(child, 0)
    return told == b"1"


@task(log_prints=True)
def noisy(value: int) -> int:
    print(value)
    return value


@pytest.mark.parametrize("name", LOCKS)
def test_a_batch_runs_in_a_fork_whatever_other_threads_hold(name: str) -> None:
    with batched("most"), Depot() as depot:
        for number in range(8):
            noisy.submit(number)
        depot.work(0)
        batch = depot.batches[2]
        assert len(batch.calls) > 1

        def run() -> bool:
            outcomes: list[Outcome] = []
            run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend)
            return sum(outcome.kind is OutcomeKind.VALUE for outcome in outcomes) == len(batch.calls)

        with held_elsewhere(LOCKS[name]):
            assert in_a_fork(run)
        depot.work_off(1)


def test_timers_of_the_parent_are_not_those_of_a_fork() -> None:
    done = threading.Event()
    cancel = after(0.05, done.set)

    def its_own() -> bool:
        mine = threading.Event()
        after(0.01, mine.set)
        return mine.wait(10)

    assert in_a_fork(its_own)
    assert done.wait(10)
    cancel()


def test_a_runner_starts_in_a_fork() -> None:
    def its_own() -> bool:
        with Depot() as depot:
            future = noisy.submit(3)
            depot.work(0)
            return future.result() == 3

    with held_elsewhere(_waiting.LOCK), held_elsewhere(_backends._held_lock):
        assert in_a_fork(its_own)


def leave(status: object) -> None:
    raise SystemExit(status)


def fail() -> None:
    raise ValueError("of the child")


def status_of(child: Callable[[], object]) -> Callable[[], int]:
    """Return a body that forks, does something in the child, and returns the child's exit status."""

    def body() -> int:
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        child()
        return -1

    return body


class Silent:
    """A call of which there is nothing to know."""

    log_prints = False
    counters = None


@pytest.mark.parametrize(
    ("child", "status"),
    [(lambda: None, 0), (fail, 1), (lambda: leave(7), 7), (lambda: leave(None), 0), (lambda: leave("enough"), 1)],
    ids=["returns", "raises", "leaves", "leaves without a word", "leaves with words"],
)
@pytest.mark.parametrize("kind", ["called", "sync", "async"])
def test_a_child_that_a_body_forks_ends_with_the_body(child: Callable[[], object], status: int, kind: str) -> None:
    body, parent, scope = status_of(child), os.getpid(), cast("Scope", Silent())

    async def body_async() -> int:
        return body()

    async def run_async() -> Any:
        return await call_async_body(body_async, (), {}, scope)

    try:
        if kind == "called":
            found = task(body)()
        elif kind == "sync":
            found = call_body(body, (), {}, scope)
        else:
            found = asyncio.run(run_async())
    finally:
        if os.getpid() != parent:
            os._exit(99)
    assert found == status
