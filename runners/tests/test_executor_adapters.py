"""Executors of every kind under the one runner: odd ones, broken ones, and those that belong to somebody else."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import executorlib  # type: ignore[import-untyped]
import loky  # type: ignore[import-untyped]
import pytest

from turnout import CrashedRun, RunnerStartError, RunnerStoppedError, TaskFuture, flow, task
from turnout.registry import resolve
from turnout.runner import Batch, Outcome, OutcomeKind, Plan, usable_processors
from turnout.testing import Signals
from turnout.testing._kit import eventually
from turnout.testing._open_calls import alive
from turnout_runners.executor import ExecutorTaskRunner


@task
def double(number: int) -> int:
    return 2 * number


@task
def thread_of_call() -> str:
    return threading.current_thread().name


@task(crash_retries=1)
def frail(number: int = 0) -> int:
    return number


class Slip:
    """Has what is asked of a future, and is none of the standard library's."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.callbacks: list[Callable[[Slip], object]] = []
        self.outcome: tuple[Any, BaseException | None] | None = None
        self.asked_to_cancel = 0

    def add_done_callback(self, callback: Callable[[Slip], object]) -> None:
        if self.outcome is None:
            self.callbacks.append(callback)
        else:
            callback(self)

    def cancel(self) -> bool:
        self.asked_to_cancel += 1
        return False

    def result(self) -> Any:
        assert self.outcome is not None
        value, error = self.outcome
        if error is not None:
            raise error
        return value

    def run(self) -> None:
        try:
            self.settle(self.work())
        except BaseException as error:
            self.settle(None, error)

    def settle(self, value: Any, error: BaseException | None = None) -> None:
        self.outcome = (value, error)
        for callback in self.callbacks:
            callback(self)


class Desk:
    """An executor in nothing but deed: it has ``submit`` and keeps the slips until the test deals with them."""

    max_workers = 3

    def __init__(self) -> None:
        self.slips: deque[Slip] = deque()
        self.seen: list[tuple[Any, ...]] = []
        self.shutdowns: list[bool] = []

    def submit(self, function: Callable[..., Any], *args: Any) -> Slip:
        self.seen.append((function, *args))
        slip = Slip(functools.partial(function, *args))
        self.slips.append(slip)
        return slip

    def shutdown(self, wait: bool = True) -> None:
        self.shutdowns.append(wait)

    def run_all(self) -> None:
        while self.slips:
            self.slips.popleft().run()


class InSubmit(Desk):
    """Runs what it is given at once, in the thread that submits."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Slip:
        slip = super().submit(function, *args)
        slip.run()
        return slip


class OnNewThreads(Desk):
    """Runs each thing in a thread of its own, and tells of it in another."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Slip:
        slip = super().submit(function, *args)

        def run() -> None:
            value = slip.work()
            threading.Thread(target=slip.settle, args=(value,)).start()

        threading.Thread(target=run).start()
        return slip


class OneArgument:
    """Takes one argument and no more, by position."""

    def submit(self, function: Callable[[bytes], bytes], data: bytes, /) -> Slip:
        slip = Slip(functools.partial(function, data))
        slip.run()
        return slip

    def shutdown(self, wait: bool) -> None:
        pass


class TellsTwice(InSubmit):
    def submit(self, function: Callable[..., Any], *args: Any) -> Slip:
        slip = super().submit(function, *args)
        slip.callbacks.append(lambda told: None)
        add = slip.add_done_callback

        def add_twice(callback: Callable[[Slip], object]) -> None:
            add(callback)
            add(callback)

        slip.add_done_callback = add_twice  # type: ignore[method-assign]
        return slip


