"""The lower end of a terminal: a picture that is drawn anew, and above it, undisturbed, all that the program writes.

Whatever object a text was written to, as loggers keep theirs, it is to come out above the picture. So it is not the
streams that are replaced, but their ``write``. No mode of the terminal is ever changed, not even the cursor hidden:
however the program ends, the terminal is as it was.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final, TextIO

__all__ = ["Screen"]

# So many lines may come together, and so many in a second, that are written at once. Of more, the rest comes with the
# next picture: one for each line would be slow.
_BURST: Final = 40.0
_LINES_PER_SECOND: Final = 40.0
# No more than this is kept back, in characters.
_MOST_TEXT: Final = 65_536

_screens: Final[weakref.WeakSet[Screen]] = weakref.WeakSet()


class Screen:
    """A picture below what is written to some streams, which all lead to one terminal.

    Parameters
    ----------
    stream
        Where the picture is drawn.
    others
        Other streams that lead to the same terminal.
    """

    def __init__(self, stream: TextIO, others: Sequence[TextIO] = ()) -> None:
        self._stream = stream
        self._write: Callable[[str], object] = stream.write
        # Re-entrant: a destructor may print while its thread is in here.
        self._lock = threading.RLock()
        self._is_drawing = False
        self._is_closed = False
        self._text: list[str] = []
        self._size = 0
        # The line that was begun above the picture. As long as it may go on, it is drawn with it.
        self._begun = ""
        self._picture: Sequence[str] = ()
        # How many lines of the terminal are drawn anew each time.
        self._rows = 0
        self._was_drawn = False
        # How many lines can be written at once, and since when that is so.
        self._credit = _BURST
        self._since = time.monotonic()
        self._replaced = [each for each in dict.fromkeys([stream, *others]) if self._replace(each)]
        _screens.add(self)

    def _replace(self, stream: TextIO) -> bool:
        try:
            vars(stream)["write"] = self.write
        except TypeError:  # it has no attributes of its own
            return False
        return True

    def give_back(self) -> None:
        """Have the streams write by themselves again."""
        for stream in self._replaced:
            vars(stream).pop("write", None)
        self._replaced = []

    def size(self) -> os.terminal_size:
        """Return how wide and high the terminal is, in cells."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return os.terminal_size((80, 24))
        # Some terminals don't know.
        return os.terminal_size((size.columns or 80, size.lines or 24))

    def write(self, text: str) -> int:
        """Write text above the picture: at once, unless much of it comes."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._lock:
            self._text.append(text)
            self._size += len(text)
            if ("\n" in text and self._may_write()) or self._size > _MOST_TEXT:
                self._draw()
        return len(text)

    def _may_write(self) -> bool:
        now = time.monotonic()
        self._credit = min(self._credit + (now - self._since) * _LINES_PER_SECOND, _BURST)
        self._since = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def draw(self, picture: Sequence[str]) -> None:
        """Draw another picture, below the text that is still to be written."""
        with self._lock:
            self._picture = picture
            self._draw()

    def close(self, picture: Sequence[str]) -> None:
        """Draw a last picture, which stays, and have the streams write by themselves again."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                text = "".join([self._begun, *self._text])
                if text and not text.endswith("\n"):
                    text += "\n"
                self._put(f"{self._erasure()}{text}{_lines(picture)}")
            finally:
                self.give_back()

    def _draw(self) -> None:
        if self._is_drawing or self._is_closed:
            return
        self._is_drawing = True
        try:
            text = "".join([self._begun, *self._text])
            self._text.clear()
            self._size = 0
            whole, end, self._begun = text.rpartition("\n")
            picture = [*([_last_of(self._begun, self.size().columns)] if self._begun else []), *self._picture]
            erasure, self._rows = self._erasure(), len(picture)
            self._put(f"{erasure}{whole}{end}{_lines(picture)}")
        finally:
            self._was_drawn = True
            self._is_drawing = False

    def _erasure(self) -> str:
        """Return what moves to where the picture begins, and erases it, with what was typed below."""
        if self._rows:
            return f"\r\x1b[{self._rows}A\x1b[J"
        if self._was_drawn:
            return ""
        # Where the cursor is, nobody knows. From any column but the first, this leads to the next line.
        return " " * (self.size().columns - 1) + "\r\x1b[J"

    def _put(self, text: str) -> None:
        self._write(text)
        self._stream.flush()


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _last_of(line: str, width: int) -> str:
    """Return what can be seen of a line that was begun, such as a bar of somebody else's, so that it is not broken."""
    from rich.text import Text

    text = Text.from_ansi(line.rstrip("\r"))
    text.truncate(max(width - 1, 1))
    return text.plain


def _give_all_back() -> None:
    """Leave the terminal to the parent, in a process that was forked from this one."""
    for screen in list(_screens):
        with contextlib.suppress(Exception):
            screen.give_back()
    _screens.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_give_all_back)
