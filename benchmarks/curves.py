"""Curves: efficiency by the length of tasks, cost and memory by their number. A line for each system."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import growth
from .figures import duration
from .granularity import HALF
from .plot import GRID, INK, PAPER, QUIET, save
from .systems import load
from .workloads import WORKLOADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .measure import Measurement

COLORS = {
    "raw-calls": "#8a949c",
    "raw-threads": "#4f7f3b",
    "raw-processes": "#17708c",
    "raw-dask": "#c2571a",
    "raw-ray": "#6b4c9a",
}
"""By the backend, told by the raw system."""
MARKERS = "osD^vP"
"""For the systems of one backend, in turn."""


class Curve(NamedTuple):
    """The medians of a system, its quartiles around them, and where they stand."""

    system: str
    places: list[float]
    values: list[float]
    low: list[float]
    high: list[float]


def curve_of(system: str, points: Iterable[tuple[float, float]]) -> Curve:
    """Put the values of all rounds together, place by place."""
    by_place: dict[float, list[float]] = defaultdict(list)
    for place, value in points:
        by_place[place].append(value)
    places = sorted(by_place)
    values = [sorted(by_place[place]) for place in places]
    return Curve(
        system,
        places,
        [statistics.median(found) for found in values],
        [found[len(found) // 4] for found in values],
        [found[-1 - len(found) // 4] for found in values],
    )


def by_system(
    measurements: Iterable[Measurement], points: Callable[[Measurement], Iterable[tuple[float, float]]]
) -> list[Curve]:
    """Return the curves of all systems that have one."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in measurements:
        if one.is_good:
            found[one.system] += points(one)
    return [curve_of(system, places) for system, places in found.items() if places]


def draw_efficiency(measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    """Draw efficiency by the length of tasks, a panel for each workload."""
    swept = [one for one in measurements if one.curve]
    workloads = list(dict.fromkeys(one.workload for one in swept))
    figure, panels = make(len(workloads), "Efficiency by the length of a task; METG(50 %) is where a line crosses 0.5")
    for axes, workload in zip(panels, workloads, strict=True):
        draw_lines(axes, by_system([one for one in swept if one.workload == workload], lambda one: one.curve))
        finish(axes, f"{workload}: {WORKLOADS[workload].about}", lambda length: duration(length * 1e6))
        axes.axhline(HALF, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_ylim(0, 1.05)
    return save(figure, folder, "metg")


def draw_growth(measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    """Draw the time for a task and the driver's memory by the number of tasks."""
    figure, (times, memory) = make(2, "Independent no-ops in one flow, by their number")
    draw_lines(times, by_system(measurements, lambda one: [(one.tasks, one.per_task_us)]))
    finish(times, "time for a task", lambda size: f"{size:,.0f}")
    draw_lines(memory, by_system(measurements, lambda one: [(one.tasks, growth.bytes_at_peak(one))]))
    finish(memory, "bytes of the driver's memory for a task, at the peak", lambda size: f"{size:,.0f}")
    scale_values(times, duration)
    scale_values(memory, lambda size: f"{size:,.0f}")
    return save(figure, folder, "growth")


def make(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 * count, 5.5), dpi=120, facecolor=PAPER, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", size=14, color=INK)
    return figure, list(figure.subplots(1, count, squeeze=False).flat)


def draw_lines(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw the medians as lines, and the quartiles as a shade."""
    markers: dict[str, Iterator[str]] = defaultdict(lambda: itertools.cycle(MARKERS))
    for curve in curves:
        color = COLORS[load(curve.system).baseline]
        style, width = style_of(curve.system)
        axes.plot(curve.places, curve.values, style, color=color, linewidth=width, label=curve.system)
        axes.lines[-1].set(marker=next(markers[color]), markersize=4.5)
        axes.fill_between(curve.places, curve.low, curve.high, color=color, alpha=0.12, linewidth=0)


def style_of(system: str) -> tuple[str, float]:
    """Return how a line is drawn: ours solid, and thin if batching is off; others broken, chunks dotted."""
    if system.startswith("turnout"):
        return "-", 1.0 if system.endswith("alone") else 2.4
    return (":" if system.endswith("chunks") else "--"), 1.6


def scale_values(axes: Axes, label: Callable[[float], str]) -> None:
    """Give a panel a logarithmic scale that makes little of small differences."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axes.dataLim.intervaly
    axes.set_yscale("log")
    axes.set_ylim(max(low, 1) / 2, max(high, 10 * low, 1) * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: label(value))
    axes.yaxis.set_minor_locator(NullLocator())


def finish(axes: Axes, title: str, label: Callable[[float], str]) -> None:
    """Give a panel its title, its scale and its legend."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_title(title, loc="left", size=10.5, color=INK, pad=9)
    axes.set_facecolor(PAPER)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_major_formatter(lambda place, _: label(place))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, length=0, labelsize=9, which="both")
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
