"""The pool of worker processes, driven through the seam by a small host, with a small worker half."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from turnout import task
from turnout._serialization import Parcel, dumps
from turnout._version import __version__
from turnout.errors import RunnerStartError, RunnerStoppedError
from turnout.runner import Batch, Host, Outcome, OutcomeKind
from turnout.testing import Signals
from turnout_runners.process import ProcessPoolTaskRunner, _memory
from turnout_runners.process._claims import Claims
from turnout_runners.process._crew import Settings
from turnout_runners.process._launch import Interpreter
from turnout_runners.process._memory import new_file
from turnout_runners.process._pool import Pool
from turnout_runners.process._worker_main import Setup

# Workers can't import test modules.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

VALUE, FAILURE, CRASHED = OutcomeKind.VALUE, OutcomeKind.FAILURE, OutcomeKind.CRASHED
LOST, RETURNED, STARTED, RECORD = OutcomeKind.LOST, OutcomeKind.RETURNED, OutcomeKind.STARTED, OutcomeKind.RECORD

Call = tuple[Callable[..., Any], tuple[Any, ...]]


def run_calls(
    body: Parcel,
    functions: Mapping[bytes, bytes],
    upstream: Sequence[Any],
    emit: Callable[[Sequence[Outcome]], None],
    ledger: Any = None,
) -> None:
    """Run (function, arguments) pairs; ``upstream`` stands for the arguments where there is any."""
    for index, (function, args) in enumerate(body.load()):
        emit([Outcome(index, STARTED)])
        try:
            value = function(*[part.load() for part in upstream]) if upstream else function(*args)
        except Exception as error:
            emit([Outcome(index, FAILURE, repr(error))])
        else:
            plain = value is None or isinstance(value, (int, str))
            emit([Outcome(index, VALUE, value if plain else dumps(value))])


class Sent(Batch):
    """A batch of (function, arguments) pairs."""

    _numbers = iter(range(10**9))

    def __init__(self, *calls: Call, upstream: Sequence[Any] = (), functions: Mapping[bytes, bytes] | None = None):
        self.calls = [None] * len(calls)  # type: ignore[list-item]
        self.seq = next(self._numbers)
        self.body = dumps(calls)
        self.functions = functions or {}
        self.upstream = upstream


class Engine:
    """Collects what a pool reports."""

    def __init__(self) -> None:
        self.told: dict[Batch, list[Outcome]] = {}
        self._news = threading.Condition()
        self.then: Callable[[Batch], None] | None = None

    def report(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        with self._news:
            self.told.setdefault(batch, []).extend(outcomes)
            self._news.notify_all()
        if self.then is not None and self.is_over(batch):
            self.then(batch)

    def is_over(self, batch: Batch) -> bool:
        return sum(outcome.kind >= VALUE for outcome in self.told.get(batch, ())) >= len(batch.calls)

    def wait(self, *batches: Batch) -> None:
        with self._news:
            assert self._news.wait_for(lambda: all(map(self.is_over, batches)), 30), "no outcome"

    def wait_begun(self, batch: Batch, index: int = 0) -> None:
        def begun() -> bool:
            return any(outcome[:2] == (index, STARTED) for outcome in self.told.get(batch, ()))

        with self._news:
            assert self._news.wait_for(begun, 30), "did not begin"

    def last(self, batch: Batch) -> list[tuple[OutcomeKind, Any]]:
        """Return the last outcome of each call, which must be the only one."""
        final = [outcome for outcome in self.told[batch] if outcome.kind >= VALUE]
        assert sorted(outcome.index for outcome in final) == list(range(len(batch.calls)))
        return [(outcome.kind, outcome.data) for outcome in sorted(final, key=lambda outcome: outcome.index)]


class Bench:
    """A pool and its host."""

    def __init__(self, pool: Pool, engine: Engine) -> None:
        self.pool = pool
        self.engine = engine

    def submit(self, function: Callable[..., Any], *args: Any) -> Sent:
        return self.submit_batch(Sent((function, args)))

    def submit_batch(self, batch: Sent) -> Sent:
        self.pool.submit(batch)
        return batch

    def run_all(
        self, batches: Sequence[Sent], each: Callable[[int], None] = lambda left: None
    ) -> dict[Batch, list[tuple[OutcomeKind, Any]]]:
        """Run batches as the dispatcher does: a few are under way, and the next is sent when one is over."""
        waiting, left, over = iter(batches), [len(batches)], threading.Event()

        def send_next(_: Batch) -> None:
            left[0] -= 1
            each(left[0])
            if not left[0]:
                over.set()
            elif batch := next(waiting, None):
                self.pool.submit(batch)

        self.engine.then = send_next
        for batch in [next(waiting) for _ in range(4)]:
            self.pool.submit(batch)
        assert over.wait(50)
        self.engine.then = None
        return {batch: self.engine.last(batch) for batch in batches}

    def call_batch(self, batch: Sent) -> Any:
        kind, data = self.outcome(self.submit_batch(batch))
        assert kind == VALUE, data
        return data

    def outcome(self, batch: Sent) -> tuple[OutcomeKind, Any]:
        self.engine.wait(batch)
        return self.engine.last(batch)[0]

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.call_batch(Sent((function, args)))


Start = Callable[..., Bench]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def make(
            workers: int = 2,
            *,
            run: Callable[..., None] = run_calls,
            initializer: Callable[..., object] | None = None,
            initargs: tuple[Any, ...] = (),
            max_tasks_per_worker: int | None = None,
            env: Mapping[str, str] | None = None,
            python: str | None = None,
            version: str = __version__,
        ) -> Bench:
            engine = Engine()
            setup = version, dumps(Setup(("driver",), run, initializer, initargs))
            settings = Settings(workers, max_tasks_per_worker, Interpreter(python, env or {}), setup)
            pool = Pool(settings, Host(lambda _: (), engine.report))
            stack.callback(pool.stop)
            return Bench(pool, engine)

        yield make


def touch_and_wait(begun: str, go_on: str) -> int:
    Path(begun).touch()
    while not Path(go_on).exists():
        time.sleep(0.002)
    return os.getpid()


def note(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


def sleep_long() -> None:
    time.sleep(1000)


def hold_the_interpreter() -> None:
    # One C call that neither ends nor lets other threads of the process run.
    sum(range(10**12))


def kill_own_process(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1000)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; the dead whom nobody has waited for don't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Outcomes.


def test_value_and_failure(start: Start) -> None:
    bench = start()
    assert bench.call(lambda x: x + 1, 41) == 42
    assert bench.outcome(bench.submit(lambda: 1 // 0))[0] == FAILURE


def test_each_worker_runs_one_call_at_a_time(start: Start, tmp_path: Path) -> None:
    bench = start(2)
    go_on = str(tmp_path / "go-on")
    first, second = (bench.submit(touch_and_wait, str(tmp_path / str(i)), go_on) for i in range(2))
    # Both begin, though neither ends: they are on two workers.
    for batch in (first, second):
        bench.engine.wait_begun(batch)
    Path(go_on).touch()
    assert bench.outcome(first)[1] != bench.outcome(second)[1]


def test_thousands_of_small_batches(start: Start) -> None:
    bench = start()
    batches = [Sent((abs, (-number,))) for number in range(3000)]
    over = bench.run_all(batches)
    assert [over[batch] for batch in batches] == [[(VALUE, number)] for number in range(3000)]


def test_batch_of_many_calls_streams_outcomes(start: Start, tmp_path: Path) -> None:
    bench = start(1)
    go_on = str(tmp_path / "go-on")
    batch = bench.submit_batch(Sent((abs, (-1,)), (touch_and_wait, (str(tmp_path / "begun"), go_on)), (abs, (-3,))))
    bench.engine.wait_begun(batch, 1)
    assert Outcome(0, VALUE, 1) in bench.engine.told[batch]
    Path(go_on).touch()
    bench.engine.wait(batch)
    assert [kind for kind, _ in bench.engine.last(batch)] == [VALUE, VALUE, VALUE]


def test_order_of_start_follows_order_of_submission(start: Start, tmp_path: Path) -> None:
    bench = start(1)
    notes = str(tmp_path / "notes")
    batches = [bench.submit(note, notes, str(i)) for i in range(200)]
    bench.engine.wait(*batches)
    assert Path(notes).read_text().split() == [str(i) for i in range(200)]


def test_functions_are_sent_once_per_worker(start: Start) -> None:
    bench = start(1, run=tell_functions)
    assert bench.call_batch(Sent((abs, ()), functions={b"a": b"1"})) == "a=1"
    known = bench.pool._crew.workers[0]._known
    assert known == {b"a"}
    assert bench.call_batch(Sent((abs, ()), functions={b"a": b"not sent again", b"b": b"2"})) == "a=1 b=2"


def tell_functions(
    body: Parcel, functions: Mapping[bytes, bytes], upstream: Any, emit: Any, ledger: Any = None
) -> None:
    emit([Outcome(0, VALUE, " ".join(f"{name.decode()}={blob.decode()}" for name, blob in functions.items()))])


# What tasks print.


def print_a_lot() -> None:
    print("one")
    print("two", file=sys.stderr)
    sys.stdout.write("thr")
    sys.stdout.write("ee\nfour")


def test_text_arrives_in_order_before_the_outcome(start: Start) -> None:
    bench = start(1)
    batch = bench.submit(print_a_lot)
    bench.engine.wait(batch)
    told = [(outcome.kind, outcome.data) for outcome in bench.engine.told[batch]]
    assert told == [
        (STARTED, None),
        (RECORD, ("stdout", "one\n")),
        (RECORD, ("stderr", "two\n")),
        (RECORD, ("stdout", "three\n")),
        (RECORD, ("stdout", "four")),
        (VALUE, None),
    ]


def print_from_threads() -> None:
    threads = [threading.Thread(target=lambda: [print("x" * 50) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_of_a_task_may_print_at_once(start: Start) -> None:
    bench = start(1)
    batch = bench.submit(print_from_threads)
    bench.engine.wait(batch)
    text = "".join(outcome.data[1] for outcome in bench.engine.told[batch] if outcome.kind == RECORD)
    assert text.count("x") == 8 * 100 * 50
    assert text.count("\n") == 800


def die_with_words() -> None:
    print("last words")
    os._exit(7)


def test_text_of_a_dying_worker_arrives(start: Start) -> None:
    bench = start(1)
    batch = bench.submit(die_with_words)
    assert bench.outcome(batch) == (CRASHED, "exit code 7")
    assert Outcome(0, RECORD, ("stdout", "last words\n")) in bench.engine.told[batch]


# Stopping calls.


@pytest.mark.parametrize("body", [sleep_long, hold_the_interpreter])
def test_running_call_is_stopped(start: Start, body: Callable[[], None]) -> None:
    bench = start(1)
    batch = bench.submit(body)
    bench.engine.wait_begun(batch)
    assert bench.pool.cancel(batch)
    assert bench.outcome(batch) == (CRASHED, "stopped")
    assert bench.call(abs, -1) == 1


def test_only_the_worker_of_a_stopped_call_ends(start: Start, tmp_path: Path) -> None:
    bench = start(2)
    begun, go_on = str(tmp_path / "begun"), str(tmp_path / "go-on")
    other = bench.submit(touch_and_wait, begun, go_on)
    stopped = bench.submit(sleep_long)
    for batch in (other, stopped):
        bench.engine.wait_begun(batch)
    bench.pool.cancel(stopped)
    assert bench.outcome(stopped) == (CRASHED, "stopped")
    Path(go_on).touch()
    assert bench.outcome(other)[0] == VALUE


def test_what_a_stopped_call_started_is_ended(start: Start, tmp_path: Path) -> None:
    bench = start(1)
    path = tmp_path / "pid"
    batch = bench.submit(run_program, str(path))
    eventually(lambda: path.exists() and path.read_text().endswith("\n"))
    bench.pool.cancel(batch)
    assert bench.outcome(batch) == (CRASHED, "stopped")
    eventually(lambda: not is_alive(int(path.read_text())))


def run_program(path: str) -> None:
    with subprocess.Popen(["sleep", "1000"]) as program:
        Path(path).write_text(f"{program.pid}\n")


@pytest.mark.parametrize("behind", [1, 6])
def test_waiting_call_is_dropped(start: Start, tmp_path: Path, behind: int) -> None:
    # One behind another waits at the worker, six behind others wait in the driver.
    bench = start(1)
    go_on, notes = str(tmp_path / "go-on"), str(tmp_path / "notes")
    first = bench.submit(touch_and_wait, str(tmp_path / "begun"), go_on)
    bench.engine.wait_begun(first)
    waiting = [bench.submit(note, notes, str(i)) for i in range(behind)]
    assert bench.pool.cancel(waiting[-1])
    assert bench.outcome(waiting[-1]) == (RETURNED, None)
    Path(go_on).touch()
    bench.engine.wait(first, *waiting)
    assert (Path(notes).read_text() if behind > 1 else "").split() == [str(i) for i in range(behind - 1)]


def test_over_calls_and_strangers_are_not_stopped(start: Start) -> None:
    bench = start(1)
    batch = bench.submit(abs, -1)
    bench.engine.wait(batch)
    assert not bench.pool.cancel(batch)
    assert not bench.pool.cancel(Sent((abs, (-1,))))
    assert bench.call(abs, -1) == 1


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_stop_races_with_the_end_of_the_call(start: Start, tmp_path: Path) -> None:
    bench = start(1)
    notes = str(tmp_path / "notes")
    innocent, guilty = [], []
    for i in range(200):
        victim = bench.submit(spin, i % 30 / 50_000)
        innocent.append(bench.submit(note, notes, f"a{i}"))
        innocent.append(bench.submit(note, notes, f"b{i}"))
        guilty.append(victim)
        if i % 3:
            bench.engine.wait_begun(victim)
        bench.pool.cancel(victim)
        bench.engine.wait(victim)
    bench.engine.wait(*innocent)
    # Whatever became of a call that was stopped: those around it ran, once.
    assert all(bench.engine.last(batch) == [(VALUE, None)] for batch in innocent)
    assert sorted(Path(notes).read_text().split()) == sorted(f"{name}{i}" for name in "ab" for i in range(200))
    ends = {bench.engine.last(batch)[0] for batch in guilty}
    assert ends <= {(VALUE, None), (CRASHED, "stopped"), (RETURNED, None)}
    assert {(VALUE, None), (CRASHED, "stopped")} <= ends


# Deaths.


@pytest.mark.parametrize(
    ("body", "argument", "cause"),
    [
        (kill_own_process, signal.SIGKILL, "killed by signal 9 (SIGKILL)"),
        (kill_own_process, signal.SIGSEGV, "killed by signal 11 (SIGSEGV)"),
        (os._exit, 3, "exit code 3"),
        (os._exit, 0, "exit code 0"),
    ],
)
def test_dying_worker_takes_its_call_only(
    start: Start, tmp_path: Path, body: Callable[..., None], argument: int, cause: str
) -> None:
    bench = start(1)
    go_on, notes = str(tmp_path / "go-on"), str(tmp_path / "notes")
    before = bench.submit(touch_and_wait, str(tmp_path / "begun"), go_on)
    dying = bench.submit(body, argument)
    after = bench.submit(note, notes, "after")
    Path(go_on).touch()
    assert bench.outcome(before)[0] == VALUE
    assert bench.outcome(dying) == (CRASHED, cause)
    assert bench.outcome(after) == (VALUE, None)
    assert Path(notes).read_text() == "after\n"


def test_dying_worker_names_the_guilty_call_of_a_batch(start: Start) -> None:
    bench = start(1)
    batch = bench.submit_batch(Sent((abs, (-1,)), (os._exit, (3,)), (abs, (-2,)), (abs, (-3,))))
    bench.engine.wait(batch)
    assert bench.engine.last(batch) == [(VALUE, 1), (CRASHED, "exit code 3"), (RETURNED, None), (RETURNED, None)]


def test_dying_in_one_of_several_calls_that_run_at_once_names_none(start: Start) -> None:
    bench = start(1, run=begin_two_and_die)
    batch = bench.submit_batch(Sent((abs, ()), (abs, ()), (abs, ())))
    bench.engine.wait(batch)
    assert bench.engine.last(batch) == [(LOST, "exit code 5"), (LOST, "exit code 5"), (RETURNED, None)]


def begin_two_and_die(body: Parcel, functions: Any, upstream: Any, emit: Any, ledger: Any = None) -> None:
    emit([Outcome(0, STARTED), Outcome(1, STARTED)])
    os._exit(5)


def test_dying_before_the_first_call_begins_is_charged_to_it(start: Start) -> None:
    bench = start(1, run=die_at_once)
    batch = bench.submit_batch(Sent((abs, ()), (abs, ())))
    bench.engine.wait(batch)
    assert bench.engine.last(batch) == [(CRASHED, "exit code 6"), (RETURNED, None)]


def die_at_once(body: Parcel, functions: Any, upstream: Any, emit: Any, ledger: Any = None) -> None:
    os._exit(6)


def test_idle_worker_that_dies_is_replaced(start: Start) -> None:
    bench = start(1)
    pid = bench.call(os.getpid)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert bench.call(os.getpid) != pid


def test_batch_on_workers_that_die_for_no_reason_is_given_up(start: Start) -> None:
    bench = start(1, initializer=die_when_a_batch_comes)
    assert bench.outcome(bench.submit(abs, -1)) == (LOST, "exit code 8")


def die_when_a_batch_comes() -> None:
    Claims.begin = lambda *_: os._exit(8)  # type: ignore[method-assign]


def test_random_kills(start: Start, tmp_path: Path) -> None:
    bench = start(2)
    notes = str(tmp_path / "notes")
    batches = [Sent((spin, (0.0005,)), (note, (notes, str(i)))) for i in range(300)]

    def kill_one(left: int) -> None:
        if left % 20:
            return
        worker = random.choice([worker for worker in bench.pool._crew.workers if worker.is_ready])
        pid = worker.process.pid

        def kill() -> None:
            # One kill may come so late that another one has been before it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        threading.Timer(random.random() * 0.005, kill).start()

    over = bench.run_all(batches, kill_one)
    kinds = {kind for outcomes in over.values() for kind, _ in outcomes}
    assert kinds <= {VALUE, CRASHED, RETURNED}
    assert CRASHED in kinds
    # Nothing that was reported as not begun has run, and nothing ran twice.
    lines = Path(notes).read_text().split()
    assert len(lines) == len(set(lines))
    for i, batch in enumerate(batches):
        kind = over[batch][1][0]
        assert kind == CRASHED or (str(i) in lines) == (kind == VALUE)


# Batches that were sent ahead.


def test_nothing_waits_behind_a_long_call_while_a_worker_is_idle(start: Start, tmp_path: Path) -> None:
    bench = start(2)
    go_on = str(tmp_path / "go-on")
    other = str(tmp_path / "other")
    long = bench.submit(hold_the_interpreter)
    short = bench.submit(touch_and_wait, str(tmp_path / "begun"), other)
    for batch in (long, short):
        bench.engine.wait_begun(batch)
    behind = [bench.submit(abs, -i) for i in range(4)]
    Path(other).touch()
    bench.engine.wait(*behind)
    assert not bench.engine.is_over(long)
    bench.pool.cancel(long)
    assert [bench.engine.last(batch) for batch in behind] == [[(VALUE, i)] for i in range(4)]
    assert not Path(go_on).exists()


def test_taking_back_races_with_the_beginning(start: Start, tmp_path: Path) -> None:
    bench = start(2)
    notes = str(tmp_path / "notes")
    batches = [Sent((note, (notes, str(i)))) for i in range(500)]
    for first in range(0, 500, 5):
        # Five for two workers: at the end of each round, one is idle while the other has some ahead.
        for batch in batches[first : first + 5]:
            bench.submit_batch(batch)
        bench.engine.wait(*batches[first : first + 5])
    assert all(bench.engine.last(batch) == [(VALUE, None)] for batch in batches)
    assert sorted(map(int, Path(notes).read_text().split())) == list(range(500))


# Start, settings, stop.


def test_worker_is_replaced_after_its_number_of_calls(start: Start) -> None:
    bench = start(1, max_tasks_per_worker=3)
    pids = [bench.call(os.getpid) for _ in range(9)]
    assert [len(set(pids[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    assert len(set(pids)) == 3
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids[:6]))


def test_worker_of_one_call_runs_no_other(start: Start) -> None:
    bench = start(2, max_tasks_per_worker=1)
    batches = [bench.submit(os.getpid) for _ in range(5)]
    bench.engine.wait(*batches)
    assert len({bench.engine.last(batch)[0] for batch in batches}) == 5


def surroundings() -> tuple[Any, ...]:
    stdin = str(Path("/proc/self/fd/0").resolve())
    return os.environ.get("TURNOUT_TEST"), os.environ["PATH"], str(Path.cwd()), sys.path, sys.argv, stdin


def test_surroundings_are_those_of_the_driver(start: Start) -> None:
    bench = start(1, env={"TURNOUT_TEST": "yes"})
    value = bench.call(surroundings).load()
    stdin = str(Path(os.devnull).resolve())
    assert value == ("yes", os.environ["PATH"], str(Path.cwd()), sys.path, ["driver"], stdin)


def remember(*values: int) -> None:
    sys.turnout_test = values  # type: ignore[attr-defined]


def test_initializer_runs_first(start: Start) -> None:
    bench = start(1, initializer=remember, initargs=(1, 2))
    assert bench.call(lambda: sum(sys.turnout_test)) == 3  # type: ignore[attr-defined]


def fail_to_initialize() -> None:
    raise LookupError("no such licence")


def refused(bench: Bench) -> str:
    """Return why the pool takes no batch."""
    first = bench.submit(abs, -1)
    assert bench.outcome(first) == (RETURNED, None)
    with pytest.raises(RunnerStartError) as caught:
        bench.submit(abs, -1)
    return str(caught.value)


def test_initializer_that_raises(start: Start) -> None:
    text = refused(start(2, initializer=fail_to_initialize))
    assert "LookupError: no such licence" in text
    assert "fail_to_initialize" in text
    assert "initializer=" in text


def test_initializer_that_ends_the_process(start: Start) -> None:
    assert "exit code 4" in refused(start(1, initializer=os._exit, initargs=(4,)))


def test_initializer_that_is_killed(start: Start) -> None:
    assert "SIGKILL" in refused(start(1, initializer=kill_own_process, initargs=(signal.SIGKILL,)))


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_interpreter_that_fails(start: Start, tmp_path: Path) -> None:
    text = refused(start(1, python=program(tmp_path / "python", "echo no such library >&2; exit 127")))
    assert "exit code 127\nno such library" in text


def test_interpreter_of_another_version(start: Start, tmp_path: Path) -> None:
    # The real one, but its boot code is told that it is old.
    shim = f"""exec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])" "$2" """
    text = refused(start(1, python=program(tmp_path / "python", shim)))
    assert "it is Python 3.9, and the driver is Python {}.{}".format(*sys.version_info[:2]) in text


