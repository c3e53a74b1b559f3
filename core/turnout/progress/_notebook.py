"""Progress in a notebook: a card that changes while the flow runs, of HTML and nothing else."""

from __future__ import annotations

import html
import sys
from typing import Any, ClassVar, Final

from .._html import PALE, TABLE, colour_of, first_line, framed
from ._counts import Counts, TaskCounts, added
from ._folds import folded
from ._words import ending, number, pace, sums, tail

__all__ = ["NotebookView", "html_of", "is_notebook"]

_MOST: Final = 20
_CELL: Final = "border:none;padding:0 1em 0 0;text-align:left;vertical-align:middle;background:none"
_BAR: Final = "display:flex;width:14em;height:.6em;border-radius:.3em;overflow:hidden;background:rgba(128,128,128,.25)"
# The parts of a bar, with the states whose colours they have.
_PARTS: Final = {
    "completed": "COMPLETED",
    "cached": "CACHED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
    "running": "RUNNING",
}


class NotebookView:
    """Shows a card below the cell whose code runs."""

    interval_seconds: ClassVar[float] = 0.5

    def __init__(self) -> None:
        # Made here, in the thread of the cell: it tells below which one the card stands.
        self._handle: Any = _ipython().display(_ipython().HTML(""), display_id=True)

    def show(self, counts: Counts) -> None:
        """Show how things stand."""
        self._handle.update(_ipython().HTML(html_of(counts)))

    def end(self, counts: Counts) -> None:
        """Show how things stand in the end."""
        self.show(counts)

    def give_up(self) -> None:
        """Do nothing."""


def _ipython() -> Any:
    from IPython import display

    return display


def is_notebook() -> bool:
    """Return whether this process runs the cells of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def html_of(counts: Counts) -> str:
    """Return the card.

    Examples
    --------
    >>> from turnout.progress._counts import TaskCounts
    >>> "a&lt;b" in html_of(Counts("census", "", (TaskCounts("a<b", 4, 2, running=1),), 2.0))
    True
    """
    shown, rest = folded(counts.tasks, _MOST)
    if rest:
        shown.append(added(f"and {len(rest)} more", rest))
    rows = "".join(map(_row, shown))
    end = ending(counts._replace(message=first_line(counts.message)))
    about = " · ".join([end, *sums(counts)] if counts.state else pace(counts))
    body = f'<table style="{TABLE}">{rows}</table><div style="{PALE}">{html.escape(about)}</div>'
    return framed("Flow", counts.flow or "calls", body, state=counts.state.upper() or "RUNNING")


def _row(task: TaskCounts) -> str:
    done = f"{number(task.done)}/{number(task.total)}"
    cells = (html.escape(task.name), _bar(task), done, ", ".join(tail(task)))
    return '<tr style="background:none">' + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _bar(task: TaskCounts) -> str:
    shares = {name: 100 * getattr(task, name) / max(task.total, 1) for name in _PARTS}
    parts = (
        f'<div style="flex:0 0 {share:.4g}%;min-width:3px;background:{colour_of(_PARTS[name])}"></div>'
        for name, share in shares.items()
        if share
    )
    return f'<div style="{_BAR}">{"".join(parts)}</div>'
