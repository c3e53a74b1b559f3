"""A flow run that is gone through for its graph: the bodies of flows run, and those of tasks don't."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextvars
import inspect
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ._backends import Backends
from ._choice import chosen_for, told_runner
from ._context import current_scope
from ._flow_run import FlowRun
from ._graph_records import FlowRecord
from ._recorder import Recorder
from ._recording import Recording
from .errors import VisualizationError

if TYPE_CHECKING:
    from ._flow import Flow
    from ._graph import Graph
    from ._state import State

__all__ = ["DryRun", "visualized"]


class DryRun(FlowRun):
    """One run of a flow whose calls are noted. No hook is called, nothing is logged, and it is not tried again."""

    def __init__(self, flow: Flow[..., Any], parameters: dict[str, Any]) -> None:
        scope = current_scope.get()
        assert scope is not None, "dry runs begin in the scope of one"
        around = scope.engine
        assert isinstance(around, Recorder), "dry runs begin in the scope of one"
        chosen = chosen_for(flow.chosen_runner, flow.task_runner)
        values = list(parameters.values())
        self._recording = around.recording
        self._runner = around.flow_runner if chosen is None else told_runner(chosen)
        self._number = self._recording.add_flow(
            FlowRecord(
                flow=flow.name,
                parent=around.flow,
                needs=self._recording.needs(values),
                runner=None if self._runner == around.flow_runner else self._runner,
                place=self._recording.place(around.body),
                is_many=around.is_many(values),
            )
        )
        super().__init__(flow.with_options(retries=0, timeout_seconds=None, flow_run_name=None), parameters)

    def _new_engine(self) -> Recorder:
        body = getattr(inspect.unwrap(self.flow.fn), "__code__", None)
        return Recorder(self._backends, self._recording, self._number, self._runner, body)

    def _say_running(self) -> None:
        pass

    def _ended(self, state: State) -> State:
        return state


def visualized(flow: Flow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """Return the graph of a flow; see :meth:`turnout.Flow.visualize`."""
    recording = Recording()

    def run() -> None:
        # Not in the flow or task that asks, if one does.
        current_scope.set(Recorder(Backends(), recording).flow_run)
        try:
            _to_the_end(flow, args, kwargs)
        except Exception as error:
            if not isinstance(error, VisualizationError):
                error.add_note(
                    f"Raised while {flow.name!r} was visualized. No task runs then, and a result is one that is not "
                    "known, unless its task says what it shall be: @task(viz_return_value=...)."
                )
            raise

    contextvars.copy_context().run(run)
    return recording.graph()


def _to_the_end(flow: Flow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    made: Any = flow(*args, **kwargs)
    if inspect.isasyncgenfunction(flow.fn):
        _run_on_a_loop(_walked(made))
    elif inspect.iscoroutinefunction(flow.fn):
        _run_on_a_loop(made)
    elif inspect.isgeneratorfunction(flow.fn):
        collections.deque(made, maxlen=0)


async def _walked(items: Any) -> None:
    async for _ in items:
        pass


def _run_on_a_loop(coroutine: Coroutine[Any, Any, Any]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    # As in a notebook: the loop of this thread is busy with us.
    run = contextvars.copy_context().run
    with concurrent.futures.ThreadPoolExecutor(1, "turnout-visualize") as pool:
        pool.submit(run, asyncio.run, coroutine).result()
