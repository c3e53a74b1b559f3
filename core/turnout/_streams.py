"""What a body writes to ``sys.stdout`` and ``sys.stderr`` in a worker, on its way to the driver's."""

from __future__ import annotations

import abc
import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, TextIO

__all__ = ["StandIn", "Streams", "replace_streams"]

_NAMES: Final = ("stdout", "stderr")

Send = Callable[[str, str], None]


class StandIn(io.TextIOBase):
    """A text stream in the place of another one, whose subclass says in ``write`` where text goes.

    Parameters
    ----------
    name
        ``"stdout"`` or ``"stderr"``.
    inherited
        The stream that this one stands for. Its descriptor is what C code and child processes write to, and its
        ``buffer`` takes bytes: neither is forwarded.
    """

    def __init__(self, name: str, inherited: TextIO) -> None:
        self._name = name
        self._inherited = inherited

    @abc.abstractmethod
    def write(self, text: str) -> int:
        """Take text."""

    def flush(self) -> None:
        """Have what was written arrive."""
        self._inherited.flush()

    def fileno(self) -> int:
        """Return the descriptor of the inherited stream."""
        return self._inherited.fileno()

    def isatty(self) -> bool:
        """Return False: what is written here goes elsewhere."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def buffer(self) -> BinaryIO:
        """The inherited stream for bytes."""
        self.flush()
        return self._inherited.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the inherited stream; text is forwarded as text."""
        return self._inherited.encoding

    def __getattr__(self, name: str) -> Any:
        # Some replace these streams themselves, as Ray does, and ask theirs for more than other streams have.
        return getattr(self._inherited, name)


def replace_streams(stand_in: Callable[[str, TextIO], StandIn]) -> list[StandIn]:
    """Put stand-ins in the place of ``sys.stdout`` and ``sys.stderr``: for good, as loggers keep what they find.

    Parameters
    ----------
    stand_in
        Makes one from the name of a stream and the stream. A stream that is missing, or a stand-in, is left alone.

    Returns
    -------
        Those that were made.
    """
    made = []
    for name in _NAMES:
        inherited = getattr(sys, name)
        if inherited is not None and not isinstance(inherited, StandIn):
            made.append(stand_in(name, inherited))
            setattr(sys, name, made[-1])
    return made


class Streams:
    """The standard streams of a process that runs one batch at a time."""

    def __init__(self) -> None:
        self._streams: list[_ForwardedText] = []
        replace_streams(self._forwarded)

    def _forwarded(self, name: str, inherited: TextIO) -> StandIn:
        self._streams.append(_ForwardedText(name, inherited))
        return self._streams[-1]

    @contextlib.contextmanager
    def text_to(self, send: Send) -> Iterator[None]:
        """Have the streams call ``send`` with their name and text meanwhile; else they write what they always did."""
        for stream in self._streams:
            stream.forward_to(send)
        try:
            yield
        finally:
            for stream in self._streams:
                stream.forward_to(None)

    def flush(self) -> None:
        """Pass on the lines that were begun."""
        for stream in self._streams:
            stream.flush()

    def forget(self) -> None:
        """Leave everything to the parent, in a process that was forked from this one."""
        for stream in self._streams:
            stream.forget()


class _ForwardedText(StandIn):
    """Passes whole lines on, while there is somebody to pass them to."""

    def __init__(self, name: str, inherited: TextIO) -> None:
        super().__init__(name, inherited)
        self._text = ""
        # Re-entrant: a destructor may print while its thread is in here.
        self._lock = threading.RLock()
        self._send: Send | None = None

    def forward_to(self, send: Send | None) -> None:
        with self._lock:
            self.flush()
            self._send = send

    def forget(self) -> None:
        self._lock = threading.RLock()
        self._text, self._send = "", None

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