def test_other_version_of_turnout(start: Start) -> None:
    text = refused(start(1, version="0.0.7"))
    assert f"it has Turnout {__version__}, and the driver has Turnout 0.0.7" in text


def test_another_interpreter_of_the_same_version(start: Start, tmp_path: Path) -> None:
    python = program(tmp_path / "python", f'exec {sys.executable} "$@"')
    path = start(1, python=python).call(lambda: sys.path).load()
    # Its own entries first, then what only the driver has.
    assert set(sys.path) <= {*path, str(Path(path[-1]).parent)} or set(sys.path) - set(path) <= stdlib_entries()


def stdlib_entries() -> set[str]:
    from turnout_runners.process._launch import _standard_library

    return _standard_library() | {""}


def test_interpreter_that_is_not_there() -> None:
    with pytest.raises(RunnerStartError, match=r"no interpreter at '/no/such/python'"):
        Interpreter("/no/such/python").check()


def test_stopped_pool_takes_no_calls(start: Start) -> None:
    bench = start(1)
    bench.pool.stop()
    bench.pool.stop()
    with pytest.raises(RunnerStoppedError):
        bench.submit(abs, -1)


def test_stopping_ends_what_runs(start: Start) -> None:
    bench = start(1)
    running, waiting = bench.submit(hold_the_interpreter), [bench.submit(abs, -1) for _ in range(5)]
    bench.engine.wait_begun(running)
    bench.pool.stop()
    assert bench.outcome(running)[0] == CRASHED
    assert {bench.outcome(batch) for batch in waiting} == {(RETURNED, None)}


