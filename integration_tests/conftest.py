"""What holds for every module of tests here: its functions reach workers, and nothing that it started outlives it.

For all tests of a run: one that takes too long ends its process, and what that has forked, with the stacks shown.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_timeout  # type: ignore[import-untyped]

from turnout._sockets import descendants
from turnout.testing.plugin import travel_by_value

PATIENCE: Final = 10.0
"""Seconds that threads and workers get to end, once they have been told to."""

_HERE: Final = Path(__file__).parent
_TASKS: Final = Path("/proc/self/task")
_STDERR: Final = pytest.StashKey[int]()
_TIMER: Final = pytest.StashKey[threading.Timer]()
_OURS: Final = re.compile(rb"\bturnout(_runners)?\.")


def pytest_configure(config: pytest.Config) -> None:
    # While tests run, standard error is a file of pytest's.
    config.stash[_STDERR] = os.dup(2)
    # A shell has what it starts in the background ignore Ctrl-C, and so would every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool:
    timer = threading.Timer(settings.timeout, _end, [item, settings])
    timer.daemon = True
    item.stash[_TIMER] = timer
    timer.start()
    return True


def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    # None for a module that can't be imported.
    if (timer := item.stash.get(_TIMER, None)) is not None:
        timer.cancel()
        # Tests count threads.
        timer.join()
    return True


def _end(item: pytest.Item, settings: pytest_timeout.Settings) -> None:
    # pytest-timeout shows them on standard output, and that of xdist's processes goes nowhere.
    os.write(item.config.stash[_STDERR], f"\n{item.nodeid} took longer than {settings.timeout:g} s.\n".encode())
    faulthandler.dump_traceback(item.config.stash[_STDERR])
    # What a thread is about to raise, or to clean up after, may say more than where it hangs.
    held: Any
    for held in sys._current_exceptions().values():
        error = held[1] if isinstance(held, tuple) else held  # a tuple in Python 3.11
        os.write(item.config.stash[_STDERR], "".join(traceback.format_exception(error)).encode())
    # What this process has forked holds its pipes: nobody would learn of its end, and the run would wait for ever.
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    pytest_timeout.timeout_timer(item, settings)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Only here: nothing in core's tests goes to a worker, and some of it can't be pickled by value.
    travel_by_value(item for item in items if item.path.is_relative_to(_HERE))


def pytest_collection_finish(session: pytest.Session) -> None:
    # Without their groups, tests of one cluster run on all processes at once, each of which starts its own.
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in grouped):
        raise pytest.UsageError(
            f"pytest-xdist does not group tests with pytest {pytest.__version__}. Try: pip install 'pytest<9.2'"
        )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    # What the tests of random programs ran. The properties come from other processes, too, if there are several.
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    for report in reports:
        if getattr(report, "when", "") == "teardown":
            for name, value in report.user_properties:
                if name == "ran":
                    terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {value}")


def _threads() -> set[str]:
    return {f"thread {thread.name}" for thread in threading.enumerate() if thread.name.startswith("turnout")}


def _workers() -> set[str]:
    """Return the child processes that run code of ours. Other systems than Linux don't tell: there are none there."""
    pids = {pid for children in _TASKS.glob("*/children") for pid in _read(children).decode().split()}
    commands = {pid: _read(Path("/proc", pid, "cmdline")).split(b"\0") for pid in pids}
    # The first word is the interpreter, whose folder may well be named after the project.
    return {f"process {pid}" for pid, words in commands.items() if any(map(_OURS.search, words[1:]))}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


@pytest.fixture(autouse=True, scope="module")
def _nothing_stays_behind() -> Iterator[None]:
    # Per module, not per test: a class of the conformance kit keeps its runner up from test to test.
    before = _threads() | _workers()
    yield
    deadline = time.monotonic() + PATIENCE
    while left := (_threads() | _workers()) - before:
        assert time.monotonic() < deadline, f"still there {PATIENCE:g} s after the last test: {sorted(left)}"
        time.sleep(0.01)
