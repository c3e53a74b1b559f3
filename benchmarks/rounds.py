"""Who is measured when: all systems in turn, round after round."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .measure import Measurement
from .systems import load
from .workloads import WORKLOADS

TOP = Path(__file__).parents[1]
SECONDS_FOR_ONE = 300.0


@dataclass(frozen=True)
class Plan:
    """What to measure. ``seconds`` limits the whole: what is not begun by then is left out."""

    systems: Sequence[str]
    workloads: Sequence[str]
    repeats: int
    workers: int
    n: int | None = None
    quick: bool = False
    seconds: float | None = None

    def amount(self, workload: str) -> int:
        """Return how much of a workload to do."""
        if self.n is not None:
            return self.n
        return WORKLOADS[workload].quick if self.quick else WORKLOADS[workload].n


def run(plan: Plan) -> Iterator[Measurement]:
    """Measure, and yield each measurement when it is done."""
    ends = time.monotonic() + (plan.seconds or float("inf"))
    for repeat in range(plan.repeats):
        for workload in plan.workloads:
            for system in plan.systems:
                if workload in load(system).lacks:
                    continue
                if time.monotonic() > ends:
                    return
                yield _measure(plan, system, workload, repeat, min(SECONDS_FOR_ONE, 20 + ends - time.monotonic()))


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
    return Measurement(**{**json.loads(ended.stdout.splitlines()[-1]), "repeat": repeat})
