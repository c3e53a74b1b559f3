"""``with runner:`` as a scope: calls can be submitted in it without a flow, and are over when it ends."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._backends import Backends
from ._context import current_scope
from ._engine import Engine
from ._event_file import FILE
from ._event_stream import STREAM
from ._signals import INTERRUPTS
from ._stopping import end_from_outside
from ._winding_up import wind_up

if TYPE_CHECKING:
    from .runner import TaskRunner

__all__ = ["enter", "leave"]

# The sessions that are open in this context, innermost last; `with` blocks of one runner may be nested.
_sessions: contextvars.ContextVar[tuple[tuple[TaskRunner, contextlib.AbstractContextManager[None]], ...]] = (
    contextvars.ContextVar("turnout_sessions", default=())
)


def enter(runner: TaskRunner) -> None:
    """Begin a session on a runner."""
    manager = _session(runner)
    manager.__enter__()
    _sessions.set((*_sessions.get(), (runner, manager)))


def leave(runner: TaskRunner, *exc_info: Any) -> None:
    """End the innermost session, which must be this runner's."""
    *others, (_, manager) = _sessions.get()
    _sessions.set(tuple(others))
    manager.__exit__(*exc_info)


@contextlib.contextmanager
def _session(runner: TaskRunner) -> Iterator[None]:
    """Keep a runner up, and take calls that are submitted in the block.

    Raises
    ------
    EventFileError
        If events are to be written where they can't be.
    ExceptionGroup
        At the end of the block, of the failures of calls at which nobody looked.
    """
    around = current_scope.get()
    if around is not None and around.engine.is_dry:
        yield from _dry_session(around.engine, runner)
        return
    if around is None:
        FILE.begin()
    backends = Backends()
    engine = Engine(backends, runner)
    with INTERRUPTS.handled(functools.partial(end_from_outside, engine, threading.get_ident())):
        token = current_scope.set(engine.flow_run)
        try:
            backends.dispatcher_for(runner)
            yield
            INTERRUPTS.check()
            engine.join()
            failures = engine.unlooked()
            if failures:
                raise BaseExceptionGroup("Failures in `with runner:` at which nobody looked", failures)
        except BaseException as error:
            ending = wind_up(engine, error)
            if ending is not error:
                raise ending from error
            raise
        finally:
            current_scope.reset(token)
            engine.close()
            backends.close()
            if around is None and STREAM.put is not None:
                STREAM.flush()


def _dry_session(engine: Engine, runner: TaskRunner) -> Iterator[None]:
    """Take calls that are noted, and start nothing."""
    from ._recorder import Recorder

    assert isinstance(engine, Recorder), "nothing else is dry"
    token = current_scope.set(engine.session(runner))
    try:
        yield
    finally:
        current_scope.reset(token)
