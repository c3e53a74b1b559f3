"""What this process holds of the system: threads, processes, files and shared memory, as Linux tells it."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .._sockets import descendants

__all__ = ["Footprint"]

_PROC = Path("/proc")
_LISTED = re.compile(r"/proc/\d+/(fd|stat)")


@dataclass(frozen=True)
class Footprint:
    """What a process holds at one moment, each thing with the number of times it is held."""

    threads: Counter[str]
    processes: Counter[str]
    descriptors: Counter[str]
    memory: Counter[str]

    @classmethod
    def now(cls) -> Footprint:
        """Measure this process."""
        gc.collect()
        return cls(_threads(), _processes(), _descriptors(), _shared_memory())

    def beyond(self, before: Footprint) -> list[str]:
        """Return what is held now and was not before."""
        pairs = (
            (self.threads, before.threads),
            (self.processes, before.processes),
            (self.descriptors, before.descriptors),
            (self.memory, before.memory),
        )
        return sorted(name for after, earlier in pairs for name in (after - earlier).elements())


def _threads() -> Counter[str]:
    # By number: threads of different flows have equal names.
    return Counter(f"thread {thread.name} {thread.native_id}" for thread in threading.enumerate())


def _processes() -> Counter[str]:
    return Counter(f"process {_command(pid)} {pid}" for pid in descendants(os.getpid()))


def _descriptors() -> Counter[str]:
    targets = []
    for path in (_PROC / "self" / "fd").glob("*"):
        # The one that lists the others is gone by now, and so will be that of another thread that lists them.
        with contextlib.suppress(OSError):
            target = str(path.readlink())
            if not _LISTED.fullmatch(target):
                # A connection that replaces another one is not one more.
                targets.append(re.sub(r"(socket):.*", r"\1", f"file {target}"))
    return Counter(targets)


def _shared_memory() -> Counter[str]:
    with contextlib.suppress(OSError):
        lines = (_PROC / "self" / "maps").read_text().splitlines()
        return Counter(
            f"memory {line.split(maxsplit=5)[-1]}" for line in lines if "memfd:" in line or "/dev/shm/" in line
        )
    return Counter()


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
