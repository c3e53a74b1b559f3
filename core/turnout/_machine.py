"""What this process may use of its machine: processors and memory, as system, control groups and SLURM limit them."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeVar

__all__ = ["Memory", "Processors", "memory", "processors", "usable_memory", "usable_processors"]

Number = TypeVar("Number", int, float)

# Text, not paths: this is imported with the package, and pathlib takes as long to load as a tenth of all the rest.
_CONTROL_GROUPS = "/sys/fs/cgroup"
_OWN_GROUPS = "/proc/self/cgroup"
# Where there is no limit, version 1 of control groups tells one of almost 2**63.
_NO_LIMIT: Final = 2**60
_MEBIBYTE: Final = 2**20


class Processors(NamedTuple):
    """How many processors there are, by who says so; None where nobody does."""

    machine: int
    affinity: int | None
    """Those on which the system lets this process run."""
    cgroup: float | None
    """The quota of the control groups that hold this process, such as those of a container."""
    slurm: int | None
    """What SLURM gives to a task, or to this job on this node."""

    @property
    def usable(self) -> int:
        """How many are worth using, at least 1. A quota of one and a half is worth two."""
        return max(1, math.ceil(min(limit for limit in self if limit is not None)))


class Memory(NamedTuple):
    """How much memory there is, in bytes, by who says so; None where nobody does."""

    machine: int | None
    cgroup: int | None
    """The limit of the control groups that hold this process, for all that is in them."""
    slurm: int | None
    """What SLURM gives to this job on this node."""
    address_space: int | None
    """What a single process may map (``RLIMIT_AS``, ``ulimit -v``)."""

    @property
    def usable(self) -> int | None:
        """How much this process and its workers may use together, or None if nobody says."""
        return _least(self.machine, self.cgroup, self.slurm)


def processors() -> Processors:
    """Return how many processors there are, and who says so.

    Examples
    --------
    >>> processors().usable <= processors().machine
    True
    """
    return Processors(
        machine=os.cpu_count() or 1,
        affinity=_affinity(),
        cgroup=_cgroup_processors(),
        slurm=_least(_told_by_slurm("SLURM_CPUS_PER_TASK"), _told_by_slurm("SLURM_CPUS_ON_NODE")),
    )


def memory() -> Memory:
    """Return how much memory there is, and who says so.

    Examples
    --------
    >>> memory().usable is None or memory().usable > 0
    True
    """
    return Memory(
        machine=_physical_memory(), cgroup=_cgroup_memory(), slurm=_slurm_memory(), address_space=_address_space()
    )


def usable_processors() -> int:
    """Return how many processors this process may use, at least 1: for the default of a runner's number of workers.

    That is the least of what the machine has, the affinity allows, the control groups of a container or job leave, and
    SLURM says in ``SLURM_CPUS_PER_TASK`` or ``SLURM_CPUS_ON_NODE``.

    Examples
    --------
    >>> usable_processors() >= 1
    True
    """
    return processors().usable


def usable_memory() -> int | None:
    """Return how many bytes of memory this process and its workers may use together, or None if nobody says.

    That is the least of what the machine has, the control groups of a container or job allow, and SLURM says in
    ``SLURM_MEM_PER_NODE`` or ``SLURM_MEM_PER_CPU``.

    Examples
    --------
    >>> usable_memory() is None or usable_memory() > 0
    True
    """
    return memory().usable


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _affinity() -> int | None:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return None


# Read once: runners ask for each batch, and limits hardly ever change while a program runs.
@functools.cache
def _cgroup_processors() -> float | None:
    return _strictest("cpu", _quota)


@functools.cache
def _cgroup_memory() -> int | None:
    return _strictest("memory", _memory_limit)


def _strictest(controller: str, limit_of: Callable[[str], Number | None]) -> Number | None:
    """Return the least limit of the control groups that hold this process, or None if there is none."""
    # Absent or in another form on other systems: then there is no limit to be known.
    with contextlib.suppress(OSError, ValueError):
        limits = [limit_of(folder) for folder in _folders(controller)]
        return min((limit for limit in limits if limit is not None), default=None)
    return None


def _folders(controller: str) -> Iterator[str]:
    """Yield the folders of the control groups that hold this process: a group is limited by those above it, too."""
    for line in _text(_OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = _CONTROL_GROUPS
        elif controller in controllers.split(","):
            mount = f"{_CONTROL_GROUPS}/{controller}"
        else:
            continue
        # In a container, the path may be that of the host, which leads nowhere here; its own group is on top then.
        group = path.strip("/")
        while group:
            yield f"{mount}/{group}"
            group = group.rpartition("/")[0]
        yield mount


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        return file.read()


def _quota(group: str) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = _text(f"{group}/cpu.max").split()
        # The quota is "max" where there is none.
        return float(quota) / float(period)
    with contextlib.suppress(OSError, ValueError):
        quota = _text(f"{group}/cpu.cfs_quota_us")
        period = _text(f"{group}/cpu.cfs_period_us")
        return float(quota) / float(period) if float(quota) > 0 else None
    return None


def _memory_limit(group: str) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int(_text(f"{group}/{name}"))
            return limit if limit < _NO_LIMIT else None
    return None


def _told_by_slurm(variable: str) -> int | None:
    """Return the number that a variable of SLURM holds; 0 means all that there is."""
    text = os.environ.get(variable, "")
    return int(text) or None if text.isdecimal() else None


def _slurm_memory() -> int | None:
    of_node, of_processor = _told_by_slurm("SLURM_MEM_PER_NODE"), _told_by_slurm("SLURM_MEM_PER_CPU")
    count = _told_by_slurm("SLURM_CPUS_ON_NODE")
    if of_node is None and of_processor is not None and count is not None:
        of_node = of_processor * count
    return None if of_node is None else of_node * _MEBIBYTE


def _physical_memory() -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return size if size > 0 else None
    return None


def _address_space() -> int | None:
    with contextlib.suppress(ImportError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        return None if limit == resource.RLIM_INFINITY else limit
    return None
