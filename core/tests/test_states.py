"""States: what each says of itself, and that a run's state never leaves a final one."""

from __future__ import annotations

import pickle
import re

import pytest

from turnout import State, StateType, flow, task
from turnout.runner import Batch, Host, TaskRunner


class Nowhere(TaskRunner):
    """Is chosen, and never started: nothing here is submitted."""

    def start(self, host: Host) -> None:
        raise AssertionError("nothing is submitted")

    def slots(self) -> int:
        return 1

    def submit(self, batch: Batch) -> None: ...

    def stop(self) -> None: ...


FINAL = [
    StateType.COMPLETED,
    StateType.CACHED,
    StateType.FAILED,
    StateType.TIMED_OUT,
    StateType.UPSTREAM_FAILED,
    StateType.CRASHED,
    StateType.CANCELLED,
]
OPEN = [StateType.PENDING, StateType.RUNNING, StateType.RETRYING]
WITH_RESULT = [StateType.COMPLETED, StateType.CACHED]
WITHOUT_RESULT = [type_ for type_ in FINAL if type_ not in WITH_RESULT]


def test_these_are_all() -> None:
    assert sorted([*OPEN, *FINAL]) == list(StateType)


@pytest.mark.parametrize("type_", StateType)
def test_final_is_what_comes_from_completed_on(type_: StateType) -> None:
    assert State(type_).is_final() is (type_ in FINAL)


@pytest.mark.parametrize(
    ("question", "types"),
    [
        ("is_pending", [StateType.PENDING]),
        ("is_running", [StateType.RUNNING]),
        ("is_retrying", [StateType.RETRYING]),
        ("is_completed", WITH_RESULT),
        ("is_failed", [StateType.FAILED, StateType.TIMED_OUT, StateType.UPSTREAM_FAILED]),
        ("is_crashed", [StateType.CRASHED]),
        ("is_cancelled", [StateType.CANCELLED]),
    ],
)
def test_each_question_is_true_of_its_states_alone(question: str, types: list[StateType]) -> None:
    assert [type_ for type_ in StateType if getattr(State(type_), question)()] == types


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        (StateType.PENDING, "Pending"),
        (StateType.RUNNING, "Running"),
        (StateType.RETRYING, "Retrying"),
        (StateType.COMPLETED, "Completed"),
        (StateType.CACHED, "Cached"),
        (StateType.FAILED, "Failed"),
        (StateType.TIMED_OUT, "TimedOut"),
        (StateType.UPSTREAM_FAILED, "UpstreamFailed"),
        (StateType.CRASHED, "Crashed"),
        (StateType.CANCELLED, "Cancelled"),
    ],
)
def test_names(type_: StateType, name: str) -> None:
    assert State(type_).name == name
    assert repr(State(type_)) == f"{name}()"
    assert repr(State(type_, "it's so")) == f'{name}("it\'s so")'


@pytest.mark.parametrize("type_", OPEN)
def test_an_open_run_has_no_result(type_: StateType) -> None:
    state = State(type_)
    for raise_on_failure in (True, False):
        with pytest.raises(RuntimeError, match=f"The run is {state.name}: it has no result yet"):
            state.result(raise_on_failure)


@pytest.mark.parametrize("type_", WITH_RESULT)
def test_a_result_may_be_an_exception(type_: StateType) -> None:
    value = ValueError("returned, not raised")
    assert State(type_, data=value).result() is value
    assert State(type_, data=None).result() is None


@pytest.mark.parametrize("type_", WITHOUT_RESULT)
def test_a_failure_is_raised_or_returned(type_: StateType) -> None:
    error = KeyError("gone")
    state = State(type_, data=error)
    with pytest.raises(KeyError) as caught:
        state.result()
    assert caught.value is error
    assert state.result(raise_on_failure=False) is error


def test_states_are_equal_by_kind_and_message() -> None:
    assert State(StateType.FAILED, "x", 1.0, ValueError()) == State(StateType.FAILED, "x", 2.0, KeyError())
    assert State(StateType.FAILED, "x") != State(StateType.FAILED, "y")
    assert State(StateType.FAILED, "x") != State(StateType.CRASHED, "x")
    assert State(StateType.FAILED) != "Failed()"


def test_states_have_no_hash() -> None:
    with pytest.raises(TypeError, match=re.escape("unhashable type: 'State'")):
        hash(State(StateType.FAILED))


def test_states_take_no_further_attributes() -> None:
    with pytest.raises(AttributeError):
        State(StateType.FAILED).colour = "red"  # type: ignore[attr-defined]  # what the test is about


def test_states_pickle() -> None:
    copy = pickle.loads(pickle.dumps(State(StateType.COMPLETED, "fine", 12.5, [1])))
    assert (copy, copy.timestamp, copy.result()) == (State(StateType.COMPLETED, "fine"), 12.5, [1])


# Of runs that need no runner


def test_a_task_called_here_tells_its_state() -> None:
    @task
    def half(number: int) -> float:
        if number % 2:
            raise ValueError(f"{number} is odd\nand that is that")
        return number / 2

    good, bad = half(4, return_state=True), half(3, return_state=True)
    assert (good, good.result(), good.message) == (State(StateType.COMPLETED), 2, None)
    assert bad == State(StateType.FAILED, "ValueError: 3 is odd")
    assert 0 < good.timestamp <= bad.timestamp


def test_a_long_message_is_cut() -> None:
    @task
    def complain() -> None:
        raise ValueError("x" * 1000)

    message = complain(return_state=True).message
    assert message is not None
    assert message == f"ValueError: {'x' * 185}..."


def test_an_exception_that_cannot_be_shown_is_named() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @task
    def complain() -> None:
        raise Mute

    assert complain(return_state=True).message == "Mute"


def test_a_flow_tells_its_state() -> None:
    error = ValueError("x")

    @flow(task_runner=Nowhere())
    def main() -> None:
        raise error

    state = main(return_state=True)
    assert state == State(StateType.FAILED, "ValueError: x")
    assert state.result(raise_on_failure=False) is error
