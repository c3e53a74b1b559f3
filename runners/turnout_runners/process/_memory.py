"""Shared memory that travels as a file descriptor: anonymous files, and private views of them.

A sender writes large buffers into an anonymous file and sends its descriptor; nobody writes to it again. A receiver
maps each buffer privately: the pages are shared until somebody writes to one, so tasks may change what they get, and
nobody else sees it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

__all__ = [
    "LARGE",
    "Descriptor",
    "SharedMapping",
    "fill_standard",
    "new_file",
    "read",
    "shared",
    "shared_part",
    "view",
    "write",
]

LARGE: Final = 16 * 1024
"""From this size on (bytes), a buffer gets pages of its own; smaller ones are copied."""

_STANDARD: Final = (0, 1, 2)
# Python's mmap keeps a duplicate of the descriptor, and can be told not to from 3.13 on.
_UNTRACKED: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
_mappings: weakref.WeakSet[SharedMapping] = weakref.WeakSet()


class Descriptor:
    """A file descriptor that is closed when nobody holds this object any more."""

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        """Return the descriptor's number, or -1 once it is closed."""
        return self.number

    def close(self) -> None:
        """Close the descriptor; twice is fine."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        self.close()


def fill_standard() -> None:
    """Open what of standard input, output and error is closed.

    Else another file would get its number, and C code and programs would write into that what they have to say.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                # The lowest number that is free: this one, since those below it are taken by now.
                os.open(os.devnull, os.O_RDWR)


class SharedMapping(mmap.mmap):
    """A private view of a part of an anonymous file, which can be sent on without a copy while it keeps the file."""

    file: Descriptor | None
    offset: int


def new_file(name: str) -> Descriptor:
    """Return an empty anonymous file that nobody else can open.

    Raises
    ------
    OSError
        If there are no descriptors left, or no room.
    """
    if hasattr(os, "memfd_create"):
        return Descriptor(os.memfd_create(f"turnout-{name}", os.MFD_CLOEXEC))
    import tempfile

    # Made with mode 0600 and unlinked at once: no name is left to open, nor to clean up.
    number, path = tempfile.mkstemp(prefix=f"turnout-{name}-")
    Path(path).unlink()
    return Descriptor(number)


def write(file: Descriptor, offset: int, data: Any) -> None:
    """Write all of ``data`` at ``offset``, however many system calls it takes."""
    rest = memoryview(data).cast("B")
    while rest:
        written = os.pwrite(file.number, rest, offset)
        rest, offset = rest[written:], offset + written


def read(file: Descriptor, offset: int, length: int) -> bytearray:
    """Return a copy of a part of a file.

    Raises
    ------
    EOFError
        If the file ends before it.
    """
    data = bytearray(length)
    rest = memoryview(data)
    while rest:
        count = os.preadv(file.number, [rest], offset)
        if not count:
            raise EOFError(f"shared memory ends at byte {offset}, {len(rest)} bytes too early")
        rest, offset = rest[count:], offset + count
    return data


def view(file: Descriptor, offset: int, length: int, *, forwards: bool) -> memoryview:
    """Return a part of a file as writable memory, whose changes nobody else sees.

    Parameters
    ----------
    forwards
        Keep the descriptor along, so that the part can be sent on without a copy.
    """
    if not _affordable():
        return memoryview(read(file, offset, length))
    mapping = SharedMapping(
        file.number, length, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset, **_UNTRACKED
    )
    mapping.file = file if forwards else None
    mapping.offset = offset
    _mappings.add(mapping)
    return memoryview(mapping)


def _affordable() -> bool:
    """Return whether mappings hold less than half of the descriptors that this process may open.

    The rest is the user's. Raising the limit instead could break code of theirs that calls ``select``.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit == resource.RLIM_INFINITY or 4 * len(_mappings) < limit


def shared(parts: Sequence[memoryview]) -> list[memoryview]:
    """Return copies of buffers, in one file if they are large, which can be sent on without another copy.

    Read-only ones stay read-only.

    Raises
    ------
    OSError
        If there is no room, or no descriptor left.
    """
    large = [part for part in parts if part.nbytes >= LARGE]
    file = new_file("shared")
    offsets = page_aligned([part.nbytes for part in large], 0)
    for part, offset in zip(large, offsets, strict=True):
        write(file, offset, part)
    place = iter(offsets)
    return [
        view(file, next(place), part.nbytes, forwards=True) if part.nbytes >= LARGE else memoryview(bytes(part))
        for part in parts
    ]


def shared_part(buffer: memoryview) -> tuple[Descriptor, int] | None:
    """Return the file and offset behind a buffer that is a whole mapping which can be sent on, or None."""
    owner: Any = buffer
    while type(owner) is memoryview:
        owner = owner.obj
    if type(owner) is not SharedMapping or owner.file is None or len(owner) != buffer.nbytes:
        return None
    return owner.file, owner.offset


def page_aligned(sizes: Sequence[int], start: int) -> list[int]:
    """Return offsets for parts of these sizes, one after the other from ``start`` on, each of which can be mapped."""
    offsets: list[int] = []
    for size in sizes:
        start += -start % mmap.ALLOCATIONGRANULARITY
        offsets.append(start)
        start += size
    return offsets
