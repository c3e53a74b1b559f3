"""A program in a terminal: what a user sees on it, and what they type."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pyte

__all__ = ["Terminal", "terminal"]

PATIENCE: Final = 30.0


class Terminal:
    """A process in a terminal of its own.

    Parameters
    ----------
    process
        The process.
    descriptor
        The other end of its terminal.
    columns, lines
        The size of the terminal.
    """

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int, columns: int, lines: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self._is_open = True
        self.bytes = b""
        """All that the process wrote."""

    @property
    def rows(self) -> list[str]:
        """What stands there, above the screen too, without empty lines at the end."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top
        ]
        rows = [row.rstrip() for row in [*above, *self.screen.display]]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def text(self) -> str:
        """What stands there."""
        return "\n".join(self.rows)

    def wait_for(self, is_there: Callable[[str], object]) -> None:
        """Return as soon as the text on the terminal is as somebody wants it."""
        deadline = time.monotonic() + PATIENCE
        while not is_there(self.text):
            left = deadline - time.monotonic()
            if left <= 0 or not self._is_open:
                raise AssertionError(f"it never came; there is:\n{self.text}")
            self._read(left)

    def type(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._descriptor, keys)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the terminal."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def ended(self) -> int:
        """Return the exit status of the process, when it has ended and all it wrote is there."""
        deadline = time.monotonic() + PATIENCE
        while self._is_open and (left := deadline - time.monotonic()) > 0:
            self._read(left)
        return self.process.wait(max(deadline - time.monotonic(), 0.1))

    def _read(self, seconds: float) -> None:
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return
        try:
            data = os.read(self._descriptor, 65_536)
        except OSError:  # nobody has the other end any more
            data = b""
        self._is_open = bool(data)
        self.bytes += data
        self._stream.feed(data)


@contextlib.contextmanager
def terminal(
    *command: str | Path, columns: int = 80, lines: int = 24, environment: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Run a command in a terminal; at the end of the block it is gone, with all that it started."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    unwanted = ("TURNOUT_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTEST_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    process = subprocess.Popen(
        [*_BECOMES_FOREGROUND, *map(str, command)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**clean, "TERM": "xterm-256color", **(environment or {})},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours, columns, lines)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


# The keys for signals reach those whose controlling terminal it is.
_BECOMES_FOREGROUND: Final[Sequence[str]] = (
    sys.executable,
    "-c",
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])",
)
