"""Who has a batch: the worker that begins it, or the driver that takes it back.

Batches are sent ahead, so that a worker never waits for the next one. If another worker falls idle meanwhile, or a call
is cancelled, the driver wants one back, and the worker that has it may be busy in C code and unable to answer. So both
sides race for a lock on a byte of a file that they share, one byte a batch: whoever gets it has the batch.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from turnout.runner import Outcome
    from turnout.worker import Ledger

    from ._memory import Descriptor

__all__ = ["Claims"]

_UNLOCK_EVERY: Final = 256
# More than the batches that are ever sent ahead: the driver is done with what lies this far back.
_UNLOCK_BEHIND: Final = 64


# What the words of the first page are, from the second on: how many calls of the batch have begun; the batch of which
# no more may begin; which half is being written to; and how long the halves are.
_CALLS: Final = 1
_RECALLED: Final = 2
_HALF: Final = 3
_ENDS: Final = 4
# Behind the first page, two halves with outcomes that are yet to be sent.
_HALF_SIZE: Final = 128 * 1024
_SIZE: Final = mmap.PAGESIZE + 2 * _HALF_SIZE
_LENGTH: Final = struct.Struct("I")


class _Ledger:
    """Notes of a batch of several calls, which the driver can read when the worker is dead."""

    def __init__(self, page: mmap.mmap, words: memoryview, number: int) -> None:
        self._page = page
        self._words = words
        self._number = number

    def begin(self, index: int) -> bool:
        """Note that a call begins, and return whether it may."""
        if self._words[_RECALLED] == self._number:
            return False
        self._words[_CALLS] = index + 1
        return True

    def note(self, outcome: Outcome) -> bool:
        """Keep an outcome, if there is room."""
        data = pickle.dumps((outcome[0], int(outcome[1]), *outcome[2:]), 5)
        half = self._words[_HALF]
        end = self._words[_ENDS + half]
        if end + _LENGTH.size + len(data) > _HALF_SIZE:
            return False
        begin = _begin(half) + end
        self._page[begin : begin + _LENGTH.size + len(data)] = _LENGTH.pack(len(data)) + data
        # Last: what is half written when the worker dies is not there.
        self._words[_ENDS + half] = end + _LENGTH.size + len(data)
        return True

    def turn(self) -> None:
        """Write to the other half from now on."""
        self._words[_HALF] = 1 - self._words[_HALF]

    def sent(self) -> None:
        """Empty the half that is not written to."""
        self._words[_ENDS + 1 - self._words[_HALF]] = 0


def _begin(half: int) -> int:
    return mmap.PAGESIZE + half * _HALF_SIZE


def _rows(page: mmap.mmap, half: int, length: int) -> Iterator[tuple[Any, ...]]:
    place = _begin(half)
    end = place + length
    while place < end:
        (size,) = _LENGTH.unpack_from(page, place)
        place += _LENGTH.size
        yield pickle.loads(page[place : place + size])
        place += size


class Claims:
    """The shared file of one worker, on either side. Batches are numbered from 1 in the order in which they are sent.

    Locks belong to a process, and go when it closes any descriptor of the file: a process must hold one object only,
    for as long as the worker lives.
    """

    def __init__(self, file: Descriptor) -> None:
        os.ftruncate(file.number, _SIZE)
        self._file = file
        self._page = mmap.mmap(file.number, _SIZE)
        self._begun = memoryview(self._page).cast("Q")

    @property
    def begun(self) -> int:
        """The number of the last batch that the worker began, still there when it is dead."""
        return self._begun[0]

    @property
    def calls_begun(self) -> int:
        """How many calls of that batch have begun, if it holds several."""
        return self._begun[_CALLS]

    def recall(self, number: int) -> None:
        """Driver: let no more calls of a batch begin.

        The word may come a moment too late: there is no lock, for the worker looks before each tiny call.
        """
        self._begun[_RECALLED] = number

    def ledger(self, number: int) -> Ledger:
        """Worker: return the ledger for a batch of several calls."""
        return _Ledger(self._page, self._begun, number)

    def noted(self, number: int) -> list[tuple[Any, ...]]:
        """Driver: return what came of the calls of a batch of several, as far as the dead worker had not sent it."""
        if self.begun != number:
            return []
        older = 1 - self._begun[_HALF]
        return [row for half in (older, 1 - older) for row in _rows(self._page, half, self._begun[_ENDS + half])]

    def begin(self, number: int) -> bool:
        """Worker: return whether a batch may begin; if not, the driver has taken it back."""
        if not self._lock(number):
            return False
        # What is in there is of an earlier one.
        self._begun[_CALLS] = self._begun[_ENDS] = self._begun[_ENDS + 1] = 0
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
