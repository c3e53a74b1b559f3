"""Waiting for several futures at once, as in :mod:`concurrent.futures`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from ._future import TaskFuture
from ._state import StateType
from ._waiting import Arrivals, countdown

__all__ = ["DoneAndNotDone", "as_completed", "wait"]

R = TypeVar("R")


class DoneAndNotDone(NamedTuple):
    """What :func:`wait` returns."""

    done: set[TaskFuture[Any]]
    not_done: set[TaskFuture[Any]]


def wait(
    futures: Iterable[TaskFuture[Any]], timeout: float | None = None, return_when: str = "ALL_COMPLETED"
) -> DoneAndNotDone:
    """Wait for futures, and return which are over and which are not. Raises none of their failures.

    Parameters
    ----------
    futures
        The futures to wait for.
    timeout
        How long to wait at most, in seconds; None waits for ever.
    return_when
        ``"ALL_COMPLETED"``, ``"FIRST_COMPLETED"`` or ``"FIRST_EXCEPTION"``, as in :mod:`concurrent.futures`.

    Raises
    ------
    ValueError
        If ``return_when`` is none of these.
    """
    if return_when not in ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"):
        raise ValueError(f"return_when={return_when!r}: use ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION.")
    everything = set(futures)
    for future in _over_in_turn(everything, countdown(timeout)):
        if return_when == "FIRST_COMPLETED":
            break
        if return_when == "FIRST_EXCEPTION" and future._type > StateType.CACHED:
            break
    done = {future for future in everything if future.done()}
    return DoneAndNotDone(done, everything - done)


def as_completed(futures: Iterable[TaskFuture[R]], timeout: float | None = None) -> Iterator[TaskFuture[R]]:
    """Yield futures as they come to their end, each once.

    Given a lazy map it holds only as many calls as are under way.

    Parameters
    ----------
    futures
        The futures, or what ``task.map(..., lazy=True)`` returned.
    timeout
        How long to go on at most, in seconds; None for ever.

    Raises
    ------
    TimeoutError
        If not all are over in time.
    """
    in_turn = getattr(futures, "in_order_of_completion", None)
    if in_turn is not None:
        yield from in_turn(timeout)
        return
    waiting = set(futures)
    seen = 0
    for future in _over_in_turn(waiting, countdown(timeout)):
        seen += 1
        yield future
    if seen < len(waiting):
        raise TimeoutError(f"{len(waiting) - seen} of {len(waiting)} futures are not over after {timeout} s.")


def _over_in_turn(
    futures: set[TaskFuture[R]], remaining: Callable[[], float | None]
) -> Generator[TaskFuture[R], None, None]:
    """Yield futures as they end, and stop early when no time remains."""
    queue = Arrivals[TaskFuture[R]]()
    listeners = {future: functools.partial(queue.put, future) for future in futures}
    try:
        for future, listener in listeners.items():
            if not future._listen(listener):
                queue.put(future)
        left = dict(listeners)
        while left:
            # What may be any of several is not known to wait for this thread.
            last = next(iter(left)) if len(left) == 1 else None
            if not queue.wait(remaining(), last):
                return
            future = queue.take()
            del left[future]
            yield future
    finally:
        for future, listener in listeners.items():
            future._forget(listener)
