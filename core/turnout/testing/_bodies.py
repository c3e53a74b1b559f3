"""Tasks that the conformance kit submits: at the top of a module, so that every worker can import them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from turnout import get_run_context, task

if TYPE_CHECKING:
    from ._kit import Signals

__all__ = [
    "Pair",
    "Point",
    "add",
    "asleep_together",
    "count_to",
    "count_to_slowly",
    "crash",
    "describe",
    "fail",
    "fail_until",
    "fibonacci",
    "flow_run_name",
    "gate",
    "identity",
    "note",
    "spin",
    "total",
    "where",
]


@dataclass
class Pair:
    """Two values in a dataclass."""

    left: Any
    right: Any = None


class Point(NamedTuple):
    """Two values in a named tuple."""

    x: Any
    y: Any


@task
def add(left: Any, right: Any) -> Any:
    """Return the sum of two values."""
    return left + right


@task
def identity(value: Any) -> Any:
    """Return what came in."""
    return value


@task
def total(values: Any) -> Any:
    """Return the sum of many values."""
    return sum(values)


@task
def describe(value: Any) -> str:
    """Return type and text of what came in; for an exception its arguments too."""
    return f"{type(value).__name__}: {value}"


@task
def fail(message: str = "broken") -> Any:
    """Raise a ValueError."""
    raise ValueError(message)


@task
def crash(status: int = 3) -> Any:
    """Leave as if the program ended, which ends only this call."""
    raise SystemExit(status)


@task
def fail_until(signals: Signals, name: str, attempts: int) -> int:
    """Note each attempt, raise a ValueError in all before the last, and return how many there were."""
    signals.note(name)
    count = signals.count(name)
    if count < attempts:
        raise ValueError(f"attempt {count}")
    return count


@task
def note(signals: Signals, name: str, text: object = "") -> object:
    """Note that the body ran, and return the text."""
    signals.note(name, str(text))
    return text


@task
def gate(signals: Signals, value: Any = None) -> Any:
    """Set "begun", wait for "go", set "over", and return the value."""
    signals.set("begun")
    signals.wait("go")
    signals.set("over")
    return value


@task
def spin(signals: Signals) -> None:
    """Run on, in Python code, until "go" is set."""
    signals.wait("go")


@task
def flow_run_name() -> str | None:
    """Return the name of the flow run that this call belongs to."""
    return get_run_context().flow_run_name


@task
def where(*_: Any) -> tuple[int, int]:
    """Return the process and the thread that run this."""
    return os.getpid(), threading.get_ident()


@task
def count_to(limit: int) -> Iterator[int]:
    """Yield the numbers below a limit."""
    yield from range(limit)


@task
async def count_to_slowly(limit: int) -> AsyncIterator[int]:
    """Yield the numbers below a limit, letting others run between them."""
    for number in range(limit):
        await asyncio.sleep(0)
        yield number


@task
async def asleep_together(signals: Signals, count: int) -> int:
    """Wait, without holding the thread, until ``count`` calls have begun; return the thread."""
    signals.note("asleep")
    async with asyncio.timeout(30):
        while signals.count("asleep") < count:  # noqa: ASYNC110 - other processes take part
            # Each look reads a file, and all of them look on one loop, which has more to do.
            await asyncio.sleep(0.02)
    return threading.get_ident()


@task
def fibonacci(number: int) -> int:
    """Return a Fibonacci number by submitting calls of itself."""
    if number < 2:
        return number
    smaller, larger = fibonacci.submit(number - 2), fibonacci.submit(number - 1)
    return int(smaller.result()) + int(larger.result())
