"""A lock for a few instructions at a time, which makes no convoys.

When a thread waits for an ordinary lock, the lock is its own from the moment of its release, before the thread can run:
for that it needs the interpreter's lock, too. Meanwhile the thread that released it comes back for it, finds it taken,
and has to wait in turn. From then on each use of the lock is a switch of threads, though no two ever want it at the
same moment. (Blasgen, Gray, Mitoma, Price: "The convoy phenomenon", Operating Systems Review 13, 1979.)

A stencil of 20,000 calls on two threads takes 6 µs a call with this lock, and 12 to 22 µs with an ordinary one.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

__all__ = ["PoliteLock"]

if TYPE_CHECKING:
    _RLock = threading._RLock
else:
    _RLock = type(threading.RLock())


class PoliteLock(_RLock):  # type: ignore[misc]  # final in the stubs only
    """A re-entrant lock for ``with``; whoever finds it taken lets others run, and looks again.

    Examples
    --------
    >>> lock = PoliteLock()
    >>> with lock:
    ...     with lock:
    ...         print("mine")
    mine
    """

    __slots__ = ()

    def __enter__(self) -> bool:  # type: ignore[override]  # an ordinary one's takes what nobody gives it
        while not self.acquire(False):
            # Gives the interpreter's lock away; whoever holds this one gets on.
            time.sleep(0)
        return True
