"""What goes to standard output: a flow's value, a table, or exactly one JSON object."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["as_json", "claim_standard_output", "print_json", "print_table", "print_value"]


def print_value(value: object) -> None:
    """Print a flow's value: text as it is, all else as Python would write it; nothing for None."""
    if value is None:
        return
    if isinstance(value, str):
        print(value)
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.pretty import Pretty

        Console().print(Pretty(value))
    else:
        print(_written(value))


def as_json(value: object) -> Any:
    """Return a value that JSON can hold: the value itself if it can, else its ``repr``.

    Examples
    --------
    >>> as_json([1, None]), as_json({1, 2}), as_json(float("nan"))
    ([1, None], '{1, 2}', 'nan')
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return _written(value)
    return value


def print_json(record: object, stream: TextIO | None = None) -> None:
    """Print one JSON value on one line."""
    print(json.dumps(record, allow_nan=False), file=stream or sys.stdout, flush=True)


def claim_standard_output() -> TextIO:
    """Return the process's standard output, and from now on send what anybody else prints to standard error.

    That holds for child processes and C code too, and to the end: what prints while the process ends must not follow
    the JSON either.
    """
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return own


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, as wide as the terminal is, or as wide as it needs to be where there is none."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 10_000, soft_wrap=False).print(table)


def _written(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
