"""Progress where there is no terminal: a plain line now and then, on standard error."""

from __future__ import annotations

import contextlib
import sys
from typing import ClassVar

from ._counts import Counts
from ._words import told

__all__ = ["LinesView"]


class LinesView:
    """Writes a line every ten seconds, and one in the end."""

    interval_seconds: ClassVar[float] = 10.0

    def show(self, counts: Counts) -> None:
        """Write how things stand."""
        _write(counts)

    def end(self, counts: Counts) -> None:
        """Write how things stand in the end."""
        _write(counts)

    def give_up(self) -> None:
        """Do nothing."""


def _write(counts: Counts) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # closed, or a broken pipe: nobody is there to read
            # In one piece: other threads write, too.
            sys.stderr.write(f"turnout: {told(counts)}\n")
            sys.stderr.flush()
