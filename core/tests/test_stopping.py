"""Bodies in a worker that are asked to stop, and calls that they submit to a runner of the worker's own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turnout import Task, cancelled, flow, task
from turnout._locks import start_thread
from turnout._packing import pack
from turnout._stop import Stop, send
from turnout._timers import after
from turnout.errors import TaskRunTimeoutError
from turnout.runner import Batch, Capabilities, Host, Outcome, OutcomeKind, TaskRunner
from turnout.testing import run_script
from turnout.testing._batches import batched
from turnout.testing._depot import Depot
from turnout.testing._kit import eventually
from turnout.worker import Stopper, run_batch


class Keeper(TaskRunner):
    """Keeps what it is given."""

    capabilities = Capabilities(streams=True)

    def start(self, host: Host) -> None:
        self.host = host
        self.batches: list[Batch] = []

    def slots(self) -> int:
        return 100

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)

    def stop(self) -> None:
        pass


class Inside(TaskRunner):
    """What a worker offers for nested calls: runs them at once in the thread that submits, and counts who waits."""

    capabilities = Capabilities(streams=True, nested="shared")

    def __init__(self) -> None:
        self.sent = 0
        self.waits = 0
        self.starts = 0

    def start(self, host: Host) -> None:
        self.host = host
        self.starts += 1

    def slots(self) -> int:
        return 1

    def submit(self, batch: Batch) -> None:
        self.sent += 1

        def run() -> None:
            time.sleep(0.05)
            run_batch(batch.body, batch.functions, batch.upstream, lambda outcomes: self.host.report(batch, outcomes))

        threading.Thread(target=run).start()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        self.waits += 1
        yield

    def stop(self) -> None:
        self.starts -= 1


def outcomes_of(
    one: Task[..., Any], *args: Any, stopper: Stopper | None = None, count: int = 1, **kwargs: Any
) -> list[Outcome]:
    """Run calls of a task as a worker does, as one batch, and return the outcomes."""
    outcomes: list[Outcome] = []
    keeper = Keeper()

    @flow(task_runner=keeper)
    def main() -> None:
        futures = [one.submit(*args) for _ in range(count)]
        batch = pack([call for sent in keeper.batches for call in sent.calls], lambda call, error: None)
        assert batch is not None
        run_batch(batch.body, batch.functions, batch.upstream, outcomes.extend, stopper=stopper, **kwargs)
        for sent in keeper.batches:
            keeper.host.report(sent, [Outcome(0, OutcomeKind.VALUE)])
        assert [future.result() for future in futures] == [None] * count

    main()
    return outcomes


def kinds(outcomes: list[Outcome]) -> list[OutcomeKind]:
    return [outcome.kind for outcome in outcomes]


def when(begun: threading.Event, action: Callable[[], object]) -> threading.Thread:
    def act() -> None:
        assert begun.wait(30)
        action()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


BEGUN = threading.Event()
ANSWERS: list[Any] = []
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture(autouse=True)
def fresh() -> None:
    BEGUN.clear()
    ANSWERS.clear()


def test_a_body_that_is_asked_stops_and_those_after_it_never_begin() -> None:
    @task
    def spin() -> None:
        here: Any = sys.modules[__name__]

        try:
            here.BEGUN.set()
            while True:
                time.sleep(0.001)
        finally:
            here.ANSWERS.append(cancelled())

    stopper = Stopper()
    thread = when(BEGUN, stopper.ask)
    outcomes = outcomes_of(spin, stopper=stopper, count=3)
    thread.join()
    ends = [kind for kind in kinds(outcomes) if kind is not OutcomeKind.STARTED]
    assert ends == [OutcomeKind.FAILURE, OutcomeKind.RETURNED, OutcomeKind.RETURNED]
    assert ANSWERS == [True]


def test_async_bodies_that_are_asked_stop_where_they_await() -> None:
    @task
    async def nap() -> None:
        here: Any = sys.modules[__name__]

        try:
            here.BEGUN.set()
            await asyncio.sleep(100)
        finally:
            here.ANSWERS.append(cancelled())

    stopper = Stopper()
    thread = when(BEGUN, stopper.ask)
    outcomes = outcomes_of(nap, stopper=stopper, count=2)
    thread.join()
    assert sorted(kinds(outcomes)) == [OutcomeKind.STARTED] * 2 + [OutcomeKind.FAILURE] * 2
    assert ANSWERS == [True, True]


def test_a_stop_that_comes_too_late_hits_nothing() -> None:
    for _ in range(300):
        stopper = Stopper()
        asker = threading.Thread(target=stopper.ask)
        with contextlib.suppress(Stop):
            thread = threading.get_ident()
            with stopper.body(lambda thread=thread: send(thread, Stop)):  # type: ignore[misc]
                asker.start()
        asker.join()
        # A Stop on its way would be raised here.
        assert sum(range(100)) == 4950


def test_bodies_see_the_context_that_the_runner_gives_and_change_only_their_copies() -> None:
    @task
    def look() -> None:
        here: Any = sys.modules[__name__]

        here.ANSWERS.append(here.VARIABLE.get())
        here.VARIABLE.set("changed")

    context = contextvars.copy_context()
    context.run(VARIABLE.set, "given")
    outcomes_of(look, count=2, context=context)
    assert ANSWERS == ["given", "given"]
    ANSWERS.clear()
    outcomes_of(look)
    assert ANSWERS == ["unset"]


def test_nested_calls_go_to_the_runner_of_the_worker_and_the_body_waits_out_of_its_slot() -> None:
    @task
    def inner(number: int) -> int:
        return number * 2

    @task
    def outer() -> None:
        here: Any = sys.modules[__name__]

        here.ANSWERS.extend(inner.map([1, 2, 3]).result())

    inside = Inside()
    outcomes = outcomes_of(outer, nested=inside)
    assert kinds(outcomes) == [OutcomeKind.STARTED, OutcomeKind.VALUE]
    assert ANSWERS == [2, 4, 6]
    assert inside.sent == 3
    assert inside.waits >= 1
    assert inside.starts == 0, "it is stopped when the last call that used it is over"


def test_a_body_that_waits_for_nested_calls_can_be_stopped() -> None:
    @task
    def inner() -> None:
        time.sleep(0.2)

    @task
    def outer() -> None:
        here: Any = sys.modules[__name__]

        waiting = inner.submit()
        here.BEGUN.set()
        waiting.result()
        raise AssertionError("it goes on")

    stopper = Stopper()
    thread = when(BEGUN, stopper.ask)
    begin = time.monotonic()
    outcomes = outcomes_of(outer, stopper=stopper, nested=Inside())
    thread.join()
    assert kinds(outcomes)[-1] is OutcomeKind.FAILURE
    assert time.monotonic() - begin < 30


_TRACED = """
import sys
import threading

