"""The pool of threads, driven through the seam by a small host whose batches do what the test says."""

from __future__ import annotations

import contextvars
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from turnout import RunnerStoppedError, TaskFuture, _attempts, allow_failure, cancelled, flow, task
from turnout._timers import after
from turnout._waiting import LOCK
from turnout.runner import Batch, Host
from turnout_runners.thread import ConcurrentTaskRunner, ThreadPoolTaskRunner

Body = Callable[[], "Sequence[Load] | None"]


class Load(Batch):
    """A batch that is one function; what it returns is ready then."""

    def __init__(self, seq: float, body: Body) -> None:
        self.seq = seq  # type: ignore[assignment]  # so that there is always one between two others
        self.body = body  # type: ignore[assignment]
        self.calls = ()
        self.over = threading.Event()
        self.thread: threading.Thread | None = None


class Crew:
    """A started runner, and what it has run."""

    def __init__(self, max_workers: int) -> None:
        self.runner = ThreadPoolTaskRunner(max_workers, thread_name_prefix="crew")
        self.ran: list[float] = []
        self.now = self.most = 0
        self._lock = threading.Lock()
        self._numbers = iter(range(10**9))
        self.runner.start(Host(execute=self.execute, report=lambda batch, outcomes: None))

    def execute(self, batch: Batch) -> Sequence[Batch]:
        assert isinstance(batch, Load)
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.ran.append(batch.seq)
        batch.thread = threading.current_thread()
        try:
            return batch.body() or ()  # type: ignore[operator]
        finally:
            with self._lock:
                self.now -= 1
            batch.over.set()

    def submit(self, body: Body = lambda: None, seq: float | None = None) -> Load:
        load = Load(next(self._numbers) if seq is None else seq, body)
        self.runner.submit(load)
        return load

    def block(self) -> Blocked:
        """Submit a batch that runs until it is released, and wait for its beginning."""
        blocked = Blocked()
        blocked.load = self.submit(blocked.run)
        assert blocked.begun.wait(30)
        return blocked


@task
def echo(value: int) -> int:
    return value


class Blocked:
    def __init__(self) -> None:
        self.begun, self.gate = threading.Event(), threading.Event()
        self.then: Sequence[Load] = ()
        self.load: Load

    def run(self) -> Sequence[Load]:
        self.begun.set()
        assert self.gate.wait(30)
        return self.then

    def release(self) -> None:
        self.gate.set()


def finish(*loads: Load) -> None:
    for load in loads:
        assert load.over.wait(30)


def pool_of(crew: Crew) -> Any:
    """Return what is inside of the runner, for the few races that can't be forced from outside."""
    return crew.runner._pool


def crew_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("crew-")]


Hire = Callable[[int], Crew]


@pytest.fixture
def hire() -> Iterator[Hire]:
    crews: list[Crew] = []

    def make(max_workers: int) -> Crew:
        crews.append(Crew(max_workers))
        return crews[-1]

    yield make
    for crew in crews:
        crew.runner.stop()
    for thread in crew_threads():
        thread.join(30)
    assert crew_threads() == []


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# Threads


def test_no_thread_starts_before_there_is_something_to_run(hire: Hire) -> None:
    crew = hire(4)
    assert crew.runner.slots() == 4
    assert crew_threads() == []


def test_there_are_as_many_threads_as_are_needed(hire: Hire) -> None:
    crew = hire(8)
    blocked = []
    for count in range(1, 4):
        blocked.append(crew.block())
        assert len(crew_threads()) == count
    for one in blocked:
        one.release()


def test_there_are_never_more_threads_than_workers(hire: Hire) -> None:
    crew = hire(2)
    blocked = [crew.block(), crew.block()]
    queued = [crew.submit() for _ in range(50)]
    assert len(crew_threads()) == 2
    assert len(crew.ran) == 2
    for one in blocked:
        one.release()
    finish(*queued)
    assert len(crew_threads()) == 2
    assert crew.most <= 2


