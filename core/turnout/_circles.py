"""Calls whose bodies wait for each other: the wait that would close a circle, and so never end, is refused."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from ._call import Call
from ._context import Scope
from ._future import TaskFuture, own_end
from ._scopes import calls_around
from .errors import WouldDeadlockError

__all__ = ["no_circle"]


@contextlib.contextmanager
def no_circle(scope: Scope, future: TaskFuture[Any]) -> Iterator[None]:
    """Note that this thread waits for a future, in the body of a scope.

    Raises
    ------
    WouldDeadlockError
        If the future's call waits, directly or by others, for a call whose body this thread runs.
    """
    # Calls inside of each other may run in one thread. What another thread waits for doesn't keep the body from ending.
    here = threading.get_ident()
    held_up = [call for call in calls_around(scope) if call.thread == here]
    # A destructor or a signal handler may wait while its thread does.
    before = [_awaited(call) for call in held_up]
    # Before the look: of two that close a circle at once, one must see the other.
    for call in held_up:
        call.awaited = future
    try:
        _refuse_circle(held_up, future)
        yield
    finally:
        for call, other in zip(held_up, before, strict=True):
            call.awaited = other


def _awaited(call: Call) -> TaskFuture[Any] | None:
    return getattr(call, "awaited", None)


def _refuse_circle(held_up: list[Call], future: TaskFuture[Any]) -> None:
    todo = [future] if held_up else []
    seen: set[Call] = set()
    while todo:
        # A call that is over has none, and holds up nobody.
        call = todo.pop()._call
        if call is None or call in seen:
            continue
        if call in held_up:
            raise _refusal(call.future, future)
        seen.add(call)
        todo.extend(call.dependencies or ())
        awaited = _awaited(call)
        if awaited is not None:
            todo.append(awaited)


def _refusal(own: TaskFuture[Any], other: TaskFuture[Any]) -> WouldDeadlockError:
    if own is other:
        return own_end(own)
    return WouldDeadlockError(
        f"Task {own.name!r} waits for {other.name!r}, which waits for {own.name!r}: neither would ever end. Give one "
        "of them the other's future as an argument, or submit a third task that depends on both."
    )
