"""D7: what goes wrong in the depths of nested calls, on one slot."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from turnout import flow, task
from turnout.errors import CancelledRun, TaskRunTimeoutError, UpstreamFailed

from ._bodies import add, fail, fail_until, identity
from ._kit import Conformance, Declare, Signals, run_on
from ._open_calls import beside, until_stopped

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["DepthConformance"]


class DepthConformance(Conformance):
    """D7, where calls three levels down fail, hang, are cancelled or die."""

    def test_D7_a_failure_in_the_depths(self, one_slot: TaskRunner, signals: Signals) -> None:
        """What is raised three levels down reaches the top, as it is, and calls beside it don't notice."""

        @flow(task_runner=one_slot)
        def main() -> Any:
            good, bad = (descend.map([signals] * 3, 3, leaf) for leaf in ("value", "fails"))
            return good, [(type(future.exception()), str(future.exception())) for future in bad]

        assert main() == ([1, 1, 1], [(ValueError, "at the bottom")] * 3)

    def test_D7_a_failure_in_the_depths_is_looked_at(self, one_slot: TaskRunner, signals: Signals) -> None:
        """Who looks at a failure three levels down goes on, and so do those above."""
        assert run_on(one_slot, descend.map, [signals] * 3, 3, "looks") == [4, 4, 4]

    def test_D7_a_call_in_the_depths_is_tried_again(self, one_slot: TaskRunner, signals: Signals) -> None:
        """Retries work three levels down, with a delay."""
        assert run_on(one_slot, descend.submit, signals, 3, "again") == 3

    def test_D7_a_call_in_the_depths_runs_out_of_time(self, one_slot: TaskRunner, signals: Signals) -> None:
        """A call three levels down that never ends runs out of time; those above go on, the slot serves others."""
        assert run_on(one_slot, descend.map, [signals] * 2, 3, "out of time") == ["TaskRunTimeoutError"] * 2
        assert run_on(one_slot, add.submit, 1, 2) == 3

    def test_D7_a_call_in_the_depths_is_cancelled(self, one_slot: TaskRunner, signals: Signals) -> None:
        """A call that is cancelled three levels down has no result, unless it was over; nor have those that need it."""
        assert run_on(one_slot, descend.map, [signals] * 2, 3, "cancels") == [True, True]

    def test_D7_a_call_above_runs_out_of_time(self, one_slot: TaskRunner, signals: Signals) -> None:
        """A call that waits for others three levels deep runs out of time, and the slot serves others."""

        @flow(task_runner=one_slot)
        def main() -> Any:
            error = descend.with_options(timeout_seconds=0.5).submit(signals, 3, "stays").exception()
            signals.set("go")
            return type(error), add.submit(1, 2)

        assert main() == (TaskRunTimeoutError, 3)

    def test_D7_a_call_above_is_cancelled(self, one_slot: TaskRunner, signals: Signals, declared: Declare) -> None:
        """So it is if it is cancelled: what is below it ends, too, and the slot serves others."""
        if one_slot.capabilities.cancel == "none":
            declared("cancel: a running call can't be stopped, and goes on to its end")

        @flow(task_runner=one_slot)
        def main() -> Any:
            future = beside(descend, one_slot).submit(signals, 3, "stays")
            signals.wait("begun")
            took = future.cancel()
            if not took:
                signals.set("go")
            error = future.exception()
            signals.set("go")
            return took, type(error), add.submit(1, 2)

        cancelled = one_slot.capabilities.inline or one_slot.capabilities.cancel != "none"
        assert main() == (cancelled, CancelledRun if cancelled else type(None), 3)

    def test_D7_the_flow_ends_with_calls_in_the_depths(self, one_slot: TaskRunner, signals: Signals) -> None:
        """A flow whose body raises ends, though calls three levels down are under way; the next one runs."""

        @flow(task_runner=one_slot)
        def main() -> None:
            beside(descend, one_slot).submit(signals, 3, "stays")
            signals.wait("begun")
            if one_slot.capabilities.cancel == "none":
                signals.set("go")
            raise LookupError("the end")

        with pytest.raises(LookupError, match="the end"):
            main()
        signals.set("go")
        assert run_on(one_slot, descend.submit, signals, 3, "value") == 1

    def test_D7_a_worker_dies_in_the_depths(self, one_slot: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call three levels down whose worker dies runs again, and so does what died with it."""
        if one_slot.capabilities.in_process:
            declared("in_process: there is no worker that could die")
            return
        assert run_on(one_slot, descend.submit, signals, 3, "dies once") == 2
        assert run_on(one_slot, add.submit, 1, 2) == 3

    def test_D7_everything_at_once(self, one_slot: TaskRunner, signals: Signals) -> None:
        """Ten calls of each sort, three levels deep, end on one slot with what each is to give."""
        expected = {"value": 1, "looks": 4, "cancels": True, "fails": ValueError}

        @flow(task_runner=one_slot)
        def main() -> Any:
            futures = {leaf: descend.map([signals] * 10, 3, leaf) for leaf in expected}
            return {leaf: [_ending(future) for future in its] for leaf, its in futures.items()}

        assert main() == {leaf: [value] * 10 for leaf, value in expected.items()}


@task
def descend(signals: Signals, depth: int, leaf: str) -> Any:
    """Submit a call of this task one level further down and wait for it; on the lowest level, be the leaf."""
    if depth > 1:
        below = descend.submit(signals, depth - 1, leaf)
        return below.result() + 1 if leaf == "looks" else below.result()
    return _LEAVES[leaf](signals)


def _fail(signals: Signals) -> None:
    raise ValueError("at the bottom")


def _look(signals: Signals) -> int:
    bad = fail.submit()
    dependent = add.submit(bad, 1)
    return (type(bad.exception()) is ValueError) + (type(dependent.exception()) is UpstreamFailed)


def _try_again(signals: Signals) -> int:
    again = fail_until.with_options(retries=2, retry_delay_seconds=0.05)
    return again.submit(signals, "attempts", 3).result()


def _run_out_of_time(signals: Signals) -> str:
    error = until_stopped.with_options(timeout_seconds=0.2).submit(signals).exception()
    return type(error).__name__


def _cancel(signals: Signals) -> bool:
    first = identity.submit(1)
    unwanted = add.submit(first, 1)
    dependent = identity.submit(unwanted)
    took = unwanted.cancel()
    return [took, took] == [isinstance(future.exception(), CancelledRun) for future in (unwanted, dependent)]


def _stay(signals: Signals) -> str:
    return str(until_stopped.fn(signals))


def _die_once(signals: Signals) -> int:
    signals.note("died")
    if signals.count("died") == 1:
        os._exit(5)
    return signals.count("died")


_LEAVES = {
    "value": lambda signals: 1,
    "fails": _fail,
    "looks": _look,
    "again": _try_again,
    "out of time": _run_out_of_time,
    "cancels": _cancel,
    "stays": _stay,
    "dies once": _die_once,
}


def _ending(future: Any) -> Any:
    error = future.exception()
    return future.result() if error is None else type(error)
