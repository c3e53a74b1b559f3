"""Writes docs/conformance.md: runs the kit on every runner, clusters too, and puts down what came of it.

.venv/bin/python integration_tests/write_conformance.py

Takes about twenty minutes. A run of the tests gives the same reports by the way:

TURNOUT_CONFORM_REPORT=report.jsonl .venv/bin/pytest -p turnout.testing._conform ...
.venv/bin/python integration_tests/write_conformance.py report.jsonl
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from turnout.testing import RunnerConformance
from turnout.testing._conform import REPORT_VARIABLE, Report, Row, read_reports

HERE: Final = Path(__file__).parent
DOCUMENT: Final = HERE.parent / "docs" / "conformance.md"
RUNNERS: Final = {
    "TestSequential": "sequential",
    "TestThread": "thread",
    "TestProcess": "process",
    "TestExecutorThreads": "executor: threads",
    "TestExecutorProcesses": "executor: processes",
    "TestExecutorLoky": "executor: loky",
    "TestExecutorlib": "executor: executorlib",
    "TestThirdParty": "a third party's",
    "TestDaskOwn": "dask: own",
    "TestDaskRemote": "dask: tcp",
    "TestDaskTls": "dask: tls",
    "TestRayOwn": "ray: own",
    "TestRayCluster": "ray: two nodes",
    "TestRayInitialized": "ray: initialized",
    "TestRayClient": "ray: client",
}
HEAD: Final = """# Which runner keeps which promise

Made by `python integration_tests/write_conformance.py` from a run of the conformance kit; not written by hand.

A number counts the behaviours that were tested. "declared" means that the runner says it can't do that, and that the
kit tested what it says instead; the reasons stand below. "-" stands where a part of the kit was not run: clusters that
differ only in how they are reached get the parts that could tell.
"""


def main() -> int:
    """Run what has not been run, write, and return the exit status of the tests."""
    status = 0
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(argument) for argument in sys.argv[1:]]
        if not paths:
            paths = [Path(name) / "report.jsonl"]
            status = run_tests(paths[0])
        for path in paths:
            reports |= read_reports(path)
    named = {runner: reports[owner] for owner, runner in RUNNERS.items() if owner in reports}
    DOCUMENT.write_text(document(named))
    return status


def run_tests(report: Path) -> int:
    """Run the kit on all runners with pytest, and return its exit status."""
    files = ("conformance", "third_party", "conformance_dask", "conformance_ray")
    modules = [str(HERE / f"test_{name}.py") for name in files]
    options = ["-p", "turnout.testing._conform", "--numprocesses", "auto", "--dist", "loadgroup", "-k", "Test"]
    command = [sys.executable, "-m", "pytest", *options, *modules]
    return subprocess.run(command, env={**os.environ, REPORT_VARIABLE: str(report)}, check=False).returncode


def document(reports: Mapping[str, Report]) -> str:
    """Return the page for the reports of some runners, by their names."""
    return "\n".join([HEAD, *table(reports), "", *declarations(reports), *behaviours()]) + "\n"


def table(reports: Mapping[str, Report]) -> Iterator[str]:
    """Yield a table of guarantees and runners."""
    guarantees = sorted({row.guarantee for report in reports.values() for row in report.rows})
    yield "| guarantee | " + " | ".join(reports) + " |"
    yield "|---" * (len(reports) + 1) + "|"
    for guarantee in guarantees:
        cells = [cell([row for row in report.rows if row.guarantee == guarantee]) for report in reports.values()]
        yield f"| {guarantee} | " + " | ".join(cells) + " |"


def cell(rows: list[Row]) -> str:
    """Return what one cell of the table says."""
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in ("passed", "declared", "failed")}
    words = [f"{counts['passed']}"] + [f"{counts[word]} {word}" for word in ("declared", "failed") if counts[word]]
    return ", ".join(words) if rows else "-"


def declarations(reports: Mapping[str, Report]) -> Iterator[str]:
    """Yield what each runner says it can't do."""
    yield "## What runners declare"
    for runner, report in reports.items():
        declared = [row for row in report.rows if row.outcome != "passed"]
        yield f"\n### {runner}\n"
        yield from (f"- {row.guarantee} {row.behaviour}: {row.detail}" for row in declared)
        if not declared:
            yield "Nothing."


def behaviours() -> Iterator[str]:
    """Yield every behaviour of the kit with its promise."""
    yield "\n## The behaviours"
    guarantee = ""
    for name in tests():
        _, current, words = name.split("_", 2)
        if current != guarantee:
            yield f"\n### {current}\n"
            guarantee = current
        promise = (getattr(RunnerConformance, name).__doc__ or "").strip().partition("\n\n")[0]
        yield f"- *{words.replace('_', ' ')}*: {' '.join(promise.split())}"


def tests() -> list[str]:
    """Return the names of the kit's tests, in order of guarantee."""
    return sorted(name for name in dir(RunnerConformance) if name.startswith("test_"))


if __name__ == "__main__":
    sys.exit(main())
