"""Calling a task's function, in the driver's process or in a worker, and making a value of what it returns."""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

from . import _forks
from ._arguments import find_futures, replace
from ._context import Scope
from ._prints import prints_logged
from ._serialization import PLAIN_TYPES
from ._signals import calls_inner

__all__ = ["call_async_body", "call_body", "loop_of_thread"]


class _Loops(threading.local):
    runner: Any = None


_loops: Final = _Loops()


def loop_of_thread() -> Any:
    """Return the event loop's runner of this thread: one for all calls, as clients of servers expect."""
    import asyncio

    if _loops.runner is None:
        _loops.runner = asyncio.Runner()
    return _loops.runner


@calls_inner
def call_body(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], scope: Scope) -> Any:
    """Call a task's function, and make what it returns a value that can travel."""
    generation = _forks.generation
    try:
        if scope.log_prints:
            with prints_logged():
                value = _value(function, args, kwargs, scope)
        else:
            value = function(*args, **kwargs)
            if type(value) not in PLAIN_TYPES:
                value = _finished_value(value, scope)
    except BaseException as error:
        _forks.end_in_child(generation, error)
        raise
    _forks.end_in_child(generation)
    return value


@calls_inner
def _value(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], scope: Scope) -> Any:
    value = function(*args, **kwargs)
    return value if type(value) in PLAIN_TYPES else _finished_value(value, scope)


@calls_inner
def _finished_value(value: Any, scope: Scope) -> Any:
    cls = type(value)
    if cls is types.GeneratorType:
        value = list(value)
    elif cls is types.CoroutineType:
        value = loop_of_thread().run(value)
    return _without_futures(value, scope)


async def call_async_body(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], scope: Scope
) -> Any:
    """Await a task's async function, or collect what its async generator yields."""
    generation = _forks.generation
    try:
        with prints_logged() if scope.log_prints else contextlib.nullcontext():
            value = function(*args, **kwargs)
            value = [item async for item in value] if hasattr(value, "__aiter__") else await value
        for future in _futures_in(value, scope):
            await future._over()
        value = _without_futures(value, scope)
    except BaseException as error:
        _forks.end_in_child(generation, error)
        raise
    _forks.end_in_child(generation)
    return value


def _futures_in(value: Any, scope: Scope) -> Mapping[Any, bool]:
    # Only a body that submitted something can have futures of its own to return.
    return {} if scope.counters is None else find_futures([value]) or {}


def _without_futures(value: Any, scope: Scope) -> Any:
    """Return a body's value with the futures of its nested calls replaced by their results."""
    if not _futures_in(value, scope):
        return value
    return replace(value, lambda future, allowed: future.result())
