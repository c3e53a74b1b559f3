"""R1: calls that are tried again."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from turnout import exponential_backoff, flow, get_run_context, task
from turnout.errors import UpstreamFailed

from ._bodies import add, crash, fail, fail_until, gate, identity, note
from ._kit import Conformance, Declare, Signals, eventually
from ._open_calls import beside, postponed

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["RetryConformance"]


class RetryConformance(Conformance):
    """R1."""

    def test_R1_tried_again_until_it_succeeds(self, runner: TaskRunner, signals: Signals) -> None:
        """A call with retries is tried again after an exception, and its first result is the result."""
        with runner:
            assert fail_until.with_options(retries=5).submit(signals, "try", 3).result() == 3
        assert signals.count("try") == 3

    def test_R1_last_exception_is_raised(self, runner: TaskRunner, signals: Signals) -> None:
        """With `retries=n` there are n + 1 attempts, and the last one's exception is the one raised."""
        with runner, pytest.raises(ValueError, match=r"^attempt 4$"):
            fail_until.with_options(retries=3).submit(signals, "try", 100).result()
        assert signals.count("try") == 4

    def test_R1_none_by_default(self, runner: TaskRunner, signals: Signals) -> None:
        """Without `retries` there is one attempt."""
        with runner:
            assert str(fail_until.submit(signals, "try", 2).exception()) == "attempt 1"
        assert signals.count("try") == 1

    def test_R1_each_call_counts_its_own(self, runner: TaskRunner, signals: Signals) -> None:
        """The calls of a map are tried again each for itself."""
        with runner:
            names = [f"try {number}" for number in range(10)]
            assert fail_until.with_options(retries=2).map([signals] * 10, names, 3).result() == [3] * 10
        assert [signals.count(name) for name in names] == [3] * 10

    def test_R1_delay_is_kept(self, runner: TaskRunner, signals: Signals) -> None:
        """Between two attempts pass at least `retry_delay_seconds`."""
        with runner:
            _attempts(signals, retries=2, retry_delay_seconds=0.1)
        assert min(_gaps(signals)) >= 0.1
        assert len(_gaps(signals)) == 2

    def test_R1_list_of_delays(self, runner: TaskRunner, signals: Signals) -> None:
        """A list gives the delay before each attempt in turn; its last item serves for the rest."""
        with runner:
            _attempts(signals, retries=4, retry_delay_seconds=[0.0, 0.15, 0.05])
        gaps = _gaps(signals)
        assert len(gaps) == 4
        assert all(gap >= delay for gap, delay in zip(gaps, [0.0, 0.15, 0.05, 0.05], strict=True))

    def test_R1_function_of_delays(self, runner: TaskRunner, signals: Signals) -> None:
        """A function is called with the number of retries, and returns the list of delays."""
        asked: list[int] = []

        def delays(retries: int) -> list[float]:
            asked.append(retries)
            return [0.1, 0.05]

        with runner:
            _attempts(signals, retries=2, retry_delay_seconds=delays)
        gaps = _gaps(signals)
        assert set(asked) == {2}
        assert gaps[0] >= 0.1
        assert gaps[1] >= 0.05

    def test_R1_exponential_backoff(self, runner: TaskRunner, signals: Signals) -> None:
        """`exponential_backoff(backoff_factor=f)` doubles the delay each time, beginning with f."""
        assert exponential_backoff(backoff_factor=2)(4) == [2, 4, 8, 16]
        with runner:
            _attempts(signals, retries=3, retry_delay_seconds=exponential_backoff(backoff_factor=0.03))
        assert all(gap >= delay for gap, delay in zip(_gaps(signals), [0.03, 0.06, 0.12], strict=True))

    def test_R1_jitter(self, runner: TaskRunner, signals: Signals) -> None:
        """With `retry_jitter_factor=f` a delay d lasts at least d * (1 - f), and not always the same time."""
        with runner:
            _attempts(signals, retries=3, retry_delay_seconds=0.1, retry_jitter_factor=0.5)
        assert min(_gaps(signals)) >= 0.05

    def test_R1_delay_holds_no_slot(self, one_slot: TaskRunner, signals: Signals, declared: Declare) -> None:
        """A call that waits for its next attempt leaves its slot to others."""
        if one_slot.capabilities.inline:
            declared("inline: the flow waits in `submit`, for delays too")
            with one_slot:
                fail_until.with_options(retries=1, retry_delay_seconds=0.02).submit(signals, "order", 2)
                note.submit(signals, "order", "second")
            assert signals.notes("order") == ["", "", "second"]
            return
        with one_slot:
            waiting = [postponed(one_slot) for _ in range(5)]
            assert add.submit(1, 2).result() == 3
            eventually(lambda: all(future.state.is_retrying() for future in waiting), "all wait for another attempt")
            assert add.submit(3, 4).result() == 7
            for future in waiting:
                future.cancel()

    def test_R1_delay_holds_no_thread(self, runner: TaskRunner) -> None:
        """Two hundred calls that wait for their next attempt need no thread each."""
        with runner:
            add.submit(1, 2).result()
            before = threading.active_count()
            waiting = [postponed(runner) for _ in range(200)]
            eventually(lambda: all(future.state.is_retrying() for future in waiting), "all wait for another attempt")
            during = threading.active_count()
            for future in waiting:
                future.cancel()
        assert during - before <= 10

    def test_R1_dependents_wait_through_retries(self, runner: TaskRunner, signals: Signals) -> None:
        """What depends on a call that is tried again begins after its last attempt, and gets its result."""
        with runner:
            first = fail_until.with_options(retries=2, retry_delay_seconds=0.02).submit(signals, "order", 3)
            second = note.submit(signals, "order", first)
            assert second.result() == 3
        assert signals.notes("order") == ["", "", "", "3"]

    @pytest.mark.parametrize("behind", [0, 1, 2])
    def test_R1_tried_again_behind_another_runner(self, runner: TaskRunner, signals: Signals, behind: int) -> None:
        """A call is tried again that waited for one on threads, directly or behind others on the runner."""

        @flow(task_runner=runner)
        def main() -> Any:
            last = gate.with_options(task_runner="thread").submit(signals, 5)
            for _ in range(behind):
                last = identity.submit(last)
            again = fail_until.with_options(retries=2).submit(signals, "attempts", 3, wait_for=[last])
            timely = add.with_options(timeout_seconds=50).submit(again, last)
            end = identity.with_options(retries=1).submit(timely)
            signals.set("go")
            return end

        assert main() == 8

    def test_R1_condition_decides(self, runner: TaskRunner, signals: Signals) -> None:
        """`retry_condition_fn` is asked after each failure, and False ends the attempts."""
        answers = iter([True, True, False])
        with runner:
            picky = fail_until.with_options(retries=10, retry_condition_fn=lambda *_: next(answers))
            assert str(picky.submit(signals, "try", 100).exception()) == "attempt 3"
        assert signals.count("try") == 3

    def test_R1_condition_sees_the_failure(self, runner: TaskRunner) -> None:
        """`retry_condition_fn` gets the task, the task run and the state, whose `result()` raises the exception."""
        seen: list[tuple[Any, ...]] = []

        def worth_it(owner: Any, run: Any, state: Any) -> bool:
            seen.append((owner.name, run.name, state.name, state.is_failed()))
            try:
                state.result()
            except ValueError as error:
                seen.append((str(error),))
            return False

        with runner:
            fail.with_options(retries=3, retry_condition_fn=worth_it).submit("odd").exception()
        assert seen == [("fail", "fail-0", "Failed", True), ("odd",)]

    def test_R1_condition_is_not_asked_without_need(self, runner: TaskRunner, signals: Signals) -> None:
        """`retry_condition_fn` is not asked about a success, nor when no retries are left."""
        seen: list[int] = []

        def worth_it(_task: Any, run: Any, _state: Any) -> bool:
            seen.append(run.attempt)
            return True

        with runner:
            picky = fail_until.with_options(retries=1, retry_condition_fn=worth_it)
            picky.submit(signals, "good", 1).result()
            picky.submit(signals, "bad", 5).exception()
        assert seen == [1]

    def test_R1_attempts_are_one_run(self, runner: TaskRunner) -> None:
        """All attempts have the same run id and name, and are counted from 1."""
        with runner:
            future = tell_then_fail.with_options(retries=2).submit()
            error = future.exception()
        assert error is not None
        assert error.args == (future.task_run_id, future.name, 3)

    def test_R1_async_tasks(self, runner: TaskRunner, signals: Signals) -> None:
        """Async tasks are tried again in the same way."""

        @task(retries=2, retry_delay_seconds=0.01)
        async def flaky() -> int:
            signals.note("try")
            if signals.count("try") < 3:
                raise ValueError("not yet")
            return signals.count("try")

        with runner:
            future = flaky.submit()
            assert future.exception() is None
        assert signals.count("try") == 3

    def test_R1_failures_upstream_are_not_tried_again(self, runner: TaskRunner, signals: Signals) -> None:
        """A call that lost its dependency uses up no retries: it never begins."""
        with runner:
            future = note.with_options(retries=3).submit(signals, "ran", fail.submit())
            assert isinstance(future.exception(), UpstreamFailed)
        assert signals.count("ran") == 0

    def test_R1_crash_of_the_body_is_not_tried_again(self, runner: TaskRunner) -> None:
        """`retries` counts exceptions: SystemExit and its like are none."""
        with runner:
            future = crash.with_options(retries=3).submit()
            future.exception()
            assert future.state.is_crashed()

    def test_R1_cancel_ends_the_attempts(self, runner: TaskRunner, signals: Signals) -> None:
        """A call that is cancelled while it waits for its next attempt is never tried again."""

        @flow(task_runner=runner)
        def main() -> None:
            future = (
                beside(fail_until, runner).with_options(retries=5, retry_delay_seconds=3600).submit(signals, "try", 9)
            )
            eventually(lambda: future.state.name == "Retrying", "it waits for another attempt")
            assert future.cancel()
            assert identity.submit("after").result() == "after"

        main()
        assert signals.count("try") == 1

    def test_R1_arguments_are_as_they_were(self, runner: TaskRunner, signals: Signals) -> None:
        """Each attempt gets the same arguments, upstream results among them."""

        @task(retries=2)
        def flaky(values: list[int], *, scale: int) -> list[int]:
            signals.note("seen", f"{values} {scale}")
            if signals.count("seen") < 3:
                raise ValueError("not yet")
            return [value * scale for value in values]

        with runner:
            assert flaky.submit(identity.submit([1, 2]), scale=identity.submit(10)).result() == [10, 20]
        assert signals.notes("seen") == ["[1, 2] 10"] * 3


@task
def tell_then_fail() -> None:
    """Raise what the run knows about itself."""
    context = get_run_context()
    raise RuntimeError(context.task_run_id, context.task_run_name, context.attempt)


def _attempts(signals: Signals, **options: Any) -> None:
    """Submit a call that notes the time of each of its attempts and always fails."""

    def body() -> None:
        # One clock for all processes of a machine.
        signals.note("time", repr(time.monotonic()))
        raise ValueError(random.random())

    task(**options)(body).submit().exception()


def _gaps(signals: Signals) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(map(float, signals.notes("time")))]
