"""Processes that are forked from a driver in which other threads are at work."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turnout import _backends, _forwarding, _prints, _serialization, _timers, _waiting, task
from turnout._timers import after
from turnout.runner import Outcome, OutcomeKind
from turnout.testing._batches import batched
from turnout.testing._depot import Depot
from turnout.worker import run_batch

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
