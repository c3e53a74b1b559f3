"""Calls on their way out of the driver: a batch in which everything is packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._arguments import PLAIN, Placeholder, replace_arguments
from ._call import Call
from ._context import registered_values
from ._failures import TravellingFailure, encode
from ._forwarding import log_levels
from ._future import COMPLETED, brief
from ._scripts import are_scripts_by_value
from ._serialization import Parcel, dumps, explain, is_plain, pack_function
from ._state import StateType
from .errors import SerializationError
from .runner import Batch, Coming, Stored, TaskRunner
from .worker import FlowInfo, Job, Shipment, this_process

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from ._future import TaskFuture
    from ._scopes import FlowScope

__all__ = ["PackedBatch", "PackedFunctions", "pack"]


class PackedBatch(Batch):
    """A batch for a worker in another process."""

    __slots__ = (
        "attempts",
        "body",
        "calls",
        "functions",
        "is_aside",
        "is_async",
        "left",
        "may_stay",
        "options",
        "resources",
        "seq",
        "upstream",
    )

    def __init__(
        self, calls: Sequence[Call], body: Parcel, functions: Mapping[bytes, bytes], upstream: Sequence[Any]
    ) -> None:
        self.calls = calls
        self.seq = calls[0].seq
        self.is_async = calls[0].task.is_async
        # It takes none of the runner's slots.
        self.is_aside = False
        self.body = body
        self.functions = functions
        self.upstream = upstream
        self.may_stay = all(call.task.crash_retries for call in calls)
        # Calls of tasks that have any travel alone.
        self.resources = calls[0].task.resources
        self.options = calls[0].task.runner_options
        # Outcomes of these attempts are wanted; what comes of earlier ones is too late.
        self.attempts = [call.attempt for call in calls]
        # Which calls have no last outcome yet.
        self.left = set(range(len(calls)))


class PackedFunctions:
    """Functions as they were when a flow first sent them, each packed once for the flow and its subflows."""

    def __init__(self) -> None:
        # The functions are held too: the id of one that is gone may come again. For a cluster, those of a script go by
        # value, and for other runners of the same flow by name.
        self._packed: dict[tuple[int, bool], tuple[Callable[..., Any], bytes, bytes]] = {}

    def of(self, call: Call) -> tuple[bytes, bytes]:
        """Return digest and blob of a call's function.

        Raises
        ------
        SerializationError
            If the function can't be pickled.
        """
        function = call.task.fn
        key = id(function), are_scripts_by_value()
        packed = self._packed.get(key)
        if packed is None:
            try:
                packed = (function, *pack_function(function))
            except Exception as error:
                what = f"The function of task {call.future.name!r}"
                raise explain(function, error, what, call.task.name) from error
            self._packed[key] = packed
        return packed[1], packed[2]


def pack(
    calls: Sequence[Call],
    refuse: Callable[[Call, Exception], None],
    coming: Callable[[TaskFuture[Any]], Coming] | None = None,
) -> PackedBatch | None:
    """Pack calls as one batch.

    Parameters
    ----------
    calls
        The calls, whose dependencies are over.
    refuse
        Called with each call that can't be packed, and the reason; the others go without it.
    coming
        Returns what stands for a future that is not over. By default all are.

    Returns
    -------
    PackedBatch or None
        None if no call is left.
    """
    jobs: list[Job] = []
    packed: list[Call] = []
    functions: dict[bytes, bytes] = {}
    upstream: list[Any] = []
    flows: MutableMapping[int, tuple[int, FlowInfo]] = {}
    for call in calls:
        try:
            digest, blob = call.engine.backends.functions.of(call)
            arguments = _arguments(call, upstream, coming)
            variables = _variables(call)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            refuse(call, error if isinstance(error, Exception) else _ended(call, error))
            continue
        functions[digest] = blob
        run = call.engine.flow_run
        flow = flows.setdefault(id(run), (len(flows), _info(run, call.engine.run_id)))[0]
        jobs.append(_job(call, digest, arguments, flow, variables))
        packed.append(call)
    if not packed:
        return None
    shipment = Shipment(tuple(jobs), tuple(info for _, info in flows.values()), log_levels(), this_process())
    return PackedBatch(packed, dumps(shipment), functions, upstream)


def _ended(call: Call, error: BaseException) -> SerializationError:
    refusal = SerializationError(f"Task {call.future.name!r} can't be packed: {brief(error)} was raised on the way.")
    refusal.__cause__ = error
    return refusal


def _info(run: FlowScope, run_id: str) -> FlowInfo:
    return FlowInfo(run.id, run.name, run.flow_name, run_id, run.log_prints)


def _job(
    call: Call,
    function: bytes,
    arguments: Parcel | tuple[tuple[Any, ...], dict[str, Any]],
    flow: int,
    variables: Parcel | None,
) -> Job:
    future = call.future
    context = call.describe()
    return Job(
        function=function,
        arguments=arguments,
        flow=flow,
        name=future.name,
        path=future.path,
        task_name=call.task.name,
        attempt=call.attempt,
        tags=context.tags,
        log_prints=call.log_prints,
        is_async=call.task.is_async,
        read_only=call.task.read_only,
        variables=variables,
    )


def _arguments(
    call: Call, upstream: list[Any], coming: Callable[[TaskFuture[Any]], Coming] | None
) -> Parcel | tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = call.args, call.kwargs
    if call.dependencies is not None:
        args, kwargs = replace_arguments(args, kwargs, _placer(upstream, call.dispatcher.runner, coming))
    if all(map(is_plain, args)) and all(map(is_plain, kwargs.values())):
        return args, kwargs
    try:
        return dumps((args, kwargs))
    except Exception as error:
        raise _explained(call, args, kwargs, error) from error


def _placer(
    upstream: list[Any], runner: TaskRunner | None, coming: Callable[[TaskFuture[Any]], Coming] | None
) -> Callable[[TaskFuture[Any], bool], Any]:
    """Return what stands in for futures: small results themselves, placeholders for what travels beside."""
    places: dict[TaskFuture[Any], Placeholder] = {}

    def place(future: TaskFuture[Any], allowed: bool) -> Any:
        # It may be over by the time that it is looked at again; then there is nothing to come.
        is_over = coming is None or future._type >= COMPLETED
        value = future._data
        if is_over and type(value) in PLAIN:
            return value
        if future not in places:
            item = _parcelled(future, value, runner) if is_over or coming is None else coming(future)
            # Each call gets entries of its own: what one unpacks and changes, another of the batch must not see.
            places[future] = Placeholder(len(upstream))
            upstream.append(item)
        return places[future]

    return place


def _parcelled(future: TaskFuture[Any], value: Any, runner: TaskRunner | None) -> Parcel | Stored | TravellingFailure:
    if future._type > StateType.CACHED:
        return TravellingFailure(encode(future._error(), f"task {future.name!r}"))
    if type(value) is Stored:
        # From worker to worker, if it stays with its runner; else by way of the driver.
        return value if value.runner is runner and value.handle is not None else future._fetched(value)
    return value if type(value) is Parcel else _dumped(future, value)


def _dumped(future: TaskFuture[Any], value: Any) -> Parcel:
    try:
        return dumps(value)
    except Exception as error:
        raise explain(value, error, f"The result of task {future.name!r}, which is an argument,", "result") from error


def _explained(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> SerializationError:
    """Return an error that names the parameter which can't be pickled."""
    for name, value in call.task.named_arguments(args, kwargs):
        try:
            dumps(value)
        except Exception as own:
            return explain(value, own, f"The parameter {name!r} of task {call.future.name!r}", name)
    return explain((args, kwargs), error, f"The arguments of task {call.future.name!r} together", "arguments")


def _variables(call: Call) -> Parcel | None:
    values = registered_values(call.context)
    if not values:
        return None
    try:
        return dumps(values)
    except Exception as error:
        what = f"A context variable that travels with task {call.future.name!r}"
        raise explain(values, error, what, "variables") from error
