"""The measurements as a table: medians, quartiles, ratios. Losses are shown like wins."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .systems import load
from .workloads import WORKLOADS

if TYPE_CHECKING:
    from .measure import Measurement

HEADINGS = (
    *("system", "tasks", "us a task", "quartiles", "CPU s", "driver MB", "workers MB"),
    *("x raw", "quartiles", "repeats", "notes"),
)


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the quartiles of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Row:
    """All measurements of one system on one workload. ``ratio`` compares with the raw backend, repeat by repeat."""

    system: str
    workload: str
    good: list[Measurement]
    error: str = ""
    ratio: Spread | None = None

    @property
    def per_task_us(self) -> Spread:
        """Microseconds a task."""
        return Spread.of([one.per_task_us for one in self.good])


def rows(measurements: Iterable[Measurement]) -> list[Row]:
    """Put the measurements of each workload and system together."""
    grouped: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for one in measurements:
        grouped[one.workload, one.system].append(one)
    return [_row(grouped, workload, system) for workload, system in grouped]


def _row(grouped: dict[tuple[str, str], list[Measurement]], workload: str, system: str) -> Row:
    good = [one for one in grouped[workload, system] if not one.error]
    errors = [one.error for one in grouped[workload, system] if one.error]
    raw = {one.repeat: one.wall_s for one in grouped.get((workload, load(system).baseline), ()) if not one.error}
    ratios = [one.wall_s / raw[one.repeat] for one in good if one.repeat in raw]
    return Row(system, workload, good, errors[0] if errors else "", Spread.of(ratios) if ratios else None)


def text(found: Sequence[Row]) -> str:
    """Return the whole table, a section for each workload."""
    return "\n\n".join(_section(workload, found) for workload in dict.fromkeys(row.workload for row in found))


def _section(workload: str, found: Sequence[Row]) -> str:
    cells = [HEADINGS, *(_cells(row) for row in found if row.workload == workload)]
    missing: dict[str, list[str]] = defaultdict(list)
    for system in dict.fromkeys(row.system for row in found):
        if workload in load(system).lacks:
            missing[load(system).lacks[workload]].append(system)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(_aligned(cell, width, index) for index, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    notes = [f"without {', '.join(systems)}: {reason}" for reason, systems in missing.items()]
    return "\n".join([f"{workload}: {WORKLOADS[workload].about}", *(f"  {line.rstrip()}" for line in lines + notes)])


def _aligned(cell: str, width: int, index: int) -> str:
    return cell.ljust(width) if index in (0, len(HEADINGS) - 1) else cell.rjust(width)


def _cells(row: Row) -> tuple[str, ...]:
    if not row.good:
        return (row.system, *[""] * (len(HEADINGS) - 2), f"FAILED: {row.error}")
    time, ratio = row.per_task_us, row.ratio
    return (
        row.system,
        f"{row.good[0].tasks:,}",
        number(time.median),
        f"{number(time.low)}-{number(time.high)}",
        f"{_median(row, 'cpu_s'):.2f}",
        f"{_median(row, 'driver_peak') / 1e6:.0f}",
        f"{_median(row, 'workers_peak') / 1e6:.0f}",
        number(ratio.median) if ratio else "",
        f"{number(ratio.low)}-{number(ratio.high)}" if ratio else "",
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
    if row.error:
        parts.append(f"FAILED at times: {row.error}")
    return "; ".join(parts)


def number(value: float) -> str:
    """Return a number with two or three digits that count."""
    for least, digits in ((100, 0), (10, 1), (0.1, 2)):
        if value >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.2g}"


def _median(row: Row, name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in row.good))
