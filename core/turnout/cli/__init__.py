"""The command line. click and rich are imported only when a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``turnout`` with the given arguments, by default those of the process, and return the exit status.

    Returns
    -------
    int
        0 if all went well; 1 if the flow failed, a test of the conformance kit did, or the doctor found a problem; 2 if
        the command can't be carried out as it was typed; 130 after Ctrl-C.
    """
    from ._commands import run

    return run(arguments)
