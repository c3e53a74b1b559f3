"""Steps of calls added up, from sequences that a test makes up."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest

from turnout import task
from turnout._state import StateType
from turnout._tally import Steps, Tally
from turnout.progress._counts import Counts, Progress, TaskCounts, added

NOTHING = Steps({}, {}, {})


@task
def load() -> None: ...


@task
def save() -> None: ...


def submitted(**counts: int) -> Steps:
    return Steps(counts, {}, {})


def ended(state: str = "COMPLETED", **counts: int) -> Steps:
    return Steps({}, {(name, state): count for name, count in counts.items()}, {})


def retried(**counts: int) -> Steps:
    return Steps({}, {}, counts)


def progress_of(*steps: Steps, flow: str = "census") -> Progress:
    progress = Progress(began=0.0)
    progress.begin(flow, "Crew()")
    for step in steps:
        progress.take(step, {}, 0.0)
    return progress


def of(counts: Counts, name: str = "load") -> TaskCounts:
    (found,) = (each for each in counts.tasks if each.name == name)
    return found


def test_nothing_is_known_before_anything_happens() -> None:
    progress = Progress(began=5.0)
    assert not progress.is_over
    assert progress.counts(5.0) == Counts("", "", (), 0.0)
    assert progress.counts(6.0).all == TaskCounts("", 0)


@pytest.mark.parametrize(
    ("state", "counted_as"),
    [
        ("COMPLETED", "completed"),
        ("CACHED", "cached"),
        ("FAILED", "failed"),
        ("UPSTREAM_FAILED", "failed"),
        ("CRASHED", "failed"),
        ("TIMED_OUT", "failed"),
        ("CANCELLED", "cancelled"),
    ],
)
def test_each_final_state_is_counted_once(state: str, counted_as: str) -> None:
    assert state in StateType.__members__
    counts = of(progress_of(submitted(load=2), ended(state, load=1)).counts(1.0))
    assert (counts.total, counts.done, getattr(counts, counted_as)) == (2, 1, 1)


def test_tasks_stand_in_the_order_in_which_they_were_heard_of() -> None:
    counts = progress_of(submitted(save=1), submitted(load=1), submitted(save=1), ended(clean=1)).counts(1.0)
    assert [(each.name, each.total) for each in counts.tasks] == [("save", 2), ("load", 1), ("clean", 1)]


def test_what_runs_is_what_was_seen_last() -> None:
    progress = progress_of(submitted(load=9))
    progress.take(NOTHING, {"load": 4}, 1.0)
    progress.take(retried(load=2), {"load": 3}, 2.0)
    assert (of(progress.counts(2.0)).running, of(progress.counts(2.0)).retried) == (3, 2)
    progress.take(NOTHING, {}, 3.0)
    assert of(progress.counts(3.0)).running == 0


def test_no_more_run_than_are_not_done() -> None:
    progress = progress_of(submitted(load=9), ended(load=8))
    progress.take(NOTHING, {"load": 4}, 1.0)
    assert of(progress.counts(1.0)).running == 1


def test_calls_of_before_anybody_counted_are_known_when_they_end() -> None:
    counts = of(progress_of(ended(load=3), submitted(load=1)).counts(1.0))
    assert (counts.total, counts.done) == (3, 3)


# Flows


def test_it_is_over_when_the_last_flow_has_ended() -> None:
    progress = progress_of(flow="a")
    progress.begin("b", "Other()")
    progress.begin("c", "")
    progress.end("Failed", "ValueError: no")
    progress.end("Completed")
    assert (progress.is_over, progress.counts(1.0).state) == (False, "")
    progress.end("Cancelled")
    counts = progress.counts(1.0)
    assert (counts.flow, counts.runner) == ("a and 2 more", "Crew()")
    assert (counts.state, counts.message) == ("Failed", "ValueError: no")


# Rates and time left


def steady(progress: Progress, seconds: Iterable[int], name: str = "load", running: int = 1) -> None:
    """Have a call end in each of some seconds."""
    for second in seconds:
        progress.take(Steps({}, {(name, "COMPLETED"): 1}, {}), {name: running}, float(second))


def test_the_rate_is_that_of_late() -> None:
    progress = progress_of(submitted(load=1000))
    steady(progress, range(1, 101))
    assert progress.counts(100.0).rate == pytest.approx(1.0, rel=0.1)
    for second in range(101, 121):
        progress.take(ended(load=10), {}, float(second))
    assert progress.counts(120.0).rate == pytest.approx(10.0, rel=0.1)
    progress.take(NOTHING, {}, 200.0)
    assert progress.counts(200.0).rate == pytest.approx(0.0, abs=0.2)


def test_the_rate_of_a_task_counts_from_its_first_call() -> None:
    progress = progress_of(submitted(load=100, late=100))
    steady(progress, range(1, 7))
    progress.take(ended(late=4), {}, 8.0)
    counts = progress.counts(8.0)
    assert of(counts, "late").rate == pytest.approx(2.0)
    assert counts.rate == pytest.approx(10 / 8)


def test_in_the_end_the_rate_is_the_mean() -> None:
    progress = progress_of(submitted(load=150))
    steady(progress, range(1, 51))
    progress.take(ended(load=100), {}, 60.0)
    progress.end("Completed")
    assert progress.counts(100.0).rate == pytest.approx(1.5)


def test_time_left_is_what_is_to_be_done_at_the_pace_of_late() -> None:
    progress = progress_of(submitted(load=30))
    assert progress.counts(0.5).left is None
    steady(progress, range(1, 11))
    assert progress.counts(10.0).left == pytest.approx(20.0, rel=0.1)


def test_calls_of_slow_tasks_weigh_more_in_the_time_left() -> None:
    progress = progress_of(submitted(fast=100, slow=10))
    progress.take(NOTHING, {"fast": 1}, 0.0)
    progress.take(ended(fast=10), {"slow": 1}, 1.0)
    progress.take(ended(slow=1), {"fast": 1}, 11.0)
    # 11 seconds of work in 11 seconds; of the fast one 9 are to come, and of the slow one 90.
    assert progress.counts(11.0).left == pytest.approx(99.0, rel=0.01)


def test_a_task_of_which_none_is_done_is_taken_for_one_like_the_others() -> None:
    progress = progress_of(submitted(load=5, next=10))
    progress.take(NOTHING, {"load": 1}, 0.0)
    progress.take(ended(load=5), {}, 10.0)
    assert progress.counts(10.0).left == pytest.approx(20.0)


def test_calls_too_short_to_be_seen_running_count_alike() -> None:
    progress = progress_of(submitted(load=300))
    progress.take(ended(load=100), {}, 1.0)
    assert progress.counts(1.0).left == pytest.approx(2.0)


def test_sums_are_of_every_number() -> None:
    one, other = TaskCounts("a", 9, 1, 1, 1, 1, 1, 1, 1.5), TaskCounts("b", 8, 2, 2, 2, 0, 0, 3, 0.5)
    assert added("both", [one, other]) == TaskCounts("both", 17, 3, 3, 3, 1, 1, 4, 2.0)
    assert added("none", []) == TaskCounts("none", 0)


# The tally


@pytest.fixture
def tally() -> Tally:
    tally = Tally()
    tally.begin()
    return tally


def take(tally: Tally, step: str, what: object) -> None:
    getattr(tally, step)(what)


def test_a_tally_counts_each_step_by_the_name_of_the_task(tally: Tally) -> None:
    for each in (load, load, load.with_options(retries=1), save):
        take(tally, "submitted", each)
    take(tally, "completed", load)
    for what in ((load, StateType.COMPLETED), (save, StateType.FAILED)):
        take(tally, "ended", what)
    take(tally, "retried", save)
    assert tally.steps() == (
        {"load": 3, "save": 1},
        {("load", "COMPLETED"): 2, ("save", "FAILED"): 1},
        {"save": 1},
    )
    assert tally.steps() == NOTHING


def test_a_tally_adds_what_another_process_has_counted(tally: Tally) -> None:
    take(tally, "submitted", load)
    tally.add(Steps({"load": 2, "far": 1}, {("far", "COMPLETED"): 1}, {"far": 5}))
    assert tally.steps() == ({"load": 3, "far": 1}, {("far", "COMPLETED"): 1}, {"far": 5})


def test_a_tally_that_is_stopped_counts_nothing_and_has_forgotten_all(tally: Tally) -> None:
    take(tally, "submitted", load)
    tally.stop()
    assert (tally.submitted, tally.completed, tally.ended, tally.retried) == (None, None, None, None)
    tally.add(submitted(load=1))
    assert tally.steps() == NOTHING


def test_no_step_is_lost_or_counted_twice(tally: Tally) -> None:
    def count() -> None:
        for _ in range(20_000):
            take(tally, "submitted", load)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    total = 0
    while any(thread.is_alive() for thread in threads):
        total += tally.steps().submitted.get("load", 0)
    assert total + tally.steps().submitted.get("load", 0) == 80_000
