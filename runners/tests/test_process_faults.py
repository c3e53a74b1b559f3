"""What may happen to worker processes and their driver, short of death: stopped, out of room, out of descriptors."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from turnout import TaskFuture, flow, task
from turnout.errors import CancelledRun, CrashedRun
from turnout.testing import Signals, run_script
from turnout.testing._kit import eventually
from turnout_runners.process import ProcessPoolTaskRunner, _memory
from turnout_runners.process._launch import Interpreter

# Workers can't import test modules.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(60)

PATIENCE = 30.0
LARGE = 3_000_000


@pytest.fixture
def signals(tmp_path: Path) -> Signals:
    return Signals(str(tmp_path))


@pytest.fixture
def limits() -> Iterator[Callable[[int, int], None]]:
    """Return a function that lowers a soft limit of this process, until the test is over."""
    before: dict[int, tuple[int, int]] = {}

    def lower(kind: int, value: int) -> None:
        before.setdefault(kind, resource.getrlimit(kind))
        resource.setrlimit(kind, (value, before[kind][1]))

    yield lower
    for kind, values in before.items():
        resource.setrlimit(kind, values)


@task
def double(value: int) -> int:
    return 2 * value


@task
def make(size: int) -> bytes:
    return bytes(size)


@task
def size_of(value: bytes) -> int:
    return len(value)


@task
def stop(signals: Signals) -> str:
    signals.note("pid", str(os.getpid()))
    signals.set("stops")
    os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def works() -> bool:
    """Return whether a call has its result."""
    return double.submit(1).exception(timeout=PATIENCE) is None


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"


def children() -> set[int]:
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in _read(path).split()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # a thread that ended meanwhile
        return ""


# Stopped by a signal.


@pytest.mark.parametrize("timeout_seconds", [None, 20])
def test_calls_do_not_wait_for_a_worker_that_is_stopped_while_idle(timeout_seconds: float | None) -> None:
    with ProcessPoolTaskRunner(max_workers=1):
        pid = task(os.getpid).submit().result()
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: is_stopped(pid))
        begin = time.monotonic()
        futures = double.with_options(timeout_seconds=timeout_seconds, crash_retries=0).map(range(5))
        assert [future.result(timeout=PATIENCE) for future in futures] == [0, 2, 4, 6, 8]
        assert time.monotonic() - begin < PATIENCE
        assert not is_alive(pid)


def test_calls_do_not_wait_for_a_worker_that_is_stopped_as_it_starts(signals: Signals) -> None:
    with ProcessPoolTaskRunner(max_workers=1, initializer=stop_the_first, initargs=(signals,)):
        assert double.submit(1).result(timeout=PATIENCE) == 2
    assert signals.count("started") == 2


def stop_the_first(signals: Signals) -> None:
    signals.note("started")
    if signals.count("started") == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


def test_calls_behind_a_stopped_one_go_to_other_workers(signals: Signals) -> None:
    with ProcessPoolTaskRunner(max_workers=2):
        stopped = stop.submit(signals)
        signals.wait("stops")
        assert double.map(range(50)).result() == [2 * number for number in range(50)]
        assert not stopped.done()
        assert stopped.cancel()
        assert isinstance(stopped.exception(), CancelledRun)
        eventually(lambda: not is_alive(int(signals.notes("pid")[0])))


def test_a_worker_that_went_on_can_be_stopped_again(signals: Signals) -> None:
    @task
    def stop_twice(signals: Signals) -> str:
        for number in range(2):
            signals.note("pid", str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
            signals.set(f"went on {number}")
        return "went on twice"

    with ProcessPoolTaskRunner(max_workers=1):
        future = stop_twice.submit(signals)
        for number in range(2):
            signals.wait_count("pid", number + 1)
            pid = int(signals.notes("pid")[0])
            eventually(lambda pid=pid: is_stopped(pid))  # type: ignore[misc]
            os.kill(pid, signal.SIGCONT)
            signals.wait(f"went on {number}")
        assert future.result(timeout=PATIENCE) == "went on twice"
        assert double.submit(1).result(timeout=PATIENCE) == 2


DRIVER = """
import os, signal, sys
from turnout import flow, task
from turnout.testing import Signals
from turnout_runners.process import ProcessPoolTaskRunner, _memory

