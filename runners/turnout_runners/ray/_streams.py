"""What a task writes to ``sys.stdout`` and ``sys.stderr``, on its way to the driver's."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TextIO

__all__ = ["Streams"]

Send = Callable[[str, str], None]


class Streams:
    """The standard streams of this worker, replaced once and for all by ones that forward while a batch runs."""

    def __init__(self) -> None:
        self._streams: dict[str, _ForwardedText] = {}
        for name in ("stdout", "stderr"):
            stream = _ForwardedText(name, getattr(sys, name))
            self._streams[name] = stream
            setattr(sys, name, stream)

    @contextlib.contextmanager
    def text_to(self, send: Send) -> Iterator[None]:
        """Have the streams call ``send`` with their name and text meanwhile."""
        for stream in self._streams.values():
            stream.forward_to(send)
        try:
            yield
        finally:
            for stream in self._streams.values():
                stream.forward_to(None)

    def flush(self) -> None:
        """Pass on the lines that were begun."""
        for stream in self._streams.values():
            stream.flush()


class _ForwardedText(io.TextIOBase):
    """A text stream that passes whole lines on, while there is somebody to pass them to."""

    def __init__(self, name: str, inherited: TextIO) -> None:
        self._name = name
        self._inherited = inherited
        self._text = ""
        # Re-entrant: a destructor may print while its thread is in here.
        self._lock = threading.RLock()
        self._send: Send | None = None

    def forward_to(self, send: Send | None) -> None:
        with self._lock:
            self.flush()
            self._send = send

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._lock:
            self._text += text
            if "\n" in text:
                lines, end, self._text = self._text.rpartition("\n")
                self._pass_on(lines + end)
        return len(text)

    def flush(self) -> None:
        with self._lock:
            text, self._text = self._text, ""
            if text:
                self._pass_on(text)

    def _pass_on(self, text: str) -> None:
        if self._send is not None:
            self._send(self._name, text)
            return
        self._inherited.write(text)
        self._inherited.flush()

    def fileno(self) -> int:
        return self._inherited.fileno()

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> BinaryIO:
        self.flush()
        return self._inherited.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._inherited.encoding

    def __getattr__(self, name: str) -> Any:
        # Ray asks its own redirected streams for more than other streams have.
        return getattr(self._inherited, name)
