"""What a task writes to ``sys.stdout`` and ``sys.stderr``, on its way to the driver's."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import BinaryIO, TextIO

__all__ = ["ForwardedText"]


class ForwardedText(io.TextIOBase):
    """A text stream that passes whole lines on, while there is somebody to pass them to.

    Parameters
    ----------
    inherited
        The stream that this one stands for. It gets what is written between calls, and its descriptor is what C code
        and child processes write to.
    """

    def __init__(self, inherited: TextIO) -> None:
        self._inherited = inherited
        self._text = ""
        self._lock = threading.RLock()
        self._send: Callable[[str], None] | None = None

    def forward_to(self, send: Callable[[str], None] | None) -> None:
        """Pass text to ``send`` from now on, or to the inherited stream if it is None."""
        with self._lock:
            self.flush()
            self._send = send

    def forget(self) -> None:
        """Leave everything to the parent, in a process that was forked from this one."""
        self._lock = threading.RLock()
        self._text, self._send = "", None

    def write(self, text: str) -> int:
        """Take text; it goes on when its line is complete."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._lock:
            self._text += text
            if "\n" in text:
                lines, end, self._text = self._text.rpartition("\n")
                self._pass_on(lines + end)
        return len(text)

    def flush(self) -> None:
        """Pass on the line that was begun."""
        with self._lock:
            text, self._text = self._text, ""
            if text:
                self._pass_on(text)

    def _pass_on(self, text: str) -> None:
        if self._send is not None:
            self._send(text)
            return
        self._inherited.write(text)
        self._inherited.flush()

    def fileno(self) -> int:
        """Return the descriptor of the inherited stream."""
        return self._inherited.fileno()

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def buffer(self) -> BinaryIO:
        """The inherited stream for bytes: they are not forwarded."""
        self.flush()
        return self._inherited.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the inherited stream; text is forwarded as text."""
        return self._inherited.encoding
