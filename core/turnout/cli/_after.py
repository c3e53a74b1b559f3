"""What became of flows: ``turnout report``, ``trace`` and ``compare``, and options of ``turnout run``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .. import events
from ..errors import VisualizationError
from ..history._comparison import as_record, task_lines, whole_lines
from ..history._page import require_libraries, save_report
from ..history._reading import history_of
from ..history._records import History
from ..history._summary import Summary
from ..history._trace import save_trace
from ._output import print_json, print_table
from ._problem import UsageProblem

__all__ = ["compare_runs", "kept", "read_history", "write_report", "write_trace"]

_HOW: Final = "; such files are written by: turnout run --events FILE"


def read_history(path: str) -> History:
    """Return what a file of events tells.

    Raises
    ------
    UsageProblem
        If there is no such file, or it holds something else.
    """
    try:
        history = history_of(events.read(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageProblem(f"{path} can't be read as events: {str(reason).rstrip('.')}{_HOW}") from error
    if not history.flows:
        raise UsageProblem(f"{path} has no events of flows{_HOW}")
    return history


def write_report(path: str, output: str | None) -> None:
    """Write the report on a file of events, and print where it is."""
    _check(output, None)
    target = Path(output or Path(path).with_suffix(".html"))
    _save(read_history(path), report=target)
    print(target)


def write_trace(path: str, output: str | None) -> None:
    """Write the trace of a file of events, and print where it is."""
    target = Path(output or Path(path).with_suffix(".trace.json"))
    _save(read_history(path), trace=target)
    print(target)


def compare_runs(first: str, second: str, *, as_json: bool) -> None:
    """Print two runs side by side."""
    runs = Summary(read_history(first)), Summary(read_history(second))
    if as_json:
        print_json(as_record(*runs))
        return
    print_table(("", first, second, "change"), whole_lines(*runs))
    print()
    names = ("task", "calls", "median", "ran, in all", "waiting, per call", "queued", "sending")
    print_table(names, task_lines(*runs))


@contextlib.contextmanager
def kept(report: str | None, trace: str | None) -> Iterator[None]:
    """Listen to what happens meanwhile, and write it to files in the end, whatever that is.

    Raises
    ------
    UsageProblem
        If that can't be done: before anything has happened.
    """
    _check(report, trace)
    seen: list[events.Event] = []
    try:
        with events.subscribe(seen.extend):
            yield
    finally:
        try:
            _save(history_of(seen), report=report and Path(report), trace=trace and Path(trace))
        except UsageProblem as problem:
            # What became of the flow is more important.
            print(f"turnout: error: {problem}", file=sys.stderr)


def _check(report: str | None, trace: str | None) -> None:
    try:
        if report is not None:
            require_libraries()
    except VisualizationError as error:
        raise UsageProblem(str(error)) from None
    for path in filter(None, (report, trace)):
        if not Path(path).parent.is_dir():
            raise UsageProblem(f"{path} can't be written: there is no folder {Path(path).parent}")


def _save(history: History, *, report: Path | str | None = None, trace: Path | str | None = None) -> None:
    try:
        if report:
            save_report(history, Path(report))
        if trace:
            save_trace(history, Path(trace))
    except (OSError, VisualizationError) as error:
        raise UsageProblem(str(error)) from error
