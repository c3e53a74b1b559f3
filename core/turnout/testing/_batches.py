"""How many calls travel together while the kit runs, which would otherwise depend on what runners have measured."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from turnout import _batching

__all__ = ["GUESSES", "batched"]


def _alone(seconds: float | None) -> float | None:
    """Have every call travel alone."""
    return None


def _tiny(seconds: float | None) -> float | None:
    """Take every call for one that takes no time, so that as many as can be travel together."""
    return 0.0


def _any(seconds: float | None) -> float | None:
    """Take calls for long, short or tiny, as it comes."""
    return random.choice((None, 0.005, 0.0, 0.0))


GUESSES: Final[Mapping[str, Callable[[float | None], float | None]]] = {
    "measured": _batching.measured,
    "one": _alone,
    "most": _tiny,
    "random": _any,
}


@contextlib.contextmanager
def batched(name: str) -> Iterator[None]:
    """Have calls travel together in one of the ways of ``GUESSES`` meanwhile.

    Examples
    --------
    >>> with batched("most"):
    ...     pass
    """
    before, _batching.guess = _batching.guess, GUESSES[name]
    try:
        yield
    finally:
        _batching.guess = before
