"""``turnout run``: one flow, from the command line to the exit status."""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .._flow import command_line_runner
from ..errors import MissingRunnerLibraryError, RunnerError, RunnerOptionError, UnknownRunnerError
from ..registry import resolve
from ._failure import text_of
from ._loading import load_flow
from ._logging import configure
from ._output import as_json, claim_standard_output, print_json, print_value
from ._parameters import bind
from ._problem import UsageProblem, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .. import Flow, State

__all__ = ["run_flow"]

_WRONG_WORD = (MissingRunnerLibraryError, RunnerOptionError, UnknownRunnerError)


class _Ending(NamedTuple):
    flow: Flow[..., Any]
    state: State
    seconds: float

    @property
    def error(self) -> BaseException | None:
        value = self.state.result(raise_on_failure=False)
        return value if isinstance(value, BaseException) and not self.state.is_completed() else None


def run_flow(target: str, runner: str | None, parameters: Sequence[str], *, json: bool, log_level: str) -> int:
    """Run the flow that ``target`` names, show what became of it, and return the exit status.

    Raises
    ------
    UsageProblem
        If the flow, a parameter or the runner can't be had as it was typed.
    """
    own = claim_standard_output() if json else None
    if runner is not None:
        _check(runner)
    flow = load_flow(target)
    arguments = bind(flow.name, flow.fn, parameters)
    configure(log_level)
    ending = _run(flow, arguments, runner)
    if own:
        print_json(_record(ending), own)
    elif ending.error is None:
        print_value(ending.state.result())
    if ending.error is not None:
        _complain(ending, ending.error)
    return 0 if ending.state.is_completed() else 1


def _check(word: str) -> None:
    try:
        resolve(word)
    except RunnerError as error:
        raise UsageProblem(str(error)) from error


def _run(flow: Flow[..., Any], arguments: inspect.BoundArguments, runner: str | None) -> _Ending:
    token = command_line_runner.set(runner)
    begun = time.perf_counter()
    try:
        state = _state(flow(*arguments.args, **arguments.kwargs, return_state=True))
    except _WRONG_WORD as error:
        # The decorator or the environment named it.
        raise UsageProblem(str(error)) from error
    finally:
        command_line_runner.reset(token)
    return _Ending(flow, state, time.perf_counter() - begun)


def _state(called: Any) -> State:
    state: State = asyncio.run(_awaited(called)) if inspect.isawaitable(called) else called
    return state


async def _awaited(called: Any) -> Any:
    return await called


def _record(ending: _Ending) -> dict[str, Any]:
    error = ending.error
    return {
        "flow": ending.flow.name,
        "state": ending.state.name,
        "seconds": round(ending.seconds, 6),
        "result": as_json(ending.state.result()) if error is None else None,
        "error": None if error is None else _error_record(error),
    }


def _error_record(error: BaseException) -> dict[str, str]:
    return {"type": type(error).__qualname__, "message": str(error), "traceback": text_of(error)}


def _complain(ending: _Ending, error: BaseException) -> None:
    print(text_of(error), end="", file=sys.stderr)
    told = one_line(f"{type(error).__qualname__}: {error}")
    print(f"turnout: flow {ending.flow.name!r} ended {ending.state.name}: {told}", file=sys.stderr)
