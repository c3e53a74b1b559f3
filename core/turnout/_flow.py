"""A decorated function that submits tasks: chooses a runner, and ends when all of its calls have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from ._choice import RunnerChoice, command_line_runner, told_runner
from ._context import current_scope
from ._decorated import Decorated, Delays, name_from
from ._flow_run import FlowRun
from ._state import State, StateType
from ._unknown import Unknown
from .errors import ParameterBindError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._graph import Graph

__all__ = ["Flow", "command_line_runner", "flow"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")

_ENDS = ("completion", "failure", "cancellation", "crashed", "running")

Hook = Callable[["Flow[..., Any]", FlowRun, State], object]


class Flow(Decorated, Generic[P, R]):
    """A function that may submit tasks. Made by :func:`flow`, whose parameters it takes.

    A call runs the body, waits for every call that the body submitted, and returns the body's value with futures
    replaced by their results.
    """

    kind = "flow"
    _attributes: ClassVar = {"flow_run_name": "run_name"} | {f"on_{end}": f"on_{end}_hooks" for end in _ENDS}

    def __init__(
        self,
        fn: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        version: str | None = None,
        task_runner: RunnerChoice | None = None,
        retries: int = 0,
        retry_delay_seconds: Delays = 0,
        retry_jitter_factor: float | None = None,
        timeout_seconds: float | None = None,
        log_prints: bool | None = None,
        flow_run_name: str | Callable[..., str] | None = None,
        validate_parameters: bool = False,
        on_completion: Iterable[Hook] = (),
        on_failure: Iterable[Hook] = (),
        on_cancellation: Iterable[Hook] = (),
        on_crashed: Iterable[Hook] = (),
        on_running: Iterable[Hook] = (),
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
            run_name=flow_run_name,
        )
        self.task_runner = task_runner
        # What with_options said, which is stronger than what the decorator did.
        self.chosen_runner: RunnerChoice | None = None
        self.validate_parameters = validate_parameters
        self.on_completion_hooks = list(on_completion)
        self.on_failure_hooks = list(on_failure)
        self.on_cancellation_hooks = list(on_cancellation)
        self.on_crashed_hooks = list(on_crashed)
        self.on_running_hooks = list(on_running)
        self._check()

    def _check(self) -> None:
        if "return_state" in inspect.signature(self.fn).parameters:
            raise TypeError(f"Flow {self.name!r} has a parameter 'return_state', a word of flows: rename it.")
        walked = inspect.isgeneratorfunction(self.fn) or inspect.isasyncgenfunction(self.fn)
        if walked and (self.retries or self.timeout_seconds is not None):
            raise ValueError(
                f"Flow {self.name!r} is a generator, whose items have been used when it fails: "
                "it can't have retries or timeout_seconds. Return a list instead."
            )
        if self.validate_parameters:
            _pydantic()

    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, /, *args: Any, return_state: Literal[True], **kwargs: Any) -> State: ...
    def __call__(self, /, *args: Any, return_state: bool = False, **kwargs: Any) -> Any:  # type: ignore[misc]  # P has none
        """Run the flow.

        Parameters
        ----------
        return_state
            Return the final :class:`State`, and raise none of the flow's failures.

        Raises
        ------
        ParameterBindError, ParameterTypeError
            If the arguments don't fit.
        RunnerStartError
            If the runner that the first call needs doesn't come up.
        ExceptionGroup
            Of the failures of calls at which nobody looked.
        """
        parameters = self._parameters(self._bound + args, kwargs)
        if inspect.isasyncgenfunction(self.fn):
            return self._collected_async(parameters) if return_state else self._walk_async(parameters)
        if inspect.iscoroutinefunction(self.fn):
            return self._run_async(parameters, return_state)
        if inspect.isgeneratorfunction(self.fn):
            return self._collected(parameters) if return_state else self._walk(parameters)
        run = self._new_run(parameters)
        return _given(run.run(self._body(run)), return_state)

    def _new_run(self, parameters: dict[str, Any]) -> FlowRun:
        scope = current_scope.get()
        if scope is not None and scope.engine.is_dry:
            from ._dry_run import DryRun

            return DryRun(self, parameters)
        return FlowRun(self, parameters)

    def _body(self, run: FlowRun) -> Callable[[], Any]:
        args, kwargs = _split(self.fn, run.parameters)
        return functools.partial(self.fn, *args, **kwargs)

    async def _run_async(self, parameters: dict[str, Any], return_state: bool) -> Any:
        run = self._new_run(parameters)
        return _given(await run.run_async(self._body(run)), return_state)

    def _walk(self, parameters: dict[str, Any]) -> Any:
        run = self._new_run(parameters)
        return (yield from run.walk(self._body(run)))

    async def _walk_async(self, parameters: dict[str, Any]) -> Any:
        run = self._new_run(parameters)
        async for item in run.walk_async(self._body(run)):
            yield item

    def _collected(self, parameters: dict[str, Any]) -> State:
        run = self._new_run(parameters)
        try:
            return State(StateType.COMPLETED, None, 0.0, list(run.walk(self._body(run))))
        except Exception as error:
            return run._state_of(error)

    async def _collected_async(self, parameters: dict[str, Any]) -> State:
        run = self._new_run(parameters)
        try:
            items = [item async for item in run.walk_async(self._body(run))]
            return State(StateType.COMPLETED, None, 0.0, items)
        except Exception as error:
            return run._state_of(error)

    def _parameters(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        signature = inspect.signature(self.fn)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ParameterBindError(
                f"Flow {self.name!r} can't be called so: {error}. Its parameters are {signature}."
            ) from None
        bound.apply_defaults()
        parameters = dict(bound.arguments)
        return _validated(self, parameters) if self.validate_parameters else parameters

    def visualize(self, /, *args: P.args, **kwargs: P.kwargs) -> Graph:
        """Return the graph of what a call of the flow submits, without running any task.

        The flow's body runs, and those of its subflows. Each call that they submit is noted, and its result stands for
        one that is not known: it can be given to other calls, but not looked into, unless the task has a
        ``viz_return_value``. No runner is started, no hook is called, and nothing is tried again or timed. An async
        flow runs on an event loop of its own, and a generator is walked over to its end.

        Parameters
        ----------
        *args, **kwargs
            The flow's arguments.

        Raises
        ------
        VisualizationError
            If the body looks into a result that is not there.
        ParameterBindError, ParameterTypeError
            If the arguments don't fit.
        Exception
            Whatever the body raises.

        Examples
        --------
        >>> from turnout import flow, task
        >>> @task
        ... def double(x):
        ...     return 2 * x
        >>> @task
        ... def add(numbers):
        ...     return sum(numbers)
        >>> @flow
        ... def total(numbers):
        ...     return add.submit(double.map(numbers))
        >>> print(total.visualize(range(1000)))
        flowchart TD
            subgraph f0["total"]
                direction TD
                n0("double x 1,000")
                n1("add")
            end
            n0 --> n1
        """
        from ._dry_run import visualized

        return visualized(self, args, kwargs)

    def with_options(self, **options: Any) -> Flow[P, R]:
        """Return a copy with some of the parameters of :func:`flow` changed.

        A ``task_runner`` given here wins over every other way to choose one.

        Examples
        --------
        >>> from turnout import flow
        >>> @flow
        ... def nightly():
        ...     return "done"
        >>> nightly.with_options(task_runner="sequential", name="tonight")()
        'done'
        """
        changed: Flow[P, R] = self._changed(options)
        changed.chosen_runner = options.get("task_runner", self.chosen_runner)
        return changed

    def on_completion(self, hook: Hook) -> Hook:
        """Add a hook for runs that complete. Can be used as a decorator."""
        self.on_completion_hooks.append(hook)
        return hook

    def on_failure(self, hook: Hook) -> Hook:
        """Add a hook for runs that fail or are out of time. Can be used as a decorator."""
        self.on_failure_hooks.append(hook)
        return hook

    def on_cancellation(self, hook: Hook) -> Hook:
        """Add a hook for runs that are cancelled. Can be used as a decorator."""
        self.on_cancellation_hooks.append(hook)
        return hook

    def on_crashed(self, hook: Hook) -> Hook:
        """Add a hook for runs ended by a BaseException such as KeyboardInterrupt. Can be used as a decorator."""
        self.on_crashed_hooks.append(hook)
        return hook

    def on_running(self, hook: Hook) -> Hook:
        """Add a hook for runs that begin. Can be used as a decorator."""
        self.on_running_hooks.append(hook)
        return hook

    # Loose where a type checker can't tell a class method or static method from a function.
    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Flow[..., R]: ...
    @overload
    def __get__(self: Flow[Concatenate[Any, Q], R], instance: object, owner: type | None = None) -> Flow[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._of(instance, owner)

    def _told(self) -> dict[str, str]:
        chosen = self.chosen_runner or self.task_runner
        return super()._told() | {"runs on": "" if chosen is None else told_runner(chosen)}

    # What follows is for flow runs.

    def hooks_for(self, type_: StateType) -> Sequence[Hook]:
        """Return the hooks that a final state calls for."""
        return {
            StateType.COMPLETED: self.on_completion_hooks,
            StateType.CANCELLED: self.on_cancellation_hooks,
            StateType.CRASHED: self.on_crashed_hooks,
        }.get(type_, self.on_failure_hooks)

    def name_of_run(self, parameters: dict[str, Any]) -> str | None:
        """Return the name that ``flow_run_name`` gives to a run."""
        return None if self.run_name is None else name_from(self.run_name, parameters)


def _given(state: State, return_state: bool) -> Any:
    """Return a state as the caller wants it; what is no failure but an order to end, such as Ctrl-C, is raised."""
    error = state._data
    if return_state and not (isinstance(error, BaseException) and not isinstance(error, Exception)):
        return state
    return state.result()


def _split(function: Callable[..., Any], parameters: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments by name as the positional and keyword arguments of a function."""
    bound = inspect.BoundArguments(inspect.signature(function), parameters)
    return bound.args, bound.kwargs


