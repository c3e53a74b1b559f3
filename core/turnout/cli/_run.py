"""``turnout run``: one flow, from the command line to the exit status."""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .._backends import Backends
from .._call_notes import NOTES
from .._choice import command_line_runner, engine_for
from .._event_file import FILE
from .._signals import INTERRUPTS
from ..errors import EventFileError, RunnerError
from ..registry import resolve
from ._failure import text_of
from ._loading import load_flow
from ._logging import configure
from ._output import as_json, claim_standard_output, print_json, print_value
from ._parameters import bind
from ._problem import UsageProblem, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .. import Flow, State, TaskRunner

__all__ = ["run_flow"]


class _Ending(NamedTuple):
    """What became of a flow."""

    flow: Flow[..., Any]
    runner: TaskRunner
    run_id: str | None
    state: State
    seconds: float

    @property
    def error(self) -> BaseException | None:
        value = self.state.result(raise_on_failure=False)
        return value if isinstance(value, BaseException) and not self.state.is_completed() else None


def run_flow(
    target: str,
    runner: str | None,
    parameters: Sequence[str],
    *,
    json: bool,
    events: str | None = None,
    log_level: str,
) -> int:
    """Run the flow that ``target`` names, show what became of it, and return the exit status.

    Raises
    ------
    UsageProblem
        If the flow, a parameter or the runner can't be had as it was typed, or events can't be written.
    """
    own = claim_standard_output() if json else None
    if runner is not None:
        _check(runner)
    flow = load_flow(target)
    arguments = bind(flow, parameters)
    configure(log_level)
    _write_events(events)
    NOTES.are_wanted = True
    try:
        INTERRUPTS.is_command = True
        ending = _ended(flow, arguments, runner)
    except KeyboardInterrupt:
        return 128 + (INTERRUPTS.order or signal.SIGINT)
    finally:
        INTERRUPTS.is_command = NOTES.are_wanted = False
    # A body may catch the KeyboardInterrupt, so what has become of the flow doesn't tell whether the user ended it.
    if INTERRUPTS.order and not ending.state.is_completed():
        return 128 + INTERRUPTS.order
    if own:
        print_json(_record(ending), own)
    elif ending.state.is_completed():
        print_value(ending.state.result())
    if ending.error is not None:
        _complain(ending, ending.error)
    return 0 if ending.state.is_completed() else 1


def _write_events(path: str | None) -> None:
    """Have events written from now on, if the command line or the environment wants that."""
    FILE.asked = path or ""
    try:
        FILE.begin()
    except EventFileError as error:
        raise UsageProblem(str(error)) from error


def _check(word: str) -> None:
    try:
        resolve(word)
    except RunnerError as error:
        raise UsageProblem(str(error)) from error


def _ended(flow: Flow[..., Any], arguments: inspect.BoundArguments, word: str | None) -> _Ending:
    token = command_line_runner.set(word)
    try:
        runner = _chosen(flow)
        run_ids: list[str] = []
        noting = flow.with_options(on_running=[lambda _, run, __: run_ids.append(run.id), *flow.on_running_hooks])
        begun = time.perf_counter()
        state = _state(noting(*arguments.args, **arguments.kwargs, return_state=True))
        return _Ending(flow, runner, next(iter(run_ids), None), state, time.perf_counter() - begun)
    finally:
        command_line_runner.reset(token)


def _chosen(flow: Flow[..., Any]) -> TaskRunner:
    """Return the runner that the flow will use. The file or the environment may have named one that isn't there."""
    try:
        runner = engine_for(Backends(), None, flow.chosen_runner, flow.task_runner).runner
    except (RunnerError, TypeError) as error:
        raise UsageProblem(str(error)) from error
    assert runner is not None, "a flow without a parent has a runner of its own"
    return runner


def _state(called: Any) -> State:
    state: State = asyncio.run(_awaited(called)) if inspect.isawaitable(called) else called
    return state


async def _awaited(called: Any) -> Any:
    return await called


def _record(ending: _Ending) -> dict[str, Any]:
    error = ending.error
    return {
        "flow": ending.flow.name,
        "flow_run_id": ending.run_id,
        "runner": repr(ending.runner),
        "state": ending.state.name,
        "seconds": round(ending.seconds, 6),
        "result": as_json(ending.state.result()) if ending.state.is_completed() else None,
        "error": None if error is None else _error_record(error),
    }


def _error_record(error: BaseException) -> dict[str, str]:
    return {"type": type(error).__qualname__, "message": str(error), "traceback": text_of(error)}


def _complain(ending: _Ending, error: BaseException) -> None:
    print(text_of(error), end="", file=sys.stderr)
    told = one_line(f"{type(error).__qualname__}: {error}")
    print(f"turnout: flow {ending.flow.name!r} ended {ending.state.name}: {told}", file=sys.stderr)