def test_stopping_while_workers_start(start: Start) -> None:
    bench = start(2)
    batch = bench.submit(abs, -1)
    bench.pool.stop()
    assert bench.outcome(batch)[0] in (VALUE, RETURNED)


def test_stopping_from_inside_a_report(start: Start) -> None:
    bench = start(1)
    bench.engine.then = lambda _: bench.pool.stop()
    bench.call(abs, -1)
    bench.pool._thread.join(10)
    assert not bench.pool._thread.is_alive()


def test_reports_that_raise_harm_nobody(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    bench = start(1)

    def fail(batch: Batch) -> None:
        raise LookupError("from a callback")

    bench.engine.then = fail
    assert bench.call(abs, -1) == 1
    eventually(lambda: "from a callback" in caplog.text)
    bench.engine.then = None
    assert bench.call(abs, -2) == 2


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_behind(start: Start) -> None:
    before = count_descriptors(), threading.active_count()
    bench = start(2)
    calls: list[Call] = [(abs, (-1,)), (os._exit, (3,)), (bytearray, (10**6,)), (abs, (-2,))]
    batches = [bench.submit(body, *args) for body, args in calls]
    running = bench.submit(sleep_long)
    bench.engine.wait_begun(running)
    bench.pool.cancel(running)
    bench.engine.wait(*batches, running)
    bench.engine.told.clear()
    pids = [worker.process.pid for worker in bench.pool._crew.workers]
    bench.pool.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert (count_descriptors(), threading.active_count()) == before


# Forks and children.


def descriptors_of_a_child() -> str:
    return subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, check=True).stdout