def test_threads_are_named_and_do_not_keep_the_process_alive(hire: Hire) -> None:
    crew = hire(2)
    blocked = [crew.block(), crew.block()]
    assert sorted(thread.name for thread in crew_threads()) == ["crew-1", "crew-2"]
    assert all(thread.daemon for thread in crew_threads())
    for one in blocked:
        one.release()


def test_as_many_run_at_once_as_there_are_workers(hire: Hire) -> None:
    crew = hire(3)
    meeting = threading.Barrier(3)

    def meet() -> None:
        meeting.wait(30)

    finish(*[crew.submit(meet) for _ in range(30)])
    assert crew.most == 3


def test_idle_threads_end_when_the_runner_stops(hire: Hire) -> None:
    crew = hire(3)
    blocked = [crew.block() for _ in range(3)]
    threads = crew_threads()
    for one in blocked:
        one.release()
    finish(*[one.load for one in blocked])
    crew.runner.stop()
    assert [thread for thread in threads if thread.is_alive()] == []


def test_stopping_twice_and_starting_again(hire: Hire) -> None:
    crew = hire(1)
    finish(crew.submit())
    crew.runner.stop()
    crew.runner.stop()
    with pytest.raises(RunnerStoppedError, match=r"ThreadPoolTaskRunner\(.*\) is not running. Submit in a flow"):
        crew.submit()
    crew.runner.start(Host(execute=crew.execute, report=lambda batch, outcomes: None))
    finish(crew.submit())


