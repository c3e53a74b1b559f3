"""The kit over one runner, in a pytest of its own, and what came of it as rows.

As a pytest plugin (``pytest -p turnout.testing._conform``) this module appends the outcome of every test of the kit to
the file that the environment variable ``TURNOUT_CONFORM_REPORT`` names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from turnout._installed import claimant
from turnout.errors import RunnerOptionError
from turnout.registry import resolve

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from turnout.runner import TaskRunner

__all__ = ["REPORT_VARIABLE", "Report", "Row", "read_reports", "run", "runner_for"]

REPORT_VARIABLE: Final = "TURNOUT_CONFORM_REPORT"
_BEHAVIOUR: Final = re.compile(r"test_([A-Z]\d+)_(\w+)")
_RANK: Final = ("passed", "declared", "failed")
_MODULE: Final = """
from turnout.testing import RunnerConformance
from turnout.testing._conform import runner_for

class TestRunner(RunnerConformance):
    def make_runner(self, slots):
        return runner_for({word!r}, slots)
"""

Outcome = Literal["passed", "declared", "failed"]


class Row(NamedTuple):
    """What came of one behaviour."""

    guarantee: str
    """Such as ``"D3"``."""
    behaviour: str
    """Such as ``"dependent of failed never runs"``."""
    outcome: Outcome
    """``"declared"`` if the runner says that it can't, and what it says instead holds."""
    detail: str
    """What it lacks, or the first line of the failure."""


class Report(NamedTuple):
    """What came of the kit on one runner, a row for each behaviour, in order of guarantee."""

    rows: list[Row]


def run(word: str, select: str | None = None) -> Report:
    """Run the kit on the runner that a word stands for.

    Parameters
    ----------
    word
        As in :func:`turnout.registry.resolve`. Where the runner has an option ``max_workers``, the kit sets it.
    select
        Only tests whose names fit, as in ``pytest -k``.

    Raises
    ------
    RuntimeError
        If pytest could not run the tests; the text is what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="turnout-conform-") as name:
        directory = Path(name)
        report = directory / "report.jsonl"
        done = subprocess.run(
            _command(word, select, directory),
            env=_environment(report),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        reports = read_reports(report)
        if done.returncode not in (0, 1, 5):
            raise RuntimeError(f"pytest ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return next(iter(reports.values()), Report([]))


def runner_for(word: str, slots: int) -> TaskRunner:
    """Return the runner that a word stands for, with a number of slots if it has an option for that.

    Examples
    --------
    >>> runner_for("thread", 2)
    ThreadPoolTaskRunner(max_workers=2)
    >>> runner_for("sequential", 2)
    SequentialTaskRunner()
    """
    try:
        return resolve(f"{word}{_joint(word)}max_workers={slots}")
    except RunnerOptionError:
        return resolve(word)


def _joint(word: str) -> str:
    if "?" in word:
        return "&"
    name, colon, _ = word.partition(":")
    return "," if colon and claimant(name) else "?"


def _command(word: str, select: str | None, directory: Path) -> list[str]:
    module = directory / "test_conform.py"
    module.write_text(_MODULE.format(word=word))
    # A configuration of its own, or pytest would take that of the directory in which the user happens to be.
    configuration = directory / "pytest.ini"
    configuration.write_text("[pytest]\n")
    plugins = ["-p", __name__, "-p", "turnout.testing.plugin", "-p", "no:cacheprovider"]
    options = ["--quiet", "--import-mode=importlib", "-c", str(configuration), "--rootdir", str(directory)]
    chosen = ["-k", select] if select else []
    return [sys.executable, "-m", "pytest", *plugins, *options, *chosen, str(module)]


def _environment(report: Path) -> dict[str, str]:
    # Options of a pytest that runs around this one, such as being a worker of pytest-xdist, are not meant for it.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**inherited, REPORT_VARIABLE: str(report)}


def read_reports(path: Path) -> dict[str, Report]:
    """Return the reports in a file that this plugin wrote, by the name of the test class."""
    lines = path.read_text().splitlines() if path.exists() else []
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for record in map(json.loads, lines):
        behaviours = found.setdefault(record["class"], {})
        row = _row(record)
        # Behaviours of different guarantees may have the same words.
        key = row.guarantee, row.behaviour
        behaviours[key] = _worse(behaviours.get(key, row), row)
    return {name: Report(sorted(behaviours.values())) for name, behaviours in found.items()}


def _row(record: dict[str, Any]) -> Row:
    match = _BEHAVIOUR.match(record["test"])
    guarantee, behaviour = match.groups() if match else ("", record["test"])
    return Row(guarantee, behaviour.replace("_", " "), record["outcome"], record["detail"])


def _worse(left: Row, right: Row) -> Row:
    return max(left, right, key=lambda row: _RANK.index(row.outcome))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append what came of a test, once: when it was called, or when its set-up or tear-down failed."""
    path = os.environ.get(REPORT_VARIABLE)
    # With pytest-xdist the reports come here twice: in the worker, and again in the process that all workers tell.
    if path is None or "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and not report.failed):
        return
    *_, owner, test = report.nodeid.partition("[")[0].split("::")
    if _BEHAVIOUR.match(test):
        record = {"class": owner, "test": test, "outcome": _outcome(report), "detail": _detail(report)}
        with Path(path).open("a") as file:
            file.write(json.dumps(record) + "\n")


def _outcome(report: pytest.TestReport) -> Outcome:
    if report.failed:
        return "failed"
    return "declared" if _declared(report.user_properties) or report.skipped else "passed"


def _detail(report: pytest.TestReport) -> str:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        return str(crash.message if crash else report.longreprtext).partition("\n")[0]
    return "; ".join(dict.fromkeys(_declared(report.user_properties)))


def _declared(properties: Iterable[tuple[str, object]]) -> list[str]:
    return [str(value) for name, value in properties if name == "declared"]
