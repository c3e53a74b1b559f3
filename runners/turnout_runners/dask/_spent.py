"""A worker of our own that has no file descriptors left ends itself: Dask would take it for one that is up.

Nobody could connect to it any more, so what is sent there would wait for ever, and its event loop would try to accept
the same connection again and again, and log each try: half a gigabyte in two minutes.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

__all__ = ["EXIT_STATUS", "end_if_spent"]

EXIT_STATUS: Final = 124
"""With what such a worker ends; tasks of users could do so, too, but programs seldom end with it."""
# A worker has connections to the scheduler, to the driver, and to other workers that want its results.
_NEEDED: Final = 8


def end_if_spent() -> None:
    """End this process at once, if it can't open what a worker needs. Takes 10 µs."""
    if not _has_descriptors():
        # Not in good order: that would take connections.
        os._exit(EXIT_STATUS)


def _has_descriptors() -> bool:
    opened: list[int] = []
    try:
        with contextlib.suppress(OSError):
            opened.append(os.open(os.devnull, os.O_RDONLY))
            while len(opened) < _NEEDED:
                opened.append(os.dup(opened[0]))
        return len(opened) == _NEEDED
    finally:
        for descriptor in opened:
            os.close(descriptor)
