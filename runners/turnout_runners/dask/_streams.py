"""What bodies write to ``sys.stdout`` and ``sys.stderr`` on a worker, each to those who sent its batch."""

from __future__ import annotations

import contextvars
import threading
from typing import Final, Protocol

from turnout._streams import StandIn, replace_streams

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
            replace_streams(_Forwarded)
            _writers.append(self._writer)

    def __exit__(self, *exc_info: object) -> None:
        with _lock:
            _writers.remove(self._writer)


class _Forwarded(StandIn):
    """Hands text to whoever takes it for the batch; what belongs to none goes where it went."""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        writer = _writer()
        if writer is None:
            return self._inherited.write(text)
        writer.write_text(self._name, text)
        return len(text)


def _writer() -> Writer | None:
    writer = writer_of_body.get()
    if writer is None:
        with _lock:
            return _writers[-1] if _writers else None
    return writer
