"""News on disk until they are surely sent, so that a worker that dies takes none of them along.

A worker has a few milliseconds of news that wait to be sent. If a body ends its process then, nobody would know that it
had begun, nor what the one before it returned. So on the driver's machine each message is written to a file before it
is sent; what is written outlives the process, and the driver reads it when the worker is gone.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

__all__ = ["Journal", "entries", "journal_path"]

_LENGTH: Final = struct.Struct("<I")
_ROOM: Final = 256 * 1024


def journal_path(directory: str, worker: str) -> Path:
    """Return where the journal of the worker with this address is; its port tells it from others of the machine."""
    return Path(directory) / worker.rpartition(":")[2].strip("/")


def entries(path: Path) -> Iterator[bytes]:
    """Yield the messages in a journal whose worker is gone; the last one may have been cut short."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    position = 0
    while position + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            return
        yield data[position : position + length]
        position += length


class Journal:
    """The journal that a worker writes, one thread at a time.

    Parameters
    ----------
    path
        The file. Whoever reads it removes it.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = 0

    def write(self, message: bytes) -> None:
        """Add a message; once this returns, it is there whatever becomes of this process."""
        with contextlib.suppress(OSError):
            # A full disk makes crashes less clear, and no call fail.
            self._size += os.write(self._descriptor, _LENGTH.pack(len(message)) + message)

    def restart(self, unsent: Iterable[bytes]) -> None:
        """Forget all messages but those that have not been sent, if there are many."""
        if self._size > _ROOM:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            self._size = 0
            for message in unsent:
                self.write(message)
