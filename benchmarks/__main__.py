"""The command: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from . import growth, report, rounds
from .figures import duration
from .plans import plans
from .systems import LOCAL, SYSTEMS
from .table import microseconds
from .workloads import GROUPS, USUAL, WORKLOADS

if TYPE_CHECKING:
    from .measure import Measurement


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Turnout beside raw backends.")
    known = ", ".join([*USUAL, *GROUPS])
    parser.add_argument("--workloads", help=f"of: {known} (default: all but growth)")
    parser.add_argument("--systems", help=f"of: {', '.join(SYSTEMS)} (default: {', '.join(LOCAL)})")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--n", type=int, help="how much of each workload, instead of its own default")
    parser.add_argument(
        "--largest", type=int, default=max(growth.SIZES), help="how far growth goes (default a million)"
    )
    parser.add_argument("--workers", type=int, default=2, help="threads or processes for each system (default 2)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="less work, an end within two minutes, and by default what tells most about the targets",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results"), help="a folder (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        options.workloads = options.workloads and chosen(options.workloads, WORKLOADS, "workload")
        options.systems = options.systems and chosen(options.systems, SYSTEMS, "system")
    except ValueError as problem:
        parser.error(str(problem))
    return options


def chosen(names: str, known: Mapping[str, object], kind: str) -> list[str]:
    """Return the names in a comma-separated list, groups of workloads spelt out."""
    found = [one for name in names.split(",") for one in (GROUPS.get(name, [name]) if kind == "workload" else [name])]
    for name in found:
        if name not in known:
            raise ValueError(f"no {kind} {name!r}; there are {', '.join(known)}")
    return found


def progress(one: Measurement) -> None:
    """Say what was measured just now."""
    figure = f"METG {duration(microseconds(one))}" if one.curve else f"{duration(one.per_task_us)} a task"
    told = one.error or (f"left out: {one.left_out}" if one.left_out else figure)
    print(f"round {one.repeat + 1}  {one.workload:<12} {one.system:<20} {told}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write and print the results. The exit status is 1 if anything could not be measured."""
    began = time.monotonic()
    options = parse(arguments)
    planned = plans(options)
    options.output.mkdir(parents=True, exist_ok=True)
    measurements = []
    with (options.output / "measurements.jsonl").open("w") as lines:
        for plan in planned:
            for one in rounds.run(plan, began):
                progress(one)
                measurements.append(one)
                print(json.dumps(asdict(one)), file=lines, flush=True)
    report.write(measurements, planned, options.output)
    return int(any(one.error for one in measurements))


if __name__ == "__main__":
    sys.exit(main())