from turnout import TaskRunTimeoutError, task

def spin():
    while True:
        pass

for time_limit in (0.01, 0.02):
    try:
        task(timeout_seconds=time_limit)(spin)()
    except TaskRunTimeoutError:
        pass
for thread in threading.enumerate():
    if thread.name == "turnout-timed-call":
        thread.join()
sys.settrace(lambda *event: None)
print((lambda: "traced")())
"""


def test_a_stopped_body_leaves_the_interpreter_as_it_was(tmp_path: Path) -> None:
    """A debugger can trace what comes after: Python 3.11 would hang there if a Stop were still to be raised."""
    done = run_script(_TRACED, tmp_path, timeout=20)
    assert (done.returncode, done.stdout) == (0, "traced\n"), done.stderr


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """Keep the garbage collector away: what is raised in its callbacks, of which hypothesis has one, is lost."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_a_stopped_thread_leaves_the_timers_as_they_are() -> None:
    """Wherever a Stop meets a thread that sets and cancels timers, they serve the others afterwards."""
    for _ in range(100):
        stopper = Stopper()
        begun = threading.Event()

        def set_timers(stopper: Stopper = stopper, begun: threading.Event = begun) -> None:
            me = threading.get_ident()
            with contextlib.suppress(Stop), stopper.body(lambda: send(me, Stop)):
                begun.set()
                while True:
                    after(0.001, int)
                    after(10.0, int)()

        thread = threading.Thread(target=set_timers)
        thread.start()
        begun.wait()
        cancel = after(10.0, int)
        stopper.ask()
        thread.join()
        cancel()
        rung = threading.Event()
        after(0.0, rung.set)
        assert rung.wait(10)


@pytest.mark.usefixtures("_no_collector")
def test_a_thread_that_starts_another_is_stopped_itself() -> None:
    """A Stop does not hit the thread that is about to begin, for whose begin the one that starts it waits."""
    for _ in range(200):
        stopper = Stopper()
        begun = threading.Event()
        # Kept: what is raised in the middle of a destructor is lost.
        started: list[threading.Thread] = []

        def start_threads(
            stopper: Stopper = stopper, begun: threading.Event = begun, started: list[threading.Thread] = started
        ) -> None:
            me = threading.get_ident()
            with contextlib.suppress(Stop), stopper.body(lambda: send(me, Stop)):
                begun.set()
                while True:
                    started.append(threading.Thread(target=int, daemon=True))
                    start_thread(started[-1])
                    # Whoever asks needs the lock, too.
                    time.sleep(0.0002)

        thread = threading.Thread(target=start_threads, daemon=True)
        thread.start()
        begun.wait()
        stopper.ask()
        thread.join(10)
        assert not thread.is_alive()


