"""Write a flow of tasks once, and choose with one word where it runs.

>>> from turnout import flow, task
>>> @task
... def double(x):
...     return 2 * x
>>> @flow(task_runner="thread")
... def doubled(numbers):
...     return double.map(numbers)
>>> doubled([1, 2, 3])
[2, 4, 6]
>>> doubled.with_options(task_runner="sequential")([1, 2, 3])
[2, 4, 6]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._arguments import allow_failure, quote, unmapped
from ._choice import use_runner
from ._collections import as_completed, wait
from ._context import RunContext, cancelled, get_run_context, get_run_logger, register_context_variable, tags
from ._flow import Flow, flow
from ._future import FutureList, TaskFuture
from ._graph import Graph
from ._state import State, StateType
from ._task import Task, exponential_backoff, task
from ._version import __version__
from .errors import (
    CancelledRun,
    CrashedRun,
    EventFileError,
    FlowRunTimeoutError,
    MappingLengthMismatch,
    MappingMissingIterable,
    MissingContextError,
    MissingRunnerLibraryError,
    ParameterBindError,
    ParameterTypeError,
    RunnerBrokenError,
    RunnerError,
    RunnerOptionError,
    RunnerStartError,
    RunnerStoppedError,
    SerializationError,
    TaskRunTimeoutError,
    TurnoutError,
    UnknownRunnerError,
    UpstreamFailed,
    VisualizationError,
    WouldDeadlockError,
)
from .runner import TaskRunner

if TYPE_CHECKING:
    from . import events as events

__all__ = [
    "CancelledRun",
    "CrashedRun",
    "EventFileError",
    "Flow",
    "FlowRunTimeoutError",
    "FutureList",
    "Graph",
    "MappingLengthMismatch",
    "MappingMissingIterable",
    "MissingContextError",
    "MissingRunnerLibraryError",
    "ParameterBindError",
    "ParameterTypeError",
    "RunContext",
    "RunnerBrokenError",
    "RunnerError",
    "RunnerOptionError",
    "RunnerStartError",
    "RunnerStoppedError",
    "SerializationError",
    "State",
    "StateType",
    "Task",
    "TaskFuture",
    "TaskRunTimeoutError",
    "TaskRunner",
    "TurnoutError",
    "UnknownRunnerError",
    "UpstreamFailed",
    "VisualizationError",
    "WouldDeadlockError",
    "__version__",
    "allow_failure",
    "as_completed",
    "cancelled",
    "exponential_backoff",
    "flow",
    "get_run_context",
    "get_run_logger",
    "quote",
    "register_context_variable",
    "tags",
    "task",
    "unmapped",
    "use_runner",
    "wait",
]


if not TYPE_CHECKING:  # type checkers would take any name for one that is there

    def __getattr__(name: str) -> object:
        """Import the events where they are used first: most programs don't listen, and they take a while to load."""
        if name == "events":
            from importlib import import_module

            return import_module(".events", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
