"""What a failed flow shows: the user's frames, and none of Turnout's."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

__all__ = ["text_of"]

_OWN = ("turnout", "turnout_runners")


def text_of(error: BaseException) -> str:
    """Return the traceback of an exception, of its causes and of its members, without frames of Turnout.

    Examples
    --------
    >>> print(text_of(ValueError("no rails")), end="")
    ValueError: no rails
    """
    shown = traceback.TracebackException.from_exception(error, compact=True)
    _strip(shown)
    return "".join(shown.format())


def _strip(top: traceback.TracebackException) -> None:
    hidden, outer = _folders(*_OWN), _folders("asyncio")
    waiting: list[traceback.TracebackException | None] = [top]
    while waiting:
        shown = waiting.pop()
        if shown is None:
            continue
        frames = [frame for frame in shown.stack if not frame.filename.startswith(hidden)]
        # An async flow begins in asyncio's own frames; further down they are the user's business.
        while frames and frames[0].filename.startswith(outer):
            del frames[0]
        shown.stack[:] = frames
        if not frames:
            shown.stack = None  # type: ignore[assignment]  # then Python prints no header either
        waiting += [shown.__cause__, shown.__context__, *(shown.exceptions or ())]


def _folders(*packages: str) -> tuple[str, ...]:
    modules = [sys.modules.get(package) for package in packages]
    return tuple(f"{Path(folder)}/" for module in modules if module for folder in module.__path__)
