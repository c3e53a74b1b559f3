"""What a task costs, in time and memory, as there are more of them: up to a million in one flow."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import figures
from .figures import Spread, aligned, number

if TYPE_CHECKING:
    from .measure import Measurement

SIZES = (1_000, 10_000, 100_000, 1_000_000)
# The size with which the largest is compared: at smaller ones a few milliseconds of start still count.
COMPARED = 10_000
# A system that is expected to take longer than this, in seconds, is not asked.
PATIENCE = 150.0


def name(size: int) -> str:
    """Return the name of the workload of a size."""
    return f"growth-{size}"


NAMES = {name(size): size for size in SIZES}


def reason_against(workload: str, before: Measurement | None) -> str:
    """Return why a size should not be run, by what a smaller one took in the same round, or nothing."""
    if workload not in NAMES or before is None or NAMES[before.workload] > NAMES[workload]:
        return ""
    if before.error or before.left_out:
        return before.left_out or f"fewer: {before.error}"
    seconds = before.per_task_us / 1e6 * NAMES[workload]
    return f"would take about {seconds:,.0f} s" if seconds > PATIENCE else ""


def ratio(measurements: Sequence[Measurement], largest: int) -> Spread | None:
    """Compare what a task costs one system at the largest size and at 10,000, round by round."""
    return figures.ratio(at(measurements, largest), at(measurements, COMPARED), lambda one: one.per_task_us)


def bytes_at_peak(one: Measurement) -> float:
    """Return how many bytes the driver needed for each task when it needed most, results included."""
    return max(0, one.driver_peak - one.driver_before) / one.tasks


def text(measurements: Sequence[Measurement]) -> str:
    """Return the table of time and the table of memory."""
    by_system: dict[str, list[Measurement]] = defaultdict(list)
    for one in measurements:
        if one.workload in NAMES:
            by_system[one.system].append(one)
    sizes = sorted({NAMES[one.workload] for ones in by_system.values() for one in ones if one.is_good})
    if not sizes:
        return "growth: nothing could be measured"
    largest = sizes[-1]
    compared = [f"{largest:,} / {COMPARED:,}", "quartiles"]
    times = [["system", *(f"{size:,}" for size in sizes), *compared, "repeats", "notes"]]
    memory = [["system", *(f"{size:,}" for size in sizes), f"bytes a task at {largest:,}"]]
    for system, ones in by_system.items():
        times.append([system, *(_cost(ones, size) for size in sizes), *_compared(ones, largest), *_notes(ones)])
        memory.append([system, *(_memory(ones, size) for size in sizes), _bytes(ones, largest)])
    return "\n".join(
        [
            "growth: independent no-ops, microseconds a task by their number",
            *aligned(times),
            "growth: memory of the driver in MB more than before, at its peak / kept when all results are forgotten",
            *aligned(memory),
        ]
    )


def at(measurements: Sequence[Measurement], size: int) -> list[Measurement]:
    """Return those of a size that went well."""
    return [one for one in measurements if one.workload == name(size) and one.is_good]


def _cost(measurements: Sequence[Measurement], size: int) -> str:
    found = at(measurements, size)
    return number(statistics.median(one.per_task_us for one in found)) if found else "-"


def _compared(measurements: Sequence[Measurement], largest: int) -> tuple[str, str]:
    found = ratio(measurements, largest)
    return (number(found.median), found.quartiles) if found else ("", "")


def _memory(measurements: Sequence[Measurement], size: int) -> str:
    found = at(measurements, size)
    if not found:
        return "-"
    peak = statistics.median(one.driver_peak - one.driver_before for one in found)
    kept = statistics.median(one.driver_kept - one.driver_before for one in found)
    return f"{peak / 1e6:,.1f} / {kept / 1e6:,.1f}"


def _bytes(measurements: Sequence[Measurement], size: int) -> str:
    found = at(measurements, size)
    return f"{statistics.median(map(bytes_at_peak, found)):,.0f}" if found else ""


def _notes(measurements: Sequence[Measurement]) -> tuple[str, str]:
    """Return how many rounds there were, and why sizes are missing."""
    repeats = len({one.repeat for one in measurements if one.is_good})
    missing = {one.workload: one for one in measurements if not one.is_good}
    reasons = [f"{NAMES[workload]:,} " + _reason(one) for workload, one in missing.items()]
    return str(repeats), "; ".join(reasons)


def _reason(one: Measurement) -> str:
    return f"FAILED: {one.error}" if one.error else f"left out: {one.left_out}"