class Bare:
    """Not even a shutdown."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future


def over(executor: Any, **options: Any) -> ExecutorTaskRunner:
    return ExecutorTaskRunner(executor, **options)


def doubled_by(runner: ExecutorTaskRunner, numbers: range = range(20)) -> list[int]:
    @flow(task_runner=runner)
    def main() -> Any:
        return double.map(double.map(numbers))

    return main()  # type: ignore[no-any-return]


FOURFOLD = [4 * number for number in range(20)]


# Odd executors


@pytest.mark.parametrize("cls", [InSubmit, OnNewThreads, OneArgument, TellsTwice, Bare])
def test_anything_with_submit_will_do(cls: type) -> None:
    assert doubled_by(over(cls())) == FOURFOLD


@pytest.mark.parametrize("cls", [InSubmit, OnNewThreads, OneArgument, TellsTwice])
def test_anything_that_can_be_shut_down_may_be_built(cls: type, caplog: pytest.LogCaptureFixture) -> None:
    assert doubled_by(over(cls)) == FOURFOLD
    assert caplog.messages == []


@pytest.mark.parametrize("cls", [InSubmit, OnNewThreads, Bare])
def test_anything_in_this_process_will_do_without_pickling(cls: type) -> None:
    box = [threading.Lock()]  # does not pickle

    @task
    def same(value: Any) -> Any:
        return value

    @flow(task_runner=over(cls(), pickle=False))
    def main() -> Any:
        return same.submit(same.submit(box))

    assert main() is box


def test_an_executor_carries_one_function_and_bytes() -> None:
    desk = InSubmit()
    doubled_by(over(desk))
    assert {type(data) for _, data in desk.seen} == {bytes}
    (function,) = {function for function, _ in desk.seen}
    assert pickle.loads(pickle.dumps(function)) is function
    assert all(isinstance(pickle.loads(slip.result()), list) for slip in desk.slips)


def test_no_more_is_sent_than_the_executor_has_workers() -> None:
    desk = Desk()
    with over(desk, max_batch_seconds=0):
        futures = [double.submit(number) for number in range(10)]
        for ended in range(10):
            assert len(desk.seen) == min(10, 3 + ended)
            desk.slips.popleft().run()
        assert [future.result(0) for future in futures] == [2 * number for number in range(10)]


def test_a_cancel_that_raises_is_no() -> None:
    desk = Desk()
    with over(desk, max_workers=1) as runner:
        running, queued = double.submit(1), double.submit(2)

        def refuse() -> bool:
            raise OSError("out of office")

        desk.slips[0].cancel = refuse  # type: ignore[method-assign]
        assert runner.cancel(_sent(runner)) is False
        assert not running.cancel()
        assert queued.cancel()
        desk.run_all()
        assert running.result(0) == 2
        assert runner.cancel(EMPTY) is False
    assert len(desk.seen) == 1


class _Empty(Batch):
    calls = ()


EMPTY = _Empty()


@pytest.mark.parametrize("answer", [None, 0, "", True, 1])
def test_whatever_cancel_answers_is_yes_or_no(answer: Any) -> None:
    desk = Desk()
    with over(desk) as runner:
        future = double.submit(1)
        batch = _sent(runner)
        desk.slips[0].cancel = lambda: answer  # type: ignore[method-assign]
        assert runner.cancel(batch) is bool(answer)
        desk.run_all()
        assert future.result(0) == 2
        assert runner.cancel(batch) is False, "it is over"


def _sent(runner: ExecutorTaskRunner) -> Batch:
    assert runner._pool is not None
    (batch,) = runner._pool._futures
    return batch


def test_what_the_executor_cancels_by_itself_is_sent_again() -> None:
    desk = Desk()
    with over(desk):
        future = frail.submit(7)
        for _ in range(5):
            desk.slips.popleft().settle(None, concurrent.futures.CancelledError())
        assert future.state.is_running()
        desk.run_all()
        assert future.result(0) == 7
    assert len(desk.seen) == 6


def test_what_an_executor_in_this_process_cancels_by_itself_is_sent_again() -> None:
    desk = Desk()
    with over(desk, pickle=False):
        future = double.submit(1)
        desk.slips.popleft().settle(None, concurrent.futures.CancelledError())
        desk.run_all()
        assert future.result(0) == 2


def test_a_submit_that_raises_crashes_its_call_alone() -> None:
    class Moody(InSubmit):
        def submit(self, function: Callable[..., Any], *args: Any) -> Slip:
            if not self.seen:
                self.seen.append(())
                raise OSError("not now")
            return super().submit(function, *args)

    with over(Moody()):
        first, second = double.with_options(crash_retries=0).submit(1), double.submit(2)
        with pytest.raises(CrashedRun, match="The runner did not run double-0: OSError: not now"):
            first.result(0)
        assert second.result(0) == 4


@pytest.mark.parametrize("answer", [b"garbage", None, 5])
def test_an_answer_that_is_none_is_a_crash(answer: Any) -> None:
    desk = Desk()
    with over(desk):
        future = frail.submit(1)
        for _ in range(2):
            desk.slips.popleft().settle(answer)
        with pytest.raises(CrashedRun, match=r"It was begun 2 times \(crash_retries=1\)"):
            future.result(0)


def test_a_future_that_raises_is_a_crash_with_its_error() -> None:
    desk = Desk()
    with over(desk):
        future = frail.submit(1)
        for _ in range(2):
            desk.slips.popleft().settle(None, KeyboardInterrupt("dropped"))
        with pytest.raises(CrashedRun, match="KeyboardInterrupt: dropped"):
            future.result(0)


# Pools that break


class Brittle(Desk):
    """Breaks when it is told to: then it takes nothing more, and what it held fails."""

    made: list[Brittle]

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.made.append(self)

    def submit(self, function: Callable[..., Any], *args: Any) -> Slip:
        if self.broken:
            raise BrokenProcessPool("it is broken")
        return super().submit(function, *args)

    def shatter(self) -> None:
        self.broken = True
        held, self.slips = self.slips, deque()
        for slip in held:
            slip.settle(None, BrokenProcessPool("a worker died"))


@pytest.fixture
def made() -> Iterator[list[Brittle]]:
    Brittle.made = []
    yield Brittle.made
    Brittle.made = []


def test_a_broken_pool_is_built_again_once_and_its_calls_run_one_at_a_time(made: list[Brittle]) -> None:
    with over(Brittle):
        futures = [frail.submit(number) for number in range(3)]
        made[0].shatter()
        assert len(made) == 2, "all three found out, and one of them built a new one"
        assert made[0].shutdowns == []
        for _ in range(3):
            assert len(made[1].slips) == 1
            made[1].slips.popleft().run()
        assert [future.result(0) for future in futures] == [0, 1, 2]
    assert [pool.shutdowns for pool in made] == [[True], [True]]


def test_the_guilty_one_is_found_and_the_innocent_are_not_charged(made: list[Brittle]) -> None:
    with over(Brittle):
        guilty, innocent = frail.submit(1), double.with_options(crash_retries=1).submit(2)
        made[0].shatter()
        made[1].shatter()  # the guilty one, alone
        made[2].slips.popleft().run()  # the innocent one
        assert innocent.result(0) == 4
        made[2].shatter()
        with pytest.raises(CrashedRun, match="BrokenProcessPool: a worker died"):
            guilty.result(0)
        assert double.submit(4).state.is_running()
        made[3].run_all()
    assert len(made) == 4


def test_a_pool_found_broken_when_something_is_sent_is_built_again(made: list[Brittle]) -> None:
    with over(Brittle):
        double.submit(1)
        made[0].run_all()
        made[0].broken = True
        future = double.submit(2)
        assert len(made) == 2
        made[1].run_all()
        assert future.result(0) == 4


def test_a_broken_pool_that_was_handed_in_is_not_built_again(made: list[Brittle]) -> None:
    pool = Brittle()
    with over(pool):
        held, waiting = frail.submit(1), frail.submit(2)
        pool.shatter()
        after = frail.submit(3)
        for future in (held, waiting, after):
            with pytest.raises(CrashedRun, match=r"can't be built again\. Hand in its class"):
                future.result(0)
    assert made == [pool]
    assert pool.shutdowns == []


def test_a_pool_that_cannot_be_built_again_crashes_what_it_held(made: list[Brittle]) -> None:
    def make() -> Brittle:
        if made:
            raise MemoryError("no room")
        return Brittle()

    with over(make):
        future, later = double.with_options(crash_retries=0).submit(1), frail.submit(2)
        made[0].shatter()
        with pytest.raises(CrashedRun, match=r"a worker died \(no room\)"):
            future.result(0)
        with pytest.raises(CrashedRun, match="MemoryError: no room"):
            later.result(0)


def test_a_body_that_raises_what_a_broken_pool_raises_is_just_a_failure() -> None:
    @task
    def confuse() -> None:
        raise BrokenThreadPool("mine")

    for options in ({}, {"pickle": True}):
        with over(ThreadPoolExecutor, max_workers=1, **options):
            assert isinstance(confuse.submit().exception(), BrokenThreadPool)


def test_real_processes_that_die_are_replaced() -> None:
    @task(crash_retries=0)
    def die() -> None:
        os._exit(3)

    @flow(task_runner=over(ProcessPoolExecutor, max_workers=1))
    def main() -> list[Any]:
        before, dying, after = double.submit(1), die.submit(), double.submit(2)
        assert isinstance(dying.exception(), CrashedRun)
        return [before.result(), after.result()]

    assert main() == [2, 4]


# Whose pool it is


@task(crash_retries=1)
def die_halfway(signals: Signals, forks: bool) -> str:
    """Return a result of which the worker sends half as it dies, but the second time."""
    if forks and os.fork() == 0:
        # It holds the other side of the pipe from which the driver waits for the rest.
        signals.note("child", str(os.getpid()))
        signal.pause()
    signals.note("ran")
    if signals.count("ran") == 1:
        Connection._send = _send_half_and_die  # type: ignore[attr-defined]
    return "whole"


def _send_half_and_die(connection: Any, data: bytes, write: object = None) -> None:
    os.write(connection.fileno(), bytes(data)[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a child of its own"])
@pytest.mark.parametrize("factory", [ProcessPoolExecutor, loky.ProcessPoolExecutor])
def test_a_worker_that_dies_as_it_sends_is_noticed(
    factory: type[Executor], forks: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signals = Signals(str(tmp_path))
    runner = ExecutorTaskRunner(factory, max_workers=2)
    try:
        with runner:
            # The other worker lives, and has the pipe open, too.
            doubled_by(runner, range(2))
            assert die_halfway.submit(signals, forks).result(timeout=30) == "whole"
            assert doubled_by(runner, range(3)) == [0, 4, 8]
    finally:
        for pid in signals.notes("child"):
            os.kill(int(pid), signal.SIGKILL)
    assert any("the pool did not notice" in message for message in caplog.messages)


@task
def stay_once(signals: Signals) -> str:
    signals.note("stays", str(os.getpid()))
    if signals.count("stays") == 1:
        signals.wait("never")
    return "ran again"


@task(crash_retries=0)
def die() -> None:
    os._exit(3)


def test_workers_forked_under_a_handler_of_the_driver_end_with_their_pool(tmp_path: Path) -> None:
    """A pool that breaks ends its workers with SIGTERM; what the driver does then would let them live."""
    signals = Signals(str(tmp_path))
    before = signal.signal(signal.SIGTERM, lambda *_: signals.note("SIGTERM"))
    try:
        with ExecutorTaskRunner(ProcessPoolExecutor, max_workers=2):
            staying = stay_once.submit(signals)
            signals.wait_count("stays", 1)
            assert isinstance(die.submit().exception(timeout=30), CrashedRun)
            assert staying.result(timeout=30) == "ran again"
            eventually(lambda: not alive(int(signals.notes("stays")[0])), "the worker of the broken pool is gone")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals.count("SIGTERM") == 0


def test_a_pool_that_was_handed_in_stays_up() -> None:
    with ThreadPoolExecutor(2, thread_name_prefix="mine") as pool:
        runner = over(pool)
        for _ in range(2):
            assert doubled_by(runner) == FOURFOLD
        with runner:
            assert thread_of_call.submit().result().startswith("mine")
        assert pool.submit(int, "5").result() == 5


def test_a_pool_that_was_built_is_shut_down_with_its_flow() -> None:
    made: list[Desk] = []

    def make() -> Desk:
        made.append(InSubmit())
        return made[-1]

    runner = over(make)
    assert made == []
    doubled_by(runner)
    doubled_by(runner)
    assert [desk.shutdowns for desk in made] == [[True], [True]]
    runner.stop()
    assert [desk.shutdowns for desk in made] == [[True], [True]]


def test_threads_of_a_pool_that_was_built_are_gone() -> None:
    make = functools.partial(ThreadPoolExecutor, 3, thread_name_prefix="adapted")
    assert doubled_by(over(make)) == FOURFOLD
    assert [thread for thread in threading.enumerate() if thread.name.startswith("adapted")] == []


def test_a_body_out_of_time_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    @task(timeout_seconds=0.01)
    def stuck() -> None:
        release.wait(30)

    @flow(task_runner=over(functools.partial(ThreadPoolExecutor, 1, thread_name_prefix="stuck")))
    def main() -> str:
        return stuck.submit(return_state=True).name

    with caplog.at_level(logging.WARNING, "turnout"):
        assert main() == "TimedOut"
    assert "1 calls that ran out of time go on; their workers are killed, or left." in caplog.messages
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("stuck"):
            thread.join(30)


def test_a_pool_with_odd_futures_is_shut_down_though_one_is_stuck() -> None:
    made: list[Desk] = []

    def make() -> Desk:
        made.append(Desk())
        return made[-1]

    @task(timeout_seconds=0.01)
    def stuck() -> None: ...

    @flow(task_runner=over(make))
    def main() -> str:
        return stuck.submit(return_state=True).name

    assert main() == "TimedOut"
    assert made[0].shutdowns == [False]


def test_nothing_can_be_submitted_to_a_recipe() -> None:
    runner = over(Desk)
    runner.stop()
    with pytest.raises(RunnerStoppedError, match=r"is not running\. Submit in a flow"):
        runner.submit(EMPTY)
    assert runner.cancel(EMPTY) is False


# What is known of an executor


class Threads(ThreadPoolExecutor):
    pass


class InterpreterPoolExecutor(ThreadPoolExecutor):
    """Stands for the one of Python 3.14, which is derived from the pool of threads and shares nothing."""


@pytest.mark.parametrize(
    ("source", "shared"),
    [
        (None, True),
        (ThreadPoolExecutor, True),
        (Threads, True),
        (functools.partial(ThreadPoolExecutor, 2), True),
        ("concurrent.futures:ThreadPoolExecutor", True),
        (ProcessPoolExecutor, False),
        (lambda: ThreadPoolExecutor(1), False),
        (InterpreterPoolExecutor, False),
        (loky.ProcessPoolExecutor, False),
        (Desk(), False),
    ],
)
def test_only_what_is_surely_threads_shares_memory(source: Any, shared: bool) -> None:
    assert over(source).capabilities.in_process is shared
    assert over(source, pickle=True).capabilities.in_process is False
    assert over(source, pickle=False).capabilities.in_process is True


def test_slots_are_what_is_asked_for_or_what_the_executor_says() -> None:
    with ThreadPoolExecutor(7) as pool:
        assert over(pool).slots() == 7
        assert over(pool, max_workers=2).slots() == 2
    assert over(Desk()).slots() == 3
    assert over(Desk, max_workers=5).slots() == 5
    assert over(Bare()).slots() == usable_processors()
    odd = Desk()
    odd.max_workers = None  # type: ignore[assignment]
    assert over(odd).slots() == usable_processors()


def test_a_plan_is_what_is_asked_for_or_what_the_executor_says() -> None:
    with ThreadPoolExecutor(7) as pool, ThreadPoolExecutor() as by_default:
        assert over(pool).plan() == Plan(7)
        assert over(pool, max_workers=2).plan() == Plan(2)
        assert ExecutorTaskRunner().plan() == over(ThreadPoolExecutor).plan() == Plan(by_default._max_workers)
    assert over(Desk()).plan() == Plan(3)
    assert over(Desk, max_workers=5).plan() == Plan(5)
    assert over(loky.ProcessPoolExecutor).plan() == over(lambda: InSubmit()).plan() == over(Bare()).plan() == Plan()


def test_max_workers_is_handed_on_to_classes_alone() -> None:
    @flow(task_runner=over(Threads, max_workers=1))
    def one() -> Any:
        return [thread_of_call.submit() for _ in range(5)]

    assert len(set(one())) == 1
    assert doubled_by(over(lambda: InSubmit(), max_workers=2)) == FOURFOLD


@pytest.mark.parametrize(
    ("executor", "options", "error", "message"),
    [
        (None, {"max_workers": 0}, ValueError, "max_workers=0: give a whole number, 1 or more"),
        (5, {}, TypeError, "executor=5: give an Executor, or a class or function that makes one"),
        ("loky", {}, ValueError, "executor='loky': name a place as 'module:name'"),
        ("loky:Nope", {}, AttributeError, "Nope"),
        ("no_such_module_here:Pool", {}, ModuleNotFoundError, "no_such_module_here"),
    ],
)
def test_what_is_no_executor_is_refused(
    executor: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        over(executor, **options)


def test_a_factory_that_makes_something_else_is_a_start_error() -> None:
    with pytest.raises(RunnerStartError, match=r"The factory of ExecutorTaskRunner.* returned 5, which has no submit"):
        doubled_by(over(lambda: 5))


def test_a_factory_that_raises_is_a_start_error() -> None:
    def make() -> Executor:
        raise OSError("no pool today")

    with pytest.raises(RunnerStartError, match="did not start: OSError: no pool today"):
        doubled_by(over(make))


def test_a_recipe_shows_its_settings_and_pickles() -> None:
    runner = over(ThreadPoolExecutor, max_workers=2)
    assert repr(runner) == f"ExecutorTaskRunner(executor={ThreadPoolExecutor!r}, max_workers=2)"
    assert pickle.loads(pickle.dumps(runner)) == runner == over(ThreadPoolExecutor, max_workers=2)
    assert runner != over(ThreadPoolExecutor)
    assert resolve("executor:loky:ProcessPoolExecutor,max_workers=2") == over("loky:ProcessPoolExecutor", max_workers=2)


class Derived(ExecutorTaskRunner):
    """A runner of one's own."""

    def __init__(self, size: int) -> None:
        super().__init__(max_workers=size, pickle=False)
        self.size = size

    def make_executor(self) -> Executor:
        return ThreadPoolExecutor(self.size, thread_name_prefix="derived")


