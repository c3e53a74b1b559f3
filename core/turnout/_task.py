"""A decorated function: a call of it goes to the engine."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from ._backends import Backends
from ._choice import told_runner
from ._context import current_scope
from ._decorated import Decorated, Delays, exponential_backoff, name_from, not_negative, signature_of
from ._engine import Engine, no_context
from ._future import FutureList
from ._loops import call_here_async
from ._map import LazyMap
from ._resources import described, normalized
from ._signals import INTERRUPTS
from ._state import State, StateType
from ._stopping import end_from_outside
from .runner import TaskRunner

if TYPE_CHECKING:
    from ._ending import TaskRun
    from ._future import TaskFuture

__all__ = ["Task", "exponential_backoff", "task"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

Hook = Callable[["Task[..., Any]", "TaskRun", State], object]
RunnerChoice = TaskRunner | type[TaskRunner] | str

_RESERVED = ("wait_for", "return_state")
_OPTIONS = "_options"
_ENDS = ("completion", "failure", "running")


class Task(Decorated, Generic[P, R_co]):
    """A function whose calls can be submitted to a runner. Made by :func:`task`, whose parameters it takes.

    Calling a task runs it here and now. ``submit`` and ``map`` need a running flow, and return futures.
    """

    kind = "task"
    _attributes: ClassVar = {"task_run_name": "run_name"} | {f"on_{end}": f"on_{end}_hooks" for end in _ENDS}

    def __init__(
        self,
        fn: Callable[P, R_co],
        *,
        name: str | None = None,
        description: str | None = None,
        version: str | None = None,
        tags: Iterable[str] = (),
        retries: int = 0,
        retry_delay_seconds: Delays = 0,
        retry_jitter_factor: float | None = None,
        retry_condition_fn: Callable[[Task[..., Any], TaskRun, State], bool] | None = None,
        timeout_seconds: float | None = None,
        log_prints: bool | None = None,
        task_run_name: str | Callable[..., str] | None = None,
        on_completion: Iterable[Hook] = (),
        on_failure: Iterable[Hook] = (),
        on_running: Iterable[Hook] = (),
        crash_retries: int = 3,
        resources: Mapping[str, Any] | None = None,
        batch: bool = True,
        read_only: bool = False,
        task_runner: RunnerChoice | None = None,
        viz_return_value: Any = ...,
        **runner_options: Mapping[str, Any],
    ) -> None:
        super().__init__(
            fn,
            name=name,
            description=description,
            version=version,
            retries=retries,
            retry_delay_seconds=retry_delay_seconds,
            retry_jitter_factor=retry_jitter_factor,
            timeout_seconds=timeout_seconds,
            log_prints=log_prints,
            run_name=task_run_name,
        )
        self.tags = frozenset((tags,) if isinstance(tags, str) else tags)
        self.retry_condition_fn = retry_condition_fn
        self.on_completion_hooks = list(on_completion)
        self.on_failure_hooks = list(on_failure)
        self.on_running_hooks = list(on_running)
        self.crash_retries = not_negative("crash_retries", crash_retries)
        self.resources = normalized(resources or {}, f"task {self.name!r}")
        self.batch = batch
        self.read_only = read_only
        self.task_runner = task_runner
        self.viz_return_value = viz_return_value
        self.runner_options = _by_runner(runner_options)
        self.is_async = _is_async(self.fn)
        self._check_parameters()
        self._notice()

    def _check_parameters(self) -> None:
        parameters = signature_of(self.fn)
        for reserved in _RESERVED:
            if parameters is not None and reserved in parameters.parameters:
                raise TypeError(
                    f"Task {self.name!r} has a parameter {reserved!r}, a word of submit and map: rename it."
                )

    def _notice(self) -> None:
        """Remember what the engine has to know on its hot path."""
        self.has_hooks = bool(self.on_completion_hooks or self.on_failure_hooks)
        self.is_watched = self.timeout_seconds is not None or bool(self.on_running_hooks)
        self.has_needs = bool(self.resources or self.runner_options)
        self.travels_alone = self.timeout_seconds is not None or self.has_needs or not self.batch

    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, /, *args: Any, return_state: Literal[True], **kwargs: Any) -> State: ...
    def __call__(self, /, *args: Any, return_state: bool = False, **kwargs: Any) -> Any:  # type: ignore[misc]  # P has none
        """Run the task here and now, with its retries, time limit, states and hooks, in a flow or outside of one.

        Parameters
        ----------
        return_state
            Return the final :class:`State`, and raise nothing.
        """
        if self.is_async:
            return self._call_async(self._bound + args, kwargs, return_state)
        scope = current_scope.get()
        if scope is not None:
            future = scope.engine.call_here(scope, self, self._bound + args, kwargs)
            return future.state if return_state else future.result()
        engine = Engine(Backends())
        with INTERRUPTS.handled(functools.partial(end_from_outside, engine, threading.get_ident())):
            try:
                future = engine.call_here(engine.flow_run, self, self._bound + args, kwargs)
                return future.state if return_state else future.result()
            finally:
                engine.close()
                engine.backends.close()

    async def _call_async(self, args: tuple[Any, ...], kwargs: dict[str, Any], return_state: bool) -> Any:
        scope = current_scope.get()
        engine = scope.engine if scope is not None else Engine(Backends())
        future = await call_here_async(engine, scope or engine.flow_run, self, args, kwargs)
        if scope is None:
            engine.close()
            engine.backends.close()
        return future.state if return_state else future.result()

    @overload
    def submit(self, /, *args: Any, wait_for: Any = None, return_state: Literal[True], **kwargs: Any) -> State: ...
    @overload
    def submit(
        self: Task[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        wait_for: Any = None,
        return_state: Literal[False] = False,
        **kwargs: Any,
    ) -> TaskFuture[T]: ...
    @overload
    def submit(
        self, /, *args: Any, wait_for: Any = None, return_state: Literal[False] = False, **kwargs: Any
    ) -> TaskFuture[R_co]: ...
    def submit(self, /, *args: Any, wait_for: Any = None, return_state: bool = False, **kwargs: Any) -> Any:
        """Hand a call to the flow's runner, and return its future at once.

        Futures in the arguments, also inside of lists, tuples, sets, dicts and dataclasses, stand for their results:
        the call starts when all of them are over.

        Parameters
        ----------
        wait_for
            A future, or a collection of futures, that must be over too, though they are no arguments.
        return_state
            Wait, and return the final :class:`State` instead.

        Raises
        ------
        MissingContextError
            If no flow is running here.
        RunnerStartError
            If this is the flow's first call and the backend doesn't come up.
        TypeError
            If ``wait_for`` holds something that is no future.
        """
        scope = current_scope.get()
        if scope is None:
            raise no_context(self)
        if self._bound:
            args = self._bound + args
        future = scope.engine.submit(scope, self, args, kwargs, wait_for)
        return _final_state(future) if return_state else future

    @overload
    def map(
        self, /, *args: Any, wait_for: Any = None, return_state: Literal[True], lazy: bool = False, **kwargs: Any
    ) -> list[State]: ...
    @overload
    def map(
        self: Task[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        wait_for: Any = None,
        return_state: Literal[False] = False,
        lazy: Literal[False] = False,
        **kwargs: Any,
    ) -> FutureList[T]: ...
    @overload
    def map(
        self,
        /,
        *args: Any,
        wait_for: Any = None,
        return_state: Literal[False] = False,
        lazy: Literal[False] = False,
        **kwargs: Any,
    ) -> FutureList[R_co]: ...
    @overload
    def map(
        self: Task[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        wait_for: Any = None,
        return_state: Literal[False] = False,
        lazy: Literal[True],
        **kwargs: Any,
    ) -> LazyMap[T]: ...
    @overload
    def map(
        self,
        /,
        *args: Any,
        wait_for: Any = None,
        return_state: Literal[False] = False,
        lazy: Literal[True],
        **kwargs: Any,
    ) -> LazyMap[R_co]: ...
    def map(
        self, /, *args: Any, wait_for: Any = None, return_state: bool = False, lazy: bool = False, **kwargs: Any
    ) -> Any:
        """Submit one call for each element of the arguments that can be walked over, in step.

        Strings, bytes, mappings' values and arguments in :class:`unmapped` are not walked over. A future of something
        that can be walked over is waited for.

        Parameters
        ----------
        wait_for
            As for ``submit``, for each call.
        return_state
            Wait, and return the list of final states instead.
        lazy
            Return an iterator of futures that submits as it is consumed: for more elements than fit in memory. Give
            it to :func:`as_completed`, or walk over it for the futures in order.

        Raises
        ------
        MappingLengthMismatch
            If the arguments differ in length.
        MappingMissingIterable
            If no argument can be walked over.
        """
        scope = current_scope.get()
        if scope is None:
            raise no_context(self)
        calls = scope.engine.elements(self.name, args, kwargs, lazy=lazy)
        if lazy:

            def submit(call: tuple[tuple[Any, ...], dict[str, Any]]) -> TaskFuture[R_co]:
                args, kwargs = call
                future: TaskFuture[R_co] = self.submit(*args, wait_for=wait_for, **kwargs)
                return future

            return LazyMap[R_co](submit, calls)
        # What is the same for all is looked up once.
        take, bound = scope.engine.submit, self._bound
        futures: FutureList[R_co] = FutureList(
            [take(scope, self, bound + args if bound else args, kwargs, wait_for) for args, kwargs in calls]
        )
        return [_final_state(future) for future in futures] if return_state else futures

    def with_options(self, **options: Any) -> Task[P, R_co]:
        """Return a copy with some of the parameters of :func:`task` changed.

        Examples
        --------
        >>> from turnout import task
        >>> @task
        ... def load():
        ...     return 1
        >>> load.with_options(name="load again", retries=2).retries
        2
        """
        changed: Task[P, R_co] = self._changed(options)
        return changed

    def _options(self) -> dict[str, Any]:
        return super()._options() | {f"{word}{_OPTIONS}": options for word, options in self.runner_options.items()}

    def on_completion(self, hook: Hook) -> Hook:
        """Add a hook for calls that complete. Can be used as a decorator."""
        return self._add(self.on_completion_hooks, hook)

    def on_failure(self, hook: Hook) -> Hook:
        """Add a hook for calls that end without a result, save by being cancelled. Can be used as a decorator."""
        return self._add(self.on_failure_hooks, hook)

    def on_running(self, hook: Hook) -> Hook:
        """Add a hook for calls whose body begins. Can be used as a decorator."""
        return self._add(self.on_running_hooks, hook)

    def _add(self, hooks: list[Hook], hook: Hook) -> Hook:
        hooks.append(hook)
        self._notice()
        return hook

    # Loose where a type checker can't tell a class method or static method from a function.
    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Task[..., R_co]: ...
    @overload
    def __get__(
        self: Task[Concatenate[Any, Q], R_co], instance: object, owner: type | None = None
    ) -> Task[Q, R_co]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._of(instance, owner)

    def _travelling(self) -> dict[str, Any]:
        # It may be large, or not to be pickled, and nothing is drawn on a worker.
        return super()._travelling() | {"viz_return_value": ...}

    def _told(self) -> dict[str, str]:
        return super()._told() | {
            "runs on": "" if self.task_runner is None else told_runner(self.task_runner),
            "tags": ", ".join(sorted(self.tags)),
            "needs": described(self.resources),
        }

    # What follows is for the engine.

    def hooks_for(self, type_: StateType) -> Sequence[Hook]:
        """Return the hooks that a final state calls for."""
        if type_ <= StateType.CACHED:
            return self.on_completion_hooks
        return () if type_ is StateType.CANCELLED else self.on_failure_hooks

    def name_of_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return the name that ``task_run_name`` gives to a call."""
        return name_from(self.run_name, dict(self.named_arguments(args, kwargs)))

    def named_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
        """Return arguments with the names of their parameters, as far as they fit the signature."""
        signature = signature_of(self.fn)
        with contextlib.suppress(TypeError):
            if signature is not None:
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                return list(bound.arguments.items())
        return [(str(position), value) for position, value in enumerate(args)] + list(kwargs.items())


