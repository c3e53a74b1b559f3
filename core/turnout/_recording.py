"""What a dry run has noted so far: calls, flow runs, and which of them the values in the body come from."""

from __future__ import annotations

import contextlib
import copy
import itertools
import sys
import threading
from collections.abc import Hashable, Iterable, Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arguments import PLAIN, parts_of, quote, unwrapped
from ._future import FuturePart, TaskFuture
from ._graph import Graph
from ._graph_records import CallRecord, FlowRecord, Need
from ._tracebacks import is_own
from ._unknown import Origin, Unknown, parts_label

if TYPE_CHECKING:
    from .errors import VisualizationError

__all__ = ["Recording", "Source"]


class Source(NamedTuple):
    """Where a value comes from: a call, and the keys that lead to the part of its result."""

    origin: Origin
    keys: tuple[Any, ...] = ()


class Recording:
    """What is known of a dry run: one for a flow and its subflows. Any thread may add to it."""

    def __init__(self) -> None:
        self.flows: list[FlowRecord] = []
        self.calls: list[CallRecord] = []
        # Errors that the body was told, and may have caught.
        self.problems: list[VisualizationError] = []
        self._origins: dict[TaskFuture[Any], Origin] = {}
        # Objects that stand for results, by id. They are kept, so that ids stay theirs.
        self._given: dict[int, tuple[Any, Origin]] = {}
        self._places: dict[Hashable, int] = {}
        # By code and instruction. The code is kept, so that its id stays its own.
        self._expressions: dict[tuple[int, int], tuple[Hashable, CodeType]] = {}
        self._lock = threading.Lock()

    def graph(self) -> Graph:
        """Return what has been noted.

        Raises
        ------
        VisualizationError
            If the body looked into a result that wasn't there: it may have gone on from there as it never would.
        """
        if self.problems:
            raise self.problems[0]
        # Copies, for a thread that the body has left behind may add to it.
        return Graph(tuple(self.flows), tuple(self.calls))

    def add_flow(self, record: FlowRecord) -> int:
        """Note a flow run, and return its number."""
        with self._lock:
            self.flows.append(record)
            return len(self.flows) - 1

    def add_call(self, record: CallRecord, future: TaskFuture[Any]) -> Origin:
        """Note a call, and return what its result is known by."""
        with self._lock:
            origin = Origin(len(self.calls), future.name, record.task, record.is_many, self.problems)
            self.calls.append(record)
            self._origins[future] = origin
            return origin

    def given(self, value: Any, origin: Origin) -> Any:
        """Return what stands for the result of a call.

        What can be changed is a copy for each call, and where that is met again it is known which call it came from.
        Other objects may stand anywhere, as members of enums and tuples do.
        """
        if type(value).__hash__ is None:
            with contextlib.suppress(Exception):  # some can't be copied
                value = copy.copy(value)
            self._given[id(value)] = (value, origin)
        return value

    def place(self, body: CodeType | None) -> int:
        """Return the number of the place in the user's code that this is called from.

        It is an expression, and the one at which the flow's body is meanwhile: that tells two uses of a helper apart.

        Parameters
        ----------
        body
            The code of the flow's function.
        """
        frame = sys._getframe(1)
        while frame.f_back is not None and is_own(frame):
            frame = frame.f_back
        outer = frame
        while outer.f_back is not None and outer.f_code is not body:
            outer = outer.f_back
        key = (self._expression(frame), self._expression(outer) if outer.f_code is body else None)
        with self._lock:
            return self._places.setdefault(key, len(self._places))

    def _expression(self, frame: FrameType) -> Hashable:
        """Return where in its code a frame is.

        That is a piece of the source, for the interpreter replaces instructions that run often, and a frame that has
        come through one of these is some bytes further.
        """
        code, instruction = frame.f_code, frame.f_lasti
        known = self._expressions.get((id(code), instruction))
        if known is None:
            position = next(itertools.islice(code.co_positions(), instruction // 2, None), None)
            known = self._expressions[id(code), instruction] = ((id(code), position), code)
        return known[0]

    # Where values come from

    def needs(self, values: Iterable[Any], awaited: object = None) -> tuple[Need, ...]:
        """Return the calls whose results are in some values, and those that are in ``wait_for`` only."""
        needs: dict[int, Need] = {}
        whole: set[int] = set()
        for (origin, keys), may_fail in self._found(values):
            before = needs.get(origin.number, Need(origin.number, may_fail=True))
            if not keys:
                whole.add(origin.number)
            parts = () if origin.number in whole else (*before.parts, parts_label(keys))
            needs[origin.number] = before._replace(may_fail=before.may_fail and may_fail, parts=parts)
        for (origin, _), may_fail in self._found([awaited]):
            needs.setdefault(origin.number, Need(origin.number, waits_only=True, may_fail=may_fail))
        return tuple(needs.values())

    def _found(self, values: Iterable[Any]) -> Iterator[tuple[Source, bool]]:
        """Yield the sources of all that is in some values, and whether its failure is allowed."""
        seen: dict[tuple[int, bool, bool], Any] = {}
        todo = [(value, False, False) for value in reversed(list(values))]
        while todo:
            value, may_fail, quoted = todo.pop()
            value, may_fail = unwrapped(value, may_fail)
            key = (id(value), may_fail, quoted)
            if type(value) in PLAIN or key in seen:
                continue
            seen[key] = value
            source = self.source(value)
            if type(value) is quote:
                todo.append((value.value, may_fail, True))
            elif source is None:
                todo.extend((part, may_fail, quoted) for part in reversed(parts_of(value) or []))
            elif not (quoted and isinstance(value, (TaskFuture, FuturePart))):
                # Nobody waits for futures that are quoted. Other things in there are results that the body has.
                yield source, may_fail

    def source(self, value: Any) -> Source | None:
        """Return where a value comes from; None if no call of this dry run made it, as far as is known."""
        if type(value) is Unknown:
            return Source(value._origin, value._keys)
        future, keys = (value.future, value.keys) if type(value) is FuturePart else (value, ())
        if type(future) is TaskFuture:
            origin = self._origins.get(future)
        else:
            origin = self._given.get(id(value), (None, None))[1]
        return None if origin is None else Source(origin, keys)

    def is_many(self, value: Any) -> bool:
        """Return whether a value stands for any number of results."""
        value, _ = unwrapped(value, False)
        if type(value) is Unknown:
            return value._is_many
        source = self.source(value) if isinstance(value, (TaskFuture, FuturePart)) else None
        return source is not None and source.origin.is_many