def test_a_runner_of_ones_own_takes_one_method() -> None:
    runner = Derived(2)
    assert doubled_by(runner) == FOURFOLD
    assert pickle.loads(pickle.dumps(runner)) == runner
    assert repr(runner) == "Derived(size=2)"
    with runner:
        assert thread_of_call.submit().result().startswith("derived")


# Other libraries' pools, handed in


def test_lokys_reusable_pool_stays_up() -> None:
    pool = loky.get_reusable_executor(max_workers=1)
    try:
        assert doubled_by(over(pool), range(3)) == [0, 4, 8]
        assert pool.submit(int, "5").result(timeout=30) == 5
    finally:
        pool.shutdown(wait=True)


def test_executorlibs_pool_stays_up() -> None:
    with executorlib.SingleNodeExecutor(max_workers=1, block_allocation=True) as pool:
        assert doubled_by(over(pool), range(3)) == [0, 4, 8]
        assert pool.submit(os.path.basename, "a/5").result(timeout=30) == "5"


# Many threads


def test_every_outcome_is_told_once_from_whatever_thread() -> None:
    with over(OnNewThreads(), max_workers=8):
        futures: list[TaskFuture[int]] = [double.submit(number) for number in range(200)]
        assert [future.result(30) for future in futures] == [2 * number for number in range(200)]


def test_outcomes_pass_through_unread() -> None:
    desk = Desk()
    with over(desk):
        future: TaskFuture[Any] = double.submit(1)
        desk.slips.popleft().settle(pickle.dumps([Outcome(0, OutcomeKind.VALUE, "as told")]))
        assert future.result(0) == "as told"


def test_broken_means_any_kind_of_broken_executor() -> None:
    class Cracked(BrokenExecutor):
        pass

    made: list[Desk] = []

    def make() -> Desk:
        made.append(Desk())
        return made[-1]

    with over(make):
        future = frail.submit(3)
        made[0].slips.popleft().settle(None, Cracked())
        made[1].run_all()
        assert future.result(0) == 3
