"""Every error that Turnout raises on purpose, as one tree.

::

    TurnoutError
    ├── RunnerError
    │   ├── UnknownRunnerError (ValueError)        a word that no installed runner claims
    │   ├── RunnerOptionError (ValueError)         a runner that exists, asked for with options that it lacks
    │   ├── MissingRunnerLibraryError (ImportError) the runner is there, its library is not
    │   ├── RunnerStartError (RuntimeError)        the backend did not come up
    │   ├── RunnerStoppedError (RuntimeError)      a call reached a runner that has been stopped
    │   └── RunnerBrokenError (RuntimeError)       the backend was lost and can't be rebuilt
    ├── MissingContextError (RuntimeError)         `submit` or `get_run_context` outside of a run
    ├── WouldDeadlockError (RuntimeError)          waiting in a thread that has to deliver what is waited for
    ├── ParameterBindError (TypeError)             the arguments don't fit the signature
    ├── ParameterTypeError (TypeError)             pydantic refused a parameter of a flow
    ├── MappingLengthMismatch (ValueError)         `map` over iterables of unequal length
    ├── MappingMissingIterable (ValueError)        `map` with nothing to walk over
    ├── SerializationError (TypeError)             something can't travel to or from a worker
    ├── VisualizationError (RuntimeError)          a flow can't be drawn
    ├── EventFileError (OSError)                   events can't be written where they should be
    ├── UpstreamFailed                             a call whose dependency had no result
    ├── CrashedRun                                 the worker died, or the body raised a BaseException
    ├── CancelledRun (concurrent.futures.CancelledError)
    ├── TaskRunTimeoutError (TimeoutError)
    └── FlowRunTimeoutError (TimeoutError)

Errors that name what to type next end with it.
"""

import concurrent.futures

__all__ = [
    "CancelledRun",
    "CrashedRun",
    "EventFileError",
    "FlowRunTimeoutError",
    "MappingLengthMismatch",
    "MappingMissingIterable",
    "MissingContextError",
    "MissingRunnerLibraryError",
    "ParameterBindError",
    "ParameterTypeError",
    "RunnerBrokenError",
    "RunnerError",
    "RunnerOptionError",
    "RunnerStartError",
    "RunnerStoppedError",
    "SerializationError",
    "TaskRunTimeoutError",
    "TurnoutError",
    "UnknownRunnerError",
    "UpstreamFailed",
    "VisualizationError",
    "WouldDeadlockError",
]


class TurnoutError(Exception):
    """The root of every error that Turnout raises on purpose."""


class RunnerError(TurnoutError):
    """A runner could not be chosen, started or used."""


class UnknownRunnerError(RunnerError, ValueError):
    """No installed runner answers to the word or URL that was given."""


class RunnerOptionError(RunnerError, ValueError):
    """The runner exists, but not with the options that were given."""


class MissingRunnerLibraryError(RunnerError, ImportError):
    """The runner is known, but the library that it stands on is not installed."""


class RunnerStartError(RunnerError, RuntimeError):
    """The runner's backend did not come up."""


class RunnerStoppedError(RunnerError, RuntimeError):
    """The runner has been stopped, and takes no more calls."""


class RunnerBrokenError(RunnerError, RuntimeError):
    """The runner's backend was lost, and the runner can't build it again."""


class MissingContextError(TurnoutError, RuntimeError):
    """There is no flow run or task run here to ask or to submit to."""


class WouldDeadlockError(TurnoutError, RuntimeError):
    """The thread that was asked to wait is the one that delivers results."""


class ParameterBindError(TurnoutError, TypeError):
    """The arguments don't fit the signature of the flow or task."""


class ParameterTypeError(TurnoutError, TypeError):
    """A parameter of a flow does not have the type that its annotation asks for."""


class MappingLengthMismatch(TurnoutError, ValueError):
    """The iterables given to ``map`` differ in length."""


class MappingMissingIterable(TurnoutError, ValueError):
    """Nothing given to ``map`` can be walked over."""


class SerializationError(TurnoutError, TypeError):
    """An argument, function, result or exception can't travel to or from a worker."""


class VisualizationError(TurnoutError, RuntimeError):
    """A flow can't be drawn: its body looks into a result that isn't there, or what draws is not installed."""


class EventFileError(TurnoutError, OSError):
    """The file of ``TURNOUT_EVENTS`` or ``turnout run --events`` can't be written; no flow has begun."""


class UpstreamFailed(TurnoutError):
    """The call never ran, because a call that it depends on has no result.

    ``__cause__`` is the exception of the root call, the one that failed first; ``root`` is its name.
    """

    def __init__(self, message: str, root: str) -> None:
        super().__init__(message, root)
        self.root = root

    def __str__(self) -> str:
        return str(self.args[0])


class CrashedRun(TurnoutError):
    """The run ended without an outcome: its worker died, or its body raised a ``BaseException``."""


class CancelledRun(TurnoutError, concurrent.futures.CancelledError):
    """The run was cancelled before it had a result."""


class TaskRunTimeoutError(TurnoutError, TimeoutError):
    """The task ran for longer than its ``timeout_seconds``."""


class FlowRunTimeoutError(TurnoutError, TimeoutError):
    """The flow ran for longer than its ``timeout_seconds``."""
