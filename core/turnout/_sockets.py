"""Who can reach this process and those that it started: the sockets on which they listen, as Linux tells it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Socket", "can_be_listed", "descendants", "listening"]

_PROC: Final = Path("/proc")
_LISTEN: Final = "0A"
_UNCONNECTED: Final = "07"


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket that waits for others to come."""

    kind: str
    """``"tcp"``, ``"tcp6"``, ``"udp"`` or ``"udp6"``."""
    address: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.address).is_loopback

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.kind.removesuffix('6')} {host}:{self.port}"


def can_be_listed() -> bool:
    """Return whether this system tells of processes and sockets. Elsewhere the lists below are empty."""
    return (_PROC / "net" / "tcp").exists()


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


def _table() -> list[tuple[int, int, str]]:
    """Return number, parent and state of every process."""
    table = []
    for path in _PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of the command, in parentheses, may hold spaces and parentheses itself.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            table.append((int(path.parent.name), int(parent), state))
    return table


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
    raw = bytes.fromhex(address)
    if sys.byteorder == "little":
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    found = ipaddress.ip_address(raw)
    # IPv4 by way of a socket that takes both.
    return str(getattr(found, "ipv4_mapped", None) or found)
