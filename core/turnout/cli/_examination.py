"""A runner started, called and measured; what comes of it is told line by line, for this process may hang or die."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from .. import FutureList
from .._cluster import check_versions
from .._signals import INTERRUPTS
from .._sockets import can_be_listed, listening
from .._units import shown_rate, shown_seconds
from ..errors import RunnerError
from ..registry import resolve
from ._output import claim_standard_output
from ._probes import facts, length, noise, noisy, nothing, tell
from ._report import Late, Report, note_logs, note_warnings
from ._supervised import PATIENCE, kill_all_of

if TYPE_CHECKING:
    from .. import TaskFuture, TaskRunner

__all__ = ["main"]

# How many calls the latency is the median of, and for how long at most they are made, in seconds.
_ROUNDS: Final = 30
_ROUNDS_SECONDS: Final = 2.0
# What is sent there and back, in bytes, and how often; the next size only if this one took no longer, in seconds.
_SIZES: Final = (1_000_000, 16_000_000)
_TRANSFERS: Final = 3
_LONG_TRANSFER: Final = 1.0
# How many tiny tasks go first, so that batches find their size; then several times as many as take about so long, in
# seconds. Backends start workers meanwhile, and the median leaves the time out that this takes.
_WARMING: Final = 500
_TINY_ROUNDS: Final = 5
_TINY_SECONDS: Final = 0.3
_MOST_TINY: Final = 5_000
_SHOWN_SOCKETS: Final = 5
# After the point of seconds that are told.
_DIGITS: Final = 9


def main(word: str, libraries: Sequence[str], seconds: float) -> None:
    """Examine the runner that a word stands for. The standard output holds one JSON object for each thing found.

    Parameters
    ----------
    word
        What the user has typed; it is known to lead to a runner.
    libraries
        Distributions whose versions should be the same for driver and workers.
    seconds
        How long each step may take.
    """
    report = Report(claim_standard_output(), seconds)
    threading.Thread(target=_end_with_starter, name="turnout-doctor-lifeline", daemon=True).start()
    note_logs(report)
    note_warnings(report)
    INTERRUPTS.is_command = True
    try:
        _Examination(resolve(word), libraries, report).run()
    except KeyboardInterrupt:
        sys.exit(128 + (INTERRUPTS.order or signal.SIGINT))
    report.begin("end")


def _end_with_starter() -> None:
    """End this process when the one that has started it is gone, and with it our standard input."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    # That is of no avail where a backend hangs.
    time.sleep(PATIENCE)
    kill_all_of(os.getpid())


