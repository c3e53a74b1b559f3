"""Events in a file, a line of JSON each: what ``TURNOUT_EVENTS`` and ``turnout run --events`` ask for."""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

from ._event_stream import STREAM
from .errors import EventFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._event_stream import Subscription
    from .events import Event

__all__ = ["FILE"]

_VARIABLE: Final = "TURNOUT_EVENTS"


class _EventFile:
    """The file to which this process writes its events: opened by the first flow, and kept until the process ends."""

    def __init__(self) -> None:
        self.asked = ""
        """The path that the command line gave, if it did."""
        self._path = ""
        self._descriptor = -1
        self._subscription: Subscription | None = None

    def begin(self) -> None:
        """See to it that events are written, if somebody wants that. Called before each flow that no other one calls.

        Raises
        ------
        EventFileError
            If the file can't be written, or another process writes to it.
        """
        path = self.asked or os.environ.get(_VARIABLE, "")
        if path == self._path or STREAM.is_elsewhere:
            return
        self.end()
        if path:
            from .events import subscribe

            self._descriptor = _opened(path.replace("{pid}", str(os.getpid())))
            self._subscription = subscribe(self._write)
        self._path = path

    def end(self) -> None:
        """Write what there is, and close the file."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()
            os.close(self._descriptor)
        self._path = ""

    def _write(self, events: Sequence[Event]) -> None:
        from .events import as_json

        data = memoryview("".join([f"{as_json(event)}\n" for event in events]).encode())
        while data:
            data = data[os.write(self._descriptor, data) :]


def _opened(path: str) -> int:
    """Return the descriptor of a file that is empty, this process's alone, and nobody else's to read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as error:
        raise EventFileError(
            f"Events can't be written to {path!r}: {error.strerror}. "
            f"Give a path in a folder that is there and yours, by {_VARIABLE} or --events."
        ) from error
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            _lock(descriptor, path)
            os.ftruncate(descriptor, 0)
            # It may have been there, and be somebody else's.
            with contextlib.suppress(OSError, AttributeError):  # Windows has it from Python 3.13 on
                os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, path: str) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise EventFileError(
            f"Another process writes its events to {path!r}. Put {{pid}} into the path, for which each process has its "
            f"own number, such as {_VARIABLE}='events-{{pid}}.jsonl'."
        ) from error
    except OSError:
        # A file system without locks.
        return


FILE: Final = _EventFile()
atexit.register(FILE.end)
