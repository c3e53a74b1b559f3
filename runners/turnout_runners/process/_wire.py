"""Messages between driver and worker: small ones through a socket, large ones through shared memory.

A frame is a header and a payload: a table of buffers, the pickled message, its buffers. Frames over 64 KB have their
payload in an anonymous file whose descriptor travels with the header, and a buffer that arrived in such a file goes on
in it, uncopied.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NamedTuple

from . import _memory
from ._memory import Descriptor

__all__ = ["Channel", "Frame", "Message", "Unreadable", "encode"]

# Payload length, number and index of the message, number of buffers, number of descriptors, payload is in the first.
_HEADER: Final = struct.Struct("<QQIIH?")
# Where a part is: in the payload (0) or in which descriptor (from 1), offset, length.
_ROW: Final = struct.Struct("<HQQ")
_INLINE: Final = 64 * 1024
# Linux takes no more than 253 descriptors in one message; what is over is copied.
_DESCRIPTORS: Final = 200
_ROOM: Final = socket.CMSG_SPACE(256 * array.array("i").itemsize)
_CLOSE_ON_EXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Frame(NamedTuple):
    """A message made ready to be sent; its descriptors stay open at least until then."""

    data: bytes
    descriptors: Sequence[Descriptor]


@dataclass(slots=True)
class Message:
    """A message that arrived."""

    number: int
    index: int
    content: Any


class Unreadable(NamedTuple):
    """The content of a message that arrived, but for which there was no memory or no descriptor left."""

    error: Exception


class _Part(NamedTuple):
    """Where a part of a message is."""

    source: int
    offset: int
    length: int


def encode(number: int, index: int, content: object) -> Frame:
    """Make a message ready to be sent.

    Parameters
    ----------
    number, index
        What the message is about. They arrive even where its content can't be read.
    content
        Anything that pickles. Buffers of its parts that are pickled out of band are not copied into the stream.

    Raises
    ------
    OSError, MemoryError
        If there is no room for shared memory, or no descriptor left.
    """
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(content, 5, buffer_callback=buffers.append)
    if not buffers and len(body) <= _INLINE:
        row = _ROW.pack(0, _ROW.size, len(body))
        return Frame(_HEADER.pack(_ROW.size + len(body), number, index, 0, 0, False) + row + body, ())
    return _Packing(body, [buffer.raw() for buffer in buffers]).frame(number, index)


class _Packing:
    """One message on its way into a frame: which of its parts go where."""

    def __init__(self, body: bytes, buffers: Sequence[memoryview]) -> None:
        self._parts: list[memoryview] = [memoryview(body), *buffers]
        self._rows: list[_Part | None] = [None] * len(self._parts)
        self._descriptors: list[Descriptor] = []

    def frame(self, number: int, index: int) -> Frame:
        self._forward()
        small = [i for i, row in enumerate(self._rows) if row is None]
        inline = sum(self._parts[i].nbytes for i in small) + self._table_size <= _INLINE
        large = [] if inline else [i for i in small[1:] if self._parts[i].nbytes >= _memory.LARGE]
        payload = self._payload(small, large)
        if not inline:
            self._share(payload, large)
        header = _HEADER.pack(len(payload), number, index, len(self._rows) - 1, len(self._descriptors), not inline)
        return Frame(header + payload if inline else header, self._descriptors)

    @property
    def _table_size(self) -> int:
        return _ROW.size * len(self._parts)

    def _forward(self) -> None:
        """Leave the parts that are in shared memory already where they are."""
        known: dict[int, int] = {}
        for i, part in enumerate(self._parts):
            shared = _memory.shared_part(part) if part.nbytes >= _memory.LARGE else None
            if shared is None or len(known) >= _DESCRIPTORS:
                continue
            file, offset = shared
            if file.number not in known:
                self._descriptors.append(file)
                known[file.number] = len(self._descriptors)
            self._rows[i] = _Part(known[file.number], offset, part.nbytes)

    def _payload(self, small: Sequence[int], large: Sequence[int]) -> bytes:
        """Give the other parts their places, and return the table with those that don't get pages of their own."""
        apart = set(large)
        together = [i for i in small if i not in apart]
        ends = list(accumulate((self._parts[i].nbytes for i in together), initial=self._table_size))
        for i, offset in zip(together, ends, strict=False):
            self._rows[i] = _Part(0, offset, self._parts[i].nbytes)
        offsets = _memory.page_aligned([self._parts[i].nbytes for i in large], ends[-1])
        for i, offset in zip(large, offsets, strict=True):
            self._rows[i] = _Part(0, offset, self._parts[i].nbytes)
        table = b"".join(_ROW.pack(*row) for row in self._rows if row is not None)
        return b"".join([table, *(self._parts[i] for i in together)])

    def _share(self, payload: bytes, large: Sequence[int]) -> None:
        file = _memory.new_file("message")
        _memory.write(file, 0, payload)
        for i in large:
            row = self._rows[i]
            assert row is not None
            _memory.write(file, row.offset, self._parts[i])
        self._descriptors.insert(0, file)


