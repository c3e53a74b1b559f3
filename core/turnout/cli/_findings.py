"""What the doctor has found: that something is well, worth knowing, or to be mended."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Finding", "Level"]

Level = Literal["ok", "note", "problem"]


class Finding(NamedTuple):
    """The outcome of one check."""

    level: Level
    check: str
    """What was looked at, in a word."""
    text: str
    """What was found, in one line, and unless all is well what to do about it."""
