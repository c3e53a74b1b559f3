"""C2 and C3: tags, context variables and seeds; C1 stands in the module that this one builds on."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import contextvars
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from turnout import flow, get_run_context, register_context_variable, tags, task, unmapped

from ._bodies import identity
from ._open_calls import second_time
from ._records import RecordConformance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnout.runner import TaskRunner

    from ._kit import Declare, Signals

__all__ = ["ContextConformance"]

REGISTERED: contextvars.ContextVar[Any] = contextvars.ContextVar("turnout_testing_registered", default="default")
UNREGISTERED: contextvars.ContextVar[Any] = contextvars.ContextVar("turnout_testing_unregistered", default="default")
register_context_variable(REGISTERED)


class ContextConformance(RecordConformance):
    """Everything that is promised about what a run knows of itself: C1 to C3."""

    def test_C2_tags_reach_calls(self, runner: TaskRunner) -> None:
        """`with tags(...)` reaches the calls submitted inside, and not those before or after."""

        @flow(task_runner=runner)
        def main() -> list[list[str]]:
            before = my_tags.submit()
            with tags("a", "b"):
                inside = my_tags.submit()
            return [future.result() for future in (before, inside, my_tags.submit())]

        assert main() == [[], ["a", "b"], []]

    def test_C2_tags_add_up(self, runner: TaskRunner) -> None:
        """Tags of nested blocks, around the flow, and of the task itself add up."""

        @flow(task_runner=runner)
        def main() -> list[str]:
            with tags("outer"), tags("inner"):
                return my_tags.with_options(tags=["own"]).submit().result()

        with tags("around"):
            assert main() == ["around", "inner", "outer", "own"]

    def test_C2_tags_belong_to_the_submission(self, runner: TaskRunner, signals: Signals) -> None:
        """What counts is where a call is submitted, not what holds when it begins."""

        @flow(task_runner=runner)
        def main() -> list[str]:
            first = second_time(runner).submit(signals)
            with tags("then"):
                future = my_tags.submit(wait_for=[first])
            with tags("now"):
                signals.set("go")
                return future.result()

        assert main() == ["then"]

    def test_C2_tags_reach_maps(self, runner: TaskRunner) -> None:
        """Every call of a map has the tags."""

        @flow(task_runner=runner)
        def main() -> list[list[str]]:
            with tags("mapped"):
                return my_tags.map(range(10)).result()

        assert main() == [["mapped"]] * 10

    def test_C2_tags_reach_nested_calls(self, runner: TaskRunner) -> None:
        """Calls that a task submits have its tags, and those it adds."""

        @task
        def outer() -> list[str]:
            with tags("nested"):
                return my_tags.submit().result()

        @flow(task_runner=runner)
        def main() -> list[str]:
            with tags("flow"):
                return outer.submit().result()

        assert main() == ["flow", "nested"]

    def test_C2_registered_variable_reaches_workers(self, runner: TaskRunner) -> None:
        """A context variable that is registered has the submitter's value in the task, on every runner."""

        @flow(task_runner=runner)
        def main() -> Any:
            return read_registered.submit().result()

        with _set(REGISTERED, {"user": ["Ada", 36]}):
            assert main() == {"user": ["Ada", 36]}
        assert main() == "default"

    def test_C2_other_variables_reach_threads(self, runner: TaskRunner, declared: Declare) -> None:
        """Any context variable has the submitter's value in tasks that share its process; elsewhere its default."""

        @flow(task_runner=runner)
        def main() -> Any:
            return read_unregistered.submit().result()

        with _set(UNREGISTERED, "set"):
            if runner.capabilities.in_process:
                assert main() == "set"
            else:
                declared("not in_process: variables that aren't registered stay at home")
                assert main() == "default"

    def test_C2_variables_belong_to_the_submission(self, runner: TaskRunner, signals: Signals) -> None:
        """A call sees the value that held when it was submitted, not when it begins."""

        @flow(task_runner=runner)
        def main() -> list[Any]:
            first = second_time(runner).submit(signals)
            futures = []
            for number in range(5):
                with _set(REGISTERED, number):
                    futures.append(read_registered.submit(first))
            signals.set("go")
            return [future.result() for future in futures]

        assert main() == [0, 1, 2, 3, 4]

    def test_C2_changes_stay_in_the_task(self, one_slot: TaskRunner) -> None:
        """What a task sets, neither the flow nor later calls on the same worker see."""

        @flow(task_runner=one_slot)
        def main() -> list[Any]:
            changed = [change_registered.submit("changed").result() for _ in range(3)]
            return [*changed, read_registered.submit().result(), REGISTERED.get()]

        with _set(REGISTERED, "at first"):
            assert main() == ["at first"] * 5

    def test_C2_attempts_see_the_same_value(self, runner: TaskRunner, signals: Signals) -> None:
        """Each attempt of a call starts with the submitter's values."""

        @task(retries=2)
        def flaky() -> None:
            signals.note("seen", str(REGISTERED.get()))
            REGISTERED.set("changed")
            raise ValueError("again")

        with runner, _set(REGISTERED, "mine"):
            flaky.submit().exception()
        assert signals.notes("seen") == ["mine"] * 3

    def test_C2_async_tasks_see_their_own_values(self, runner: TaskRunner) -> None:
        """Async tasks that share a loop see each its own submitter's value."""

        @flow(task_runner=runner)
        def main() -> list[Any]:
            futures = []
            for number in range(10):
                with _set(REGISTERED, number):
                    futures.append(read_registered_async.submit())
            return [future.result() for future in futures]

        assert main() == list(range(10))

    def test_C2_second_variable_of_a_name_is_refused(self) -> None:
        """Registering another variable of the same name is an error; registering the same one again is fine."""
        register_context_variable(REGISTERED)
        with pytest.raises(ValueError, match="turnout_testing_registered"):
            register_context_variable(contextvars.ContextVar("turnout_testing_registered"))

    def test_C3_seeds_are_equal_on_every_runner(self, runner: TaskRunner) -> None:
        """The same call of the same flow has the same seed as on the sequential runner."""
        assert _seeds.with_options(task_runner=runner)() == _seeds.with_options(task_runner="sequential")()

    def test_C3_seeds_are_equal_each_time(self, runner: TaskRunner) -> None:
        """Two runs of a flow give its calls the same seeds."""
        repeated = _seeds.with_options(task_runner=runner)
        assert repeated() == repeated()

    def test_C3_seeds_do_not_depend_on_slots(self, runner: TaskRunner, one_slot: TaskRunner) -> None:
        """The number of workers changes no seed."""
        assert _seeds.with_options(task_runner=runner)() == _seeds.with_options(task_runner=one_slot)()

    def test_C3_seeds_differ(self, runner: TaskRunner) -> None:
        """Each call has a seed of its own, and so has the flow itself."""

        @flow(task_runner=runner)
        def main() -> list[int]:
            return [get_run_context().seed, *my_seed.map(range(100)).result(), my_other_seed.submit().result()]

        seeds = main()
        assert len(set(seeds)) == 102
        assert all(0 <= seed < 2**64 for seed in seeds)

    def test_C3_seeds_of_flows_differ(self, runner: TaskRunner) -> None:
        """Flows of different names give their calls different seeds."""

        def body() -> int:
            return my_seed.submit(0).result()

        one = flow(name="one", task_runner=runner)(body)
        other = flow(name="other", task_runner=runner)(body)
        assert one() != other()

    def test_C3_attempts_have_one_seed(self, runner: TaskRunner, signals: Signals) -> None:
        """A call that is tried again has the seed that it had, so that it does the same again."""

        @task(retries=2)
        def flaky() -> None:
            signals.note("seed", str(get_run_context().seed))
            raise ValueError("again")

        with runner:
            flaky.submit().exception()
        assert signals.count("seed") == 3
        assert len(set(signals.notes("seed"))) == 1

    def test_C3_random_numbers(self, runner: TaskRunner) -> None:
        """Generators made from the seed give the same numbers as on the sequential runner."""
        drawn = _draws.with_options(task_runner=runner)()
        assert drawn == _draws.with_options(task_runner="sequential")()
        assert len({tuple(numbers) for numbers in drawn}) == len(drawn)

    def test_C3_numpy_takes_the_seed(self, runner: TaskRunner) -> None:
        """NumPy's generators take the seed as it is."""
        numpy = pytest.importorskip("numpy")

        def draw(_: int) -> list[float]:
            import numpy as np

            return list(map(float, np.random.default_rng(get_run_context().seed).random(3)))

        @flow
        def main() -> list[list[float]]:
            return task(draw).map(range(3)).result()

        drawn = main.with_options(task_runner=runner)()
        assert drawn == main.with_options(task_runner="sequential")()
        assert numpy.unique(drawn).size == 9


