"""What is made of the measurements: the text, and the pictures."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import growth, table, targets
from .measure import Measurement
from .rounds import Plan


def write(measurements: Sequence[Measurement], plans: Sequence[Plan], folder: Path) -> None:
    """Print the text; write it and the pictures."""
    told = text(measurements, plans)
    (folder / "table.txt").write_text(told + "\n")
    print(told)
    if importlib.util.find_spec("matplotlib"):
        for path in pictures(measurements, plans, folder):
            print(f"wrote {path}", file=sys.stderr)
    else:
        print("No picture. To get one: pip install matplotlib", file=sys.stderr)


def text(measurements: Sequence[Measurement], plans: Sequence[Plan]) -> str:
    """Return all tables, the targets at the end."""
    shapes, growing = apart(measurements)
    parts = [table.text(table.rows(shapes))] if shapes else []
    if growing:
        parts.append(growth.text(growing))
    parts.append("\n".join([targets.text(targets.verdicts(measurements)), *lack_of_time(measurements, plans)]))
    return "\n\n".join(parts)


def apart(measurements: Sequence[Measurement]) -> tuple[list[Measurement], list[Measurement]]:
    """Return the measurements that are rows of the table, and those of growth, which are columns of another."""
    return (
        [one for one in measurements if one.workload not in growth.NAMES],
        [one for one in measurements if one.workload in growth.NAMES],
    )


def lack_of_time(measurements: Sequence[Measurement], plans: Sequence[Plan]) -> Iterator[str]:
    """Yield what was planned and never begun, for the time was up."""
    begun = {(one.system, one.workload) for one in measurements}
    left: dict[str, dict[str, None]] = defaultdict(dict)
    for plan in plans:
        for _, workload, system in plan.turns():
            if (system, workload) not in begun:
                left[system][workload] = None
    for system, workloads in left.items():
        yield f"  left out for lack of time: {system} {', '.join(workloads)}"


def pictures(measurements: Sequence[Measurement], plans: Sequence[Plan], folder: Path) -> Iterator[Path]:
    """Draw what there is to be drawn, and yield the paths."""
    from . import curves, plot

    shapes, growing = apart(measurements)
    rows = [row for row in table.rows(shapes) if row.good]
    if rows:
        most = max(len(row.good) for row in rows)
        title = f"Time a task. {plans[0].workers} workers each, medians of up to {most} rounds between their quartiles"
        yield from plot.draw(rows, title, folder)
    if any(one.curve for one in shapes):
        yield from curves.draw_efficiency(shapes, folder)
    if any(one.is_good for one in growing):
        yield from curves.draw_growth(growing, folder)
