"""The colours of the report: they can be seen on white and on black."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["GREY", "PATH", "PHASE_COLOURS", "STATE_COLOURS", "task_colours"]

GREY: Final = "#808893"
PATH: Final = "#e8590c"

STATE_COLOURS: Final = {
    "Completed": "#3f9a6b",
    "Cached": "#8fc7a9",
    "Running": "#3b82c4",
    "Retrying": "#d9a032",
    "Failed": "#d0484f",
    "TimedOut": "#b8568f",
    "Crashed": "#8e3b8a",
    "UpstreamFailed": "#e08e79",
    "Cancelled": "#8a8f98",
    "Pending": "#b9bec6",
}

PHASE_COLOURS: Final = {
    "body": "#8d7bc9",
    "waiting": "#b9bec6",
    "queued": "#d9a032",
    "sending": "#4fb3bf",
    "running": "#3b82c4",
    "retrying": "#c76b4a",
}

_TASKS: Final = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#b07aa1",
    "#76b7b2",
    "#edc948",
    "#e0797b",
    "#9c755f",
    "#5fa2ce",
    "#a0a9b5",
)


def task_colours(tasks: Sequence[str]) -> dict[str, str]:
    """Return a colour for each task; where there are many, some share one."""
    return {task: _TASKS[number % len(_TASKS)] for number, task in enumerate(tasks)}
