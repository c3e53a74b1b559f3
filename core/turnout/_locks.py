"""Locks: one for a few instructions at a time, which makes no convoys, and what a fork does to locks.

When a thread waits for an ordinary lock, the lock is its own from the moment of its release, before the thread can run:
for that it needs the interpreter's lock, too. Meanwhile the thread that released it comes back for it, finds it taken,
and has to wait in turn. From then on each use of the lock is a switch of threads, though no two ever want it at the
same moment. (Blasgen, Gray, Mitoma, Price: "The convoy phenomenon", Operating Systems Review 13, 1979.)

A stencil of 20,000 calls on two threads takes 6 µs a call with this lock, and 12 to 22 µs with an ordinary one.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

__all__ = ["LOCK", "PoliteLock", "free_in_forks", "start_thread"]

L = TypeVar("L")

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


def free_in_forks(lock: L) -> L:
    """Return a lock of a module, which from now on is free in every process that is forked from this one.

    A process has one thread when it begins. What the others of its parent held would be held for ever: the workers of
    :class:`concurrent.futures.ProcessPoolExecutor` are such processes on Linux, up to Python 3.13.
    """
    if hasattr(os, "register_at_fork"):
        known: Any = lock
        # What the standard library does with its own locks.
        os.register_at_fork(after_in_child=known._at_fork_reinit)
    return lock


# One lock for all futures of the process: calls of different flows may depend on each other, and it is held for a few
# instructions only, never over user code. Re-entrant, because the garbage collector or a signal handler may run user
# code that asks a future while its thread holds it. A body is asked to stop with this lock held: so nothing is stopped
# in the middle of what it does under it, nor between taking it and knowing that it has it.
LOCK: Final = free_in_forks(PoliteLock())


def start_thread(thread: threading.Thread) -> None:
    """Start a thread from one whose body may be stopped meanwhile.

    Up to Python 3.11 a thread goes by the number of the one that starts it until it runs: it would be stopped instead,
    and the other would wait for ever for it to begin.
    """
    with LOCK:
        thread.start()
