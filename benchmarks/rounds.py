"""Who is measured when: all systems in turn, round after round."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import growth
from .measure import Measurement
from .systems import load
from .workloads import WORKLOADS

TOP = Path(__file__).parents[1]
SECONDS_FOR_ONE = 300.0
# How long one that has begun may go on when the time for all is up.
GRACE = 15.0


@dataclass(frozen=True)
class Plan:
    """What to measure. What is not begun so many ``seconds`` after the start of the whole is left out."""

    systems: Sequence[str]
    workloads: Sequence[str]
    repeats: int
    workers: int
    n: int | None = None
    quick: bool = False
    seconds: float | None = None

    def turns(self) -> Iterator[tuple[int, str, str]]:
        """Yield round, workload and system, in the order in which they are measured."""
        for repeat in range(self.repeats):
            for workload in self.workloads:
                for system in self.systems:
                    if workload not in load(system).lacks:
                        yield repeat, workload, system

    def amount(self, workload: str) -> int:
        """Return how much of a workload to do."""
        if self.n is not None:
            return self.n
        return WORKLOADS[workload].quick if self.quick else WORKLOADS[workload].n


def run(plan: Plan, began: float) -> Iterator[Measurement]:
    """Measure, and yield each measurement when it is done; ``began`` is when the whole did, by ``time.monotonic``."""
    ends = began + (plan.seconds or float("inf"))
    smaller: dict[tuple[int, str], Measurement] = {}
    for repeat, workload, system in plan.turns():
        left = ends - time.monotonic()
        if left < 0:
            return
        if reason := growth.reason_against(workload, smaller.get((repeat, system))):
            one = Measurement(system, workload, plan.amount(workload), plan.workers, repeat, left_out=reason)
        else:
            one = _measure(plan, system, workload, repeat, min(SECONDS_FOR_ONE, GRACE + left))
        if workload in growth.NAMES:
            smaller[repeat, system] = one
        yield one


def _measure(plan: Plan, system: str, workload: str, repeat: int, seconds: float) -> Measurement:
    n = plan.amount(workload)
    command = [sys.executable, "-m", "benchmarks.measure", system, workload, str(n), str(plan.workers)]
    try:
        ended = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Measurement(system, workload, n, plan.workers, repeat, error=f"not done after {seconds:.0f} s")
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        return Measurement(system, workload, n, plan.workers, repeat, error=f"exit {ended.returncode}: {reason}")
    return Measurement.read({**json.loads(ended.stdout.splitlines()[-1]), "repeat": repeat})