def test_programs_that_tasks_start_inherit_nothing(start: Start) -> None:
    # 3 is the directory that is being listed.
    assert start(1).call(descriptors_of_a_child).split() == ["0", "1", "2", "3"]


def programs_with_everything() -> str:
    return subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False).stdout


def test_programs_that_tasks_start_carelessly_inherit_nothing(start: Start) -> None:
    assert start(1).call(programs_with_everything).split() == ["0", "1", "2", "3"]


def fork_and_return() -> str:
    # Both processes return from the task; one of them is none of ours.
    pid = os.fork()
    if pid == 0:
        print("from the fork")
        return "child"
    os.waitpid(pid, 0)
    return "parent"


def test_tasks_may_fork(start: Start) -> None:
    bench = start(1)
    batch = bench.submit(fork_and_return)
    assert bench.outcome(batch) == (VALUE, "parent")
    assert bench.call(abs, -1) == 1
    assert [outcome.kind for outcome in bench.engine.told[batch]] == [STARTED, VALUE]


def test_worker_with_a_living_fork_is_noticed_dead(start: Start, tmp_path: Path) -> None:
    bench = start(1)
    batch = bench.submit(fork_and_die, str(tmp_path / "pid"))
    assert bench.outcome(batch) == (CRASHED, "exit code 3")
    eventually(lambda: not is_alive(int((tmp_path / "pid").read_text())))


