"""T9: what calls need of a worker, and what a task says to one runner only."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from turnout import flow, task
from turnout.errors import TurnoutError

from ._bodies import add, identity
from ._kit import Conformance, Declare, run_on

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

__all__ = ["NeedConformance"]


class NeedConformance(Conformance):
    """T9."""

    def test_T9_modest_needs_are_met(self, runner: TaskRunner) -> None:
        """Calls that need one processor and a little memory run, also beside others and after each other."""
        modest = add.with_options(resources={"cpu": 1, "memory": "1MiB"})
        with runner:
            assert modest.map(range(6), 1).result() == list(range(1, 7))
            assert add.submit(modest.submit(1, 2), 3).result() == 6

    def test_T9_needs_do_not_change_with_the_runner(self, runner: TaskRunner) -> None:
        """Needs may be given when the task is made or by `with_options`, as numbers or as sizes."""

        @task(resources={"cpu": 0.5})
        def half() -> str:
            return "ran"

        with runner:
            assert half.submit().result() == "ran"
            assert half.with_options(resources={"memory": 1024}).submit().result() == "ran"
            assert half.with_options(resources={}).submit().result() == "ran"

    @pytest.mark.parametrize("resources", [{"cpu": 100_000}, {"memory": "1000TiB"}, {"turnout-kit-licence": 1}])
    def test_T9_impossible_needs(self, runner: TaskRunner, resources: dict[str, Any], declared: Declare) -> None:
        """Needs that no worker can meet are an error within seconds that names them, never a hang."""
        asking = add.with_options(resources=resources)
        begin = time.monotonic()
        if not runner.capabilities.knows_resources:
            declared("knows_resources: it passes over what calls need")
            assert run_on(runner, asking.submit, 1, 2) == 3
            return
        with runner:
            error = asking.submit(1, 2).exception()
            assert isinstance(error, TurnoutError)
            assert next(iter(resources)) in str(error)
            assert "add-0" in str(error)
            assert add.submit(1, 2).result() == 3
        assert time.monotonic() - begin < 10

    @pytest.mark.parametrize(
        ("resources", "error"),
        [({"cpu": 0}, ValueError), ({"memory": "much"}, ValueError), ({"gpu": "one"}, TypeError), ({3: 1}, TypeError)],
    )
    def test_T9_nonsense_is_an_error_at_once(self, resources: dict[Any, Any], error: type[Exception]) -> None:
        """What is no amount, or no name, is an error where the task is made, and names the task."""
        with pytest.raises(error, match=r"resources.* of task 'nonsense'"):

            @task(resources=resources)
            def nonsense() -> None: ...

    def test_T9_options_of_other_runners_are_passed_over(self, runner: TaskRunner) -> None:
        """`@task(word_options={...})` is for the runner of that word; others pass over it."""

        @task(nobody_options={"colour": "green"})
        def plain(value: int) -> int:
            return value

        @flow(task_runner=runner)
        def main() -> Any:
            return plain.submit(1), identity.with_options(nobody_options={"a": 1}).submit(2)

        assert main() == (1, 2)

    def test_T9_misspelt_options_are_an_error_at_once(self) -> None:
        """A word that is no option is an error that names the nearest one."""
        with pytest.raises(TypeError, match=r"no option 'retires'.*'retries'"):
            task(retires=3)(abs)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="nobody_options=3: give a dictionary"):
            task(nobody_options=3)(abs)  # type: ignore[call-overload]
