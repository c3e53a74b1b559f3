"""C4: what is told of flows and calls, to those who listen."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from turnout import events, flow, get_run_logger, task

from ._bodies import add, crash, fail, fail_until, identity, spin, total
from ._crashes import die
from ._kit import Conformance, Declare, Signals
from ._open_calls import postponed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.runner import TaskRunner

__all__ = ["EventConformance"]

CallEvent: TypeAlias = (
    events.CallCreated
    | events.CallReady
    | events.CallSent
    | events.CallStarted
    | events.CallRetrying
    | events.CallFinished
)

# What may come next in the life of a call. One that waits at its runner may be given back, and sent again.
_NEXT: Final = {
    "call_created": {"call_ready", "call_finished"},
    "call_ready": {"call_sent", "call_started", "call_finished"},
    "call_sent": {"call_sent", "call_started", "call_retrying", "call_finished"},
    "call_started": {"call_retrying", "call_finished"},
    "call_retrying": {"call_sent", "call_started", "call_finished"},
    "call_finished": set[str](),
}
# How far clocks of one machine may differ from what a body sees of them, in seconds.
_CLOSE: Final = 0.005
# So long that nothing is told because it is time to.
_NEVER: Final = 3600.0


class EventConformance(Conformance):
    """C4."""

    def test_C4_life_of_calls(self, runner: TaskRunner) -> None:
        """Of each call it is told, in order, that it was created, ready, sent, started, finished; and what it needs."""

        @flow(task_runner=runner, name="census", flow_run_name="first census")
        def main() -> int:
            numbers = identity.map(range(20))
            return int(add.submit(total.submit(numbers), numbers[0]).result())

        with Heard() as heard:
            assert main() == 190
        started, finished = heard.flow_events()
        assert (started.flow_name, started.name, finished.state) == ("census", "first census", "Completed")
        assert started.time <= finished.time
        lives = heard.lives(started.flow)
        assert [life.name for life in lives] == [*(f"identity-{i}" for i in range(20)), "total-0", "add-0"]
        assert {life.end.state for life in lives} == {"Completed"}
        *numbers, whole, last = lives
        assert sorted(whole.created.needs) == [life.created.call for life in numbers]
        assert set(last.created.needs) == {whole.created.call, numbers[0].created.call}
        ups = {event.worker: event for event in heard.events if isinstance(event, events.WorkerUp)}
        for life in lives:
            assert [event.attempt for event in life.events if isinstance(event, events.CallStarted)] == [1]
            assert (life.end.host, life.end.pid) == (ups[life.end.worker].host, ups[life.end.worker].pid)
            assert started.time <= life.created.time
            assert life.end.time <= finished.time

    def test_C4_times_are_those_of_bodies(self, runner: TaskRunner) -> None:
        """A call begins and ends when its body says so."""
        with Heard() as heard, runner:
            seen = [future.result() for future in tell_times.map(range(4))]
        for life, (begun, ended) in zip(heard.lives(), seen, strict=True):
            (started,) = (event for event in life.events if isinstance(event, events.CallStarted))
            assert started.time <= begun + _CLOSE
            assert life.end.time >= ended - _CLOSE
            assert life.end.seconds >= ended - begun - _CLOSE
            assert life.end.seconds <= life.end.time - started.time + _CLOSE

    def test_C4_everything_is_told_when_a_flow_returns(self, runner: TaskRunner) -> None:
        """When a flow returns, all that happened in it has been told, however it ended."""

        @flow(task_runner=runner)
        def main(*, fails: bool) -> None:
            add.map(range(10), 1).wait()
            if fails:
                raise ValueError("broken")

        with Heard() as heard:
            main(fails=False)
            assert [event.state for event in heard.events if isinstance(event, events.FlowFinished)] == ["Completed"]
            assert len(heard.lives()) == 10
            assert main(fails=True, return_state=True).is_failed()
            assert len(heard.lives()) == 20
            last = [event for event in heard.events if isinstance(event, events.FlowFinished)][-1]
            assert (last.state, last.message) == ("Failed", "ValueError: broken")

    def test_C4_failures(self, runner: TaskRunner) -> None:
        """Of a failure it is told what was raised and where, without our frames; what needs it has failed upstream."""
        with Heard() as heard, runner:
            future = fail.submit("no rails")
            add.submit(future, 1).exception()
            crash.submit().exception()
        failed, lost, crashed = heard.lives()
        assert (failed.end.state, failed.end.attempt, failed.end.message) == ("Failed", 1, "ValueError: no rails")
        assert "in fail\n" in failed.end.traceback
        assert "worker.py" not in failed.end.traceback
        assert (lost.end.state, lost.end.attempt, lost.end.traceback) == ("UpstreamFailed", 0, "")
        assert failed.name in lost.end.message
        assert crashed.end.state == "Crashed"
        assert "SystemExit" in crashed.end.message

    def test_C4_retries(self, runner: TaskRunner, signals: Signals) -> None:
        """Each attempt begins anew, and between two of them it is told why, and for how long the call waits."""
        flaky = fail_until.with_options(retries=2, retry_delay_seconds=[0.0, 0.01])
        with Heard() as heard, runner:
            assert flaky.submit(signals, "runs", 3).result() == 3
        (life,) = heard.lives()
        again = [event for event in life.events if isinstance(event, events.CallRetrying)]
        assert [(event.attempt, event.state, event.delay) for event in again] == [(1, "Failed", 0), (2, "Failed", 0.01)]
        assert again[0].message == "ValueError: attempt 1"
        assert [event.attempt for event in life.events if isinstance(event, events.CallStarted)] == [1, 2, 3]
        assert (life.end.state, life.end.attempt) == ("Completed", 3)

    def test_C4_cancelled_and_out_of_time(self, runner: TaskRunner, signals: Signals) -> None:
        """Of calls that were cancelled, or ran out of time, it is told that they were, and nothing after that."""
        try:
            with Heard() as heard, runner:
                future = postponed(runner)
                behind = add.submit(future, 1)
                future.cancel()
                late = spin.with_options(timeout_seconds=0.1).submit(signals)
                assert late.exception() is not None
                signals.set("go")
                assert behind.exception() is not None
        finally:
            signals.set("go")
        states = {life.created.task: (life.end.state, life.end.attempt) for life in heard.lives()}
        assert states == {"postponed": ("Cancelled", 1), "add": ("Cancelled", 0), "spin": ("TimedOut", 1)}

    def test_C4_nested(self, runner: TaskRunner) -> None:
        """Calls and flows within calls are told of like any others, with what they are within, wherever that runs."""

        @flow(task_runner=runner)
        def main() -> list[int]:
            return [future.result() for future in outer.map([10, 20, 30])]

        with Heard() as heard:
            assert main() == [14, 24, 34]
        root, *inner = (event for event in heard.events if isinstance(event, events.FlowStarted))
        outers = [life for life in heard.lives(root.flow) if life.created.task == "outer"]
        adds = [life for life in heard.lives(root.flow) if life.created.task == "add"]
        assert sorted(life.created.parent or -1 for life in adds) == sorted(life.created.call for life in outers)
        assert {life.created.parent for life in outers} == {None}
        assert {event.parent_flow for event in inner} == {root.flow}
        assert {event.parent_call for event in inner} == {life.created.call for life in outers}
        for event in inner:
            first, second = heard.lives(event.flow)
            assert (first.created.parent, second.created.parent) == (None, None)
            assert second.created.needs == (first.created.call,)
        whole = {life.created.call: life for life in outers}
        for life in adds:
            around = whole[life.created.parent or -1]
            (begun,) = (event.time for event in around.events if isinstance(event, events.CallStarted))
            assert begun - _CLOSE <= life.created.time <= life.end.time <= around.end.time + _CLOSE

    def test_C4_logs(self, runner: TaskRunner) -> None:
        """What flows and calls log is told with who said it."""

        @flow(task_runner=runner)
        def main() -> None:
            get_run_logger().warning("the flow speaks")
            speak.submit("a call").wait()

        with Heard() as heard:
            main()
        run, _ = heard.flow_events()
        told = {event.message: event for event in heard.events if isinstance(event, events.LogRecord)}
        by_flow, by_call = told["the flow speaks"], told["a call speaks"]
        (life,) = heard.lives()
        assert (by_flow.level, by_flow.flow, by_flow.call) == ("WARNING", run.flow, None)
        assert (by_call.level, by_call.flow, by_call.call) == ("WARNING", run.flow, life.created.call)
        assert by_call.logger == "turnout.task_runs"
        assert by_call.worker == life.end.worker

    def test_C4_crashes(self, runner: TaskRunner, declared: Declare) -> None:
        """Of a worker that died it is told that it is down, and that its call crashed."""
        if runner.capabilities.in_process:
            declared("in_process: a dying worker takes the driver with it")
            return
        with Heard() as heard, runner:
            assert add.submit(1, 2).result() == 3
            assert die.with_options(crash_retries=0).submit("kill").exception() is not None
        _, life = heard.lives()
        assert life.end.state == "Crashed"
        assert "died" in life.end.message
        assert any(isinstance(event, events.CallStarted) for event in life.events)

    def test_C4_nothing_is_left_when_nobody_listens(self, runner: TaskRunner) -> None:
        """When a subscription is closed in the middle of a flow, nothing more is told, and its thread is gone."""

        @flow(task_runner=runner)
        def main() -> int:
            first = add.submit(1, 2).result()
            heard.close()
            seen.extend(heard.events)
            return int(first + add.submit(1, 2).result())

        threads = _threads_that_tell()
        seen: list[events.Event] = []
        with Heard() as heard:
            assert _threads_that_tell() == threads + 1
            assert main() == 6
        assert heard.events == seen
        assert [event.call for event in seen if isinstance(event, events.CallFinished)] == [heard.first_call]
        assert _threads_that_tell() == threads

    def test_C4_those_who_come_late(self, runner: TaskRunner) -> None:
        """Somebody who begins to listen in the middle of a flow is told of what happens from then on."""

        @flow(task_runner=runner)
        def main() -> int:
            first = add.submit(1, 2)
            first.wait()
            listening.append(Heard())
            return int(add.submit(first, 2).result())

        listening: list[Heard] = []
        assert main() == 5
        with listening[0] as heard:
            assert [life.name for life in heard.lives()] == ["add-1"]
            (end,) = (event for event in heard.events if isinstance(event, events.FlowFinished))
            assert end.state == "Completed"


def _threads_that_tell() -> int:
    # Others begin and end as their backend sees fit.
    return sum(thread.name == "turnout-events" for thread in threading.enumerate())


class Life:
    """The events of one call, which are looked at for their order."""

    def __init__(self, told: Sequence[CallEvent]) -> None:
        self.events = told
        kinds = [event.kind for event in told]
        assert kinds[0] == "call_created"
        assert kinds[-1] == "call_finished"
        assert all(after in _NEXT[before] for before, after in itertools.pairwise(kinds)), kinds
        times = [event.time for event in told]
        assert times == sorted(times), list(zip(kinds, times, strict=True))
        first, last = told[0], told[-1]
        assert isinstance(first, events.CallCreated)
        assert isinstance(last, events.CallFinished)
        assert (first.flow, first.task, first.call) == (last.flow, last.task, last.call)
        self.created, self.end = first, last

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.end.name


class Heard:
    """Listens, and keeps what it is told; also a context that ends that."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []
        self._subscription = events.subscribe(self.events.extend, interval_seconds=_NEVER)

    def close(self) -> None:
        """Listen no more."""
        self._subscription.close()

    def __enter__(self) -> Heard:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def first_call(self) -> int:
        """The number of the call that was submitted first."""
        return next(event.call for event in self.events if isinstance(event, events.CallCreated))

    def flow_events(self) -> tuple[events.FlowStarted, events.FlowFinished]:
        """Return what was told of the only flow."""
        (started,) = (event for event in self.events if isinstance(event, events.FlowStarted))
        (finished,) = (event for event in self.events if isinstance(event, events.FlowFinished))
        assert started.flow == finished.flow
        assert finished.seconds <= finished.time - started.time + _CLOSE
        return started, finished

    def lives(self, flow: str | None = None) -> list[Life]:
        """Return the lives of the calls of a flow, or of all, in order of submission."""
        told: dict[int, list[Any]] = defaultdict(list)
        for event in self.events:
            if isinstance(event, CallEvent):
                told[event.call].append(event)
        lives = [Life(events) for _, events in sorted(told.items())]
        return [life for life in lives if flow is None or life.created.flow == flow]


@task
def tell_times(_: object) -> tuple[float, float]:
    """Return when the body began and ended, by the clock of its process."""
    begun = time.time()
    while time.time() < begun + 0.01:
        pass
    return begun, time.time()


@task
def outer(number: int) -> int:
    """Return a number and four, by a call and a flow of two calls."""
    return int(add.submit(number, 1).result()) + inner(1)


@flow
def inner(number: int) -> int:
    """Return a number and two."""
    return int(add.submit(add.submit(number, 1), 1).result())


@task
def speak(who: str) -> None:
    """Log something."""
    get_run_logger().warning("%s speaks", who)
