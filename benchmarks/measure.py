"""One measurement, in a fresh interpreter: ``python -m benchmarks.measure SYSTEM WORKLOAD N WORKERS``, a JSON line.

A fresh interpreter for each has no memory peak, no worker, no warm cache and no measured run times left from the one
before, and one that hangs or dies takes no other with it. The interpreters are started in turn, A B C A B C, so a slow
minute of the machine hits all systems alike.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from . import functions, usage
from .granularity import Point
from .systems import load
from .workloads import WORKLOADS

if TYPE_CHECKING:
    from .systems.base import System


@dataclass
class Measurement:
    """What is known of one run of a workload on a system. Times are in seconds, memory is in bytes.

    ``driver_before`` and ``driver_kept`` are what the driver held before the work, and when its results were forgotten.
    """

    system: str
    workload: str
    n: int
    workers: int
    repeat: int = 0
    tasks: int = 0
    wall_s: float = 0.0
    per_task_us: float = 0.0
    cpu_s: float = 0.0
    start_s: float = 0.0
    driver_before: int = 0
    driver_peak: int = 0
    driver_kept: int = 0
    workers_peak: int = 0
    load: float = 0.0
    seen: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    error: str = ""
    left_out: str = ""

    @classmethod
    def read(cls, values: dict[str, Any]) -> Measurement:
        """Return what ``asdict`` and JSON have made a dictionary of."""
        return cls(**{**values, "curve": [Point(*pair) for pair in values["curve"]]})

    @property
    def is_good(self) -> bool:
        """Whether anything was measured."""
        return not self.error and not self.left_out


def measure(system: System, result: Measurement, started: float) -> None:
    """Run the workload on a started system, and write what it took into the result."""
    # Enough work to bring every worker up, with a function that the workloads measure last.
    system.gather([system.submit(functions.sleep, 0.01) for _ in range(4 * system.workers)])
    result.start_s = time.perf_counter() - started
    gc.collect()
    result.driver_before = usage.memory()
    cpu = usage.cpu_seconds()
    began = time.perf_counter()
    done = WORKLOADS[result.workload].body(system, result.n)
    result.wall_s = time.perf_counter() - began
    result.cpu_s = usage.cpu_seconds() - cpu
    result.tasks, result.seen, result.curve = done.tasks, done.seen, done.curve
    result.per_task_us = result.wall_s / done.tasks * 1e6
    peak, result.workers_peak = usage.peak_memory()
    gc.collect()
    result.driver_kept = usage.memory()
    # The kernel counts the two in different ways, and notes a peak some pages late.
    result.driver_peak = max(peak, result.driver_kept)


def versions(system: type[System]) -> dict[str, str]:
    """Return what was measured, and on what."""
    found = {name: importlib.metadata.version(name) for name in system.distributions}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def main(system_name: str, workload: str, n: str, workers: str) -> None:
    """Measure once, and print it."""
    result = Measurement(system_name, workload, int(n), int(workers), load=os.getloadavg()[0])
    kind = load(system_name)
    system = kind(result.workers)
    started = time.perf_counter()
    system.run(lambda: measure(system, result, started))
    result.versions = versions(kind)
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(*sys.argv[1:])