signals = Signals({directory!r})

@task
def stop():
    signals.note("pid", str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)

runner = ProcessPoolTaskRunner(max_workers=1)

@flow(task_runner=runner)
def main():
    stop.submit()
    signals.wait_count("pid", 1)
    raise LookupError("the end")

{end}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("main()", 1),
        ("runner.__enter__(); stop.submit(); signals.wait_count('pid', 1)", None),
        ("runner.__enter__(); stop.submit(); signals.wait_count('pid', 1); os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
    ids=["flow fails", "block is left open", "killed"],
)
def test_a_driver_ends_though_its_worker_is_stopped(
    signals: Signals, tmp_path: Path, end: str, status: int | None
) -> None:
    begin = time.monotonic()
    done = run_script(DRIVER.format(directory=signals.directory, end=end), tmp_path, timeout=PATIENCE)
    assert time.monotonic() - begin < PATIENCE
    assert status is None or done.returncode == status, done.stderr
    eventually(lambda: not any(is_alive(int(pid)) for pid in signals.notes("pid")))
    assert signals.count("pid") == 1


# No descriptors left.


def descriptors_in_use() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_driver_without_descriptors_waits_a_little_for_some(limits: Callable[[int, int], None]) -> None:
    with ProcessPoolTaskRunner(max_workers=2):
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limits(resource.RLIMIT_NOFILE, descriptors_in_use())
        future = double.submit(1)
        timer = threading.Timer(0.5, limits, (resource.RLIMIT_NOFILE, soft))
        timer.start()
        assert future.result(timeout=PATIENCE) == 2
        timer.join()


def test_a_driver_without_descriptors_says_so_and_serves_on_when_there_are_some(
    limits: Callable[[int, int], None],
) -> None:
    before = children()
    with ProcessPoolTaskRunner(max_workers=2):
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limits(resource.RLIMIT_NOFILE, descriptors_in_use())
        begin = time.monotonic()
        errors = [future.exception(timeout=PATIENCE) for future in double.map(range(10))]
        assert time.monotonic() - begin < PATIENCE
        assert all(isinstance(error, CrashedRun) for error in errors)
        assert "Too many open files" in str(errors[0])
        limits(resource.RLIMIT_NOFILE, soft)
        # What is sent within the same moment learns of the same.
        eventually(works, "there are workers again")
        assert double.map(range(10)).result() == [2 * number for number in range(10)]
    assert children() == before


@pytest.mark.parametrize("spare", range(4, 40, 3))
def test_a_driver_with_few_descriptors_left(limits: Callable[[int, int], None], spare: int) -> None:
    before, files = children(), descriptors_in_use()
    with ProcessPoolTaskRunner(max_workers=2):
        limits(resource.RLIMIT_NOFILE, descriptors_in_use() + spare)
        futures: list[TaskFuture[Any]] = [double.submit(1), make.submit(LARGE), size_of.submit(bytes(LARGE))]
        for value in (2, bytes(LARGE), LARGE):
            error = futures[0].exception(timeout=PATIENCE)
            assert futures[0].result() == value if error is None else isinstance(error, (CrashedRun, OSError))
            # The values of futures that are kept may have descriptors.
            del futures[0]
        limits(resource.RLIMIT_NOFILE, 1024)
    assert children() == before
    assert descriptors_in_use() == files


# No room.


