"""The conformance kit, every guarantee as a test for whoever writes a runner; and faults on demand, for everybody.

Write a test module such as this, and let pytest run it::

    from turnout.testing import RunnerConformance
    from my_package import MyRunner

    class TestMyRunner(RunnerConformance):
        def make_runner(self, slots):
            return MyRunner(slots)

``turnout conform WORD`` does the same with the runner that a word stands for, and prints a table. A test that meets
something which the runner declares it can't do checks what it promises instead, and is reported as "declared".

:class:`ChaosTaskRunner` has the things go wrong that go wrong with backends, for tests of flows and of runners.
"""

# ruff: noqa: E402 - pytest has to know of the modules before they are imported

import pkgutil

import pytest

# Asserts that say what they compared, also in modules that are no test modules of the stranger's.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from ._chaos import ChaosError, ChaosReport, ChaosTaskRunner
from ._context import ContextConformance
from ._dependencies import DependencyConformance
from ._errors import ErrorConformance
from ._events import EventConformance
from ._faults import FaultConformance
from ._faulty_workers import FaultyWorkerConformance
from ._flows import FlowConformance
from ._futures import FutureConformance
from ._interrupts import InterruptConformance, InterruptedScriptConformance
from ._kit import Conformance, Signals, run_script, runner_expression
from ._lifecycle import LifecycleConformance
from ._tasks import TaskConformance

__all__ = [
    "ChaosError",
    "ChaosReport",
    "ChaosTaskRunner",
    "Conformance",
    "ContextConformance",
    "DependencyConformance",
    "ErrorConformance",
    "EventConformance",
    "FaultConformance",
    "FaultyWorkerConformance",
    "FlowConformance",
    "FutureConformance",
    "InterruptConformance",
    "InterruptedScriptConformance",
    "LifecycleConformance",
    "RunnerConformance",
    "Signals",
    "TaskConformance",
    "run_script",
    "runner_expression",
]


class RunnerConformance(
    FlowConformance,
    TaskConformance,
    DependencyConformance,
    FutureConformance,
    ErrorConformance,
    FaultConformance,
    InterruptConformance,
    ContextConformance,
    EventConformance,
    LifecycleConformance,
):
    """The whole kit: derive a class whose name begins with ``Test``, and give it ``make_runner``."""
