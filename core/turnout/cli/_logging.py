"""Log lines on standard error. A library leaves logging alone; a command has to say where it goes."""

from __future__ import annotations

import logging

__all__ = ["configure"]


class _RunFormatter(logging.Formatter):
    """Puts the run that speaks in front of its message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d | %(levelname)s | %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        prefix = _speaker(record)
        if not record.message.startswith(prefix):
            record.message = prefix + record.message
        return super().formatMessage(record)


def configure(level: str) -> None:
    """Show Turnout's records from ``level`` on, and everybody else's warnings.

    A file that has set up logging itself keeps what it has set up; only the level of Turnout's records changes.
    """
    logging.getLogger("turnout").setLevel(level)
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_RunFormatter())
        root.addHandler(handler)


def _speaker(record: logging.LogRecord) -> str:
    task = getattr(record, "task_run_name", None)
    if task:
        return f"Task run {task!r} - "
    flow = getattr(record, "flow_run_name", None)
    return f"Flow run {flow!r} - " if flow else ""
