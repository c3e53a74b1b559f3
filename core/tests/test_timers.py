"""Timers: order, cancelling, and a thread that is there only while there is something to do."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
import weakref
from functools import partial

import pytest

from turnout._timers import after

FAR = 10_000.0


def timer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "turnout-timers"]


def join_timers() -> None:
    """Wait for the thread to end, which it does when nothing is left to do."""
    for thread in timer_threads():
        thread.join(30)
        assert not thread.is_alive()


def test_an_action_is_done_on_a_thread_of_its_own() -> None:
    done = threading.Event()
    names: list[str] = []

    def act() -> None:
        names.append(threading.current_thread().name)
        done.set()

    after(0, act)
    assert done.wait(30)
    assert names == ["turnout-timers"]
    join_timers()


def test_actions_come_in_order_of_time_and_then_of_asking() -> None:
    held, gate, done = threading.Event(), threading.Event(), threading.Event()
    order: list[int] = []

    def hold() -> None:
        held.set()
        gate.wait(30)

    after(0, hold)  # so that all are asked for before the first is done
    assert held.wait(30)
    numbers = list(range(50))
    random.Random(3).shuffle(numbers)
    for number in numbers:
        after(number // 5 - 100, partial(order.append, number))
    after(0, done.set)
    gate.set()
    assert done.wait(30)
    assert order == sorted(numbers, key=lambda number: number // 5)
    join_timers()


def test_the_nearer_one_comes_first_though_it_was_asked_for_last() -> None:
    done = threading.Event()
    cancel = after(FAR, lambda: None)
    after(0, done.set)
    assert done.wait(30)
    cancel()
    join_timers()


def test_a_cancelled_action_is_not_done() -> None:
    gate, done = threading.Event(), threading.Event()
    acted: list[str] = []
    after(0, lambda: gate.wait(30))
    cancel = after(0, lambda: acted.append("cancelled"))
    after(0, done.set)
    cancel()
    cancel()  # twice is fine
    gate.set()
    assert done.wait(30)
    assert acted == []
    join_timers()


def test_cancelling_what_was_done_is_fine() -> None:
    done = threading.Event()
    keep = after(FAR, lambda: None)
    cancel = after(0, done.set)
    assert done.wait(30)
    cancel()
    cancel()
    assert timer_threads(), "the other one is still waited for"
    keep()
    join_timers()


def test_cancelling_the_last_one_ends_the_thread() -> None:
    cancels = [after(FAR + number, lambda: None) for number in range(3)]
    assert len(timer_threads()) == 1
    for cancel in cancels:
        cancel()
    join_timers()


def test_cancelling_lets_go_of_the_action_at_once() -> None:
    class Large:
        def act(self) -> None: ...

    large = Large()
    alive = weakref.ref(large)
    keep = after(FAR, lambda: None)
    cancel = after(FAR, large.act)
    del large
    cancel()
    gc.collect()
    assert alive() is None
    keep()
    join_timers()


def test_what_was_done_is_let_go_while_others_are_waited_for() -> None:
    class Large:
        def __init__(self) -> None:
            self.done = threading.Event()

        def act(self) -> None:
            self.done.set()

    keep = after(FAR, lambda: None)
    large = Large()
    alive, done = weakref.ref(large), large.done
    after(0, large.act)
    del large
    assert done.wait(30)
    deadline = time.monotonic() + 10  # the thread may still be in the action
    while alive() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    keep()
    assert alive() is None
    join_timers()


@pytest.mark.parametrize("error", [ValueError("tick"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_action_that_raises_is_logged_and_the_next_one_is_done(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()

    def explode() -> None:
        raise error

    with caplog.at_level(logging.ERROR, "turnout"):
        after(0, explode)
        after(0, done.set)
        assert done.wait(30)
    assert [record.getMessage() for record in caplog.records] == ["A timer's action raised."]
    join_timers()


def test_an_action_may_set_and_cancel_timers() -> None:
    done = threading.Event()
    cancel = after(FAR, lambda: None)

    def act() -> None:
        cancel()
        after(0, done.set)

    after(0, act)
    assert done.wait(30)
    join_timers()


def test_it_starts_again_after_it_has_ended() -> None:
    for _ in range(200):
        done = threading.Event()
        after(0, done.set)
        assert done.wait(30)
    join_timers()


def test_a_delay_longer_than_any_wait_is_fine() -> None:
    cancel = after(threading.TIMEOUT_MAX * 2, lambda: None)
    cancel()
    join_timers()


def test_many_threads_may_set_and_cancel() -> None:
    gate = threading.Barrier(4)
    done = threading.Semaphore(0)
    wrong: list[int] = []

    def set_and_cancel() -> None:
        gate.wait(30)
        for number in range(200):
            cancel = after(FAR, partial(wrong.append, number))
            after(0, done.release)
            cancel()

    threads = [threading.Thread(target=set_and_cancel) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(800):
        assert done.acquire(timeout=30)
    for thread in threads:
        thread.join()
    assert wrong == []
    join_timers()
