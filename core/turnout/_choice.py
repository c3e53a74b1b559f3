"""Which word wins: where a flow runs when several places say something about it."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ._call import Call
from ._engine import Engine, nested_home
from ._secrets import without_secrets
from .registry import resolve
from .runner import TaskRunner

if TYPE_CHECKING:
    from ._backends import Backends
    from ._context import Scope

__all__ = ["RunnerChoice", "chosen_for", "command_line_runner", "engine_for", "told_runner", "use_runner"]

RunnerChoice = TaskRunner | type[TaskRunner] | str

ENVIRONMENT_VARIABLE: Final = "TURNOUT_TASK_RUNNER"
DEFAULT: Final = "thread"

command_line_runner: Final[contextvars.ContextVar[str | None]] = contextvars.ContextVar(
    "turnout_command_line_runner", default=None
)
_used_runner: Final[contextvars.ContextVar[TaskRunner | None]] = contextvars.ContextVar(
    "turnout_used_runner", default=None
)


@contextlib.contextmanager
def use_runner(task_runner: RunnerChoice) -> Iterator[TaskRunner]:
    """Choose where flows run that are called inside of the block.

    Stronger than the command line, the environment and the decorator; weaker than ``flow.with_options``.

    Parameters
    ----------
    task_runner
        A runner, its class, or a word such as ``"process"``.

    Examples
    --------
    >>> from turnout import flow, task, use_runner
    >>> @task
    ... def double(x):
    ...     return 2 * x
    >>> @flow
    ... def doubled():
    ...     return double.map([1, 2])
    >>> with use_runner("sequential"):
    ...     doubled()
    [2, 4]
    """
    runner = resolve(task_runner)
    token = _used_runner.set(runner)
    try:
        yield runner
    finally:
        _used_runner.reset(token)


def engine_for(
    backends: Backends, parent: Scope | None, explicit: RunnerChoice | None, decorated: RunnerChoice | None
) -> Engine:
    """Return an engine for a flow run.

    Parameters
    ----------
    backends
        Those that the flow shares with its parent, or its own.
    parent
        The flow or call that calls the flow.
    explicit
        What ``with_options`` said.
    decorated
        What the decorator said.
    """
    inside = parent is not None and parent.engine.in_worker
    chosen = chosen_for(explicit, decorated, inside=inside)
    if chosen is not None:
        return Engine(backends, resolve(chosen), in_worker=inside)
    if isinstance(parent, Call):
        return Engine(backends, home=nested_home(parent), in_worker=inside)
    if parent is not None and (parent.engine.runner or parent.engine.home):
        return Engine(backends, parent.engine.runner, parent.engine.home, in_worker=inside)
    return Engine(backends, resolve(DEFAULT))


def chosen_for(
    explicit: RunnerChoice | None, decorated: RunnerChoice | None, *, inside: bool = False
) -> RunnerChoice | None:
    """Return the word that wins for a flow run, or None if none was said.

    Parameters
    ----------
    explicit
        What ``with_options`` said.
    decorated
        What the decorator said.
    inside
        The flow runs in a worker.
    """
    chosen = explicit or _used_runner.get()
    if chosen is None and not inside:
        # A worker has the driver's environment and may run a flow of the same decorator. It must not start a pool of
        # its own for what the driver sent it.
        chosen = command_line_runner.get() or os.environ.get(ENVIRONMENT_VARIABLE) or decorated
    return chosen


def told_runner(choice: RunnerChoice) -> str:
    """Return what users are told of a runner that was chosen: the word, or what makes it, without secrets.

    Examples
    --------
    >>> told_runner("tcp://user:hunter2@host:8786")
    'tcp://***@host:8786'
    """
    if isinstance(choice, str):
        return without_secrets(choice)
    return f"{choice.__name__}()" if isinstance(choice, type) else repr(choice)
