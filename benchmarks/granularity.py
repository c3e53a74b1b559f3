"""METG(50 %): the shortest task with which half of the ideal speed is kept (Slaughter et al., Task Bench, SC20).

A system runs tasks of a given length, and efficiency is the time that they would take if nothing but them took any,
divided by the time that they took. Long tasks hide what a system does for each; the shorter they are, the less.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

LENGTHS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001, 0.00005, 0.00002, 0.00001)
"""Seconds, the longest first."""

HALF = 0.5
# Below this nothing is left to be found, and each point takes many times its ideal time.
HOPELESS = 0.25
# Fewer tasks for each worker than this show how a run begins and ends, rather than how it goes.
LEAST = 4


class Point(NamedTuple):
    """How efficiently tasks of a length, in seconds, were run."""

    length: float
    efficiency: float


def amount(length: float, workers: int, seconds: float) -> int:
    """Return how many tasks keep all workers busy for so long; the same number for each of them."""
    return workers * max(LEAST, round(seconds / length))


def sweep(
    lengths: Sequence[float], workers: int, seconds: float, run: Callable[[float, int], int]
) -> tuple[int, list[Point]]:
    """Run tasks of each length, and return how many there were in all, and the curve.

    Parameters
    ----------
    lengths
        The longest first: what is below the first hopeless one is left out.
    seconds
        How long each length takes a system that takes no time for itself.
    run
        Is given a length and a number of tasks, and returns how many it has run.
    """
    total = 0
    curve: list[Point] = []
    for length in lengths:
        began = time.perf_counter()
        tasks = run(length, amount(length, workers, seconds))
        wall = time.perf_counter() - began
        total += tasks
        curve.append(Point(length, tasks * length / workers / wall))
        if curve[-1].efficiency < HOPELESS:
            break
    return total, curve


def shortest(curve: Sequence[Point]) -> float:
    """Return METG(50 %) in seconds, between two points by their logarithms.

    Where all points are on one side, it is the end of the curve: ``is_beyond`` tells.
    """
    points = sorted(curve)
    kept = [index for index, point in enumerate(points) if point.efficiency >= HALF]
    if not kept:
        return points[-1].length
    if kept[0] == 0:
        return points[0].length
    below, above = points[kept[0] - 1], points[kept[0]]
    share = (HALF - below.efficiency) / (above.efficiency - below.efficiency)
    return math.exp(math.log(below.length) + share * math.log(above.length / below.length))


def is_beyond(curve: Sequence[Point]) -> str:
    """Return in which direction METG(50 %) is outside of the lengths that were measured, or nothing."""
    if all(point.efficiency < HALF for point in curve):
        return "or longer"
    return "or shorter" if min(curve).efficiency >= HALF else ""