class _Examination:
    """One runner, and what is known of a worker of its."""

    def __init__(self, runner: TaskRunner, libraries: Sequence[str], report: Report) -> None:
        self._runner = runner
        self._report = report
        self._driver = facts(libraries)
        self._worker: dict[str, Any] = {}
        self._libraries = list(libraries)

    def run(self) -> None:
        """Start the runner, try it, and stop it."""
        self._report.begin("start")
        with contextlib.ExitStack() as running:
            begun = time.perf_counter()
            try:
                running.enter_context(self._runner)
            except Exception as error:
                self._report.find("problem", _told(error))
                return
            seconds, slots = time.perf_counter() - begun, self._runner.slots()
            self._report.measure(start_seconds=round(seconds, _DIGITS), slots=slots)
            self._report.find("ok", f"up after {shown_seconds(seconds)}, for {slots} call{'s' * (slots > 1)} at once")
            self._try_out()
            self._report.begin("network")
            self._look_at_sockets()
            self._report.begin("stop")
            begun = time.perf_counter()
            try:
                running.close()
            except Exception as error:
                self._report.find("problem", _told(error))
                return
        self._report.find("ok", f"stopped after {shown_seconds(time.perf_counter() - begun)}")

    def _try_out(self) -> None:
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("call", self._call),
            ("versions", self._compare_versions),
            ("latency", self._measure_latency),
            ("bandwidth", self._measure_bandwidth),
            ("cost", self._measure_cost),
        )
        for name, step in steps:
            self._report.begin(name)
            try:
                step()
            except Late:
                self._report.find("problem", self._lateness(name))
                return
            except Exception as error:
                self._report.find("problem", _told(error))
                return

    def _lateness(self, step: str) -> str:
        limit = f"within {self._report.seconds:g} s"
        if step == "call":
            return (
                f"No worker has run the call {limit}. See whether there are workers, and whether others keep them "
                "busy; if they only take long to come, give them more time with --timeout."
            )
        return f"Not done {limit}. See what keeps workers or network busy, or give it more time with --timeout."

    def _call(self) -> None:
        begun = time.perf_counter()
        (self._worker,) = self._report.values(FutureList([tell.submit(self._libraries)]))
        seconds = time.perf_counter() - begun
        self._report.measure(first_call_seconds=round(seconds, _DIGITS), driver=self._driver, worker=self._worker)
        self._report.find("ok", f"the first came back after {shown_seconds(seconds)}, from {self._place()}")

    def _place(self) -> str:
        """Return where the worker is."""
        if not self._is_same_host:
            return f"process {self._worker['pid']} of {self._worker['host']}"
        is_same_process = self._worker["pid"] == self._driver["pid"]
        return "this process" if is_same_process else f"process {self._worker['pid']} of this machine"

    @property
    def _is_same_host(self) -> bool:
        return bool(self._worker) and self._worker["host"] == self._driver["host"]

    def _compare_versions(self) -> None:
        here, there = self._driver["versions"], self._worker["versions"]
        with warnings.catch_warnings():
            # What it would warn of is told below.
            warnings.simplefilter("ignore")
            check_versions(here, {"the worker": there})
        differing = [name for name in here if here[name] != there.get(name)]
        if differing:
            shown = ", ".join(f"{name} {here[name]} and {there.get(name) or 'none'}" for name in differing)
            self._report.find(
                "note",
                f"Driver and worker have {shown}. Most things will work; for those that don't, install the same "
                "version on both sides.",
            )
        else:
            shown = ", ".join(f"{name} {version}" for name, version in here.items())
            self._report.find("ok", f"{shown}, for driver and worker")

    def _measure_latency(self) -> None:
        taken: list[float] = []
        begun = time.perf_counter()
        while len(taken) < _ROUNDS and time.perf_counter() - begun < _ROUNDS_SECONDS:
            taken.append(self._timed(nothing.submit, 0))
        latency = statistics.median(taken)
        self._report.measure(latency_seconds=round(latency, _DIGITS))
        self._report.find("ok", f"{shown_seconds(latency)} from submit to result (median of {len(taken)})")

    def _measure_bandwidth(self) -> None:
        if self._runner.capabilities.in_process:
            self._report.find("ok", "arguments and results are shared, and travel nowhere")
            return
        size, *larger = _SIZES
        up, down = self._transfer(size)
        while larger and up + down < _LONG_TRANSFER:
            size = larger.pop(0)
            up, down = self._transfer(size)
        self._report.measure(
            bandwidth={
                "bytes": size,
                "up_bytes_per_second": round(size / up),
                "down_bytes_per_second": round(size / down),
            }
        )
        self._report.find(
            "ok",
            f"{shown_rate(size / up)} to the worker, {shown_rate(size / down)} back ({size // 10**6} MB in "
            f"{shown_seconds(up)} and {shown_seconds(down)})",
        )

    def _transfer(self, size: int) -> tuple[float, float]:
        """Return how long a call takes with an argument of a size, and with such a result, in seconds."""
        # New data each time: what was sent before need not be sent again.
        up = statistics.median(self._timed(length.submit, noise(size)) for _ in range(_TRANSFERS))
        down = statistics.median(self._timed(noisy.submit, size) for _ in range(_TRANSFERS))
        return up, down

    def _measure_cost(self) -> None:
        count = min(_MOST_TINY, max(_WARMING, int(_TINY_SECONDS / self._cost(_WARMING))))
        cost = statistics.median(self._cost(count) for _ in range(_TINY_ROUNDS))
        self._report.measure(cost_seconds=round(cost, _DIGITS))
        self._report.find(
            "ok", f"{shown_seconds(cost)} for each of {count:,} tiny tasks (median of {_TINY_ROUNDS} maps)"
        )

    def _cost(self, count: int) -> float:
        begun = time.perf_counter()
        self._report.values(nothing.map(range(count)))
        return (time.perf_counter() - begun) / count

    def _timed(self, submit: Callable[[Any], TaskFuture[Any]], argument: object) -> float:
        begun = time.perf_counter()
        self._report.values(FutureList([submit(argument)]))
        return time.perf_counter() - begun

    def _look_at_sockets(self) -> None:
        if not can_be_listed():
            self._report.find("note", "this system does not tell which sockets are open; lsof -i does")
            return
        sockets = sorted(listening(), key=lambda socket: (socket.is_local, socket.port))
        self._report.measure(
            sockets=[
                {"kind": one.kind, "address": one.address, "port": one.port, "reachable": not one.is_local}
                for one in sockets
            ]
        )
        is_open = [socket for socket in sockets if not socket.is_local]
        if not sockets:
            self._report.find("ok", "nothing of it listens")
        elif not is_open:
            self._report.find("ok", f"{_counted(len(sockets))} on loopback, closed to other machines")
        elif self._reaches_out:
            self._report.find(
                "note",
                f"Other machines can reach {_listed(is_open)}. That may be needed, as the cluster is not of this "
                "machine alone: let a firewall keep out all but its hosts.",
            )
        else:
            self._report.find(
                "problem",
                f"Other machines can reach {_listed(is_open)}, though all of it runs here. Have it listen on "
                "127.0.0.1, or let a firewall keep others out: who reaches a worker or scheduler may run code as you.",
            )

    @property
    def _reaches_out(self) -> bool:
        """Whether the backend is, or may be, more than this machine's."""
        return "address" in self._runner._settings or (bool(self._worker) and not self._is_same_host)


def _counted(count: int) -> str:
    return f"{count} socket{'s' * (count > 1)}"


def _listed(sockets: Sequence[object]) -> str:
    shown = ", ".join(map(str, sockets[:_SHOWN_SOCKETS]))
    return f"{_counted(len(sockets))}: {shown}{', ...' * (len(sockets) > _SHOWN_SOCKETS)}"


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
