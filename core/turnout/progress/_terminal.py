"""Progress in a terminal."""

from __future__ import annotations

import os
import sys
from typing import ClassVar, TextIO

from ._counts import Counts
from ._picture import Painter
from ._screen import Screen

__all__ = ["TerminalView", "is_terminal"]


class TerminalView:
    """Draws a picture at the lower end of the terminal to which standard error leads."""

    interval_seconds: ClassVar[float] = 0.1

    def __init__(self) -> None:
        self._painter = Painter(getattr(sys.stderr, "encoding", None))
        self._screen: Screen | None = None

    def show(self, counts: Counts) -> None:
        """Draw how things stand."""
        screen = self._opened()
        screen.draw(self._painter.paint(counts, *screen.size()))

    def end(self, counts: Counts) -> None:
        """Draw how things stand in the end; that stays."""
        screen = self._opened()
        screen.close(self._painter.paint(counts, *screen.size()))

    def give_up(self) -> None:
        """Leave the terminal as it is."""
        if self._screen is not None:
            self._screen.give_back()

    def _opened(self) -> Screen:
        if self._screen is None:
            self._screen = Screen(sys.stderr, _same_terminal(sys.stderr))
        return self._screen


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream leads to a terminal in which lines can be drawn anew."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    except ValueError:  # it is closed
        return False


def _same_terminal(stream: TextIO) -> list[TextIO]:
    """Return the streams of this process beside one that lead to its terminal."""
    others = (sys.stdout, sys.__stdout__, sys.__stderr__)
    return [each for each in others if each is not None and _device(each) == _device(stream) is not None]


def _device(stream: TextIO) -> int | None:
    try:
        number = stream.fileno()
        return os.fstat(number).st_rdev if os.isatty(number) else None
    except (OSError, ValueError, AttributeError):
        return None