class Channel:
    """One end of the connection between driver and worker. One thread at a time may use it.

    Parameters
    ----------
    connection
        A connected stream socket, blocking or not.
    forwards
        Keep what is needed to send large buffers on without a copy.
    """

    def __init__(self, connection: socket.socket, *, forwards: bool) -> None:
        self._connection = connection
        self._forwards = forwards
        self._outgoing: deque[Frame] = deque()
        self._incoming = b""
        self._descriptors: deque[Descriptor] = deque()
        self.ended = False
        """Whether the other side is gone: what is sent now is dropped."""

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._connection.fileno()

    @property
    def has_outgoing(self) -> bool:
        """Whether something could not be sent yet."""
        return bool(self._outgoing)

    def send(self, frame: Frame) -> None:
        """Send a frame after all earlier ones; on a socket that doesn't block, as far as there is room."""
        self._outgoing.append(frame)
        self.flush()

    def flush(self) -> None:
        """Send what was left over, as far as there is room."""
        try:
            while self._outgoing:
                self._send_next()
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()
            self.ended = True

    def _send_next(self) -> None:
        data, descriptors = self._outgoing[0]
        if descriptors:
            numbers = array.array("i", [descriptor.number for descriptor in descriptors])
            sent = self._connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        else:
            sent = self._connection.send(data)
        if sent == len(data):
            self._outgoing.popleft()
        else:
            # Descriptors arrive with the first byte: the rest goes without them.
            self._outgoing[0] = Frame(data[sent:], ())

    def receive(self) -> list[Message]:
        """Return the messages that one read completes; none if there is nothing to read, or the other side is gone."""
        return list(self._parsed(self._read() or b""))

    def receive_all(self) -> Iterator[Message]:
        """Yield all messages that can be read without waiting; for sockets that don't block."""
        while data := self._read():
            yield from self._parsed(data)

    def _read(self) -> bytes | None:
        """Return the next bytes, none at the end, None if there are none yet."""
        try:
            data, ancillary, _, _ = self._connection.recvmsg(_INLINE, _ROOM, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return None
        except OSError:
            data, ancillary = b"", []
        self.ended = self.ended or not data
        for _, _, numbers in ancillary:
            self._descriptors.extend(map(Descriptor, _inherited_by_nobody(numbers)))
        return data

    def _parsed(self, data: bytes) -> Iterator[Message]:
        data = self._incoming + data if self._incoming else data
        start, end = 0, len(data)
        while end - start >= _HEADER.size:
            length, number, index, buffers, descriptors, shared = _HEADER.unpack_from(data, start)
            body = start + _HEADER.size
            after = body if shared else body + length
            if after > end:
                break
            start = after
            payload = None if shared else memoryview(data)[body:after]
            yield Message(number, index, self._content(payload, buffers, descriptors))
        self._incoming = data[start:]

    def _content(self, payload: memoryview | None, buffers: int, descriptors: int) -> Any:
        if payload is not None and not buffers:
            return pickle.loads(payload[_ROW.size :])
        # The kernel drops descriptors that the receiver has no number left for: then none of them can be told apart.
        if len(self._descriptors) < descriptors:
            self._descriptors.clear()
            return Unreadable(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        received = [self._descriptors.popleft() for _ in range(descriptors)]
        try:
            return _decode(payload, buffers, received, forwards=self._forwards)
        except (OSError, MemoryError, EOFError, ValueError) as error:
            return Unreadable(error)

    def close(self) -> None:
        """Close the socket and what is under way on it; twice is fine."""
        self.ended = True
        self._outgoing.clear()
        self._descriptors.clear()
        self._connection.close()

    def end(self) -> None:
        """Tell the other side that nothing more will come."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)


def _inherited_by_nobody(numbers: bytes) -> array.array[int]:
    received = array.array("i")
    received.frombytes(numbers[: len(numbers) - len(numbers) % received.itemsize])
    if not _CLOSE_ON_EXEC:
        for number in received:
            os.set_inheritable(number, False)
    return received


def _decode(payload: memoryview | None, buffers: int, descriptors: Sequence[Descriptor], *, forwards: bool) -> Any:
    """Return the message in a payload, or in the first descriptor if there is none."""
    sources: list[memoryview | Descriptor] = [payload, *descriptors] if payload is not None else [*descriptors]
    size = _ROW.size * (buffers + 1)
    table = payload[:size] if payload is not None else _memory.read(descriptors[0], 0, size)
    (source, offset, length), *rows = _ROW.iter_unpack(table)
    # The stream begins on no page of its own, however long it is.
    body = _copy(sources[source], offset, length)
    parts = [_part(sources[source], offset, length, forwards=forwards) for source, offset, length in rows]
    return pickle.loads(body, buffers=parts)


def _part(source: memoryview | Descriptor, offset: int, length: int, *, forwards: bool) -> memoryview | bytearray:
    if isinstance(source, memoryview) or length < _memory.LARGE:
        return _copy(source, offset, length)
    return _memory.view(source, offset, length, forwards=forwards)


def _copy(source: memoryview | Descriptor, offset: int, length: int) -> bytearray:
    # What keeps one part of a payload shall keep no other, and what comes from a socket is read-only.
    if isinstance(source, memoryview):
        return bytearray(source[offset : offset + length])
    return _memory.read(source, offset, length)
