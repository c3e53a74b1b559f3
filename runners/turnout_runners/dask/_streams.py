"""What bodies write to ``sys.stdout`` and ``sys.stderr`` on a worker, each to those who sent its batch."""

from __future__ import annotations

import contextvars
import io
import sys
import threading
from typing import Any, BinaryIO, Final, Protocol, TextIO

__all__ = ["Writer", "forward_streams", "writer_of_body"]


class Writer(Protocol):
    """Somebody who takes text."""

    def write_text(self, stream: str, text: str) -> None:
        """Take what was written to ``"stdout"`` or ``"stderr"``."""


writer_of_body: Final[contextvars.ContextVar[Writer | None]] = contextvars.ContextVar("writer_of_body", default=None)
"""Who takes what the body writes that runs in this context."""

# Threads that a body starts have no context: what they write goes to the batch that began last.
_writers: Final[list[Writer]] = []
_lock: Final = threading.Lock()


class forward_streams:  # noqa: N801 - used as a function
    """A context in which what is written without a context goes to ``writer``, if no later one is there."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        with _lock:
            for name in ("stdout", "stderr"):
                inherited = getattr(sys, name)
                if inherited is not None and not isinstance(inherited, _Forwarded):
                    # For good: loggers and others keep what they found here.
                    setattr(sys, name, _Forwarded(name, inherited))
            _writers.append(self._writer)

    def __exit__(self, *exc_info: object) -> None:
        with _lock:
            _writers.remove(self._writer)


class _Forwarded(io.TextIOBase):
    """A text stream that hands text to whoever takes it for the batch; what belongs to none goes where it went."""

    def __init__(self, name: str, inherited: TextIO) -> None:
        self._name = name
        self._inherited = inherited

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        writer = self._writer()
        if writer is None:
            return self._inherited.write(text)
        writer.write_text(self._name, text)
        return len(text)

    def flush(self) -> None:
        self._inherited.flush()

    def fileno(self) -> int:
        return self._inherited.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> BinaryIO:
        return self._inherited.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._inherited.encoding

    def _writer(self) -> Writer | None:
        writer = writer_of_body.get()
        if writer is None:
            with _lock:
                return _writers[-1] if _writers else None
        return writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inherited, name)
