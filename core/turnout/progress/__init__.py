"""How far flows are: a live picture in a terminal or a notebook, or a plain line now and then; all on standard error.

Nothing is shown unless somebody asks: a program by :func:`show`, its user by the environment variable
``TURNOUT_PROGRESS=1``. ``turnout run`` asks by itself in a terminal.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final

from .. import _onlookers

if TYPE_CHECKING:
    from ._display import Display, View

__all__ = ["ENVIRONMENT_VARIABLE", "begin_by_environment", "can_be_live", "show", "wanted"]

ENVIRONMENT_VARIABLE: Final = "TURNOUT_PROGRESS"

_lock: Final = threading.Lock()
# The one that is shown: a terminal has one lower end.
_shown: Display | None = None


def show() -> Display:
    """Show how far the flows of this process are, from now on.

    In a terminal it is a live picture, below what the program prints and logs. In a notebook it is a card. Otherwise it
    is a line every ten seconds, and one in the end. The last picture stays. In a terminal and otherwise it is all on
    standard error.

    Returns
    -------
    Display
        Close it, or use it in a ``with`` statement, to end it. Where progress is shown already, or the user has set
        ``TURNOUT_PROGRESS=0``, it shows nothing.

    Examples
    --------
    >>> from turnout import flow, progress, task
    >>> @task
    ... def double(x):
    ...     return 2 * x
    >>> @flow
    ... def main():
    ...     return double.map([1, 2])
    >>> with progress.show():
    ...     main()
    [2, 4]
    """
    global _shown
    from ._display import Display

    with _lock:
        if wanted() is False or (_shown is not None and _shown.is_open):
            return Display(None)
        _shown = Display(_open_view)
        return _shown


def wanted() -> bool | None:
    """Return whether the user wants to see progress, by ``TURNOUT_PROGRESS``; None if nothing is said."""
    return _onlookers.wanted(ENVIRONMENT_VARIABLE)


def begin_by_environment() -> None:
    """Show progress from now on, if ``TURNOUT_PROGRESS`` says so."""
    if wanted():
        show()


def can_be_live() -> bool:
    """Return whether there is a terminal for a live picture."""
    from ._terminal import is_terminal

    return is_terminal(sys.stderr)


def _open_view() -> View:
    from ._lines import LinesView
    from ._notebook import NotebookView, is_notebook
    from ._terminal import TerminalView

    if is_notebook():
        return NotebookView()
    return TerminalView() if can_be_live() else LinesView()
