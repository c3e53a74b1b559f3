"""What is noted of calls in passing, and the events that are made of it when somebody looks.

A flow must not wait for those who listen. So what happens is noted as rows of text and numbers, one behind the other in
one list: a row leaves no object behind that the garbage collector would have to look at, and keeps no argument or
result alive. Events are made of them in the thread in which they are told, and only if somebody looks at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

from ._event_stream import BEGUN, CREATED, EVENT, FINISHED, FOLLOWED, READY, SENT
from .events import CallCreated, CallFinished, CallReady, CallSent, CallStarted, Event

__all__ = ["Events"]

# How many fields a row has, by its kind.
_LENGTHS: Final = (12, 7, 6, 6, 17, 17, 17, 2)
# Their classes' own `__new__` takes twice as long.
_new: Final[Any] = tuple.__new__


class Events(Sequence[Event]):
    """Events, made when somebody looks at them first.

    Parameters
    ----------
    rows
        The rows, one behind the other.
    """

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows
        self._events: list[Event] | None = None

    def _made(self) -> list[Event]:
        if self._events is None:
            self._events = list(_made(self._rows))
            self._rows = []
        return self._events

    def __len__(self) -> int:
        return len(self._made())

    def __iter__(self) -> Iterator[Event]:
        return iter(self._made())

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self._made()[index]

    def __repr__(self) -> str:
        return repr(self._made())


def _made(rows: list[Any]) -> Iterator[Any]:
    """Yield the events of rows. Written out long: there may be hundreds of thousands of them a second."""
    first, end = 0, len(rows)
    while first < end:
        kind = rows[first]
        last = first + _LENGTHS[kind]
        if kind == CREATED:
            time, call, flow, task, prefix, index, name, runner, parent, needs, is_ready = rows[first + 1 : last]
            name = name or f"{prefix}{task}-{index}"
            yield _new(CallCreated, (time, call, flow, task, name, runner, parent, needs))
            if is_ready:
                yield _new(CallReady, (time, call, name))
        elif kind == READY:
            time, call, task, prefix, index, name = rows[first + 1 : last]
            yield _new(CallReady, (time, call, name or f"{prefix}{task}-{index}"))
        elif kind == SENT:
            yield _new(CallSent, rows[first + 1 : last])
        elif kind == BEGUN:
            yield _new(CallStarted, rows[first + 1 : last])
        elif kind == EVENT:
            yield rows[first + 1]
        else:
            (time, call, flow, task, prefix, index, name, state, attempt) = rows[first + 1 : first + 10]
            (seconds, place, batch, bytes_in, bytes_out, message, traceback) = rows[first + 10 : last]
            worker, host, pid, slot = place
            name = name or f"{prefix}{task}-{index}"
            if kind != FINISHED:
                begun = time - seconds
                if kind == FOLLOWED:
                    yield _new(CallReady, (begun, call, name))
                    if batch is not None:
                        yield _new(CallSent, (begun, call, attempt, batch, bytes_in))
                yield _new(CallStarted, (begun, call, attempt, worker, slot))
            head = (time, call, flow, task, name, state, attempt, seconds)
            yield _new(CallFinished, (*head, worker, host, pid, slot, batch, bytes_in, bytes_out, message, traceback))
        first = last
