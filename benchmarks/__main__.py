"""The command: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from . import plot, rounds, table
from .systems import LOCAL, SYSTEMS, load
from .workloads import GROUPS, WORKLOADS

if TYPE_CHECKING:
    from .measure import Measurement

QUICK_SECONDS = 90.0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Turnout beside raw backends.")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help=f"of: {', '.join([*WORKLOADS, *GROUPS])}")
    parser.add_argument("--systems", default=",".join(LOCAL), help=f"of: {', '.join(SYSTEMS)}")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--n", type=int, help="how much of each workload, instead of its own default")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes for each system (default 2)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, and an end within two minutes")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results"), help="a folder (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        options.workloads = chosen(options.workloads, WORKLOADS, "workload")
        options.systems = chosen(options.systems, SYSTEMS, "system")
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


def installed(systems: Iterable[str]) -> list[str]:
    """Leave out, and say so, what is not installed."""
    found = []
    for system in systems:
        missing = [name for name in load(system).distributions if not importlib.util.find_spec(name)]
        if missing:
            print(f"{system} is left out. To get it: pip install {' '.join(missing)}", file=sys.stderr)
        else:
            found.append(system)
    return found


def progress(one: Measurement) -> None:
    """Say what was measured just now."""
    figure = one.error or f"{table.number(one.per_task_us)} us a task"
    print(f"round {one.repeat + 1}  {one.workload:<12} {one.system:<20} {figure}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write and print the results. The exit status is 1 if anything could not be measured."""
    options = parse(arguments)
    plan = rounds.Plan(
        installed(options.systems),
        options.workloads,
        options.repeats,
        options.workers,
        options.n,
        options.quick,
        QUICK_SECONDS if options.quick else None,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    measurements = []
    with (options.output / "measurements.jsonl").open("w") as lines:
        for one in rounds.run(plan):
            progress(one)
            measurements.append(one)
            print(json.dumps(asdict(one)), file=lines, flush=True)
    report(measurements, plan, options.output)
    return int(any(one.error for one in measurements))


def report(measurements: Sequence[Measurement], plan: rounds.Plan, folder: Path) -> None:
    """Print the table; write it and the picture."""
    found = table.rows(measurements)
    text = table.text(found)
    (folder / "table.txt").write_text(text + "\n")
    print(text)
    if importlib.util.find_spec("matplotlib"):
        title = f"Time a task. {plan.workers} workers each, medians of {plan.repeats} rounds between their quartiles"
        for path in plot.draw(found, title, folder):
            print(f"wrote {path}", file=sys.stderr)
    else:
        print("No picture. To get one: pip install matplotlib", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
