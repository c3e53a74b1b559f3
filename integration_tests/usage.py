"""How much of the machine this process and its workers use, as Linux tells it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnout._sockets import descendants

__all__ = ["Usage", "shared_bytes"]

_PROC: Final = Path("/proc")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """What is used at one moment."""

    threads: int
    processes: int
    descriptors: int
    blocks: int
    """Blocks of memory that Python has given out in this process: each object takes one or two."""
    heap: int
    """Bytes that the C library has given out in this process, to whatever is larger than those; 0 if it can't tell."""
    memory: int
    """Resident bytes of this process. With threads that come and go they creep up for hours while ``heap`` stays."""
    worker_memory: int
    """Resident bytes of all processes below it."""
    worker_descriptors: int

    @classmethod
    def now(cls) -> Usage:
        """Measure, with garbage collected."""
        gc.collect()
        below = descendants(os.getpid())
        return cls(
            threading.active_count(),
            len(below),
            _descriptors(os.getpid()),
            sys.getallocatedblocks(),
            _heap(),
            _resident(os.getpid()),
            sum(map(_resident, below)),
            sum(map(_descriptors, below)),
        )

    def __str__(self) -> str:
        """Tell it in a line."""
        return (
            f"{self.threads} threads, {self.processes} processes, {self.descriptors}+{self.worker_descriptors} "
            f"descriptors, {self.blocks:,} blocks, heap of {self.heap / 1e6:.1f} MB, "
            f"{self.memory / 1e6:.1f}+{self.worker_memory / 1e6:.1f} MB"
        )


def shared_bytes() -> int:
    """Return how many bytes of anonymous shared files this process and those below it hold open or mapped."""
    sizes: dict[int, int] = {}
    for pid in {os.getpid(), *descendants(os.getpid())}:
        # Links of the kernel's own: what is opened by them is the file itself, which has no other name.
        for link in [*(_PROC / str(pid) / "fd").glob("*"), *(_PROC / str(pid) / "map_files").glob("*")]:
            with contextlib.suppress(OSError):
                if "memfd:" in str(link.readlink()):
                    status = link.stat()
                    sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


class _Mallinfo2(ctypes.Structure):
    """What glibc tells since 2.33; see mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    )


def _heap() -> int:
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    # Large blocks have a mapping each.
    return int(info.uordblks + info.hblkhd)


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
    return 0


def _descriptors(pid: int) -> int:
    # A process may end meanwhile. The one that lists this process's is gone by the time they are counted.
    with contextlib.suppress(OSError):
        return len(list((_PROC / str(pid) / "fd").iterdir())) - (pid == os.getpid())
    return 0
