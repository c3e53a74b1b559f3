"""Ray's errors, told once as what became of a call."""

from __future__ import annotations

from typing import Any

from turnout.runner import Batch, Outcome, OutcomeKind

__all__ = ["is_cancellation", "is_death", "outcomes_for", "told"]


def outcomes_for(batch: Batch, left: set[int], error: BaseException, *, cancelled: bool) -> list[Outcome]:
    """Return the outcomes of those calls of a batch that have none, when its Ray task ended with an error.

    Parameters
    ----------
    batch
        The batch.
    left
        The calls that have no outcome yet.
    error
        What ``ray.get`` raised.
    cancelled
        Whether we ended it.
    """
    if cancelled or (is_cancellation(error) and len(batch.calls) == 1):
        return [Outcome(index, OutcomeKind.CRASHED, "it was cancelled") for index in sorted(left)]
    is_open = len(batch.calls) > 1 and (is_death(error) or is_cancellation(error))
    kind = OutcomeKind.LOST if is_open else OutcomeKind.CRASHED
    return [Outcome(index, kind, told(error)) for index in sorted(left)]


def is_cancellation(error: BaseException) -> bool:
    """Return whether an error of Ray says that a call was cancelled."""
    from ._library import ray

    return isinstance(error, ray.exceptions.TaskCancelledError)


def is_death(error: BaseException) -> bool:
    """Return whether an error of Ray says that a worker died."""
    from ._library import ray

    names = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "LocalRayletDiedError")
    return isinstance(error, tuple(getattr(ray.exceptions, name) for name in names if hasattr(ray.exceptions, name)))


def told(error: BaseException) -> str:
    """Return what happened, in words."""
    from ._library import ray

    exceptions = ray.exceptions
    cause: Any = getattr(error, "cause", None)
    if isinstance(error, exceptions.RayTaskError) and isinstance(cause, exceptions.RayError):
        # The task never began, because of one of its arguments.
        error = cause
    text = str(error).strip()
    for kinds, words in _words(exceptions):
        if isinstance(error, kinds):
            return f"{words} ({type(error).__name__}: {_first_lines(text)})"
    return f"{type(error).__name__}: {_first_lines(text)}"


def _words(exceptions: Any) -> list[tuple[tuple[type[BaseException], ...], str]]:
    def of(*names: str) -> tuple[type[BaseException], ...]:
        return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))

    return [
        (of("OutOfMemoryError"), "Ray ended it, because its node ran out of memory"),
        (of("NodeDiedError", "LocalRayletDiedError"), "its node died"),
        (
            of("ObjectLostError", "OwnerDiedError", "ReferenceCountingAssertionError", "ObjectFetchTimedOutError"),
            "a value that it needs is lost with the node that had it; only running the whole flow again makes it anew",
        ),
        (of("RuntimeEnvSetupError"), "its runtime environment can't be made"),
        (of("TaskUnschedulableError"), "no node can run it"),
        (of("RaySystemError"), "Ray failed"),
    ]


def _first_lines(text: str, most: int = 1000) -> str:
    return text if len(text) <= most else text[:most] + "..."
