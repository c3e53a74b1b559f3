"""What is particular about the cluster to which a link leads."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Terms", "topic_of_run"]


class Terms(NamedTuple):
    """What is particular about the cluster."""

    base: str
    """The topic of the run."""
    journal: str = ""
    """The directory of the workers' journals, or nothing."""
    is_nested: bool = False
    """Whether batches come from a worker: they go first, and those that wait for others leave their place to those."""
    is_elastic: bool = False
    """Whether there may be more workers later, of whatever kind."""
    cause_of_death: Callable[[str, int], str] = "the worker {} died".format
    """Says of what the worker with an address and a process id died."""
    check_connection: Callable[[], str | None] = lambda: None
    """Says what is wrong with the connection, or None."""


def topic_of_run() -> str:
    """Return a topic that nobody else uses."""
    return f"turnout-{uuid.uuid4().hex[:16]}"
