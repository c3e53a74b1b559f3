"""A pytest plugin that lets the functions and classes of test modules travel to workers, and has faults on demand.

With ``--import-mode=importlib`` pytest imports test modules under names that no other process can import, so what they
define has to travel by value, like that of ``__main__``. Ask for it with ``pytest -p turnout.testing.plugin``, or call
:func:`travel_by_value` in a ``conftest.py``; installing Turnout does not switch it on.

The fixture ``chaos`` makes a :class:`turnout.testing.ChaosTaskRunner` around a runner. Its seed comes from the name of
the test; ``--chaos-seed`` gives all tests another one. What was injected is told with a test that fails::

    def test_flow(chaos):
        assert my_flow.with_options(task_runner=chaos("process", crashes=0.2))() == 42
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable
from types import ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from . import ChaosTaskRunner

__all__ = ["chaos", "pytest_addoption", "pytest_collection_modifyitems", "pytest_runtest_makereport", "travel_by_value"]

_MADE = pytest.StashKey[list[ChaosTaskRunner]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--chaos-seed``."""
    parser.addoption("--chaos-seed", type=int, default=0, help="have the fixture 'chaos' inject other faults")


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Callable[..., ChaosTaskRunner]:
    """Return a function that makes a runner with faults: ``chaos(inner, **rates)``."""
    made = request.node.stash.setdefault(_MADE, [])
    seed = zlib.crc32(request.node.nodeid.encode()) ^ int(request.config.getoption("--chaos-seed", 0) or 0)

    def make(inner: Any, **settings: Any) -> ChaosTaskRunner:
        runner = ChaosTaskRunner(inner, **{"seed": seed, **settings})
        made.append(runner)
        return runner

    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell what the runners of ``chaos`` injected, if the test fails."""
    report = yield
    if report.when == "call" and report.failed:
        report.sections += [("chaos", f"{runner!r}\n{runner.report()}") for runner in item.stash.get(_MADE, [])]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have everything that the collected test modules define travel by value."""
    travel_by_value(items)


def travel_by_value(items: Iterable[pytest.Item]) -> None:
    """Have everything that the modules of some tests define travel by value.

    Parameters
    ----------
    items
        What pytest collected. Doctests are passed over: the modules that they come from can be imported everywhere.
    """
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        if isinstance(module, ModuleType):
            cloudpickle.register_pickle_by_value(module)
