"""What Turnout's runners are to reach with their default settings, beside what was measured.

Most targets are ratios to another system in the same round, for only those mean the same on every machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import growth
from .figures import Spread, aligned, number, ratio
from .measure import Measurement
from .systems import load
from .table import microseconds

SHAPES = ("fan", "chain", "tree", "stencil")
LONG = ("sleep-10ms", "sleep-100ms", "imbalance")
RUNNERS = ("turnout-thread", "turnout-process", "turnout-dask", "turnout-ray")
EXECUTORS = ("turnout-executor", "turnout-executor-processes")

Figure = Callable[[Measurement], float]
Series = tuple[str, str]
"""A system and a workload."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of one system on one workload, or its ratio to that of another series, and the most that it may be."""

    system: str
    workload: str
    about: str
    at_most: float
    figure: Figure
    beside: Series | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured; None if the system failed each time."""

    target: Target
    measured: Spread | None

    @property
    def is_met(self) -> bool:
        """Whether the median is no more than the target."""
        return self.measured is not None and self.measured.median <= self.target.at_most


def times(system: str, workloads: Iterable[str], at_most: float, other: str) -> Iterator[Target]:
    """Yield targets for the time, as a share of what another system takes for the same."""
    for workload in workloads:
        yield Target(system, workload, f"x the time of {other}", at_most, microseconds, (other, workload))


def absolute(system: str, workloads: Iterable[str], at_most: float, about: str = "us a task") -> Iterator[Target]:
    """Yield targets for the time itself."""
    for workload in workloads:
        yield Target(system, workload, about, at_most, microseconds)


def seen(name: str, scale: float = 1.0) -> Figure:
    """Return what looks up something that a workload saw."""
    return lambda one: one.seen[name] * scale


def short_tasks() -> Iterator[Target]:
    """Yield the targets for tasks that do nothing."""
    yield from times("turnout-thread", ("fan", "tree", "stencil"), 0.5, "raw-threads")
    yield from times("turnout-thread", ("chain",), 0.25, "raw-threads")
    yield from absolute("turnout-process", SHAPES, 20)
    yield from times("turnout-process", SHAPES, 0.15, "raw-processes")
    yield from absolute("turnout-dask", SHAPES, 25)
    yield from times("turnout-dask", SHAPES, 0.02, "raw-dask")
    yield from times("turnout-dask", ("fan", "map"), 1.0, "raw-dask-chunks")
    yield from absolute("turnout-ray", SHAPES, 25)
    yield from times("turnout-ray", SHAPES, 0.04, "raw-ray")


def longer_tasks() -> Iterator[Target]:
    """Yield the targets for tasks that batches can't help, and must not harm; and for the length where that begins."""
    for system in (*RUNNERS, *EXECUTORS):
        yield from times(system, LONG, 1.03, load(system).baseline)
    for system, at_most in (("turnout-process", 50), ("turnout-dask", 150), ("turnout-ray", 150)):
        yield from absolute(system, ("metg-fan", "metg-stencil"), at_most, "METG(50 %), us")


def memory_and_growth() -> Iterator[Target]:
    """Yield the targets for large arrays, and for many tasks."""
    yield from times("turnout-process", ("payload",), 1.5, "turnout-thread")
    yield from times("turnout-dask", ("payload",), 1.1, "raw-dask")
    yield from times("turnout-ray", ("payload",), 1.1, "raw-ray")
    million = growth.name(1_000_000)
    for system in RUNNERS:
        fewer = (system, growth.name(growth.COMPARED))
        yield Target(system, million, f"x a task's time at {growth.COMPARED:,}", 1.2, microseconds, fewer)
        yield Target(system, million, "bytes a task at the peak", 1024, growth.bytes_at_peak)
    yield Target("turnout-thread", "queued", "bytes a waiting call", 1024, seen("bytes_per_waiting_call"))


def starts() -> Iterator[Target]:
    """Yield the targets for the first moments."""
    yield Target("turnout-thread", "cold", "ms to import", 60, seen("import_s", 1000))
    yield Target("turnout-thread", "cold", "ms to the first result", 5, seen("first_s", 1000))
    yield Target("turnout-process", "cold", "ms to the first result", 150, seen("first_s", 1000))


TARGETS = (*short_tasks(), *longer_tasks(), *memory_and_growth(), *starts())


def verdicts(measurements: Iterable[Measurement], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """Judge those targets that can be: something was measured, on both sides of a ratio, or the system failed."""
    series: dict[Series, list[Measurement]] = defaultdict(list)
    for one in measurements:
        if not one.left_out:
            series[one.system, one.workload].append(one)
    found = [
        Verdict(target, measured(target, series)) for target in targets if (target.system, target.workload) in series
    ]
    return [one for one in found if one.measured or not any(ours.is_good for ours in series[_series(one.target)])]


def measured(target: Target, series: Mapping[Series, Sequence[Measurement]]) -> Spread | None:
    """Return the figure to compare with the target, if any round gave one."""
    ones = series[_series(target)]
    if target.beside is not None:
        return ratio(ones, series.get(target.beside, ()), target.figure)
    good = [target.figure(one) for one in ones if one.is_good]
    return Spread.of(good) if good else None


def text(found: Sequence[Verdict], targets: Sequence[Target] = TARGETS) -> str:
    """Return the table of targets, and the names of those that were not measured."""
    lines = [("system", "workload", "", "at most", "measured", "quartiles", ""), *map(_cells, found)]
    met = sum(verdict.is_met for verdict in found)
    judged = [verdict.target for verdict in found]
    rest: dict[str, dict[str, None]] = defaultdict(dict)
    for target in targets:
        if target not in judged:
            rest[target.system][target.workload] = None
    return "\n".join(
        [
            f"targets: {met} of {len(found)} met, {len(found) - met} missed",
            *(aligned(lines, words=(0, 1, 2, -1)) if found else ()),
            *(f"  not measured: {system} {', '.join(workloads)}" for system, workloads in rest.items()),
        ]
    )


def _cells(verdict: Verdict) -> tuple[str, ...]:
    target, spread = verdict.target, verdict.measured
    start = (target.system, target.workload, target.about, _exact(target.at_most))
    if spread is None:
        return (*start, "-", "", "MISSED: failed each time")
    quartiles = f"{_exact(spread.low)}-{_exact(spread.high)}"
    return (*start, _exact(spread.median), quartiles, "met" if verdict.is_met else "MISSED")


def _exact(value: float) -> str:
    """Return a number with more digits near 1, where little decides."""
    return f"{value:.3f}" if 0.5 <= value < 2 else number(value)


def _series(target: Target) -> Series:
    return target.system, target.workload
