"""The measurements as a table: medians, quartiles, ratios. Losses are shown like wins."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import granularity
from .figures import Spread, aligned, duration, number, ratio
from .systems import load
from .workloads import GROUPS, WORKLOADS

if TYPE_CHECKING:
    from .measure import Measurement

# The lengths of tasks, in seconds, of which the efficiency is told beside the curve.
TOLD = (0.01, 0.001, 0.0001)


@dataclass(frozen=True)
class Row:
    """All measurements of one system on one workload. ``ratio`` compares with the raw backend, round by round."""

    system: str
    workload: str
    good: list[Measurement]
    error: str = ""
    ratio: Spread | None = None

    @property
    def microseconds(self) -> Spread:
        """What is told: the time for a task, or METG(50 %)."""
        return Spread.of([microseconds(one) for one in self.good])


def microseconds(one: Measurement) -> float:
    """Return the figure of a measurement: the time for a task, or METG(50 %) where there is a curve."""
    return granularity.shortest(one.curve) * 1e6 if one.curve else one.per_task_us


def rows(measurements: Iterable[Measurement]) -> list[Row]:
    """Put the measurements of each workload and system together."""
    grouped: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for one in measurements:
        grouped[one.workload, one.system].append(one)
    return [_row(grouped, workload, system) for workload, system in grouped]


def _row(grouped: Mapping[tuple[str, str], list[Measurement]], workload: str, system: str) -> Row:
    good = [one for one in grouped[workload, system] if one.is_good]
    errors = [one.error for one in grouped[workload, system] if one.error]
    beside = grouped.get((workload, load(system).baseline), ())
    return Row(system, workload, good, errors[0] if errors else "", ratio(good, beside, microseconds))


def text(found: Sequence[Row]) -> str:
    """Return the whole table, a section for each workload."""
    return "\n\n".join(_section(workload, found) for workload in dict.fromkeys(row.workload for row in found))


def _section(workload: str, found: Sequence[Row]) -> str:
    cells = [headings(workload), *(_cells(row) for row in found if row.workload == workload)]
    missing: dict[str, list[str]] = defaultdict(list)
    for system in dict.fromkeys(row.system for row in found):
        if workload in load(system).lacks:
            missing[load(system).lacks[workload]].append(system)
    without = [f"  without {', '.join(systems)}: {reason}" for reason, systems in missing.items()]
    return "\n".join([f"{workload}: {WORKLOADS[workload].about}", *aligned(cells), *without])


def headings(workload: str) -> tuple[str, ...]:
    """Return the names of the columns."""
    figure = "METG us" if workload in GROUPS["metg"] else "us a task"
    return (
        *("system", "tasks", figure, "quartiles", "CPU s", "driver MB", "workers MB"),
        *("x raw", "quartiles", "repeats", "notes"),
    )


def _cells(row: Row) -> tuple[str, ...]:
    if not row.good:
        return (row.system, *[""] * (len(headings(row.workload)) - 2), f"FAILED: {row.error}")
    figure, compared = row.microseconds, row.ratio
    return (
        row.system,
        f"{row.good[0].tasks:,}",
        number(figure.median),
        figure.quartiles,
        f"{_median(row, 'cpu_s'):.2f}",
        f"{_median(row, 'driver_peak') / 1e6:.0f}",
        f"{_median(row, 'workers_peak') / 1e6:.0f}",
        number(compared.median) if compared else "",
        compared.quartiles if compared else "",
        str(len(row.good)),
        notes(row),
    )


def notes(row: Row) -> str:
    """Return what a workload saw besides time, and what went wrong."""
    seen = {name: statistics.median(one.seen[name] for one in row.good) for name in row.good[0].seen}
    parts = []
    if "ideal_s" in seen:
        parts.append(f"{_median(row, 'wall_s') / seen['ideal_s']:.3f} of the ideal time")
    if "bytes_per_waiting_call" in seen:
        again, kept = seen["bytes_per_waiting_call_again"], seen["bytes_kept_per_call"]
        parts.append(f"{seen['bytes_per_waiting_call']:,.0f} bytes a waiting call, {again:,.0f} the second time")
        parts.append(f"{kept:,.0f} bytes and {seen['blocks_kept_per_call']:.3f} blocks kept")
    if "import_s" in seen:
        parts.append(f"import {1000 * seen['import_s']:.0f} ms, first result {1000 * seen['first_s']:.0f} ms")
    parts += _efficiencies(row)
    if row.error:
        parts.append(f"FAILED at times: {row.error}")
    return "; ".join(parts)


def _efficiencies(row: Row) -> Iterable[str]:
    """Yield how efficient tasks of some lengths were, and whether METG is beyond what was measured."""
    for length in TOLD:
        found = [point.efficiency for one in row.good for point in one.curve if point.length == length]
        if found:
            yield f"{statistics.median(found):.2f} at {duration(length * 1e6)}"
    for direction in ("or shorter", "or longer"):
        if rounds := sum(granularity.is_beyond(one.curve) == direction for one in row.good if one.curve):
            yield f"{direction} in {rounds} rounds"


def _median(row: Row, name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in row.good))
