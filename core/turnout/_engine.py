"""Order and readiness: what a running flow does with its calls.

The way of a call: ``submit`` → (its dependencies are over) → its dispatcher → a runner → ``execute`` in this process,
or ``worker.run_batch`` in another → ``succeeded`` or ``failed`` → its dependents.

`Engine.submit` is on the hot path, and written out long for it; see :mod:`turnout._attempts`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ._arguments import PLAIN, awaited_futures, find_futures
from ._call import EMPTY, NO_KEYWORDS, Call
from ._call_notes import NOTES
from ._circles import no_circle
from ._context import TASK_RUNS, Scope, within
from ._ending import RUNNING, give_name, run_hooks, settle, start, task_run
from ._event_stream import STREAM, Outlet
from ._future import CANCELLED, COMPLETED, UPSTREAM_FAILED, Failure, TaskFuture, summary
from ._joining import Joinable
from ._map import Arguments, elements_of
from ._remote_scope import remote_around
from ._scopes import FlowScope, calls_around, next_index
from ._signals import INTERRUPTS
from ._state import State, StateType
from ._stopping import stop_body
from ._tally import TALLY
from ._telling import tell_created, tell_finished, tell_ready
from ._waiting import LOCK, Away
from ._winding_up import await_returns
from .errors import MissingContextError
from .registry import resolve

if TYPE_CHECKING:
    from ._backends import Backends
    from ._dispatch import Dispatcher
    from ._task import Task
    from .runner import TaskRunner

__all__ = ["Engine", "nested_home", "no_context"]


FAILURES: Final = (StateType.FAILED, StateType.TIMED_OUT, StateType.CRASHED)


# Calls are numbered in order of submission, over all flows of the process: runners that are shared go by it.
_numbers: Final = itertools.count()


def _was_stopped(scope: Scope) -> bool:
    """Return whether the body of a scope was stopped, or one around it."""
    return any(call.future._type in (CANCELLED, StateType.TIMED_OUT) for call in calls_around(scope))


class Engine(Joinable):
    """One running flow: its open calls, and what is still to be told about those that failed.

    Parameters
    ----------
    backends
        The started runners that this flow shares with the flows around and inside of it.
    runner
        Where calls run that name no runner of their own.
    home
        A started runner to use instead. With neither, calls can only be made directly.
    in_worker
        This process is a worker of somebody else's flow.
    """

    is_dry: ClassVar[bool] = False
    """Calls are noted, and not run."""

    def __init__(
        self,
        backends: Backends,
        runner: TaskRunner | None = None,
        home: Dispatcher | None = None,
        *,
        in_worker: bool = False,
    ) -> None:
        super().__init__()
        self.backends = backends
        self.runner = runner
        self.home = home
        self.in_worker = in_worker
        # Where it tells what happens. In a worker that leads to the driver.
        self.events: Outlet = STREAM
        # What counts its calls.
        self.tally = TALLY
        self.flow_run = FlowScope(self)
        self.run_id = ""
        # Futures of calls that failed or crashed; those that nobody looked at make the flow fail.
        self.failures: list[TaskFuture[Any]] = []
        # Failures of nested calls that have no future here, each with the call whose body submitted it in a worker.
        self.remote_failures: list[tuple[Call, BaseException]] = []
        self.cancelling = False
        self.closed = False
        # Asked once: a call must not pay for log lines that nobody reads.
        self.logs = TASK_RUNS.isEnabledFor(logging.INFO)
        self._dispatcher = home
        # Until when it waits for bodies that can't be stopped, once that has begun.
        self.patient_until: float | None = None

    # Submitting

    def submit(
        self,
        scope: Scope,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wait_for: Any = None,
    ) -> TaskFuture[Any]:
        """Take a call, and start it if nothing keeps it waiting. Hot path."""
        if INTERRUPTS.due:
            INTERRUPTS.check()
        awaited = None if wait_for is None else awaited_futures(wait_for, task.name)
        if task.task_runner is not None or scope is not self.flow_run:
            dispatcher = self._special_dispatcher(scope, task)
        else:
            dispatcher = self._dispatcher or self._default_dispatcher(task)
        call = self._new_call(scope, task, args, kwargs, dispatcher)
        dependencies = None
        for value in args:
            cls = type(value)
            if cls is TaskFuture:
                if dependencies is None:
                    dependencies = {value: False}
                else:
                    dependencies[value] = False
            elif cls not in PLAIN:
                dependencies = find_futures([*args, *kwargs.values()])
                break
        else:
            if kwargs:
                dependencies = find_futures([*args, *kwargs.values()])
        if awaited is not None:
            dependencies = {**awaited, **(dependencies or {})}
        if self.tally.submitted is not None:
            self.tally.submitted(task)
        if self.events.put is not None:
            tell_created(call, dependencies)
        self.open[call] = None
        future = call.future
        if self.cancelling:
            settle(call, CANCELLED, Failure())
        if dependencies is not None:
            call.dependencies = dependencies
            if not self._register(call, dependencies):
                if dispatcher.sends_early:
                    dispatcher.await_turn(call)
                return future
        if task.run_name is None or give_name(call):
            dispatcher.push(call, True)
        return future

    def elements(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, lazy: bool) -> Iterator[Arguments]:
        """Yield the arguments of each call of a map; see :func:`turnout._map.elements_of`."""
        return elements_of(name, args, kwargs, lazy=lazy)

    def _new_call(
        self,
        scope: Scope,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dispatcher: Dispatcher,
    ) -> Call:
        counter = scope.counters.get(task.name) if scope.counters is not None else None
        index = next(counter) if counter is not None else next_index(scope, task.name)
        future: TaskFuture[Any] = TaskFuture(task, scope, index)
        call = Call()
        call.engine = self
        call.scope = scope
        call.task = task
        call.args = args
        call.kwargs = kwargs or NO_KEYWORDS
        call.future = future
        call.context = copy_context()
        call.seq = next(_numbers)
        call.dispatcher = dispatcher
        call.dependencies = None
        call.pending = 0
        call.queued = False
        call.attempt = 0
        call.thread = 0
        call.counters = None
        call.trouble = None
        call.is_known_ready = False
        call.told = None
        future._call = call
        return call

    def _default_dispatcher(self, task: Task[..., Any]) -> Dispatcher:
        if self.closed:
            raise MissingContextError(
                f"{task.name}.submit() came after {self.flow_run.described} ended. Wait inside of it for what submits."
            )
        if self.runner is None:
            raise no_context(task)
        self._dispatcher = self.backends.dispatcher_for(self.runner)
        return self._dispatcher

    def _special_dispatcher(self, scope: Scope, task: Task[..., Any]) -> Dispatcher:
        """Choose for a task that names its runner, or for a call that is submitted by a task."""
        if task.task_runner is not None and not self.closed:
            return self.backends.dispatcher_for(resolve(task.task_runner))
        if isinstance(scope, Call) and (self.runner or self.home) and not self.closed:
            return nested_home(scope)
        return self._dispatcher or self._default_dispatcher(task)

    def _register(self, call: Call, dependencies: dict[TaskFuture[Any], bool]) -> bool:
        """Have the futures tell the call when they are over; return whether all are, and the call can go."""
        root: TaskFuture[Any] | None = None
        with LOCK:
            pending = 0
            for future, allowed in dependencies.items():
                type_ = future._type
                if type_ < COMPLETED:
                    pending += 1
                    if future._dependents is None:
                        future._dependents = [call]
                    else:
                        future._dependents.append(call)
                elif type_ > StateType.CACHED and (not allowed or type_ is CANCELLED):
                    root = future
                if allowed:
                    future._looked = True
            # One more if it is lost: those that are still open must not make it ready before it is over.
            call.pending = pending if root is None else pending + 1
        if root is not None:
            self._lost_upstream(call, root)
            return False
        return not pending

    def _lost_upstream(self, call: Call, upstream: TaskFuture[Any]) -> None:
        type_ = CANCELLED if upstream._type is CANCELLED else UPSTREAM_FAILED
        start(settle(call, type_, Failure(root=upstream._data.root or upstream)))

    # Running here and now

    def call_here(
        self, scope: Scope, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        """Run a call in this thread to its end, retries and all, and return its future."""
        call = self.new_call_here(scope, task, args, kwargs)
        try:
            for future in call.dependencies or ():
                future.wait()
            if self.may_go(call):
                self.backends.here.push(call, True)
        except BaseException:
            # Interrupted, or refused to wait. Nobody else would end this call.
            settle(call, CANCELLED, Failure())
            raise
        return call.future

    def new_call_here(self, scope: Scope, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the open record of a call that its caller will run."""
        call = self._new_call(scope, task, args, kwargs, self.backends.here)
        self.open[call] = None
        call.dependencies = find_futures([*args, *kwargs.values()])
        if self.tally.submitted is not None:
            self.tally.submitted(task)
        if self.events.put is not None:
            tell_created(call, call.dependencies)
        if self.cancelling:
            settle(call, CANCELLED, Failure())
        return call

    def may_go(self, call: Call) -> bool:
        """Return whether a call whose dependencies are over can run; it is final if not."""
        ready = call.dependencies is None or self._register(call, call.dependencies)
        if not ready or not (call.task.run_name is None or give_name(call)):
            return False
        if self.events.put is not None:
            tell_ready(call)
        return True

    # Cancelling

    def cancel(self, call: Call, *, waits: bool = True) -> bool:
        """Cancel a call and its dependents; return whether that took.

        Parameters
        ----------
        call
            The call.
        waits
            Wait until a call that was sent and has not begun can't begin any more.
        """
        future = call.future
        with LOCK:
            running = future._type is RUNNING
            if running and not call.dispatcher.can_stop:
                return False
            nested = [other for other in list(self.open) if other.scope is call] if running else []
        start(settle(call, CANCELLED, Failure()))
        if future._type is not CANCELLED:
            return False
        # Even one that seems to wait may be under way: the news that it began can be on its way.
        stop_body(call)
        for other in nested:
            self.cancel(other)
        if waits and not running:
            await_returns([call])
        return True

    def cancel_all(self) -> list[Call]:
        """Cancel every open call, and every one that is still submitted; return those that had not begun."""
        with LOCK:
            # Under the lock: what is found running below sees it when it would be tried again.
            self.cancelling = True
            calls = list(self.open)
            waiting = [call for call in calls if call.future._type is not RUNNING]
        # Last first: then nothing is started only to be cancelled.
        for call in reversed(calls):
            self.cancel(call, waits=False)
        return waiting

    # Waiting

    def waiting(self, scope: Scope, future: TaskFuture[Any] | None = None) -> Away:
        """Return a context in which the body of a scope waits, and its slot may serve others.

        Parameters
        ----------
        scope
            Whose body waits.
        future
            What it waits for, if it does so without a time limit.

        Raises
        ------
        WouldDeadlockError
            If the future waits for the body.
        """
        # A subflow that a task calls waits in that task's slot. Several runners may be involved.
        around = {call.dispatcher: call for call in calls_around(scope)}
        slots = Away()
        if future is not None and around:
            slots.enter_context(no_circle(scope, future))
        for dispatcher, call in around.items():
            slots.enter_context(dispatcher.waiting(call))
        remote = remote_around(scope) if self.in_worker else None
        if remote is not None:
            wait: Any = slots.enter_context(remote.waiting())
            if wait is not None:
                slots.wait = wait
        return slots

    def close(self) -> None:
        """Take no more calls."""
        self.closed = True
        self._dispatcher = None
        self.tally.engines.pop(self, None)

    # The end of a call

    def unlooked(self) -> list[BaseException]:
        """Return the failures that nobody has looked at, save those at which nobody could."""
        with LOCK:
            futures = [future for future in self.failures if not future._looked]
        # A body that was stopped may have been about to look.
        here = [future._error() for future in futures if not _was_stopped(future._scope)]
        return here + [error for call, error in self.remote_failures if not _was_stopped(call)]

    def finished(self, call: Call, type_: StateType, listeners: list[Any] | None) -> None:
        """Tell everybody that a call is final, and let go of it."""
        future = call.future
        trouble = call.trouble
        if trouble is not None and trouble.timer is not None:
            trouble.timer()
        if self.tally.ended is not None:
            self.tally.ended((call.task, type_))
        if self.events.put is not None:
            tell_finished(call, type_)
        if type_ in FAILURES:
            self.failures.append(future)
            if NOTES.are_wanted and future._data.error is not None:
                NOTES.add(call, future._data.error)
        if self.logs or type_ in FAILURES:
            self._log_end(call, type_)
        try:
            if call.task.has_hooks:
                self._run_hooks(call.task.hooks_for(type_), call)
            for listener in listeners or ():
                listener()
        finally:
            self.let_go(call)

    def let_go(self, call: Call) -> None:
        """Forget a call that is final."""
        # Arguments and results go now, not when the garbage collector finds that call and context hold each other.
        call.args = ()
        call.kwargs = NO_KEYWORDS
        call.dependencies = None
        call.context = EMPTY
        self.open.pop(call, None)
        if self.gates:
            self.emptied()

    def _log_end(self, call: Call, type_: StateType) -> None:
        future = call.future
        level = logging.ERROR if type_ in FAILURES else logging.INFO
        if TASK_RUNS.isEnabledFor(level):
            error = future._data.error if type_ > StateType.CACHED else None
            state = State(type_, summary(error, type_) if error is not None else None)
            ids = {
                "flow_run_id": self.flow_run.id,
                "flow_run_name": self.flow_run.name,
                "task_run_id": future.task_run_id,
                "task_run_name": future.name,
            }
            with within(call):
                TASK_RUNS.log(level, "Task run %r - Finished in state %r", future.name, state, extra=ids)

    def _run_hooks(self, hooks: Sequence[Any], call: Call) -> None:
        # Being told by a hook is not a look: the flow shall fail all the same.
        run_hooks(hooks, call.task, task_run(call), call.future._state(look=False))


def nested_home(call: Call) -> Dispatcher:
    """Return where calls go that another call submits."""
    return call.dispatcher if call.dispatcher.shares_nested else call.engine.backends.here


def no_context(task: Task[..., Any]) -> MissingContextError:
    """Return the error for submitting where no flow runs."""
    return MissingContextError(
        f"{task.name}.submit() was called outside of a flow. Call it in the body of a @flow, or inside of "
        f"`with runner:`; or call {task.name}(...) to run it here and now."
    )
