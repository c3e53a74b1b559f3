"""Private copies of large buffers, in memory that is used again: new pages cost more than what is copied into them."""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import deque
from typing import Any, Final

__all__ = ["private_copy"]

_LARGE: Final = 1 << 20
_MOST_KEPT: Final = 256 << 20

# Blocks that nobody uses. Given back by finalizers, which may run in any thread and at any moment: so without a lock.
_free: Final[deque[mmap.mmap]] = deque()


def private_copy(buffer: Any) -> bytearray | memoryview:
    """Return the bytes of a buffer in memory of their own, which can be written to.

    Examples
    --------
    >>> bytes(private_copy(b"abc"))
    b'abc'
    """
    source = memoryview(buffer)
    if source.nbytes < _LARGE:
        return bytearray(source)
    import ctypes  # a slow import, for large values only

    block = _taken(source.nbytes) or _new(source.nbytes)
    # This object lives for as long as whatever is made over the memory, and tells when that is over.
    exporter = (ctypes.c_ubyte * source.nbytes).from_buffer(block)
    weakref.finalize(exporter, _give_back, block).atexit = False
    copy = memoryview(exporter).cast("B")
    copy[:] = source
    return copy


def _taken(size: int) -> mmap.mmap | None:
    """Return a free block that is large enough, and not much too large."""
    for _ in range(len(_free)):
        try:
            block = _free.popleft()
        except IndexError:  # another thread took the last one
            return None
        if size <= len(block) <= 2 * size:
            return block
        _free.append(block)
    return None


def _new(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A fifth of the time, where the kernel has them.
        with contextlib.suppress(OSError):
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_back(block: mmap.mmap) -> None:
    _free.append(block)
    while sum(map(len, list(_free))) > _MOST_KEPT:
        with contextlib.suppress(IndexError):
            _free.popleft()
