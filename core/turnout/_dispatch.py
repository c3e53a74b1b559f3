"""What stands between engines and a started runner: takes calls that are ready to it, and what became of them back.

Queue and window belong to the started runner, which several flows may share; order, retries and states belong to the
engine of each flow.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ._attempts import execute
from ._call import Call
from ._ending import settle, start, trouble_of
from ._future import COMPLETED, Failure, brief
from ._loops import LoopThread
from ._secrets import secrets_hidden
from ._state import StateType
from ._telling import tell_ready, tell_stopped
from ._timers import after
from ._waiting import delivering
from .errors import CrashedRun, RunnerStartError
from .registry import word_of
from .runner import Batch, Capabilities, Host, Outcome, OutcomeKind, TaskRunner

if TYPE_CHECKING:
    from ._trips import Clock

__all__ = ["DirectDispatcher", "Dispatcher", "execute_batch", "give_up", "retry_after"]


class Dispatcher(abc.ABC):
    """Takes calls that are ready to a started runner, and what became of them back to their engines."""

    def __init__(self, runner: TaskRunner | None, capabilities: Capabilities) -> None:
        self.runner = runner
        self.can_stop = capabilities.cancel != "none"
        self.kills = capabilities.cancel == "kill"
        self.shares_nested = capabilities.nested == "shared"
        self.capabilities = capabilities
        self.sends_early = False
        self.loop = LoopThread()
        # Those of its workers of which somebody who listens has heard.
        self.workers: set[str] = set()
        self.clocks: dict[str, Clock] = {}

    @functools.cached_property
    def name(self) -> str:
        """What the runner goes by in events."""
        return "here" if self.runner is None else word_of(self.runner)

    @abc.abstractmethod
    def push(self, call: Call, here: bool) -> None:
        """Take a call that is ready. ``here`` says that this is the thread of the user's code that submits it."""

    def await_turn(self, call: Call) -> None:  # noqa: B027 - most send nothing early
        """Take note of a call that waits for others. Called where ``sends_early`` says so."""

    def later(self, call: Call, delay: float) -> None:
        """Take a call in ``delay`` seconds."""
        if delay > 0:
            retry_after(call, delay, functools.partial(self.push, call, False))
        else:
            self.push(call, False)

    def abandon(self, call: Call) -> None:
        """Stop the body of a call that is final, or give its slot away, as far as the runner can."""
        if self.runner is not None:
            self.runner.cancel(call)

    def may_begin(self, call: Call) -> bool:
        """Return whether a cancelled call has been sent, and may still begin until the word reaches its worker."""
        return False

    def waiting(self, scope: Call) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the body of a call waits and others use its slot."""
        return self.runner.waiting() if self.runner is not None else contextlib.nullcontext()

    def start(self) -> None:
        """Start the runner.

        Raises
        ------
        RunnerStartError
            If it doesn't come up.
        """
        if self.runner is None:
            return
        with secrets_hidden(self.runner._settings):
            try:
                self.runner.start(self.host())
            except BaseException as error:
                self.stop()
                if isinstance(error, RunnerStartError) or not isinstance(error, Exception):
                    raise
                raise RunnerStartError(
                    f"{self.runner!r} did not start: {brief(error).rstrip('.')}. "
                    "Check its settings, or run the flow elsewhere, for example with task_runner='thread'."
                ) from error

    def stop(self) -> None:
        """Stop the runner and what belongs to it."""
        self.loop.stop()
        if self.runner is not None:
            self.runner.stop()
        if self.workers:
            tell_stopped(self)

    def host(self) -> Host:
        """Return what the runner may call."""
        return Host(execute=execute_batch, report=self.report)

    def report(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Take news of a batch in this process that could not be executed."""
        with delivering():
            for outcome in outcomes:
                if outcome.kind >= OutcomeKind.VALUE:
                    start(give_up(batch.calls[outcome.index], str(outcome.data)))


def retry_after(call: Call, delay: float, retry: Callable[[], object]) -> None:
    """Have a call tried again in ``delay`` seconds, unless it is cancelled before."""
    trouble = trouble_of(call)
    trouble.timer = cancel = after(delay, retry)
    # Cancelled since it was said to be retried: whoever did that did not find the timer.
    if call.future._type >= COMPLETED:
        cancel()


def execute_batch(batch: Batch) -> Sequence[Batch]:
    assert isinstance(batch, Call), "runners in the driver's process are handed single calls"
    return execute(batch)


def give_up(call: Call, problem: Exception | str) -> list[Call]:
    """Settle a call that the runner did not take; another try would end the same."""
    cause = brief(problem) if isinstance(problem, Exception) else problem
    crash = CrashedRun(f"The runner did not run {call.future.name}: {cause}")
    crash.__cause__ = problem if isinstance(problem, Exception) else None
    return settle(call, StateType.CRASHED, Failure(crash))


class DirectDispatcher(Dispatcher):
    """For a runner in this process that keeps its own order: each call goes straight to it."""

    def __init__(self, runner: TaskRunner) -> None:
        super().__init__(runner, runner.capabilities)
        self._submit = runner.submit

    def push(self, call: Call, here: bool) -> None:
        if call.engine.events.put is not None and not call.is_known_ready:
            tell_ready(call)
        if call.task.is_async:
            self.loop.push(call)
            return
        try:
            self._submit(call)
        except Exception as error:
            start(give_up(call, error))
