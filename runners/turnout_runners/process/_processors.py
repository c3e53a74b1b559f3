"""How many processors this process may use: what the scheduler allows, and what a container's quota leaves of it."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["usable_processors"]

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """Return how many processors are worth using, at least 1.

    Examples
    --------
    >>> usable_processors() >= 1
    True
    """
    quotas = [math.ceil(quota) for quota in _quotas()]
    return max(1, min([_scheduled(), *quotas]))


def _scheduled() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Yield the limits, in processors, of the control groups that hold this process."""
    # Absent or in another form on other systems: then there is no limit to be known.
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _quotas_above(_CONTROL_GROUPS / path.lstrip("/"))
            elif "cpu" in controllers.split(","):
                yield from _old_quota(_CONTROL_GROUPS / "cpu")


def _quotas_above(group: Path) -> Iterator[float]:
    for directory in (group, *group.parents):
        if not directory.is_relative_to(_CONTROL_GROUPS):
            return
        with contextlib.suppress(OSError, ValueError):
            quota, period = (directory / "cpu.max").read_text().split()
            # The quota is "max" where there is none.
            yield float(quota) / float(period)


def _old_quota(group: Path) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError):
        quota = float((group / "cpu.cfs_quota_us").read_text())
        if quota > 0:
            yield quota / float((group / "cpu.cfs_period_us").read_text())