def _pydantic() -> Any:
    try:
        import pydantic
    except ImportError:
        raise ImportError("validate_parameters=True needs pydantic: pip install pydantic") from None
    return pydantic


def _validated(flow: Flow[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as their annotations want them, by pydantic."""
    pydantic = _pydantic()
    annotations = inspect.get_annotations(flow.fn, eval_str=True)
    checked = dict(parameters)
    for name, value in parameters.items():
        kind = inspect.signature(flow.fn).parameters[name].kind
        if (
            name not in annotations
            or type(value) is Unknown
            or kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        ):
            continue
        try:
            config = {"arbitrary_types_allowed": True}
            checked[name] = pydantic.TypeAdapter(annotations[name], config=config).validate_python(value)
        except pydantic.ValidationError as error:
            raise ParameterTypeError(f"Flow {flow.name!r}, parameter {name!r}: {error}") from None
    return checked


@overload
def flow(fn: Callable[P, R], /, **options: Any) -> Flow[P, R]: ...
@overload
def flow(
    *,
    name: str | None = None,
    description: str | None = None,
    version: str | None = None,
    task_runner: RunnerChoice | None = None,
    retries: int = 0,
    retry_delay_seconds: Delays = 0,
    retry_jitter_factor: float | None = None,
    timeout_seconds: float | None = None,
    log_prints: bool | None = None,
    flow_run_name: str | Callable[..., str] | None = None,
    validate_parameters: bool = False,
    on_completion: Iterable[Hook] = (),
    on_failure: Iterable[Hook] = (),
    on_cancellation: Iterable[Hook] = (),
    on_crashed: Iterable[Hook] = (),
    on_running: Iterable[Hook] = (),
) -> Callable[[Callable[P, R]], Flow[P, R]]: ...
def flow(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a :class:`Flow`, with or without arguments: ``@flow``, ``@flow(task_runner="process")``.

    Parameters
    ----------
    name
        Default: the function's name.
    description
        Default: the function's docstring.
    version
        Any text.
    task_runner
        Where the calls run: a runner, its class, or a word such as ``"process"`` or ``"thread?max_workers=4"``.
        Default: as the flow around it, else ``"thread"``.
    retries
        How often to run the flow again when it fails.
    retry_delay_seconds
        Seconds before each retry: a number, a list, or a function as for tasks.
    retry_jitter_factor
        Lengthens each delay at random, by up to this part of it.
    timeout_seconds
        Seconds that one attempt may run.
    log_prints
        Send what the body prints to the run's logger; tasks do the same unless they say otherwise.
    flow_run_name
        A template such as ``"load {path}"``, or a function that returns the name.
    validate_parameters
        Check and convert arguments by their annotations, with pydantic.
    on_completion, on_failure, on_cancellation, on_crashed, on_running
        Functions ``hook(flow, flow_run, state)``.

    Examples
    --------
    >>> from turnout import flow, task
    >>> @task
    ... def square(x):
    ...     return x * x
    >>> @flow
    ... def squares(n):
    ...     return square.map(range(n))
    >>> squares(4)
    [0, 1, 4, 9]
    """
    if fn is None:
        return lambda function: Flow(function, **options)
    return Flow(fn, **options)
