"""What an examination tells whoever has started it: a line of JSON for each step, finding and measurement."""

from __future__ import annotations

import json
import logging
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from ._problem import one_line

if TYPE_CHECKING:
    from .. import FutureList
    from ._findings import Level

__all__ = ["Late", "Report", "note_logs", "note_warnings"]

R = TypeVar("R")


class Late(Exception):
    """The time of a step is over."""


class Report:
    """Tells what is done, found and measured, from any thread.

    Parameters
    ----------
    stream
        Where to.
    seconds
        How long each step may take.
    """

    def __init__(self, stream: TextIO, seconds: float) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._step = ""
        self._deadline = 0.0
        self.seconds = seconds

    def begin(self, step: str) -> None:
        """Begin a step, which has its own time."""
        self._step = step
        self._deadline = time.monotonic() + self.seconds
        self._send({"step": step})

    def find(self, level: Level, text: str) -> None:
        """Tell a finding of this step."""
        self._send({"finding": [level, self._step, one_line(text)]})

    def measure(self, **measured: Any) -> None:
        """Tell what was measured."""
        self._send({"measured": measured})

    def values(self, futures: FutureList[R]) -> list[R]:
        """Return the values of futures, or give those up that are not there when the time of this step is over.

        Raises
        ------
        Late
            Then.
        Exception
            What the first of the calls raised that failed.
        """
        if not futures.wait(max(0.0, self._deadline - time.monotonic())):
            for future in futures:
                future.cancel()
            raise Late
        # Looks at each of them: what nobody has looked at would be an error once more when the runner is stopped.
        error = next(filter(None, [future.exception() for future in futures]), None)
        if error is not None:
            raise error
        return futures.result()

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            print(json.dumps(message), file=self._stream, flush=True)


def note_warnings(report: Report) -> None:
    """Have warnings of Python's be notes."""

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        report.find("note", str(message))

    warnings.showwarning = show


def note_logs(report: Report) -> None:
    """Have warnings in Turnout's log be notes, and errors problems."""
    logging.getLogger("turnout").addHandler(_LogNotes(report))


class _LogNotes(logging.Handler):
    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        because = f" ({type(error).__name__}: {error})" if error else ""
        self._report.find("problem" if record.levelno >= logging.ERROR else "note", record.getMessage() + because)