def fork_and_die(path: str) -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
    Path(path).write_text(str(pid))
    os._exit(3)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_of_the_driver_leaves_the_pool_to_its_parent(start: Start) -> None:
    bench = start(1)
    bench.call(abs, -1)
    pid = os.fork()
    if pid == 0:
        refused = 1
        with contextlib.suppress(RunnerStartError):
            bench.pool.submit(Sent((abs, (-1,))))
            refused = 0
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert bench.call(abs, -2) == 2


def test_closing_all_descriptors_ends_the_worker_only(start: Start) -> None:
    bench = start(1)
    assert bench.outcome(bench.submit(os.closerange, 3, 100))[0] == CRASHED
    assert bench.call(abs, -1) == 1


# The ledger of several calls


@pytest.fixture
def page() -> Iterator[Claims]:
    claims = Claims(new_file("claims"))
    yield claims
    claims.close()


def test_what_was_noted_and_not_sent_is_known(page: Claims) -> None:
    assert page.begin(7)
    ledger = page.ledger(7)
    assert ledger.begin(0)
    assert ledger.note(Outcome(0, OutcomeKind.VALUE, "first"))
    ledger.turn()
    assert ledger.begin(1)
    assert ledger.note(Outcome(1, OutcomeKind.VALUE, {"second": 2}))
    assert page.calls_begun == 2
    assert [row[2] for row in page.noted(7)] == ["first", {"second": 2}]
    ledger.sent()
    assert [row[2] for row in page.noted(7)] == [{"second": 2}]
    assert page.noted(6) == []
    assert page.begin(8)
    assert (page.noted(8), page.calls_begun) == ([], 0)


