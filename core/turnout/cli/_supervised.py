"""The examination of a runner in a process of its own: a backend may hang, or take its process along."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final, NamedTuple

from .._sockets import descendants
from ._findings import Finding

__all__ = ["PATIENCE", "Examined", "examined", "kill_all_of"]

# With the path of this process, so that the same word leads to the same runner.
_MAIN: Final = """
import json, sys
told = json.loads(sys.stdin.readline())
sys.path[:] = told.pop("path")
from turnout.cli._examination import main
main(**told)
"""
# How much longer than a step may take it is waited for, in seconds: the examination has a clock of its own, and before
# the first step an interpreter has to start.
_MARGIN: Final = 5.0
_LONGEST_WORDS: Final = 500
# What to say if a step takes too long, and what to do then.
_REMEDIES: Final = {
    "start": (
        "The runner did not come up",
        "Check its settings, and that what listens at its address is what it takes it for",
    ),
    "stop": ("The runner did not stop", "See what holds the backend up"),
}

PATIENCE: Final = 6.0
"""How long the process gets to end when it is told to, in seconds; a flow takes up to three."""


class Examined(NamedTuple):
    """What came of an examination."""

    measured: dict[str, Any]
    findings: list[Finding]


def examined(word: str, libraries: Sequence[str], seconds: float) -> Examined:
    """Have a runner started, called and measured in another process.

    Parameters
    ----------
    word
        What the user has typed.
    libraries
        Distributions whose versions should be the same for driver and workers.
    seconds
        How long each step may take.
    """
    found = Examined({}, [])
    step = "start"
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        try:
            with _started(words, word=word, libraries=[*libraries], seconds=seconds, path=sys.path) as process:
                for message in _messages(process, seconds + _MARGIN):
                    step = message.get("step", step)
                    found.measured.update(message.get("measured", {}))
                    if "finding" in message:
                        found.findings.append(Finding(*message["finding"]))
        except TimeoutError:
            found.findings.append(Finding("problem", step, _lateness(step, seconds)))
        else:
            if step != "end":
                found.findings.append(Finding("problem", step, _death(process.returncode, words, word)))
    return found


@contextlib.contextmanager
def _started(words: IO[str], **told: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the process; at the end of the block it is gone."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _MAIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=words,
        text=True,
        # Ctrl-C at a terminal is for this process, which passes it on once.
        process_group=0,
    )
    assert process.stdin, "it is a pipe"
    # The process ends when this pipe does, if not before.
    with process.stdin:
        try:
            # If it is gone already, it is found out below of what.
            with contextlib.suppress(BrokenPipeError):
                os.write(process.stdin.fileno(), json.dumps(told).encode() + b"\n")
            yield process
        except BaseException:
            process.terminate()
            raise
        finally:
            _outlive(process)


def _messages(process: subprocess.Popen[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what the process tells, until it has come to its end.

    Raises
    ------
    TimeoutError
        If it tells nothing for so many seconds.
    """
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), name="turnout-doctor-reader", daemon=True).start()
    message: dict[str, Any] = {}
    while message.get("step") != "end":
        try:
            line = lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            return
        # An interpreter may be made to print something as it starts.
        if line.startswith("{"):
            message = json.loads(line)
            yield message


def _read(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    # Closed here: who closes it in another thread waits for this one, and so for whoever else has the pipe.
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def _outlive(process: subprocess.Popen[str]) -> None:
    """Wait for the end of the process; if it takes long, end it and all that it started."""
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        kill_all_of(process.pid)
        process.wait()


def kill_all_of(pid: int) -> None:
    """Kill a process, and all that it started."""
    # The process last, which may be this one.
    for each in (*descendants(pid), pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)


def _lateness(step: str, seconds: float) -> str:
    what, remedy = _REMEDIES.get(step, ("Nothing came of it", "See what keeps the backend busy"))
    return (
        f"{what} within {seconds:g} s, and its process was ended. {remedy}; if it only takes long, give it more time "
        "with --timeout."
    )


def _death(status: int, words: IO[str], word: str) -> str:
    words.seek(0)
    last = [line.strip() for line in words if line.strip()][-1:]
    said = f" It said last: {last[0][:_LONGEST_WORDS]!r}." if last else ""
    how = f"was ended by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
    remedy = f"A flow shows more: turnout run FILE.py:FLOW --runner {shlex.quote(word)}"
    return f"The process that tried it {how}.{said} {remedy}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
