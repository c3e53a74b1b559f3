"""Who has a batch: the worker that begins it, or the driver that takes it back.

Batches are sent ahead, so that a worker never waits for the next one. If another worker falls idle meanwhile, or a call
is cancelled, the driver wants one back, and the worker that has it may be busy in C code and unable to answer. So both
sides race for a lock on a byte of a file that they share, one byte a batch: whoever gets it has the batch.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._memory import Descriptor

__all__ = ["Claims"]

_UNLOCK_EVERY: Final = 256
# More than the batches that are ever sent ahead: the driver is done with what lies this far back.
_UNLOCK_BEHIND: Final = 64


class Claims:
    """The shared file of one worker, on either side. Batches are numbered from 1 in the order in which they are sent.

    Locks belong to a process, and go when it closes any descriptor of the file: a process must hold one object only,
    for as long as the worker lives.
    """

    def __init__(self, file: Descriptor) -> None:
        os.ftruncate(file.number, mmap.PAGESIZE)
        self._file = file
        self._page = mmap.mmap(file.number, mmap.PAGESIZE)
        self._begun = memoryview(self._page).cast("Q")

    @property
    def begun(self) -> int:
        """The number of the last batch that the worker began, still there when it is dead."""
        return self._begun[0]

    def begin(self, number: int) -> bool:
        """Worker: return whether a batch may begin; if not, the driver has taken it back."""
        if not self._lock(number):
            return False
        self._begun[0] = number
        if number % _UNLOCK_EVERY == 0:
            fcntl.lockf(self._file.number, fcntl.LOCK_UN, number - _UNLOCK_BEHIND, 0)
        return True

    def take(self, number: int) -> bool:
        """Driver: return whether a batch is taken back, and will never begin."""
        if self.begun > 0:
            # The worker is past these, and needs no lock any more to be kept from them.
            fcntl.lockf(self._file.number, fcntl.LOCK_UN, self.begun, 0)
        # The locks of a dead worker are gone, but what it began is not to be had.
        return self._lock(number) and number > self.begun

    def _lock(self, number: int) -> bool:
        try:
            fcntl.lockf(self._file.number, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def close(self) -> None:
        """Give up the file; twice is fine."""
        self._begun.release()
        self._page.close()
        self._file.close()