def _final_state(future: TaskFuture[Any]) -> State:
    future.wait()
    return future.state


def _is_async(function: Callable[..., Any]) -> bool:
    target = function.func if isinstance(function, functools.partial) else function
    if not inspect.isroutine(target):
        target = getattr(target, "__call__", target)  # noqa: B004  (an object with an async __call__)
    return inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target)


def _by_runner(options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what a task says to particular runners, by their words."""
    for name, value in options.items():
        word = name.removesuffix(_OPTIONS)
        if word in ("", name):
            import difflib

            near = difflib.get_close_matches(name, inspect.signature(Task.__init__).parameters, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"@task has no option {name!r}.{hint}")
        if not isinstance(value, Mapping):
            raise TypeError(f"{name}={value!r}: give a dictionary of options for the runner {word!r}.")
    return {name.removesuffix(_OPTIONS): dict(value) for name, value in options.items()}


@overload
def task(fn: Callable[P, T], /, **options: Any) -> Task[P, T]: ...
@overload
def task(
    *,
    name: str | None = None,
    description: str | None = None,
    version: str | None = None,
    tags: Iterable[str] = (),
    retries: int = 0,
    retry_delay_seconds: Delays = 0,
    retry_jitter_factor: float | None = None,
    retry_condition_fn: Callable[[Task[..., Any], TaskRun, State], bool] | None = None,
    timeout_seconds: float | None = None,
    log_prints: bool | None = None,
    task_run_name: str | Callable[..., str] | None = None,
    on_completion: Iterable[Hook] = (),
    on_failure: Iterable[Hook] = (),
    on_running: Iterable[Hook] = (),
    crash_retries: int = 3,
    resources: Mapping[str, Any] | None = None,
    batch: bool = True,
    read_only: bool = False,
    task_runner: RunnerChoice | None = None,
    viz_return_value: Any = ...,
    **runner_options: Mapping[str, Any],
) -> Callable[[Callable[P, T]], Task[P, T]]: ...
def task(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a :class:`Task`, with or without arguments: ``@task``, ``@task(retries=2)``.

    Parameters
    ----------
    name
        Default: the function's name.
    description
        Default: the function's docstring.
    version
        Any text.
    tags
        Texts that each call carries.
    retries
        How often to run a call again whose body raised an exception, or ran out of time.
    retry_delay_seconds
        Seconds before each retry: a number, a list with one for each, or a function from the number of retries to
        such a list, as :func:`exponential_backoff` makes.
    retry_jitter_factor
        Lengthens each delay at random, by up to this part of it.
    retry_condition_fn
        ``condition(task, task_run, state)``: whether to retry after this failure.
    timeout_seconds
        Seconds that one attempt may run.
    log_prints
        Send what the body prints to the run's logger. Default: as the flow does.
    task_run_name
        A template such as ``"load {path}"``, or a function that returns the name.
    on_completion, on_failure, on_running
        Functions ``hook(task, task_run, state)``, called in the driver.
    crash_retries
        How often to run a call again whose worker died. With 0 it never begins twice, where the runner can promise it.
    resources
        What a call needs of a cluster's worker, such as ``{"cpu": 2, "memory": "4GiB"}``.
    batch
        False: calls never travel together with others.
    read_only
        The body changes none of its arguments: large arrays and objects may be those that other calls have.
        Writing to arrays is an error then, where the runner can tell.
    task_runner
        Where the calls run, if not where the flow's others do: a runner, its class, or a word such as ``"process"``.
    viz_return_value
        What :meth:`Flow.visualize` has in the place of a result, for flows whose bodies look into it. Default: nothing.
    **runner_options
        What only one runner understands, under its word: ``dask_options={"priority": 1}``. The others pass over it.

    Examples
    --------
    >>> from turnout import task
    >>> @task(retries=2)
    ... def half(x):
    ...     return x / 2
    >>> half(3)
    1.5
    """
    if fn is None:
        return lambda function: Task(function, **options)
    return Task(fn, **options)