@pytest.mark.parametrize("size", [1000, 100_000])
def test_files_may_not_be_as_large_as_it_takes(limits: Callable[[int, int], None], size: int) -> None:
    before = children()

    @flow(task_runner=ProcessPoolTaskRunner(max_workers=2))
    def main() -> Any:
        return double.submit(1).exception(timeout=PATIENCE)

    limits(resource.RLIMIT_FSIZE, size)
    error = main()
    assert isinstance(error, CrashedRun)
    assert "File too large" in str(error)
    limits(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert children() == before
    assert main() is None


def test_large_values_do_not_fit(limits: Callable[[int, int], None]) -> None:
    limits(resource.RLIMIT_FSIZE, 1_000_000)
    with ProcessPoolTaskRunner(max_workers=1):
        futures: list[TaskFuture[Any]] = [make.submit(LARGE), size_of.submit(bytes(LARGE))]
        for future, side in zip(futures, ["result", "arguments"], strict=True):
            error = future.exception(timeout=PATIENCE)
            assert isinstance(error, OSError)
            assert error.errno == errno.EFBIG
            assert any(side in note for note in error.__notes__)
        assert (double.submit(1).result(), make.submit(10).result()) == (2, bytes(10))


@pytest.mark.parametrize("call", ["memfd_create", "pwrite", "ftruncate"])
def test_shared_memory_is_full_in_the_driver(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = children()
    with ProcessPoolTaskRunner(max_workers=1):
        assert double.submit(1).result() == 2
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            error = size_of.submit(bytes(LARGE)).exception(timeout=PATIENCE)
            # Nothing is cut to length once the worker is up.
            assert (error is None) == (call == "ftruncate")
            assert error is None or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
        assert size_of.submit(bytes(LARGE)).result() == LARGE
    assert children() == before


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate"])
def test_there_is_no_shared_memory_to_start_with(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = children()
    with ProcessPoolTaskRunner(max_workers=1):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            error = double.submit(1).exception(timeout=PATIENCE)
            assert isinstance(error, CrashedRun)
            assert "No space left on device" in str(error)
        eventually(works, "there is a worker again")
        assert double.submit(1).result(timeout=PATIENCE) == 2
    assert children() == before


def test_there_is_no_address_space_for_what_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with ProcessPoolTaskRunner(max_workers=1):
        assert double.submit(1).result() == 2
        with monkeypatch.context() as patch:
            patch.setattr(_memory, "SharedMapping", refuse)
            error = make.submit(LARGE).exception(timeout=PATIENCE)
        assert isinstance(error, OSError)
        assert error.errno == errno.ENOMEM
        assert make.submit(LARGE).result() == bytes(LARGE)


def test_a_worker_that_can_not_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    real = Interpreter.launch

    def launch(self: Interpreter) -> Any:
        launched.append(real(self))
        return launched[-1]

    monkeypatch.setattr(Interpreter, "launch", launch)
    with ProcessPoolTaskRunner(max_workers=1):
        with monkeypatch.context() as patch:
            patch.setattr("turnout_runners.process._worker.Claims", no_room)
            assert isinstance(double.submit(1).exception(timeout=PATIENCE), CrashedRun)
        assert launched
        assert all(one.process.returncode is not None for one in launched)


def no_room(*_: Any) -> Any:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


# Standard streams.

WITHOUT_STREAMS = """
import os
from turnout import flow, task
from turnout.testing import Signals

signals = Signals({directory!r})

@task
def noisy(value):
    os.system("echo from a program; echo from a program >&2")
    print("from Python")
    for number in (1, 2):
        os.write(number, b"from C")
    return len(value), [os.readlink(f"/proc/self/fd/{{number}}") for number in range(3)]

@flow(task_runner="process?max_workers=1")
def main():
    for _ in range(3):
        size, files = noisy.submit(bytes(500_000)).result()
        signals.note("size", str(size))
        signals.note("files", str([file for file in files if not file.startswith(("/dev/null", "/dev/pts"))]))

for number in range(3):
    os.close(number)
main()
signals.set("over")
"""


def test_a_driver_may_have_closed_its_standard_streams(signals: Signals, tmp_path: Path) -> None:
    run_script(WITHOUT_STREAMS.format(directory=signals.directory), tmp_path, timeout=PATIENCE)
    assert signals.is_set("over")
    assert signals.notes("size") == ["500000"] * 3
    # What programs write there goes nowhere, and not into one of our files.
    assert signals.notes("files") == ["[]"] * 3


def test_a_task_that_closes_the_standard_streams_of_its_worker() -> None:
    @task
    def close_them() -> None:
        for number in range(3):
            os.close(number)

    @task
    def files_there(value: bytes) -> list[str]:
        return [str(Path(f"/proc/self/fd/{number}").resolve()) for number in range(3)]

    with ProcessPoolTaskRunner(max_workers=1):
        close_them.submit().result()
        assert files_there.submit(bytes(LARGE)).result() == [str(Path(os.devnull).resolve())] * 3
