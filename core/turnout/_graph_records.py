"""What a flow's graph is made of: its calls, its subflows and what each of them needs, however that was found out."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

__all__ = ["CallRecord", "FlowRecord", "Need"]


class Need(NamedTuple):
    """That a call or a subflow waits for an earlier call."""

    call: int
    """The number of the earlier call."""
    waits_only: bool = False
    """It is named in ``wait_for``, and its result is not used."""
    may_fail: bool = False
    """Its failure is allowed."""
    parts: tuple[str, ...] = ()
    """The parts of its result that are used; none if that is the whole."""
    submits: bool = False
    """It is not waited for: it is in its body that the call was submitted, or the flow called."""


class CallRecord(NamedTuple):
    """One call of a task. Calls are numbered in order of submission, from 0."""

    task: str
    """The task's name."""
    flow: int
    """The number of the flow run that the call belongs to."""
    needs: tuple[Need, ...] = ()
    runner: str | None = None
    """Where it runs, if not where the flow's others do."""
    place: Hashable = None
    """Which piece of the user's code submits it."""
    is_many: bool = False
    """It stands for any number of calls."""
    seconds: float | None = None
    """How long its body ran; None if that is not known, or it didn't."""
    has_failed: bool = False
    """It has run, and has no result."""


class FlowRecord(NamedTuple):
    """One flow run. Flow runs are numbered in order of their beginnings, from 0."""

    flow: str
    """The flow's name."""
    parent: int | None
    """The number of the flow run around it."""
    needs: tuple[Need, ...] = ()
    runner: str | None = None
    """Where its calls run, if not where those of the flow around it do."""
    place: Hashable = None
    """Which piece of the user's code calls it."""
    is_many: bool = False
    """It stands for any number of flow runs."""
