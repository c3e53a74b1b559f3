"""The engine of a dry run: it notes calls, runs none, and gives back futures that are over."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ._arguments import allow_failure, awaited_futures
from ._call import Call
from ._choice import told_runner
from ._engine import Engine
from ._future import COMPLETED, FuturePart, TaskFuture
from ._graph_records import CallRecord
from ._map import Arguments, column_of, elements_of
from ._recording import Recording, Source
from ._scopes import FlowScope, next_index
from ._signals import INTERRUPTS
from ._unknown import Unknown

if TYPE_CHECKING:
    from ._backends import Backends
    from ._context import Scope
    from ._task import Task
    from .runner import TaskRunner

__all__ = ["Recorder"]


class _Column(NamedTuple):
    """What a map walks over that comes from a call."""

    source: Source
    length: int | None
    """How many elements it has; None if that is not known."""


class Recorder(Engine):
    """Takes the calls of a flow run whose tasks don't run.

    Parameters
    ----------
    backends
        The flow's; none of them is started.
    recording
        Where calls are noted.
    flow
        The number of the flow run there; None outside of all.
    flow_runner
        Where its calls would run, as far as somebody said so.
    body
        The code of the flow's function.
    """

    is_dry: ClassVar[bool] = True

    def __init__(
        self,
        backends: Backends,
        recording: Recording,
        flow: int | None = None,
        flow_runner: str | None = None,
        body: CodeType | None = None,
    ) -> None:
        super().__init__(backends)
        self.recording = recording
        self.flow = flow
        self.flow_runner = flow_runner
        self.body = body
        # That of a `with runner:` block.
        self.session_runner: str | None = None

    def session(self, runner: TaskRunner) -> FlowScope:
        """Return the scope of a ``with runner:`` block in the flow's body."""
        beside = Recorder(self.backends, self.recording, self.flow, self.flow_runner, self.body)
        beside.session_runner = told_runner(runner)
        return beside.flow_run

    # Instead of running

    def submit(
        self,
        scope: Scope,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wait_for: Any = None,
    ) -> TaskFuture[Any]:
        """Note a call, and return a future that is over, with a result that is not known."""
        if INTERRUPTS.due:
            INTERRUPTS.check()
        if wait_for is not None:
            awaited_futures(wait_for, task.name)
        future: TaskFuture[Any] = TaskFuture(task, scope, next_index(scope, task.name))
        origin = self.recording.add_call(self._record(task, [*args, *kwargs.values()], wait_for), future)
        value = task.viz_return_value
        future._data = Unknown(origin, is_many=origin.is_many) if value is ... else self.recording.given(value, origin)
        future._type = COMPLETED
        return future

    def _record(self, task: Task[..., Any], values: list[Any], awaited: object) -> CallRecord:
        assert self.flow is not None, "calls are submitted in a flow"
        runner = self.session_runner if task.task_runner is None else told_runner(task.task_runner)
        return CallRecord(
            task=task.name,
            flow=self.flow,
            needs=self.recording.needs(values, awaited),
            runner=None if runner == self.flow_runner else runner,
            place=self.recording.place(self.body),
            is_many=self.is_many(values),
        )

    def is_many(self, values: Iterable[Any]) -> bool:
        """Return whether a call with these arguments stands for any number of calls."""
        is_many = self.flow is not None and self.recording.flows[self.flow].is_many
        return is_many or any(map(self.recording.is_many, values))

    def new_call_here(self, scope: Scope, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Note a call that is made like a function, and return a record of it that is over."""
        call = Call()
        call.dependencies = None
        call.future = self.submit(scope, task, args, kwargs)
        return call

    def may_go(self, call: Call) -> bool:
        """Return False: the call is over."""
        return False

    # Maps

    def elements(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, lazy: bool) -> Iterator[Arguments]:
        """Yield the arguments of each call of a map, with elements that are not known for those of results.

        Where it is not known how many there are, one call stands for all.
        """
        columns = {id(value): self._column(value) for value in (*args, *kwargs.values())}
        is_open = any(column is not None and column.length is None for column in columns.values())

        def shown(value: Any) -> Any:
            column = columns[id(value)]
            if column is None:
                walked = column_of(value) if is_open else None
                return value if walked is None else list(itertools.islice(walked, 1))
            elements = [Unknown(*column.source, is_many=is_open)] * (1 if is_open else column.length or 0)
            return allow_failure(elements) if type(value) is allow_failure else elements

        shown_kwargs = {key: shown(value) for key, value in kwargs.items()}
        return elements_of(name, tuple(map(shown, args)), shown_kwargs, lazy=lazy)

    def _column(self, value: Any) -> _Column | None:
        """Return what a map has of an argument that comes from a call; None if it does not, or is not walked over."""
        while type(value) is allow_failure:
            value = value.value
        if isinstance(value, (list, tuple)) and len(value) == 1 and self.recording.is_many(value[0]):
            source = self.recording.source(value[0])
            return None if source is None else _Column(source, None)
        source = self.recording.source(value)
        if source is None:
            return None
        known = value.result() if isinstance(value, (TaskFuture, FuturePart)) else value
        if type(known) is Unknown:
            return _Column(source, None)
        elements = column_of(known)
        return None if elements is None else _Column(source, len(list(elements)))
