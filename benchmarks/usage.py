"""What a process and those that it started have used. On Linux from /proc; elsewhere only what the platform tells."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PROC = Path("/proc")

COLD = """
import time; began = time.perf_counter()
{imports}
imported = time.perf_counter()
{first}
print({imported!r} % (imported - began, time.perf_counter() - imported))
"""


def descendants() -> list[int]:
    """Return the processes that this one started, and those that they did."""
    parents = {pid: int(fields[1]) for pid, fields in _stats()}
    found = [os.getpid()]
    for parent in found:
        found += [pid for pid, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def cpu_seconds() -> float:
    """Return the processor time of this process and its descendants, those that have ended included."""
    own = os.times()
    seconds = own.user + own.system + own.children_user + own.children_system
    alive = set(descendants())
    return seconds + sum(sum(map(int, fields[11:15])) / TICKS for pid, fields in _stats() if pid in alive)


def memory() -> int:
    """Return how many bytes of memory this process holds now."""
    return int((PROC / "self/statm").read_text().split()[1]) * PAGE


def peak_memory() -> tuple[int, int]:
    """Return how many bytes this process held at most, and the sum of that over its living descendants."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return own, sum(map(_peak, descendants()))


def time_script(imports: str, first: str) -> tuple[float, float]:
    """Run a script of two parts in a fresh interpreter, and return how many seconds each took."""
    script = COLD.format(imports=imports, first=first, imported="[%f, %f]")
    # From the second time on, nothing is left to compile, as where pip has installed it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment).stdout
    imported, result = json.loads(output)
    return imported, result


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each process's stat file, from the state on: its name may hold spaces and brackets."""
    for path in PROC.glob("[0-9]*/stat"):
        try:
            yield int(path.parent.name), path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue


def _peak(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