def test_a_ledger_takes_what_it_has_room_for(page: Claims) -> None:
    assert page.begin(1)
    ledger = page.ledger(1)
    assert not ledger.note(Outcome(0, OutcomeKind.VALUE, bytes(1_000_000)))
    noted = 0
    while ledger.note(Outcome(noted, OutcomeKind.VALUE, bytes(10_000))):
        noted += 1
    assert noted >= 10
    assert [row[0] for row in page.noted(1)] == list(range(noted))


def test_no_call_of_a_recalled_batch_begins(page: Claims) -> None:
    assert page.begin(1)
    ledger = page.ledger(1)
    assert ledger.begin(0)
    page.recall(1)
    assert not ledger.begin(1)
    assert page.begin(2)
    assert page.ledger(2).begin(0)


def test_a_large_argument_is_written_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[int] = []
    real = _memory.write

    def write(file: Any, offset: int, data: Any) -> None:
        written.append(memoryview(data).nbytes)
        real(file, offset, data)

    monkeypatch.setattr(_memory, "write", write)
    data = bytearray(3_000_000)

    signals = Signals(str(tmp_path))

    @task
    def hold(data: bytearray) -> None:
        signals.wait("go")

    @task
    def change(data: bytearray, number: int) -> int:
        data[0] += number
        return data[0]

    with ProcessPoolTaskRunner(max_workers=2) as runner:
        assert isinstance(runner, ProcessPoolTaskRunner)
        # As long as this one is open, nobody may change it.
        held = hold.submit(data)
        futures = [change.submit(data, number) for number in range(100)]
        assert [future.result() for future in futures] == list(range(100))
        signals.set("go")
        held.result()
    assert sum(size >= 3_000_000 for size in written) == 1
    assert data[0] == 0