@task
def my_tags(*_: Any) -> list[str]:
    """Return the tags of this run, sorted."""
    return sorted(get_run_context().tags)


@task
def read_registered(*_: Any) -> Any:
    """Return the value of the registered variable."""
    return REGISTERED.get()


@task
async def read_registered_async() -> Any:
    """Return the value of the registered variable."""
    return REGISTERED.get()


@task
def read_unregistered() -> Any:
    """Return the value of the variable that nobody registered."""
    return UNREGISTERED.get()


@task
def change_registered(value: Any) -> Any:
    """Set the registered variable, and return what it was before."""
    before = REGISTERED.get()
    REGISTERED.set(value)
    return before


@task
def my_seed(_: Any) -> int:
    """Return the seed of this call."""
    return get_run_context().seed


@task
def my_other_seed() -> int:
    """Return the seed of this call."""
    return get_run_context().seed


@task
async def my_async_seed() -> int:
    """Return the seed of this call."""
    return get_run_context().seed


@task
def my_nested_seeds() -> list[int]:
    """Return the seeds of two calls that this one submits, and its own."""
    return [my_seed.submit(0).result(), my_seed.submit(1).result(), get_run_context().seed]


@task
def draw_numbers(count: int, _: Any) -> list[float]:
    """Return random numbers from a generator with this call's seed."""
    generator = random.Random(get_run_context().seed)
    return [generator.random() for _ in range(count)]


@flow
def _inner(first: int) -> list[int]:
    return [first, my_seed.submit(first).result()]


@flow
def _seeds() -> list[Any]:
    """Return the seeds of many kinds of calls."""
    mapped = my_seed.map(range(20))
    chained = my_seed.submit(my_seed.submit(mapped[3]))
    nested = my_nested_seeds.submit()
    subflow = _inner(7)
    return [
        mapped.result(),
        chained.result(),
        nested.result(),
        my_async_seed.submit().result(),
        identity.submit(my_other_seed.submit()).result(),
        subflow,
        get_run_context().seed,
    ]


@flow
def _draws() -> list[list[float]]:
    return draw_numbers.map(unmapped(5), range(10)).result()


@contextmanager
def _set(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