class SlowDepot(Depot):
    """Takes its time when it is given a batch, as a pool does that starts its processes then."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = threading.Event()
        self.go = threading.Event()

    def submit(self, batch: Batch) -> None:
        self.arrived.set()
        while not self.go.is_set():
            time.sleep(0.001)
        super().submit(batch)


def test_a_thread_is_not_stopped_while_it_hands_a_call_over() -> None:
    depot, this = SlowDepot(), threading.get_ident()

    def ask() -> None:
        send(this, Stop)
        depot.go.set()

    with depot:
        asking = when(depot.arrived, ask)
        with pytest.raises(Stop):
            answer.submit()
        asking.join()
        assert depot.sizes() == [1]
        # All of its room is there for the next.
        depot.work(0)
        future = answer.submit()
        depot.work(1)
        assert future.result(0) == 42


class AtOnce(TaskRunner):
    """Runs a call in the thread that submits it."""

    capabilities = Capabilities(in_process=True, cancel="cooperative")

    def start(self, host: Host) -> None:
        self.host = host

    def slots(self) -> int:
        return 1

    def submit(self, batch: Batch) -> None:
        for ready in self.host.execute(batch):
            self.submit(ready)

    def stop(self) -> None:
        pass


def test_a_body_that_runs_where_it_is_handed_over_is_stopped() -> None:
    begun, this, seen = threading.Event(), threading.get_ident(), []

    @task
    def run_on() -> None:
        begun.set()
        try:
            while True:
                time.sleep(0.001)
        except Stop:
            seen.append("stopped")

    with AtOnce():
        asking = when(begun, lambda: send(this, Stop))
        run_on.submit().wait()
        asking.join()
    assert seen == ["stopped"]


@task
def answer() -> int:
    return 42


def test_an_event_loop_goes_on_while_a_flow_waits_for_what_was_sent() -> None:
    ticks, at_end_of_body = 0, 0

    @flow(task_runner=Depot())
    async def main() -> None:
        nonlocal at_end_of_body
        answer.submit()
        at_end_of_body = ticks
        raise LookupError

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def drive() -> None:
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        with pytest.raises(LookupError):
            await main()
        ticking.cancel()

    asyncio.run(drive())
    # The depot gives nothing back, so that is waited for in vain; a loop that is blocked turns a few times.
    assert ticks - at_end_of_body > 50


# A flow ends when the bodies that it had killed are dead: it must not wait for one that was dead before.


class Hasty(Depot):
    """Its workers are dead, or done, before whoever has them stopped goes on."""

    def __init__(self, last: Outcome) -> None:
        super().__init__()
        self.last = last

    def cancel(self, batch: Batch) -> bool:
        self.host.report(batch, [self.last])
        return super().cancel(batch)


@task
def nothing(*_: Any) -> None:
    pass


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [OutcomeKind.CRASHED, OutcomeKind.LOST, OutcomeKind.VALUE], ids=lambda kind: kind.name)
def test_a_body_that_is_dead_before_its_call_is_out_of_time(kind: OutcomeKind) -> None:
    with Hasty(Outcome(0, kind)) as depot:
        future = nothing.with_options(timeout_seconds=0.05).submit()
        depot.tell(0, Outcome(0, OutcomeKind.STARTED))
        assert isinstance(future.exception(10), TaskRunTimeoutError)


@pytest.mark.timeout(20)
def test_a_body_that_is_dead_before_its_call_is_tried_again() -> None:
    with Hasty(Outcome(0, OutcomeKind.CRASHED)) as depot:
        future = nothing.with_options(timeout_seconds=0.05, retries=1).submit()
        depot.tell(0, Outcome(0, OutcomeKind.STARTED))
        eventually(lambda: len(depot.batches) == 2, "it is sent again")
        depot.tell(1, Outcome(0, OutcomeKind.VALUE, "in time"))
        assert future.result(10) == "in time"


@pytest.mark.timeout(20)
def test_a_killed_body_that_is_dead_after_its_call_was_sent_again() -> None:
    with Depot(2) as depot:
        future = nothing.with_options(timeout_seconds=0.05, retries=1).submit()
        depot.tell(0, Outcome(0, OutcomeKind.STARTED))
        eventually(lambda: len(depot.batches) == 2, "it is sent again")
        depot.tell(0, Outcome(0, OutcomeKind.CRASHED))
        depot.tell(1, Outcome(0, OutcomeKind.VALUE, "in time"))
        assert future.result(10) == "in time"


@pytest.mark.timeout(20)
def test_a_call_that_is_cancelled_as_it_begins_when_what_came_of_it_is_known() -> None:
    with batched("most"), Depot() as depot:
        first = [nothing.submit(), nothing.submit()]
        root = nothing.submit()
        behind: list[Any] = []
        behind.append(nothing.with_options(on_running=[lambda *_: behind[0].cancel()]).submit(root))
        depot.work(0)
        depot.work(1)
        assert depot.sizes() == [1, 1, 2]
        depot.tell(2, Outcome(1, OutcomeKind.VALUE, "too early"))
        depot.tell(2, Outcome(0, OutcomeKind.VALUE))
        assert behind[0].state.is_cancelled()
        assert [one.result(0) for one in first] == [None, None]