def test_stopping_waits_for_a_thread_that_is_just_being_started(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = hire(1)
    starting, stopped = threading.Event(), threading.Event()
    start = threading.Thread.start

    def slow_start(thread: threading.Thread) -> None:
        if thread.name.startswith("crew-"):
            starting.set()
            stopped.wait(0.2)  # for nothing, since stopping has to wait
        start(thread)

    def stop() -> None:
        assert starting.wait(30)
        crew.runner.stop()
        stopped.set()

    monkeypatch.setattr(threading.Thread, "start", slow_start)
    stopper = threading.Thread(target=stop)
    start(stopper)
    crew.submit()
    stopper.join(30)
    assert stopped.is_set()
    assert not crew_threads()


def test_a_recipe_has_no_threads_and_stops_all_the_same() -> None:
    runner = ThreadPoolTaskRunner(2)
    runner.stop()
    with pytest.raises(RunnerStoppedError):
        runner.submit(Load(0, lambda: None))
    assert runner.cancel(Load(0, lambda: None)) is False


def test_stopping_from_within_a_batch_does_not_wait_for_itself(hire: Hire) -> None:
    crew = hire(1)
    finish(crew.submit(crew.runner.stop))


def test_a_thread_that_does_not_start_costs_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = threading.Thread.start, [1]

    def start(self: threading.Thread) -> None:
        if self.name == "crew-1" and refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with ThreadPoolTaskRunner(1, "crew"):
        first, second = echo.submit(1), echo.submit(2)
        first.exception(0)
        over = second.wait(10)
        second.cancel()
    assert over, "the slot serves the next call"


# What runs next, and where


def test_what_follows_runs_in_the_finishing_thread(hire: Hire) -> None:
    crew = hire(4)
    last = Load(3, lambda: None)
    middle = Load(2, lambda: [last])
    first = crew.submit(lambda: [middle], seq=1)
    finish(first, middle, last)
    assert first.thread is middle.thread is last.thread
    assert len(crew_threads()) == 1
    assert crew.ran == [1, 2, 3]


def test_a_long_chain_needs_no_stack(hire: Hire) -> None:
    crew = hire(2)
    count = 0

    def go_on() -> Sequence[Load] | None:
        nonlocal count
        count += 1
        return [Load(count, go_on)] if count < 20_000 else over.set()  # type: ignore[func-returns-value]

    over = threading.Event()
    crew.submit(go_on)
    assert over.wait(30)
    assert count == 20_000


def test_what_becomes_ready_together_is_spread_over_free_slots(hire: Hire) -> None:
    crew = hire(3)
    meeting = threading.Barrier(3)

    def meet() -> None:
        meeting.wait(30)

    leaves = [Load(number, meet) for number in range(1, 4)]
    crew.submit(lambda: leaves, seq=0)
    finish(*leaves)
    assert len({leaf.thread for leaf in leaves}) == 3


def test_one_slot_goes_by_number(hire: Hire) -> None:
    crew = hire(1)
    blocked = crew.block()
    loads = [crew.submit(seq=seq) for seq in (5, 3, 4, 9, 7, 8, 1)]
    blocked.release()
    finish(*loads)
    assert crew.ran[1:] == [1, 3, 4, 5, 7, 8, 9]


@pytest.mark.parametrize(("seq", "order"), [(2.5, [2.5, 10, 11]), (10.5, [10, 10.5, 11]), (12, [10, 11, 12])])
def test_what_follows_waits_for_earlier_ones_in_the_queue(hire: Hire, seq: float, order: list[float]) -> None:
    crew = hire(1)
    blocked = crew.block()
    queued = [crew.submit(seq=10), crew.submit(seq=11)]
    follower = Load(seq, lambda: None)
    blocked.then = [follower]
    blocked.release()
    finish(*queued, follower)
    assert crew.ran[1:] == order


# Slots given away


def test_the_slot_of_one_who_waits_serves_others(hire: Hire) -> None:
    crew = hire(1)
    inside = threading.Event()

    def wait_for_other() -> None:
        with crew.runner.waiting():
            inside.set()
            finish(other)

    other = Load(1, lambda: None)
    waiting = crew.submit(wait_for_other)
    assert inside.wait(30)
    crew.runner.submit(other)
    finish(waiting)
    assert len(crew.ran) == 2


def test_one_who_has_waited_goes_on_before_others_begin(hire: Hire) -> None:
    crew = hire(1)
    inside, woken = threading.Event(), threading.Event()
    order: list[str] = []

    def wait() -> None:
        with crew.runner.waiting():
            inside.set()
            assert woken.wait(30)
        order.append("goes on")

    waiting = crew.submit(wait)
    assert inside.wait(30)
    blocked = crew.block()
    others = [crew.submit(lambda: order.append("another")) for _ in range(3)]
    pool = pool_of(crew)
    woken.set()
    while not pool._resuming:
        time.sleep(0)  # until it stands in line for a slot
    assert order == []
    blocked.release()
    finish(waiting, *others)
    assert order == ["goes on", "another", "another", "another"]


def test_who_begins_to_wait_hands_the_slot_to_one_who_has_waited(hire: Hire) -> None:
    crew = hire(1)
    inside, woken, gone_on = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        with crew.runner.waiting():
            inside.set()
            assert woken.wait(30)
        gone_on.set()

    def wake_and_wait() -> None:
        woken.set()
        while not pool._resuming:
            time.sleep(0)  # until it stands in line for this slot
        with crew.runner.waiting():
            assert gone_on.wait(30)

    pool = pool_of(crew)
    first = crew.submit(wait)
    assert inside.wait(30)
    finish(first, crew.submit(wake_and_wait))


def test_many_levels_of_waiting_fit_on_one_slot(hire: Hire) -> None:
    crew = hire(1)

    def descend(depth: int) -> None:
        running.append(depth)
        if depth:
            with crew.runner.waiting():
                finish(crew.submit(lambda: descend(depth - 1)))

    running: list[int] = []
    finish(crew.submit(lambda: descend(20)))
    assert running == list(range(20, -1, -1))


def test_waiting_elsewhere_needs_no_slot(hire: Hire) -> None:
    crew = hire(1)
    blocked = crew.block()
    with crew.runner.waiting():
        pass
    blocked.release()


def test_the_slot_of_a_batch_that_is_given_up_serves_others(hire: Hire) -> None:
    crew = hire(1)
    blocked = crew.block()
    other = crew.submit()
    assert crew.runner.cancel(blocked.load) is True
    finish(other)
    assert crew.runner.cancel(blocked.load) is False, "its slot was given away before"
    follower = Load(100, lambda: None)
    blocked.then = [follower]
    stuck = blocked.load.thread
    blocked.release()
    finish(follower)
    assert stuck is not None
    stuck.join(30)
    assert follower.thread is not stuck, "that thread has no slot any more"


def test_batches_that_wait_or_are_over_have_no_slot_to_give(hire: Hire) -> None:
    crew = hire(1)
    over = crew.submit()
    finish(over)
    blocked = crew.block()
    queued = crew.submit()
    assert crew.runner.cancel(over) is False
    assert crew.runner.cancel(queued) is False
    blocked.release()
    finish(queued)


def test_stopping_does_not_wait_long_for_what_was_given_up(hire: Hire) -> None:
    crew = hire(1)
    blocked = crew.block()
    crew.runner.cancel(blocked.load)
    crew.runner.stop()
    assert not blocked.load.over.is_set()
    blocked.release()


# Many threads


def test_a_batch_that_comes_as_a_thread_becomes_idle_is_seen(hire: Hire) -> None:
    crew = hire(1)
    pool = pool_of(crew)
    pop = pool._pop
    late: list[Load] = []

    def pop_then_submit() -> Batch | None:
        batch: Batch | None = pop()
        if batch is None and not late:
            # The thread has seen that there is nothing, and has not given its slot away: nobody else may be woken.
            submitting = threading.Thread(target=lambda: late.append(crew.submit()))
            submitting.start()
            submitting.join(30)
        return batch

    pool._pop = pop_then_submit
    finish(crew.submit())
    while not late:
        time.sleep(0)
    finish(*late)


@pytest.mark.usefixtures("busy_threads")
def test_no_batch_is_forgotten_when_threads_become_idle(hire: Hire) -> None:
    crew = hire(2)
    for _ in range(1500):
        finish(crew.submit())
    assert len(crew.ran) == 1500


@pytest.mark.usefixtures("busy_threads")
def test_each_batch_runs_once_however_many_submit(hire: Hire) -> None:
    crew = hire(3)
    loads: list[Load] = []

    def submit(first: int) -> None:
        for number in range(first, first + 300):
            leaf = Load(number + 0.5, lambda: None)
            loads.extend([leaf, crew.submit(lambda leaf=leaf: [leaf], seq=number)])  # type: ignore[misc]

    threads = [threading.Thread(target=submit, args=(first,)) for first in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish(*loads)
    assert len(crew.ran) == len(set(crew.ran)) == len(loads) == 1800
    assert crew.most <= 3


@pytest.mark.usefixtures("busy_threads")
def test_slots_are_counted_right_through_waiting_and_giving_up(hire: Hire) -> None:
    crew = hire(2)

    def wait_a_little() -> None:
        with crew.runner.waiting():
            finish(crew.submit(lambda: None))

    for _ in range(50):
        blocked = crew.block()
        crew.runner.cancel(blocked.load)
        waiting = [crew.submit(wait_a_little) for _ in range(4)]
        blocked.release()
        finish(blocked.load, *waiting)
    both = [crew.block(), crew.block()]
    third = crew.submit()
    assert not third.over.is_set()
    both[0].release()
    finish(third)
    both[1].release()


# The recipe


def test_a_recipe_shows_its_settings_and_pickles() -> None:
    runner = ThreadPoolTaskRunner(3, "fibre")
    assert repr(runner) == "ThreadPoolTaskRunner(max_workers=3, thread_name_prefix='fibre')"
    assert pickle.loads(pickle.dumps(runner)) == runner
    assert runner == ThreadPoolTaskRunner(thread_name_prefix="fibre", max_workers=3)
    assert runner != ThreadPoolTaskRunner(4, "fibre")
    assert ThreadPoolTaskRunner().slots() >= 5
    assert ConcurrentTaskRunner is ThreadPoolTaskRunner


@pytest.mark.parametrize("max_workers", [0, -1])
def test_at_least_one_worker(max_workers: int) -> None:
    with pytest.raises(ValueError, match=f"max_workers={max_workers}: give a whole number, 1 or more"):
        ThreadPoolTaskRunner(max_workers)


# With an engine on top


def test_a_body_in_python_is_stopped_and_its_thread_serves_on() -> None:
    begun = threading.Event()
    ended: list[str] = []

    @task
    def spin() -> None:
        try:
            begun.set()
            while True:
                pass
        finally:
            ended.append("cleaned up")

    @task
    def after() -> str:
        return "served"

    @flow(task_runner=ThreadPoolTaskRunner(1))
    def main() -> Any:
        spinning = spin.submit()
        assert begun.wait(30)
        assert spinning.cancel()
        assert spinning.cancelled()
        return after.submit()

    assert main() == "served"
    assert ended == ["cleaned up"]


def test_a_body_can_ask_whether_to_stop() -> None:
    begun, asked = threading.Event(), threading.Event()
    answers: list[bool] = []

    @task
    def polite() -> None:
        answers.append(cancelled())
        try:
            begun.set()
            assert asked.wait(30)
        finally:
            answers.append(cancelled())

    @flow(task_runner=ThreadPoolTaskRunner(1))
    def main() -> None:
        future = polite.submit()
        assert begun.wait(30)
        future.cancel()
        asked.set()

    main()
    assert answers == [False, True]


def cancel_while_others_submit() -> None:
    @task
    def spin() -> None:
        while not cancelled():
            pass

    with ThreadPoolTaskRunner(1):
        spinning = spin.submit()
        queued = [echo.submit(number) for number in range(3000)]
        over = threading.Event()

        def feed() -> None:
            while not over.is_set() and len(queued) < 20_000:
                queued.append(echo.submit(0))

        feeder = threading.Thread(target=contextvars.copy_context().run, args=(feed,))
        feeder.start()
        while len(queued) < 3010:
            time.sleep(0)
        try:
            assert spinning.cancel()
        finally:
            over.set()
            feeder.join()
            spinning.cancel()
            for future in reversed(queued):
                future.cancel()


@pytest.mark.usefixtures("busy_threads")
def test_a_running_call_is_cancelled_while_other_threads_submit() -> None:
    for _ in range(10):
        cancel_while_others_submit()


def test_a_stop_never_hits_the_next_call() -> None:
    @task
    def short(number: int) -> int:
        return number

    @flow(task_runner=ThreadPoolTaskRunner(1))
    def main() -> None:
        for number in range(0, 1000, 2):
            first: TaskFuture[int] = short.submit(number)
            second = short.submit(number + 1)
            if not first.cancel():
                assert first.result() == number
            assert second.result() == number + 1

    main()


class StopsAtRelease:
    """The engine's lock, but at its first release the call that runs is cancelled, so that a Stop lands there."""

    def __init__(self, lock: Any, cancel: Callable[[], object]) -> None:
        self._lock = lock
        self._cancel: Callable[[], object] | None = cancel

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        self._lock.__exit__(*exc_info)
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()


def test_a_stop_that_comes_before_the_body_begins_ends_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    @task
    def never() -> None:
        raise AssertionError("it was cancelled before")

    @task
    def after() -> str:
        return "served"

    @flow(task_runner=ThreadPoolTaskRunner(1))
    def main() -> Any:
        submitted = threading.Event()

        def cancel() -> None:
            assert submitted.wait(30)
            assert doomed.cancel()

        monkeypatch.setattr(_attempts, "LOCK", StopsAtRelease(LOCK, cancel))
        doomed = never.submit()
        submitted.set()
        assert doomed.wait(30)
        assert doomed.cancelled()
        return after.submit().result(30)

    assert main() == "served"


def test_a_name_function_that_exits_ends_its_call_and_stops_no_timer() -> None:
    def name() -> str:
        raise SystemExit(3)

    @task(timeout_seconds=0.05)
    def slow() -> None:
        time.sleep(0.3)

    @task(task_run_name=name)
    def named(value: Any) -> None: ...

    @flow(task_runner="thread")
    def main() -> BaseException | None:
        # Its name is made when the other one is out of time: on the timers' thread.
        return named.submit(allow_failure(slow.submit())).exception(30)

    state = main(return_state=True)
    assert "The name function of named raised SystemExit: 3" in str(state.result())
    done = threading.Event()
    after(0, done.set)
    assert done.wait(30)
