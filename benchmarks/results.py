"""The page of the docs with what was measured: ``python -m benchmarks.results MEASUREMENTS... > docs/results.md``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import indent

from . import growth, targets
from .figures import number
from .measure import Measurement
from .report import apart
from .table import Row, rows
from .workloads import GROUPS, WORKLOADS

# What the names of versions in measurements stand for, beside those of distributions.
PLACES = ("python", "platform")


def page(measurements: Sequence[Measurement]) -> str:
    """Return the page: a table of the shapes, one of the growth, and the targets with what was measured."""
    shapes, growing = apart(measurements)
    parts = [_head(measurements), *_sections(rows(shapes))]
    if growing:
        parts.append(f"## Growth\n\n{indent(growth.text(growing), '    ')}")
    parts.append(f"## Targets\n\n{indent(targets.text(targets.verdicts(measurements)), '    ')}")
    return "\n\n".join(parts) + "\n"


def _head(measurements: Sequence[Measurement]) -> str:
    versions = {name: version for one in measurements for name, version in one.versions.items()}
    software = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name not in PLACES)
    system = versions.get("platform", "").partition("-")[0]
    most = max((one.repeat + 1 for one in measurements), default=0)
    workers = ", ".join(sorted({str(one.workers) for one in measurements}))
    return (
        "# Measured\n\n"
        "By [the benchmarks](../benchmarks/README.md), written down by `python -m benchmarks.results`; a runner and "
        "the backend that it stands on were measured in one run. [Speed](performance.md) tells how it is measured, and "
        "how to read it.\n\n"
        f"{system}, Python {versions.get('python', '')}, {software}; {workers} workers for each "
        f"system, up to {most} rounds in which the systems take turns. Medians, with quartiles in parentheses. Only "
        "ratios mean something on another machine."
    )


def _sections(found: Sequence[Row]) -> Iterator[str]:
    for workload in dict.fromkeys(row.workload for row in found):
        figure = "METG(50 %), us" if workload in GROUPS["metg"] else "us a task"
        yield "\n".join(
            [
                f"## {workload}: {WORKLOADS[workload].about}\n",
                f"| system | tasks | {figure} | CPU s | x raw | rounds |",
                "|---|---|---|---|---|---|",
                *(_line(row) for row in found if row.workload == workload),
            ]
        )


def _line(row: Row) -> str:
    if not row.good:
        return f"| `{row.system}` | | failed: {row.error} | | | |"
    spread, compared = row.microseconds, row.ratio
    cpu = sorted(one.cpu_s for one in row.good)[len(row.good) // 2]
    cells = [
        f"`{row.system}`",
        f"{row.good[0].tasks:,}",
        f"{number(spread.median)} ({spread.quartiles})",
        f"{cpu:.2f}",
        f"{number(compared.median)} ({compared.quartiles})" if compared else "",
        str(len(row.good)),
    ]
    return f"| {' | '.join(cells)} |"


def read(paths: Iterable[str]) -> list[Measurement]:
    """Return the measurements in files of JSON lines."""
    lines = (line for path in paths for line in Path(path).read_text().splitlines())
    return [Measurement.read(json.loads(line)) for line in lines]


if __name__ == "__main__":
    print(page(read(sys.argv[1:])), end="")
