"""The end of a call: its final state, those that it takes along, and those that can start now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ._arguments import replace_arguments
from ._call import Call, Trouble
from ._future import CANCELLED, COMPLETED, PACKED, UPSTREAM_FAILED, Failure, TaskFuture, brief
from ._signals import call_inner
from ._state import State, StateType
from ._waiting import LOCK, delivering, logged, outside
from .errors import CrashedRun

__all__ = [
    "TaskRun",
    "crash_of",
    "give_name",
    "run_hooks",
    "settle",
    "start",
    "task_run",
    "trouble_of",
    "value_or_error",
]

PENDING: Final = StateType.PENDING
RUNNING: Final = StateType.RUNNING
RETRYING: Final = StateType.RETRYING


class TaskRun(NamedTuple):
    """What hooks and retry conditions are told about a task run."""

    id: str
    name: str
    attempt: int
    flow_run_id: str | None


def settle(call: Call, type_: StateType, data: Any, attempt: int | None = None) -> list[Call]:
    """Make a call final, and with it everything that can't run any more; return the calls that became ready.

    Parameters
    ----------
    call, type_, data
        The call, its final state, and its value or Failure.
    attempt
        Do nothing if the call has begun another attempt since; None settles it whatever it does.

    Notes
    -----
    A list of things to do, not recursion: a chain of dependents may be longer than Python's stack.
    """
    ready: list[Call] = []
    todo: list[tuple[Call, StateType, Any, int | None]] = [(call, type_, data, attempt)]
    while todo:
        one, type_, data, attempt = todo.pop()
        future = one.future
        with LOCK:
            if future._type >= COMPLETED:
                continue
            if attempt is not None and (attempt != one.attempt or future._type is not RUNNING):
                continue
            if type_ is CANCELLED and future._type is RUNNING and (one.thread or one.dispatcher.kills):
                # The end of its body is about to come, and the flow waits for that.
                one.engine.stopping.add(one)
            future._data = data
            future._time = time.time()
            future._type = type_
            future._call = None
            listeners, dependents = future._listeners, future._dependents
            future._listeners = future._dependents = None
            for dependent in dependents or ():
                # Read once: the end of a dependent takes them away without the lock.
                dependencies = dependent.dependencies
                allowed = dependencies is not None and dependencies[future]
                if type_ <= StateType.CACHED or (allowed and type_ is not CANCELLED):
                    dependent.pending -= 1
                    if not dependent.pending:
                        ready.append(dependent)
                else:
                    lost = CANCELLED if type_ is CANCELLED else UPSTREAM_FAILED
                    todo.append((dependent, lost, Failure(root=data.root or future), None))
        one.engine.finished(one, type_, listeners)
    return ready


def start(ready: Sequence[Call]) -> None:
    """Hand calls that became ready to their dispatchers."""
    for call in ready:
        if call.task.run_name is None or give_name(call):
            call.dispatcher.push(call, False)


def give_name(call: Call) -> bool:
    """Give a call whose dependencies are over the name that its task wants, or fail it if there is none."""
    if call.future._name is not None:
        return True
    try:
        args, kwargs = replace_arguments(call.args, call.kwargs, value_or_error)
        call.future._name = call.task.name_of_run(args, kwargs)
    except BaseException as error:
        error.add_note(f"Raised while a name was made from task_run_name={call.task.run_name!r}.")
        type_ = StateType.FAILED if isinstance(error, Exception) else StateType.CRASHED
        crash = crash_of(f"The name function of {call.task.name}", error)
        start(settle(call, type_, Failure(error if isinstance(error, Exception) else crash)))
        return False
    return True


def crash_of(what: str, error: BaseException) -> CrashedRun:
    """Return what a call ends with whose code raised what is no Exception, such as SystemExit."""
    crash = CrashedRun(f"{what} raised {brief(error)}, which ends a run as a crash does.")
    crash.__cause__ = error
    return crash


def value_or_error(future: TaskFuture[Any], allowed: bool) -> Any:
    """Return what a future that is over stands for in arguments."""
    if future._type is COMPLETED and type(future._data) not in PACKED:  # hot path
        return future._data
    return future._value() if future._type <= StateType.CACHED else future._error()


def trouble_of(call: Call) -> Trouble:
    """Return a call's record of trouble, made if there is none."""
    if call.trouble is None:
        call.trouble = Trouble()
    return call.trouble


def run_hooks(hooks: Sequence[Any], owner: Any, run: Any, state: State) -> None:
    """Call hooks with what they are about, and log what they raise."""
    for hook in hooks:
        with logged("A hook of %r raised in state %s: %r", run.name, state.name, hook), delivering(), outside():
            call_inner(hook, owner, run, state)


def task_run(call: Call) -> TaskRun:
    """Return what hooks are told about a call."""
    future = call.future
    return TaskRun(future.task_run_id, future.name, max(1, call.attempt), call.engine.flow_run.id)
