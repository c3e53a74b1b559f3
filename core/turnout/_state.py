"""What has become of a run: one small record, made when somebody asks."""

from __future__ import annotations

import enum
from typing import Any, Final

__all__ = ["STATE_NAMES", "State", "StateType"]


class StateType(enum.IntEnum):
    """The kinds of state, ordered so that everything from ``COMPLETED`` on is final."""

    PENDING = 0
    RUNNING = 1
    RETRYING = 2
    COMPLETED = 3
    CACHED = 4
    FAILED = 5
    TIMED_OUT = 6
    UPSTREAM_FAILED = 7
    CRASHED = 8
    CANCELLED = 9


STATE_NAMES: Final = {
    StateType.PENDING: "Pending",
    StateType.RUNNING: "Running",
    StateType.RETRYING: "Retrying",
    StateType.COMPLETED: "Completed",
    StateType.CACHED: "Cached",
    StateType.FAILED: "Failed",
    StateType.TIMED_OUT: "TimedOut",
    StateType.UPSTREAM_FAILED: "UpstreamFailed",
    StateType.CRASHED: "Crashed",
    StateType.CANCELLED: "Cancelled",
}
"""How states are called in messages, hooks and events."""

_FIRST_FINAL = StateType.COMPLETED


class State:
    """The state of a flow run or task run at one moment.

    Parameters
    ----------
    type
        Which kind of state this is.
    message
        One line about why, or None.
    timestamp
        When the run came into this state, in seconds since the epoch.
    data
        The result of a completed run, the exception of one that ended without a result, else None.

    Examples
    --------
    >>> from turnout import flow
    >>> @flow
    ... def answer():
    ...     return 42
    >>> state = answer(return_state=True)
    >>> state, state.is_final(), state.result()
    (Completed(), True, 42)
    """

    __slots__ = ("_data", "message", "timestamp", "type")

    def __init__(
        self, type: StateType, message: str | None = None, timestamp: float = 0.0, data: object = None
    ) -> None:
        self.type = type
        self.message = message
        self.timestamp = timestamp
        self._data = data

    @property
    def name(self) -> str:
        """The state's name, such as ``"Completed"`` or ``"TimedOut"``."""
        return STATE_NAMES[self.type]

    def result(self, raise_on_failure: bool = True) -> Any:
        """Return the result, or raise (or with ``raise_on_failure=False`` return) the exception.

        Raises
        ------
        RuntimeError
            If the run has not ended yet.
        """
        if not self.is_final():
            raise RuntimeError(f"The run is {self.name}: it has no result yet.")
        if isinstance(self._data, BaseException) and not self.is_completed() and raise_on_failure:
            raise self._data
        return self._data

    def is_final(self) -> bool:
        """Return whether the run has ended."""
        return self.type >= _FIRST_FINAL

    def is_pending(self) -> bool:
        """Return whether the run has not begun."""
        return self.type is StateType.PENDING

    def is_running(self) -> bool:
        """Return whether the run is under way."""
        return self.type is StateType.RUNNING

    def is_retrying(self) -> bool:
        """Return whether the run waits to be tried again."""
        return self.type is StateType.RETRYING

    def is_completed(self) -> bool:
        """Return whether the run has a result, freshly computed or cached."""
        return self.type in (StateType.COMPLETED, StateType.CACHED)

    def is_failed(self) -> bool:
        """Return whether the run raised, ran out of time, or lost something upstream."""
        return self.type in (StateType.FAILED, StateType.TIMED_OUT, StateType.UPSTREAM_FAILED)

    def is_crashed(self) -> bool:
        """Return whether the run's worker died or its body raised a ``BaseException``."""
        return self.type is StateType.CRASHED

    def is_cancelled(self) -> bool:
        """Return whether the run was cancelled."""
        return self.type is StateType.CANCELLED

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return self.type is other.type and self.message == other.message

    __hash__ = None  # type: ignore[assignment]  # equal by kind and message, with data that may be unhashable

    def __repr__(self) -> str:
        return f"{self.name}({self.message!r})" if self.message else f"{self.name}()"

    def _repr_html_(self) -> str:
        from ._html import Row, card, first_line, short

        rows = [
            Row("message", first_line(self.message)),
            Row("result", short(self._data) if self.is_completed() else ""),
            Row("since", _local_time(self.timestamp) if self.timestamp else ""),
        ]
        return card("State", self.name, rows, state=self.type.name)


def _local_time(timestamp: float) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(timestamp).astimezone().isoformat(" ", "seconds")
