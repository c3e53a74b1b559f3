"""What is measured: as the command line says, or, in a hurry, what tells most about the targets."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterable

from . import growth
from .rounds import Plan
from .systems import LOCAL, load
from .workloads import USUAL

# Seconds from the start of all. The rest of two minutes is for the measurement that goes on, and for the report.
QUICK_SECONDS = 95.0
QUICK_LOCAL_SECONDS, QUICK_GROWTH_SECONDS = 45.0, 52.0

QUICK_LOCAL = ["turnout-thread", "raw-threads", "turnout-process", "raw-processes"]
QUICK_CLUSTERS = ["turnout-dask", "raw-dask", "raw-dask-chunks", "turnout-ray", "raw-ray"]
QUICK_WORKLOADS = [
    *("fan", "chain", "tree", "stencil", "imbalance", "metg-fan", "sleep-10ms", "queued", "cold", "payload"),
    *("metg-stencil", "sleep-100ms"),
]
QUICK_SIZES = [growth.name(growth.COMPARED), growth.name(1_000_000)]


def plans(options: argparse.Namespace) -> list[Plan]:
    """Return what to measure, one part after the other."""
    if options.quick and not (options.systems or options.workloads or options.n):
        return quick(options.workers, options.repeats)
    workloads = options.workloads or USUAL
    return [
        Plan(
            installed(options.systems or LOCAL),
            [name for name in workloads if growth.NAMES.get(name, 0) <= options.largest],
            options.repeats,
            options.workers,
            options.n,
            options.quick,
            QUICK_SECONDS if options.quick else None,
        )
    ]


def quick(workers: int, repeats: int) -> list[Plan]:
    """Return what to measure in two minutes: as many rounds of the local runners as fit, and one of the clusters.

    A system of a cluster takes five seconds to start and stop, whatever it is to do.
    """
    clusters, shapes = installed(QUICK_CLUSTERS), ["fan", "chain", "tree", "stencil"]
    return [
        Plan(QUICK_LOCAL, QUICK_WORKLOADS, repeats, workers, quick=True, seconds=QUICK_LOCAL_SECONDS),
        Plan(QUICK_LOCAL[:1], QUICK_SIZES, 1, workers, quick=True, seconds=QUICK_GROWTH_SECONDS),
        # Fewer say more of how a run begins than of how it goes.
        Plan(clusters, shapes, 1, workers, n=2_000, quick=True, seconds=QUICK_SECONDS),
    ]


def installed(systems: Iterable[str]) -> list[str]:
    """Leave out, and say so, what is not installed."""
    found = []
    for system in systems:
        missing = [name for name in load(system).distributions if not importlib.util.find_spec(name)]
        if missing:
            print(f"{system} is left out. To get it: pip install {' '.join(missing)}", file=sys.stderr)
        else:
            found.append(system)
    return found
