"""Events turned into counts, from sequences that a test makes up."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from turnout.events import (
    CallCreated,
    CallFinished,
    CallRetrying,
    CallStarted,
    Event,
    FlowFinished,
    FlowStarted,
    StreamStarted,
    WorkerDown,
    WorkerUp,
)
from turnout.progress._counts import Counts, Progress, TaskCounts, added


def begun(flow: str = "f", *, time: float = 0.0, slots: int | None = 4, runner: str = "Crew()") -> FlowStarted:
    return FlowStarted(time, flow, f"{flow}-run", f"{flow}-name", runner, slots)


def over(flow: str = "f", state: str = "Completed", *, time: float = 10.0, message: str = "") -> FlowFinished:
    return FlowFinished(time, flow, state, time, message)


def created(call: int, task: str = "load", time: float = 0.0) -> CallCreated:
    return CallCreated(time, call, "f", task, f"{task}-{call}", "crew")


def finished(
    call: int, task: str = "load", state: str = "Completed", time: float = 1.0, seconds: float = 1.0
) -> CallFinished:
    return CallFinished(time, call, "f", task, f"{task}-{call}", state, 1, seconds)


def counted(*events: Event, now: float = 1.0) -> Counts:
    progress = Progress()
    progress.take(events)
    return progress.counts(now)


def of(counts: Counts, name: str = "load") -> TaskCounts:
    (task,) = (task for task in counts.tasks if task.name == name)
    return task


def test_nothing_is_known_before_anything_happens() -> None:
    progress = Progress()
    assert not progress.has_begun
    assert not progress.is_over
    assert progress.counts(5.0) == Counts("", "", (), 0.0)
    assert progress.counts(6.0).all == TaskCounts("", 0)


@pytest.mark.parametrize(
    ("state", "counted_as"),
    [
        ("Completed", "completed"),
        ("Cached", "cached"),
        ("Failed", "failed"),
        ("UpstreamFailed", "failed"),
        ("Crashed", "failed"),
        ("TimedOut", "failed"),
        ("Cancelled", "cancelled"),
    ],
)
def test_each_final_state_is_counted_once(state: str, counted_as: str) -> None:
    task = of(counted(created(0), created(1), CallStarted(0.0, 0, 1), finished(0, state=state)))
    assert (task.total, task.done, getattr(task, counted_as), task.running) == (2, 1, 1, 0)


def test_tasks_stand_in_the_order_in_which_they_were_heard_of() -> None:
    counts = counted(created(0, "save"), created(1, "load"), created(2, "save"), created(3, "clean"))
    assert [(task.name, task.total) for task in counts.tasks] == [("save", 2), ("load", 1), ("clean", 1)]


def test_an_attempt_that_is_tried_again_does_not_run_until_the_next_begins() -> None:
    progress = Progress()
    progress.take([created(0), CallStarted(0.0, 0, 1), CallRetrying(0.5, 0, 1, "Failed")])
    assert of(progress.counts(1.0))[-3:-1] == (0, 1)
    progress.take([CallStarted(1.0, 0, 2)])
    assert of(progress.counts(1.5))[-3:-1] == (1, 1)
    progress.take([CallRetrying(2.0, 0, 2, "Failed"), CallStarted(2.1, 0, 3)])
    assert of(progress.counts(2.5))[-3:-1] == (1, 2)
    progress.take([finished(0)])
    assert of(progress.counts(3.0))[-3:-1] == (0, 2)


def test_a_retry_told_together_with_the_end_counts() -> None:
    told: list[Event] = [
        created(0),
        CallStarted(0.0, 0, 1),
        CallRetrying(0.5, 0, 1, "Failed"),
        CallStarted(1.0, 0, 2),
        finished(0),
    ]
    task = of(counted(*told))
    assert (task.retried, task.running, task.done) == (1, 0, 1)


def test_the_news_of_a_beginning_may_come_after_that_of_the_end() -> None:
    progress = Progress()
    progress.take([created(0), finished(0, state="Cancelled")])
    progress.take([CallStarted(0.0, 0, 1)])
    assert of(progress.counts(1.0)).running == 0


def test_calls_of_before_anybody_listened_are_counted_when_they_end() -> None:
    task = of(counted(CallStarted(0.0, 7, 1), CallRetrying(0.1, 7, 1, "Failed"), finished(7), created(8)))
    assert (task.total, task.done, task.running) == (2, 1, 0)


def test_it_does_not_matter_how_many_events_are_told_at_a_time() -> None:
    chance = random.Random(1)
    tasks = [chance.choice(["load", "clean", "save"]) for _ in range(500)]
    told: list[Event] = [begun(), *(created(call, task) for call, task in enumerate(tasks))]
    for call in range(400):
        told.append(CallStarted(call / 10, call, 1))
        if chance.random() < 0.2:
            told += [CallRetrying(call / 10, call, 1, "Failed"), CallStarted(call / 10, call, 2)]
        if call >= 5:
            state = chance.choice(["Completed", "Cached", "Failed", "Cancelled"])
            told.append(finished(call - 5, tasks[call - 5], state, call / 10))
    ends = []
    for step in (1, 7, 100, len(told)):
        progress = Progress()
        for start in range(0, len(told), step):
            progress.take(told[start : start + step])
        ends.append(progress.counts(60.0))
    assert ends[0].all.done == 395
    assert ends[0].all.running == 5
    numbers = [[task[:-1] for task in end.tasks] for end in ends]
    assert numbers == [numbers[0]] * 4


# Flows


def test_a_flow_is_over_when_it_has_ended_and_not_before() -> None:
    progress = Progress()
    progress.take([begun()])
    assert (progress.has_begun, progress.is_over) == (True, False)
    progress.take([FlowStarted(0.0, "sub", "sub-0", "sub", "Crew()", 4, parent_flow="f"), over("sub")])
    assert (progress.is_over, progress.counts(1.0).state) == (False, "")
    progress.take([over(state="Failed", message="ValueError: no")])
    assert progress.is_over
    counts = progress.counts(10.0)
    assert (counts.flow, counts.state, counts.message) == ("f-name", "Failed", "ValueError: no")


def test_a_flow_called_by_a_call_is_no_root() -> None:
    progress = Progress()
    progress.take([FlowStarted(0.0, "sub", "sub-0", "sub", "Crew()", 4, parent_call=3), over("sub")])
    assert not progress.is_over


def test_of_several_flows_the_worst_end_is_told() -> None:
    progress = Progress()
    progress.take([begun("a"), begun("b"), begun("c"), over("a", "Failed"), over("b", "Completed")])
    assert progress.counts(1.0).state == ""
    progress.take([over("c", "Cancelled")])
    assert progress.is_over
    assert (progress.counts(1.0).flow, progress.counts(1.0).state) == ("a-name and 2 more", "Failed")


def test_flows_on_one_runner_share_its_slots() -> None:
    sub = FlowStarted(0.0, "sub", "sub-0", "sub", "Crew()", 4, parent_flow="f")
    other = FlowStarted(0.0, "other", "other-0", "other", "Crew(2)", 2, parent_flow="f")
    unknown = FlowStarted(0.0, "far", "far-0", "far", "Far()", None, parent_flow="f")
    assert counted(begun(), sub).slots == 4
    assert counted(begun(), sub, other, unknown).slots == 6
    assert counted(begun(slots=None)).slots is None


def test_workers_that_died_are_counted_and_those_that_were_stopped_are_not() -> None:
    told: list[Event] = [StreamStarted(0.0, 1, "0", "node", 1), begun(), WorkerUp(0.0, "node:1", "node", 1, "crew")]
    told += [WorkerDown(1.0, "node:1", "killed by SIGKILL"), WorkerDown(1.0, "node:2", "stopped")]
    assert counted(*told).lost_workers == 1


# Rates and time left


def steady(
    progress: Progress, seconds: Sequence[int], *, every: int = 1, task: str = "load", took: float = 1.0
) -> None:
    """Have a call end in each of some seconds, and look every so often."""
    for second in seconds:
        progress.take([finished(second, task, time=float(second), seconds=took)])
        if second % every == 0:
            progress.counts(float(second))


def test_the_rate_is_that_of_late() -> None:
    progress = Progress()
    progress.take([begun(), *(created(call) for call in range(1000))])
    steady(progress, range(1, 101))
    assert progress.counts(100.0).rate == pytest.approx(1.0, rel=0.1)
    for second in range(101, 121):
        progress.take([finished(1000 + 10 * second + extra, time=float(second)) for extra in range(10)])
        progress.counts(float(second))
    assert progress.counts(120.0).rate == pytest.approx(10.0, rel=0.1)
    assert progress.counts(200.0).rate == pytest.approx(0.0, abs=0.2)


def test_the_rate_of_a_task_counts_from_its_first_call() -> None:
    progress = Progress()
    progress.take(
        [begun(), *(created(call) for call in range(100)), *(created(call, "late") for call in range(100, 200))]
    )
    steady(progress, range(1, 7))
    progress.take([finished(call, "late", time=8.0, seconds=1.0) for call in range(100, 104)])
    counts = progress.counts(8.0)
    assert of(counts, "late").rate == pytest.approx(4.0)
    assert counts.rate == pytest.approx(10 / 8)


def test_in_the_end_the_rate_is_the_mean() -> None:
    progress = Progress()
    progress.take([begun(), *(created(call) for call in range(1, 101))])
    steady(progress, range(1, 51))
    progress.take([*(finished(call, time=60.0) for call in range(51, 101)), over(time=100.0)])
    assert progress.counts(100.0).rate == pytest.approx(1.0)


def test_time_left_is_what_is_to_be_done_at_the_pace_of_late() -> None:
    progress = Progress()
    progress.take([begun(), *(created(call) for call in range(1, 31))])
    assert progress.counts(0.5).left is None
    steady(progress, range(1, 11))
    assert progress.counts(10.0).left == pytest.approx(20.0, rel=0.1)


def test_calls_of_slow_tasks_weigh_more_in_the_time_left() -> None:
    progress = Progress()
    fast, slow = range(100, 200), range(200, 210)
    progress.take([begun(), *(created(call, "fast") for call in fast), *(created(call, "slow") for call in slow)])
    progress.take([finished(call, "fast", time=1.0, seconds=0.1) for call in range(100, 110)])
    progress.take([finished(200, "slow", time=11.0, seconds=10.0)])
    # 11 seconds of work in 11 seconds; of the fast one 9 are to come, and of the slow one 90.
    assert progress.counts(11.0).left == pytest.approx(99.0, rel=0.01)


def test_a_task_of_which_none_is_done_is_taken_for_one_like_the_others() -> None:
    progress = Progress()
    progress.take([begun(), *(created(call) for call in range(5)), *(created(call, "next") for call in range(5, 15))])
    progress.take([finished(call, seconds=2.0, time=10.0) for call in range(5)])
    assert progress.counts(10.0).left == pytest.approx(20.0)


def test_a_clock_that_is_set_back_does_no_harm() -> None:
    progress = Progress()
    progress.take([begun(time=100.0), created(1, time=100.0), finished(1, time=101.0)])
    for now in (101.0, 50.0, 20.0, 30.0):
        counts = progress.counts(now)
        assert counts.seconds >= 0
        assert counts.rate >= 0


def test_sums_are_of_every_number() -> None:
    one, other = TaskCounts("a", 9, 1, 1, 1, 1, 1, 1, 1.5), TaskCounts("b", 8, 2, 2, 2, 0, 0, 3, 0.5)
    assert added("both", [one, other]) == TaskCounts("both", 17, 3, 3, 3, 1, 1, 4, 2.0)
    assert added("none", []) == TaskCounts("none", 0)
