"""The bodies of the tasks. They are as small as can be: what is measured is the way to them and back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def same(value: Any) -> Any:
    return value


def increment(value: int) -> int:
    return value + 1


def add(left: int, right: int) -> int:
    return left + right


def step(left: int, here: int, right: int) -> int:
    """Advance a cell of a stencil; neighbours in step with it leave it at one more than before."""
    return max(left, here, right) + 1


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def spin(seconds: float) -> float:
    """Keep a processor busy, by the clock: it takes as long on a slow one, or one that others want, too."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        pass
    return seconds


def spin_step(seconds: float, left: int, here: int, right: int) -> int:
    """Advance a cell of a stencil in a given time."""
    spin(seconds)
    return step(left, here, right)


def hold(gate: threading.Event) -> bool:
    return gate.wait()


def fill(length: int) -> Array:
    import numpy as np

    return np.ones(length)


def raise_all(array: Array) -> Array:
    return array + 1


def raise_own(array: Array) -> Array:
    """Do the same, without having said that the argument stays as it is."""
    return array + 1


def total(array: Array) -> float:
    return float(array.sum())


# What systems may give arrays to that belong to others, too.
READ_ONLY = frozenset({raise_all, total})


def each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Call a function with each item: a chunk as users make it by hand."""
    return [function(item) for item in items]
