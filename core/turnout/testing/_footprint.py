"""What this process holds of the system: threads, processes, files, shared memory and sockets, as Linux tells it."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Footprint", "Socket", "descendants", "listening"]

_PROC = Path("/proc")
_LISTEN = "0A"
_UNCONNECTED = "07"
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


@dataclass(frozen=True)
class Socket:
    """A socket that waits for others to come."""

    kind: str
    address: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.address.startswith("127.") or self.address == "::1"


def descendants(pid: int) -> set[int]:
    """Return the living children of a process, their children, and so on."""
    parents = {child: parent for child, parent, state in _table() if state not in "ZX"}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def listening() -> set[Socket]:
    """Return the TCP and UDP sockets on which this process and its descendants listen."""
    inodes = {inode for pid in {os.getpid(), *descendants(os.getpid())} for inode in _inodes(pid)}
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for address, port, state, inode in _sockets(kind):
            if inode in inodes and state == (_LISTEN if kind.startswith("tcp") else _UNCONNECTED):
                found.add(Socket(kind, address, port))
    return found


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


def _table() -> list[tuple[int, int, str]]:
    """Return number, parent and state of every process."""
    table = []
    for path in _PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of the command, in parentheses, may hold spaces and parentheses itself.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            table.append((int(path.parent.name), int(parent), state))
    return table


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _inodes(pid: int) -> set[str]:
    inodes = set()
    for path in (_PROC / str(pid) / "fd").glob("*"):
        with contextlib.suppress(OSError):
            kind, _, inode = str(path.readlink()).partition(":[")
            if kind == "socket":
                inodes.add(inode.rstrip("]"))
    return inodes


def _sockets(kind: str) -> list[tuple[str, int, str, str]]:
    """Return address, port, state and inode of every socket of a kind."""
    sockets = []
    with contextlib.suppress(OSError):
        for line in (_PROC / "net" / kind).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            sockets.append((_readable(address), int(port, 16), fields[3], fields[9]))
    return sockets


def _readable(address: str) -> str:
    """Return an address of ``/proc/net`` as people write it; there each 32 bits are in the machine's order."""
    import ipaddress
    import sys

    raw = bytes.fromhex(address)
    if sys.byteorder == "little":
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    found = ipaddress.ip_address(raw)
    # IPv4 by way of a socket that takes both.
    return str(getattr(found, "ipv4_mapped", None) or found)
