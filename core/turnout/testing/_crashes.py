"""R3: workers that die."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from turnout import StateType, allow_failure, flow, task
from turnout.errors import CrashedRun, UpstreamFailed

from ._bodies import add, describe, identity, note, where
from ._kit import Conformance, Declare, Signals, eventually, run_script, runner_expression
from ._open_calls import alive, note_pid_and_wait

if TYPE_CHECKING:
    from pathlib import Path

    from turnout.runner import TaskRunner

__all__ = ["CrashConformance"]

_DIES_WITH_THE_DRIVER = """
from turnout import flow, task
from turnout.testing._crashes import die

runner = {runner}

@flow(task_runner=runner)
def main():
    die.submit({how!r}).wait()

main()
print("lives on")
"""


class CrashConformance(Conformance):
    """R3."""

    @pytest.mark.parametrize(("how", "cause"), [("kill", "SIGKILL"), ("exit", "3"), ("segfault", "SIGSEGV")])
    def test_R3_dead_worker_is_a_crash_with_a_cause(
        self, runner: TaskRunner, how: str, cause: str, tmp_path: Path, declared: Declare
    ) -> None:
        """A call whose worker dies each time is Crashed, and the error names signal or exit code."""
        if runner.capabilities.in_process:
            declared("in_process: a body that ends its process ends the driver, as it says")
            done = run_script(_DIES_WITH_THE_DRIVER.format(runner=runner_expression(runner), how=how), tmp_path)
            assert done.returncode == {"kill": -signal.SIGKILL, "exit": 3, "segfault": -signal.SIGSEGV}[how]
            assert "lives on" not in done.stdout
            return
        with runner:
            future = die.with_options(crash_retries=0).submit(how)
            error = future.exception()
            assert isinstance(error, CrashedRun)
            assert future.state.type is StateType.CRASHED
            assert "die-0" in str(error)
            if runner.capabilities.explains_crashes:
                assert cause in str(error)
            else:
                declared("explains_crashes: the backend does not tell how the worker died")

    def test_R3_tried_again_three_times_by_default(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """By default a call is begun again three times when its worker dies, then it is Crashed."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            error = note_and_die.submit(signals).exception()
        assert isinstance(error, CrashedRun)
        assert signals.count("ran") == 4
        assert "4" in str(error)

    @pytest.mark.parametrize("crash_retries", [1, 2])
    def test_R3_crash_retries_are_counted(
        self, runner: TaskRunner, signals: Signals, crash_retries: int, declared: Declare
    ) -> None:
        """With `crash_retries=n` a call whose worker always dies is begun n + 1 times."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            note_and_die.with_options(crash_retries=crash_retries).submit(signals).exception()
        assert signals.count("ran") == crash_retries + 1

    def test_R3_at_most_once(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """With `crash_retries=0` no call ever begins twice, where the runner promises that."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            once = note_name_and_die_at.with_options(crash_retries=0)
            futures = once.map([signals] * 30, range(30), 11)
            errors = [future.exception() for future in futures]
        counts = [signals.count(f"call {number}") for number in range(30)]
        assert isinstance(errors[11], CrashedRun)
        if runner.capabilities.at_most_once:
            assert max(counts) == 1
        else:
            declared("at_most_once: a call may begin again when another one kills its worker")
        if runner.capabilities.isolates_crashes:
            assert errors == [None] * 11 + [errors[11]] + [None] * 18

    def test_R3_success_after_a_crash(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call whose worker died once has the result of its second run."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            assert die_until.submit(signals, 2).result() == 2
        assert signals.count("ran") == 2

    def test_R3_retries_are_not_consumed(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A crash uses up none of `retries`, and an exception none of `crash_retries`."""
        if _cannot_crash(runner, declared):
            return

        @task(retries=1, crash_retries=1)
        def unlucky() -> str:
            signals.note("ran")
            if signals.count("ran") == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if signals.count("ran") == 2:
                raise ValueError("second run")
            return "third run"

        with runner:
            assert unlucky.submit().result() == "third run"

    def test_R3_killed_worker_harms_only_its_call(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """When a worker dies other calls have results; on runners that isolate crashes each ran once."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            before = note.map([signals] * 20, "ran", range(20))
            dying = die.submit("kill")
            after = note.map([signals] * 20, "ran", range(20, 40))
            assert before.result() + after.result() == list(range(40))
            assert isinstance(dying.exception(), CrashedRun)
        ran = sorted(map(int, signals.notes("ran")))
        if not runner.capabilities.isolates_crashes:
            declared("isolates_crashes: calls that were under way may run again")
            assert set(ran) == set(range(40))
        elif not runner.capabilities.keeps_ledger and self.batches != "one":
            # Where calls are measured, too: others of this function may have been short, and failed by an exception.
            declared("keeps_ledger: short calls that travelled with the one that killed its worker may run again")
            assert set(ran) == set(range(40))
        else:
            assert ran == list(range(40))

    def test_R3_running_neighbour_does_not_notice(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """A call that runs while another one's worker dies goes on, where crashes are isolated."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            beside = note_pid_and_wait.submit(signals, "beside")
            signals.wait("beside")
            if not runner.capabilities.isolates_crashes:
                declared("isolates_crashes: calls that were under way may run again, one at a time")
                signals.set("go")
            assert isinstance(die.with_options(crash_retries=1).submit("kill").exception(), CrashedRun)
            assert signals.is_set("go") or not beside.done()
            signals.set("go")
            assert beside.result() == "beside"
        if runner.capabilities.isolates_crashes:
            assert signals.count("beside") == 1

    def test_R3_killed_from_outside(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A worker that is killed from outside, as when memory is short, is the same: its call runs anew."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            future = note_pid_and_wait.submit(signals, "victim")
            signals.wait("victim")
            os.kill(int(signals.notes("victim")[0]), signal.SIGKILL)
            signals.wait_count("victim", 2)
            signals.set("go")
            assert future.result() == "victim"
        assert len(set(signals.notes("victim"))) == 2

    def test_R3_idle_worker_is_replaced(self, runner: TaskRunner, declared: Declare) -> None:
        """A worker that dies while it does nothing costs no call anything."""
        if _cannot_crash(runner, declared):
            return
        patient = where.with_options(crash_retries=0 if runner.capabilities.at_most_once else 3)
        with runner:
            for _ in range(3):
                pid = patient.submit().result()[0]
                os.kill(pid, signal.SIGKILL)
                eventually(lambda pid=pid: not alive(pid), "the idle worker is dead")  # type: ignore[misc]
                assert patient.submit().result()[0] != pid

    def test_R3_all_workers_die_at_once(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """When all workers die at once, every call that they ran runs again."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            futures = [note_pid_and_wait.submit(signals, name) for name in ("one", "two")]
            for name in ("one", "two"):
                signals.wait(name)
            pids = {int(signals.notes(name)[0]) for name in ("one", "two")}
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # a pool may bury all when one is dead
                    os.kill(pid, signal.SIGKILL)
            if not runner.capabilities.isolates_crashes:
                declared("isolates_crashes: calls that were under way run again one at a time")
                signals.set("go")
            for name in ("one", "two"):
                signals.wait_count(name, 2)
            signals.set("go")
            assert [future.result() for future in futures] == ["one", "two"]

    def test_R3_several_calls_die(self, runner: TaskRunner, declared: Declare) -> None:
        """Among many calls of which several kill their workers, just those are Crashed."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            futures = die_if.with_options(crash_retries=1).map([number % 8 == 5 for number in range(24)])
            crashed = [isinstance(future.exception(), CrashedRun) for future in futures]
        assert crashed == [number % 8 == 5 for number in range(24)]

    def test_R3_finished_results_survive(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """Results of calls that ended before the crash are there after it, small and large, and nothing runs again."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            small = note.map([signals] * 4, "ran", range(4))
            large = make_bytes.map([signals] * 4, [300_000, 600_000, 900_000, 1_200_000])
            small.wait()
            large.wait()
            die.submit("kill").exception()
            assert add.map(small, 1).result() == [1, 2, 3, 4]
            assert size_of.map(large).result() == [300_000, 600_000, 900_000, 1_200_000]
            assert large[0].result() == b"x" * 300_000
        if runner.capabilities.keeps_results:
            assert signals.count("ran") == 8
        else:
            declared("keeps_results: large results that their worker took along are made again")
            assert signals.count("ran") >= 8

    def test_R3_dependents_of_a_crashed_call(self, runner: TaskRunner, declared: Declare) -> None:
        """Dependents are UpstreamFailed with the crash as the cause, or get it with `allow_failure`."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            dying = die.with_options(crash_retries=0).submit("kill")
            lost, told = identity.submit(dying), describe.submit(allow_failure(dying))
            error = lost.exception()
            assert isinstance(error, UpstreamFailed)
            assert isinstance(error.__cause__, CrashedRun)
            assert told.result().startswith("CrashedRun: ")

    def test_R3_dependents_wait_for_the_second_run(
        self, runner: TaskRunner, signals: Signals, declared: Declare
    ) -> None:
        """What depends on a call that is run again gets the result of the run that ended well."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            assert add.submit(die_until.submit(signals, 3), 10).result() == 13

    def test_R3_poisoned_argument(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """An argument that kills the worker as it is unpacked makes its call Crashed, not the flow hang."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            poisoned = identity.with_options(crash_retries=1).submit(Poison(os.getpid(), signals))
            assert isinstance(poisoned.exception(), CrashedRun)
            assert add.submit(1, 2).result() == 3
        assert 1 <= signals.count("unpacked") <= 4

    def test_R3_poisoned_result(self, runner: TaskRunner, declared: Declare) -> None:
        """A result that kills the worker as it is packed makes its call Crashed."""
        if _cannot_crash(runner, declared):
            return
        with runner:
            poisoned = make_poison.with_options(crash_retries=1).submit()
            assert isinstance(poisoned.exception(), CrashedRun)
            assert add.submit(1, 2).result() == 3

    def test_R3_async_body(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A worker that dies in an async body is the same."""
        if _cannot_crash(runner, declared):
            return

        @task(crash_retries=1)
        async def dies() -> None:
            signals.note("ran")
            os._exit(5)

        with runner:
            assert isinstance(dies.submit().exception(), CrashedRun)
        assert signals.count("ran") == 2

    def test_R3_status_zero_is_a_crash_too(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A worker that leaves with exit code 0 in the middle of a call has crashed like any other."""
        if _cannot_crash(runner, declared):
            return

        @task(crash_retries=0)
        def leaves() -> None:
            os._exit(0)

        with runner:
            assert isinstance(leaves.submit().exception(), CrashedRun)

    def test_R3_runner_serves_the_next_flow(self, runner: TaskRunner, signals: Signals, declared: Declare) -> None:
        """After crashes in one flow the runner has all its slots for the next."""
        if _cannot_crash(runner, declared):
            return

        @flow(task_runner=runner)
        def deadly() -> None:
            for future in die.with_options(crash_retries=0).map(["kill", "exit", "kill"]):
                future.exception()

        @flow(task_runner=runner)
        def both_slots() -> list[str]:
            futures = [note_pid_and_wait.submit(signals, name) for name in ("one", "two")]
            signals.wait("one")
            signals.wait("two")
            signals.set("go")
            return [future.result() for future in futures]

        deadly()
        assert both_slots() == ["one", "two"]

    def test_R3_unseen_crash_fails_the_flow(self, runner: TaskRunner, declared: Declare) -> None:
        """A crash at which nobody looked makes the flow fail."""
        if _cannot_crash(runner, declared):
            return

        @flow(task_runner=runner)
        def main() -> None:
            die.with_options(crash_retries=0).submit("kill")

        with pytest.raises(ExceptionGroup) as caught:
            main()
        assert [type(error) for error in caught.value.exceptions] == [CrashedRun]


@task
def die(how: str) -> None:
    """End the process that runs this."""
    _die(how)


@task
def die_if(deadly: bool) -> bool:
    """End the process that runs this, or don't."""
    if deadly:
        _die("kill")
    return deadly


@task
def note_and_die(signals: Signals) -> None:
    """Note the run, and end the process."""
    signals.note("ran")
    _die("kill")


@task
def note_name_and_die_at(signals: Signals, number: int, deadly: int) -> int:
    """Note the run under the call's number, and end the process if it is the deadly one."""
    signals.note(f"call {number}")
    if number == deadly:
        _die("kill")
    return number


@task
def die_until(signals: Signals, runs: int) -> int:
    """End the process in all runs before the last, and return how many there were."""
    signals.note("ran")
    if signals.count("ran") < runs:
        _die("kill")
    return signals.count("ran")


@task
def make_bytes(signals: Signals, size: int) -> bytes:
    """Note the run, and return some bytes."""
    signals.note("ran")
    return b"x" * size


@task
def size_of(value: bytes) -> int:
    """Return the size of some bytes."""
    return len(value)


@task
def make_poison() -> Any:
    """Return what kills the process that packs it."""
    return _PoisonToPack()


class Poison:
    """Kills the process that unpickles it, unless that is the driver."""

    def __init__(self, driver: int, signals: Signals) -> None:
        self.driver = driver
        self.signals = signals

    def __reduce__(self) -> Any:
        return _unpack_poison, (self.driver, self.signals)


class _PoisonToPack:
    def __reduce__(self) -> Any:
        _die("kill")


def _unpack_poison(driver: int, signals: Signals) -> str:
    if os.getpid() == driver:
        return "harmless"
    signals.note("unpacked")
    _die("kill")
    raise AssertionError("still alive")


def _die(how: str) -> None:
    # Each of these deaths is on purpose; none of them is to leave a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.flush()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    else:
        ctypes.string_at(0)


def _cannot_crash(runner: TaskRunner, declared: Declare) -> bool:
    """Return whether bodies run in the driver's own process, so that there is no worker that could die."""
    if not runner.capabilities.in_process:
        return False
    declared("in_process: there is no worker that could die")
    with runner:
        assert where.submit().result()[0] == os.getpid()
    return True
