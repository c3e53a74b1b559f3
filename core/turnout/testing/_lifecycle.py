"""L1 and L2: runners as recipes, and their shutting down; L3 to L5 stand in the modules that this one builds on."""

# ruff: noqa: N802 - tests are named after their guarantees

from __future__ import annotations

import ast
import contextvars
import copy
import pickle
import threading
from typing import TYPE_CHECKING, Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from turnout import TaskFuture, flow, use_runner
from turnout.errors import TurnoutError

from ._bodies import add, fail, identity, where
from ._footprint import Footprint
from ._leftovers import LeftoverConformance, leaves_nothing
from ._scripts import ScriptConformance

if TYPE_CHECKING:
    from turnout.runner import TaskRunner

    from ._kit import Declare

__all__ = ["LifecycleConformance"]


class LifecycleConformance(LeftoverConformance, ScriptConformance):
    """Everything that is promised about the life of a runner: L1 to L5."""

    def test_L1_making_a_runner_starts_nothing(self) -> None:
        """Making a runner, printing, comparing, hashing and pickling it starts no thread, process or file."""

        def make() -> None:
            runner = self.make_runner(2)
            repr(runner)
            hash(runner)
            assert runner == cloudpickle.loads(cloudpickle.dumps(runner))

        make()
        leaves_nothing(make, self.kept)

    def test_L1_flow_with_a_runner_starts_nothing(self, fresh_runner: TaskRunner) -> None:
        """Neither decorating a flow with a runner starts anything, nor a run of it that submits nothing."""

        @flow(task_runner=fresh_runner)
        def main() -> str:
            return "idle"

        assert main() == "idle"
        leaves_nothing(main, self.kept)

    def test_L1_pickles(self, fresh_runner: TaskRunner) -> None:
        """A pickled runner comes back equal, and runs flows."""
        again = cloudpickle.loads(cloudpickle.dumps(fresh_runner))
        assert again == fresh_runner
        assert hash(again) == hash(fresh_runner)
        assert _sums(again) == list(range(10))

    def test_L1_pickles_while_it_runs(self, runner: TaskRunner) -> None:
        """A runner pickles while its backend is up, and the copy knows nothing of that backend."""
        with runner:
            add.submit(1, 2).result()
            again = pickle.loads(cloudpickle.dumps(runner))
        assert again == runner
        assert vars(again).keys() == vars(cloudpickle.loads(cloudpickle.dumps(self.make_runner(2)))).keys()
        assert _sums(again) == list(range(10))

    def test_L1_copies(self, fresh_runner: TaskRunner) -> None:
        """`copy.copy` and `copy.deepcopy` make equal recipes, with a backend of their own each."""
        for again in (copy.copy(fresh_runner), copy.deepcopy(fresh_runner)):
            assert again == fresh_runner
            assert again is not fresh_runner
            assert _sums(again) == list(range(10))

    def test_L1_repr_shows_how_to_make_it_again(self, fresh_runner: TaskRunner) -> None:
        """`repr` is a call of the class; where the settings are plain, evaluating it gives an equal runner."""
        cls = type(fresh_runner)
        text = repr(fresh_runner)
        assert text.startswith(f"{cls.__name__}(")
        assert text.endswith(")")
        settings = fresh_runner._settings
        assert all(f"{name}={value!r}" in text for name, value in settings.items())
        if all(_is_plain(value) for value in settings.values()):
            assert eval(text, {cls.__name__: cls}) == fresh_runner

    def test_L1_equal_settings_compare_equal(self, fresh_runner: TaskRunner) -> None:
        """Runners of one class with equal settings are equal, and have equal hashes, started or not."""
        cls = type(fresh_runner)
        again = cls(**fresh_runner._settings)
        with again:
            add.submit(1, 2).result()
            assert again == fresh_runner
            assert hash(again) == hash(fresh_runner)

    def test_L1_other_settings_compare_unequal(self, fresh_runner: TaskRunner, declared: Declare) -> None:
        """Runners with other settings, or of another class, are not equal."""
        other: type[TaskRunner] = type("Other", (type(fresh_runner),), {})
        assert fresh_runner != other(**fresh_runner._settings)
        assert fresh_runner != "runner"
        if fresh_runner._settings:
            assert fresh_runner != self.make_runner(3)
        else:
            declared("no settings: there are no others")

    def test_L1_same_recipe_again_and_again(self, fresh_runner: TaskRunner) -> None:
        """One runner object serves one flow after another, each with a backend started anew."""
        for _ in range(3):
            assert _sums(fresh_runner) == list(range(10))

    def test_L2_stopping_twice_is_fine(self, fresh_runner: TaskRunner) -> None:
        """`stop` may be called twice after a flow, and on a runner that never started."""
        fresh_runner.stop()
        fresh_runner.stop()
        assert _sums(fresh_runner) == list(range(10))
        fresh_runner.stop()
        fresh_runner.stop()
        assert _sums(fresh_runner) == list(range(10))

    def test_L2_submitting_afterwards_is_an_error(self, fresh_runner: TaskRunner) -> None:
        """A call that is submitted in the context of a flow that has ended is refused, in words that say what to do."""
        kept: list[contextvars.Context] = []

        @flow(task_runner=fresh_runner)
        def main() -> None:
            add.submit(1, 2).result()
            kept.append(contextvars.copy_context())

        main()
        with pytest.raises(TurnoutError, match=r"add.*ended"):
            kept[0].run(add.submit, 1, 2)

    def test_L2_submitting_after_a_block_is_an_error(self, fresh_runner: TaskRunner) -> None:
        """So is one that is submitted after the end of `with runner:`."""
        with fresh_runner:
            kept = contextvars.copy_context()
            add.submit(1, 2).result()
        with pytest.raises(TurnoutError, match="add"):
            add.submit(1, 2)
        with pytest.raises(TurnoutError, match="add"):
            kept.run(add.submit, 1, 2)

    def test_L2_block_keeps_the_backend_up(self, fresh_runner: TaskRunner, declared: Declare) -> None:
        """In `with runner:` flow after flow uses the same workers, and after it none is left."""

        @flow(task_runner=fresh_runner)
        def main() -> set[int]:
            return {pid for pid, _ in where.map(range(20)).result()}

        before = Footprint.now()
        with fresh_runner:
            # Each flow may hit on any of the workers, of which there are two.
            workers = set().union(*(main() for _ in range(5)))
            assert len(workers) <= 2
        if fresh_runner.capabilities.in_process:
            declared("in_process: there are no workers apart from the driver")
        assert self._new_processes(before) == []

    def test_L2_blocks_may_be_nested(self, fresh_runner: TaskRunner) -> None:
        """Blocks of one runner may be nested, and flows run in the inner and in the outer one."""
        with fresh_runner:
            with fresh_runner:
                assert add.submit(1, 2).result() == 3
            assert add.submit(3, 4).result() == 7
            assert _sums(fresh_runner) == list(range(10))
        assert _sums(fresh_runner) == list(range(10))

    def test_L2_block_waits_for_its_calls(self, fresh_runner: TaskRunner) -> None:
        """The end of a block waits for the calls that were submitted in it."""
        with fresh_runner:
            futures = identity.map(range(50))
        assert all(future.done() for future in futures)

    def test_L2_block_fails_by_unseen_failures(self, fresh_runner: TaskRunner) -> None:
        """A block ends like a flow: with the failures at which nobody looked."""
        with pytest.raises(ExceptionGroup) as caught, fresh_runner:
            fail.submit("unseen")
        assert [str(error) for error in caught.value.exceptions] == ["unseen"]

    def test_L2_error_in_a_block_stops_the_backend(self, fresh_runner: TaskRunner) -> None:
        """An exception in a block reaches the caller, and the backend is stopped as ever."""
        # The first use may start what the standard library keeps.
        assert _sums(fresh_runner) == list(range(10))

        def run() -> None:
            with pytest.raises(LookupError, match="in the block"), fresh_runner:
                _add_and_raise()

        leaves_nothing(run, self.kept)
        assert _sums(fresh_runner) == list(range(10))

    def test_L2_two_flows_share_a_backend(self, fresh_runner: TaskRunner) -> None:
        """Two threads may run flows on one runner at once; the first to end does not stop it for the other."""
        results: dict[str, list[int]] = {}
        first_is_over = threading.Event()

        @flow(task_runner=fresh_runner)
        def short() -> list[int]:
            return add.map(range(10), 0).result()

        @flow(task_runner=fresh_runner)
        def long() -> list[int]:
            before = add.map(range(10), 0).result()
            begun.set()
            first_is_over.wait(30)
            return before + add.map(range(10), 0).result()

        begun = threading.Event()
        thread = threading.Thread(target=lambda: results.setdefault("long", long()))
        thread.start()
        begun.wait(30)
        results["short"] = short()
        first_is_over.set()
        thread.join(30)
        assert results == {"short": list(range(10)), "long": [*range(10), *range(10)]}

    def test_L2_runner_of_a_block_of_use_runner(self, fresh_runner: TaskRunner) -> None:
        """`use_runner` takes the object too, and leaves nothing of it behind."""
        kept: list[TaskFuture[Any]] = []

        @flow
        def main() -> list[int]:
            kept.append(where.submit())
            return add.map(range(10), 0).result()

        main()
        before = Footprint.now()
        with use_runner(fresh_runner):
            assert main() == list(range(10))
        assert self._new_processes(before) == []

    def _new_processes(self, before: Footprint) -> list[str]:
        processes = Footprint.now().processes - before.processes
        return [name for name in processes if not name.startswith(self.kept)]


def _sums(runner: TaskRunner) -> list[int]:
    @flow(task_runner=runner)
    def main() -> list[int]:
        return add.map(range(10), 0).result()

    return main()


def _add_and_raise() -> None:
    add.submit(1, 2).result()
    raise LookupError("in the block")


def _is_plain(value: object) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
