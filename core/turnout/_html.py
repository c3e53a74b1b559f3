"""What notebooks show of flows, tasks, futures, states and runners: a small card of names and values.

It is HTML with inline styles and nothing else. Text has the notebook's own colour; what has another one can be seen on
white and on black.
"""

from __future__ import annotations

import html
import reprlib
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["PALE", "TABLE", "Row", "card", "colour_of", "first_line", "framed", "short"]

# In characters; a card is to be small.
_LONGEST: Final = 120

_GREY, _GREEN, _BLUE, _AMBER, _RED = "#8a8f98", "#2e9960", "#3b82c4", "#c98a1b", "#d0484f"
# By the names of the types of states. All others are failures.
_COLOURS: Final = {
    "PENDING": _GREY,
    "RUNNING": _BLUE,
    "RETRYING": _AMBER,
    "COMPLETED": _GREEN,
    "CACHED": _GREEN,
    "CANCELLED": _AMBER,
}

_CARD: Final = (
    "display:inline-block;max-width:60em;border:1px solid rgba(128,128,128,.4);border-radius:6px;"
    "padding:.4em .8em;line-height:1.5;text-align:left"
)
TABLE: Final = "border-collapse:collapse;border:none;margin:0;font-size:inherit;color:inherit"
_CELL: Final = "border:none;padding:0 1em 0 0;text-align:left;vertical-align:top;background:none"
PALE: Final = "opacity:.7"
_VALUE: Final = "font-family:monospace;overflow-wrap:anywhere"


class Row(NamedTuple):
    """One line of a card."""

    name: str
    value: str
    state: str | None = None
    """The name of the type of state that it is about."""


def card(kind: str, name: str, rows: Iterable[Row] = (), *, state: str | None = None) -> str:
    """Return a card.

    Parameters
    ----------
    kind
        What it is about, such as ``"Task"``.
    name
        Its name.
    rows
        What is said of it; rows without a value are left out.
    state
        The name of the type of state that it is in.

    Examples
    --------
    >>> print(card("Task", "a<b"))
    <div style="..."><span style="opacity:.7">Task</span> <b>a&lt;b</b></div>
    """
    lines = "".join(map(_line, filter(_has_value, rows)))
    return framed(kind, name, f'<table style="{TABLE}">{lines}</table>' if lines else "", state=state)


def framed(kind: str, name: str, body: str, *, state: str | None = None) -> str:
    """Return a card with HTML of the caller's below its head.

    Parameters
    ----------
    kind, name, state
        As for :func:`card`.
    body
        HTML, which is not escaped.

    Examples
    --------
    >>> print(framed("Progress", "a<b", "<i>half</i>"))
    <div style="..."><span style="opacity:.7">Progress</span> <b>a&lt;b</b><i>half</i></div>
    """
    head = f'{_dot(state)}<span style="{PALE}">{html.escape(kind)}</span> <b>{html.escape(name)}</b>'
    return f'<div style="{_CARD}">{head}{body}</div>'


def _has_value(row: Row) -> bool:
    return bool(row.value)


def _line(row: Row) -> str:
    name = f'{_dot(row.state)}<span style="{PALE}">{html.escape(row.name)}</span>'
    value = f'<span style="{_VALUE}">{html.escape(row.value)}</span>'
    return f'<tr style="background:none"><td style="{_CELL}">{name}</td><td style="{_CELL}">{value}</td></tr>'


def _dot(state: str | None) -> str:
    return "" if state is None else f'<span style="color:{colour_of(state)}">●</span> '


def colour_of(state: str) -> str:
    """Return the colour for a state, by the name of its type."""
    return _COLOURS.get(state, _RED)


def short(value: object) -> str:
    """Return a value in one line that is not too long, whatever its ``repr`` does.

    Examples
    --------
    >>> short(list(range(1000))), short("a" * 1000)[:50]
    ('[0, 1, 2, 3, 4, 5, ...]', "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
    """
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = _LONGEST
    try:
        text = " ".join(shown.repr(value).split())
    except Exception:  # a __repr__ of the user's may raise
        text = f"<{type(value).__name__}>"
    return first_line(text)


def first_line(text: str | None) -> str:
    r"""Return the beginning of a text, as long as a card is wide.

    Examples
    --------
    >>> first_line("Load a file.\n\nAnd more."), first_line(None)
    ('Load a file.', '')
    """
    line = (text or "").strip().partition("\n")[0].strip()
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
