"""The table as a picture: a panel for each workload, a line for each system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .figures import duration, number
from .systems import load
from .table import Row
from .workloads import WORKLOADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID, PAPER = "#1d2b36", "#8a949c", "#e4e6e3", "#fbfaf6"
OURS, RAW = "#17708c", "#b9875a"
COLUMNS = 3


def draw(found: Sequence[Row], title: str, folder: Path) -> list[Path]:
    """Write the picture as PNG and SVG, and return the paths."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    workloads = list(dict.fromkeys(row.workload for row in found if row.good))
    lines = -(-len(workloads) // COLUMNS)
    figure = Figure(
        figsize=(16, 1 + 3.6 * lines), dpi=120, facecolor=PAPER, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1)
    )
    figure.suptitle(title, x=0.01, ha="left", size=14, color=INK)
    panels = figure.subplots(lines, COLUMNS, squeeze=False).flat
    for axes, workload in zip(panels, workloads, strict=False):
        draw_panel(axes, workload, [row for row in found if row.workload == workload and row.good])
    for axes in list(panels)[len(workloads) :]:
        axes.axis("off")
    return save(figure, folder, "benchmarks")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a picture as PNG and SVG, and return the paths."""
    from matplotlib import rc_context

    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with rc_context({"svg.hashsalt": "benchmarks"}):
        for path in paths:
            figure.savefig(path)
    return paths


def draw_panel(axes: Axes, workload: str, rows: Sequence[Row]) -> None:
    """Draw the medians between their quartiles, and write the ratio to the raw backend beside each."""
    axes.set_title(f"{workload}: {WORKLOADS[workload].about}", loc="left", size=10.5, color=INK, pad=9)
    axes.set_facecolor(PAPER)
    for place, row in enumerate(reversed(rows)):
        spread = row.microseconds
        color = OURS if row.system.startswith("turnout") else RAW
        axes.plot(
            [spread.low, spread.high], [place, place], color=color, linewidth=5, alpha=0.35, solid_capstyle="round"
        )
        axes.plot(spread.median, place, "o", color=color, markersize=7)
        ratio = f"   {number(row.ratio.median)} x raw" if row.ratio and load(row.system).baseline != row.system else ""
        label = f"{duration(spread.median)}{ratio}"
        axes.annotate(label, (spread.high, place), (8, 0), textcoords="offset points", va="center", size=9, color=INK)
    axes.set_yticks(range(len(rows)), [row.system for row in reversed(rows)], color=INK, size=9)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    set_scale(axes, min(row.microseconds.low for row in rows), max(row.microseconds.high for row in rows))
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, length=0, labelsize=9, which="both")
    axes.spines[:].set_visible(False)


def set_scale(axes: Axes, low: float, high: float) -> None:
    """Make room for all, and for the writing beside the slowest."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    high = max(high, 4 * low)
    steps = (1.0,) if high > 30 * low else (1.0, 2.0, 5.0)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.5, high * 2 * (high / low) ** 0.5)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda microseconds, _: duration(microseconds)))
    axes.xaxis.set_minor_locator(NullLocator())
