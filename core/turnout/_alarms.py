"""Alarms that bodies leave behind: they would go off in somebody else's body."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["no_alarm_left"]


@contextlib.contextmanager
def no_alarm_left() -> Iterator[None]:
    """Switch an alarm of this process off that was set in this block, by ``signal.alarm`` or ``signal.setitimer``.

    One that was on before belongs to somebody else, such as a profiler.
    """
    if not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
